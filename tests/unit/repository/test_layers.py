"""The architecture as a test: imports point down, no files import each other in a circle, heavy libraries stay in place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "raylign"

# Low to high; a part may import those before it. A new part of raylign is added here, or the test fails.
LAYERS = (
    "errors",
    "version",
    "files",
    "user_code",
    "config",
    "storage",
    "types",
    "algorithms",
    "data",
    "models",
    "rollout",
    "tasks",
    "rewards",
    "learners",
    "pipeline",
    "tracking",
    "actors",
    "cluster",
    "planning",
    "controllers",
    "tuning",
    "compare",
    "doctor",
    "cli",
    "__init__",
    "__main__",
)
RANK = {part: rank for rank, part in enumerate(LAYERS)}
RAY_USERS = {"actors", "controllers", "tuning", "cli"}
HEAVY = {"torch", "ray", "vllm", "transformers"}
LIGHT = {"errors", "version", "files", "config", "types"}
# Attributes that some objects of other libraries lack. What a config of ours has is known: ask its class.
OPTIONAL_ELSEWHERE = {"problem", "problem_mark", "max_position_embeddings", "num_key_value_heads", "head_dim"}


def layer_faults(package: Path) -> list[str]:
    """Return every import that breaks a rule, as `file:line: problem`; imports inside functions count too."""
    faults = []
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package)
        part = inside.parts[0].removesuffix(".py")
        if part not in RANK:
            faults.append(f"{inside}:1: {part} has no layer; add it to LAYERS")
            continue
        for line, module, lazy in imports(file, package):
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
            elif top in HEAVY and part in LIGHT:
                problem = f"{part} imports {top}, and --help would wait for it"
            if problem:
                faults.append(f"{inside}:{line}: {problem}")
    return faults


def missing_parts(package: Path, layers: tuple[str, ...]) -> list[str]:
    """Return the names of layers that the package does not have."""
    return [part for part in layers if not ((package / part).is_dir() or (package / f"{part}.py").is_file())]


def circles(package: Path) -> list[list[str]]:
    """Return the groups of files that import each other in a circle: the strongly connected components of two or more.

    Imports inside functions and for type checkers count too. That `a.b` also runs `a/__init__.py` does not.
    """
    modules = {_module(file, package): file for file in sorted(package.rglob("*.py"))}
    needs = {
        module: sorted({name for _, name, _ in imports(file, package) if name in modules} - {module})
        for module, file in modules.items()
    }
    reaches = {module: _reachable(module, needs) for module in modules}
    groups = {frozenset({module, *(m for m in reaches[module] if module in reaches[m])}) for module in modules}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def probes(package: Path) -> list[str]:
    """Return every hasattr, and every getattr with a default for an attribute not in OPTIONAL_ELSEWHERE, as `file:line`."""
    faults = []
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="getattr"), args=[_, name, default]) if not isinstance(
                    default, ast.Starred
                ):
                    allowed = isinstance(name, ast.Constant) and name.value in OPTIONAL_ELSEWHERE
                case ast.Call(func=ast.Name(id="hasattr")):
                    allowed = False
                case _:
                    continue
            if not allowed:
                faults.append(f"{file.relative_to(package)}:{node.lineno}: {ast.unparse(node)}")
    return faults


def imports(file: Path, package: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield (line, absolute name of the module, inside a function) of every import statement."""
    tree = ast.parse(file.read_text())
    lazy = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, node in lazy
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = node.module or ""
                assert not node.level, f"{file}:{node.lineno}: a relative import; write it from raylign on"
                # `from raylign.config import load` names a module where there is one, else a name in __init__.py.
                inside = (
                    package.parent.joinpath(*module.split("."), alias.name) if module.startswith("raylign") else None
                )
                if inside and (inside.is_dir() or inside.with_suffix(".py").is_file()):
                    module = f"{module}.{alias.name}"
                yield node.lineno, module, node in lazy


