"""Losses over pairs, by hand: worked numbers, their gradients and metrics, and what is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from raylign.algorithms.loss import LossSum
from raylign.algorithms.preference_loss import bradley_terry_loss, cpo_loss, dpo_loss, orpo_loss, simpo_loss
from raylign.algorithms.supervised_loss import cross_entropy_loss


def numbers(loss: LossSum) -> dict[str, float]:
    assert not any(metric.requires_grad for metric in loss.metrics.values())
    return {name: metric.item() for name, metric in loss.metrics.items()}


def tensor(*values: float, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def near(*values: float) -> Any:
    return pytest.approx(values, abs=1e-6)


# --- DPO and its variants, all on two pairs. beta 0.5, log ratios of chosen 1, -1 and of rejected -2, 1:
#     rewards 0.5, -0.5 and -1, 0.5; margins 1.5, -1.
#     -log sigmoid: of 1.5 0.201413, of -1.5 1.701413; of -1 1.313262, of 1 0.313262
#     sigmoid(1.5) = 0.817574, sigmoid(-1) = 0.268941


def two_pairs(**settings: Any) -> tuple[LossSum, list[float]]:
    """The loss, and its gradient by the logprobs of chosen; that of rejected must be the opposite."""
    chosen, rejected = tensor(-10, -8, grad=True), tensor(-12, -5, grad=True)
    loss = dpo_loss(
        chosen_logprobs=chosen,
        rejected_logprobs=rejected,
        ref_chosen_logprobs=tensor(-11, -7),
        ref_rejected_logprobs=tensor(-10, -6),
        beta=0.5,
        **settings,
    )
    loss.total.backward()
    assert chosen.grad is not None
    torch.testing.assert_close(rejected.grad, -chosen.grad)
    return loss, chosen.grad.tolist()


HARD_METRICS = {
    "dpo/accuracy": 1.0,
    "dpo/margin": 0.5,
    "dpo/chosen_reward": 0.0,
    "dpo/rejected_reward": -0.5,
    "logprobs/chosen": -18.0,
    "logprobs/rejected": -17.0,
}


def test_worked_dpo_loss():
    loss, gradient = two_pairs()
    assert loss.total.item() == pytest.approx(1.514675, abs=1e-6)  # 0.201413 + 1.313262
    assert gradient == near(-0.091213, -0.365529)  # -0.5 sigmoid(-margin)
    assert numbers(loss) == pytest.approx(HARD_METRICS)

    swapped = dpo_loss(
        chosen_logprobs=tensor(-12, -5),
        rejected_logprobs=tensor(-10, -8),
        ref_chosen_logprobs=tensor(-10, -6),
        ref_rejected_logprobs=tensor(-11, -7),
        beta=0.5,
    )
    assert swapped.total.item() == pytest.approx(2.014675, abs=1e-6)  # 1.701413 + 0.313262


def test_worked_cdpo_loss():
    loss, gradient = two_pairs(label_smoothing=0.1)
    # 0.9 * 0.201413 + 0.1 * 1.701413 = 0.351413; 0.9 * 1.313262 + 0.1 * 0.313262 = 1.213262
    assert loss.total.item() == pytest.approx(1.564675, abs=1e-6)
    assert gradient == near(-0.041213, -0.315529)  # 0.5 (sigmoid(margin) - 0.9)
    assert numbers(loss) == pytest.approx(HARD_METRICS)  # the labels are counted as they were given


def test_worked_robust_loss():
    loss, gradient = two_pairs(loss="robust", label_smoothing=0.1)
    # (0.9 * 0.201413 - 0.1 * 1.701413) / 0.8 = 0.013913; (0.9 * 1.313262 - 0.1 * 0.313262) / 0.8 = 1.438262
    assert loss.total.item() == pytest.approx(1.452175, abs=1e-6)
    # -0.5 (0.9 sigmoid(-margin) + 0.1 sigmoid(margin)) / 0.8
    assert gradient == near(-0.153713, -0.428029)
    assert numbers(loss) == pytest.approx(HARD_METRICS)


def test_robust_loss_is_unbiased_under_flipped_labels():
    sides = (tensor(-10, -8), tensor(-11, -7)), (tensor(-12, -5), tensor(-10, -6))

    def run(chosen: tuple[Tensor, Tensor], rejected: tuple[Tensor, Tensor], **settings: Any) -> float:
        (a, ref_a), (b, ref_b) = chosen, rejected
        return dpo_loss(
            chosen_logprobs=a,
            rejected_logprobs=b,
            ref_chosen_logprobs=ref_a,
            ref_rejected_logprobs=ref_b,
            beta=0.5,
            **settings,
        ).total.item()

    robust = {"loss": "robust", "label_smoothing": 0.2}
    right, flipped = run(*sides, **robust), run(*reversed(sides), **robust)
    assert 0.8 * right + 0.2 * flipped == pytest.approx(run(*sides))
    assert right != pytest.approx(run(*sides))


def test_worked_ipo_loss():
    loss, gradient = two_pairs(loss="ipo")
    assert loss.total.item() == pytest.approx(13.0)  # log ratio differences 3, -2; target 1: 2^2 + 3^2
    assert gradient == near(4.0, -6.0)
    assert numbers(loss) == pytest.approx(HARD_METRICS)


def test_worked_hinge_loss():
    loss, gradient = two_pairs(loss="hinge")
    assert loss.total.item() == pytest.approx(2.0)  # max(0, 1 - 1.5) + max(0, 1 + 1)
    assert gradient == near(0.0, -0.5)
    assert numbers(loss) == pytest.approx(HARD_METRICS)


def test_worked_soft_labels():
    loss, gradient = two_pairs(chosen_probability=tensor(0.8, 0.25))
    # 0.8 * 0.201413 + 0.2 * 1.701413 = 0.501413; 0.25 * 1.313262 + 0.75 * 0.313262 = 0.563262
    assert loss.total.item() == pytest.approx(1.064675, abs=1e-6)
    assert gradient == near(0.008787, 0.009471)  # 0.5 (sigmoid(margin) - p)
    assert numbers(loss) == pytest.approx(
        {
            "dpo/accuracy": 1.55,  # 0.8, and of the second pair, on the wrong side, 1 - 0.25
            "dpo/margin": 1.4,  # 0.6 * 1.5 - 0.5 * -1
            "dpo/chosen_reward": 0.45,  # 0.8 * 0.5 - 0.2 * 1; -0.25 * 0.5 + 0.75 * 0.5
            "dpo/rejected_reward": -0.95,
            "logprobs/chosen": -16.15,  # -0.8 * 10 - 0.2 * 12; -0.25 * 8 - 0.75 * 5
            "logprobs/rejected": -18.85,
        }
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_soft_labels_are_the_expectation_of_hard_ones(label_smoothing: float):
    p = 0.7
    x = {"chosen": -3.0, "rejected": -4.5, "ref_chosen": -3.5, "ref_rejected": -4.0}

    def run(first: str, second: str, **settings: Any) -> dict[str, float]:
        loss = dpo_loss(
            chosen_logprobs=tensor(x[first]),
            rejected_logprobs=tensor(x[second]),
            ref_chosen_logprobs=tensor(x[f"ref_{first}"]),
            ref_rejected_logprobs=tensor(x[f"ref_{second}"]),
            beta=0.5,
            label_smoothing=label_smoothing,
            **settings,
        )
        return {"loss": loss.total.item(), **numbers(loss)}

    one, other = run("chosen", "rejected"), run("rejected", "chosen")
    soft = run("chosen", "rejected", chosen_probability=tensor(p))
    assert soft == pytest.approx({name: p * one[name] + (1 - p) * other[name] for name in one})
    assert soft["loss"] != pytest.approx(one["loss"])


def test_dpo_at_the_reference_is_chance():
    same = tensor(-3, -4)
    loss = dpo_loss(
        chosen_logprobs=same,
        rejected_logprobs=same * 2,
        ref_chosen_logprobs=same,
        ref_rejected_logprobs=same * 2,
        beta=0.1,
    )
    assert loss.total.item() == pytest.approx(2 * math.log(2))
    assert numbers(loss)["dpo/accuracy"] == 1.0  # two ties, half each


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"label_smoothing": 0.5}, r"label_smoothing is 0.5; it must be in \[0, 0.5\)"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "loss ipo does not use it"),
        ({"label_smoothing": 0.1, "loss": "hinge"}, "loss hinge does not use it"),
        ({"chosen_probability": tensor(0.5, 0.5), "loss": "robust"}, "loss robust does not use it"),
        ({"chosen_probability": tensor(0.5, -0.5)}, r"values outside \[0, 1\]"),
        ({"chosen_probability": tensor(0.5, 1.5)}, r"values outside \[0, 1\]"),
        ({"chosen_probability": tensor(0.5, math.nan)}, r"values outside \[0, 1\]"),
        ({"chosen_probability": tensor(0.5)}, r"chosen_probability has shape \[1\], but chosen_logprobs has \[2\]"),
    ],
)
def test_options_that_would_not_be_read_are_refused(settings: dict[str, Any], problem: str):
    with pytest.raises(ValueError, match=problem):
        two_pairs(**settings)


# --- without a reference


# --- CPO, beta 0.5: logprobs of chosen -10, -8 and of rejected -12, -5; margins 1, -1.5 (numbers above).
@pytest.mark.parametrize(("label_smoothing", "total"), [(0.0, 0.313262 + 1.701413), (0.1, 0.413262 + 1.551413)])
def test_worked_cpo_loss(label_smoothing, total):
    chosen, rejected = tensor(-10, -8, grad=True), tensor(-12, -5, grad=True)
    loss = cpo_loss(chosen_logprobs=chosen, rejected_logprobs=rejected, beta=0.5, label_smoothing=label_smoothing)
    assert loss.total.item() == pytest.approx(total, abs=1e-6)
    if label_smoothing == 0:
        loss.total.backward()
        assert chosen.grad is not None
        assert chosen.grad.tolist() == near(-0.5 * 0.268941, -0.5 * 0.817574)
        torch.testing.assert_close(rejected.grad, -chosen.grad)
    assert numbers(loss) == pytest.approx(
        {
            "cpo/accuracy": 1.0,
            "cpo/margin": -0.5,
            "cpo/chosen_reward": -9.0,
            "cpo/rejected_reward": -8.5,
            "logprobs/chosen": -18.0,
            "logprobs/rejected": -17.0,
        }
    )


@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5])
def test_cpo_refuses_a_label_smoothing_that_is_no_share_of_wrong_labels(label_smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        cpo_loss(chosen_logprobs=tensor(-1), rejected_logprobs=tensor(-2), beta=0.5, label_smoothing=label_smoothing)


def test_worked_simpo_loss():
    chosen, rejected = tensor(-1, -2, grad=True), tensor(-1.5, -1.5, grad=True)
    # beta 2: rewards -2, -4 and -3, -3; margins 1, -1; less gamma 0.5, -1.5: 0.474077 + 1.701413
    loss = simpo_loss(chosen_logprobs=chosen, rejected_logprobs=rejected, beta=2.0, gamma=0.5)
    assert loss.total.item() == pytest.approx(2.175490, abs=1e-6)
    assert numbers(loss) == pytest.approx(
        {
            "simpo/accuracy": 1.0,
            "simpo/margin": 0.0,
            "simpo/chosen_reward": -6.0,
            "simpo/rejected_reward": -6.0,
            "logprobs/chosen": -3.0,
            "logprobs/rejected": -3.0,
        }
    )
    loss.total.backward()
    assert chosen.grad is not None
    assert chosen.grad.tolist() == near(-0.755081, -1.635149)  # -2 sigmoid(-0.5), -2 sigmoid(1.5)
    torch.testing.assert_close(rejected.grad, -chosen.grad)


def test_worked_orpo_loss():
    chosen, rejected = tensor(-math.log(2), -math.log(4), grad=True), tensor(-math.log(4), -math.log(2), grad=True)
    # probabilities 1/2, 1/4 and 1/4, 1/2; odds 1, 1/3 and 1/3, 1; ratios 3, 1/3; their sigmoid(log) 3/4, 1/4
    loss = orpo_loss(chosen_logprobs=chosen, rejected_logprobs=rejected, beta=0.1)
    assert loss.total.item() == pytest.approx(0.1673976, abs=1e-7)  # 0.1 (ln 4/3 + ln 4)
    assert numbers(loss) == pytest.approx(
        {
            "orpo/accuracy": 1.0,
            "orpo/margin": 0.0,  # ln 3 - ln 3
            "logprobs/chosen": -math.log(8),
            "logprobs/rejected": -math.log(8),
        }
    )
    loss.total.backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    # -0.1 * (1 - sigmoid) / (1 - p): 0.1 * 1/4 / (1/2), 0.1 * 3/4 / (3/4); 0.1 * 1/4 / (3/4), 0.1 * 3/4 / (1/2)
    assert chosen.grad.tolist() == near(-0.05, -0.1)
    assert rejected.grad.tolist() == near(1 / 30, 0.15)


def test_sft_term_weighs_every_pair_the_same():
    sums, num_tokens = tensor(-6, -2, grad=True), tensor(3, 4)
    loss = cross_entropy_loss(logprobs=sums / num_tokens)
    assert loss.total.item() == pytest.approx(2.5)  # 6/3 + 2/4
    loss.total.backward()
    torch.testing.assert_close(sums.grad, tensor(-1 / 3, -1 / 4))


# --- reward model


def test_worked_bradley_terry_loss():
    chosen, rejected = tensor(2, 0, 1), tensor(1, 1, 1)
    # differences 1, -1, 0: 0.313262 + 1.313262 + 0.693147
    loss = bradley_terry_loss(chosen_scores=chosen, rejected_scores=rejected)
    assert loss.total.item() == pytest.approx(2.319671, abs=1e-6)
    metrics = {"reward_model/accuracy": 1.5, "reward_model/margin": 0.0, "reward_model/chosen_score": 3.0}
    assert numbers(loss) == pytest.approx(metrics)

    # less margins of 1, 0, 0.5: differences 0, -1, -0.5: 0.693147 + 1.313262 + 0.974077
    loss = bradley_terry_loss(chosen_scores=chosen, rejected_scores=rejected, margin=tensor(1, 0, 0.5))
    assert loss.total.item() == pytest.approx(2.980486, abs=1e-6)
    assert numbers(loss) == pytest.approx(metrics)  # of the scores alone

    one_sided = bradley_terry_loss(chosen_scores=tensor(2), rejected_scores=tensor(1))
    swapped = bradley_terry_loss(chosen_scores=tensor(1), rejected_scores=tensor(2))
    assert (swapped.total - one_sided.total).item() == pytest.approx(1.0)
