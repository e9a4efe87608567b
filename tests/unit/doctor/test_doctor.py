"""The doctor finds what is wrong: each check sees a good and a bad case that are really there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raylign.actors import node_facts
from raylign.doctor import check
from raylign.doctor import machine as doctor

ROOT = Path(__file__).parents[3]
HUGE = 2**60


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Make a distribution that importlib.metadata finds before any other of its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def plant(name: str, version: str, *requires: str) -> None:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", "Provides-Extra: fast"]
        (folder / "METADATA").write_text("\n".join(lines + [f"Requires-Dist: {text}" for text in requires]) + "\n")

    return plant


def found(findings) -> list[tuple[str, str]]:
    findings = list(findings)
    assert all(bool(f.fix) == (f.status != "ok") for f in findings)
    assert not any("\n" in f.detail + f.fix for f in findings)
    return [(f.name, f.status) for f in findings]


def test_check_looks_at_everything_quickly(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    started = time.monotonic()
    names = [name for name, _ in found(check(tmp_path))]
    assert time.monotonic() - started < 3
    assert names[0] == "python"
    assert {"torch", "cpus", "memory", "output", "ray address", "ray processes", "wandb"} <= set(names)
    assert not list(tmp_path.iterdir())


def test_check_imports_nothing_heavy():
    code = (
        "import sys; from raylign.doctor import check; check();"
        "print(*(m for m in ('torch', 'ray', 'vllm', 'transformers', 'wandb') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""


def test_versions_against_the_declared_ranges(plant):
    plant("aaa", "2.0")
    plant("bbb", "3.1")
    plant("good", "1.0", "aaa>=2,<3", "bbb==3.*; extra == 'fast'", "absent-one; extra == 'fast'")
    assert found(doctor.packages("good")) == [("packages", "ok")]
    plant("bad", "1.0", "aaa<2", "bbb>=4; extra == 'fast'", "absent-one>=1")
    assert found(doctor.packages("bad")) == [("aaa", "fail"), ("bbb", "warn"), ("absent-one", "fail")]
    assert found(doctor.packages("absent-one")) == [("packages", "fail")]


def test_cuda_companions_beside_a_cpu_torch(plant):
    plant("torch", "2.13.0+cpu")
    plant("torchvision", "0.28.0+cpu")
    assert found(doctor.companions()) == []
    plant("torchaudio", "2.13.0")
    (finding,) = doctor.companions()
    assert (finding.status, finding.fix) == ("fail", "run: pip uninstall -y torchaudio")


def test_cuda_companions_beside_a_cuda_torch_are_fine(plant):
    plant("torch", "2.13.0")
    plant("torchaudio", "2.13.0")
    assert found(doctor.companions()) == []


def test_memory_and_shared_memory(tmp_path):
    assert found(doctor.memory(wanted=1)) == [("memory", "ok")]
    assert found(doctor.memory(wanted=HUGE)) == [("memory", "warn")]
    assert found(doctor.shared_memory(tmp_path, wanted=1)) == [("shared memory", "ok")]
    assert found(doctor.shared_memory(tmp_path, wanted=HUGE)) == [("shared memory", "warn")]
    assert found(doctor.shared_memory(tmp_path / "none")) == []


def test_the_memory_limit_of_a_container(tmp_path):
    assert node_facts.cgroup_free(tmp_path) == float("inf")
    for name, text in {
        "memory.max": "1000",
        "memory.current": "700",
        "memory.stat": "anon 5\ninactive_file 200",
    }.items():
        (tmp_path / name).write_text(f"{text}\n")
    assert node_facts.cgroup_free(tmp_path) == 1000 - 700 + 200
    (tmp_path / "memory.max").write_text("max\n")
    assert node_facts.cgroup_free(tmp_path) == float("inf")


def test_output_folder(tmp_path):
    assert found(doctor.output(tmp_path / "not" / "yet", wanted=1)) == [("output", "ok")]
    assert not list(tmp_path.iterdir())
    assert found(doctor.output(tmp_path, wanted=HUGE)) == [("output", "warn")]
    (tmp_path / "file").touch()
    (finding,) = doctor.output(tmp_path / "file")
    assert (finding.status, finding.detail) == ("fail", f"cannot write to {tmp_path / 'file'}: Not a directory")


def test_ray_address_that_answers_and_one_that_does_not():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", f"http://127.0.0.1:{port}"):
            assert found(doctor.ray_address(address)) == [("ray address", "ok")]
    (finding,) = doctor.ray_address(f"127.0.0.1:{port}")
    assert finding.status == "fail"
    assert "Connection refused" in finding.detail


@pytest.mark.parametrize(("address", "status"), [("", "ok"), ("auto", "ok"), ("head", "fail"), ("head:x", "fail")])
def test_ray_address_without_a_connection(address, status):
    assert found(doctor.ray_address(address)) == [("ray address", status)]


@pytest.mark.skipif(sys.platform != "linux", reason="names a process by its file")
def test_a_running_raylet_is_seen(tmp_path):
    sleep = shutil.copy(shutil.which("sleep") or "/bin/sleep", tmp_path / "raylet")
    process = subprocess.Popen([sleep, "60"])
    try:
        (finding,) = doctor.ray_processes()
        assert finding.status == "warn"
        assert str(process.pid) in finding.detail
    finally:
        process.kill()
        process.wait()
    (finding,) = doctor.ray_processes()
    assert str(process.pid) not in finding.detail


def test_wandb_login(tmp_path, monkeypatch):
    login = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", os.fspath(login))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)

    def detail() -> str:
        (finding,) = doctor.wandb_login()
        return finding.detail

    assert detail().startswith("not logged in")
    login.write_text("machine elsewhere.example login user password secret\n")
    login.chmod(0o600)
    assert detail().startswith("not logged in")
    login.write_text("machine api.wandb.ai login user password secret\n")
    assert detail() == "logged in (netrc)"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert detail().startswith("not logged in")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert detail() == "WANDB_API_KEY is set"
