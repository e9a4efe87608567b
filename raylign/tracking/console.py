"""The console for progress: stderr, so that stdout stays free for results."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO, cast

from rich.console import Console


class _Lossy:
    """A stream that ignores writes once its reader is gone: `raylign run ... 2>&1 | head` must not end the run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # a broken pipe, a hung-up terminal; ValueError: the file object was closed
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return


def progress_console(stream: TextIO | None = None, **options: Any) -> Console:
    """Return a rich console over `stream` (stderr by default) that outlives its reader; rich gets the `options`."""
    if stream is None:
        stream = cast(TextIO | None, sys.stderr)
    if stream is None:  # Python has no stderr where the shell closed it (`2>&-`), as some daemons do
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the console
    return Console(file=cast(TextIO, _Lossy(stream)), highlight=False, markup=False, emoji=False, **options)
