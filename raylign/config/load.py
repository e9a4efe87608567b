"""Load configs from YAML and `dotted.key=value` overrides, with errors that name the line and the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from raylign.config.base import Config
from raylign.config.run import RunConfig
from raylign.errors import ConfigError

C = TypeVar("C", bound=Config)
Loc = tuple[str | int, ...]

RENAMED = {
    "budget.of_each": "budget.amount",
    "budget.per": "budget.unit",
    "budget.seconds": "budget.max_seconds",
    "budget.trials": "budget.max_trials",
}
"""New dotted key of each renamed key. The old key is an error that names the new one, if the config has the new one."""


class Lines(dict[Loc, str | int]):
    """The place that set each key: a line number of the file, or the text of the override or option."""

    def place(self, keys: Loc, file: str | Path) -> str:
        """Return `file:line` of a key, or of the nearest key above it; an override or option as it is written."""
        place = next((self[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in self), 1)
        return place if isinstance(place, str) else f"{file}:{place}"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run config.

    Args:
        path: YAML file.
        overrides: `dotted.key=value`, the value read as YAML; applied in order over the file.
    Raises:
        ConfigError: unreadable file, bad YAML, unknown key, wrong type or contradiction; one line each,
            `file:line: dotted.key: problem`.
    """
    tree, lines = read_tree(path)
    return build_config(path, tree, lines, overrides)


def read_tree(path: str | Path, what: str = "a run config") -> tuple[dict[str, Any], Lines]:
    """Read a YAML file without checking its keys.

    Args:
        path: the file.
        what: the kind of config, for the error message.
    Returns:
        The mapping in the file, and the line of each of its keys.
    Raises:
        ConfigError: unreadable file, bad YAML, or not a mapping.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except OSError as e:
        raise ConfigError([f"{path}: cannot read the config: {e.strerror or e}; check the path"]) from None
    try:
        tree = yaml.safe_load(text)
        lines = _lines(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = " ".join(str(getattr(e, "problem", None) or e).split())
        raise ConfigError([f"{place}: not valid YAML: {problem}; check indentation and quotes"]) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"{path}:1: {what} is a mapping of keys to values; this file is not"])
    return tree, lines


def build_config(path: str | Path, tree: dict[str, Any], lines: Lines, overrides: Sequence[str]) -> RunConfig:
    """Apply overrides to the tree of a file and validate it. Raises: see `load_config`."""
    for text in overrides:
        _override(tree, lines, text)
    return parse_config(anchor(tree, Path(path).resolve().parent), str(path), lines)


def parse_config(tree: dict[str, Any], source: str = "config", lines: Lines | None = None) -> RunConfig:
    """Validate a config given as nested dicts; `source` and `lines` only serve the error messages."""
    return parse_as(RunConfig, tree, source, lines)


def parse_as(kind: type[C], tree: dict[str, Any], source: str, lines: Lines | None = None) -> C:
    """Validate nested dicts as a given kind of config, with errors of the same form as `load_config`.

    Raises:
        ConfigError: one line for each fault.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as e:
        faults = _without_consequences(kind, e.errors())
        raise ConfigError([_explain(kind, fault, source, lines or Lines()) for fault in faults]) from None


def anchor(node: Any, folder: Path) -> Any:
    """Make every `run:other.yaml` in a tree absolute; such paths are relative to the config that contains them."""
    if isinstance(node, dict):
        return {key: anchor(value, folder) for key, value in node.items()}
    if isinstance(node, str) and node.startswith("run:"):
        return f"run:{(folder / node.removeprefix('run:')).resolve()}"
    return node


def _override(tree: dict[str, Any], lines: Lines, text: str) -> None:
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError([f"override {text!r}: write it as dotted.key=value"])
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        raise ConfigError([f"override {text!r}: the value is not valid YAML; quote it"]) from None
    loc = tuple(key.strip().split("."))
    try:
        _holder(tree, loc)[loc[-1]] = value
    except ValueError as e:
        raise ConfigError([f"override {text!r}: {e}"]) from None
    lines[loc] = f"override {text!r}"


def set_value(tree: dict[str, Any], lines: Lines, dotted: str, value: Any, place: str) -> None:
    """Set a dotted key of a tree; `place` is where errors about its value point.

    Raises:
        ValueError: a key above it has a value.
    """
    loc = tuple(dotted.split("."))
    _holder(tree, loc)[loc[-1]] = value
    for depth in range(1, len(loc)):
        lines.setdefault(loc[:depth], place)
    for known in [known for known in lines if known[: len(loc)] == loc]:
        del lines[known]
    lines[loc] = place


def value_at(tree: dict[str, Any], key: str, default: Any = None) -> Any:
    """Return the value of a dotted key in a tree."""
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node


def _holder(tree: dict[str, Any], loc: Sequence[str]) -> dict[str, Any]:
    """Return the mapping that contains the last key of a path; create it if it is missing."""
    node = tree
    for depth, key in enumerate(loc[:-1]):
        child = node.get(key)
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            raise ValueError(f"{'.'.join(loc[: depth + 1])} is the value {child!r} and has no keys below it")
        node = child
    return node


