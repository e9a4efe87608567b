"""PPO and DPO from end to end: real Ray actors in processes of their own, real vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import psutil
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration.small_runs import Ended, family, left_behind, metrics, wait_for

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
SUMMARY_KEYS = {"algorithm", "steps", "score_before", "score_after", "kl", "wall_seconds", "section_seconds", "tokens"}


@needs_vllm
def test_ppo_uses_vllm_and_an_actor_process_for_every_role(workshop):
    process = workshop.start("ppo", "name=ppo_whole", "rollout.engine=vllm")
    folder = workshop.folder / "runs" / "ppo_whole"
    with Ended(process):
        # Before the first step: after it, a loaded machine may need longer to list the processes than the run to end.
        wait_for((folder / "evaluations" / "before.json").exists, 240, "first evaluation", process)
        children = family(process.pid)
        running = {p.pid: (" ".join(p.cmdline()), _maps(p)) for p in children}
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    for name in ("PolicyActor", "CriticActor", "ReferenceActor", "RewardActor", "RolloutActor"):
        assert sum(name in title for title, _ in running.values()) == 1, (name, running.values())
    engines = [maps for title, maps in running.values() if "RolloutActor" in title]
    assert all("vllm" in maps for maps in engines), "the rollout actor has vLLM's compiled kernels loaded"
    assert left_behind(children) == []

    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    assert (summary["algorithm"], summary["steps"]) == ("ppo", 4)
    assert summary["tokens"]["generated"] > 4 * 32
    steps = metrics(folder)
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    # The learner scores the engine's tokens as the engine did (fp32; dropout is off when it scores).
    assert max(row["logprob_gap/max"] for row in steps) < 1e-4
    assert _loads(folder / "model")


@needs_vllm
def test_dpo_places_no_engine_while_it_learns_and_is_judged_by_vllm(workshop):
    keep = ("evaluation.batch_size=10", "evaluation.keep_samples=13")  # of two batches
    process = workshop.start("dpo", "name=dpo_whole", "rollout.engine=vllm", *keep)
    folder = workshop.folder / "runs" / "dpo_whole"
    with Ended(process):
        wait_for(lambda: (folder / "metrics.jsonl").exists() and metrics(folder), 300, "first step", process)
        while_learning = [" ".join(p.cmdline()) for p in family(process.pid)]
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert any("OfflineLearnerActor" in title for title in while_learning)
    assert not any(role in title for title in while_learning for role in ("RolloutActor", "RewardActor", "CriticActor"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    assert (summary["algorithm"], summary["steps"]) == ("dpo", 4)
    assert summary["evaluation"]["after"]["num_scored"] == 16
    kept = [json.loads(line) for line in (folder / "evaluations" / "after_samples.jsonl").open()]
    assert len({row["prompt"] for row in kept}) == len(kept) == 13
    assert all(row.keys() == {"prompt", "completion", "score", "length", "kl", "columns"} for row in kept)
    first = metrics(folder)[0]
    assert abs(first["dpo/loss"] - 0.6931) < 0.05, "before the first step the policy is the reference (less dropout)"
    assert _loads(folder / "model")


def test_python_api_does_what_the_cli_does(workshop):
    script = (
        "from raylign import load_config, run\n"
        f"config = load_config({str(workshop.config('dpo'))!r}, ['name=dpo_api'])\n"
        "result = run(config, quiet=True)\n"
        "print(result.summary['score_after'], result.folder)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=workshop.folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    score, folder = done.stdout.strip().splitlines()[-1].split(" ", 1)
    through_cli = workshop.run("dpo", "name=dpo_cli")
    summary = json.loads((through_cli / "summary.json").read_text())
    assert float(score) == summary["score_after"], "same config, same result, to the last bit"
    assert folder.endswith("dpo_api")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ppo_on_a_learned_reward_is_judged_by_the_ground_truth(workshop):
    """Reward from a reward_model run, evaluation by the task, the transformers engine, samples generated ahead."""
    reward = f"reward={{type: model, path: 'run:{workshop.config('reward_model')}'}}"
    folder = workshop.run(
        "ppo", "name=ppo_rm", reward, "rollout.engine=transformers", "algorithm.max_staleness=1", timeout=400
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["evaluation"]["after"]["num_scored"] == 16
    rewards = [row["reward/mean"] for row in metrics(folder)]
    assert len(rewards) == 4
    assert len(set(rewards)) == 4
    stage = next((workshop.folder / "runs" / "stages").glob("reward_model-*"))
    judged = json.loads((stage / "summary.json").read_text())
    assert 0 <= judged["score_before"] <= 1
    assert judged["score_after"] > 0.5


def _maps(process: psutil.Process) -> str:
    try:
        return " ".join(m.path for m in process.memory_maps())
    except psutil.Error:
        return ""


def _loads(folder) -> bool:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.decode(tokenizer("the film takes")["input_ids"])
    return model.num_parameters() > 0 and text.strip() == "the film takes"
