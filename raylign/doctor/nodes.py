"""Evaluation of the facts that the nodes of a cluster report: pure functions from facts to findings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from raylign.doctor.dashboard import locked
from raylign.doctor.finding import GIB, Finding, gib

CLOCK_SECONDS = 2.0
MUST_AGREE = ("python", "ray", "raylign")
"""Packages whose versions must agree, or Ray does not connect or a node cannot unpickle what another pickled."""

Facts = Mapping[str, Any]


def read(nodes: list[Facts], silent: Mapping[str, str], here: Facts, output_dir: Path) -> Iterable[Finding]:
    """Return the findings about a cluster's nodes.

    Args:
        nodes, silent: facts of the nodes that answered, and reasons by the name of those that did not
            (`raylign.actors.probe`).
        here: versions of the driver's packages.
        output_dir: the folder that the driver and all nodes must share.
    """
    count = f"{len(nodes)} of {len(nodes) + len(silent)} node(s) answered"
    if silent:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in silent.items())
        fix = "look at the node (ray status, its raylet.log), or remove it from the cluster"
        yield Finding("cluster", "fail", f"{count}; {reasons}", fix)
    else:
        yield Finding("cluster", "ok", count)
    for node in nodes:
        yield from hardware(node)
    yield from agreement(nodes, here)
    yield from storage(nodes, output_dir)
    yield from clocks(nodes)
    yield from ports(nodes)
    yield from access(nodes)


def hardware(node: Facts) -> Iterable[Finding]:
    """Report a node's hardware, and check its memory and that Ray counts its GPUs correctly."""
    name, gpus = node["name"], node["gpus"]
    parts = [
        ", ".join(f"{g['name']} ({g['free'] / 1024:.0f} of {g['memory'] / 1024:.0f} GiB free)" for g in gpus)
        or "no GPU"
    ]
    if gpus:
        parts.append(f"driver {gpus[0]['driver']}")
    parts += [
        f"{gib(node[key])} {label}"
        for key, label in (("memory", "memory free"), ("shared_memory", "shared memory free"))
        if node[key] is not None
    ]
    parts.append(f"object store {gib(node['object_store'])}")
    yield Finding("node", "ok", f"{name}: {', '.join(parts)}")
    if node["num_gpus"] != len(gpus):
        fix = "start Ray there with --num-gpus, as many as nvidia-smi -L lists; if that lists none, fix the driver"
        yield Finding(
            "node gpus", "warn", f"{name}: Ray counts {node['num_gpus']:g} GPU(s), nvidia-smi {len(gpus)}", fix
        )
    busy = [str(i) for i, gpu in enumerate(gpus) if gpu["free"] < 0.9 * gpu["memory"]]
    if busy:
        detail = f"{name}: memory of GPU {', '.join(busy)} is in use"
        yield Finding("node gpus", "warn", detail, "end what uses it (nvidia-smi), unless it is your own run")
    if node["memory"] is not None and node["memory"] < 4 * GIB:
        fix = "stop programs there that are not needed, or use a larger machine"
        yield Finding("node memory", "warn", f"{name}: {gib(node['memory'])} free", fix)
    if node["shared_memory"] is not None and node["shared_memory"] < 2 * GIB:
        fix = (
            "make /dev/shm larger (docker run --shm-size, an emptyDir of medium Memory), or objects go through the disk"
        )
        yield Finding("node memory", "warn", f"{name}: {gib(node['shared_memory'])} shared memory free", fix)


def agreement(nodes: list[Facts], here: Facts) -> Iterable[Finding]:
    """Check the versions of every node against the driver's, which `check_machine` checks against the pins."""
    faults: list[Finding] = []
    for package, ours in here.items():
        others: dict[str | None, list[str]] = {}
        for node in nodes:
            theirs = node["versions"][package]
            # The CUDA and the CPU build of one version may mix: a head without GPUs is normal.
            if (theirs or "").partition("+")[0] != (ours or "").partition("+")[0]:
                others.setdefault(theirs, []).append(node["name"])
        for theirs, names in others.items():
            engine_only = package == "vllm" and (theirs is None or ours is None)
            status = "warn" if engine_only or (package not in MUST_AGREE and theirs is not None) else "fail"
            detail = f"{package} {theirs or 'is missing'} on {', '.join(names)}; the driver has {ours or 'none'}"
            fix = f"install {package} {ours} there" if ours else f"install {package} {theirs} here"
            faults.append(Finding("versions", status, detail, f"{fix}: one image, or one lock file, for all machines"))
    if faults:
        yield from faults
    else:
        agreed = ", ".join(f"{package} {version}" for package, version in here.items() if version)
        yield Finding("versions", "ok", f"all nodes and the driver agree: {agreed}")


