"""A commit is whole, or it is not there, or it says which file is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ray.train import Checkpoint

from raylign.errors import CheckpointError
from raylign.storage.commits import MANIFEST, Commit, Commits, verify

STATE = {"cursor": {"epoch": 1, "row": 7}, "kl": 0.05, "tracker": None}


def commit(commits: Commits, step: int, text: str = "weights") -> Commit:
    path = commits.begin(step)
    (path / "policy" / "state").mkdir(parents=True)
    (path / "policy" / "model.safetensors").write_text(text)
    (path / "policy" / "state" / "optimizer.safetensors").write_text(f"moments of {text}")
    return commits.finish(path, step, STATE)


@pytest.fixture
def commits(tmp_path) -> Commits:
    return Commits(tmp_path / "run" / "commits", keep=2)


def names(commits: Commits) -> list[str]:
    return sorted(path.name for path in commits.folder.iterdir())


def test_what_was_committed_is_read_back(commits):
    assert commits.latest() is None
    made = commit(commits, 50)
    assert commits.latest() == made == Commit(commits.folder / "step_000050", 50, STATE)
    assert Path(made.role("policy"), "model.safetensors").read_text() == "weights"


def test_the_manifest_names_every_file_with_size_and_hash(commits):
    files = json.loads((commit(commits, 1).path / MANIFEST).read_text())["files"]
    assert files == {
        "policy/model.safetensors": {
            "size": 7,
            "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
        },
        "policy/state/optimizer.safetensors": {
            "size": 18,
            "sha256": "7001bef441f67527891a069336411f3641a71f025558470914fea127955d1b89",
        },
    }


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["policy/model.safetensors", "policy/state/optimizer.safetensors", MANIFEST])
def test_damage_is_found_and_the_way_out_works(commits, damage, name):
    commit(commits, 1, "older")
    newest = commit(commits, 2).path
    assert commits.latest() is not None
    damage(newest / name)
    with pytest.raises(CheckpointError) as caught:
        commits.latest()
    message = str(caught.value)
    assert message.startswith(f"{newest / name}: ")
    assert "\n" not in message
    (to_delete,) = re.findall(r"delete (\S+) to fall back", message)
    assert Path(to_delete) == newest
    for file in sorted(newest.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    newest.rmdir()
    fallen_back = commits.latest()
    assert fallen_back is not None
    assert fallen_back.step == 1


def test_every_byte_of_the_manifest_counts(commits):
    manifest = commit(commits, 3).path / MANIFEST
    whole = manifest.read_bytes()
    for at in range(len(whole)):
        manifest.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError):
            verify(manifest.parent)
    manifest.write_bytes(whole)
    assert verify(manifest.parent).step == 3


@pytest.mark.parametrize("other", [1, 99])
def test_another_format_is_not_called_damage(commits, other):
    manifest = commit(commits, 1).path / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": other}))
    with pytest.raises(CheckpointError) as caught:
        commits.latest()
    assert str(caught.value) == (
        f"{manifest}: format {other}, this raylign reads 2; use the raylign that wrote it, or start a new run"
    )


def test_what_a_crash_left_is_ignored_and_then_removed(commits):
    commit(commits, 1)
    (commits.begin(2) / "half.safetensors").write_text("ha")
    assert names(commits) == [".writing-000002", "step_000001"]
    latest = commits.latest()
    assert latest is not None
    assert latest.step == 1
    commit(commits, 3)
    assert names(commits) == ["step_000001", "step_000003"]


def test_the_oldest_go_when_there_are_more_than_keep(commits):
    for step in (9, 10, 100):
        commit(commits, step)
    assert names(commits) == ["step_000010", "step_000100"]
    assert Commits(commits.folder, keep=2).latest() == verify(commits.folder / "step_000100")


def test_the_same_step_again_replaces_the_first(commits):
    commit(commits, 1, "first")
    commit(commits, 2, "first")
    again = commit(commits, 2, "again")
    assert names(commits) == ["step_000001", "step_000002"]
    assert commits.latest() == again
    assert Path(again.role("policy"), "model.safetensors").read_text() == "again"


def test_ray_train_opens_it(commits):
    made = commit(commits, 1)
    with Checkpoint.from_directory(made.path).as_directory() as folder:
        assert verify(Path(folder)) == made
