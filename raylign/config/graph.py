"""Follow the `run:` paths of a config to the runs that it needs, and check them before anything is executed."""

from __future__ import annotations

from raylign.config.collect import CollectConfig
from raylign.config.load import load_config
from raylign.config.run import RunConfig
from raylign.errors import ConfigError

TASK_DATA = ("corpus", "prompts", "eval_prompts")


def upstream_configs(config: RunConfig, chain: tuple[str, ...] = ()) -> dict[str, RunConfig]:
    """Load the configs that the `run:` paths of `config` name, by path, with the settings that they take from it.

    An upstream run takes `output_dir`, `rollout.engine` and, if it has a task of the same name, `task` from the run
    that needs it, so that one task seed and one engine apply to the whole graph. The run's own `seed` is not passed on,
    so that runs that differ only in seed start from the same model.

    Raises:
        ConfigError: a config is missing, wrong, or needs itself, or an upstream run or the task does not produce what is
            needed from it.
    """
    upstreams = {}
    for place, value in config.sources():
        if value.startswith("task:"):
            _check_task_has(place, value)
        if not value.startswith("run:"):
            continue
        if value in chain:
            raise ConfigError([f"{place}: {value} needs itself: {' -> '.join([*chain, value])}; remove the cycle"])
        upstream = load_config(value.removeprefix("run:"))
        _check_makes(upstream, place, value)
        _check_keeps(config, upstream, place, value)
        inherited: dict[str, object] = {"output_dir": config.output_dir}
        if upstream.task and config.task and upstream.task.name == config.task.name:
            inherited["task"] = config.task
        if config.rollout.engine != "auto":
            inherited["rollout"] = upstream.rollout.model_copy(update={"engine": config.rollout.engine})
        upstreams[value] = upstream.model_copy(update=inherited)
    return upstreams


def check_graph(config: RunConfig, chain: tuple[str, ...] = ()) -> list[str]:
    """Return the names of all runs that `config` needs, in an order in which they can be executed."""
    names: list[str] = []
    for value, upstream in upstream_configs(config, chain).items():
        for name in [*check_graph(upstream, (*chain, value)), upstream.name]:
            if name not in names:
                names.append(name)
    return names


def _check_task_has(place: str, value: str) -> None:
    if place.endswith("reward.path"):
        raise ConfigError([f"{place}: {value} is not a model; for the true reward of the task write {{type: task}}"])
    known = TASK_DATA if place.endswith("data.path") else ("model",)
    if value.removeprefix("task:") not in known:
        raise ConfigError([f"{place}: the task has no {value} for this; write task:{' or task:'.join(known)}"])


def _check_makes(upstream: RunConfig, place: str, value: str) -> None:
    makes, name = upstream.algorithm.makes, upstream.algorithm.name
    wanted = "a dataset, from a collect run"
    if place.endswith("data.path"):
        fits = makes == "dataset"
    elif place.endswith("reward.path"):
        fits, wanted = makes == "reward_model", "a reward model, from a reward_model run"
    else:
        fits, wanted = makes == "policy", "a language model, from an sft, dpo, ppo, ... run"
    if place == "algorithm.critic.path":
        fits = fits or makes == "reward_model"
    if not fits:
        raise ConfigError([f"{place}: {value} is a {name} run; this key needs {wanted}"])


def _check_keeps(config: RunConfig, upstream: RunConfig, place: str, value: str) -> None:
    """Check that a collected dataset has the pairs or completions that its reader needs.

    With renamed columns nothing is checked here: {completion: chosen} makes completions of pairs.
    """
    if not isinstance(upstream.algorithm, CollectConfig):
        return
    keep, reader = upstream.algorithm.keep, config.algorithm
    data = config.evaluation.data if config.evaluation and place.startswith("evaluation.") else config.data
    if data.columns or (data is not config.data and reader.held_out_reads != "pairs"):
        return
    if reader.learns_from_preferences and keep != "pairs":
        raise ConfigError(
            [
                f"{place}: {value} keeps single completions (algorithm.keep: {keep}); {reader.name} needs pairs; set "
                "algorithm.keep: pairs there"
            ]
        )
    if reader.reads == "sequences" and keep == "pairs":
        fix = "set algorithm.keep: best there, or data.columns: {completion: chosen, finished: chosen_finished} here"
        raise ConfigError([f"{place}: {value} keeps pairs, and {reader.name} trains on single completions; {fix}"])
