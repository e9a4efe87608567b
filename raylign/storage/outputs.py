"""Where runs and sweeps are written, on one machine and on a cluster, and how their folders are numbered."""

from __future__ import annotations

import os
from pathlib import Path

from raylign.errors import UserError

_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets a variable of this name in the driver of a job


def output_base(output_dir: str) -> Path:
    """Return the absolute folder that `output_dir` means.

    A relative path starts at RAYLIGN_STORAGE, which a cluster sets to the folder that all its nodes share
    (`storage.path` of its spec); without that variable, at the working directory.

    Raises:
        UserError: the path is relative and this is a Ray job without RAYLIGN_STORAGE: Ray removes the job's folder.
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


def in_job() -> bool:
    """Return whether `ray job submit` started this driver."""
    return _RAY_JOB in os.environ


def newest_folder(base: Path) -> Path | None:
    """Return the highest numbered of the existing base, base-2, base-3, ..., or None."""
    existing = [base] if base.exists() else []
    existing += [p for p in base.parent.glob(f"{base.name}-*") if p.name.removeprefix(f"{base.name}-").isdigit()]
    return max(existing, key=lambda path: _number(path, base), default=None)


def fresh_folder(base: Path) -> Path:
    """Return `base`, or the first free number after the newest folder: a new run never touches an old one."""
    newest = newest_folder(base)
    return base if newest is None else base.with_name(f"{base.name}-{_number(newest, base) + 1}")


def _number(folder: Path, base: Path) -> int:
    return int(folder.name.removeprefix(base.name).lstrip("-") or 1)
