"""Setting one key of a config changes no other key, however it is set: the rest of a section keeps its defaults."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from raylign.config import (
    ALGORITHMS,
    CriticConfig,
    DPOConfig,
    GRPOConfig,
    OptimizerConfig,
    PPOConfig,
    RunConfig,
    load_config,
    parse_config,
)
from raylign.config.base import Config
from raylign.config.load import Lines, set_value
from raylign.config.search_space import load_sweep

Leaves = dict[str, Any]
Build = Callable[[str, Any], BaseModel]


def run_tree(algorithm: str) -> dict[str, Any]:
    return {
        "name": "run",
        "task": {"name": "sentiment"},
        "model": {"path": "task:model"},
        "data": {"path": "task:prompts"},
        "reward": {"type": "task"},
        "evaluation": {"data": {"path": "task:eval_prompts"}},
        "algorithm": {"name": algorithm},
    }


def leaves(tree: Any, at: str = "") -> Leaves:
    if not isinstance(tree, dict) or not tree:
        return {at: tree}
    return {k: v for key, value in tree.items() for k, v in leaves(value, f"{at}.{key}" if at else key).items()}


def other_values(model: type[BaseModel], dotted: str, value: Any) -> Iterator[Any]:
    """Yield values that differ from the present one and may be valid in its place."""
    first, _, rest = dotted.partition(".")
    annotation = model.model_fields[first].annotation if first in model.model_fields else None
    if rest:
        inner = [
            one for one in (annotation, *get_args(annotation)) if isinstance(one, type) and issubclass(one, Config)
        ]
        for one in inner:
            yield from other_values(one, rest, value)
        return
    kinds = [annotation, *get_args(annotation)]
    for kind in kinds:
        if get_origin(kind) is Literal:
            yield from (choice for choice in get_args(kind) if choice != value)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (one for one in (2 * value, value + 2, value / 2, 0.5, 0.05, 1, 8, 0) if one != value)
    elif isinstance(value, str):
        yield from ("other", "transformers")
    elif value is None:
        yield from (0.3, 2, 3, 8, 4096, True, "other")
    elif isinstance(value, list | tuple):
        yield from ([0.5, 0.7], [1], ["other"])


def side_effects(model: type[BaseModel], before: Leaves, build: Build) -> tuple[list[str], list[str]]:
    """Set every leaf to another valid value; return the leaves that changed with another one, and those never changed."""
    changed_too, never_set = [], []
    for dotted, value in before.items():
        after = _first_valid(build, dotted, other_values(model, dotted, value), value)
        if after is None:
            never_set.append(dotted)
            continue
        changed_too += [
            f"{dotted} also sets {other}: {before[other]!r} -> {after[other]!r}"
            for other in before
            if other != dotted and after.get(other, before[other]) != before[other]
        ]
    return changed_too, never_set


def _first_valid(build: Build, dotted: str, candidates: Iterator[Any], value: Any) -> Leaves | None:
    for candidate in candidates:
        try:
            after = leaves(build(dotted, candidate).model_dump(mode="json"))
        except (ValidationError, ValueError):
            continue
        if after.get(dotted) != value:
            return after
    return None


def by_tree(algorithm: str) -> Build:
    def build(dotted: str, value: Any) -> RunConfig:
        tree = run_tree(algorithm)
        set_value(tree, Lines(), dotted, value, "test")
        return RunConfig.model_validate(tree)

    return build


# Keys that cannot be changed alone: another key must change with them, or they name what is not there.
TOGETHER = (
    *(
        "task.",
        "model.path",
        "data.path",
        "evaluation.data.path",
        "reward",
        "evaluation.reward",
        "algorithm.name",
        "name",
    ),
    *("learner.sharding.", "reference", "tracking.wandb", "rollout.elastic", "model.lora", "algorithm.overlong"),
    *("algorithm.kl.where", "algorithm.kl.controller", "algorithm.loss", "algorithm.label_smoothing"),
    *("rollout.sampling.top_p", "rollout.sampling.top_k"),  # online algorithms sample from the policy itself
    *("data.columns", "evaluation.data.columns", "algorithm.importance", "placement.rollout.num_actors"),
)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_changes_no_other_key(algorithm):
    before = leaves(RunConfig.model_validate(run_tree(algorithm)).model_dump(mode="json"))
    del before["algorithm.name"]  # another algorithm is another class, with other keys
    changed_too, never_set = side_effects(RunConfig, before, by_tree(algorithm))
    assert changed_too == []
    assert [dotted for dotted in never_set if not dotted.startswith(TOGETHER)] == []
    assert len(before) - len(never_set) > 60


class Inner(BaseModel):
    rate: float = 1e-5
    decay: float = 0.0


class Outer(BaseModel):
    inner: Inner = Inner(rate=1e-6)


def test_a_section_that_loses_its_defaults_is_found():
    def build(dotted: str, value: Any) -> Outer:
        return Outer.model_validate({"inner": {dotted.removeprefix("inner."): value}})

    class OuterWithConfig(Config):
        inner: InnerConfig = InnerConfig(rate=1e-6)

    before = {"inner.rate": 1e-6, "inner.decay": 0.0}
    changed_too, _ = side_effects(OuterWithConfig, before, build)
    assert changed_too == ["inner.decay also sets inner.rate: 1e-06 -> 1e-05"]


class InnerConfig(Config):
    rate: float = 1e-5
    decay: float = 0.0


# --- The same by every road: a file, an override, a sweep, and Python.

CASES = [
    ("dpo", "optimizer.weight_decay", 0.1),
    ("grpo", "kl.coef", 0.01),
    ("grpo", "kl.where", "reward"),
    ("ppo", "critic.optimizer.weight_decay", 0.1),
    ("ppo", "critic.value_clip_range", 0.3),
    ("sft", "optimizer.max_grad_norm", 0.5),
]


@pytest.mark.parametrize(("algorithm", "key", "value"), CASES)
def test_every_road_leads_to_the_same_config(tmp_path, algorithm, key, value):
    tree = run_tree(algorithm)
    wanted = leaves(RunConfig.model_validate(tree).model_dump(mode="json")["algorithm"]) | {key: value}
    base, file, sweep = tmp_path / "run.yaml", tmp_path / "set.yaml", tmp_path / "sweep.yaml"
    base.write_text(yaml.safe_dump(tree))
    set_value(tree, Lines(), f"algorithm.{key}", value, "test")
    file.write_text(yaml.safe_dump(tree))
    metric = "score_after"
    search = {f"algorithm.{key}": {"grid": [value]}}
    sweep.write_text(yaml.safe_dump({"name": "sweep", "run": "run.yaml", "metric": metric, "search": search}))
    (trial,) = load_sweep(sweep).trials
    roads = {
        "file": load_config(file),
        "override": load_config(base, [f"algorithm.{key}={json.dumps(value)}"]),
        "sweep": trial.config,
        "parsed": parse_config(tree),
    }
    for road, config in roads.items():
        assert leaves(config.model_dump(mode="json")["algorithm"]) == wanted, road


def test_sections_made_in_python_are_completed_too():
    assert DPOConfig(name="dpo", optimizer=OptimizerConfig(weight_decay=0.1)).optimizer == OptimizerConfig(
        learning_rate=1e-6, warmup_ratio=0.1, schedule="linear", weight_decay=0.1
    )
    critic = PPOConfig(name="ppo", critic=CriticConfig(optimizer=OptimizerConfig(eps=1e-4))).critic
    assert (critic.optimizer.learning_rate, critic.optimizer.eps, critic.value_clip_range) == (1e-4, 1e-4, 0.2)
    kl = GRPOConfig.model_validate({"name": "grpo", "kl": {"coef": 0.01}}).kl
    assert (kl.coef, kl.where, kl.estimator) == (0.01, "loss", "k3")
