"""Users import public names only: what README, docs and recipes import is exported, and importing raylign stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import raylign

ROOT = Path(__file__).parents[3]
# Modules that a user may import from. docs/extending.md lists them too.
PUBLIC = {"raylign", "raylign.config", "raylign.tasks.exact_optimum"}
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").glob("*.py")])


def code_blocks(text: str) -> list[str]:
    """Return the Python blocks of a page, without those that show a file of raylign itself (`# raylign/...`)."""
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [block for block in blocks if not block.startswith("# raylign/")]


def internal_imports(code: str) -> list[str]:
    """Return every import of something that raylign does not export, as `module.name`."""
    faults = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "raylign":
            public = node.module in PUBLIC
            for alias in node.names:
                exported = node.module != "raylign" or alias.name in raylign.__all__
                if not (public and exported):
                    faults.append(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            faults += [a.name for a in node.names if a.name.startswith("raylign.") and a.name not in PUBLIC]
    return faults


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_and_recipes_import_public_names_only(page):
    text = page.read_text()
    codes = [text] if page.suffix == ".py" else code_blocks(text)
    assert [fault for code in codes for fault in internal_imports(code)] == []


def test_there_is_code_to_check():
    with_code = {page.name for page in PAGES if page.suffix == ".py" or code_blocks(page.read_text())}
    assert {"README.md", "quickstart.py", "sweeps.md", "tasks.md", "extending.md"} <= with_code


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("from raylign.controllers.run import run", "raylign.controllers.run.run"),
        ("from raylign import load_config, controllers", "raylign.controllers"),
        ("def f():\n    import raylign.actors.session", "raylign.actors.session"),
    ],
)
def test_an_internal_import_is_found(code, fault):
    (block,) = code_blocks(f"Text.\n\n```python\n{code}\n```\n")
    assert internal_imports(block) == [fault]


def test_a_block_of_the_tree_may_import_internals():
    assert (
        code_blocks("```python\n# raylign/cluster/mine.py\nfrom raylign.cluster.spec import ClusterSpec\n```\n") == []
    )


@pytest.mark.parametrize("name", raylign.__all__)
def test_every_exported_name_is_there(name):
    assert getattr(raylign, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'raylign' has no attribute 'nothing'"):
        _ = raylign.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_raylign_is_light():
    code = "import sys, raylign; print(*(m for m in ('torch', 'ray', 'vllm', 'transformers', 'pydantic') if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""