def storage(nodes: list[Facts], output_dir: Path) -> Iterable[Finding]:
    """Check that the folder of the runs is shared: the driver and every node left files there for the others."""
    folder = writable(output_dir)
    if not folder:
        return  # already reported by `output`
    unwritable = [f"{node['name']} ({node['output']})" for node in nodes if node["output"]]
    if unwritable:
        fix = "mount the same storage on every node, or set output_dir to a folder that all can write to"
        yield Finding("storage", "fail", f"{folder} cannot be written on {', '.join(unwritable)}", fix)
    separate = [n["name"] for n in nodes if not n["output"] and not (n["sees_driver"] and n["driver_sees"])]
    if separate:
        fix = "mount shared storage (NFS, FSx, Filestore, a volume) there on every node, or set output_dir to a folder on it"
        yield Finding("storage", "fail", f"{folder} is another folder on {', '.join(separate)} than here", fix)
    if not unwritable and not separate:
        yield Finding("storage", "ok", f"{folder} is shared, and the driver and all nodes can write to it")


def clocks(nodes: list[Facts], allowed: float = CLOCK_SECONDS) -> Iterable[Finding]:
    """Check that the nodes' clocks differ from the driver's by at most `allowed` seconds."""
    unknown = [node["name"] for node in nodes if node["clock"] is None]
    wrong = [n for n in nodes if n["clock"] is not None and abs(n["clock"]) - n["clock_error"] > allowed]
    if wrong:
        offsets = ", ".join(f"{node['name']} by {node['clock']:+.1f} s" for node in wrong)
        yield Finding("clocks", "warn", f"differ from the driver's: {offsets}", "start chrony or ntpd there")
    elif unknown:
        yield Finding("clocks", "warn", f"unknown for {', '.join(unknown)}", "check the load of the node")
    else:
        worst = max((abs(node["clock"]) + node["clock_error"] for node in nodes), default=0.0)
        yield Finding("clocks", "ok", f"within {worst:.2f} s of the driver's")


def ports(nodes: list[Facts]) -> Iterable[Finding]:
    """Check that every node could open a connection to the raylet of every other node."""
    blocked = [f"{node['name']} to {', '.join(node['unreachable'])}" for node in nodes if node["unreachable"]]
    if blocked:
        fix = (
            "let the nodes reach each other on all ports (firewall, security group): Ray and torch choose theirs freely"
        )
        yield Finding("ports", "fail", f"no connection from {'; '.join(blocked)}", fix)
    else:
        yield Finding("ports", "ok", "every node reaches every other")


def access(nodes: list[Facts]) -> Iterable[Finding]:
    """Check that Ray and its dashboards ask for a token: anyone who can reach them can run code on the cluster."""
    open_nodes = [node["name"] for node in nodes if not node["token"]]
    secure = "export RAY_AUTH_MODE=token and one token (ray get-auth-token --generate) on every node, and restart Ray"
    if open_nodes:
        yield Finding("token", "warn", f"Ray asks for none on {', '.join(open_nodes)}", secure)
    else:
        yield Finding("token", "ok", "Ray asks for a token on every node")
    for node in nodes:
        if dashboard := node["dashboard"]:
            yield _dashboard(node["name"], dashboard, secure)


def _dashboard(name: str, dashboard: Facts, secure: str) -> Finding:
    public = [host for host in dashboard["hosts"] if not ip_address(host).is_loopback]
    where = f"{dashboard['address']} on {name}"
    if dashboard["status"] is None:
        return Finding("dashboard", "warn", f"{where} does not answer", "look into dashboard.log, if you need it")
    if locked(dashboard["status"]):
        return Finding("dashboard", "ok", f"{where} asks for a token")
    if public:
        detail = (
            f"{where} is open: it listens on {', '.join(public)}, and anyone who reaches it can run code on the cluster"
        )
        return Finding("dashboard", "fail", detail, f"start Ray with --dashboard-host=127.0.0.1, or {secure}")
    return Finding("dashboard", "ok", f"{where} asks for no token, but listens only on the loopback")


def writable(output_dir: Path) -> str:
    """Return the folder of the runs, or its nearest existing parent; empty if it is not writable."""
    place = output_dir.absolute()
    while not place.exists():
        place = place.parent
    return str(place) if place.is_dir() and os.access(place, os.W_OK) else ""
