"""From the launching machine to summary.json: `ray up`, `ray submit`, `ray job submit`, `ray down`, and joining a cluster."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.loopback import ROOT, UNUSABLE, Loopback, loopback
from tests.integration.own_ray import own_ray
from tests.integration.small_runs import CONFIGS, EVALUATION, TASK

LAUNCH = str(ROOT / "clusters" / "launch.py")
# transformers generates: vLLM takes longer to start in every run than these runs take, and its own tests run it.
ROLLOUT = {"engine": "transformers", "sampling": {"max_tokens": 8}}
SPREAD = {"strategy": "SPREAD"}  # so that both nodes hold actors
MODEL = {"path": "task:model", "compute_dtype": "float32"}
SHORT = {
    "model": MODEL,
    "data": {"path": "task:prompts"},
    "reward": {"type": "task"},
    "algorithm": {
        "name": "ppo",
        "steps": 1,
        "prompts_per_step": 8,
        "samples_per_prompt": 2,
        "minibatches": 1,
        "epochs": 1,
    },
}


def write_configs(folder: Path) -> Path:
    """The configs of the small runs, and one that needs no other; none names an absolute path."""
    folder.mkdir()
    for name, config in (CONFIGS | {"short": SHORT | {"evaluation": EVALUATION}}).items():
        tree = {"name": name, "task": TASK, "rollout": ROLLOUT, "placement": SPREAD, **config}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return folder


@pytest.fixture
def cluster(tmp_path) -> Iterator[Loopback]:
    """Two nodes that are up; taken down by `ray down`, which leaves nothing."""
    with loopback({"~/configs": write_configs(tmp_path / "configs")}) as own:
        up = own.call("ray", "up", "-y", "--no-config-cache", str(own.yaml))
        assert up.returncode == 0, up.stdout
        assert len(raylets(own, 2)) == 2, up.stdout
        yield own
        down = own.call("ray", "down", "-y", str(own.yaml))
        assert down.returncode == 0, down.stdout
        assert own.running() == []


def raylets(own: Loopback, wanted: int, timeout: float = 240) -> list[str]:
    deadline = time.monotonic() + timeout
    while True:
        found = [name for name in own.running() if name == "raylet"]
        if len(found) >= wanted or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def worked(own: Loopback) -> set[str]:
    """The nodes on which actors of a run were alive, as Ray remembers it."""
    code = (
        "import ray, json; from ray.util.state import list_actors; ray.init('auto', logging_level='ERROR');"
        "at = {n['NodeID']: n['NodeManagerAddress'] for n in ray.nodes()};"
        "print(json.dumps([at[a.node_id] for a in list_actors('auto', limit=1000) if 'Actor' in a.class_name]))"
    )
    address = f"{own.head}:{own.port}"
    done = own.call(str(own.environment / "bin" / "python"), "-c", code.replace("auto", address))
    assert done.returncode == 0, done.stdout
    return set(json.loads(done.stdout.splitlines()[-1]))


def submit(own: Loopback, config: str, name: str) -> Path:
    """`ray submit`, as a user types it; returns the run directory."""
    done = own.call(
        *("ray", "submit", "--no-config-cache", str(own.yaml), LAUNCH, "--"),
        *("run", f"configs/{config}.yaml", f"name={name}", "--quiet"),
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    return own.shared / "runs" / name


def job_submit(own: Loopback, folder: Path, config: str, name: str) -> Path:
    """`ray job submit` with the configs as its working directory; returns the run directory."""
    done = own.call(
        *("ray", "job", "submit", "--address", f"http://127.0.0.1:{own.dashboard_port}", "--working-dir", str(folder)),
        *("--", "raylign", "run", f"{config}.yaml", f"name={name}", "--quiet"),
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    return own.shared / "runs" / name


def check_scores(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert all(math.isfinite(summary[score]) for score in ("score_before", "score_after"))
    assert summary["raylign"] == "0.1.0.post1", "the nodes run the wheel, not this checkout"
    assert (folder / "model" / "model.safetensors").exists()


@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(UNUSABLE), reason=UNUSABLE)
def test_ppo_through_ray_submit_on_two_nodes(cluster):
    check_scores(submit(cluster, "short", "ppo"))
    assert worked(cluster) == {cluster.head, cluster.worker}, "actors were placed on both nodes"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(bool(UNUSABLE), reason=UNUSABLE)
def test_ppo_and_dpo_through_both_ways_of_submitting(cluster, tmp_path):
    for algorithm in ("ppo", "dpo"):
        check_scores(submit(cluster, algorithm, f"{algorithm}_submit"))
        check_scores(job_submit(cluster, tmp_path / "configs", algorithm, f"{algorithm}_job"))
    # The runs before PPO and DPO were made once, in the folder that the nodes share, for both ways.
    stages = [path.name.rsplit("-", 1)[0] for path in (cluster.shared / "runs" / "stages").iterdir() if path.is_dir()]
    assert sorted(stages) == ["preferences", "sft"]


ATTACH = """
import sys, time
from raylign.actors.session import ray_session
from raylign.errors import UserError
import ray
started = time.monotonic()
try:
    with ray_session():
        @ray.remote(num_cpus=0)
        def variables():
            import os
            return {k: v for k, v in os.environ.items() if k in ("NCCL_DEBUG", "WANDB_API_KEY", "HF_TOKEN", "HF_HOME")}
        print("attached", ray.cluster_resources()["CPU"], sorted(ray.get(variables.remote(), timeout=60).items()))
