"""Checks of whether this machine, or a cluster, is ready to run raylign. They change nothing and import nothing heavy.

>>> for finding in check():
...     print(finding.status, finding.name, finding.detail, finding.fix)
"""

from __future__ import annotations

import os
from pathlib import Path

from raylign.doctor.cluster import check_cluster
from raylign.doctor.finding import Finding, Status
from raylign.doctor.machine import LOCAL, check_machine

__all__ = ["Finding", "Status", "check", "check_cluster", "check_machine"]


def check(output_dir: str | Path = "runs", address: str | None = None) -> list[Finding]:
    """Check this machine, in less than 3 s, and a cluster, if an address is given, in less than 3 minutes.

    Args:
        output_dir: folder of the runs (`output_dir` of the run config); a relative path is below RAYLIGN_STORAGE, if
            that is set.
        address: address of the cluster, in the form of RAY_ADDRESS, which is the default.
    Returns:
        The findings, in reading order. raylign can run if none has status `fail`.
    """
    address = address or os.environ.get("RAY_ADDRESS", "")
    output_dir = Path(os.environ.get("RAYLIGN_STORAGE", "."), output_dir).absolute()
    findings = check_machine(output_dir, address)
    reachable = not any(f.name == "ray address" and f.status == "fail" for f in findings)
    if address not in LOCAL and reachable:
        findings += check_cluster(address, output_dir)
    return findings
