"""kill -9 the driver between steps, resume, and compare every bit with the run that was left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raylign.storage.commits import MANIFEST, Commits, verify
from tests.integration.small_runs import Ended, family, hashes, left_behind, newest_commit, wait_for

EVERY_STEP = "checkpoint.every_steps=1"


def kill_at(workshop, name: str, run: str, step: int, resume: bool, *overrides: str) -> None:
    """Run until commit `step` is there, then kill -9 the driver; its Ray must go with it."""
    process = workshop.start(name, f"name={run}", EVERY_STEP, *overrides, resume=resume)
    folder = workshop.folder / "runs" / run
    with Ended(process):
        wait_for(lambda: newest_commit(folder) >= step, 300, f"commit {step}", process)
        children = family(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    assert left_behind(children) == []


@pytest.mark.parametrize("name", ["ppo", pytest.param("dpo", marks=pytest.mark.slow)])  # two minutes each
@pytest.mark.timeout(900)
def test_killed_and_resumed_is_bit_identical(workshop, name):
    whole = workshop.run(name, f"name={name}_uninterrupted", EVERY_STEP)
    for step, resume in ((1, False), (3, True)):
        kill_at(workshop, name, f"{name}_killed", step, resume)
    resumed = workshop.run(name, f"name={name}_killed", EVERY_STEP, resume=True)
    assert hashes(resumed) == hashes(whole)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, resumed)]
    assert summaries[0]["evaluation"] == summaries[1]["evaluation"]
    steps = [[json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()] for folder in (whole, resumed)]
    assert steps[0] == steps[1] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "dpo"])
@pytest.mark.timeout(600)
def test_without_its_random_state_a_resumed_run_differs(workshop, name):
    """The negative control of the test above: the same kill and resume, with the random state of a fresh process."""
    model = f"model.path={with_dropout(workshop)}"  # DPO draws nothing at random but dropout
    whole = workshop.run(name, f"name={name}_remembering", EVERY_STEP, model)
    run = f"{name}_forgetful"
    kill_at(workshop, name, run, 2, False, model)
    folder = workshop.folder / "runs" / run
    commit = Commits(folder / "commits", keep=2).latest()
    assert commit
    forget_random_state(commit.path)
    resumed = workshop.run(name, f"name={run}", EVERY_STEP, model, resume=True)
    assert hashes(resumed)["model/model.safetensors"] != hashes(whole)["model/model.safetensors"]


def with_dropout(workshop) -> Path:
    """A copy of the SFT model whose own dropout is not 0."""
    folder = workshop.folder / "with_dropout"
    if not folder.exists():
        shutil.copytree(workshop.run("sft", "name=sft_for_dropout") / "model", folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}))
    return folder


def forget_random_state(commit) -> None:
    """Overwrite the saved generators with others, and seal the commit again."""
    for file in commit.rglob("random-*.safetensors"):
        state = load_file(file)
        save_file({name: torch.Generator().manual_seed(99).get_state() for name in state}, file)
    manifest = json.loads((commit / MANIFEST).read_text())
    (commit / MANIFEST).unlink()
    writing = commit.with_name(".writing-0")
    commit.rename(writing)
    sealed = Commits(commit.parent, keep=2).finish(writing, manifest["step"], manifest["state"])
    assert verify(sealed.path).step == manifest["step"]
