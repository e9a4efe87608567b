"""docs/architecture.md lists every file of raylign exactly once, and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[next(i for i, p in enumerate(Path(__file__).parents) if p.name == "tests") + 1]
PAGE = ROOT / "docs" / "architecture.md"


def listed(page: str) -> list[str]:
    """Return the paths that the page lists. The line below a package's heading stands for its `__init__.py`."""
    paths, folder = [], None
    for line in page.splitlines():
        if heading := re.fullmatch(r"### `(raylign/(?:\w+/)*)`", line):
            folder = heading.group(1)
            if folder != "raylign/":
                paths.append(f"{folder}__init__.py")
        elif item := re.match(r"- `(\w+\.py)`: \S", line):
            paths.append(f"{folder}{item.group(1)}")
    return paths


def faults(page: str, root: Path) -> list[str]:
    """Return every difference between the page's list and the tree, as `path: problem`."""
    counts = Counter(listed(page))
    tree = {path.relative_to(root).as_posix() for path in (root / "raylign").rglob("*.py")}
    return [
        *(f"{path}: not listed; add a line to docs/architecture.md" for path in sorted(tree - counts.keys())),
        *(f"{path}: listed, but does not exist; remove its line" for path in sorted(counts.keys() - tree)),
        *(f"{path}: listed {count} times; keep one line" for path, count in counts.items() if count > 1),
    ]


def test_the_list_is_the_tree():
    assert faults(PAGE.read_text(), ROOT) == []


def test_the_picture_of_the_layers_has_every_part():
    (picture,) = re.findall(r"^## Layers\n.*?```\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    parts = {word for line in picture.splitlines() for word in line[:52].split()}
    in_tree = {
        path.stem for path in (ROOT / "raylign").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts == in_tree - {"__init__", "__main__"}


TREE = ("__init__.py", "data/__init__.py", "data/a.py")
GOOD = "### `raylign/`\n\n- `__init__.py`: names\n\n### `raylign/data/`\n\nRows.\n\n- `a.py`: first\n"


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        (GOOD, None),
        (GOOD.replace("- `a.py`: first\n", ""), "raylign/data/a.py: not listed"),
        (
            GOOD.replace("- `a.py`: first\n", "- `a.py`: \n"),
            "raylign/data/a.py: not listed",
        ),  # a line without a caption
        (GOOD + "- `b.py`: second\n", "raylign/data/b.py: listed, but does not exist"),
        (GOOD + "- `a.py`: again\n", "raylign/data/a.py: listed 2 times"),
    ],
)
def test_a_wrong_list_is_found(tmp_path, page, fault):
    for name in TREE:
        (tmp_path / "raylign" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raylign" / name).touch()
    found = faults(page, tmp_path)
    assert [text.split(";")[0] for text in found] == ([fault] if fault else [])
