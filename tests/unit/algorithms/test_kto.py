"""KTO: worked numbers, the paper's equation in numpy, extreme values, and sums that may be split."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raylign.algorithms.kto_loss import kto_loss, kto_reference_point
from raylign.algorithms.loss import LossSum

SETTINGS: dict[str, Any] = {"beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 3.0}
UNEVEN: dict[str, Any] = {"beta": 0.3, "desirable_weight": 1.1, "undesirable_weight": 0.7}


def tensor(*values: float, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def worked(**changes: Any) -> tuple[LossSum, Tensor]:
    logprobs = tensor(-10, -8, -6, grad=True)
    inputs = {
        "logprobs": logprobs,
        "ref_logprobs": tensor(-12, -8, -7),  # log ratios 2, 0, 1
        "desirable": torch.tensor([True, False, False]),
        "kl": torch.tensor(1.0, dtype=torch.float64),
        **SETTINGS,
    }
    return kto_loss(**(inputs | changes)), logprobs


def test_worked_kto_loss():
    loss, logprobs = worked()
    # values sigmoid(0.5), sigmoid(0.5), sigmoid(0) = 0.622459, 0.622459, 0.5
    assert loss.total.item() == pytest.approx(3.387703, abs=1e-6)  # 2 * 0.377541 + 3 * 0.377541 + 3 * 0.5
    assert not any(metric.requires_grad for metric in loss.metrics.values())
    assert {name: metric.item() for name, metric in loss.metrics.items()} == pytest.approx(
        {
            "kto/num_desirable": 1.0,
            "kto/num_undesirable": 2.0,
            "kto/desirable_reward": 1.0,
            "kto/undesirable_reward": 0.5,
            "logprobs/desirable": -10.0,
            "logprobs/undesirable": -14.0,
            "kto/accuracy": 2.5,  # the last is on the point itself
            "kto/kl": 3.0,
        }
    )
    loss.total.backward()
    assert logprobs.grad is not None
    # -+ weight * beta * value (1 - value): 2 * 0.5 * 0.235004, 3 * 0.5 * 0.235004, 3 * 0.5 * 0.25
    torch.testing.assert_close(logprobs.grad, tensor(-0.235004, 0.352506, 0.375), atol=1e-6, rtol=0)

    flipped, _ = worked(desirable=torch.tensor([False, True, True]))
    assert flipped.total.item() != pytest.approx(loss.total.item())


def test_kto_at_the_reference_is_chance():
    same = tensor(-3, -4)
    loss = kto_loss(
        logprobs=same,
        ref_logprobs=same,
        desirable=torch.tensor([True, False]),
        kl=kto_reference_point(same, same),
        beta=0.1,
        desirable_weight=1.0,
        undesirable_weight=1.0,
    )
    assert loss.total.item() == pytest.approx(1.0)  # a half each
    assert loss.metrics["kto/accuracy"].item() == 1.0


def test_reference_point_is_a_mean_that_is_never_negative():
    logprobs, ref_logprobs = tensor(-3, -5, grad=True), tensor(-4, -4.5)
    point = kto_reference_point(logprobs, ref_logprobs)
    assert point.item() == 0.25  # (1 - 0.5) / 2
    assert not point.requires_grad
    assert kto_reference_point(ref_logprobs, logprobs).item() == 0.0


# --- Ethayarajh et al. 2024, eq. 8, as it is written; `xp` is numpy (the independent implementation) or torch


def equation(xp: Any, logprobs: Any, ref_logprobs: Any, desirable: Any, kl: Any) -> Any:
    def sigmoid(x: Any) -> Any:
        return 1 / (1 + xp.exp(-x))

    r, beta, lambda_d, lambda_u = logprobs - ref_logprobs, *UNEVEN.values()
    value_d, value_u = lambda_d * sigmoid(beta * (r - kl)), lambda_u * sigmoid(beta * (kl - r))
    return xp.where(desirable, lambda_d - value_d, lambda_u - value_u)


def draw(size: int = 23, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    logprobs, ref_logprobs = (-8 * torch.rand(2, size, generator=generator, dtype=dtype)).unbind()
    desirable = torch.rand(size, generator=generator) < 0.4
    return {"logprobs": logprobs, "ref_logprobs": ref_logprobs, "desirable": desirable, "kl": logprobs.new_tensor(0.7)}


def test_float32_agrees_with_the_equation_in_numpy():
    inputs = draw(64, torch.float32)
    kl = inputs.pop("kl")
    exact = {
        name: value.double().numpy() if value.is_floating_point() else value.numpy() for name, value in inputs.items()
    }
    expected = equation(np, **exact, kl=float(kl))
    of_each_row = [
        kto_loss(**{name: value[i : i + 1] for name, value in inputs.items()}, kl=kl, **UNEVEN).total.item()
        for i in range(64)
    ]
    np.testing.assert_allclose(of_each_row, expected, atol=1e-5, rtol=1e-5)
    assert np.ptp(expected) > 0.5
    point = kto_reference_point(inputs["logprobs"], inputs["ref_logprobs"]).item()
    assert point == pytest.approx(max(0.0, np.mean(exact["logprobs"] - exact["ref_logprobs"])), abs=1e-5)


def test_gradient_is_that_of_the_equation():
    inputs = draw()
    logprobs = inputs["logprobs"].requires_grad_()
    (gradient,) = torch.autograd.grad(kto_loss(**inputs, **UNEVEN).total, logprobs)
    (expected,) = torch.autograd.grad(equation(torch, **inputs).sum(), logprobs)
    torch.testing.assert_close(gradient, expected, atol=1e-10, rtol=1e-10)
    assert (gradient[inputs["desirable"]] < 0).all()
    assert (gradient[~inputs["desirable"]] > 0).all()


def test_split_and_order_change_nothing():
    inputs = draw()
    kl = inputs.pop("kl")

    def summed(parts: list[Tensor], kl: Tensor | None) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        inputs["logprobs"].requires_grad_()
        losses = []
        for part in parts:
            x = {name: value[part] for name, value in inputs.items()}
            own = kl if kl is not None else kto_reference_point(x["logprobs"], x["ref_logprobs"])
            losses.append(kto_loss(**x, kl=own, **SETTINGS))
        total = torch.stack([loss.total for loss in losses]).sum()
        metrics = {name: torch.stack([loss.metrics[name] for loss in losses]).sum() for name in losses[0].metrics}
        return total, metrics, torch.autograd.grad(total, inputs["logprobs"])[0]

    order = torch.randperm(23, generator=torch.Generator().manual_seed(6))
    whole = summed([torch.arange(23)], kl)
    torch.testing.assert_close(summed(list(order.split([1, 9, 0, 13])), kl), whole, atol=1e-10, rtol=1e-10)
    # the controls: every row counts, and a reference point of each micro-batch would make the split matter
    assert not torch.allclose(summed([torch.arange(22)], kl)[0], whole[0])
    assert not torch.allclose(
        summed(list(order.split([10, 13])), None)[0], summed([torch.arange(23)], None)[0], rtol=1e-4
    )


@pytest.mark.parametrize("log_ratio", [1000.0, -1000.0])
def test_huge_log_ratios_stay_finite(log_ratio: float):
    logprobs = torch.full((2,), log_ratio).requires_grad_()
    loss = kto_loss(
        logprobs=logprobs,
        ref_logprobs=torch.zeros(2),
        desirable=torch.tensor([True, False]),
        kl=torch.tensor(0.0),
        **SETTINGS,
    )
    loss.total.backward()
    assert loss.total.item() == pytest.approx(3.0 if log_ratio > 0 else 2.0)  # one row lost, the other won
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()
    assert all(metric.isfinite() for metric in loss.metrics.values())


def test_small_losses_are_not_rounded_away():
    x = {"logprobs": torch.tensor([40.0]), "ref_logprobs": torch.zeros(1), "desirable": torch.tensor([True])}
    loss = kto_loss(**x, kl=torch.tensor(0.0), **SETTINGS)
    assert loss.total.item() == pytest.approx(2 * 2.0611537e-9, rel=1e-5)  # sigmoid(-20)
    assert 1 - torch.sigmoid(torch.tensor(20.0)) == 0  # what the other form would give


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ref_logprobs": torch.zeros(3, 1)}, r"ref_logprobs has shape \[3, 1\], but logprobs has \[3\]"),
        ({"ref_logprobs": torch.zeros(3).bfloat16()}, "ref_logprobs is torch.bfloat16"),
        ({"desirable": torch.ones(3)}, r"desirable is torch.float32 \[3\]; it must be torch.bool \[3\]"),
        ({"desirable": torch.ones(1, dtype=torch.bool)}, r"desirable is torch.bool \[1\]"),
        ({"kl": torch.zeros(1)}, r"kl has shape \[1\]"),
        ({"kl": torch.tensor(1.0, requires_grad=True)}, "requires_grad=True"),
    ],
)
def test_wrong_inputs_are_refused(changes: dict[str, Any], problem: str):
    with pytest.raises(ValueError, match=problem):
        worked(**changes)


def test_reference_point_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        kto_reference_point(torch.zeros(0), torch.zeros(0))
