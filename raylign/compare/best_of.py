"""Best-of-n as a method: a collect run over the held-out prompts, and the sample with the highest score for each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from raylign.compare.samples import Sample
from raylign.config import CollectConfig
from raylign.storage.run_folder import RunFolder


def first_and_best(folder: Path, n: int) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Return the (first, best) samples of all prompts of a collect run that kept every sample.

    The first sample of each prompt is an unselected completion of the start. Samples without a score are left out.
    """
    from raylign.models.description import load_tokenizer

    run = RunFolder(folder)
    config = run.resolved
    assert isinstance(config.algorithm, CollectConfig)
    tokenizer = load_tokenizer(config.model)

    def sample(row: dict[str, Any]) -> Sample:
        tokens = tokenizer.encode(row["completion"], add_special_tokens=False)
        return Sample(row["prompt"], row["completion"], row["score"], len(tokens) + bool(row["finished"]))

    with run.dataset(config.algorithm.file_name).open() as f:
        groups = list(groups_of([json.loads(line) for line in f], n))
    first = tuple(sample(group[0]) for group in groups)
    best = tuple(sample(max(group, key=lambda row: row["score"])) for group in groups)
    return first, best


def groups_of(rows: list[dict[str, Any]], n: int) -> Iterator[list[dict[str, Any]]]:
    """Yield consecutive rows with the same prompt, at most n at a time."""
    for _, same in groupby(rows, key=lambda row: json.dumps(row["prompt"])):
        group = list(same)
        yield from (group[i : i + n] for i in range(0, len(group), n))
