"""Rows of runs on the exact task: their numbers without noise, and the curve of the best policies."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from raylign.compare.exact.scores import optimum_curve, with_exact_scores
from raylign.config import ExactTask
from raylign.tasks import prepare
from raylign.tasks.exact_optimum import Enumeration, evaluate, log_probabilities, optimum
from tests.unit.compare_rows import row

pytestmark = pytest.mark.usefixtures("one_thread")

TASK = ExactTask.model_validate({"name": "exact", "vocab_size": 3, "length": 2, "num_prompts": 2})
BETA = 0.5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose policy is still the reference."""
    made = tmp_path_factory.mktemp("exact")
    files = prepare(TASK, made / "task")
    folder = made / "run"
    shutil.copytree(files.resolve("model"), folder / "model")
    config = {
        "name": "run",
        "task": TASK.model_dump(),
        "model": {"path": str(files.resolve("model"))},
        "data": {"path": str(files.resolve("prompts"))},
        "reward": {"type": "task"},
        "algorithm": {"name": "rloo", "steps": 1, "kl": {"coef": BETA}},
    }
    (folder / "resolved.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_policy_that_learned_nothing_is_at_the_start_whatever_was_sampled(run):
    sampled = replace(row("ppo", BETA, 0, 9.9), folder=str(run))
    exact = with_exact_scores(sampled)
    assert exact.score_after == exact.score_before == pytest.approx(_value_of_reference(run))
    assert exact.kl == pytest.approx(0.0, abs=1e-9)
    elsewhere = replace(sampled, folder="/nowhere")
    assert with_exact_scores(elsewhere) == elsewhere


def test_the_curve_goes_through_the_best_policy_of_each_beta(run):
    curve = optimum_curve([replace(row("ppo", BETA, 0, 1.0), folder=str(run))])
    kls, scores = (np.array(column) for column in zip(*sorted(curve), strict=True))
    assert np.all(np.diff(scores) > 0), "more KL buys more score"
    assert np.interp(0.0, kls, scores) >= _value_of_reference(run)
    listed = Enumeration.of(TASK)
    reference = log_probabilities(run / "model", listed)
    best = optimum(reference, listed.rewards, BETA)
    assert best.kl > 0.05
    assert np.interp(best.kl, kls, scores) == pytest.approx(best.reward, abs=0.01)
    assert optimum_curve([row("ppo", BETA, 0, 1.0)]) == []


def _value_of_reference(run: Path) -> float:
    listed = Enumeration.of(TASK)
    reference = log_probabilities(run / "model", listed)
    return evaluate(reference, reference, listed.rewards, 1.0).reward
