"""Aggregation: the three means against their definitions, and that no split of the rows changes a step."""

import pytest
import torch
from torch import Tensor

from raylign.algorithms.aggregate import Aggregate, normaliser, token_weights
from raylign.algorithms.logprobs import token_logprobs
from raylign.algorithms.policy_loss import clipped_policy_loss

T, F = True, False
AGGREGATES: list[Aggregate] = ["token_mean", "sequence_mean", "max_tokens"]

MASK = torch.tensor([[F, T, T, T, T], [F, T, F, T, F], [F, F, F, F, F]])
LOSS = torch.tensor([[9.0, 1.0, 2.0, 3.0, 4.0], [9.0, 10.0, 9.0, 20.0, 9.0], [9.0] * 5])


@pytest.mark.parametrize(
    ("aggregate", "mean"),
    [
        ("token_mean", 40 / 6),  # 10 + 30 over 4 + 2 tokens
        ("sequence_mean", 8.75),  # 2.5 and 15; the row without tokens does not count
        ("max_tokens", 40 / 16),  # 2 rows * 8
    ],
)
def test_worked_means(aggregate: Aggregate, mean: float):
    weights = token_weights(MASK, aggregate)
    assert weights.dtype == torch.float32
    assert not weights[~MASK].any()
    assert (weights * LOSS).sum().item() / normaliser(MASK, aggregate, 8) == pytest.approx(mean, rel=1e-6)


def test_the_means_differ_on_one_row():
    one = MASK[:1]
    assert [normaliser(one, a, 8) for a in AGGREGATES] == [4.0, 1.0, 8.0]
    assert [normaliser(MASK[2:], a, 8) for a in AGGREGATES] == [0.0, 0.0, 0.0]


# --- a whole optimizer step: logits -> loss -> gradient, in float32


def step(rows: dict[str, Tensor], parts: list[Tensor], aggregate: Aggregate) -> Tensor:
    """Loss, then the gradient of the one parameter that all tokens share."""
    parameter = torch.linspace(-1, 1, 7).requires_grad_()
    total = torch.zeros(())
    for part in parts:
        x = {name: value[part] for name, value in rows.items()}
        mask = x["mask"]
        scored = token_logprobs(
            x["features"][mask] * parameter, x["tokens"][mask], with_entropy=True, entropy_gradient=True
        )
        loss = clipped_policy_loss(
            logprobs=scored.logprobs,
            old_logprobs=x["old"][mask],
            advantages=x["advantages"][mask],
            weights=token_weights(mask, aggregate)[mask],
            importance=x["importance"][mask],
            clip_range=0.2,
            dual_clip=2.0,
            entropy=scored.entropy,
            entropy_coef=0.1,
            ref_logprobs=x["ref"][mask],
            kl_coef=0.1,
        )
        total = total + loss.total / normaliser(rows["mask"], aggregate, 8)
    (grad,) = torch.autograd.grad(total, parameter)
    return torch.cat([total.detach().reshape(1), grad])


def draw() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(10, 8, generator=generator) < 0.6
    mask[3] = False
    return {
        "mask": mask,
        "tokens": torch.randint(7, (10, 8), generator=generator),
        "features": torch.randn(10, 8, 7, generator=generator),
        "old": 0.5 * torch.randn(10, 8, generator=generator) - 2,
        "ref": 0.5 * torch.randn(10, 8, generator=generator) - 2,
        "advantages": torch.randn(10, 8, generator=generator),
        "importance": torch.rand(10, 8, generator=generator),
    }


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_split_order_and_padding_change_nothing(aggregate: Aggregate):
    rows = draw()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    whole = step(rows, [torch.arange(10)], aggregate)
    split = step(rows, list(order.split([1, 4, 0, 5])), aggregate)
    torch.testing.assert_close(split, whole, atol=1e-6, rtol=0)
    padded = {n: torch.nn.functional.pad(v.movedim(1, -1), (2, 5)).movedim(-1, 1) for n, v in rows.items()}
    torch.testing.assert_close(step(padded, [order], aggregate), whole, atol=1e-6, rtol=0)
    short = step(rows, [torch.arange(9)], aggregate)
    assert (short - whole).abs().max() > 1e-4  # the control: every row counts


def test_a_mean_of_micro_batch_means_would_not_do():
    rows = draw()
    whole = (token_weights(rows["mask"], "token_mean") * rows["old"]).sum() / normaliser(rows["mask"], "token_mean", 32)
    parts = [
        (token_weights(m, "token_mean") * old).sum() / normaliser(m, "token_mean", 32)
        for m, old in zip(rows["mask"].split([2, 8]), rows["old"].split([2, 8]), strict=True)
    ]
    assert abs(whole - torch.stack(parts).mean()) > 1e-4
