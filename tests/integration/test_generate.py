"""Best-of-n from a PPO config: real actors, sampled with transformers; an SFT run learns from what comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raylign.config import DataConfig
from raylign.data import read_rows
from tests.integration.small_runs import Ended, Workshop, metrics

SAMPLES = 4


def rows_of(file: Path) -> list[dict]:
    return read_rows(DataConfig(path=str(file))).rows


def generate(workshop: Workshop, keep: str, out: Path, *more: str, resume: bool = False) -> Path:
    """The run directory."""
    options = [f"name=generate_{keep}", "rollout.engine=transformers", "--keep", keep, "--samples", str(SAMPLES)]
    options += ["algorithm.prompts_per_step=48", *more]
    process = workshop.start("ppo", *options, "--out", str(out), resume=resume, verb="generate")
    with Ended(process):
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    folder, told = output.strip().splitlines()[-2:]
    assert told == f"dataset: {out} ({len(rows_of(out))} rows)"
    return Path(folder.removeprefix("run directory: "))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_best_of_n_is_the_best_of_the_samples_that_all_would_write_and_sft_learns_it(workshop, tmp_path):
    generate(workshop, "all", tmp_path / "all.jsonl", "--rows", str(2 * 64 * SAMPLES))
    every = rows_of(tmp_path / "all.jsonl")
    assert len(every) == 2 * 64 * SAMPLES, "each prompt twice, each sample scored"
    groups = [every[i : i + SAMPLES] for i in range(0, len(every), SAMPLES)]
    assert len({json.dumps(group) for group in groups}) == len(groups), "a prompt has other samples the second time"
    every, groups = every[: 64 * SAMPLES], groups[:64]
    assert all(len({row["prompt"] for row in group}) == 1 for group in groups)
    assert sum(len({row["score"] for row in group}) > 1 for group in groups) > 32, "there is something to choose from"

    out = tmp_path / "new" / "best.parquet"
    folder = generate(workshop, "best", out)
    best = rows_of(out)
    assert best == [max(group, key=lambda row: row["score"]) for group in groups]
    assert sum(row["score"] for row in best) / len(best) > sum(row["score"] for row in every) / len(every)
    assert rows_of(folder / "completions.jsonl") == best

    # Killed in the last step and gone on with: the same rows, and each step logged once.
    steps = sorted((folder / "parts").iterdir())
    assert [row["collect/rows"] for row in metrics(folder)] == [48, 64]
    for file in (steps[-1], folder / "completions.jsonl", folder / "summary.json", out):
        file.unlink()
    kept = [file.stat().st_mtime_ns for file in steps[:-1]]
    assert generate(workshop, "best", out, resume=True) == folder
    assert rows_of(out) == best
    assert [file.stat().st_mtime_ns for file in steps[:-1]] == kept
    assert [row["collect/rows"] for row in metrics(folder)] == [48, 64]

    sft = workshop.run("sft", "name=sft_on_best", f"data.path={out}", "algorithm.epochs=1")
    assert [row["step"] for row in metrics(sft)] == [1, 2]
