"""Best-of-n as a method: a collect run over the held-out prompts, and of each prompt the sample with the highest score."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from raylign.compare.samples import Sample
from raylign.config import load_config


def judged_best(folder: Path, n: int) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(first, best) sample of every prompt of a collect run that kept all; samples without a score are not there.

    The first of each is what the start does without a choice.
    """
    from raylign.models.description import load_tokenizer

    config = load_config(folder / "resolved.yaml")
    tokenizer = load_tokenizer(config.model)

    def sample(row: dict[str, Any]) -> Sample:
        tokens = tokenizer.encode(row["completion"], add_special_tokens=False)
        return Sample(row["prompt"], row["completion"], row["score"], len(tokens) + bool(row["finished"]))

    with (folder / "completions.jsonl").open() as f:
        groups = list(groups_of([json.loads(line) for line in f], n))
    first = tuple(sample(group[0]) for group in groups)
    best = tuple(sample(max(group, key=lambda row: row["score"])) for group in groups)
    return first, best


def groups_of(rows: list[dict[str, Any]], n: int) -> Iterator[list[dict[str, Any]]]:
    """Neighbouring rows of one prompt, n at most."""
    for _, same in groupby(rows, key=lambda row: json.dumps(row["prompt"])):
        group = list(same)
        yield from (group[i : i + n] for i in range(0, len(group), n))
