"""Algorithms against the exact optimum, through the command line, the controller and its actors."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.small_runs import RAYLIGN

BETAS = (1.0, 0.3, 0.1)


def compare(folder: Path, *arguments: str, timeout: float) -> list[dict[str, Any]]:
    """The rows of `raylign compare`."""
    file = folder / "rows.json"
    command = [str(RAYLIGN), "compare", "--output-dir", str(folder / "runs"), "--json", str(file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


def lowest(rows: list[dict[str, Any]]) -> dict[tuple[str, float], float]:
    """Lowest fraction over the seeds, by algorithm and beta."""
    found: dict[tuple[str, float], float] = {}
    for row in rows:
        key = row["algorithm"], row["beta"]
        found[key] = min(found.get(key, 2.0), row["fraction_of_optimum"])
    return found


@pytest.mark.timeout(400)
def test_a_small_comparison_from_the_command_line(tmp_path):
    small = ["task.vocab_size=3", "task.length=2", "task.num_prompts=2", "task.seed=4"]
    fast = ["--algorithms", "rloo,dpo", "--betas", "0.5", "--seeds", "3", "--pairs", "300"]
    rows = compare(tmp_path, *fast, *small, timeout=380)
    assert [(r["algorithm"], r["beta"], r["seed"]) for r in rows] == [("rloo", 0.5, 3), ("dpo", 0.5, 3)]
    for row in rows:
        assert row["J"] == pytest.approx(row["reward"] - row["beta"] * row["kl"])
        assert row["fraction_of_optimum"] == pytest.approx((row["J"] - row["J_ref"]) / (row["J_star"] - row["J_ref"]))
        assert row["J"] <= row["J_star"]
        assert (Path(row["policy"]) / "model.safetensors").is_file()
        assert Path(row["config"]).is_file()
    assert lowest(rows)["rloo", 0.5] > 0.97  # 150 steps are many for a world of nine completions
    (folder,) = (tmp_path / "runs").glob("compare-exact-*")
    assert (folder / "frontier.png").stat().st_size > 10_000


ONLINE_BARS = {"ppo": 0.99, "rloo": 0.985, "grpo": 0.985, "reinforce++": 0.985}


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("algorithm", ONLINE_BARS)
def test_policy_gradients_reach_the_optimum(tmp_path, algorithm):
    found = lowest(compare(tmp_path, "--algorithms", algorithm, "--seeds", "0,1,2", timeout=5000))
    assert {beta: fraction for (_, beta), fraction in found.items() if fraction < ONLINE_BARS[algorithm]} == {}


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("variant", ["terminal", "eos"])
def test_ppo_holds_its_bar_in_the_other_variants(tmp_path, variant):
    found = lowest(compare(tmp_path, "--algorithms", "ppo", f"task.variant={variant}", timeout=5000))
    assert {beta: fraction for (_, beta), fraction in found.items() if fraction < 0.99} == {}


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_online_dpo_follows_where_offline_dpo_cannot(tmp_path):
    found = lowest(compare(tmp_path, "--algorithms", "dpo,online_dpo", timeout=5000))
    assert found["dpo", 1.0] >= 0.95
    assert found["online_dpo", 1.0] >= 0.95
    assert found["online_dpo", 0.3] >= 0.95
    assert found["online_dpo", 0.1] >= 0.85
    assert found["dpo", 0.1] < found["online_dpo", 0.1] - 0.05


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_ten_times_the_pairs_bring_dpo_nearer(tmp_path):
    few, many = (
        lowest(compare(tmp_path, "--algorithms", "dpo", "--betas", "1.0", "--seeds", "0", "--pairs", n, timeout=5000))
        for n in ("20000", "200000")
    )
    assert many["dpo", 1.0] >= 0.975
    assert many["dpo", 1.0] > few["dpo", 1.0]
