"""200 trials of different shapes on a simulated cluster of 64 GPUs. Only what a trial does is fake (it sleeps); Tune, the
trainable, placement groups and folders are those of every sweep.

A trial's process costs about 3 s of CPU to start. Where 8 machines would share that, here two cores do it for all, and are the
bottleneck where many trials begin at once: with trials of equal length, which end and begin in waves, the bound does not hold
(docs/sweeps.md, "Measurements"). `pytest -s` shows the figures.
"""

from __future__ import annotations

import threading
import time

import pytest
import ray
from ray.util.placement_group import placement_group_table

from raylign import parse_config
from raylign.actors.waiting import Stop
from raylign.config import RunConfig
from raylign.tuning import folders
from raylign.tuning.experiment import Experiment
from raylign.tuning.listener import TrialListener
from raylign.tuning.size import check_sizes
from tests.integration.simulated import MEMORY, simulated, until
from tests.integration.sleeping_trial import sleeps
from tests.integration.test_sweep_faults import alive

NUM_TRIALS, NUM_NODES, GPUS_PER_NODE = 200, 8, 8
GPUS = NUM_NODES * GPUS_PER_NODE
SHAPES = (8, 4, 2, 6, 1, 3)  # GPUs of a trial


def config(number: int) -> RunConfig:
    return parse_config(
        {
            "name": f"{number:03d}",
            "task": {"name": "sentiment"},
            "model": {"path": "task:model"},
            "data": {"path": "task:corpus"},
            "algorithm": {"name": "sft"},
            "placement": {"policy": {"num_actors": SHAPES[number % len(SHAPES)], "num_cpus": 0.1, "num_gpus": 1}},
            "limits": {"placement": 600},
        }
    )


class Looks(TrialListener):
    """How many GPUs are reserved, several times a second, as long as trials wait for a place."""

    def __init__(self, num_trials: int) -> None:
        self.waiting, self.reserved, self.times = num_trials, [], []
        self._last = 0.0

    def started(self, trial: str) -> None:
        self.waiting -= 1

    def tick(self) -> None:
        if self.waiting and time.monotonic() - self._last > 0.5:
            self._last = time.monotonic()
            self.reserved.append(GPUS - ray.available_resources().get("GPU", 0.0))
            self.times.append(time.time())


@pytest.mark.slow
@pytest.mark.own_process
@pytest.mark.timeout(1500)
def test_200_trials_on_64_gpus_share_them_without_a_gap_or_a_deadlock(tmp_path):
    trials = {f"{n:03d}": config(n) for n in range(NUM_TRIALS)}
    folder = tmp_path / "sweep"
    folders.prepare(folder, trials, resume=False)
    with simulated(tmp_path, num_cpus=0) as cluster:
        for _ in range(NUM_NODES):
            cluster.add_node(num_cpus=4, num_gpus=GPUS_PER_NODE, object_store_memory=MEMORY, wait=False)
        until(lambda: ray.cluster_resources().get("GPU") == GPUS, 120, "all nodes")
        check_sizes(trials)
        looks, stop = Looks(NUM_TRIALS), Stop()
        deadline = threading.Timer(1300, stop.request)
        deadline.start()
        start = time.monotonic()
        Experiment(folder, trials, max_failures=0, stop=stop, listener=looks, work=sleeps).run()
        wall = time.monotonic() - start
        deadline.cancel()
        assert not stop.requested, f"{looks.waiting} trials still wait: a deadlock"
        until(lambda: not alive(), 60, "end of all actors")
        assert [g["state"] for g in placement_group_table().values() if g["state"] != "REMOVED"] == []
    done = [folders.read_outcome(folder, name).summary for name in trials]
    assert all(done)
    work = sum(one["gpus"] * (one["end"] - one["start"]) for one in done if one)  # GPU seconds
    overhead = (wall - work / GPUS) / NUM_TRIALS
    first_full = next(i for i, reserved in enumerate(looks.reserved) if reserved > 0.9 * GPUS)
    reserved = looks.reserved[first_full:]
    share = sum(reserved) / len(reserved) / GPUS
    begin, end = looks.times[first_full], looks.times[-1]
    worked = sum(one["gpus"] * max(0.0, min(end, one["end"]) - max(begin, one["start"])) for one in done if one)
    idle = (1 - share) * (end - begin) / NUM_TRIALS  # no GPU reserved though trials wait: the scheduler's part
    print(  # noqa: T201
        f"\n{NUM_TRIALS} trials in {wall:.0f} s, {overhead:.2f} s of the cluster's time each over their own work, {idle:.2f} s of it "
        f"without a place; GPUs reserved {share:.1%}, at work {worked / GPUS / (end - begin):.1%}"
    )
    assert overhead < 1.0
    assert share > 0.9
