"""From a spec to the text of its launch files: one renderer for each section that a spec can have."""

from __future__ import annotations

from collections.abc import Callable

from raylign.cluster import aws, gcp, kuberay, local, skypilot, slurm
from raylign.cluster.launch_file import LaunchFile, RenderContext
from raylign.cluster.spec import ClusterSpec
from raylign.errors import UserError

RENDERERS: dict[str, Callable[[ClusterSpec, RenderContext], list[LaunchFile]]] = {
    "aws": aws.render,
    "gcp": gcp.render,
    "local": local.render,
    "kuberay": kuberay.render,
    "slurm": slurm.render,
    "skypilot": skypilot.render,
}
"""Renderers by launcher. A launcher has the name of its section in the spec."""
TARGETS = tuple(RENDERERS)


def targets_of(spec: ClusterSpec) -> tuple[str, ...]:
    """Return the launchers that the spec has a section for."""
    return tuple(name for name in TARGETS if getattr(spec, name) is not None)


def select_targets(spec: ClusterSpec, to: str) -> tuple[str, ...]:
    """Return the launchers that `--to` names: one, several separated by commas, or `all` that have a section.

    Raises:
        UserError: a launcher is unknown or has no section in the spec, or the spec has no section at all.
    """
    selected = targets_of(spec) if to == "all" else tuple(part.strip() for part in to.split(","))
    for name in selected:
        if name not in TARGETS:
            raise UserError(f"--to: {name!r} is not a launcher; known: {', '.join(TARGETS)}, all")
        if name not in targets_of(spec):
            raise UserError(f"--to: the spec has no section {name}; add one, e.g. {name}: {{}}")
    if not selected:
        raise UserError(f"--to: the spec names no launcher; add a section: {', '.join(TARGETS)}")
    return selected


def render(spec: ClusterSpec, targets: tuple[str, ...], context: RenderContext) -> list[LaunchFile]:
    """Return the launch files of a spec for these launchers; nothing is written."""
    return [file for name in targets for file in RENDERERS[name](spec, context)]
