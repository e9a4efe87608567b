"""From a spec to the text of its launch files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from raylign.cluster import autoscaler, kuberay, skypilot, slurm
from raylign.cluster.spec import TARGETS, ClusterSpec
from raylign.errors import UserError

Tree = dict[str, Any]
AUTOSCALERS: dict[str, Callable[[ClusterSpec], Tree]] = {
    "aws": autoscaler.aws,
    "gcp": autoscaler.gcp,
    "local": autoscaler.local,
}
LOCAL_NOTE = (
    "Before `ray up`: export RAY_UP_enable_autoscaler_v2=0 (version 2 starts one worker too few on your own machines)."
)


@dataclass(frozen=True)
class LaunchFile:
    """One file to write: its name, its whole text, and what it says where it is a cluster YAML of Ray's autoscaler."""

    name: str
    text: str
    autoscaler: Tree | None = None


def chosen(spec: ClusterSpec, to: str) -> tuple[str, ...]:
    """The targets of `--to`: one, several with commas, or all that the spec has a section for.

    Raises:
        UserError: none of ours, or one that the spec has no section for.
    """
    wanted = spec.targets if to == "all" else tuple(part.strip() for part in to.split(","))
    for name in wanted:
        if name not in TARGETS:
            raise UserError(f"--to: {name!r} is no launcher; known: {', '.join(TARGETS)}, all")
        if name not in spec.targets:
            raise UserError(f"--to: the spec has no section {name}; add one, e.g. {name}: {{}}")
    if not wanted:
        raise UserError(f"--to: the spec names no launcher; add a section: {', '.join(TARGETS)}")
    return wanted


def render(spec: ClusterSpec, targets: tuple[str, ...], *, source: str, ray_version: str) -> list[LaunchFile]:
    """The launch files of a spec, not yet written.

    Args:
        source: the spec as its reader finds it, for the first line of each file.
        ray_version: of the Ray that the nodes run.
    """
    header = f"Made from {source} by: raylign cluster render {source}\nChange the spec, not this file."
    files: list[LaunchFile] = []
    for name in targets:
        if name in AUTOSCALERS:
            tree = AUTOSCALERS[name](spec)
            notes = f"{header}\n{LOCAL_NOTE}" if name == "local" else header
            files.append(LaunchFile(f"{spec.name}-{name}.yaml", _yaml(tree, notes), tree))
        elif name == "kuberay":
            command = "raylign doctor"
            notes = f"{header}\nSet entrypoint to what the job shall run, e.g. raylign run CONFIG KEY=VALUE."
            cluster, job = kuberay.cluster(spec, ray_version), kuberay.job(spec, ray_version, command)
            files.append(LaunchFile(f"{spec.name}-kuberay-cluster.yaml", _yaml(cluster, header)))
            files.append(LaunchFile(f"{spec.name}-kuberay-job.yaml", _yaml(job, notes)))
        elif name == "slurm":
            text = f"#!/usr/bin/env bash\n{_comment(header)}{slurm.script(spec)}"
            files.append(LaunchFile(f"{spec.name}-slurm.sh", text))
        else:
            files.append(LaunchFile(f"{spec.name}-skypilot.yaml", _yaml(skypilot.task(spec), header)))
    return files


class _Dumper(yaml.SafeDumper):
    """Scripts as blocks, so that they can be read; the same object twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _string)


def _yaml(tree: Tree, notes: str) -> str:
    return _comment(notes) + yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=10_000)


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())
