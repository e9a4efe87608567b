"""Write files so that a reader finds the old content or the new one, never a part; hash files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to `path`, which never holds a part of it; make the folder if it does not exist."""
    with replacing(path) as writing:
        writing.write_text(text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden file beside `path` to write to; it replaces `path` when the block ends, and is removed if it fails.

    Makes the folder of `path` if it does not exist. For one writer at a time: two would share the hidden file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_name(f".{path.name}.writing")
    try:
        yield writing
        writing.replace(path)
    except BaseException:
        with suppress(OSError):
            writing.unlink()
        raise


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal, reading it in pieces."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
