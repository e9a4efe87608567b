"""Atomic writes, hashes of files, errors on one line, and the place of a key in a config file."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import raylign
from raylign.config.load import Lines
from raylign.errors import folded, one_line
from raylign.files import sha256_of, write_atomic


def test_write_atomic_makes_the_folder_and_leaves_no_other_file(tmp_path):
    file = tmp_path / "a" / "b.txt"
    write_atomic(file, "old")
    write_atomic(file, "new")
    assert file.read_text() == "new"
    assert list(file.parent.iterdir()) == [file]


def test_a_write_that_fails_keeps_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    write_atomic(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(file, "a part\udc80")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_errors_on_one_line():
    assert one_line(ValueError("\n no such key\nTraceback")) == "no such key"
    assert folded(ValueError("no\n  such key ")) == "no such key"
    assert one_line(TimeoutError()) == folded(TimeoutError()) == "TimeoutError"


def test_the_place_of_a_key_is_that_of_the_nearest_key_above():
    lines = Lines({("data",): 3, ("data", "path"): "override 'data.path=x'"})
    assert lines.place(("data", "limit"), "run.yaml") == "run.yaml:3"
    assert lines.place(("data", "path"), "run.yaml") == "override 'data.path=x'"
    assert lines.place(("model",), "run.yaml") == "run.yaml:1"


def test_the_build_reads_the_version_of_the_package():
    build = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert build["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "raylign.version.__version__"}
    assert raylign.__version__ == raylign.version.__version__
