"""The names inside a run directory occur in raylign/storage/ and in no other module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylign.storage import commits, run_folder

PACKAGE = Path(__file__).parents[3] / "raylign"
OWNER = "storage"

# Said in any text without spaces, these can only mean a run directory.
FILES = {"config.yaml", "resolved.yaml", "content.json", "summary.json", "metrics.jsonl", "manifest.json"}
SUFFIXES = ("_samples.jsonl",)
# Ordinary words: a fault where a path is made of them.
FOLDERS = {"evaluations", "commits", "model", "adapter", "parts", "merged", "tensorboard"}


def faults(package: Path) -> list[str]:
    """Return every place outside the owner that spells a name of a run directory, as `file:line: name`."""
    found = []
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package)
        if inside.parts[0] != OWNER:
            found += [f"{inside}:{line}: {name}" for line, name in spelt(ast.parse(file.read_text()))]
    return found


def spelt(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of every string that is such a name, docstrings aside."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    in_paths = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            in_paths |= {id(node.left), id(node.right)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name in ("Path", "joinpath", "glob", "rglob"):
                in_paths |= {id(argument) for argument in node.args}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in docstrings:
            continue
        segments = set() if " " in node.value else set(node.value.split("/"))
        names = segments & FILES | {s for s in segments if s.endswith(SUFFIXES) or s.startswith("step_*")}
        names |= segments & FOLDERS if id(node) in in_paths else set()
        yield from ((node.lineno, name) for name in sorted(names))


def test_only_storage_knows_what_a_run_directory_looks_like():
    assert faults(PACKAGE) == []


def test_the_names_that_are_looked_for_are_those_of_the_owner():
    """A name that the owner changes is changed here too, or nothing would be looked for."""
    source = "".join(Path(module.__file__ or "").read_text() for module in (run_folder, commits))
    for name in (*FILES, *SUFFIXES, *FOLDERS):
        assert f'{name}"' in source, name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ('x = folder / "summary.json"', "summary.json"),
        ('NAME = "metrics.jsonl"', "metrics.jsonl"),
        ('files = folder.glob("trials/*/config.yaml")', "config.yaml"),
        ('x = folder / f"{label}_samples.jsonl"', "_samples.jsonl"),
        ('x = folder / "evaluations" / label', "evaluations"),
        ('x = str(folder / "model")', "model"),
        ('x = Path(folder, "adapter")', "adapter"),
        ('x = folder.glob("commits/step_*")', "commits"),
    ],
)
def test_a_name_elsewhere_is_found(tmp_path, source, name):
    (tmp_path / "controllers").mkdir()
    (tmp_path / "storage").mkdir()
    for part in ("controllers", "storage"):
        (tmp_path / part / "one.py").write_text(f'"""Reads summary.json."""\n{source}\n')
    assert faults(tmp_path)[0] == f"controllers/one.py:2: {name}"


@pytest.mark.parametrize(
    "source",
    [
        'tree = {"model": {"path": "task:model"}}',
        'message = "metrics.jsonl and summary.json are in the run directory"',
        'def f():\n    """metrics.jsonl"""',
        "parts = text.split('model')",
    ],
)
def test_other_uses_of_the_words_are_fine(tmp_path, source):
    (tmp_path / "one.py").write_text(source)
    assert faults(tmp_path) == []
