"""Import of a user's function or class by its name."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from raylign.errors import UserError


def import_callable(spec: str, place: str, kind: str, example: str) -> Callable[..., Any]:
    """Import the function or class that `package.module:name` or `path/to/file.py:name` names.

    This runs the module's code: make sure first that the user permits it (`allow_code: true`).

    Args:
        spec: module or file, a colon, and a name at its top level.
        place: dotted config path, for the error messages.
        kind: "function" or "class", for the error messages.
        example: a definition to suggest, with {name} in place of its name.
    Raises:
        UserError: spec is malformed, its module, file or name does not exist, or its code fails during import.
    """
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name:
        raise UserError(f"{place}: {spec!r}: write it as package.module:{kind} or path/to/file.py:{kind}")
    try:
        module = _import_file(Path(source), place) if source.endswith(".py") else importlib.import_module(source)
    except UserError:
        raise
    except Exception as e:
        if isinstance(e, ModuleNotFoundError) and e.name and f"{source}.".startswith(f"{e.name}."):
            problem = f"no module {source!r}; install its package, or give the path of a .py file"
        else:
            problem = f"importing {source} fails with {type(e).__name__}: {' '.join(str(e).split())}; fix it"
        raise UserError(f"{place}: {problem}") from e
    target = vars(module).get(name)
    if not callable(target):
        close = difflib.get_close_matches(name, [k for k, v in vars(module).items() if callable(v)], n=1)
        hint = f"did you mean {close[0]}?" if close else f"define it: {example.format(name=name)}"
        raise UserError(f"{place}: {source} has no {kind} {name!r}; {hint}")
    return target


def _import_file(path: Path, place: str) -> ModuleType:
    if not path.is_file():
        raise UserError(f"{place}: no such file: {path}; check the path")
    path = path.resolve()
    # Two files with the same name must not become one module.
    name = f"raylign_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{place}: {path} is not a Python file; give the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
