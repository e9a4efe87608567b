"""A whole sweep by the command line, as a person runs it."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from raylign.config import load_config
from raylign.config.metrics import step_metrics
from tests.integration.small_runs import Ended, Workshop, family, left_behind, metrics
from tests.integration.small_sweeps import table, write_sweep


@pytest.mark.timeout(420)
def test_a_grid_of_two_trials_ends_with_results_and_is_not_done_twice(tmp_path):
    write_sweep(tmp_path, "grid", steps=3, rates=[5e-3, 1e-6])
    workshop, folder = Workshop(tmp_path), tmp_path / "runs" / "grid"
    sweep = workshop.start("grid", verb="sweep")
    with Ended(sweep):
        output, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, output
    assert left_behind(family(sweep.pid)) == []
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    assert [(row["trial"], row["status"], row["step"]) for row in rows] == [
        ("000", "finished", 3),
        ("001", "finished", 3),
    ]
    assert rows[0]["metric"] < rows[1]["metric"]  # the model that hardly learned is worse
    for row in rows:
        place = folder / "trials" / row["trial"]
        steps = metrics(place)
        assert row["metric"] == steps[-1]["sft/loss"]
        assert {key for step in steps for key in step} - {"step", "time"} <= step_metrics(
            load_config(place / "config.yaml")
        )
        assert (place / "model" / "config.json").exists()
    best = load_config(folder / "best.yaml")
    assert best.algorithm.optimizer.learning_rate == 5e-3  # pyright: ignore[reportAttributeAccessIssue]
    for picture in ("metric_by_parameter", "learning_curves"):
        assert (folder / f"{picture}.png").stat().st_size > 10_000
    assert "best.yaml" in output

    finished = {file: file.stat().st_mtime_ns for file in folder.glob("trials/*/summary.json")}
    assert len(finished) == 2
    first = table(folder)
    again = workshop.start("grid", verb="sweep", resume=True)
    with Ended(again):
        output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert table(folder) == first
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert json.loads((folder / "trials" / "000" / "summary.json").read_text())["steps"] == 3


def test_a_trial_larger_than_the_cluster_is_refused_before_any_is_launched(tmp_path):
    search = {"placement.policy.num_cpus": {"grid": [0.5, 4096]}}
    write_sweep(tmp_path, "large", steps=3, rates=[1e-3], search=search)
    sweep = Workshop(tmp_path).start("large", verb="sweep")
    with Ended(sweep):
        output, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 2, output
    assert "trial 001: placement.policy (each actor 4096 CPU): does not fit" in output
    assert not list(tmp_path.glob("runs/large/trials/*/commits"))  # not even the one that fits
