"""Where what a run makes is written, on one machine and on a cluster."""

from __future__ import annotations

import os
from pathlib import Path

from raylign.actors.attach import in_job
from raylign.errors import UserError


def output_base(output_dir: str) -> Path:
    """The absolute folder that `output_dir` means.

    A relative one is in RAYLIGN_STORAGE, which a cluster sets to the folder that all its nodes share
    (`storage.path` of its spec); else in the working directory.

    Raises:
        UserError: relative, in a Ray job without RAYLIGN_STORAGE: the job's folder is Ray's, which removes it.
    """
    path = Path(output_dir)
    if path.is_absolute():
        return path.resolve()
    storage = os.environ.get("RAYLIGN_STORAGE")
    if storage is None and in_job():
        raise UserError(
            f"output_dir: {output_dir} is relative, and Ray removes the folder of a job; set an absolute one that all "
            "nodes share, e.g. output_dir=/mnt/shared/runs, or RAYLIGN_STORAGE on the head"
        )
    return (Path(storage or ".") / path).resolve()
