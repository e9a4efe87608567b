"""Whatever dies in a sweep, the table is the one of a sweep that nothing disturbed, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray._private import state as ray_state
from ray.util.placement_group import placement_group_table

from raylign.config.search_space import load_sweep
from raylign.tuning.sweep import sweep
from tests.integration.own_ray import own_ray
from tests.integration.simulated import simulated, until
from tests.integration.small_runs import Ended, Workshop, family, left_behind, newest_commit, wait_for
from tests.integration.small_sweeps import RATES, table, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 30  # long enough to be killed in
SECONDS = 600.0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The table that every other one must equal, number for number."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_sweep(folder, "whole", STEPS, RATES)
    finish(Workshop(folder).start("whole", verb="sweep"))
    rows = table(folder / "runs" / "whole")
    assert [row["status"] for row in rows] == ["finished"] * len(RATES)
    assert len({row["metric"] for row in rows}) == len(RATES)
    return rows


def finish(process: subprocess.Popen[str]) -> str:
    with Ended(process):
        output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    return output


def trial(folder: Path, number: int) -> Path:
    return folder / "trials" / f"{number:03d}"


def named(processes: list[psutil.Process], part: str) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and part in " ".join(p.cmdline())]


def on_cluster(address: str, env: dict[str, str]) -> str:
    """Living actors and placement groups of a cluster, as one line; asked in a process of its own."""
    ask = (
        "import ray, sys; from ray._private import state as s; from ray.util.placement_group import placement_group_table as t\n"
        "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
        "print([a['ActorClassName'] for a in s.actors().values() if a['State'] != 'DEAD'],"
        " [g['state'] for g in t().values() if g['state'] != 'REMOVED'])"
    )
    command = [sys.executable, "-c", ask, address]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True).stdout.strip()


def test_a_killed_driver_is_gone_on_with_and_leaves_nothing_on_the_cluster(tmp_path, undisturbed, monkeypatch):
    """On a cluster that outlives the driver, so that what it had there must be freed."""
    write_sweep(tmp_path, "killed", STEPS, RATES)
    folder = tmp_path / "runs" / "killed"
    with own_ray() as cluster:
        for key, value in {**cluster.env, "RAY_ADDRESS": cluster.address}.items():
            monkeypatch.setenv(key, value)
        first = Workshop(tmp_path).start("killed", verb="sweep")
        with Ended(first):
            done = lambda: list(folder.glob("trials/*/summary.json"))  # noqa: E731
            wait_for(lambda: done() and newest_commit(trial(folder, 2)) >= 2, SECONDS, "a trial done, one begun", first)
            os.kill(first.pid, signal.SIGKILL)
            first.wait(20)
        finished = {file: file.stat().st_mtime_ns for file in done()}
        assert 1 <= len(finished) < len(RATES)
        until(lambda: on_cluster(cluster.address, cluster.env) == "[] []", 60, "free cluster")
        begun = newest_commit(trial(folder, 2))
        output = finish(Workshop(tmp_path).start("killed", verb="sweep", resume=True))
        assert on_cluster(cluster.address, cluster.env) == "[] []"
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert "trial 002: started" in output
    assert "trial 000: started" not in output
    assert begun >= 2
    assert table(folder) == undisturbed


@pytest.mark.parametrize("victim", ["ImplicitFunc", "OfflineLearnerActor"])
def test_a_killed_trial_or_learner_goes_on_from_its_commit(tmp_path, undisturbed, victim):
    write_sweep(tmp_path, "hurt", STEPS, RATES)
    folder = tmp_path / "runs" / "hurt"
    process = Workshop(tmp_path).start("hurt", verb="sweep")
    with Ended(process):
        wait_for(lambda: newest_commit(trial(folder, 0)) >= 2, SECONDS, "commit 2", process)
        all_of_it = family(process.pid)
        dead = named(all_of_it, victim)
        assert dead, [" ".join(p.cmdline()) for p in all_of_it]
        os.kill(dead[0].pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert left_behind(all_of_it) == []
    assert table(folder) == undisturbed


@pytest.mark.own_process
def test_a_lost_node_costs_its_trials_a_try_and_nothing_else(tmp_path, undisturbed):
    write_sweep(tmp_path, "lost", STEPS, RATES, max_failures=2)
    folder = tmp_path / "runs" / "lost"
    with simulated(tmp_path, num_cpus=0) as cluster:  # the head has no room for trials
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
        lost: list[Any] = []

        def lose() -> None:
            until(lambda: any(newest_commit(trial(folder, n)) >= 2 for n in range(3)), SECONDS, "commit 2")
            cluster.remove_node(nodes[0], allow_graceful=False)
            lost.append(nodes[0])

        thread = threading.Thread(target=lose, daemon=True)
        thread.start()
        result = sweep(load_sweep(tmp_path / "lost.yaml"), quiet=True)
        thread.join(10)
        assert lost
        assert table(result.folder) == undisturbed
        until(lambda: not alive(), 60, "end of all actors")
        assert [g["state"] for g in placement_group_table().values() if g["state"] != "REMOVED"] == []
        assert len([n for n in ray.nodes() if n["Alive"]]) == 2


def alive() -> list[str]:
    return [a["ActorClassName"] for a in ray_state.actors().values() if a["State"] != "DEAD"]
