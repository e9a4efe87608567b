"""A cluster on one machine: several raylets with as many GPUs as we say they have, and nothing left of it afterwards."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from tests.integration.fake_engine import LOG
from tests.integration.small_runs import left_behind

MEMORY = 80 * 2**20  # bytes of each node's object store


@contextmanager
def simulated(log: Path, **head: Any) -> Iterator[Cluster]:
    """A cluster of one node, with this driver attached; `log` is where fake engines write. At the end nothing runs."""
    before = set(psutil.Process().children(recursive=True))
    folder = tempfile.mkdtemp(prefix="ray")  # pytest's own folders are too deep for a socket's name
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        environment = {
            LOG: str(log),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_prestart_worker_first_driver": "0",
            "HF_HUB_OFFLINE": "1",
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        cluster = Cluster()
        ours: list[psutil.Process] = []
        try:
            cluster.add_node(include_dashboard=False, temp_dir=folder, object_store_memory=MEMORY, **head)
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            yield cluster
            ours = [p for p in psutil.Process().children(recursive=True) if p not in before]
            # Actors of a node that was taken away are nobody's children.
            ours += [p for file in log.glob("*.jsonl") for p in actor_process(int(file.stem))]
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
    assert left_behind(ours) == []


def actor_process(pid: int) -> list[psutil.Process]:
    """The process that had this number when an engine wrote its records, if it still runs."""
    try:
        process = psutil.Process(pid)
        return [process] if "Actor" in " ".join(process.cmdline()) else []
    except psutil.Error:  # gone, or dead and not yet reaped by whoever adopted it
        return []


def spot_node(cluster: Cluster, num_gpus: int) -> Any:
    """A node with room for engines alone."""
    return cluster.add_node(num_cpus=1, num_gpus=num_gpus, object_store_memory=MEMORY)


def records(log: Path) -> list[dict[str, Any]]:
    """What the fake engines wrote, each with the pid of its engine."""
    return [{"pid": f.stem, **json.loads(line)} for f in sorted(log.glob("*.jsonl")) for line in f.open()]


def until(condition: Callable[[], Any], timeout: float, what: str) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout:g} s"
        time.sleep(0.05)
