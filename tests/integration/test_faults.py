"""Ctrl-C, dead actors and too small clusters: nothing is lost and nothing is left running."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.integration.small_runs import Ended, family, hashes, interrupt, left_behind, metrics, newest_commit, wait_for

TRANSFORMERS = "rollout.engine=transformers"


@pytest.mark.parametrize("name", ["ppo", "dpo"])
@pytest.mark.timeout(600)
def test_one_ctrl_c_saves_and_leaves_nothing_running(workshop, name):
    run = f"{name}_interrupted"
    steps = 40 if name == "ppo" else 4
    more = [f"algorithm.steps={steps}"] if name == "ppo" else ["algorithm.epochs=40"]
    process = workshop.start(name, f"name={run}", TRANSFORMERS, *more)
    folder = workshop.folder / "runs" / run
    with Ended(process):
        wait_for(lambda: (folder / "metrics.jsonl").exists() and metrics(folder), 300, "first step", process)
        children = family(process.pid)
        interrupt(process)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "--resume" in output.splitlines()[-1]
    assert left_behind(children) == []
    assert newest_commit(folder) == metrics(folder)[-1]["step"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("actor", "redone"), [("RolloutActor", "replaced"), ("PolicyActor", None)])
def test_an_actor_that_dies_changes_nothing_in_the_result(workshop, actor, redone):
    """A dead engine is replaced and synced; a dead learner takes the run back to its last commit."""
    overrides = [TRANSFORMERS, "checkpoint.every_steps=1", "algorithm.steps=6"]
    whole = workshop.run("ppo", "name=ppo_alive", *overrides, resume=True)
    run = f"ppo_without_{actor}"
    process = workshop.start("ppo", f"name={run}", *overrides)
    folder = workshop.folder / "runs" / run
    with Ended(process):
        wait_for(lambda: newest_commit(folder) >= 2, 300, "commit 2", process)
        victim = next(p for p in family(process.pid) if actor in " ".join(p.cmdline()))
        os.kill(victim.pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert redone is None or redone in output
    assert hashes(folder) == hashes(whole)
    assert [row["step"] for row in metrics(folder)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_learner_rank_that_dies_takes_the_run_back_to_its_commit(workshop):
    """Whichever rank dies, and whatever the other one says of it first."""
    two = ["placement.policy.num_actors=2", "placement.policy.num_cpus=0.25", "placement.policy.num_threads=1"]
    overrides = [TRANSFORMERS, *two, "checkpoint.every_steps=1", "algorithm.steps=12"]
    whole = workshop.run("ppo", "name=ppo_ranks", *overrides, resume=True, timeout=400)
    process = workshop.start("ppo", "name=ppo_rank_lost", *overrides)
    folder = workshop.folder / "runs" / "ppo_rank_lost"
    with Ended(process):
        for commit, victim in ((2, -1), (6, 0)):
            wait_for(lambda commit=commit: newest_commit(folder) >= commit, 300, f"commit {commit}", process)
            ranks = [p.pid for p in family(process.pid) if "PolicyActor" in " ".join(p.cmdline())]
            assert len(ranks) == 2
            os.kill(sorted(ranks)[victim], signal.SIGKILL)
        output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert hashes(folder) == hashes(whole)
    assert [row["step"] for row in metrics(folder)] == list(range(1, 13))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_past_the_failure_budget_the_run_ends_with_a_whole_commit(workshop):
    run = "ppo_no_budget"
    overrides = [TRANSFORMERS, "checkpoint.every_steps=1", "algorithm.steps=20", "limits.max_failures=0"]
    process = workshop.start("ppo", f"name={run}", *overrides)
    folder = workshop.folder / "runs" / run
    with Ended(process):
        wait_for(lambda: newest_commit(folder) >= 1, 300, "commit 1", process)
        children = family(process.pid)
        victim = next(p for p in children if "ReferenceActor" in " ".join(p.cmdline()))
        os.kill(victim.pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "limits.max_failures" in output.splitlines()[-1]
    assert left_behind(children) == []
    assert newest_commit(folder) >= 1
    assert not (folder / "summary.json").exists()


@pytest.mark.timeout(120)
def test_a_cluster_that_is_too_small_is_refused_at_once(workshop):
    process = workshop.start("sft", "name=too_large", "placement.policy.num_gpus=2", "data.max_rows=50")
    with Ended(process):
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 2, output
    last = output.strip().splitlines()[-1]
    assert last.startswith("raylign: placement.policy")
    assert "2 GPU" in last
    assert json.dumps(output).count("Traceback") == 0
