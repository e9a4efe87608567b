"""A cluster of two nodes on this one machine: an sshd of our own on loopback, and everything in one folder.

Ray's launcher only knows port 22, so the sshd listens there on two addresses of 127.0.0.0/8, which takes root. The nodes'
home is inside the folder, so nobody's ~/.ssh, ~/.bashrc or ~/.ray is touched. Ray's `ray down` calls `ray stop`, which
would end every Ray of this machine: the nodes' `ray` ends only what runs out of the folder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from tests.integration.free_ports import free_ports

ROOT = Path(__file__).parents[2]
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
MISSING = [
    name
    for name, found in (("sshd", SSHD), ("rsync", shutil.which("rsync")), ("ssh", shutil.which("ssh")))
    if not found
]
UNUSABLE = (
    f"not installed: {', '.join(MISSING)} (Debian: apt-get install openssh-server rsync)"
    if MISSING
    else ("" if os.geteuid() == 0 else "an sshd on port 22 of loopback takes root")
)
STOP = """
import sys, psutil
found = []
for p in psutil.process_iter(["cmdline"]):
    if any(sys.argv[1] in word for word in p.info["cmdline"] or []) and p.pid != psutil.Process().pid:
        found.append(p)
for p in found: p.terminate()
for p in psutil.wait_procs(found, timeout=15)[1]: p.kill()
"""


@dataclass
class Loopback:
    """A cluster that `ray up` can start."""

    folder: Path
    head: str
    worker: str
    port: int
    dashboard_port: int
    name: str

    @property
    def yaml(self) -> Path:
        return self.folder / f"{self.name}-local.yaml"

    @property
    def environment(self) -> Path:
        return self.folder / "env"

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    @property
    def sessions(self) -> str:
        """What stands in the command line of every Ray process of the cluster."""
        return f"{self.folder}/r/session"

    def call(self, *command: str, timeout: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
        """As someone on the launching machine, whose files are in the folder too."""
        laptop = self.folder / "laptop"
        laptop.mkdir(exist_ok=True)
        own = {
            "HOME": str(laptop),
            "TMPDIR": str(laptop),
            "RAY_TMPDIR": str(laptop),
            "RAY_UP_enable_autoscaler_v2": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RAYLIGN_"))}
        return subprocess.run(
            command,
            env={**kept, **own, **variables},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def running(self) -> list[str]:
        """The name of every Ray process of the cluster, with its workers."""
        found = {}
        for process in psutil.process_iter(["cmdline"]):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(self.sessions in word for word in process.info["cmdline"] or []):
                    found |= {p.pid: p.name() for p in (process, *process.children(recursive=True))}
        return list(found.values())


@contextlib.contextmanager
def loopback(files: dict[str, Path]) -> Iterator[Loopback]:
    """The machines, with their spec and its launch file; `ray up` is the caller's. Nothing is left at the end.

    Args:
        files: what the spec copies to the nodes: path there -> file or folder here.
    """
    folder = Path(tempfile.mkdtemp(prefix="rl-"))  # Ray's sockets need a short path
    net = f"127.{20 + os.getpid() % 200}.{os.getpid() // 200 % 250}"
    port, dashboard_port = free_ports(2)
    own = Loopback(
        folder,
        f"{net}.2",
        f"{net}.3",
        port,
        dashboard_port,
        f"loop-{folder.name.removeprefix('rl-').replace('_', '0')}",
    )
    try:
        (folder / "token").write_text(secrets.token_hex(32))
        (folder / "token").chmod(0o600)
        own.shared.mkdir()
        (folder / "home").mkdir()
        make_environment(own)
        write_spec(own, files)
        with sshd(own):
            try:
                yield own
            finally:
                own.call(str(own.environment / "bin" / "ray"), "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_environment(own: Loopback) -> None:
    """The nodes' virtual environment: all libraries of this one, but raylign only as the wheel that setup installs.

    The wheel is of a version of its own, or pip would find raylign installed already.
    """
    source = own.folder / "source"
    source.mkdir()
    shutil.copytree(ROOT / "raylign", source / "raylign", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    file = source / "raylign" / "version.py"
    file.write_text(file.read_text().replace('__version__ = "0.1.0"', '__version__ = "0.1.0.post1"'))
    build = ["pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(own.folder / "dist"), str(source)]
    subprocess.run([sys.executable, "-m", *build], check=True, timeout=200)

    subprocess.run([sys.executable, "-m", "venv", str(own.environment)], check=True, timeout=200)
    (site,) = own.environment.glob("lib/python*/site-packages")
    (libraries,) = (Path(sys.prefix)).glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(f"{libraries}\n")
    ray = own.environment / "bin" / "ray"
    python = own.environment / "bin" / "python"
    (own.folder / "stop.py").write_text(STOP)
    ray.write_text(
        f'#!/bin/sh\nif [ "$1" = stop ]; then exec {python} {own.folder}/stop.py {own.sessions}; fi\n'
        f'exec {python} -m ray.scripts.scripts "$@"\n'
    )
    ray.chmod(0o755)
    # ssh itself looks for ~ in the password file, and the head's key for the worker is in the home we gave it.
    ssh = own.environment / "bin" / "ssh"
    ssh.write_text(
        f'#!/usr/bin/env bash\nwords=()\nfor word in "$@"; do words+=("${{word/#\\~\\//$HOME/}}"); done\n'
        f'exec {shutil.which("ssh")} "${{words[@]}}"\n'
    )
    ssh.chmod(0o755)


def write_spec(own: Loopback, files: dict[str, Path]) -> None:
    (wheel,) = (own.folder / "dist").glob("*.whl")
    node = {"num_cpus": 4, "memory_gib": 4}
    spec = {
        "name": own.name,
        "head": node,
        "workers": {**node, "num_cpus": 2, "min_nodes": 1, "max_nodes": 1},
        "storage": {"path": str(own.shared)},
        "environment": str(own.environment),
        "install": [str(own.folder / "home" / wheel.name)],
        "files": {f"~/{wheel.name}": str(wheel), **{remote: str(here) for remote, here in files.items()}},
        "token": str(own.folder / "token"),
        "ray": {
            "port": own.port,
            "dashboard_port": own.dashboard_port,
            "temp_dir": f"{own.folder}/r",
            # Other Rays of this machine have the usual ports.
            "options": [
                "--object-store-memory=200000000",
                "--min-worker-port=0",
                "--max-worker-port=0",
                "--dashboard-agent-listen-port=0",
            ],
        },
        "ssh": {"user": "root", "private_key": str(own.folder / "key")},
        "local": {"head": own.head, "workers": [own.worker]},
    }
    file = own.folder / "spec.yaml"
    file.write_text(yaml.safe_dump(spec, sort_keys=False))
    done = own.call("raylign", "cluster", "render", str(file), "--output", str(own.folder))
    assert done.returncode == 0, done.stdout


@contextlib.contextmanager
def sshd(own: Loopback) -> Iterator[None]:
    """An ssh server for one key, on the two addresses only."""
    assert SSHD
    for name in ("key", "host"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(own.folder / name)], check=True, timeout=60
        )
    separation = Path("/run/sshd")  # sshd insists on it
    made = not separation.exists()
    separation.mkdir(mode=0o755, exist_ok=True)
    config = own.folder / "sshd_config"
    config.write_text(
        f"ListenAddress {own.head}:22\nListenAddress {own.worker}:22\nHostKey {own.folder}/host\n"
        f"AuthorizedKeysFile {own.folder}/key.pub\nPidFile none\nUsePAM no\nPasswordAuthentication no\n"
        f"PermitRootLogin prohibit-password\nStrictModes no\nMaxStartups 50\nMaxSessions 50\n"
        f"SetEnv HOME={own.folder}/home HF_HUB_OFFLINE=1\n"
    )
    with (own.folder / "sshd.log").open("w") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection((own.worker, 22), timeout=1):
                break
            assert server.poll() is None, (own.folder / "sshd.log").read_text()
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.1)
        yield
    finally:
        sessions = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.terminate()
        server.wait(20)
        for session in sessions:
            with contextlib.suppress(psutil.NoSuchProcess):
                session.terminate()
        if made:
            with contextlib.suppress(OSError):
                separation.rmdir()
