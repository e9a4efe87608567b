"""Clusters that a test starts with `ray start`, as users do, and ends by the ids of its own processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.integration.free_ports import free_ports

RAY = Path(sys.executable).with_name("ray")
START_SECONDS = 120


class OwnRay:
    """A head and its nodes on this machine. `env` is what a process needs to be let in."""

    def __init__(self, token: str | None) -> None:
        # Not pytest's folder: the path of a Ray socket must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="own-ray-"))
        self.port, self.dashboard_port, *self._spare = free_ports(5)
        self.address = f"127.0.0.1:{self.port}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            self.env.pop(name, None)
        if token:
            file = self.folder / "token"
            file.write_text(token)
            self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}

    def start_head(self, dashboard_host: str) -> None:
        client, agent, agent_rpc = self._spare
        self._start(
            [
                "--head",
                f"--port={self.port}",
                f"--temp-dir={self.folder / 'ray'}",
                f"--ray-client-server-port={client}",
            ],
            [f"--dashboard-host={dashboard_host}", f"--dashboard-port={self.dashboard_port}"],
            [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_rpc}"],
        )

    def add_node(self, wrapper: Sequence[str] = ()) -> None:
        """Another raylet on this machine. `wrapper` is a command that runs the one behind it."""
        self._start([f"--address={self.address}", "--dashboard-agent-listen-port=0"], wrapper=wrapper)

    def _start(self, *options: list[str], wrapper: Sequence[str] = ()) -> None:
        common = ["--block", "--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=100000000"]
        ports = ["--min-worker-port=0", "--max-worker-port=0"]
        flat = [option for some in options for option in some]
        log = self.folder / f"start-{len(self._processes)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*wrapper, RAY, "start", *common, *ports, *flat], env=self.env, stdout=out, stderr=out
            )
        self._processes.append(process)
        deadline = time.monotonic() + START_SECONDS
        while "will now block forever" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"ray start did not come up:\n{log.read_text()}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End every process that was started here, and what those started."""
        mine: list[psutil.Process] = []
        for process in self._processes:
            if process.poll() is None:
                parent = psutil.Process(process.pid)
                mine += [parent, *parent.children(recursive=True)]
        for one in mine:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(mine, timeout=20)
        for process in self._processes:
            process.wait(timeout=20)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def own_ray(dashboard_host: str = "127.0.0.1", token: str | None = None) -> Iterator[OwnRay]:
    cluster = OwnRay(token)
    try:
        cluster.start_head(dashboard_host)
        yield cluster
    finally:
        cluster.stop()
