"""Reward shaping, GAE and whitening: worked numbers, masks with holes, and what must not change them."""

import math
import time

import pytest
import torch
from torch import Tensor

from raylign.algorithms.advantages import gae, shape_rewards, whiten

T, F = True, False


def slow_gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """The definition: drop what is not an action, then A_t = sum_k (gamma lam)^k delta_{t+k}."""
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for i in range(len(rewards)):
        where = [t for t in range(rewards.shape[1]) if mask[i, t]]
        v = [values[i, t].item() for t in where] + [0.0]
        deltas = [rewards[i, t].item() + gamma * v[k + 1] - v[k] for k, t in enumerate(where)]
        for k, t in enumerate(where):
            advantages[i, t] = sum((gamma * lam) ** j * delta for j, delta in enumerate(deltas[k:]))
            returns[i, t] = advantages[i, t] + v[k]
    return advantages, returns


def random_batch(num_rows: int = 7, length: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, num_rows, length, generator=generator, dtype=torch.float64)
    mask = torch.rand(num_rows, length, generator=generator) < 0.6
    mask[0] = False  # a row without completion tokens
    mask[1] = True
    return rewards, values, mask


# --- shape_rewards


def shaped(mask: list[bool], score: float = 1.0) -> Tensor:
    # k1 of the tokens: nan outside, 2, -1, nan outside; coef 0.1
    logprobs = torch.tensor([[math.nan, -1.0, -2.0, math.nan]])
    ref_logprobs = torch.tensor([[0.0, -3.0, -1.0, 0.0]])
    return shape_rewards(torch.tensor([score]), logprobs, ref_logprobs, torch.tensor([mask]), 0.1, "k1")


def test_penalty_on_every_token_and_score_on_the_last():
    # -0.1 * 2, -0.1 * -1 + 1
    torch.testing.assert_close(shaped([F, T, T, F]), torch.tensor([[0.0, -0.2, 1.1, 0.0]]))
    # The control: with the mask cut one short, the score lands one token early.
    torch.testing.assert_close(shaped([F, T, F, F]), torch.tensor([[0.0, 0.8, 0.0, 0.0]]))


def test_estimator_reaches_the_rewards():
    # k2 of d = 2 is 2, of d = -1 is 0.5
    rewards = shape_rewards(
        torch.tensor([0.0]), torch.tensor([[2.0, -1.0]]), torch.zeros(1, 2), torch.tensor([[T, T]]), 0.5, "k2"
    )
    torch.testing.assert_close(rewards, torch.tensor([[-1.0, -0.25]]))


def test_score_is_given_once_to_each_row_with_a_completion():
    _, _, mask = random_batch()
    scores = torch.arange(1.0, 8.0)
    flat = torch.zeros(7, 12)
    rewards = shape_rewards(scores, flat, flat, mask, 0.1, "k3")
    torch.testing.assert_close(rewards.sum(1), scores * mask.any(1))
    assert not rewards[~mask].any()
    for i in range(1, 7):
        assert rewards[i, mask[i].nonzero()[-1]] == scores[i]


# --- gae


