"""Inspect a cluster from a driver: `python -m raylign.actors.probe`, a process of its own, because attaching to a cluster
that refuses us may take minutes, and only a process can be ended.

    stdin    {"address", "folder", "seconds"}
    stdout   one line, {"nodes": [...], "silent": {...}} (see `look_over`), or {"problem": text} where attaching failed

The tasks on the nodes take no GPU and no CPU of Ray's count, so that a busy cluster answers too.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.cloudpickle import register_pickle_by_value
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylign.actors import node_facts
from raylign.actors.session import ray_session
from raylign.errors import UserError

_HEAD = "node:__internal_head__"  # a resource that the head alone has


def look_over(folder: str, seconds: float) -> dict[str, Any]:
    """Return the facts of every node, in the Ray session of this process.

    Args:
        folder: each node and the driver briefly leave a file here for the others to find; empty: none.
        seconds: for all nodes to answer.
    Returns:
        `nodes`: `node_facts.inspect_node` of each that answered, and `name`, `driver_sees` (its file),
        `num_gpus` and `object_store` (that Ray counts there), `clock` (seconds it is ahead of the driver) and
        `clock_error` (its uncertainty, from the round trip); the last two are None if the call took too long.
        `silent`: why the others did not, by name.
    """
    register_pickle_by_value(node_facts)  # a node may have another raylign, or none
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    names = {node: f"{of['NodeManagerHostname']} ({of['NodeManagerAddress']})" for node, of in alive.items()}
    seal = uuid.uuid4().hex
    dashboard = (_internal_kv_get("dashboard", namespace=b"dashboard") or b"").decode()
    peers = [(names[node], of["NodeManagerAddress"], of["NodeManagerPort"]) for node, of in alive.items()]
    calls = {n: (n, folder, seal, peers, dashboard if _HEAD in of["Resources"] else "") for n, of in alive.items()}
    try:
        if folder:
            Path(folder, node_facts.marker_name(seal, "driver")).write_text(seal)
        said, silent = _ask(node_facts.inspect_node, calls, seconds)
        seen = {
            n: bool(folder) and node_facts.wait_for_file(Path(folder, node_facts.marker_name(seal, n)), seal)
            for n in said
        }
        clocks = {n: _clock(n, folder, seal) for n in said}  # one after the other, so that no call waits in a queue
    finally:
        for file in Path(folder).glob(node_facts.marker_name(seal, "*")) if folder else ():
            file.unlink(missing_ok=True)
    nodes = [
        {
            **said[node],
            "name": names[node],
            "driver_sees": seen[node],
            "num_gpus": alive[node]["Resources"].get("GPU", 0.0),
            "object_store": alive[node]["Resources"].get("object_store_memory", 0.0),
            "clock": clocks[node][0],
            "clock_error": clocks[node][1],
        }
        for node in said
    ]
    return {"nodes": nodes, "silent": {names[node]: reason for node, reason in silent.items()}}


def _ask(what: Any, calls: Mapping[str, tuple[Any, ...]], seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Run a function on each node; returns its results, and the reasons where there is none, by node id."""
    refs = {node: _on(node, what).remote(*arguments) for node, arguments in calls.items()}
    ready, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=seconds)
    said, silent = {}, {}
    for node, ref in refs.items():
        if ref not in ready:
            silent[node] = f"no answer in {seconds:g} s"
            ray.cancel(ref, force=True)
            continue
        try:
            said[node] = ray.get(ref)
        except RayError as e:
            silent[node] = str(e).strip().splitlines()[-1]
    return said, silent


def _clock(node: str, folder: str, seal: str, seconds: float = 10.0) -> tuple[float | None, float | None]:
    """Return how many seconds the node is ahead, and the error of that; its worker is warm from `inspect_node`."""
    sent = time.time()
    said, _ = _ask(node_facts.clean_up, {node: (node, folder, seal)}, seconds)
    back = time.time()
    return (said[node] - (sent + back) / 2, (back - sent) / 2) if said else (None, None)


def _on(node: str, what: Any) -> Any:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(what).options(scheduling_strategy=there)


def main() -> None:
    request = json.load(sys.stdin)
    os.environ["RAY_ADDRESS"] = request["address"]
    try:
        with ray_session():
            answer = look_over(request["folder"], request["seconds"])
    except UserError as e:
        answer = {"problem": str(e)}
    print(json.dumps(answer))  # noqa: T201 (the answer is what stdout is for)


if __name__ == "__main__":
    main()
