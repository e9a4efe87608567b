"""Export of a finished dataset to a file that the user names: JSONL or Parquet, written completely or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from raylign.config.data import DataConfig
from raylign.data.sources import read_rows
from raylign.errors import UserError
from raylign.files import replacing

SUFFIXES = (".jsonl", ".parquet")


def check_target(target: Path, may_exist: bool = False) -> None:
    """Refuse a file that `export_rows` could not write, before the hours that its rows take.

    Args:
        may_exist: permit an existing file; `export_rows` compares its rows.
    Raises:
        UserError: the suffix is unknown, a file or folder exists there, or the folder cannot be created or written.
    """
    if target.suffix not in SUFFIXES:
        raise UserError(f"{target}: cannot write {target.suffix or 'a file without suffix'}; name a .jsonl or .parquet")
    if target.is_dir():
        raise UserError(f"{target}: is a folder; name a file")
    if target.exists() and not may_exist:
        raise _exists(target)
    folder = next(folder for folder in target.absolute().parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        problem = "is not writable" if folder.is_dir() else "is a file, not a folder"
        raise UserError(f"{target}: cannot be written, because {folder} {problem}; name another place")


def export_rows(source: Path, target: Path) -> None:
    """Copy the rows of a JSONL file to `target`, in the format of its suffix, and create its folders.

    A target that already has exactly these rows is left unchanged, so a repeated command succeeds.

    Raises:
        UserError: `target` has other content, or cannot be written; the message says where the rows are.
    """
    if target.exists():
        if _rows(source) != _rows(target):
            raise _exists(target)
        return
    try:
        with replacing(target) as writing:
            if target.suffix == ".parquet":
                _write_parquet(source, writing)
            else:
                shutil.copyfile(source, writing)
    except OSError as e:
        raise UserError(f"{target}: {e.strerror or e}; the rows are in {source}: copy them from there") from None


def _write_parquet(source: Path, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(_rows(source)), target)


def _rows(file: Path) -> list[dict[str, object]]:
    return read_rows(DataConfig(path=str(file))).rows


def _exists(target: Path) -> UserError:
    return UserError(f"{target}: the file exists and is not overwritten; remove it, or name another file")
