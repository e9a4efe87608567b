"""The config of a run with real paths, without executing the stages that it needs: a stage that is still to be executed
is replaced by the shape of its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raylign.config import CollectConfig, RunConfig
from raylign.models.description import load_pretrained, load_tokenizer
from raylign.pipeline.stages import Stage, build_graph, output_name, resolve
from raylign.planning.lengths import LengthProfile, measure_lengths
from raylign.storage.run_folder import MODEL, RunFolder


@dataclass(frozen=True)
class ResolvedRun:
    """A run config with real paths, and the lengths and number of the rows that it reads."""

    config: RunConfig  # paths lead to files, or to the hub
    profile: LengthProfile
    num_rows: int | None  # None if the data is not on this machine


def resolve_for_planning(config: RunConfig, scratch: Path, num_rows: int | None = None) -> ResolvedRun:
    """Return the run as its actors would get it.

    Args:
        scratch: an empty folder for the embedded task's files and for models that are still to be made; nothing is
            written elsewhere.
        num_rows: number of rows of the data, if the caller knows it.
    Raises:
        ConfigError, UserError, DataError: `raylign run` would refuse the config or its files.
    """
    return _resolve_stage(build_graph(config), scratch, num_rows)


def _resolve_stage(stage: Stage, scratch: Path, num_rows: int | None = None) -> ResolvedRun:
    config = _resolve_config(stage, scratch)
    source = stage.needs.get(stage.config.data.path)
    samples = None
    if source and isinstance(source.config.algorithm, CollectConfig) and not _is_done(source):
        samples = _resolve_stage(source, scratch)
    profile, known_rows = measure_lengths(config, samples and samples.profile, samples and _rows_to_write(samples))
    return ResolvedRun(config, profile, num_rows or known_rows)


def _resolve_config(stage: Stage, scratch: Path) -> RunConfig:
    def result_of(needed: Stage) -> Path:
        if _is_done(needed):
            return needed.folder
        folder = scratch / needed.folder.name
        if not folder.exists() and output_name(needed.config) == MODEL:
            _describe(_resolve_config(needed, scratch), RunFolder(folder).model)
        return folder

    elsewhere = stage.config.model_copy(update={"output_dir": str(scratch)})
    config = resolve(Stage(elsewhere, stage.needs, stage.content), result_of)
    return config.model_copy(update={"output_dir": stage.config.output_dir})


def _is_done(stage: Stage) -> bool:
    return RunFolder(stage.folder).has_ended


def _rows_to_write(samples: ResolvedRun) -> int | None:
    """Return the number of rows that a collect run will write, or None if it is unknown."""
    algorithm = samples.config.algorithm
    assert isinstance(algorithm, CollectConfig)
    if algorithm.rows is not None or samples.num_rows is None:
        return algorithm.rows
    return samples.num_rows * algorithm.rows_per_prompt


def _describe(config: RunConfig, folder: Path) -> None:
    """Write a model folder without weights: learning changes no shapes."""
    from transformers import AutoConfig

    trust = {"trust_remote_code": config.model.trust_remote_code}
    described = load_pretrained(AutoConfig, config.model.path, "model.path", revision=config.model.revision, **trust)
    described.save_pretrained(folder)
    load_tokenizer(config.model).save_pretrained(folder)
