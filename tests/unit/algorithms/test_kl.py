"""KL estimators against numbers worked by hand and against the exact KL of a small distribution."""

import math

import pytest
import torch
from torch import Tensor

from raylign.algorithms.kl import KLEstimator, kl_estimate

# Two tokens. policy [1/2, 1/2], reference [1/4, 3/4]: d = [ln 2, ln 2/3] = [0.693147, -0.405465].
POLICY = torch.tensor([0.5, 0.5], dtype=torch.float64)
REFERENCE = torch.tensor([0.25, 0.75], dtype=torch.float64)
KL = 0.143841  # (0.693147 - 0.405465) / 2


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [0.693147, -0.405465]),
        ("k2", [0.240227, 0.082201]),  # 0.693147^2 / 2, 0.405465^2 / 2
        ("k3", [0.193147, 0.094535]),  # 1/2 - 1 + 0.693147, 3/2 - 1 - 0.405465
    ],
)
def test_worked_estimates(estimator: KLEstimator, expected: list[float]):
    found = kl_estimate(POLICY.log(), REFERENCE.log(), estimator)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_which_estimators_are_unbiased():
    def mean(estimator: KLEstimator) -> float:  # over samples of the policy
        return (POLICY * kl_estimate(POLICY.log(), REFERENCE.log(), estimator)).sum().item()

    assert mean("k1") == pytest.approx(KL, abs=1e-6)
    assert mean("k3") == pytest.approx(KL, abs=1e-6)
    assert mean("k2") == pytest.approx(0.161214, abs=1e-6)  # (0.240227 + 0.082201) / 2: biased, as documented


def test_swapped_arguments_are_another_number():
    swapped = (POLICY * kl_estimate(REFERENCE.log(), POLICY.log(), "k3")).sum().item()
    assert abs(swapped - KL) > 0.01


def test_k3_is_exact_near_zero_and_finite_far_away():
    near = kl_estimate(torch.tensor([1e-4]), torch.tensor([0.0]), "k3").item()
    assert near == pytest.approx(5e-9, rel=0.2)  # d^2 / 2; exp(-d) - 1 + d written out would round to 0 or 6e-8
    assert math.isfinite(kl_estimate(torch.tensor([-200.0]), torch.tensor([0.0]), "k3").item())
    assert not math.isfinite(torch.tensor(200.0).exp().item())  # what the cut prevents


def test_unknown_estimator_is_refused():
    with pytest.raises(AssertionError, match="k4"):
        kl_estimate(POLICY, REFERENCE, "k4")  # pyright: ignore[reportArgumentType]


def test_k3_far_below_the_reference_does_not_push_further_down():
    logprobs = torch.tensor([-25.0, -1.0], requires_grad=True)
    kl_estimate(logprobs, torch.tensor([0.0, 0.0]), "k3").sum().backward()
    # beyond the cut 0, where a cut of the exponent alone would leave the + d and a gradient of 1; else 1 - exp(1)
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, -1.718282]))


LOGITS = torch.tensor([0.3, -1.2, 0.8, 0.0, -0.4], dtype=torch.float64)
REF_LOGPROBS = torch.tensor([-0.5, 0.9, 0.1, 1.3, -2.0], dtype=torch.float64).log_softmax(0)


def expected_gradient(estimator: KLEstimator) -> Tensor:
    """Over every token, weighted by its probability: what the mean over infinitely many samples would be."""
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    (logprobs.detach().exp() * kl_estimate(logprobs, REF_LOGPROBS, estimator)).sum().backward()
    assert logits.grad is not None
    return logits.grad


def exact_gradient(direction: str) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    p, q = (logprobs, REF_LOGPROBS) if direction == "policy || reference" else (REF_LOGPROBS, logprobs)
    (p.exp() * (p - q)).sum().backward()
    assert logits.grad is not None
    return logits.grad


def test_expected_gradients_in_a_loss():
    forward, backward = exact_gradient("policy || reference"), exact_gradient("reference || policy")
    torch.testing.assert_close(expected_gradient("k2"), forward, atol=1e-12, rtol=0)
    torch.testing.assert_close(expected_gradient("k3"), backward, atol=1e-12, rtol=0)
    torch.testing.assert_close(expected_gradient("k1"), torch.zeros_like(LOGITS), atol=1e-12, rtol=0)
    assert (forward - backward).abs().max() > 0.1  # the control: the two directions are apart here


def test_expected_values_on_the_same_distribution():
    logprobs = LOGITS.log_softmax(0)
    exact = (logprobs.exp() * (logprobs - REF_LOGPROBS)).sum().item()
    means = {e: (logprobs.exp() * kl_estimate(logprobs, REF_LOGPROBS, e)).sum().item() for e in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(exact, abs=1e-12)
    assert means["k3"] == pytest.approx(exact, abs=1e-12)
    assert abs(means["k2"] - exact) > 0.1
