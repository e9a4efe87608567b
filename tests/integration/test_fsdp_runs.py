"""Whole runs whose learners are split over two ranks, beside the same runs in one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.integration.small_runs import metrics

SPLIT = (
    "learner.sharding.strategy=fsdp",
    "placement.policy={num_actors: 2, num_cpus: 0.2}",
    "placement.critic={num_actors: 2, num_cpus: 0.2}",
)
# Adam divides by the size of the gradient: with its usual eps, rounding in those near zero would show in the weights.
ALIKE = ("model.dropout=false", "algorithm.optimizer.eps=1e-4", "rollout.engine=transformers")


def furthest(one: Path, other: Path) -> float:
    """Largest difference between two published models."""
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max(float(np.abs(first[name] - second[name]).max()) for name in first)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo", "ppo"])
def test_two_ranks_make_the_run_of_one(workshop, name):
    critic = ("algorithm.critic.optimizer.eps=1e-4", "algorithm.kl.controller=fixed") if name == "ppo" else ()
    one = workshop.run(name, "name=one", *ALIKE, *critic, timeout=700)
    two = workshop.run(name, "name=two", *ALIKE, *critic, *SPLIT, timeout=700)
    loss = "policy/loss" if name == "ppo" else f"{name}/loss"
    losses = [[step[loss] for step in metrics(folder)] for folder in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5, abs=1e-5)
    assert furthest(one, two) < 1e-5
