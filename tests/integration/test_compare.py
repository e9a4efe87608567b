"""A whole comparison from the command line: two methods, matched, costed, and reported; done once."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from raylign.compare.exact.scores import optimum_curve
from raylign.compare.records import read_records
from tests.integration.small_runs import RAYLIGN, Ended, Workshop

FAST = {"rollout.engine": "transformers", "model.dropout": False}


def write_spec(folder: Path, output: Path, **changes: Any) -> Path:
    spec = folder / f"{changes['name']}.yaml"
    tree = {
        "output_dir": str(output),
        "methods": [
            {"name": "ppo", "run": "ppo.yaml", "overrides": {"algorithm.kl": {"coef": 0.05}}},
            {"name": "dpo", "run": "dpo.yaml"},
        ],
        "betas": [0.1],
        "seeds": [0],
        "budget": {"unit": "optimizer_steps", "amount": 4},
        "overrides": FAST,
        "price_per_device_hour": 1.0,
    }
    spec.write_text(yaml.safe_dump(tree | changes))
    return spec


def compare(spec: Path) -> str:
    process = subprocess.Popen(
        [RAYLIGN, "compare", str(spec)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=spec.parent,
        start_new_session=True,
    )
    with Ended(process):
        output, _ = process.communicate(timeout=800)
    assert process.returncode == 0, output
    return output


@pytest.mark.timeout(600)
def test_a_small_comparison_ends_in_a_report_of_two_seeds(workshop: Workshop, tmp_path: Path):
    compare(write_spec(workshop.folder, tmp_path, name="small", seeds=[0, 1]))
    (folder,) = tmp_path.glob("compare-small-*")
    rows = json.loads((folder / "rows.json").read_text())
    assert sorted((row["method"], row["seed"], row["optimizer_steps"]) for row in rows) == [
        (method, seed, 4) for method in ("dpo", "ppo") for seed in (0, 1)
    ]
    assert all(row["error"] is None for row in rows)
    report = (folder / "report.md").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\((figures/[^)]+)\)", report)
    assert len(pictures) >= 6
    for picture in pictures:
        assert (folder / picture).stat().st_size > 5_000
        assert (folder / picture).with_suffix(".svg").exists()
    for claim in ("DPO is faster and lighter than RLHF", "DPO can outperform RLHF on summarization"):
        assert claim in report
    assert "these runs are not on summarize" in report
    assert "one seed" not in report
    html = (folder / "report.html").read_text()
    assert html.count("data:image/") >= len(pictures)
    assert "http" not in html


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ppo_dpo_and_best_of_n_from_spec_to_report(workshop: Workshop, tmp_path: Path):
    best = {"name": "best", "run": "ppo.yaml", "best_of": [3]}
    ppo = {"name": "ppo", "run": "ppo.yaml", "overrides": {"algorithm.kl": {"coef": 0.05}}}
    spec = write_spec(
        workshop.folder,
        tmp_path,
        name="whole",
        methods=[ppo, {"name": "dpo", "run": "dpo.yaml"}, best],
        budget={"unit": "optimizer_steps", "amount": 8},
        evaluation={"every_steps": 1},
    )
    compare(spec)
    (folder,) = tmp_path.glob("compare-whole-*")
    rows = {row["method"]: row for row in json.loads((folder / "rows.json").read_text())}
    assert set(rows) == {"ppo", "dpo", "best"}
    for row in rows.values():
        assert row["error"] is None
        assert len(row["before"]) == len(row["after"]) == 16, "every held-out prompt keeps its sample"
        assert [s["prompt"] for s in row["after"]] == [s["prompt"] for s in row["before"]]
        assert row["cost"]["flops"] > 0
        assert row["cost"]["learning_device_seconds"] > 0
        assert row["stages"][0]["name"].startswith("sft-")
    ppo, dpo, best = (rows[name] for name in ("ppo", "dpo", "best"))
    assert (ppo["optimizer_steps"], dpo["optimizer_steps"]) == (8, 8)
    assert {sample["prompt"] for sample in ppo["after"]} == {sample["prompt"] for sample in best["after"]}
    assert ppo["before"] == dpo["before"], "the same start, prompts and seed give the same completions"
    assert (ppo["cost"]["model_copies"], dpo["cost"]["model_copies"]) == (4, 2)
    assert set(dpo["cost"]["device_seconds"]) == {"policy", "reference", "rollout", "evaluator"}
    assert len([point for point in ppo["curve"] if point["score"] is not None]) == 3  # before, on the way, after
    assert best["score_after"] > best["score_before"]
    html = (folder / "report.html").read_text()
    assert "inconclusive" in html  # of one seed nothing is concluded
    assert "http" not in html

    made = {file: file.stat().st_mtime_ns for file in folder.glob("trials/*/summary.json")}
    assert len(made) == 3
    (folder / "report.html").unlink()
    compare(spec)  # nothing is left to run, and the report is written anew
    assert (folder / "report.html").exists()
    assert {file: file.stat().st_mtime_ns for file in folder.glob("trials/*/summary.json")} == made


EXACT = {
    "model": {"path": "task:model", "compute_dtype": "float32"},
    "data": {"path": "task:prompts"},
    "reward": {"type": "task"},
    "evaluation": {"data": {"path": "task:prompts"}, "reward": {"type": "task"}},
    "rollout": {"engine": "transformers", "sampling": {"max_tokens": 2}},
    "learner": {"micro_batch_tokens": 8192},
}
RLOO = {"name": "rloo", "prompts_per_step": 32, "samples_per_prompt": 8, "epochs": 2, "minibatches": 2}
ONLINE_DPO = {"name": "online_dpo", "prompts_per_step": 400, "epochs": 1, "minibatches": 2}
FASTER = {"optimizer": {"learning_rate": 1e-3, "schedule": "linear"}}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_methods_on_the_exact_task_come_near_the_curve_of_the_best_policies(tmp_path: Path):
    algorithms = {"rloo": {**RLOO, "steps": 30}, "online_dpo": {**ONLINE_DPO, "steps": 60}}
    for name, algorithm in algorithms.items():
        (tmp_path / f"{name}.yaml").write_text(
            yaml.safe_dump({"name": name, **EXACT, "algorithm": {**algorithm, **FASTER}})
        )
    spec = write_spec(
        tmp_path,
        tmp_path / "runs",
        name="exact",
        task={"name": "exact", "vocab_size": 3, "length": 2, "num_prompts": 2, "seed": 4},
        methods=[{"name": name, "run": f"{name}.yaml"} for name in algorithms],
        betas=[0.3, 1.0],
        budget={"unit": "optimizer_steps", "amount": 120},
        overrides={},
    )
    compare(spec)
    (folder,) = (tmp_path / "runs").glob("compare-exact-*")
    rows = read_records(folder / "rows.json")
    assert len(rows) == 4
    kls, scores = (np.array(column) for column in zip(*sorted(optimum_curve(rows)), strict=True))
    for row in rows:
        assert row.kl is not None
        best = float(np.interp(row.kl, kls, scores))
        assert row.score_after <= best + 0.01, (
            f"{row.id}: nothing is above the best (chords of the curve are 0.01 below it)"
        )
        assert row.score_after - row.score_before > 0.95 * (best - row.score_before), row.id
