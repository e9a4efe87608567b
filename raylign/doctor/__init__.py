"""Is this machine, or a cluster, ready to run raylign? Each check looks, changes nothing, and imports nothing heavy here.

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
    """Look at this machine, in less than 3 s, and at a cluster, if one is named, in less than 3 minutes.

    Args:
        output_dir: where runs would be written (`output_dir` of the run config); a relative one is in RAYLIGN_STORAGE,
            where that is set.
        address: of the cluster, as RAY_ADDRESS has it (which is taken if none is given).
    Returns:
        What was found, in reading order. raylign can run where nothing has status `fail`.
    """
    address = address or os.environ.get("RAY_ADDRESS", "")
    output_dir = Path(os.environ.get("RAYLIGN_STORAGE", "."), output_dir).absolute()
    findings = check_machine(output_dir, address)
    reachable = not any(f.name == "ray address" and f.status == "fail" for f in findings)
    if address not in LOCAL and reachable:
        findings += check_cluster(address, output_dir)
    return findings
