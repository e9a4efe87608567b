"""Planted bugs are caught: in a copy of the package with one line changed, a few fast tests of that copy fail.

Each bug is one that trains without an error and gives plausible numbers. A copy without any bug passes the same tests.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RUNNER = Path(__file__).parents[1] / "forked_pytest.py"
DEADLINE = 280  # seconds for all copies
NO_BUG = "no bug"
PASSED, FAILED = 0, 1  # of pytest; more than 1 is a file that is not there or cannot be imported


@dataclass(frozen=True)
class Bug:
    file: str  # below raylign/
    old: str  # stands in it exactly once
    new: str
    tests: str  # the file below tests/unit/ that is to fail


BUGS = {
    # masks and positions
    "completion mask shifted by one": Bug(
        "models/forward.py",
        "return hidden[completion_mask[:, 1:]]",
        "return hidden[completion_mask[:, :-1]]",
        "models/test_models.py",
    ),
    "reward read at the last padded position": Bug(
        "models/forward.py",
        "hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1]",
        "hidden[:, -1]",
        "rewards/test_model.py",
    ),
    "pad positions counted in the weights": Bug(
        "algorithms/aggregate.py",
        "weights = completion_mask.float()",
        "weights = completion_mask.float() * 0 + 1",
        "algorithms/test_aggregate.py",
    ),
    "rows without a score learned from": Bug(
        "learners/experience.py",
        "mask_array = batch.completion_mask & samples.valid[:, None]",
        "mask_array = batch.completion_mask",
        "learners/test_experience.py",
    ),
    "eos forgotten": Bug(
        "data/tokenize.py",
        "return ids if ids and ids[-1] == eos else [*ids, eos]",
        "return ids",
        "data/test_tokenize.py",
    ),
    "CPO's chosen and rejected swapped": Bug(
        "algorithms/preference_loss.py",
        "losses = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)",
        "losses = -(1 - label_smoothing) * logsigmoid(-margin) - label_smoothing * logsigmoid(margin)",
        "algorithms/test_preferences.py",
    ),
    # KL
    "KL dropped from the reward": Bug(
        "algorithms/advantages.py",
        "torch.where(completion_mask, -kl_coef * kl, 0.0)",
        "torch.where(completion_mask, 0.0 * kl, 0.0)",
        "algorithms/test_advantages.py",
    ),
    "KL dropped from the loss": Bug(
        "algorithms/policy_loss.py",
        "loss = loss + kl_coef * kl",
        "loss = loss + 0.0 * kl",
        "algorithms/test_policy_loss.py",
    ),
    "KL in the loss and in the reward": Bug(
        "learners/experience.py",
        'kl_coef=kl_coef if algorithm.kl.where == "reward" else 0.0,',
        "kl_coef=kl_coef,",
        "learners/test_experience_groups.py",
    ),
    "KL of the reference from the policy": Bug(
        "algorithms/kl.py",
        "log_ratio = logprobs - ref_logprobs",
        "log_ratio = ref_logprobs - logprobs",
        "algorithms/test_kl.py",
    ),
    # advantages
    "whitened over all positions": Bug(
        "algorithms/advantages.py", "picked = x[mask]", "picked = x.flatten()", "algorithms/test_advantages.py"
    ),
    "baseline of the whole batch for a group": Bug(
        "algorithms/baselines.py",
        "groups.unique(return_inverse=True)",
        "(groups * 0).unique(return_inverse=True)",
        "algorithms/test_baselines.py",
    ),
    "a row in its own leave-one-out baseline": Bug(
        "algorithms/baselines.py",
        "(centred * (size / (size - 1).clamp_min(1))[index])",
        "centred",
        "algorithms/test_baselines.py",
    ),
    "dynamic sampling takes the lowest prompts": Bug(
        "learners/experience.py",
        "unique_groups[np.argsort(first)][:most]",
        "unique_groups[:most]",
        "learners/test_experience_groups.py",
    ),
    # policy loss
    "clip the wrong way": Bug(
        "algorithms/policy_loss.py",
        "gain = torch.minimum(plain, clipped)",
        "gain = torch.maximum(plain, clipped)",
        "algorithms/test_policy_loss.py",
    ),
    "temperature not applied to logprobs": Bug(
        "algorithms/logprobs.py",
        "logits.float() if temperature == 1.0 else logits.float() / temperature",
        "logits.float()",
        "algorithms/test_logprobs.py",
    ),
    "temperature not asked for by the learner": Bug(
        "learners/policy_gradient.py",
        "            temperature=self.sampling.temperature,\n",
        "",
        "learners/test_online.py",
    ),
    "mean of micro-batch means": Bug(
        "learners/learner.py",
        "part = result.total / normaliser",
        "part = result.total / normaliser / len(groups)",
        "learners/test_online.py",
    ),
    # preferences
    "chosen and rejected swapped in the loss": Bug(
        "algorithms/preference_loss.py",
        "difference = chosen_log_ratio - rejected_log_ratio",
        "difference = rejected_log_ratio - chosen_log_ratio",
        "algorithms/test_preferences.py",
    ),
    "chosen and rejected swapped in the data": Bug(
        "data/loaders.py",
        "PairSet(sequence_set(chosen), sequence_set(rejected), kept_margins)",
        "PairSet(sequence_set(rejected), sequence_set(chosen), kept_margins)",
        "data/test_tokenize.py",
    ),
    "chosen and rejected swapped in online DPO": Bug(
        "learners/online_dpo.py",
        "swapped = first_wins < 0.5",
        "swapped = first_wins > 0.5",
        "learners/test_online_dpo.py",
    ),
    "KTO's desirable flipped": Bug(
        "algorithms/kto_loss.py",
        "torch.where(desirable, 1.0, -1.0)",
        "torch.where(desirable, -1.0, 1.0)",
        "algorithms/test_kto.py",
    ),
}


def copy_with(bug: Bug | None, folder: Path) -> Path:
    for part in ("raylign", "tests/unit"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    if bug is not None:
        file = folder / "raylign" / bug.file
        source = file.read_text()
        assert source.count(bug.old) == 1, f"raylign/{bug.file} has {source.count(bug.old)} times {bug.old!r}, not once"
        file.write_text(source.replace(bug.old, bug.new))
    return folder


@pytest.fixture(scope="module")
def exit_codes(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Of pytest in each copy, and what it said."""
    root = tmp_path_factory.mktemp("mutations")
    every = sorted({bug.tests for bug in BUGS.values()})
    jobs = {NO_BUG: (None, every)} | {name: (bug, [bug.tests]) for name, bug in BUGS.items()}
    folders = {name: copy_with(bug, root / str(i)) for i, (name, (bug, _)) in enumerate(jobs.items())}
    lines = [
        json.dumps([str(folders[name]), *(f"tests/unit/{file}" for file in files)]) for name, (_, files) in jobs.items()
    ]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    runner = subprocess.Popen(
        [sys.executable, "-P", "-B", RUNNER],
        cwd=root,
        env=environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its fork can be stopped with it
    )
    try:
        out, err = runner.communicate("\n".join(lines), timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        os.killpg(runner.pid, signal.SIGKILL)
        runner.communicate()
        raise
    assert runner.returncode == 0, err
    codes = [int(line) for line in out.split()]
    logs = [(folder / "pytest.log").read_text() for folder in folders.values()]
    return dict(zip(jobs, zip(codes, logs, strict=True), strict=True))


def test_the_copy_without_a_bug_passes(exit_codes):
    """Negative control: what fails below fails for the bug."""
    code, log = exit_codes[NO_BUG]
    assert code == PASSED, log


@pytest.mark.parametrize("name", BUGS)
def test_the_bug_is_caught(exit_codes, name):
    code, log = exit_codes[name]
    assert code == FAILED, log
    assert "1 failed" in log, log  # and no error outside of a test
