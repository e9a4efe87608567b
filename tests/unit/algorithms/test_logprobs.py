"""Token and sequence log-probabilities against numbers worked by hand."""

import math

import pytest
import torch

from raylign.algorithms.logprobs import sequence_sums, token_logprobs

# exp of the logits is [1, 2, 5], so the probabilities are [1/8, 2/8, 5/8].
LOGITS = torch.tensor([[1.0, 2.0, 5.0]]).log()
# ln(8)/8 + ln(4)/4 + 5 ln(8/5)/8 = 0.259930 + 0.346574 + 0.293752
ENTROPY = 0.900256


def test_worked_probabilities():
    logprobs, entropy = token_logprobs(LOGITS.expand(3, 3), torch.tensor([0, 1, 2]), with_entropy=True)
    torch.testing.assert_close(logprobs, torch.tensor([1 / 8, 2 / 8, 5 / 8]).log())
    torch.testing.assert_close(entropy, torch.full((3,), ENTROPY))


def test_temperature_divides_the_logits():
    # T = 0.5 squares the weights: [1, 4, 25] / 30.
    logprobs, entropy = token_logprobs(LOGITS, torch.tensor([1]), 0.5, with_entropy=True)
    assert logprobs.item() == pytest.approx(math.log(4 / 30), abs=1e-6)
    # ln(30)/30 + 4 ln(7.5)/30 + 25 ln(1.2)/30 = 0.113373 + 0.268654 + 0.151935
    assert entropy is not None
    assert entropy.item() == pytest.approx(0.533962, abs=1e-5)
    assert logprobs.item() != pytest.approx(math.log(2 / 8), abs=0.1)  # what a forgotten temperature gives


def test_a_shifted_target_is_another_number():
    right, _ = token_logprobs(LOGITS, torch.tensor([2]))
    off_by_one, _ = token_logprobs(LOGITS, torch.tensor([1]))
    assert (right - off_by_one).item() == pytest.approx(math.log(5 / 2), abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient_is_that_of_the_equation_in_float64(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(130, 17, generator=generator)).requires_grad_()  # more rows than one entropy chunk
    targets = torch.randint(17, (130,), generator=generator)
    weights = torch.randn(130, generator=generator)

    exact = logits.detach().double().requires_grad_()
    scaled = exact / temperature
    written = scaled[torch.arange(130), targets] - scaled.exp().sum(-1).log()
    (written * weights).sum().backward()
    probabilities = scaled.exp() / scaled.exp().sum(-1, keepdim=True)

    logprobs, entropy = token_logprobs(logits, targets, temperature, with_entropy=True)
    (logprobs * weights).sum().backward()
    assert exact.grad is not None
    assert entropy is not None
    torch.testing.assert_close(logprobs, written.float(), atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(logits.grad, exact.grad.float(), atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(
        entropy, -(probabilities * probabilities.log()).sum(-1).detach().float(), atol=2e-6, rtol=2e-6
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient_of_the_entropy_is_that_of_the_equation_in_float64(temperature: float):
    generator = torch.Generator().manual_seed(2)
    logits = (3 * torch.randn(130, 17, generator=generator)).requires_grad_()
    targets = torch.randint(17, (130,), generator=generator)
    weights = torch.randn(2, 130, generator=generator)

    exact = logits.detach().double().requires_grad_()
    probabilities = torch.softmax(exact / temperature, -1)
    written = -(probabilities * probabilities.log()).sum(-1)
    (written * weights[0] + probabilities[torch.arange(130), targets].log() * weights[1]).sum().backward()

    logprobs, entropy = token_logprobs(logits, targets, temperature, with_entropy=True, entropy_gradient=True)
    assert entropy is not None
    (entropy * weights[0] + logprobs * weights[1]).sum().backward()
    assert exact.grad is not None
    torch.testing.assert_close(entropy.double(), written, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(logits.grad, exact.grad.float(), atol=5e-6, rtol=5e-6)


def test_entropy_has_a_gradient_only_when_asked():
    logits, targets = LOGITS.clone().requires_grad_(), torch.tensor([0])
    plain = token_logprobs(logits, targets, with_entropy=True).entropy
    asked = token_logprobs(logits, targets, with_entropy=True, entropy_gradient=True).entropy
    assert plain is not None
    assert asked is not None
    assert (plain.requires_grad, asked.requires_grad) == (False, True)
    torch.testing.assert_close(plain, asked.detach())
    # dH/dz_v = -p_v (ln p_v + H): -(-2.079442 + 0.900256)/8, -(-1.386294 + 0.900256)/4, -5 (-0.470004 + 0.900256)/8
    asked.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.147398, 0.121510, -0.268908]]), atol=1e-5, rtol=0)


def test_masked_logits_do_not_make_a_nan_gradient():
    logits = torch.cat([LOGITS, torch.full((1, 1), -math.inf)], dim=1).requires_grad_()
    entropy = token_logprobs(logits, torch.tensor([2]), with_entropy=True, entropy_gradient=True).entropy
    assert entropy is not None
    entropy.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.147398, 0.121510, -0.268908, 0.0]]), atol=1e-5, rtol=0)


def test_half_precision_logits_are_scored_in_float32():
    logits = torch.randn(9, 50, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    targets = torch.arange(9)
    logprobs, entropy = token_logprobs(logits, targets, with_entropy=True)
    assert entropy is not None
    assert (logprobs.dtype, entropy.dtype, entropy.requires_grad) == (torch.float32, torch.float32, False)
    wide, _ = token_logprobs(logits.detach().float(), targets)
    torch.testing.assert_close(logprobs.detach(), wide)
    narrow = torch.log_softmax(logits.detach(), -1)[torch.arange(9), targets].float()
    assert (narrow - wide).abs().max() > 1e-3  # the control: bfloat16 all the way is visibly off
    logprobs.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_masked_logits_do_not_make_nan():
    logits = torch.cat([LOGITS, torch.full((1, 1), -math.inf)], dim=1)
    logprobs, entropy = token_logprobs(logits, torch.tensor([2]), with_entropy=True)
    assert entropy is not None
    assert logprobs.item() == pytest.approx(math.log(5 / 8), abs=1e-6)
    assert entropy.item() == pytest.approx(ENTROPY, abs=1e-5)


def test_no_tokens_give_no_numbers():
    logprobs, entropy = token_logprobs(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), with_entropy=True)
    assert entropy is not None
    assert (logprobs.shape, entropy.shape) == ((0,), (0,))
    assert token_logprobs(LOGITS, torch.tensor([0])).entropy is None


def test_sequence_sums():
    values = torch.tensor([-1.0, -2.0, -4.0, -8.0], requires_grad=True)
    rows = torch.tensor([2, 0, 2, 0])
    sums = sequence_sums(values, rows, 4)
    # row 0: -2 - 8; rows 1 and 3 have no token; row 2: -1 - 4
    torch.testing.assert_close(sums, torch.tensor([-10.0, 0.0, -5.0, 0.0]))
    (sums * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([100.0, 1.0, 100.0, 1.0]))
    assert not torch.equal(sequence_sums(values, rows.roll(1), 4), sums)
