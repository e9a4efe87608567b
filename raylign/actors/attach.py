"""Join a running Ray cluster, or say in one line why that fails, within seconds and before any resource is taken.

Ray itself needs 20 s to a minute, does not say that the token was refused, and aborts the process if the token is
missing. So one call to the head comes first, which answers three questions: is it there, does it accept our token, and
which versions does it run?
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import grpc
import ray
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.utils import check_version_info
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from raylign.errors import UserError, one_line

ANSWER_SECONDS = 10.0
GENERATE = "ray get-auth-token --generate"

# Variables that libraries read in every process and that are the same on every node. No secrets: Ray shows and logs the
# environment of a job, so HF_TOKEN and W&B's key belong to the nodes (docs/cluster.md). No proxies: a node has its own.
SHIPPED = frozenset(
    {
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "GLOO_SOCKET_IFNAME",
        "HF_DATASETS_CACHE",
        "HF_DATASETS_OFFLINE",
        "HF_ENDPOINT",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_HUB_OFFLINE",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "TOKENIZERS_PARALLELISM",
        "TRANSFORMERS_OFFLINE",
        "TRANSFORMERS_VERBOSITY",
        "VLLM_ATTENTION_BACKEND",
        "VLLM_LOGGING_LEVEL",
    }
)
SHIPPED_PREFIXES = ("NCCL_", "TORCH_NCCL_")


def attach(address: str, **options: Any) -> None:
    """Run `ray.init` on the cluster at `address` (host:port, or auto for the cluster on this machine).

    Raises:
        UserError: nothing answers, the token is missing or refused, versions differ, or this machine is not a node of it.
    """
    place = f"RAY_ADDRESS={address}"
    _check_token(place)
    try:
        found = services.canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError, OSError):
        found = None
    if found is None or "://" in address:
        raise UserError(f"{place}: {_no_address(address)}")
    _check_versions(place, _ask(place, found))
    if not services.find_node_ids():
        raise UserError(
            f"{place}: this machine is not a node of that cluster; launch there: ray submit, or ray job submit"
        )
    try:
        ray.init(address=found, runtime_env={"env_vars": shipped(os.environ)}, **options)
    except (ConnectionError, RuntimeError) as e:
        reason = one_line(e)
        raise UserError(f"{place}: Ray cannot join it: {reason}; is this machine one of its nodes?") from e


def shipped(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the driver's variables that the actors get too, except those that the Ray job ships: Ray refuses duplicates."""
    job = json.loads(environment.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    there = job.get("runtime_env", {}).get("env_vars", {})
    wanted = {k: v for k, v in environment.items() if k in SHIPPED or k.startswith(SHIPPED_PREFIXES)}
    return {key: value for key, value in wanted.items() if key not in there}


def _no_address(address: str) -> str:
    if address == "auto":
        return "no Ray runs on this machine; start the cluster (ray up), or unset it to start a Ray for this run"
    if address.startswith("ray://"):
        return "a driver runs inside the cluster; launch it there: ray submit, or ray job submit"
    if address.startswith("http"):
        return "this is where jobs are submitted; write: ray job submit -- raylign ..., or unset it to run here"
    return "not a host and port that can be found; write it as host:6379, or unset it to run on this machine"


def _check_token(place: str) -> None:
    """Raise where Ray would end the process without a message: token mode is on and there is no token."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        there = bool(file.read_text().strip())
    except OSError:
        there = False
    if not there:
        fix = f"copy the cluster's token there, or make one before the cluster starts: {GENERATE}"
        raise UserError(f"{place}: RAY_AUTH_MODE=token and no token in {file}; {fix}")


def _ask(place: str, address: str) -> dict[str, Any]:
    """Return the metadata of the cluster, from its head."""
    request = gcs_service_pb2.InternalKVGetRequest(  # pyright: ignore[reportAttributeAccessIssue] (made by protoc)
        key=b"CLUSTER_METADATA", namespace=b"cluster"
    )
    with cast(grpc.Channel, init_grpc_channel(address)) as channel:
        head = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)
        try:
            answer = head.InternalKVGet(request, timeout=ANSWER_SECONDS)
        except grpc.RpcError as e:
            code, problem = e.code(), e.details() or ""  # pyright: ignore[reportAttributeAccessIssue]
            raise UserError(f"{place}: {_refused(code, problem)}") from e
    if not answer.value:
        raise UserError(f"{place}: a Ray head answers that has not started yet; wait for it and try again")
    return json.loads(answer.value)


def _refused(code: grpc.StatusCode, problem: str) -> str:
    match code:
        case grpc.StatusCode.UNAUTHENTICATED if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
            return (
                "the cluster refuses our token, which is wrong or belongs to an earlier cluster; copy the head's "
                "~/.ray/auth_token here, or set RAY_AUTH_TOKEN_PATH to it"
            )
        case grpc.StatusCode.UNAUTHENTICATED:
            return (
                "the cluster asks for a token and RAY_AUTH_MODE is not token; export RAY_AUTH_MODE=token, with the head's "
                "~/.ray/auth_token here"
            )
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED:
            return "no Ray cluster answers there; check host and port, start the cluster, or unset it to run on this machine"
        case _:
            return (
                f"the server there is not a Ray head ({code.name.lower()}); use the head's port, 6379 unless it was set"
            )


def _check_versions(place: str, metadata: dict[str, Any]) -> None:
    """Raise unless Ray and Python are the same here and there, which is Ray's own rule."""
    try:
        check_version_info(metadata, "this process")
    except RuntimeError:
        there = f"Ray {metadata['ray_version']} on Python {metadata['python_version']}"
        here = f"Ray {ray.__version__} on Python {platform.python_version()}"
        raise UserError(
            f"{place}: the cluster runs {there}, this process {here}; make both the same on every node (python and install "
            "of the cluster spec)"
        ) from None
