"""Checks that the model can be split as the config says, before Ray starts or a GPU is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raylign.config import ModelConfig, RunConfig
from raylign.errors import ConfigError
from raylign.models.description import Shape, shape
from raylign.pipeline.stages import Stage

Fits = Callable[[Shape, int], bool]


def check_stages(stage: Stage) -> None:
    """`check_splits` of every run that `stage` needs, and of its own, as far as their models are there already.

    Raises:
        ConfigError: as `check_splits`.
    """
    for needed in stage.needs.values():
        check_stages(needed)
    check_splits(stage.config)


def check_splits(config: RunConfig) -> None:
    """The sizes of `tensor_parallel` and `pipeline_parallel` against the model's heads and layers.

    A `run:` or `task:` model is passed over: it is checked when it has been made.
    Raises:
        ConfigError: a line for each size that does not fit, with those that do.
    """
    shapes: dict[str, Shape] = {}
    problems = []
    for place, size, model, fits in _splits(config):
        if size == 1 or model.path.startswith(("run:", "task:")):
            continue
        shapes.setdefault(model.path, shape(model))
        of_model = shapes[model.path]
        if not fits(of_model, size):
            problems.append(f"{place}: {_misfit(place, size, model.path, of_model, fits)}")
    if problems:
        raise ConfigError(problems)


def _splits(config: RunConfig) -> Iterator[tuple[str, int, ModelConfig, Fits]]:
    rollout, sharding = config.rollout, config.learner.sharding
    yield "rollout.tensor_parallel", rollout.tensor_parallel, config.model, engine_fits
    yield "rollout.pipeline_parallel", rollout.pipeline_parallel, config.model, _layers_fit
    place = "learner.sharding.tensor_parallel"
    yield place, sharding.tensor_parallel, config.model, learner_fits
    for _, path in config.algorithm.model_paths():
        yield place, sharding.tensor_parallel, config.model.model_copy(update={"path": path}), learner_fits


def engine_fits(of_model: Shape, size: int) -> bool:
    """vLLM's rule: every rank has as many heads, and as many heads of keys and values, or a copy of one of these."""
    few, many = sorted((of_model.kv_heads, size))
    width = of_model.intermediate
    return of_model.heads % size == 0 and many % few == 0 and (width is None or width % size == 0)


def learner_fits(of_model: Shape, size: int) -> bool:
    """The rule of transformers' plans: nothing is copied."""
    width = of_model.intermediate
    return of_model.heads % size == 0 and of_model.kv_heads % size == 0 and (width is None or width % size == 0)


def _layers_fit(of_model: Shape, size: int) -> bool:
    return size <= of_model.layers


def _misfit(place: str, size: int, path: str, of_model: Shape, fits: Fits) -> str:
    valid = [n for n in range(1, max(of_model.heads, of_model.layers) + 1) if fits(of_model, n)]
    if fits is _layers_fit:
        return f"{size} groups cannot share the {of_model.layers} layers of {path}; set at most {valid[-1]}"
    below = max(n for n in valid if n < size)
    above = [n for n in valid if n > size][:1]
    kv = f" ({of_model.kv_heads} of keys and values)" if of_model.kv_heads != of_model.heads else ""
    width = f" and a feed-forward of {of_model.intermediate}" if of_model.intermediate else ""
    nearest = " or ".join(str(n) for n in (below, *above))
    return f"{size} ranks cannot share evenly the {of_model.heads} attention heads{kv}{width} of {path}; set {nearest}"
