"""YAML + `a.b=c` overrides -> RunConfig, with errors that name the line and the dotted path."""

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
    """The mapping that a file holds, unchecked, and where each of its keys stands; `what` it is meant to be.

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
    """Apply the overrides to the tree of a file, and validate it. Raises: see `load_config`."""
    for text in overrides:
        _override(tree, lines, text)
    return parse_config(anchor(tree, Path(path).resolve().parent), str(path), lines)


def parse_config(tree: dict[str, Any], source: str = "config", lines: Lines | None = None) -> RunConfig:
    """Validate a config given as nested dicts; `source` and `lines` only serve the error messages."""
    return parse_as(RunConfig, tree, source, lines)


def parse_as(kind: type[C], tree: dict[str, Any], source: str, lines: Lines | None = None) -> C:
    """Validate nested dicts as another kind of config, with errors of the same form.

    Raises:
        ConfigError: one line for each fault.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as e:
        raise ConfigError([_explain(kind, fault, source, lines or Lines()) for fault in e.errors()]) from None


def anchor(node: Any, folder: Path) -> Any:
    """`run:other.yaml` is meant beside the config that says it."""
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
    """Set a dotted key of a tree; `place` is told if the value turns out wrong.

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
    """What a dotted key has in a tree."""
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node


def _holder(tree: dict[str, Any], loc: Sequence[str]) -> dict[str, Any]:
    """The mapping that holds the last key of a path, made if it is not there."""
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
    """Line number of every key of a YAML tree, by its path."""
    found = Lines()
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            found[(*at, key.value)] = key.start_mark.line + 1
            found |= _lines(value, (*at, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            found[(*at, i)] = value.start_mark.line + 1
            found |= _lines(value, (*at, i))
    return found


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
            message = f"unknown key; {nearest(str(keys[-1]), owner.model_fields if owner else ())}"
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
    """Of the known words the one that was meant, or all of them, as the end of a message."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def _walk(root: type[BaseModel], loc: Loc) -> tuple[Loc, type[BaseModel] | None]:
    """The path as the user writes it (pydantic inserts union tags) and the class that holds its last key."""
    keys: list[str | int] = []
    kinds: list[type[BaseModel]] = [root]
    owner: type[BaseModel] | None = root
    is_mapping = False  # from keys of the user's own to what `kinds` says
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
