"""Losses of policy, critic and SFT: worked numbers, gradients, and sums that do not care how the batch is split."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from raylign.algorithms.loss import LossSum
from raylign.algorithms.policy_loss import clipped_policy_loss
from raylign.algorithms.supervised_loss import cross_entropy_loss
from raylign.algorithms.value_loss import ppo_value_loss


def numbers(loss: LossSum) -> dict[str, float]:
    assert not any(metric.requires_grad for metric in loss.metrics.values())
    return {name: metric.item() for name, metric in loss.metrics.items()}


def tensor(*values: float, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


# --- PPO value


def test_worked_value_loss():
    values = tensor(2, 1.25, 4, grad=True)
    old_values, returns = tensor(1, 1, 1), tensor(3, 3, 1.25)
    # clipped 1.5, 1.25, 1.5; errors 1, 3.0625, 7.5625; clipped errors 2.25, 3.0625, 0.0625
    loss = ppo_value_loss(values=values, old_values=old_values, returns=returns, clip_range=0.5)
    assert loss.total.item() == pytest.approx(6.4375)  # (2.25 + 3.0625 + 7.5625) / 2
    assert numbers(loss) == pytest.approx({"value/clip_fraction": 1.0, "value/error": 11.625, "value/mean": 7.25})
    loss.total.backward()
    torch.testing.assert_close(values.grad, tensor(0, -1.75, 2.75))  # V - R, 0 where clipped

    swapped = ppo_value_loss(values=old_values, old_values=values, returns=returns, clip_range=0.5)
    assert swapped.total.item() != pytest.approx(6.4375)


def test_value_loss_without_clip_is_half_the_squared_error():
    loss = ppo_value_loss(
        values=tensor(2, 1.25, 4), old_values=tensor(1, 1, 1), returns=tensor(3, 3, 1.25), clip_range=None
    )
    assert loss.total.item() == pytest.approx(5.8125)  # 11.625 / 2
    assert numbers(loss)["value/clip_fraction"] == 0.0


# --- SFT


def test_worked_cross_entropy():
    logprobs = tensor(-0.5, -1.5, -0.25, grad=True)
    loss = cross_entropy_loss(logprobs=logprobs)
    assert loss.total.item() == pytest.approx(2.25)
    assert numbers(loss) == pytest.approx({"sft/nll": 2.25})
    loss.total.backward()
    torch.testing.assert_close(logprobs.grad, tensor(-1, -1, -1))


# --- what holds for all of them

LossFunction = Callable[..., LossSum]
LOSSES: dict[str, tuple[LossFunction, list[str], int, dict[str, float]]] = {
    # name: (function, tensors, how many of them carry gradient, settings)
    "policy": (
        clipped_policy_loss,
        ["logprobs", "entropy", "old_logprobs", "advantages", "weights", "importance", "ref_logprobs"],
        2,
        {"clip_range": 0.2, "clip_range_high": 0.3, "dual_clip": 1.5, "entropy_coef": 0.1, "kl_coef": 0.2},
    ),
    "value": (ppo_value_loss, ["values", "old_values", "returns"], 1, {"clip_range": 0.2}),
    "cross_entropy": (cross_entropy_loss, ["logprobs"], 1, {}),
}


def draw(names: list[str], size: int = 23) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: 0.5 * torch.randn(size, generator=generator, dtype=torch.float64) for name in names}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_finite_differences(name: str):
    function, names, num_learned, settings = LOSSES[name]
    inputs = draw(names)
    learned = [inputs.pop(n).requires_grad_() for n in names[:num_learned]]
    assert gradcheck(lambda *x: function(**dict(zip(names, x, strict=False)), **inputs, **settings).total, learned)


@pytest.mark.parametrize("name", LOSSES)
def test_split_and_order_change_nothing(name: str):
    function, names, num_learned, settings = LOSSES[name]
    inputs = draw(names)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(6))

    def run(parts: list[Tensor]) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        learned = {n: inputs[n].clone().requires_grad_() for n in names[:num_learned]}
        losses = [function(**{n: (inputs | learned)[n][part] for n in names}, **settings) for part in parts]
        total = torch.stack([loss.total for loss in losses]).sum()
        metrics = {key: torch.stack([loss.metrics[key] for loss in losses]).sum() for key in losses[0].metrics}
        return total, metrics, list(torch.autograd.grad(total, list(learned.values())))

    whole = run([torch.arange(23)])
    split = run(list(order.split([1, 9, 0, 13])))  # an empty micro-batch is a sum of nothing
    torch.testing.assert_close(split, whole, atol=1e-10, rtol=1e-10)
    part = run([torch.arange(22)])
    assert not torch.allclose(part[0], whole[0])  # the control: every element counts


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cross_entropy"])
def test_shapes_that_would_broadcast_are_refused(name: str):
    function, names, _, settings = LOSSES[name]
    inputs = draw(names)
    inputs[names[-1]] = inputs[names[-1]].unsqueeze(1)
    with pytest.raises(ValueError, match=rf"{names[-1]} has shape \[23, 1\], but {names[0]} has \[23\]"):
        function(**inputs, **settings)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_refused(name: str):
    function, names, _, settings = LOSSES[name]
    inputs = draw(names)
    inputs[names[0]] = inputs[names[0]].bfloat16()
    with pytest.raises(ValueError, match=rf"{names[0]} is torch.bfloat16"):
        function(**inputs, **settings)
