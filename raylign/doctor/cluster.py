"""Checks of a cluster: a separate process attaches to it and asks every node (`raylign.actors.probe`)."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from raylign.actors.node_facts import versions
from raylign.doctor.dashboard import check_dashboard
from raylign.doctor.finding import Finding
from raylign.doctor.nodes import read, writable

ATTACH_SECONDS = 60.0
ASK_SECONDS = 60.0
END_SECONDS = 10.0


def check_cluster(address: str, output_dir: str | Path = "runs") -> list[Finding]:
    """Attach to the cluster and check its nodes, without a GPU, in less than 3 minutes.

    Args:
        address: in the form of RAY_ADDRESS; at http://host:8265, which cannot be attached to, only the dashboard is
            checked.
        output_dir: the folder that the driver and all nodes must share.
    """
    if address.startswith(("http://", "https://")):
        return list(check_dashboard(address))
    answer = probe(address, writable(Path(output_dir)))
    if "problem" in answer:
        return [Finding("cluster", "fail", answer["problem"], answer["fix"])]
    return list(read(answer["nodes"], answer["silent"], versions(), Path(output_dir)))


def probe(address: str, folder: str, attach: float = ATTACH_SECONDS, ask: float = ASK_SECONDS) -> dict[str, Any]:
    """Return the answer of `raylign.actors.probe`, or {"problem", "fix"}; end its process after `attach + ask` seconds.

    Args:
        folder: the folder that all nodes must share; empty if the driver cannot write to it.
        attach, ask: seconds to attach to the cluster, and to ask its nodes.
    """
    command = [sys.executable, "-m", "raylign.actors.probe"]
    request = json.dumps({"address": address, "folder": folder, "seconds": ask})
    with tempfile.TemporaryFile("w+") as errors:  # not a pipe: Ray's own children may hold it open
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        try:
            out, _ = process.communicate(request, timeout=attach + ask)
        except subprocess.TimeoutExpired:
            out = ""
        finally:
            process.terminate()  # it removes its files from the folder
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        errors.seek(0)
        log = errors.read()
    answer = json.loads(out.splitlines()[-1]) if process.returncode == 0 and out.strip() else {}
    return answer if "nodes" in answer else _refused(answer.get("problem", ""), log, attach + ask)


def _refused(problem: str, log: str, seconds: float) -> dict[str, Any]:
    """Return why the probe could not attach: its own problem and fix, else the last line of Ray's log."""
    if problem:
        detail, _, fix = problem.rpartition("; ")
        return {"problem": detail, "fix": fix}
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    reason = lines[-1] if lines else f"no answer in {seconds:g} s"
    return {"problem": f"cannot check it: {reason}", "fix": "look at the head (ray status, its gcs_server.out)"}