except UserError as e:
    print("refused", e)
print(f"{time.monotonic() - started:.1f}")
"""


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """A head that asks for a token, and the variables that let a driver in."""
    with own_ray(token="a" * 64) as own:
        let_in = {name: own.env[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
        yield {**let_in, "RAY_ADDRESS": own.address, "HOME": str(own.folder)}


def attach(code: str = ATTACH, **variables: str) -> tuple[str, float]:
    """What a driver with these variables says, and after how many seconds."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "NCCL_", "WANDB_", "HF_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    line, seconds = done.stdout.splitlines()
    return line, float(seconds)


def test_a_driver_joins_and_ships_only_what_is_allowed(head):
    secrets = {"WANDB_API_KEY": "secret", "HF_TOKEN": "secret"}
    said, _ = attach(**head, **secrets, NCCL_DEBUG="INFO", HF_HOME="/models")
    assert said == "attached 1.0 [('HF_HOME', '/models'), ('NCCL_DEBUG', 'INFO')]"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"RAY_AUTH_TOKEN": "b" * 64}, "the cluster refuses our token"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, "RAY_AUTH_MODE=token and no token in /nowhere/token"),
        ({"RAY_AUTH_MODE": "disabled"}, "the cluster asks for a token and RAY_AUTH_MODE is not token"),
        ({"RAY_ADDRESS": "127.0.0.1:9"}, "no Ray cluster answers there"),
        ({"RAY_ADDRESS": "nowhere"}, "write it as host:6379"),
        ({"RAY_ADDRESS": "ray://127.0.0.1:10001"}, "a driver runs inside the cluster"),
        ({"RAY_ADDRESS": "http://127.0.0.1:8265"}, "this is where jobs are submitted"),
    ],
)
def test_a_driver_that_cannot_join_is_told_why_in_one_line(head, change, problem):
    said, seconds = attach(**(head | change))
    assert said.startswith(f"refused RAY_ADDRESS={(head | change)['RAY_ADDRESS']}: ")
    assert problem in said
    assert seconds < 15


def test_something_that_never_answers_is_given_up_within_seconds(head):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said, seconds = attach(**(head | {"RAY_ADDRESS": f"127.0.0.1:{silent.getsockname()[1]}"}))
    assert "no Ray cluster answers there" in said
    assert seconds < 15


def test_another_version_of_ray_is_told(head):
    """The head's own record of its version is changed, for there is only one Ray here to start it with."""
    change = (
        "import os, json; from ray._raylet import GcsClient; c = GcsClient(address=os.environ['RAY_ADDRESS']);"
        "m = json.loads(c.internal_kv_get(b'CLUSTER_METADATA', b'cluster'));"
        "c.internal_kv_put(b'CLUSTER_METADATA', json.dumps({**m, **VERSION}).encode(), True, b'cluster');"
        "print(json.dumps(m)); print(0)"
    )
    before, _ = attach(change.replace("VERSION", "{'ray_version': '2.59.0'}"), **head)
    try:
        said, seconds = attach(**head)
    finally:
        attach(change.replace("VERSION", repr(json.loads(before))), **head)
    assert "the cluster runs Ray 2.59.0 on Python" in said
    assert "this process Ray" in said
    assert seconds < 15
    assert attach(**head)[0].startswith("attached"), "and the same version is let in again"