def test_worked_gae_over_a_hole():
    mask = torch.tensor([[T, F, T, T]])
    rewards, values = torch.tensor([[1.0, 9.0, 0.0, 2.0]]), torch.tensor([[1.0, 9.0, 2.0, 4.0]])
    # gamma = lambda = 0.5
    # t=3: delta = 2 + 0   - 4 = -2, A = -2
    # t=2: delta = 0 + 4/2 - 2 =  0, A = 0 + 0.25 * -2   = -0.5
    # t=0: delta = 1 + 2/2 - 1 =  1, A = 1 + 0.25 * -0.5 =  0.875
    advantages, returns = gae(rewards, values, mask, 0.5, 0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.875, 0.0, -0.5, -2.0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.875, 0.0, 1.5, 2.0]]))
    for wrong in ([T, T, T, T], [F, T, T, T], [T, F, T, F]):
        assert not torch.allclose(gae(rewards, values, torch.tensor([wrong]), 0.5, 0.5).advantages, advantages)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_its_definition_on_masks_with_holes(gamma: float, lam: float):
    rewards, values, mask = random_batch()
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    slow_advantages, slow_returns = slow_gae(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(advantages, slow_advantages, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(returns, slow_returns, atol=1e-12, rtol=1e-12)
    shifted, _ = gae(rewards, values, mask.roll(1, 1), gamma, lam)
    assert not torch.allclose(shifted, slow_advantages)


def test_returns_are_the_sum_of_what_follows_when_nothing_is_discounted():
    rewards, values, mask = random_batch()
    _, returns = gae(rewards, values, mask, 1.0, 1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, to_go, atol=1e-12, rtol=1e-12)


def test_what_is_outside_the_mask_is_not_read():
    rewards, values, mask = random_batch()
    expected = gae(rewards, values, mask, 0.9, 0.8)
    found = gae(rewards.masked_fill(~mask, math.nan), values.masked_fill(~mask, math.nan), mask, 0.9, 0.8)
    assert torch.equal(found.advantages, expected.advantages)
    assert torch.equal(found.returns, expected.returns)


def test_row_without_completion_gives_zeros():
    rewards, values, mask = random_batch()
    advantages, returns = gae(rewards, values, mask, 1.0, 0.95)
    assert not advantages[0].any()
    assert not returns[0].any()
    empty, _ = gae(rewards, values, torch.zeros_like(mask), 1.0, 0.95)
    assert not empty.any()


def test_gae_is_fast():
    rewards, values, mask = torch.randn(256, 1024), torch.randn(256, 1024), torch.ones(256, 1024, dtype=torch.bool)
    start = time.perf_counter()
    gae(rewards, values, mask, 1.0, 0.95)
    assert time.perf_counter() - start < 2.0  # 0.03 s on one idle core; a loop over tokens takes tens of seconds


# --- whiten


def test_worked_whitening():
    x, mask = torch.tensor([[100.0, 1.0, 2.0], [3.0, 100.0, 100.0]]), torch.tensor([[F, T, T], [T, F, F]])
    # 1, 2, 3: mean 2, population variance 2/3, 1 / 0.816497 = 1.224745
    torch.testing.assert_close(whiten(x, mask), torch.tensor([[0.0, -1.224745, 0.0], [1.224745, 0.0, 0.0]]))
    kept = whiten(x, mask, shift_mean=False)
    torch.testing.assert_close(kept, torch.tensor([[0.0, 0.775255, 2.0], [3.224745, 0.0, 0.0]]))
    for wrong in (torch.ones_like(mask), ~mask, mask.roll(1, 1)):
        assert not torch.allclose(whiten(x, wrong)[mask], whiten(x, mask)[mask])
    assert whiten(x, mask)[0, 1].item() != pytest.approx(-1.0)  # the sample variance (n - 1) would give -1


@pytest.mark.filterwarnings("error")
def test_whitening_few_or_equal_elements_gives_no_nan():
    x = torch.tensor([[5.0, 7.0]])
    assert not whiten(x, torch.tensor([[T, F]])).any()
    assert not whiten(x, torch.tensor([[F, F]])).any()
    assert not whiten(torch.full((2, 3), 4.0), torch.ones(2, 3, dtype=torch.bool)).any()


# --- all three, as the controller chains them


def pipeline(batch: tuple[Tensor, ...]) -> Tensor:
    scores, logprobs, ref_logprobs, values, mask = batch
    rewards = whiten(shape_rewards(scores, logprobs, ref_logprobs, mask, 0.1, "k3"), mask, shift_mean=False)
    return whiten(gae(rewards, values, mask, 0.99, 0.95).advantages, mask)


def pipeline_batch() -> tuple[Tensor, ...]:
    logprobs, values, mask = random_batch(num_rows=9, seed=1)
    ref_logprobs, _, _ = random_batch(num_rows=9, seed=2)
    scores = torch.randn(9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return scores, logprobs, ref_logprobs, values, mask


def test_padding_changes_nothing():
    scores, *arrays = batch = pipeline_batch()
    padded = [torch.nn.functional.pad(a, (2, 5)) for a in arrays]  # longer prompts and longer neighbours
    found = pipeline((scores, *padded))
    torch.testing.assert_close(found[:, 2:-5], pipeline(batch), atol=1e-12, rtol=0)
    assert not found[:, :2].any()
    assert not found[:, -5:].any()


def test_row_order_changes_nothing():
    batch = pipeline_batch()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(pipeline(tuple(a[order] for a in batch)), pipeline(batch)[order], atol=1e-12, rtol=0)
    assert not torch.allclose(pipeline(tuple(a[order] for a in batch)), pipeline(batch))  # the order is no identity


def test_gae_of_shards_is_gae_of_the_batch():
    rewards, values, mask = random_batch()
    whole = gae(rewards, values, mask, 0.99, 0.95).advantages
    parts = [
        gae(*part, 0.99, 0.95).advantages for part in zip(rewards.split(3), values.split(3), mask.split(3), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-12, rtol=0)
    # The control: whitening is over the whole step and does not commute with the split.
    pieces = torch.cat([whiten(a, m) for a, m in zip(whole.split(3), mask.split(3), strict=True)])
    assert not torch.allclose(pieces, whiten(whole, mask))
