"""The config of a run with real paths in it, without running what it needs: a stage that is not done yet stands for the
shape of what it will make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raylign.config import CollectConfig, RunConfig
from raylign.controllers.run_folders import SUMMARY
from raylign.controllers.stages import MODEL, Stage, output_name, plan, resolve
from raylign.models.description import load_pretrained, load_tokenizer
from raylign.planning.lengths import Rows, rows_of


@dataclass(frozen=True)
class Located:
    config: RunConfig  # paths lead to files, or to the hub
    rows: Rows
    num_rows: int | None  # of its data; None if that is not here


def locate(config: RunConfig, scratch: Path, num_rows: int | None = None) -> Located:
    """What a run would read.

    Args:
        scratch: an empty folder for the embedded task's files and for models that are still to be made; nothing is
            written elsewhere.
        num_rows: rows of the data, if the caller knows better.
    Raises:
        ConfigError, UserError, DataError: what `raylign run` would say of the config and its files.
    """
    return _locate(plan(config), scratch, num_rows)


def _locate(stage: Stage, scratch: Path, num_rows: int | None = None) -> Located:
    config = _resolved(stage, scratch)
    source = stage.needs.get(stage.config.data.path)
    samples = None
    if source and isinstance(source.config.algorithm, CollectConfig) and not _is_done(source):
        samples = _locate(source, scratch)
    rows, found = rows_of(config, samples and samples.rows, samples and _written(samples))
    return Located(config, rows, num_rows or found)


def _resolved(stage: Stage, scratch: Path) -> RunConfig:
    def made(needed: Stage) -> Path:
        if _is_done(needed):
            return needed.folder
        folder = scratch / needed.folder.name
        if not folder.exists() and output_name(needed.config) == MODEL:
            _describe(_resolved(needed, scratch), folder / MODEL)
        return folder

    elsewhere = stage.config.model_copy(update={"output_dir": str(scratch)})
    config = resolve(Stage(elsewhere, stage.needs, stage.content), made)
    return config.model_copy(update={"output_dir": stage.config.output_dir})


def _is_done(stage: Stage) -> bool:
    return (stage.folder / SUMMARY).exists()


def _written(samples: Located) -> int | None:
    """Rows that a collect run will write."""
    algorithm = samples.config.algorithm
    assert isinstance(algorithm, CollectConfig)
    if algorithm.rows is not None or samples.num_rows is None:
        return algorithm.rows
    return samples.num_rows * algorithm.rows_per_prompt


def _describe(config: RunConfig, folder: Path) -> None:
    """A model folder without weights: learning changes no shapes."""
    from transformers import AutoConfig

    trust = {"trust_remote_code": config.model.trust_remote_code}
    described = load_pretrained(AutoConfig, config.model.path, "model.path", revision=config.model.revision, **trust)
    described.save_pretrained(folder)
    load_tokenizer(config.model).save_pretrained(folder)
