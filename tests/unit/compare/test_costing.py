"""What a run took, worked by hand from its summary."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml

from raylign.compare.costing import cost_of, cost_of_run, model_copies, num_parameters
from raylign.compare.pilot import steps_within
from raylign.config import RunConfig, load_config
from raylign.errors import ConfigError, UserError
from raylign.storage.run_folder import RunFolder

RECIPES = Path(__file__).parents[3] / "recipes"


def recipe(name: str, *overrides: str) -> RunConfig:
    return load_config(RECIPES / f"{name}_sentiment.yaml", overrides)


def summary(held: dict[str, Any], memory: list[str], **more: Any) -> dict[str, Any]:
    found = {
        "steps": 4,
        "wall_seconds": 100.0,
        "section_seconds": {"evaluate": 20.0, "start": 10.0},
        "reserved_seconds": held,
        "tokens": {"generated": 1000, "trained": 1000},
        "memory": {role: {"peak_bytes": 100, "host_bytes": 100} for role in memory},
    }
    return found | more


ONLINE = ["policy", "critic", "reference", "reward", "rollout"]


def test_ppo_holds_all_its_roles_and_judges_with_them():
    held = {"train": dict.fromkeys(ONLINE, 100.0)}
    cost = cost_of(recipe("ppo"), summary(held, ONLINE), parameters=10)
    # CPUs: policy 0.5, critic 0.25, reference 0.25, reward 0.25, rollout 0.5; 20 of the 100 s were evaluations.
    assert cost.total_device_seconds == pytest.approx(1.75 * 100)
    assert cost.learning_device_seconds == pytest.approx(1.75 * 80)
    assert (cost.learning_seconds, cost.devices, cost.device) == (80.0, pytest.approx(1.75), "cpu")
    assert cost.learning_bytes == 500
    assert cost.copies_of == ("policy", "critic", "rollout", "reference")
    # Two epochs of two learners: 6 x 2 x 2,000; 2 x 1,000 sampled; reference and critic score 1,000 each.
    assert cost.tokens_trained == 2000
    assert cost.flops == 10 * (24_000 + 2_000 + 4_000)
    assert cost.money(3.6) == pytest.approx(0.175)
    assert cost.money(None) is None


def test_dpo_pays_for_learning_and_not_for_the_engines_that_judge_it():
    held = {
        "train": {"policy": 50.0, "reference": 20.0},
        "evaluation": {"rollout": 30.0, "evaluator": 30.0, "reference": 30.0},
    }
    told = summary(held, ["policy", "reference", "rollout", "evaluator"], tokens={"trained": 500})
    cost = cost_of(recipe("dpo"), told, parameters=10)
    assert cost.device_seconds == pytest.approx({"policy": 25.0, "reference": 12.5, "rollout": 15.0, "evaluator": 7.5})
    # While the reference scored the pairs the policy waited: 20 s of both, to be shared with all that read them.
    assert cost.reference_device_seconds == pytest.approx(20 * 0.75)
    assert cost.learning_device_seconds == pytest.approx(50 * 0.5 + 20 * 0.25 - 15)
    assert cost.learning_bytes == 200  # policy and reference
    assert cost.model_copies == 2
    assert cost.flops == 10 * (6 * 500 + 2 * 500)
    twice = cost_of(recipe("dpo"), told, parameters=10, passes=2.0)  # each pair scored once, learned from twice
    assert twice.flops == 10 * (6 * 500 + 2 * 250)


def test_gpus_are_the_devices_where_a_run_has_any_and_colocated_roles_take_turns():
    gpus = [f"placement.{role}.num_gpus=1" for role in ONLINE[:-2]] + ["placement.rollout.num_gpus=1"]
    held = {"train": dict.fromkeys(ONLINE, 100.0)}
    cost = cost_of(recipe("ppo", *gpus), summary(held, ONLINE), parameters=1)
    assert (cost.device, cost.total_device_seconds) == ("gpu", 400.0)  # the task's reward has none
    together = cost_of(recipe("ppo", *gpus, "placement.mode=colocated"), summary(held, ONLINE), parameters=1)
    assert together.total_device_seconds == 100.0
    assert together.learning_device_seconds == 80.0


@pytest.mark.parametrize(
    ("name", "overrides", "copies"),
    [
        ("ppo", ["algorithm.kl.coef=0"], ("policy", "critic", "rollout")),
        ("ppo_rm", [], None),
        ("dpo", [], ("policy", "reference")),
        ("sft", [], ("policy",)),
        ("preferences", [], ("rollout",)),
    ],
)
def test_model_copies(name, overrides, copies):
    if copies is None:
        config = load_config(RECIPES / "ppo_sentiment_rm.yaml")
        copies = ("policy", "critic", "rollout", "reference", "reward")
    else:
        config = recipe(name, *overrides)
    assert model_copies(config) == copies


def test_ranks_that_split_a_model_hold_one_copy():
    split = ["placement.policy.num_actors=4", "learner.sharding.strategy=fsdp"]
    assert model_copies(recipe("sft", *split)) == ("policy",)
    assert model_copies(recipe("sft", *split, "learner.sharding.shard_size=2")) == ("policy",) * 2
    assert model_copies(recipe("sft", split[0])) == ("policy",) * 4


def test_a_pilot_says_how_many_steps_fit_behind_the_start(tmp_path):
    config = recipe("dpo", "data.path=nothing.jsonl").model_dump(mode="json")
    for name in ("config.yaml", "resolved.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(config))
    told = summary({"train": {"policy": 50.0}, "evaluation": {"rollout": 30.0}}, ["policy", "rollout"])
    (tmp_path / "summary.json").write_text(json.dumps(told))
    (tmp_path / "model").mkdir()
    lines = [{"step": i, "time": 0.0, "time/step": seconds} for i, seconds in enumerate((10.0, 5.0, 5.0), 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # Half a CPU for 50 s is 25, the steps took 10 of it: 15 to start, then 2.5 a step.
    assert steps_within(40.0, tmp_path, "dpo") == 10
    with pytest.raises(
        ConfigError, match="16 device-seconds are too few for one step of dpo: its start alone takes 15"
    ):
        steps_within(16.0, tmp_path, "dpo")


def test_a_summary_of_an_earlier_raylign_is_refused_in_one_line(tmp_path):
    (tmp_path / "summary.json").write_text('{"stage_seconds": {"start": 10.0}}')
    with pytest.raises(UserError) as caught:
        cost_of_run(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: the run was written by an earlier raylign, without section_seconds; delete the folder and run it again"
    )


def test_parameters_are_counted_from_the_header(tmp_path):
    header = json.dumps(
        {"__metadata__": {"format": "pt"}, "a": {"shape": [3, 4], "dtype": "F32"}, "b": {"shape": [5], "dtype": "F32"}}
    ).encode()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert num_parameters(RunFolder(tmp_path)) == 17
