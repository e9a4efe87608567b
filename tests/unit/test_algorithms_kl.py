"""KL estimators and controllers against numbers worked by hand."""

import math

import pytest
import torch

from raylign.algorithms import AdaptiveKL, FixedKL, KLEstimator, kl_estimate

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


@pytest.mark.parametrize(
    ("kl", "coef"),
    [
        (6.6, 0.101),  # error 0.1, K = 100/1000: 0.1 * 1.01
        (60.0, 0.102),  # error 9, clipped to 0.2
        (0.0, 0.098),  # error -1, clipped to -0.2
        (6.0, 0.1),
    ],
)
def test_adaptive_steps(kl: float, coef: float):
    controller = AdaptiveKL(coef=0.1, target=6.0, horizon=1000)
    controller.update(kl, 100)
    assert controller.coef == pytest.approx(coef, rel=1e-12)


def test_adaptive_stays_positive_when_the_horizon_is_shorter_than_a_batch():
    controller = AdaptiveKL(coef=0.1, target=6.0, horizon=1)
    controller.update(0.0, 64)
    assert controller.coef == pytest.approx(0.08, rel=1e-12)
    assert 0.1 * (1 - 0.2 * 64 / 1) < 0  # the formula without the cap


def test_adaptive_finds_the_coefficient_that_meets_its_target():
    controller = AdaptiveKL(coef=0.01, target=4.0, horizon=1000)
    for _ in range(400):
        controller.update(1.0 / controller.coef, 100)  # a policy whose KL is 1 / coef
    assert controller.coef == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_adaptive_refuses_a_kl_that_is_not_finite(kl: float):
    controller = AdaptiveKL(coef=0.1, target=6.0, horizon=1000)
    with pytest.raises(ValueError, match="kl_per_sequence"):
        controller.update(kl, 100)
    assert controller.coef == 0.1


def test_state_survives_a_restart():
    controller = AdaptiveKL(coef=0.1, target=6.0, horizon=1000)
    controller.update(9.0, 300)
    resumed = AdaptiveKL(coef=0.1, target=6.0, horizon=1000)
    resumed.restore(controller.state())
    assert resumed == controller
    assert resumed.coef != 0.1

    fixed = FixedKL(0.05)
    fixed.update(9.0, 300)
    assert fixed.state() == {"coef": 0.05}
    other = FixedKL(1.0)
    other.restore(fixed.state())
    assert other == fixed
