"""The files that renderers return, and how their text is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

Tree = dict[str, Any]


@dataclass(frozen=True)
class RenderContext:
    """Facts that launch files need and the spec does not have.

    Args:
        source: path of the spec as its reader finds it, for the first line of each file.
        ray_version: version of Ray that the nodes run.
    """

    source: str
    ray_version: str

    @property
    def header(self) -> str:
        """First lines of every launch file."""
        return f"Made from {self.source} by: raylign cluster render {self.source}\nChange the spec, not this file."


@dataclass(frozen=True)
class LaunchFile:
    """A file to write: its name and its whole text.

    Args:
        autoscaler: the content as a tree, if the file is a cluster YAML of Ray's autoscaler, which can check it.
    """

    name: str
    text: str
    autoscaler: Tree | None = None


def to_yaml(tree: Tree, *comments: str) -> str:
    """Return the tree as YAML below these comments."""
    return to_comment("\n".join(comments)) + yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=10_000)


def to_comment(text: str) -> str:
    """Return the text with a # before each line, for YAML and shell."""
    return "".join(f"# {line}\n" for line in text.splitlines())


class _Dumper(yaml.SafeDumper):
    """Writes scripts as readable blocks, and an object that occurs twice in full both times."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_string)
