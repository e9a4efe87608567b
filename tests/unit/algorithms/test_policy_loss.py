"""The clipped policy loss: worked numbers, its gradient against the equation written out, and exact expectations."""

from typing import Any

import pytest
import torch
from torch import Tensor

from raylign.algorithms.advantages import shape_rewards
from raylign.algorithms.baselines import returns_to_go
from raylign.algorithms.kl import KLEstimator
from raylign.algorithms.logprobs import token_logprobs
from raylign.algorithms.loss import LossSum
from raylign.algorithms.policy_loss import clipped_policy_loss


def numbers(loss: LossSum) -> dict[str, float]:
    assert not any(metric.requires_grad for metric in loss.metrics.values())
    return {name: metric.item() for name, metric in loss.metrics.items()}


def tensor(*values: float, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def loss_of_ratios(ratio: Tensor, advantages: Tensor, **settings: Any) -> tuple[LossSum, Tensor]:
    """The loss, and its gradient in the logprobs."""
    old_logprobs = -torch.arange(1.0, len(ratio) + 1, dtype=torch.float64)
    logprobs = (old_logprobs + ratio.log()).requires_grad_()
    loss = clipped_policy_loss(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, **settings)
    (grad,) = torch.autograd.grad(loss.total, logprobs)
    return loss, grad


# --- worked numbers

RATIO, ADVANTAGES = tensor(1.5, 1.5, 0.5, 0.5), tensor(1, -1, 2, -2)  # both sides of the range, both signs


def test_worked_clip():
    loss, grad = loss_of_ratios(RATIO, ADVANTAGES, clip_range=0.2, entropy=tensor(1, 2, 3, 4))
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
    torch.testing.assert_close(grad, tensor(0, 1.5, -1, 0))  # -ratio * A where not clipped

    swapped, _ = loss_of_ratios(1 / RATIO, ADVANTAGES, clip_range=0.2)
    assert swapped.total.item() != pytest.approx(0.9)
    assert "policy/entropy" not in swapped.metrics


def test_worked_asymmetric_clip():
    # the range is [0.8, 1.6]: 1.5 is inside now; gain 1.5, -1.5, 1, -1.6*; sum -0.6
    loss, grad = loss_of_ratios(RATIO, ADVANTAGES, clip_range=0.2, clip_range_high=0.6)
    assert loss.total.item() == pytest.approx(0.6)
    assert numbers(loss)["policy/clip_fraction"] == 1.0
    torch.testing.assert_close(grad, tensor(-1.5, 1.5, -1, 0))
    # the other end: [0.4, 1.2] holds the 0.5
    loss, grad = loss_of_ratios(RATIO, ADVANTAGES, clip_range=0.6, clip_range_high=0.2)
    torch.testing.assert_close(grad, tensor(0, 1.5, -1, 1))


def test_worked_dual_clip():
    # ratios 4, 2, 4, 0.5 with A -1, -1, +1, -2; without it gain -4, -2, 1.2*, -1.6*
    ratio, advantages = tensor(4, 2, 4, 0.5), tensor(-1, -1, 1, -2)
    loss, grad = loss_of_ratios(ratio, advantages, clip_range=0.2, dual_clip=3.0)
    assert loss.total.item() == pytest.approx(3 + 2 - 1.2 + 1.6)  # the first is held at 3 |A|
    assert numbers(loss)["policy/dual_clip_fraction"] == 1.0
    assert numbers(loss)["policy/clip_fraction"] == 2.0
    torch.testing.assert_close(grad, tensor(0, 2, 0, 0))
    without, grad = loss_of_ratios(ratio, advantages, clip_range=0.2)
    assert without.total.item() == pytest.approx(4 + 2 - 1.2 + 1.6)
    torch.testing.assert_close(grad, tensor(4, 2, 0, 0))
    assert "policy/dual_clip_fraction" not in without.metrics


def test_worked_sum_of_all_terms():
    # one token a term: ratio 1, so the policy term is -A = -2 and -3; ref_logprobs make d = ln 2 and 0
    logprobs = tensor(-1, -2, grad=True)
    entropy = tensor(0.5, 0.25, grad=True)
    loss = clipped_policy_loss(
        logprobs=logprobs,
        old_logprobs=logprobs.detach(),
        advantages=tensor(2, 3),
        weights=tensor(0.5, 2),
        importance=tensor(3, 0),
        clip_range=0.2,
        entropy=entropy,
        entropy_coef=0.1,
        ref_logprobs=tensor(-1 - 0.693147, -2),
        kl_coef=10.0,
        kl_estimator="k3",
    )
    # k3 of ln 2 is 1/2 - 1 + 0.693147 = 0.193147
    # 0.5 (3 * -2 + 10 * 0.193147 - 0.1 * 0.5) + 2 (0 * -3 + 0 - 0.1 * 0.25) = 0.5 * -4.118530 - 0.05
    assert loss.total.item() == pytest.approx(-2.109265, abs=1e-5)
    assert numbers(loss) == pytest.approx(
        {
            "policy/clip_fraction": 0.0,
            "policy/approx_kl": 0.0,
            "policy/ratio": 2.0,
            "policy/importance": 3.0,
            "policy/kl_loss": 0.193147,
            "policy/entropy": 0.75,
        },
        abs=1e-6,
    )
    loss.total.backward()
    # 0.5 (3 * -2 + 10 (1 - 1/2)) and 2 (0 + 0); of the entropy -weight * coef
    torch.testing.assert_close(logprobs.grad, tensor(-0.5, 0), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy.grad, tensor(-0.05, -0.2))


def test_gradient_at_the_old_policy_is_the_plain_one():
    advantages = tensor(0.5, -1, 2)
    _, grad = loss_of_ratios(tensor(1, 1, 1), advantages, clip_range=0.2, dual_clip=3.0)
    torch.testing.assert_close(grad, -advantages)  # ratio 1 ties both branches of the min: no half gradient


def test_absurd_log_ratio_stays_finite():
    logprobs = torch.tensor([0.0, -500.0], requires_grad=True)
    loss = clipped_policy_loss(
        logprobs=logprobs,
        old_logprobs=torch.tensor([-500.0, 0.0]),
        advantages=torch.tensor([-1.0, 1.0]),
        clip_range=0.2,
        ref_logprobs=torch.tensor([-500.0, 0.0]),
        kl_coef=0.1,
    )
    loss.total.backward()
    assert loss.total.isfinite()
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.1, 0.0]))  # the d of k3 alone
    assert all(metric.isfinite() for metric in loss.metrics.values())
    assert torch.tensor(500.0).exp().isinf()  # what the cut prevents


