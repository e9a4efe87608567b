"""Every algorithm says all of itself on its config class: a class that leaves something out is named with what it lacks."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import ClassVar, Literal, get_args

import pytest

from raylign.config import ALGORITHMS, Algorithm, CollectConfig, OfflineConfig, OnlineConfig, SimPOConfig
from raylign.config.traits import Makes, Reads

ROOT = Path(__file__).parents[3]
METRICS_PAGE = (ROOT / "docs" / "metrics.md").read_text()


def missing_traits(algorithm: type[Algorithm]) -> list[str]:
    """Return what a class lacks to take part in runs, plans, sweeps and comparisons."""
    missing = [trait for trait in ("reads", "makes", "learner", "kl_key", "headline") if not hasattr(algorithm, trait)]
    if missing:
        return missing
    if algorithm.reads not in get_args(Reads):
        missing.append(f"reads: {algorithm.reads} is not one of {get_args(Reads)}")
    if algorithm.makes not in get_args(Makes):
        missing.append(f"makes: {algorithm.makes} is not one of {get_args(Makes)}")
    if not issubclass(algorithm, OnlineConfig | OfflineConfig | CollectConfig):
        missing.append("a loop: subclass OnlineConfig, OfflineConfig or CollectConfig")
    if (algorithm.learner is None) != (algorithm.makes == "dataset"):
        missing.append("learner: name the class that learns, or None if nothing does")
    elif algorithm.learner is not None:
        missing += _missing_learner(algorithm.learner)
    if algorithm.kl_key and algorithm.kl_key.split(".")[1] not in algorithm.model_fields:
        missing.append(f"kl_key: {algorithm.kl_key} is not a key of the class")
    return missing + _missing_metrics(algorithm)


def _missing_learner(place: str) -> list[str]:
    module, _, name = place.partition(":")
    try:
        learner = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        return [f"learner: {e}"]
    parameters = inspect.signature(learner.__init__).parameters
    return [f"learner: {place} takes no {p}" for p in ("model", "spec", "algorithm", "world") if p not in parameters]


def _missing_metrics(algorithm: type[Algorithm]) -> list[str]:
    names = algorithm.model_validate({"name": algorithm.algorithm_name()}).step_metrics()
    missing = [f"headline: {name} is not a step metric" for name, _ in algorithm.headline if name not in names]
    return missing + [f"docs/metrics.md: no row for {name}" for name in sorted(names) if not documented(name)]


def documented(name: str) -> bool:
    """Return whether the metrics page has a row for a metric, by its name or as `prefix/...` (also below a role)."""
    name = name.removeprefix("critic/") if name.startswith("critic/optimizer/") else name
    prefix = name.partition("/")[0]
    return bool(re.search(rf"^\|[^|]*`({re.escape(name)}|{re.escape(prefix)}/\.\.\.)`", METRICS_PAGE, re.MULTILINE))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_every_trait(name):
    assert missing_traits(ALGORITHMS[name]) == []


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_a_page(name):
    page = {"reinforce++": "reinforce_pp", "collect": "best_of_n"}.get(name, name)
    assert (ROOT / "docs" / "algorithms" / f"{page}.md").exists()


def half_added(**traits: object) -> type[Algorithm]:
    """Return a class that has the traits of SimPO, except for what is replaced."""
    body = {"__module__": __name__, "__annotations__": {"name": Literal["half"]}}
    for trait, value in traits.items():
        body["__annotations__"][trait] = ClassVar
        body[trait] = value
    return type("HalfConfig", (SimPOConfig,), body)


@pytest.mark.parametrize(
    ("traits", "fault"),
    [
        ({"reads": "triples"}, "reads: triples is not one of"),
        ({"makes": "cake"}, "makes: cake is not one of"),
        ({"learner": None}, "learner: name the class"),
        ({"learner": "raylign.learners.preference:NoLearner"}, "learner: module 'raylign.learners.preference'"),
        ({"learner": "raylign.learners.world:World"}, "learner: raylign.learners.world:World takes no model"),
        ({"kl_key": "algorithm.gammma"}, "kl_key: algorithm.gammma"),
        ({"headline": (("half/speed", "speed"),)}, "headline: half/speed is not a step metric"),
        ({}, "docs/metrics.md: no row for half/"),
    ],
)
def test_a_missing_trait_is_named(traits, fault):
    found = missing_traits(half_added(**traits))
    assert any(line.startswith(fault) for line in found), found


def test_a_class_without_traits_is_named_with_all_of_them():
    class Bare(Algorithm):
        name: Literal["bare"]

    assert missing_traits(Bare) == ["reads", "makes", "learner", "kl_key", "headline"]
