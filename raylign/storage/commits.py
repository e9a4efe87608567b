"""The commit: one directory, complete or absent, that holds all a run needs to continue.

    commits/step_000050/
        manifest.json    what the run knows (step, data cursor, KL controller, tracker) and every file's size and SHA-256
        policy/          a Hugging Face folder, with state/ (optimizer, random state) inside
        critic/          the same, for PPO
        merged/          after the last step of a run that learns an adapter: base and adapter as one model

If an adapter is trained, policy/ and critic/ are peft folders: the adapter alone.

A commit is written beside its final name, synced to disk and renamed, so a crash leaves the last one intact. It is a
`ray.train.Checkpoint` directory: `Checkpoint.from_directory(path)` opens it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylign.errors import CheckpointError
from raylign.files import sha256_of

MANIFEST = "manifest.json"
POLICY, MERGED = "policy", "merged"
_FORMAT = 2  # 1: its totals had other names


@dataclass(frozen=True)
class Commit:
    """A verified commit on disk."""

    path: Path
    step: int
    state: dict[str, Any]  # JSON: what the controller restores

    def role(self, name: str) -> str:
        """Return the folder of a role's model and state."""
        return str(self.path / name)


class Commits:
    """The commits of one run directory."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        folder.mkdir(parents=True, exist_ok=True)

    def latest(self) -> Commit | None:
        """Return the newest commit, verified file by file.

        Raises:
            CheckpointError: it does not match its manifest; the message names the file and the way out.
        """
        steps = sorted(self.folder.glob("step_*"))
        return verify(steps[-1]) if steps else None

    def begin(self, step: int) -> Path:
        """Make an empty directory for the roles to write into."""
        for left in self.folder.glob(".writing-*"):
            shutil.rmtree(left)
        path = self.folder / f".writing-{step:06d}"
        path.mkdir()
        return path

    def finish(self, path: Path, step: int, state: dict[str, Any]) -> Commit:
        """Seal what was written, put it under its name, and prune the oldest commits."""
        files = {}
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            files[str(file.relative_to(path))] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
            _sync(file)
        manifest = path / MANIFEST
        content = {"format": _FORMAT, "step": step, "state": state, "files": files}
        manifest.write_text(json.dumps(content | {"sha256": _digest(content)}, indent=1))
        _sync(manifest)
        for folder in [*(p for p in path.rglob("*") if p.is_dir()), path]:
            _sync(folder)
        final = self.folder / f"step_{step:06d}"
        if final.exists():  # the same step, redone after a rewind
            shutil.rmtree(final)
        path.rename(final)
        _sync(self.folder)
        for old in sorted(self.folder.glob("step_*"))[: -self.keep]:
            shutil.rmtree(old)
        return Commit(final, step, state)

    def take_over(self, donor: Commit, seed: int, kept: dict[str, Any]) -> Commit:
        """Put another run's commit in the place of this run's: the donor's weights, moments and place in the data, but
        this run's own seed.

        Args:
            seed: seed of the run that takes over; its learners find no random state and begin from it.
            kept: the part of the state that stays this run's.
        """
        path = self.begin(donor.step)
        shutil.copytree(donor.path, path, ignore=shutil.ignore_patterns("random-*", MANIFEST), dirs_exist_ok=True)
        sampler = donor.state["sampler"] | {"seed": seed}
        return self.finish(path, donor.step, donor.state | {"sampler": sampler} | kept)


def newest_step(folder: Path) -> int:
    """Return the step of the newest commit in a folder of commits, 0 without one; the commit is not verified."""
    return max((int(path.name.removeprefix("step_")) for path in folder.glob("step_*")), default=0)


def verify(path: Path) -> Commit:
    """Read a commit and check every file against the manifest."""
    advice = f"delete {path} to fall back to the commit before it"
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path / MANIFEST}: unreadable: {e}; {advice}") from None
    match manifest:
        case {"format": int(other)} if other != _FORMAT:
            raise CheckpointError(
                f"{path / MANIFEST}: format {other}, this raylign reads {_FORMAT}; use the raylign that wrote it, or start a "
                "new run"
            )
        case {"sha256": str(digest), **content} if digest == _digest(content):
            pass
        case _:
            raise CheckpointError(f"{path / MANIFEST}: not as it was written; {advice}")
    for name, wanted in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != wanted["size"] or sha256_of(file) != wanted["sha256"]:
            raise CheckpointError(f"{file}: missing or not as the manifest says; {advice}")
    return Commit(path, manifest["step"], manifest["state"])


def _digest(content: dict[str, Any]) -> str:
    """Hash the manifest itself: a state that was changed on disk would otherwise be believed."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()  # JSON keeps the order of keys


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