# --- the equation, token by token, as its papers write it


def written(inputs: dict[str, Tensor], settings: dict[str, Any]) -> Tensor:
    low, high = 1 - settings["clip_range"], 1 + settings.get("clip_range_high", settings["clip_range"])
    total = torch.zeros((), dtype=torch.float64)
    for t in range(len(inputs["logprobs"])):
        x = {name: value[t] for name, value in inputs.items()}
        ratio, a = torch.exp(x["logprobs"]) / torch.exp(x["old_logprobs"]), x["advantages"]
        clipped = low if ratio < low else high if ratio > high else ratio
        gain = min(ratio * a, clipped * a)
        if "dual_clip" in settings and a < 0:
            gain = max(gain, settings["dual_clip"] * a)
        loss = -gain * x.get("importance", 1.0)
        if "kl_coef" in settings:
            r = torch.exp(x["ref_logprobs"]) / torch.exp(x["logprobs"])
            kl = {"k1": -torch.log(r), "k2": torch.log(r) ** 2 / 2, "k3": r - torch.log(r) - 1}
            loss = loss + settings["kl_coef"] * kl[settings["kl_estimator"]]
        if "entropy_coef" in settings:
            loss = loss - settings["entropy_coef"] * x["entropy"]
        total = total + x.get("weights", 1.0) * loss
    return total


OPTIONS: dict[str, tuple[list[str], dict[str, Any]]] = {
    # name: (optional tensors, settings)
    "plain": ([], {}),
    "clip_range_high": ([], {"clip_range_high": 0.5}),
    "dual_clip": ([], {"dual_clip": 1.5}),
    "weights": (["weights"], {}),
    "importance": (["importance"], {}),
    "entropy": (["entropy"], {"entropy_coef": 0.3}),
    "kl k1": (["ref_logprobs"], {"kl_coef": 0.2, "kl_estimator": "k1"}),
    "kl k2": (["ref_logprobs"], {"kl_coef": 0.2, "kl_estimator": "k2"}),
    "kl k3": (["ref_logprobs"], {"kl_coef": 0.2, "kl_estimator": "k3"}),
    "all": (
        ["weights", "importance", "entropy", "ref_logprobs"],
        {"clip_range_high": 0.5, "dual_clip": 1.5, "entropy_coef": 0.3, "kl_coef": 0.2, "kl_estimator": "k2"},
    ),
}


