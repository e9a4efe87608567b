"""The doctor before real clusters: two nodes behind a token, one that is not let in, and one that is open to all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ray.cloudpickle import register_pickle_by_value, unregister_pickle_by_value
from ray.cloudpickle.cloudpickle import dumps

from raylign.actors import node_facts
from raylign.doctor.cluster import probe
from tests.integration.own_ray import OwnRay, own_ray

ROOT = Path(__file__).parents[2]


def doctor(cluster: OwnRay, folder: Path, address: str = "", **env: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code, and the findings by name."""
    file = folder.parent / "findings.json"
    command = [sys.executable, "-m", "raylign", "doctor", "--address", address or cluster.address]
    options = ["--output-dir", str(folder), "--json", str(file)]
    done = subprocess.run(
        [*command, *options],
        env={**cluster.env, **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(file.read_text()):
        found.setdefault(finding["name"], []).append(finding)
        assert finding["detail"] in done.stdout
    return done.returncode, found


def failed(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [finding["name"] for some in found.values() for finding in some if finding["status"] == "fail"]


def test_a_cluster_behind_a_token(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    with own_ray(token="a" * 64) as cluster:
        cluster.add_node()
        code, found = doctor(cluster, shared)
        assert (code, failed(found)) == (0, [])
        assert found["cluster"][0]["detail"] == "2 of 2 node(s) answered"
        assert len(found["node"]) == 2
        assert found["storage"][0]["status"] == found["ports"][0]["status"] == found["clocks"][0]["status"] == "ok"
        assert found["token"][0]["detail"] == "Ray asks for a token on every node"
        assert found["dashboard"][0]["detail"].endswith("asks for a token")

        url = f"http://127.0.0.1:{cluster.dashboard_port}"
        code, found = doctor(cluster, shared, address=url)
        assert (code, found["dashboard"][0]["detail"]) == (0, f"{url} asks for a token and accepts ours")

        started = time.monotonic()
        code, found = doctor(cluster, shared, RAY_AUTH_TOKEN="b" * 64)
        assert (code, failed(found)) == (1, ["cluster"])
        assert "refuses our token" in found["cluster"][0]["detail"]
        assert time.monotonic() - started < 60
    assert list(shared.iterdir()) == []


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0,
    reason="a node with storage of its own takes a mount namespace",
)
def test_an_open_cluster_whose_node_has_other_storage(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    own_storage = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {shared} && exec "$@"', "sh"]
    with own_ray(dashboard_host="0.0.0.0") as cluster:
        cluster.add_node(own_storage)
        code, found = doctor(cluster, shared)
        assert (code, sorted(failed(found))) == (1, ["dashboard", "storage"])
        assert "is another folder on" in found["storage"][0]["detail"]
        assert "it listens on 0.0.0.0" in found["dashboard"][0]["detail"]
        assert "--dashboard-host=127.0.0.1" in found["dashboard"][0]["fix"]
        assert found["token"][0]["status"] == "warn"


def test_what_nodes_run_needs_no_raylign_there():
    register_pickle_by_value(node_facts)
    try:
        sent = dumps((node_facts.inspect_node, ("node", "", "seal", [], "")))
    finally:
        unregister_pickle_by_value(node_facts)
    there = (
        "import sys; sys.modules['raylign'] = None; from ray import cloudpickle\n"
        "inspect_node, arguments = cloudpickle.load(sys.stdin.buffer); print(inspect_node(*arguments)['versions']['ray'])"
    )
    done = subprocess.run([sys.executable, "-c", there], input=sent, capture_output=True, timeout=120, check=True)
    assert done.stdout.decode().strip() == node_facts.version_of("ray")


def test_what_does_not_answer_in_time_is_ended():
    answer = probe("127.0.0.1:1", "", attach=0.2, ask=0.1)
    assert answer["problem"] == "cannot check it: no answer in 0.3 s"
