"""KL coefficients: steps worked by hand, what they refuse, and that the driver may import them."""

import math
import subprocess
import sys

import pytest

from raylign.algorithms.kl_controller import AdaptiveKL, AnnealedKL, FixedKL


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
    fixed.restore(FixedKL(1.0).state())
    assert fixed.coef == 0.05, "a run that took over another's state keeps the coefficient of its own config"


@pytest.mark.parametrize(("module", "brought"), [("torch", False), ("dataclasses", True)])
def test_driver_imports_the_controller_without_torch(module: str, brought: bool):
    look = f"import sys, raylign.algorithms.kl_controller; print({module!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == str(brought)


def test_annealed_falls_by_one_factor_and_then_stays():
    controller = AnnealedKL(start=1.0, end=0.01, horizon=400)
    found = []
    for _ in range(6):
        found.append(controller.coef)
        controller.update(123.0, 100)
    assert found == pytest.approx([1.0, 10**-0.5, 0.1, 10**-1.5, 0.01, 0.01])
    resumed = AnnealedKL(start=1.0, end=0.01, horizon=400)
    controller = AnnealedKL(start=1.0, end=0.01, horizon=400)
    controller.update(0.0, 150)
    resumed.restore(controller.state())
    assert resumed.coef == controller.coef


def test_annealed_never_begins_below_where_it_ends():
    assert AnnealedKL(start=0.1, end=0.3, horizon=400).coef == pytest.approx(0.3)
