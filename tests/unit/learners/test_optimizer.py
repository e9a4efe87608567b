"""What a learner does with a gradient: the schedule, AdamW, clipping, and steps that are not finite."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from raylign.algorithms.loss import LossSum
from raylign.config import DPOConfig, OptimizerConfig, SFTConfig
from raylign.errors import NonFiniteError
from raylign.learners.preference import DPOLearner
from raylign.learners.schedule import learning_rate
from raylign.learners.sft import SFTLearner
from raylign.learners.spec import LearnerSpec
from tests.unit.tiny import (
    assert_same,
    completion_logprob,
    differs,
    model_config,
    pairs,
    plain,
    ref_logprobs,
    save_tiny,
    sequences,
    spec_of,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny(
        tmp_path_factory.mktemp("optimizer") / "policy", Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True
    )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 10 steps, 2 of them warm-up: half and full rate, then 8 steps from the peak towards 0.
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [0.5, 1, 1, 0.96193977, 0.85355339, 0.69134172, 0.5, 0.30865828, 0.14644661, 0.03806023]),
    ],
)
def test_learning_rate_by_hand(schedule, expected):
    config = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.2, schedule=schedule)
    assert [learning_rate(config, step, 10) for step in range(10)] == pytest.approx(expected, abs=1e-8)
    assert learning_rate(config, 25, 10) == pytest.approx({"constant": 1.0}.get(schedule, 0.0), abs=1e-12)


def test_a_part_of_a_warm_up_step_counts_as_one():
    config = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.11, schedule="constant")
    assert [learning_rate(config, step, 10) for step in range(3)] == [0.5, 1.0, 1.0]  # ceil(1.1) = 2


def test_a_step_is_adamw_at_the_scheduled_rate_on_the_clipped_gradient(folder):
    """Three steps against torch's AdamW on gradients that are clipped by hand."""
    data = sequences(6, seed=10)
    options = {"learning_rate": 0.01, "weight_decay": 0.1, "warmup_ratio": 0.5, "schedule": "linear"}
    spec = spec_of(30, total_steps=4, max_grad_norm=0.5, **options)
    learner = SFTLearner(model_config(folder), spec, SFTConfig(name="sft"))
    learner.set_data(data)
    model = plain(AutoModelForCausalLM, folder)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    num_tokens = sum(int(data.completion_mask[i].sum()) for i in range(6))
    for rate in (0.005, 0.01, 0.01):
        metrics = learner.update_rows(np.arange(6))
        loss = -torch.stack([completion_logprob(model, data, i) for i in range(6)]).sum() / num_tokens
        optimizer.zero_grad()
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = math.sqrt(sum(g.double().square().sum().item() for g in grads))
        assert norm > 0.5
        for g in grads:
            g.mul_(0.5 / norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        assert metrics["optimizer/lr"] == pytest.approx(rate)
        assert metrics["loss"] == pytest.approx(loss.item(), abs=2e-5)
    assert_same(weights_of(learner), {n: t.detach() for n, t in model.state_dict().items()}, 1e-4)
    assert differs(weights_of(learner), plain(AutoModelForCausalLM, folder).state_dict())


def test_a_step_that_is_not_finite_is_skipped_and_counted_and_the_third_in_a_row_ends_the_run(folder):
    data = pairs(4, seed=11)
    learner = DPOLearner(model_config(folder), spec_of(max_skipped_steps=3), DPOConfig(name="dpo"))
    chosen, rejected = ref_logprobs(4)
    bad = np.array([2])
    good = np.array([0, 1, 3])
    chosen[2] = np.nan
    learner.set_data(data, (chosen, rejected))

    learner.update_rows(good)
    before, moments = weights_of(learner), learner.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    for skipped in (1, 2):
        metrics = learner.update_rows(bad)
        assert math.isnan(metrics["loss"])
        assert metrics["optimizer/skipped"] == skipped
        assert not differs(before, weights_of(learner))
        assert torch.equal(learner.optimizer.state_dict()["state"][0]["exp_avg"], moments)
    learner.update_rows(good)  # a good step ends the row of bad ones
    after = weights_of(learner)
    assert differs(before, after)
    for skipped in (3, 4):
        assert learner.update_rows(bad)["optimizer/skipped"] == skipped
    with pytest.raises(NonFiniteError, match=r"policy: .* 3 optimizer steps in a row"):
        learner.update_rows(bad)
    assert not differs(after, weights_of(learner))
    assert all(torch.isfinite(p).all() for p in after.values())


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is(folder):
    learner = SFTLearner(model_config(folder), spec_of(), SFTConfig(name="sft"))
    before = weights_of(learner)

    def loss(_: int) -> LossSum:
        # sqrt has an infinite slope at 0.
        return LossSum((next(iter(learner.named.values())).sum() * 0).sqrt(), {})

    metrics = learner.optimizer_step([0], 1, loss)
    assert math.isfinite(metrics["loss"])
    assert not math.isfinite(metrics["optimizer/grad_norm"])
    assert metrics["optimizer/skipped"] == 1
    assert not differs(before, weights_of(learner))


def test_spec_sets_the_threads_it_names(folder):
    spec = LearnerSpec(OptimizerConfig(), 1, 100, "float32", seed=0, max_skipped_steps=1, num_threads=2)
    try:
        SFTLearner(model_config(folder), spec, SFTConfig(name="sft"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