def draw(optional: list[str], size: int = 64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    names = ["logprobs", "old_logprobs", "advantages", "ref_logprobs", "weights", "importance", "entropy"]
    inputs = {name: 0.7 * torch.randn(size, generator=generator, dtype=torch.float64) for name in names}
    inputs |= {name: inputs[name].abs() for name in ("weights", "importance", "entropy")}
    return {name: value for name, value in inputs.items() if name in names[:3] or name in optional}


@pytest.mark.parametrize("option", OPTIONS)
def test_loss_and_gradient_are_those_of_the_written_equation(option: str):
    optional, settings = OPTIONS[option]
    settings = {"clip_range": 0.2, **settings}

    def run(function: Any) -> tuple[Tensor, ...]:
        inputs = draw(optional)
        learned = [inputs[n].requires_grad_() for n in ("logprobs", "entropy") if n in inputs]
        total = function(inputs)
        return total.detach(), *torch.autograd.grad(total, learned)

    found = run(lambda inputs: clipped_policy_loss(**inputs, **settings).total)
    expected = run(lambda inputs: written(inputs, settings))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    if option != "plain":  # the control: the option does something
        inputs: dict[str, Any] = {**draw([])}
        plain = clipped_policy_loss(**inputs, clip_range=0.2).total
        assert abs(plain - found[0]) > 0.1


# --- expectations over every token of a small distribution, which is what infinitely many samples give

LOGITS = tensor(0.3, -1.2, 0.8, 0.0, -0.4)
REF_LOGPROBS = tensor(-0.5, 0.9, 0.1, 1.3, -2.0).log_softmax(0)
SCORES = tensor(1.0, -2.0, 0.5, 3.0, 0.0)


def exact_gradient(objective: Any) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    (grad,) = torch.autograd.grad(objective(logits.log_softmax(0)), logits)
    return grad


def expected_gradient(sampled_from: Tensor | None = None, **settings: Any) -> Tensor:
    def objective(logprobs: Tensor) -> Tensor:
        probabilities = logprobs.detach().exp() if sampled_from is None else sampled_from
        inputs: dict[str, Any] = {"old_logprobs": logprobs.detach(), "weights": probabilities}
        inputs |= {"advantages": torch.zeros_like(logprobs)} | settings
        return clipped_policy_loss(logprobs=logprobs, clip_range=0.2, **inputs).total

    return exact_gradient(objective)


@pytest.mark.parametrize("baseline", [0.0, 5.0])
def test_policy_gradient_is_that_of_the_expected_score(baseline: float):
    exact = exact_gradient(lambda logprobs: -(logprobs.exp() * SCORES).sum())
    torch.testing.assert_close(expected_gradient(advantages=SCORES - baseline), exact, atol=1e-12, rtol=0)


def test_importance_corrects_samples_of_another_distribution():
    exact = exact_gradient(lambda logprobs: -(logprobs.exp() * SCORES).sum())
    engine = REF_LOGPROBS.exp()
    corrected = expected_gradient(engine, advantages=SCORES, importance=LOGITS.softmax(0) / engine)
    torch.testing.assert_close(corrected, exact, atol=1e-12, rtol=0)
    assert not torch.allclose(expected_gradient(engine, advantages=SCORES), exact)


def test_gradient_of_kl_in_the_loss():
    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum()

    def found(estimator: KLEstimator) -> Tensor:
        return expected_gradient(ref_logprobs=REF_LOGPROBS, kl_coef=0.5, kl_estimator=estimator)

    policy_reference = 0.5 * exact_gradient(lambda logprobs: kl(logprobs, REF_LOGPROBS))
    reference_policy = 0.5 * exact_gradient(lambda logprobs: kl(REF_LOGPROBS, logprobs))
    torch.testing.assert_close(found("k2"), policy_reference, atol=1e-12, rtol=0)
    torch.testing.assert_close(found("k3"), reference_policy, atol=1e-12, rtol=0)
    torch.testing.assert_close(found("k1"), torch.zeros_like(LOGITS), atol=1e-12, rtol=0)
    assert not torch.allclose(policy_reference, reference_policy)


def test_one_token_with_k2_in_the_loss_rests_at_the_optimum():
    # J = E[score] - coef KL is stationary at pi* = ref exp(score / coef) / Z; k3 has its zero elsewhere
    optimum = (REF_LOGPROBS + SCORES / 2.0).log_softmax(0)

    def at_optimum(estimator: KLEstimator) -> Tensor:
        logits = optimum.clone().requires_grad_()
        logprobs = logits.log_softmax(0)
        loss = clipped_policy_loss(
            logprobs=logprobs,
            old_logprobs=logprobs.detach(),
            advantages=SCORES,
            weights=optimum.exp(),
            clip_range=0.2,
            ref_logprobs=REF_LOGPROBS,
            kl_coef=2.0,
            kl_estimator=estimator,
        )
        (grad,) = torch.autograd.grad(loss.total, logits)
        return grad

    torch.testing.assert_close(at_optimum("k2"), torch.zeros_like(LOGITS), atol=1e-12, rtol=0)
    assert at_optimum("k3").abs().max() > 0.01
    assert at_optimum("k1").abs().max() > 0.01


# Two tokens of three: all 9 completions, each weighted by its probability under the policy.
COMPLETIONS = torch.cartesian_prod(torch.arange(3), torch.arange(3))
BOTH = torch.ones(9, 2, dtype=torch.bool)
COEF = 0.7


def two_tokens(where: str, advantages_of: Any) -> Tensor:
    """Expected gradient at pi* = ref exp(score / coef) / Z, in the logits of the first and of the second token."""
    # after token 0 the second token matters, so its KL is large there; after 1 and 2 it is 0
    scores = tensor(3, 0, 0, 0, 0, 0, 1, 1, 1)
    ref = tensor(0.2, 0.1, 0.1, 0.05, 0.2, 0.1, 0.1, 0.1, 0.05)
    joint = (ref.log() + scores / COEF).softmax(0).reshape(3, 3)

    def token_logprobs_of(first: Tensor, second: Tensor) -> Tensor:
        x, y = COMPLETIONS.T
        return torch.stack([first.log_softmax(0)[x], second.log_softmax(1)[x, y]], 1)

    ref_joint = ref.reshape(3, 3)
    ref_logprobs = token_logprobs_of(ref_joint.sum(1).log(), ref_joint.log())
    learned = [joint.sum(1).log().requires_grad_(), joint.log().requires_grad_()]
    logprobs = token_logprobs_of(*learned)
    old = logprobs.detach()
    rewards = shape_rewards(scores, old, ref_logprobs, BOTH, COEF if where == "reward" else 0.0, "k1")
    loss = clipped_policy_loss(
        logprobs=logprobs.flatten(),
        old_logprobs=old.flatten(),
        advantages=advantages_of(rewards).flatten(),
        weights=joint.flatten().repeat_interleave(2),
        clip_range=0.2,
        ref_logprobs=ref_logprobs.flatten(),
        kl_coef=COEF if where == "loss" else 0.0,
        kl_estimator="k2",
    )
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss.total, learned)])


