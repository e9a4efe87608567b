"""Every loss: worked numbers, gradients, and sums that do not care how the batch is split."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from raylign.algorithms import (
    LossSum,
    bradley_terry_loss,
    cross_entropy_loss,
    dpo_loss,
    ppo_policy_loss,
    ppo_value_loss,
)


def numbers(loss: LossSum) -> dict[str, float]:
    assert not any(metric.requires_grad for metric in loss.metrics.values())
    return {name: metric.item() for name, metric in loss.metrics.items()}


def tensor(*values: float, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


# --- PPO policy: ratio and advantage of both signs, clip 0.2


def test_worked_policy_loss():
    ratio, advantages = tensor(1.5, 1.5, 0.5, 0.5), tensor(1, -1, 2, -2)
    old_logprobs = tensor(-1, -2, -3, -4)
    logprobs = (old_logprobs + ratio.log()).requires_grad_()
    loss = ppo_policy_loss(
        logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, clip_range=0.2, entropy=tensor(1, 2, 3, 4)
    )
    # gain 1.5, -1.5, 1, -1; clipped 1.2, -1.2, 1.6, -1.6; smaller 1.2*, -1.5, 1, -1.6*; sum -0.9
    assert loss.total.item() == pytest.approx(0.9)
    assert numbers(loss) == pytest.approx(
        {
            "policy/clip_fraction": 2.0,  # the two starred ones, though all four ratios are outside [0.8, 1.2]
            "policy/approx_kl": 0.575364,  # 2 (0.5 - ln 1.5) + 2 (-0.5 - ln 0.5)
            "policy/ratio": 4.0,
            "policy/entropy": 10.0,
        },
        abs=1e-6,
    )
    # -ratio * A where not clipped
    loss.total.backward()
    torch.testing.assert_close(logprobs.grad, tensor(0, 1.5, -1, 0))

    swapped = ppo_policy_loss(logprobs=old_logprobs, old_logprobs=logprobs, advantages=advantages, clip_range=0.2)
    assert swapped.total.item() != pytest.approx(0.9)
    assert "policy/entropy" not in swapped.metrics


def test_policy_gradient_at_the_old_policy_is_the_plain_one():
    logprobs, advantages = tensor(-1, -2, -3, grad=True), tensor(0.5, -1, 2)
    ppo_policy_loss(
        logprobs=logprobs, old_logprobs=logprobs.detach(), advantages=advantages, clip_range=0.2
    ).total.backward()
    torch.testing.assert_close(logprobs.grad, -advantages)  # ratio 1 ties both branches of the min: no half gradient


def test_absurd_log_ratio_stays_finite():
    logprobs = torch.tensor([0.0], requires_grad=True)
    loss = ppo_policy_loss(
        logprobs=logprobs, old_logprobs=torch.tensor([-500.0]), advantages=torch.tensor([-1.0]), clip_range=0.2
    )
    loss.total.backward()
    assert loss.total.isfinite()
    assert logprobs.grad == 0
    assert all(metric.isfinite() for metric in loss.metrics.values())
    assert torch.tensor(500.0).exp().isinf()  # what the cut prevents


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


# --- DPO


def test_worked_dpo_loss():
    chosen, rejected = tensor(-10, -8, grad=True), tensor(-12, -5, grad=True)
    ref_chosen, ref_rejected = tensor(-11, -7), tensor(-10, -6)
    # beta 0.5: rewards of chosen 0.5, -0.5; of rejected -1, 0.5; margins 1.5, -1
    # ln(1 + e^-1.5) + ln(1 + e^1) = 0.201413 + 1.313262
    loss = dpo_loss(
        chosen_logprobs=chosen,
        rejected_logprobs=rejected,
        ref_chosen_logprobs=ref_chosen,
        ref_rejected_logprobs=ref_rejected,
        beta=0.5,
    )
    assert loss.total.item() == pytest.approx(1.514675, abs=1e-6)
    assert numbers(loss) == pytest.approx(
        {
            "dpo/accuracy": 1.0,
            "dpo/margin": 0.5,
            "dpo/chosen_reward": 0.0,
            "dpo/rejected_reward": -0.5,
            "logprobs/chosen": -18.0,
            "logprobs/rejected": -17.0,
        }
    )
    # -beta sigmoid(-margin): 0.5 * 0.182426, 0.5 * 0.731059
    loss.total.backward()
    torch.testing.assert_close(chosen.grad, tensor(-0.091213, -0.365529), atol=1e-6, rtol=0)
    assert chosen.grad is not None
    torch.testing.assert_close(rejected.grad, -chosen.grad)

    swapped = dpo_loss(
        chosen_logprobs=rejected,
        rejected_logprobs=chosen,
        ref_chosen_logprobs=ref_rejected,
        ref_rejected_logprobs=ref_chosen,
        beta=0.5,
    )
    assert swapped.total.item() == pytest.approx(2.014675, abs=1e-6)  # 1.701413 + 0.313262


def test_dpo_at_the_reference_is_chance():
    same = tensor(-3, -4)
    loss = dpo_loss(
        chosen_logprobs=same,
        rejected_logprobs=same * 2,
        ref_chosen_logprobs=same,
        ref_rejected_logprobs=same * 2,
        beta=0.1,
    )
    assert loss.total.item() == pytest.approx(2 * 0.693147, abs=1e-6)
    assert numbers(loss)["dpo/accuracy"] == 1.0  # two ties, half each


# --- reward model


def test_worked_bradley_terry_loss():
    chosen, rejected = tensor(2, 0, 1), tensor(1, 1, 1)
    # margins 1, -1, 0: 0.313262 + 1.313262 + 0.693147
    loss = bradley_terry_loss(chosen_scores=chosen, rejected_scores=rejected)
    assert loss.total.item() == pytest.approx(2.319671, abs=1e-6)
    assert numbers(loss) == pytest.approx(
        {"reward_model/accuracy": 1.5, "reward_model/margin": 0.0, "reward_model/chosen_score": 3.0}
    )
    one_sided = bradley_terry_loss(chosen_scores=tensor(2), rejected_scores=tensor(1))
    swapped = bradley_terry_loss(chosen_scores=tensor(1), rejected_scores=tensor(2))
    assert (swapped.total - one_sided.total).item() == pytest.approx(1.0, abs=1e-6)  # softplus(1) - softplus(-1)


def test_preference_losses_do_not_overflow():
    scores = torch.tensor([-1e4], requires_grad=True)
    loss = bradley_terry_loss(chosen_scores=scores, rejected_scores=torch.tensor([0.0]))
    loss.total.backward()
    assert loss.total.item() == pytest.approx(1e4)
    assert scores.grad == -1


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
    "policy": (ppo_policy_loss, ["logprobs", "old_logprobs", "advantages", "entropy"], 1, {"clip_range": 0.2}),
    "value": (ppo_value_loss, ["values", "old_values", "returns"], 1, {"clip_range": 0.2}),
    "dpo": (
        dpo_loss,
        ["chosen_logprobs", "rejected_logprobs", "ref_chosen_logprobs", "ref_rejected_logprobs"],
        2,
        {"beta": 0.1},
    ),
    "bradley_terry": (bradley_terry_loss, ["chosen_scores", "rejected_scores"], 2, {}),
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
