"""The architecture of docs and DESIGN as a test: imports point down, and heavy libraries stay in their place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "raylign"

# Low to high; parts of one row may use each other. A new part of raylign is added here, or the test fails.
LAYERS = (
    ("errors", "files", "version", "types", "config", "user_code"),
    ("algorithms",),
    ("data",),
    ("models",),
    ("rollout", "rewards", "tasks"),
    ("learners",),
    ("tracking",),
    ("actors",),
    ("controllers",),
    ("tuning", "compare", "labeling", "cluster", "planning", "doctor"),
    ("api", "cli", "__init__", "__main__"),
)
RANK = {part: rank for rank, row in enumerate(LAYERS) for part in row}
RAY_USERS = {"actors", "controllers", "tuning", "cli"}
HEAVY = {"torch", "ray", "vllm", "transformers"}


def faults(package: Path) -> list[str]:
    """Every import of the package that breaks a rule, as `file:line: problem`; imports inside functions count too."""
    found = []
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package)
        part = inside.parts[0].removesuffix(".py")
        if part not in RANK:
            found.append(f"{inside}:1: {part} has no layer; add it to LAYERS")
            continue
        for line, module, lazy in imports(ast.parse(file.read_text()), package):
            top, *below = module.split(".")
            problem = None
            if top == "raylign":
                other = below[0] if below else "__init__"
                if RANK.get(other, len(LAYERS)) > RANK[part]:
                    problem = f"{part} imports {other}, which is above it"
            elif top == "ray" and part not in RAY_USERS and not (part == "__init__" and lazy):
                problem = f"{part} imports ray; only {', '.join(sorted(RAY_USERS))} may"
            elif top == "vllm" and inside != Path("rollout/vllm_engine.py"):
                problem = f"{part} imports vllm; only rollout/vllm_engine.py may"
            elif top in HEAVY and part in ("config", "errors", "files", "types", "version"):
                problem = f"{part} imports {top}, and --help would wait for it"
            if problem:
                found.append(f"{inside}:{line}: {problem}")
    return found


def imports(tree: ast.AST, package: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, absolute module, inside a function) of every import statement."""
    lazy = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, node in lazy
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = node.module or ""
                # `from raylign import x` names a part where x is one, else something of raylign/__init__.
                if module == "raylign" and ((package / alias.name).is_dir() or (package / f"{alias.name}.py").exists()):
                    module = f"raylign.{alias.name}"
                yield node.lineno, module, node in lazy


def test_imports_point_down():
    assert list(PACKAGE.rglob("*.py")), "no source was found: the test looks in the wrong place"
    assert faults(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        (
            "data/sampler.py",
            "import raylign.learners.policy",
            "data/sampler.py:1: data imports learners, which is above",
        ),
        ("types.py", "\nfrom raylign import config, cli", "types.py:2: types imports cli, which is above it"),
        ("errors.py", "from raylign import run", "errors.py:1: errors imports __init__, which is above it"),
        ("learners/policy.py", "def f():\n    import ray.util", "learners/policy.py:2: learners imports ray; only"),
        ("rewards/model.py", "from vllm import LLM", "rewards/model.py:1: rewards imports vllm; only"),
        ("rollout/engine.py", "import vllm", "rollout/engine.py:1: rollout imports vllm; only"),
        ("config/run.py", "import torch", "config/run.py:1: config imports torch"),
        ("config/run.py", "from transformers import AutoModel", "config/run.py:1: config imports transformers"),
        ("__init__.py", "import ray", "__init__.py:1: __init__ imports ray; only"),
        ("helpers/misc.py", "", "helpers/misc.py:1: helpers has no layer"),
    ],
)
def test_a_bad_import_is_found(tmp_path, file, source, fault):
    plant(tmp_path, {"cli.py": "", "config/__init__.py": "", file: source})
    (found,) = faults(tmp_path)
    assert found.startswith(fault)


def test_a_good_tree_has_no_faults(tmp_path):
    tree = {
        "__init__.py": "def run():\n    import ray\n    from raylign.controllers import online\n",
        "actors/policy.py": "import ray\nfrom raylign.learners.policy import Policy",
        "config/__init__.py": "from raylign.errors import ConfigError",
        "rollout/vllm_engine.py": "def make():\n    import vllm",
        "rewards/task.py": "from raylign.tasks import score",
        "cli.py": "import ray\nfrom raylign import config, controllers",
        "tracking/tracker.py": "from raylign.version import __version__",
    }
    plant(tmp_path, tree)
    assert faults(tmp_path) == []


def plant(root: Path, tree: dict[str, str]) -> None:
    for name, source in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
