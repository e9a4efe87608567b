"""What is made of the folders that trials leave. The folders are written by hand; no Ray is started."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from matplotlib.figure import Figure
from rich.console import Console

from raylign.config import load_config
from raylign.config.search_space import Sweep, load_sweep
from raylign.errors import UserError
from raylign.tuning import folders, plots
from raylign.tuning.plots import plot_sweep, with_unit
from raylign.tuning.results import best_record, format_value, load_records, results_table, short_key, write_results
from tests.unit.config.test_sweep import DPO, PPO

RUN = PPO | {"evaluation": {"data": {"path": "task:eval_prompts"}, "every_steps": 2}}
SEARCH = {
    "algorithm.kl.coef": {"loguniform": [0.01, 1.0]},
    "algorithm.optimizer.learning_rate": {"grid": [1e-5, 1e-4, 1e-3]},
    "algorithm.kl.estimator": {"grid": ["k1", "k3"]},
}


def make(folder: Path, metric: str = "evaluation/score", mode: str = "max") -> Sweep:
    (folder / "ppo.yaml").write_text(yaml.safe_dump(RUN))
    sweep = {"name": "many", "run": "ppo.yaml", "search": SEARCH, "trials": 3, "metric": metric, "mode": mode}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return load_sweep(folder / "sweep.yaml")


def leave(sweep: Sweep, folder: Path) -> None:
    """Trials that ended in every way: 000 failed, 001 was stopped early, 002 never began, 003 diverged, others finished."""
    folders.prepare(folder, {point.id: point.config for point in sweep.trials}, resume=False)
    for i, point in enumerate(sweep.trials):
        place = folders.trial_folder(folder, point.id)
        if i == 2:
            continue
        last = 3 if i == 1 else 9
        goal = i / len(sweep.trials) - abs(math.log10(point.values["algorithm.kl.coef"]) + 1) / 4
        with (place / "metrics.jsonl").open("w") as file:
            for step in range(1, last + 1):
                score = None if i == 3 else goal * (1 - math.exp(-step / 3))
                row = {"step": step, "time": 1.0 * step, "reward/mean": goal}
                file.write(json.dumps(row | ({"evaluation/score": score} if step % 2 == 0 else {})) + "\n")
        if i == 0:
            (place / folders.ERROR).write_text(json.dumps({"error": "RuntimeError: broken"}))
        elif i == 1:
            (place / folders.STOPPED).write_text(json.dumps({"reason": "stopped early", "step": last}))
        else:
            summary = {"score_before": 0.0, "score_after": goal, "kl": 2.0 * i, "wall_seconds": 60.0 + i}
            (place / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize(("metric", "mode"), [("evaluation/score", "max"), ("score_after", "min")])
def test_a_row_a_trial_the_best_config_and_pictures(tmp_path, metric, mode):
    sweep, folder = make(tmp_path, metric, mode), tmp_path / "runs"
    leave(sweep, folder)
    rows = load_records(sweep, folder)
    assert [row.status for row in rows[:5]] == ["failed", "stopped early", "new", "finished", "finished"]
    finished = [row for row in rows if row.status == "finished" and row.metric is not None]
    best = best_record(rows, mode)
    assert best is not None
    assert best.metric == (max if mode == "max" else min)(row.metric for row in finished if row.metric is not None)
    files = [*write_results(sweep, rows, folder), *plot_sweep(sweep, rows, folder)]
    assert [file.name for file in files] == [
        "results.parquet",
        "best.yaml",
        "metric_by_parameter.png",
        "learning_curves.png",
        "parallel_coordinates.png",
    ]
    assert all(file.stat().st_size > 100 for file in files)
    assert not list(folder.glob(".*"))
    table = pq.read_table(folder / "results.parquet").to_pylist()
    assert len(table) == len(sweep.trials) == 18
    assert table[4]["algorithm.kl.coef"] == sweep.trials[4].values["algorithm.kl.coef"]
    assert table[4]["algorithm.kl.estimator"] in ("k1", "k3")
    assert (table[0]["error"], table[2]["metric"], table[2]["step"]) == ("RuntimeError: broken", None, None)
    chosen = load_config(folder / "best.yaml")
    assert chosen.algorithm == next(point.config.algorithm for point in sweep.trials if point.id == best.id)
    text = Console(width=200)
    with text.capture() as shown:
        text.print(results_table(sweep, rows))
    lines = shown.get().splitlines()
    assert best.id in lines[3]  # the best stands first
    assert "failed: RuntimeError: broken" in shown.get()
    narrow = Console(width=60)
    with narrow.capture() as folded:
        narrow.print(results_table(sweep, rows))
    assert "…" not in folded.get(), "what does not fit is folded, not cut"


def test_trials_of_two_algorithms_are_all_drawn_though_no_trial_has_every_key(tmp_path, monkeypatch):
    for name, run in (("ppo", RUN), ("dpo", DPO)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(run))
    search = {
        "algorithm.kl.coef": {"grid": [0.02, 0.1], "when": {"run": "ppo.yaml"}},
        "algorithm.beta": {"grid": [0.1, 0.3], "when": {"run": "dpo.yaml"}},
        "seed": {"grid": [0, 1]},
    }
    tree = {"name": "both", "run": ["ppo.yaml", "dpo.yaml"], "search": search, "metric": "score_after"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    sweep, folder = load_sweep(tmp_path / "sweep.yaml"), tmp_path / "runs"
    folders.prepare(folder, {point.id: point.config for point in sweep.trials}, resume=False)
    for i, point in enumerate(sweep.trials):
        place = folders.trial_folder(folder, point.id)
        metric = "dpo/loss" if point.config.algorithm.name == "dpo" else "reward/mean"
        (place / "metrics.jsonl").write_text("".join(json.dumps({"step": s, metric: s / 9}) + "\n" for s in (1, 2)))
        summary = {"score_before": 0.0, "score_after": float(i), "kl": 1.0, "wall_seconds": 9.0}
        (place / "summary.json").write_text(json.dumps(summary))
    pictures: dict[str, Figure] = {}
    monkeypatch.setattr(plots, "_save", lambda figure, file: pictures.setdefault(file.stem, figure))
    plot_sweep(sweep, load_records(sweep, folder), folder)
    learning, parallel = pictures["learning_curves"].axes, pictures["parallel_coordinates"].axes[0]
    assert [(axes.get_ylabel(), len(axes.get_lines())) for axes in learning] == [
        ("reward/mean (score)", 4),
        ("dpo/loss", 4),
    ]
    lines = [
        line for line in parallel.get_lines() if len(np.asarray(line.get_xdata())) == 5
    ]  # four keys and the metric
    assert len(lines) == len(sweep.trials) == 8
    below = [int((np.asarray(line.get_ydata(), dtype=float) < 0).sum()) for line in lines]
    assert below == [1] * 8, "each is without the other algorithm's key"
    assert [text.get_text() for text in parallel.texts].count("not set") == 2


def test_a_trial_is_gone_on_with_only_if_it_is_the_same(tmp_path):
    sweep = make(tmp_path)
    trials = {point.id: point.config for point in sweep.trials[:2]}
    folders.prepare(tmp_path / "runs", trials, resume=False)
    folders.prepare(tmp_path / "runs", trials, resume=True)
    with pytest.raises(UserError, match="has trials already; continue them"):
        folders.prepare(tmp_path / "runs", trials, resume=False)
    other = trials | {"001": trials["001"].model_copy(update={"seed": 3})}
    with pytest.raises(UserError, match=r"trial 001: seed \(0 -> 3\) differs from the trial in"):
        folders.prepare(tmp_path / "runs", other, resume=True)


def test_names_are_as_short_as_they_can_be():
    keys = ["algorithm.optimizer.learning_rate", "algorithm.critic.optimizer.learning_rate", "seed"]
    assert short_key(keys[2], keys) == "seed"
    assert short_key(keys[1], keys) == "critic.optimizer.learning_rate"
    assert short_key(keys[0], keys[::2]) == "optimizer.learning_rate"
    assert short_key("algorithm.beta", ["algorithm.beta"]) == "beta"
    assert [format_value(v) for v in (None, 1 / 3, 5e-4, "../recipes/ppo.yaml", {"name": "dpo"})] == [
        "-",
        "0.3333",
        "0.0005",
        "ppo.yaml",
        "dpo",
    ]
    assert with_unit("kl/k1") == "kl/k1 (nats per sequence)"
    assert with_unit("kl/coef") == "kl/coef"