def _lines(node: yaml.Node | None, at: Loc = ()) -> Lines:
    """Return the line number of every key of a YAML tree, by the key's path."""
    lines = Lines()
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*at, key.value)] = key.start_mark.line + 1
            lines |= _lines(value, (*at, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*at, i)] = value.start_mark.line + 1
            lines |= _lines(value, (*at, i))
    return lines


def _without_consequences(root: type[BaseModel], faults: Sequence[Any]) -> list[Any]:
    """Drop "missing" faults of keys that are there by their old name, which is a fault already."""
    kept, renamed = [], set()
    for fault in sorted(faults, key=lambda fault: fault["type"] == "missing"):  # these last
        keys, owner = _walk(root, fault["loc"])
        dotted = ".".join(map(str, keys))
        if fault["type"] == "extra_forbidden":
            renamed.add(_new_key(root, dotted, owner))
        if fault["type"] != "missing" or dotted not in renamed:
            kept.append(fault)
    return [fault for fault in faults if fault in kept]


def _new_key(root: type[BaseModel], old: str, owner: type[BaseModel] | None) -> str | None:
    """Return the new name of an old key, or None if this kind of config has no such key. `owner` lacks the old key."""
    new = RENAMED.get(old, "")
    section, _, name = new.rpartition(".")
    if section == old.rpartition(".")[0]:
        return new if owner and name in owner.model_fields else None
    return new if new and _has_key([root], new.split(".")) else None


def _has_key(kinds: Sequence[type[BaseModel]], keys: Sequence[str]) -> bool:
    fields = [kind.model_fields[keys[0]] for kind in kinds if keys[0] in kind.model_fields]
    below = [kind for field in fields for kind in _classes(field.annotation)]
    return bool(fields) and (len(keys) == 1 or _has_key(below, keys[1:]))


def _explain(root: type[BaseModel], fault: Any, source: str, lines: Lines) -> str:
    keys, owner = _walk(root, fault["loc"])
    tag_key = fault.get("ctx", {}).get("discriminator", "").strip("'")
    if fault["type"] == "union_tag_invalid":
        keys = (*keys, tag_key)
    where = lines.place(keys, source) if lines else source
    dotted = ".".join(map(str, keys))
    message = fault["msg"].removeprefix("Value error, ")
    match fault["type"]:
        case "extra_forbidden":
            new = _new_key(root, dotted, owner)
            message = f"unknown key; {nearest(str(keys[-1]), owner.model_fields if owner else ())}"
            if new:
                section, _, name = new.rpartition(".")
                message = f"renamed to {name if section == dotted.rpartition('.')[0] else new}; write that instead"
        case "missing":
            message = "this key is required; add it"
        case "union_tag_not_found":
            message = f"say which one with {tag_key}: one of {_tags(root, keys)}"
        case "union_tag_invalid":
            tags = [t.strip(" '") for t in fault["ctx"]["expected_tags"].split(",")]
            message = f"unknown {tag_key} {fault['ctx']['tag']!r}; {nearest(str(fault['ctx']['tag']), tags)}"
        case "value_error":
            pass
        case _:
            message = f"{message[0].lower()}{message[1:]}, not {fault['input']!r}"
    return f"{where}: {dotted}: {message}" if dotted else f"{where}: {message}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of a message: the known word that was probably meant, or all known words."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def _walk(root: type[BaseModel], loc: Loc) -> tuple[Loc, type[BaseModel] | None]:
    """Return a path as the user writes it (pydantic inserts union tags), and the class that has its last key."""
    keys: list[str | int] = []
    kinds: list[type[BaseModel]] = [root]
    owner: type[BaseModel] | None = root
    is_mapping = False  # the next key is the user's own, and its value one of `kinds`
    for part in loc:
        if is_mapping:
            keys.append(part)
            is_mapping = False
            continue
        tagged = [k for k in kinds if part in _tags_of(k)]
        if len(kinds) > 1 and tagged:
            kinds = tagged
            continue
        owner = kinds[0] if len(kinds) == 1 else None
        keys.append(part)
        known = owner.model_fields.get(str(part)) if owner else None
        kinds = _classes(known.annotation) if known else []
        is_mapping = known is not None and get_origin(known.annotation) is dict
    return tuple(keys), owner


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [c for arg in get_args(annotation) for c in _classes(arg)]


def _tags_of(kind: type[BaseModel]) -> tuple[Any, ...]:
    for name in ("name", "type"):
        if name in kind.model_fields:
            return get_args(kind.model_fields[name].annotation)
    return ()


def _tags(root: type[BaseModel], keys: Loc) -> str:
    kinds: list[type[BaseModel]] = [root]
    for key in keys:
        kinds = _classes(kinds[0].model_fields[str(key)].annotation)
    return ", ".join(str(tag) for kind in kinds for tag in _tags_of(kind))
