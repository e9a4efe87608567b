"""Losses over pairs against the equations of the papers, at extreme values, and split into micro-batches."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raylign.algorithms.loss import LossSum
from raylign.algorithms.preference_loss import bradley_terry_loss, cpo_loss, dpo_loss, orpo_loss, simpo_loss

# --- the equations of the papers, as they are written there. `xp` is numpy or torch: numpy in float64 is the
#     independent implementation, torch gives the gradient of the equation.


def sigmoid(xp: Any, x: Any) -> Any:
    return 1 / (1 + xp.exp(-x))


def dpo_margin(x: dict[str, Any], beta: float) -> Any:
    return beta * (
        (x["chosen_logprobs"] - x["ref_chosen_logprobs"]) - (x["rejected_logprobs"] - x["ref_rejected_logprobs"])
    )


def sigmoid_equation(xp: Any, x: dict[str, Any], beta: float) -> Any:
    return -xp.log(sigmoid(xp, dpo_margin(x, beta)))


def cdpo_equation(xp: Any, x: dict[str, Any], beta: float, label_smoothing: float) -> Any:
    m, e = dpo_margin(x, beta), label_smoothing
    return -(1 - e) * xp.log(sigmoid(xp, m)) - e * xp.log(sigmoid(xp, -m))


def soft_equation(xp: Any, x: dict[str, Any], beta: float) -> Any:
    m, p = dpo_margin(x, beta), x["chosen_probability"]
    return -p * xp.log(sigmoid(xp, m)) - (1 - p) * xp.log(sigmoid(xp, -m))


def robust_equation(xp: Any, x: dict[str, Any], beta: float, label_smoothing: float, loss: str) -> Any:
    m, e = dpo_margin(x, beta), label_smoothing
    return ((1 - e) * -xp.log(sigmoid(xp, m)) - e * -xp.log(sigmoid(xp, -m))) / (1 - 2 * e)


def ipo_equation(xp: Any, x: dict[str, Any], beta: float, loss: str) -> Any:
    policy = xp.exp(x["chosen_logprobs"]) / xp.exp(x["rejected_logprobs"])
    reference = xp.exp(x["ref_chosen_logprobs"]) / xp.exp(x["ref_rejected_logprobs"])
    return (xp.log(policy / reference) - 1 / (2 * beta)) ** 2


def hinge_equation(xp: Any, x: dict[str, Any], beta: float, loss: str) -> Any:
    m = dpo_margin(x, beta)
    return xp.maximum(0 * m, 1 - m)


def simpo_equation(xp: Any, x: dict[str, Any], beta: float, gamma: float) -> Any:
    return -xp.log(sigmoid(xp, beta * x["chosen_logprobs"] - beta * x["rejected_logprobs"] - gamma))


def cpo_equation(xp: Any, x: dict[str, Any], beta: float, label_smoothing: float) -> Any:
    margin = beta * x["chosen_logprobs"] - beta * x["rejected_logprobs"]
    kept = (1 - label_smoothing) * xp.log(sigmoid(xp, margin))
    return -kept - label_smoothing * xp.log(sigmoid(xp, -margin))


def orpo_equation(xp: Any, x: dict[str, Any], beta: float) -> Any:
    chosen, rejected = (xp.exp(x[f"{side}_logprobs"]) for side in ("chosen", "rejected"))
    return -beta * xp.log(sigmoid(xp, xp.log((chosen / (1 - chosen)) / (rejected / (1 - rejected)))))


def bradley_terry_equation(xp: Any, x: dict[str, Any]) -> Any:
    return -xp.log(sigmoid(xp, x["chosen_scores"] - x["rejected_scores"] - x["margin"]))


@dataclass(frozen=True)
class Case:
    function: Callable[..., LossSum]
    tensors: tuple[str, ...]  # the first two carry gradient
    equation: Callable[..., Any]  # of each pair
    settings: dict[str, Any] = field(default_factory=dict)


POLICY = ("chosen_logprobs", "rejected_logprobs")
WITH_REFERENCE = (*POLICY, "ref_chosen_logprobs", "ref_rejected_logprobs")
CASES = {
    "sigmoid": Case(dpo_loss, WITH_REFERENCE, sigmoid_equation, {"beta": 0.5}),
    "cdpo": Case(dpo_loss, WITH_REFERENCE, cdpo_equation, {"beta": 0.5, "label_smoothing": 0.1}),
    "soft": Case(dpo_loss, (*WITH_REFERENCE, "chosen_probability"), soft_equation, {"beta": 0.5}),
    "robust": Case(dpo_loss, WITH_REFERENCE, robust_equation, {"beta": 0.5, "label_smoothing": 0.2, "loss": "robust"}),
    "ipo": Case(dpo_loss, WITH_REFERENCE, ipo_equation, {"beta": 0.5, "loss": "ipo"}),
    "hinge": Case(dpo_loss, WITH_REFERENCE, hinge_equation, {"beta": 0.5, "loss": "hinge"}),
    "simpo": Case(simpo_loss, POLICY, simpo_equation, {"beta": 2.0, "gamma": 0.7}),
    "cpo": Case(cpo_loss, POLICY, cpo_equation, {"beta": 0.5, "label_smoothing": 0.1}),
    "orpo": Case(orpo_loss, POLICY, orpo_equation, {"beta": 0.3}),
    "bradley_terry": Case(bradley_terry_loss, ("chosen_scores", "rejected_scores", "margin"), bradley_terry_equation),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def draw(case: Case, size: int = 23) -> dict[str, Tensor]:
    """Values in [-4, -0.05], which are logprobs and scores; their exp is a probability and a margin."""
    generator = torch.Generator().manual_seed(5)
    x = {name: -0.05 - 3.95 * torch.rand(size, generator=generator, dtype=torch.float64) for name in case.tensors}
    return {name: v.exp() if name in ("chosen_probability", "margin") else v for name, v in x.items()}


def run(case: Case, inputs: dict[str, Tensor]) -> tuple[LossSum, list[Tensor]]:
    inputs = {name: value.clone().requires_grad_(name in case.tensors[:2]) for name, value in inputs.items()}
    loss = case.function(**inputs, **case.settings)
    return loss, list(torch.autograd.grad(loss.total, [inputs[name] for name in case.tensors[:2]]))


@every_case
def test_float32_agrees_with_the_equation_in_numpy(case: Case):
    inputs = {name: value.float() for name, value in draw(case, size=64).items()}
    expected = case.equation(np, {name: value.double().numpy() for name, value in inputs.items()}, **case.settings)
    of_each_pair = [
        case.function(**{name: value[i : i + 1] for name, value in inputs.items()}, **case.settings).total.item()
        for i in range(64)
    ]
    np.testing.assert_allclose(of_each_pair, expected, atol=1e-5, rtol=1e-5)
    assert np.ptp(expected) > 0.1  # not one value over and over
    assert run(case, inputs)[0].total.item() == pytest.approx(expected.sum(), rel=1e-5)


@every_case
def test_gradient_is_that_of_the_equation(case: Case):
    inputs = draw(case)
    gradients = run(case, inputs)[1]
    learned = [inputs[name].requires_grad_() for name in case.tensors[:2]]
    expected = torch.autograd.grad(case.equation(torch, inputs, **case.settings).sum(), learned)
    torch.testing.assert_close(gradients, list(expected), atol=1e-9, rtol=1e-9)
    if case.equation is hinge_equation:
        assert 0 < int((gradients[0] == 0).sum()) < 23  # pairs on both sides of the kink


# --- what holds for all of them


@every_case
def test_split_and_order_change_nothing(case: Case):
    inputs = draw(case)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(6))

    def summed(parts: list[Tensor]) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        results = [run(case, {name: value[part] for name, value in inputs.items()}) for part in parts]
        total = torch.stack([loss.total for loss, _ in results]).sum()
        metrics = {
            name: torch.stack([loss.metrics[name] for loss, _ in results]).sum() for name in results[0][0].metrics
        }
        gradients = [torch.cat(parts_of_side) for parts_of_side in zip(*(g for _, g in results), strict=True)]
        return total, metrics, [side[torch.cat(parts).argsort()] for side in gradients]

    whole = summed([torch.arange(23)])
    split = summed(list(order.split([1, 9, 0, 13])))  # an empty micro-batch is a sum of nothing
    torch.testing.assert_close(split, whole, atol=1e-10, rtol=1e-10)
    part = summed([torch.arange(11)])
    assert not torch.allclose(part[0], whole[0], rtol=1e-3)  # the control: the pairs count


@pytest.mark.parametrize("name", [name for name in CASES if name != "orpo"])
@pytest.mark.parametrize("margin", [1000.0, -1000.0])
def test_huge_margins_stay_finite(name: str, margin: float):
    case = CASES[name]
    inputs = {tensor: torch.zeros(1) for tensor in case.tensors}
    inputs[case.tensors[0 if margin < 0 else 1]] -= 1000 / case.settings.get("beta", 1.0)
    loss, gradients = run(case, inputs)
    assert loss.total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(metric.isfinite() for metric in loss.metrics.values())
    if name == "sigmoid":
        assert loss.total.item() == pytest.approx(max(0.0, -margin))
        assert gradients[0].item() == pytest.approx(0.0 if margin > 0 else -0.5)
    if margin < 0 and name in ("sigmoid", "cdpo", "robust", "simpo", "cpo", "bradley_terry"):
        assert not case.equation(torch, inputs, **case.settings).isfinite().all()  # what the stable form prevents


NEAR_ONE = [0.0, -1e-10, -1e-7, -1e-6, -1e-3, -1.0, -1000.0]


def test_orpo_stays_finite_and_exact_where_probabilities_are_near_one():
    chosen, rejected = torch.cartesian_prod(torch.tensor(NEAR_ONE), torch.tensor(NEAR_ONE)).unbind(-1)
    inputs = {"chosen_logprobs": chosen, "rejected_logprobs": rejected}
    loss, gradients = run(CASES["orpo"], inputs)
    assert loss.total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(metric.isfinite() for metric in loss.metrics.values())
    assert not orpo_equation(torch, inputs, beta=0.1).isfinite().all()  # the control

    # odds of p = exp(-1e-6) are 1 / expm1(1e-6); float32 has nothing left of 1 - p, log1mexp has
    exact = -0.3 * math.log(1 / (1 + math.expm1(1e-6) / math.expm1(1.0)))  # chosen 1e-6, rejected 1
    pair = {"chosen_logprobs": torch.tensor([-1.0]), "rejected_logprobs": torch.tensor([-1e-6])}
    worse = -0.3 * math.log(1 / (1 + math.expm1(1.0) / math.expm1(1e-6)))
    assert run(CASES["orpo"], pair)[0].total.item() == pytest.approx(worse, rel=1e-5)
    swapped = dict(zip(pair, reversed(pair.values()), strict=True))
    assert run(CASES["orpo"], swapped)[0].total.item() == pytest.approx(exact, rel=1e-5)


@every_case
def test_shapes_that_would_broadcast_are_refused(case: Case):
    inputs = draw(case)
    inputs[case.tensors[-1]] = inputs[case.tensors[-1]].unsqueeze(1)
    with pytest.raises(ValueError, match=rf"{case.tensors[-1]} has shape \[23, 1\], but {case.tensors[0]} has \[23\]"):
        case.function(**inputs, **case.settings)


@every_case
def test_half_precision_is_refused(case: Case):
    inputs = draw(case)
    inputs[case.tensors[0]] = inputs[case.tensors[0]].bfloat16()
    with pytest.raises(ValueError, match=rf"{case.tensors[0]} is torch.bfloat16"):
        case.function(**inputs, **case.settings)