CREDIT = {
    "whole completion": lambda rewards: rewards.sum(1, keepdim=True).expand(9, 2),
    "to go": lambda rewards: returns_to_go(rewards, BOTH, 1.0),
}


@pytest.mark.parametrize("kind", CREDIT)
def test_kl_in_the_reward_rests_at_the_optimum_of_whole_completions(kind: str):
    found = two_tokens("reward", CREDIT[kind])
    torch.testing.assert_close(found, torch.zeros(12, dtype=torch.float64), atol=1e-12, rtol=0)


def test_kl_in_the_loss_does_not_see_the_tokens_that_follow():
    found = two_tokens("loss", CREDIT["whole completion"])
    assert found[:3].abs().max() > 0.01  # the first token ignores what it does to the KL of the second
    torch.testing.assert_close(found[3:], torch.zeros(9, dtype=torch.float64), atol=1e-12, rtol=0)  # nothing follows it


def test_entropy_bonus_reaches_the_logits():
    logits = LOGITS.float().expand(3, 5).clone().requires_grad_()
    scored = token_logprobs(logits, torch.tensor([0, 1, 2]), with_entropy=True, entropy_gradient=True)
    loss = clipped_policy_loss(
        logprobs=scored.logprobs,
        old_logprobs=scored.logprobs.detach(),
        advantages=torch.zeros(3),
        clip_range=0.2,
        entropy=scored.entropy,
        entropy_coef=0.5,
    )
    loss.total.backward()
    exact = exact_gradient(lambda logprobs: 0.5 * (logprobs.exp() * logprobs).sum())
    torch.testing.assert_close(logits.grad, exact.float().expand(3, 5), atol=1e-6, rtol=0)


# --- refusals


def test_a_coefficient_without_its_term_is_refused():
    x: dict[str, Any] = {
        "logprobs": tensor(-1, grad=True),
        "old_logprobs": tensor(-1),
        "advantages": tensor(1),
        "clip_range": 0.2,
    }
    with pytest.raises(ValueError, match="ref_logprobs are missing"):
        clipped_policy_loss(**x, kl_coef=0.1)
    with pytest.raises(ValueError, match="the entropy is missing"):
        clipped_policy_loss(**x, entropy_coef=0.1)
    with pytest.raises(ValueError, match="the entropy has no gradient"):
        clipped_policy_loss(**x, entropy_coef=0.1, entropy=tensor(1))
    clipped_policy_loss(**x, entropy=tensor(1))  # as a metric it needs none
    x["logprobs"] = tensor(-1)
    clipped_policy_loss(**x, entropy_coef=0.1, entropy=tensor(1))  # nor where nothing is learned
