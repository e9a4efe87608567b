"""Checks of a cluster through its dashboard only, as `ray job submit --address http://host:8265` reaches it."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from raylign.actors.node_facts import version_of
from raylign.doctor.finding import Finding

SECONDS = 5.0


def check_dashboard(address: str) -> Iterable[Finding]:
    """Check that the dashboard at http://host:port answers, is not open to everyone and has our version of Ray."""
    status, ray = _version(address, None)
    if status is None:
        fix = "start the cluster, check the address, or open a tunnel (ssh -L 8265:localhost:8265 head)"
        yield Finding("dashboard", "fail", f"no Ray dashboard answers at {address}", fix)
        return
    if locked(status):
        status, ray = _version(address, _token())
        if locked(status):
            fix = "get the cluster's token, and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=<file with it>"
            detail = f"{address} refuses the token of this machine (none, another cluster's, or expired)"
            yield Finding("dashboard", "fail", detail, fix)
            return
        yield Finding("dashboard", "ok", f"{address} asks for a token and accepts ours")
    elif _is_loopback(urlsplit(address).hostname or ""):
        yield Finding("dashboard", "ok", f"{address} asks for no token and is reached through loopback")
    else:
        fix = "start Ray with --dashboard-host=127.0.0.1 and reach it through ssh -L, or with RAY_AUTH_MODE=token"
        yield Finding("dashboard", "fail", f"{address} is open: anyone who reaches it can run code on the cluster", fix)
    if ray and ray != version_of("ray"):
        detail = f"ray {ray} on the cluster; this machine has {version_of('ray')}"
        yield Finding("versions", "fail", detail, f"install ray {version_of('ray')} on the cluster, or {ray} here")
    fix = f"run it on the cluster: ray job submit --address {address} -- raylign doctor --address auto"
    yield Finding("cluster", "warn", "nodes cannot be checked through the dashboard", fix)


def locked(status: int | None) -> bool:
    """Return whether this HTTP status means that the request's token, or the lack of a token, was refused."""
    return status in (401, 403)


def _version(address: str, token: str | None) -> tuple[int | None, str]:
    """Return the status of the dashboard's answer (None: no answer, or not Ray's) and the version of Ray in it."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{address.rstrip('/')}/api/version", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, json.load(answer)["ray_version"]
    except urllib.error.HTTPError as e:
        return (e.code if locked(e.code) else None), ""
    except (OSError, ValueError, KeyError):
        return None, ""


def _token() -> str | None:
    """Read the token as Ray does: from RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token."""
    if text := os.environ.get("RAY_AUTH_TOKEN"):
        return text
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        return (Path(path) if path else Path.home() / ".ray" / "auth_token").read_text().strip()
    except OSError:
        return None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
