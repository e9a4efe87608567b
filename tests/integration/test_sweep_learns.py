"""Sweeps whose trials follow from one another: a population, and Optuna. With real runs; killed, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from raylign.storage.run_folder import RunFolder
from raylign.tuning.population import load_exploits
from tests.integration.small_runs import Ended, Workshop, family, left_behind, metrics, newest_commit, wait_for
from tests.integration.small_sweeps import table, write_sweep
from tests.integration.test_sweep_faults import SECONDS, finish, trial

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
RATE = "algorithm.optimizer.learning_rate"
POPULATION: dict[str, Any] = {
    "search": {RATE: {"grid": [5e-3, 1e-3, 2e-4, 1e-6]}},
    "scheduler": {"type": "pbt", "every_steps": 5, "mutate": [RATE]},
}


def kill_when(process: subprocess.Popen[str], condition: Callable[[], Any]) -> None:
    """kill -9 the driver; all it started must go with it."""
    with Ended(process):
        wait_for(condition, SECONDS, "the moment to kill", process)
        children = family(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
    assert left_behind(children) == []


def test_a_population_goes_on_from_its_best_and_a_killed_one_ends_the_same(tmp_path):
    whole = tmp_path / "whole"
    write_sweep(whole, "pbt", steps=10, rates=[], **POPULATION)
    output = finish(Workshop(whole).start("pbt", verb="sweep"))
    folder = whole / "runs" / "pbt"
    rows = table(folder)
    assert [(row["status"], row["step"]) for row in rows] == [("finished", 10)] * 4
    (move,) = load_exploits(folder)[5]
    assert move.trial == "003", "the trial that hardly learns is the worst"
    assert f"trial 003: copied from trial {move.donor} at step 5" in output
    assert rows[3][RATE] == move.values[RATE]
    assert {row["trial"]: row[RATE] for row in rows[:3]} == {"000": 5e-3, "001": 1e-3, "002": 2e-4}
    losses = {row["step"]: row["sft/loss"] for row in metrics(trial(folder, 3))}
    of_donor = {row["step"]: row["sft/loss"] for row in metrics(trial(folder, int(move.donor)))}
    behind = losses[5] - of_donor[5]
    assert behind > 0.3
    assert abs(losses[6] - of_donor[6]) < behind / 3, "it went on as the donor did, over other rows"

    killed = tmp_path / "killed"
    write_sweep(killed, "pbt", steps=10, rates=[], **POPULATION)
    folder_too = killed / "runs" / "pbt"
    kill_when(Workshop(killed).start("pbt", verb="sweep"), lambda: newest_commit(trial(folder_too, 0)) > 5)
    finish(Workshop(killed).start("pbt", verb="sweep", resume=True))
    assert load_exploits(folder_too) == load_exploits(folder)
    assert table(folder_too) == rows
    for number in range(4):
        weights = []
        for one in (folder, folder_too):
            commit = RunFolder(trial(one, number)).commits(1).latest()
            assert commit
            weights.append(load_file(Path(commit.role("policy")) / "model.safetensors"))
        assert all((weights[0][name] == weights[1][name]).all() for name in weights[0]), "to the last bit"


def test_optuna_asks_for_trials_and_a_resumed_sweep_asks_for_the_rest(tmp_path):
    search = {RATE: {"loguniform": [1e-6, 1e-2]}, "algorithm.batch_size": {"choice": [4, 8]}}
    write_sweep(tmp_path, "asked", steps=3, rates=[], search=search, searcher="optuna", trials=5)
    folder = tmp_path / "runs" / "asked"
    done = lambda: list(folder.glob("trials/*/summary.json"))  # noqa: E731
    kill_when(Workshop(tmp_path).start("asked", verb="sweep"), done)
    finished = {file: file.stat().st_mtime_ns for file in done()}
    assert len(finished) < 5
    finish(Workshop(tmp_path).start("asked", verb="sweep", resume=True))
    rows = table(folder)
    assert [(row["trial"], row["status"], row["step"]) for row in rows] == [
        (f"{i:03d}", "finished", 3) for i in range(5)
    ]
    assert len({row[RATE] for row in rows}) == 5
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert (folder / "best.yaml").exists()
