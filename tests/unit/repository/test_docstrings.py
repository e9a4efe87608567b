"""The plain English of CONTRIBUTING as a test: a docstring's first line makes sense alone, and some words are banned.

A docstring is read in an editor's hover, away from its code. "Of one run." says nothing there; "Cost of one run." does.
No docstring is demanded; those that exist are held to the rule, and so are messages, comments and the docs.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[next(i for i, p in enumerate(Path(__file__).parents) if p.name == "tests") + 1]

# Packages and files not yet rewritten. Remove a line when its part passes; the list ends empty.
PENDING: tuple[str, ...] = ()

# First words that leave a fragment without its subject. Modules may begin so: their subject is the file.
OPENINGS = (
    *("Of", "What", "Whether", "As", "For a", "From", "How", "It", "They", "Those", "Who"),
    *("With", "Without", "The same", "See"),
)
_OPENING = re.compile(rf"(?:{'|'.join(OPENINGS)})\s")

# The pattern and what to write instead.
BANNED = {
    r"told|tells": "say, report, distinguish",
    r"mend(?:s|ed|ing)?": "fix",
    r"goes on|go on with": "continue",
    r"is whole": "is intact",
    r"judged": "evaluated",
    r"of yours": "your own",
    r"stands there": "is listed",
}
_BANNED = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)

# A sentence that a task generates: data, whose bytes must not change.
_DATA = "nobody told me that"

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def faults(root: Path) -> list[str]:
    """Every breach of the rules below root, as `file:line: problem`."""
    problems = []
    for file in sorted((root / "raylign").rglob("*.py")):
        place = file.relative_to(root)
        problems += [f"{place}:{line}: {problem}" for line, problem in faults_of_source(file.read_text())]
    for file in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        for line, text in enumerate(file.read_text().splitlines(), 1):
            problems += [f"{file.relative_to(root)}:{line}: {problem}" for _, problem in banned(line, text)]
    return problems


def faults_of_source(source: str) -> list[tuple[int, str]]:
    """(line, problem) of the docstrings, messages and comments of a Python file, in the order of its lines."""
    tree = ast.parse(source)
    problems = [
        (line, f"the docstring begins with {opening.group().strip()!r}; name the thing or begin with a verb")
        for line, text in docstrings(tree)
        if (opening := _OPENING.match(text))
    ]
    # Every literal with a space is prose for somebody: a docstring, a message, a help text.
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"\s", node.value):
            problems += banned(node.lineno, node.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            problems += banned(token.start[0], token.string)
    return sorted(set(problems))


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of the docstrings of classes, functions, properties and fields (a string after an assignment)."""
    for node in ast.walk(tree):
        if isinstance(node, Definition) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text
        if isinstance(node, ast.ClassDef | ast.Module):
            for before, after in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(before, ast.Assign | ast.AnnAssign)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                    and isinstance(after.value.value, str)
                ):
                    yield after.lineno, after.value.value.strip()


def banned(first_line: int, text: str) -> list[tuple[int, str]]:
    """(line, problem) of every banned word in a text that begins at first_line."""
    problems = []
    for match in _BANNED.finditer(text.replace(_DATA, " " * len(_DATA))):
        word = " ".join(match.group().split())
        advice = next(say for pattern, say in BANNED.items() if re.fullmatch(pattern, match.group(), re.IGNORECASE))
        problems.append((first_line + text.count("\n", 0, match.start()), f"{word!r} is banned; write {advice}"))
    return problems


def test_plain_english():
    assert (ROOT / "raylign").is_dir(), "no source was found: the test looks in the wrong place"
    assert [fault for fault in faults(ROOT) if not fault.startswith(PENDING)] == []


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """{} run."""\n',
        'class C:\n    """{} run."""\n',
        'class C:\n    @property\n    def p(self):\n        """{} run."""\n',
        'class C:\n    seed: int = 0\n    """{} run."""\n',
        'def f():\n    async def g():\n        """{}\n        run."""\n',
    ],
    ids=["function", "class", "property", "field", "inner function"],
)
def test_a_fragment_is_a_fault(source: str, opening: str):
    assert any("begins with" in problem for _, problem in faults_of_source(source.format(opening)))


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ('def f():\n    """Return the row.\n\n    The caller mends it.\n    """\n', 4),
        ('raise ValueError("the row is wrong; mend it")\n', 1),
        ('raise ValueError(f"{x}: " f"the run goes on with {y}")\n', 1),
        ('print(\n    "Told by the trial"\n)\n', 2),
        ('"""A module that tells."""\n', 1),
        ("x = 1  # is whole\n", 1),
    ],
    ids=["docstring", "exception", "f-string", "print", "module", "comment"],
)
def test_a_banned_word_is_a_fault(source: str, line: int):
    assert [at for at, problem in faults_of_source(source) if "is banned" in problem] == [line]


def test_what_is_no_fault():
    source = (
        '"""What crosses actors."""\n'
        'class Outcome:\n    """Cost of one run; what it took."""\n'
        'def assemble():\n    """Assert, recommend, amend: whole words only."""\n    return "mend"\n'
        'def f():\n    return "a b"\n'
    )
    assert faults_of_source(source) == []


def test_docs_are_read(tmp_path: Path):
    (tmp_path / "docs" / "inner").mkdir(parents=True)
    (tmp_path / "README.md").write_text("Plain.\n\nThe run goes on.\n")
    (tmp_path / "docs" / "inner" / "page.md").write_text("The seed stands there twice.\n")
    assert [fault.split(": ")[0] for fault in faults(tmp_path)] == ["README.md:3", "docs/inner/page.md:1"]
