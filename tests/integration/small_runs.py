"""Small whole runs on the embedded task, each in a process of its own, with nothing left behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

RAYLIGN = str(Path(sys.executable).with_name("raylign"))
TASK = {
    "name": "sentiment",
    "num_reviews": 200,
    "num_prompts": 64,
    "num_eval_prompts": 16,
    "hidden_size": 64,
    "num_layers": 2,
}
MODEL = {"path": "run:sft.yaml", "compute_dtype": "float32"}
ROLLOUT = {"sampling": {"max_tokens": 12}, "kv_cache_gib": 0.25}
EVALUATION = {"data": {"path": "task:eval_prompts"}, "reward": {"type": "task"}}

CONFIGS = {
    "sft": {
        "model": {"path": "task:model", "compute_dtype": "float32"},
        "data": {"path": "task:corpus"},
        "algorithm": {
            "name": "sft",
            "batch_size": 32,
            "max_steps": 12,
            "epochs": 4,
            "optimizer": {"learning_rate": 5e-3},
        },
    },
    "preferences": {
        "model": MODEL,
        "data": {"path": "task:prompts"},
        "reward": {"type": "task"},
        "algorithm": {"name": "collect", "rows": 32, "prompts_per_step": 32},
    },
    "reward_model": {
        "model": MODEL,
        "data": {"path": "run:preferences.yaml"},
        "evaluation": {"data": {"path": "run:preferences.yaml"}},
        "algorithm": {"name": "reward_model", "batch_size": 16, "epochs": 1, "optimizer": {"learning_rate": 1e-3}},
    },
    # Dropout and several minibatches, so that every random state of a learner matters.
    "ppo": {
        "model": {**MODEL, "dropout": True},
        "data": {"path": "task:prompts"},
        "reward": {"type": "task"},
        "evaluation": EVALUATION,
        "algorithm": {
            "name": "ppo",
            "steps": 4,
            "prompts_per_step": 16,
            "samples_per_prompt": 2,
            "epochs": 2,
            "minibatches": 2,
            "optimizer": {"learning_rate": 1e-3},
            "kl": {"controller": "adaptive", "target": 0.5, "horizon": 100},
        },
    },
    "dpo": {
        "model": {**MODEL, "dropout": True},
        "data": {"path": "run:preferences.yaml"},
        "evaluation": EVALUATION,
        "algorithm": {"name": "dpo", "batch_size": 8, "epochs": 1, "optimizer": {"learning_rate": 1e-3}},
    },
}


@dataclass
class Workshop:
    """Configs in a folder, and the runs made from them."""

    folder: Path

    def config(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def start(self, name: str, *overrides: str, resume: bool = False, verb: str = "run") -> subprocess.Popen[str]:
        command = [RAYLIGN, verb, str(self.config(name)), *overrides, *(["--resume"] if resume else [])]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )

    def run(self, name: str, *overrides: str, resume: bool = False, timeout: float = 240) -> Path:
        """Run to the end; returns the run directory."""
        process = self.start(name, *overrides, resume=resume)
        with Ended(process):
            output, _ = process.communicate(timeout=timeout)
        assert process.returncode == 0, output
        return Path(output.strip().splitlines()[-1].removeprefix("run directory: "))


class Ended:
    """Whatever happens inside, the process and all it started are gone afterwards; they get `grace` seconds to go by themselves."""

    def __init__(self, process: subprocess.Popen[str], grace: float = 20) -> None:
        self.process, self.grace = process, grace

    def __enter__(self) -> subprocess.Popen[str]:
        return self.process

    def __exit__(self, *_: object) -> None:
        left = family(self.process.pid)
        if self.process.poll() is None:
            self.process.kill()
        _gone, alive = psutil.wait_procs(left, timeout=self.grace)
        for process in alive:
            process.kill()
        self.process.wait(10)


def family(pid: int) -> list[psutil.Process]:
    """Everything that runs in the session of a process we started: its Ray, and all Ray's workers."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid or any(parent.pid == pid for parent in process.parents()):
                found.append(process)
        except (psutil.Error, ProcessLookupError):
            continue
    return [process for process in found if process.pid != pid]


def left_behind(processes: list[psutil.Process], grace: float = 20) -> list[str]:
    """Of these, the ones that still run after `grace` seconds."""
    _, alive = psutil.wait_procs(processes, timeout=grace)
    return [" ".join(process.cmdline()) for process in alive]


def wait_for(condition, timeout: float, what: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"ended before {what}: {process.communicate()[0]}")
        if time.monotonic() > deadline:
            pytest.fail(f"no {what} within {timeout} s")
        time.sleep(0.05)


def newest_commit(folder: Path) -> int:
    return max((int(p.name.removeprefix("step_")) for p in (folder / "commits").glob("step_*")), default=0)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight, moment and random state in the last commit, and of the published model."""
    commit = folder / "commits" / f"step_{newest_commit(folder):06d}"
    files = [*commit.rglob("*.safetensors"), folder / "model" / "model.safetensors"]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)}


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def interrupt(process: subprocess.Popen[str], number: int = signal.SIGINT) -> None:
    """As a terminal does it: to the whole process group."""
    os.killpg(process.pid, number)