def _module(file: Path, package: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _reachable(start: str, needs: dict[str, list[str]]) -> set[str]:
    reached, ahead = set(), list(needs[start])
    while ahead:
        module = ahead.pop()
        if module not in reached:
            reached.add(module)
            ahead += needs[module]
    return reached


def test_imports_point_down():
    assert list(PACKAGE.rglob("*.py")), "no source was found: the test looks in the wrong place"
    assert layer_faults(PACKAGE) == []


def test_every_layer_exists():
    assert missing_parts(PACKAGE, LAYERS) == []


def test_no_files_import_each_other_in_a_circle():
    assert circles(PACKAGE) == []


def test_attributes_are_not_probed():
    assert probes(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        (
            "data/sampler.py",
            "import raylign.learners.policy",
            "data/sampler.py:1: data imports learners, which is above",
        ),
        ("types.py", "\nfrom raylign import config, cli", "types.py:2: types imports cli, which is above it"),
        (
            "planning/plan.py",
            "from raylign.controllers.sampling import Sampling",
            "planning/plan.py:1: planning imports controllers, which is above it",
        ),
        ("errors.py", "from raylign import run", "errors.py:1: errors imports __init__, which is above it"),
        ("errors.py", "from raylign import __version__", "errors.py:1: errors imports __init__, which is above it"),
        (
            "tasks/exact.py",
            "from raylign.rewards import task",
            "tasks/exact.py:1: tasks imports rewards, which is above",
        ),
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
    package = plant(tmp_path, {"cli.py": "", "config/__init__.py": "", file: source})
    (found,) = layer_faults(package)
    assert found.startswith(fault)


def test_a_layer_that_does_not_exist_is_found(tmp_path):
    package = plant(tmp_path, {"data/__init__.py": "", "cli.py": ""})
    assert missing_parts(package, ("data", "labeling", "cli", "api")) == ["labeling", "api"]


@pytest.mark.parametrize(
    ("tree", "circle"),
    [
        (
            {"data/a.py": "from raylign.data.b import f", "data/b.py": "def f():\n    from raylign.data import a"},
            ["raylign.data.a", "raylign.data.b"],
        ),
        (
            {"data/__init__.py": "from raylign.data.a import A", "data/a.py": "import raylign.data"},
            ["raylign.data", "raylign.data.a"],
        ),
        (
            {
                "a.py": "import raylign.b",
                "b.py": "import raylign.c",
                "c.py": "import raylign.a",
                "d.py": "import raylign.a",
            },
            ["raylign.a", "raylign.b", "raylign.c"],
        ),
    ],
)
def test_a_circle_is_found(tmp_path, tree, circle):
    assert circles(plant(tmp_path, tree)) == [circle]


def test_a_probe_is_found(tmp_path):
    source = (
        'kl = getattr(config.algorithm, "kl", None)\nmark = getattr(error, "problem_mark", None)\nhasattr(kl, "coef")'
    )
    faults = ["data/a.py:1: getattr(config.algorithm, 'kl', None)", "data/a.py:3: hasattr(kl, 'coef')"]
    assert probes(plant(tmp_path, {"data/a.py": source})) == faults


def test_a_good_tree_has_no_faults(tmp_path):
    tree = {
        "__init__.py": "def run():\n    import ray\n    from raylign.controllers import online\n",
        "actors/policy.py": "import ray\nfrom raylign.learners.policy import Policy",
        "config/__init__.py": "from raylign.errors import ConfigError\nfrom raylign.config.load import load_config",
        "config/load.py": "from raylign.errors import ConfigError",
        "controllers/online.py": "",
        "errors.py": "",
        "learners/policy.py": "from raylign.config import load_config",
        "rollout/vllm_engine.py": "def make():\n    import vllm",
        "rewards/task.py": "from raylign.tasks import score",
        "cli.py": "import ray\nfrom raylign import config, controllers",
        "tracking/tracker.py": "from raylign.version import __version__",
    }
    package = plant(tmp_path, tree)
    assert (layer_faults(package), circles(package), probes(package)) == ([], [], [])


def plant(folder: Path, tree: dict[str, str]) -> Path:
    package = folder / "raylign"
    for name, source in tree.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    return package


def unmirrored(tests: Path, package: Path) -> list[str]:
    """Return the unit tests that do not lie in the folder of their package, or beside a module of their name.

    `repository/` holds the tests of the repository itself: its layers, words, pages and examples.
    """
    folders = {file.name for file in package.iterdir() if file.is_dir()} | {"repository"}
    modules = {f"test_{file.stem}" for file in package.glob("*.py")}
    faults = []
    for test in sorted(tests.rglob("test_*.py")):
        folder, *deeper = test.relative_to(tests).parts
        if not deeper and test.stem not in modules:
            faults.append(f"{test.name}: raylign has no module of this name; move the test to its package's folder")
        elif deeper and (folder not in folders or len(deeper) > 1):
            faults.append(f"{test.relative_to(tests)}: {folder} is not a package of raylign")
    return faults


def test_unit_tests_mirror_the_package():
    assert unmirrored(PACKAGE.parent / "tests" / "unit", PACKAGE) == []


def test_a_unit_test_in_the_wrong_folder_is_found(tmp_path):
    package = plant(tmp_path / "raylign", {"files.py": "", "data/sampler.py": ""})
    tests = plant(
        tmp_path / "tests",
        {"test_files.py": "", "data/test_sampler.py": "", "test_sampler.py": "", "api/test_a.py": ""},
    )
    assert unmirrored(tests, package) == [
        "api/test_a.py: api is not a package of raylign",
        "test_sampler.py: raylign has no module of this name; move the test to its package's folder",
    ]
