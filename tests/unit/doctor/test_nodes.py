"""What the doctor makes of the facts of a cluster: a healthy one has no fault, and each fault is found by name."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raylign.actors.node_facts import (
    cannot_connect,
    describe,
    inspect_node,
    marker_name,
    version_of,
    versions,
    wait_for_file,
)
from raylign.doctor.dashboard import check_dashboard
from raylign.doctor.finding import GIB, Finding
from raylign.doctor.nodes import read

HERE = {
    "python": "3.11.7",
    "raylign": "0.1.0",
    "ray": "2.60.0",
    "torch": "2.13.0",
    "transformers": "5.19",
    "vllm": "0.32.0",
}
H100 = {"name": "H100", "driver": "570.1", "memory": 81_920, "free": 81_000}
CLOSED = {"address": "127.0.0.1:8265", "status": 401, "hosts": ["127.0.0.1"]}


def node(name: str = "w (10.0.0.2)", **other: Any) -> dict[str, Any]:
    """What a healthy node says, but for `other`."""
    return {
        "name": name,
        "versions": HERE,
        "gpus": [H100],
        "num_gpus": 1.0,
        "memory": 64 * GIB,
        "shared_memory": 32 * GIB,
        "object_store": 16 * GIB,
        "token": True,
        "output": "",
        "sees_driver": True,
        "driver_sees": True,
        "unreachable": [],
        "dashboard": None,
        "clock": 0.1,
        "clock_error": 0.01,
        **other,
    }


def faults(folder: Path, *nodes: dict[str, Any], silent: dict[str, str] | None = None) -> list[Finding]:
    found = list(read([node("head (10.0.0.1)", dashboard=CLOSED), *nodes], silent or {}, HERE, folder))
    assert all(bool(f.fix) == (f.status != "ok") for f in found)
    assert not any("\n" in f.detail + f.fix for f in found)
    return [f for f in found if f.status != "ok"]


def test_a_healthy_cluster_has_no_fault(tmp_path):
    assert faults(tmp_path, node(), node("w (10.0.0.3)")) == []


@pytest.mark.parametrize(
    ("package", "theirs", "status"),
    [
        ("ray", "2.59.0", "fail"),
        ("ray", None, "fail"),
        ("python", "3.12.1", "fail"),
        ("raylign", "0.0.9", "fail"),
        ("raylign", None, "fail"),
        ("torch", "2.12.0+cu126", "warn"),
        ("torch", None, "fail"),
        ("transformers", "5.17", "warn"),
        ("vllm", None, "warn"),
    ],
)
def test_a_node_of_other_versions_is_named(tmp_path, package, theirs, status):
    (fault,) = faults(tmp_path, node(versions={**HERE, package: theirs}))
    assert (fault.name, fault.status) == ("versions", status)
    assert fault.detail == f"{package} {theirs or 'is missing'} on w (10.0.0.2); the driver has {HERE[package]}"
    assert fault.fix.startswith(f"install {package} {HERE[package]} there")


def test_cpu_and_cuda_builds_of_one_version_may_meet(tmp_path):
    assert faults(tmp_path, node(versions={**HERE, "torch": "2.13.0+cu130"})) == []


@pytest.mark.parametrize(
    ("other", "name", "status", "words"),
    [
        ({"num_gpus": 2.0}, "node gpus", "warn", "Ray counts 2 GPU(s), nvidia-smi 1"),
        ({"gpus": [H100, H100 | {"free": 9_000}], "num_gpus": 2.0}, "node gpus", "warn", "memory of GPU 1 is in use"),
        ({"memory": 3 * GIB}, "node memory", "warn", "3.0 GiB free"),
        ({"shared_memory": GIB // 16}, "node memory", "warn", "0.1 GiB shared memory free"),
        ({"output": "Read-only file system"}, "storage", "fail", "cannot be written on w (10.0.0.2) (Read-only"),
        ({"sees_driver": False}, "storage", "fail", "is another folder on w (10.0.0.2) than here"),
        ({"driver_sees": False}, "storage", "fail", "is another folder on w (10.0.0.2) than here"),
        ({"clock": -9.0}, "clocks", "warn", "w (10.0.0.2) by -9.0 s"),
        ({"clock": None, "clock_error": None}, "clocks", "warn", "unknown for w (10.0.0.2)"),
        ({"unreachable": ["head (10.0.0.1) (timed out)"]}, "ports", "fail", "w (10.0.0.2) to head (10.0.0.1)"),
        ({"token": False}, "token", "warn", "Ray asks for none on w (10.0.0.2)"),
    ],
)
def test_each_fault_of_a_node_is_found(tmp_path, other, name, status, words):
    (fault,) = faults(tmp_path, node(**other))
    assert (fault.name, fault.status) == (name, status)
    assert words in fault.detail


def test_a_clock_is_not_blamed_for_the_way_there(tmp_path):
    assert faults(tmp_path, node(clock=3.0, clock_error=2.5)) == []


def test_a_silent_node_is_a_fault(tmp_path):
    (fault,) = faults(tmp_path, silent={"w (10.0.0.9)": "no answer in 60 s"})
    assert (fault.name, fault.status) == ("cluster", "fail")
    assert fault.detail == "1 of 2 node(s) answered; w (10.0.0.9): no answer in 60 s"


@pytest.mark.parametrize(
    ("hosts", "status", "verdict"),
    [
        (["0.0.0.0"], 200, "fail"),
        (["::"], 200, "fail"),
        (["10.0.0.2"], 200, "fail"),
        (["0.0.0.0"], 401, "ok"),
        (["127.0.0.1"], 200, "ok"),
        (["::1"], 200, "ok"),
        (["127.0.0.1"], None, "warn"),
    ],
)
def test_an_open_dashboard_is_a_fault(tmp_path, hosts, status, verdict):
    there = {"address": "10.0.0.2:8265", "status": status, "hosts": hosts}
    found = [f for f in read([node(dashboard=there)], {}, HERE, tmp_path) if f.name == "dashboard"]
    assert [f.status for f in found] == [verdict]
    assert (verdict != "fail") or "--dashboard-host=127.0.0.1" in found[0].fix


def test_a_node_tells_what_it_sees(tmp_path):
    Path(tmp_path, marker_name("seal", "driver")).write_text("seal")
    (closed,) = [port for port in [free_port()] if cannot_connect("127.0.0.1", port)]
    said = inspect_node("node", str(tmp_path), "seal", [("gone", "127.0.0.1", closed)], "")
    assert (said["output"], said["sees_driver"], said["dashboard"]) == ("", True, None)
    assert said["unreachable"] == ["gone (Connection refused)"]
    assert Path(tmp_path, marker_name("seal", "node")).read_text() == "seal"
    assert said["versions"] == versions() == describe()["versions"]
    assert said["versions"]["ray"] == version_of("ray")
    json.dumps(said)


def test_a_folder_that_is_not_there_or_another(tmp_path):
    said = inspect_node("node", str(tmp_path / "none"), "seal", [], "")
    assert said["output"] == "No such file or directory"
    Path(tmp_path, "other").write_text("of an earlier look")
    assert not wait_for_file(tmp_path / "other", "seal", wait=0.1)
    assert not wait_for_file(tmp_path / "none", "seal", wait=0.1)


def free_port() -> int:
    with http.server.HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        return server.server_port


class Dashboard(http.server.BaseHTTPRequestHandler):
    """Answers as Ray's does, to whoever has the token."""

    token, ray = "", version_of("ray")

    def do_GET(self) -> None:
        allowed = not self.token or self.headers["Authorization"] == f"Bearer {self.token}"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"ray_version": self.ray}).encode() if allowed else b"Unauthorized")

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 (the name is the library's)


@contextmanager
def dashboard(**settings: str) -> Iterator[str]:
    kind = type("Set", (Dashboard,), settings)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def seen(address: str) -> dict[str, str]:
    return {finding.name: finding.status for finding in check_dashboard(address)}


def test_a_dashboard_seen_from_outside(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "good")
    with dashboard() as address:
        assert seen(address) == {"dashboard": "ok", "cluster": "warn"}
    assert seen(address) == {"dashboard": "fail"}
    with dashboard(token="good", ray="2.9.0") as address:
        assert seen(address) == {"dashboard": "ok", "versions": "fail", "cluster": "warn"}
        monkeypatch.setenv("RAY_AUTH_TOKEN", "expired")
        (finding,) = check_dashboard(address)
        assert "refuses the token of this machine" in finding.detail
        assert "RAY_AUTH_TOKEN_PATH" in finding.fix
