"""Runs pytest in one copy of the repository after another, each in a fork of a process that has torch already.

Usage: `python -P forked_pytest.py`; one JSON list a line on stdin, [folder, *test files]; one exit code a line on
stdout. What pytest says is in `FOLDER/pytest.log`. -P, so that nothing beside this file can be imported by accident.
"""

import json
import os
import sys
from pathlib import Path

import hypothesis  # noqa: F401  (this and the next: what takes long to import)
import pytest
import torch
import transformers.models.llama.modeling_llama
import transformers.models.qwen2.modeling_qwen2  # noqa: F401

NOT_THE_COPY = 99


def run(folder: Path, files: list[str]) -> int:
    """pytest's exit code, in a process that knows no raylign but that of the folder."""
    with open(folder / "pytest.log", "wb") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    torch.set_num_threads(1)
    code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files]))
    used = Path(str(sys.modules["raylign"].__file__))
    return code if used == folder / "raylign" / "__init__.py" else NOT_THE_COPY


def main() -> None:
    assert "raylign" not in sys.modules
    for line in sys.stdin:
        folder, *files = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = NOT_THE_COPY
            try:
                code = run(Path(folder).resolve(), files)
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
