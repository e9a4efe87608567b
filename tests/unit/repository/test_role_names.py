"""Roles are typed fields: no loop chooses an actor group, or a method of its actors, by a string."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = (
    Path(__file__).parents[next(i for i, p in enumerate(Path(__file__).parents) if p.name == "tests") + 1] / "raylign"
)
ROLES = frozenset({"policy", "critic", "reference", "reward", "evaluator", "rollout"})
PARTS = ("actors", "controllers")
LAUNCHING = {"launch.py", "role_builds.py"}  # where names of roles become groups
LOOKUPS = {"get", "pop", "setdefault", "getattr", "hasattr", "dismiss"}


def faults(source: str) -> list[tuple[int, str]]:
    """(line, problem) of every place where a group, or a method of an actor, is chosen by a string."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Subscript(slice=ast.Constant(value=str(role))) if role in ROLES:
                problems.append((node.lineno, f"[{role!r}]"))
            case ast.Compare(left=ast.Constant(value=str(role)), ops=[ast.In() | ast.NotIn()]) if role in ROLES:
                problems.append((node.lineno, f"{role!r} in ..."))
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=arguments) if name in LOOKUPS and any(
                isinstance(argument, ast.Constant) and argument.value in ROLES for argument in arguments
            ):
                problems.append((node.lineno, f"{name} of a role"))
            case ast.Attribute(attr="remote", value=ast.Call(func=ast.Name(id="getattr"))):
                problems.append((node.lineno, "a method of an actor by its name"))
            case _:
                pass
    return problems


def test_no_role_is_looked_up_by_a_string():
    files = [file for part in PARTS for file in sorted((PACKAGE / part).rglob("*.py")) if file.name not in LAUNCHING]
    assert len(files) > 20, "no source was found: the test looks in the wrong place"
    assert [f"{file.name}:{line}: {problem}" for file in files for line, problem in faults(file.read_text())] == []


def test_the_launching_files_are_the_exception():
    """Negative control on real code: these two files do choose by name, so the test above sees such places."""
    assert all(faults(file.read_text()) for file in [PACKAGE / "controllers" / "launch.py"])


@pytest.mark.parametrize(
    "source",
    [
        'roles["policy"].head',
        'x = 1 if "critic" in roles else 2',
        'if "reference" not in roles: pass',
        'roles.groups.get("rollout")',
        'getattr(roles, "reward")',
        'roles.dismiss("reference")',
        "getattr(group[i], method).remote(batch)",
    ],
)
def test_a_lookup_is_found(source: str):
    assert len(faults(source)) == 1


def test_names_in_messages_and_settings_are_no_fault():
    assert faults('config.role_resources("evaluator")\nraise ValueError("policy")\nfetch(refs, "update", step)\n') == []
