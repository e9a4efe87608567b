"""What goes into a run, and what a person reads when it has ended."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from raylign.config import RewardModelConfig, SentimentTask, parse_config
from raylign.controllers.reference_cache import cache_logprobs, cached_logprobs, reference_key
from raylign.controllers.run import RunResult
from raylign.controllers.show import samples_table, show_result
from raylign.errors import DataError, UserError
from raylign.pipeline.inputs import load_inputs, prompt_limit
from raylign.tasks import TaskFiles, prepare
from raylign.types import LabelledSet, PairSet, PromptSet, SequenceSet
from tests.unit.tiny import labelled, pairs

TASK = SentimentTask(
    name="sentiment", num_reviews=100, num_prompts=12, num_eval_prompts=10, hidden_size=32, num_layers=1
)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> TaskFiles:
    return prepare(TASK, tmp_path_factory.mktemp("task") / "made")


def config(task: TaskFiles, algorithm: str, data: str, **sections: object):
    tree = {"name": "r", "model": {"path": str(task.resolve("model"))}, "data": {"path": data}, "task": TASK}
    return parse_config(tree | {"reward": {"type": "task"}, "algorithm": {"name": algorithm}} | sections)


def test_each_algorithm_gets_its_kind_of_rows(task, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "a film", "chosen": " good .", "rejected": " bad ."}) + "\n")
    prompts = {"data": {"path": str(task.resolve("eval_prompts"))}}
    rows, held_out = load_inputs(config(task, "ppo", str(task.resolve("prompts")), evaluation=prompts))
    assert isinstance(rows, PromptSet)
    assert isinstance(held_out, PromptSet)
    assert (len(rows), len(held_out)) == (12, 10)
    rows, held_out = load_inputs(config(task, "sft", str(task.resolve("corpus"))))
    assert isinstance(rows, SequenceSet)
    assert (len(rows), held_out) == (100, None)
    rows, held_out = load_inputs(config(task, "dpo", str(pairs), evaluation=prompts))
    assert isinstance(rows, PairSet)
    assert isinstance(held_out, PromptSet)
    rows, held_out = load_inputs(config(task, "reward_model", str(pairs), evaluation={"data": {"path": str(pairs)}}))
    assert isinstance(rows, PairSet)
    assert isinstance(held_out, PairSet)


def test_labelled_rows_and_pairs_for_kto(task, tmp_path):
    rows = tmp_path / "rows.jsonl"
    labelled = [{"prompt": f"a {w}", "completion": " good .", "label": w == "film"} for w in ("film", "story")]
    pair = {"prompt": "a scene", "chosen": " good .", "rejected": " dull ."}
    rows.write_text("".join(json.dumps(row) + "\n" for row in [*labelled, pair]))
    found, held_out = load_inputs(config(task, "kto", str(rows)))
    assert isinstance(found, LabelledSet)
    assert found.desirable.tolist() == [True, False, True, False]
    assert held_out is None


@pytest.mark.parametrize("algorithm", ["dpo", "simpo", "cpo", "orpo", "reward_model"])
def test_labelled_rows_are_refused_where_pairs_are_needed(task, tmp_path, algorithm):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a film", "completion": " good .", "label": True}) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*; set algorithm\.name: kto"):
        load_inputs(config(task, algorithm, str(rows)))


def test_a_reward_model_with_margins_reads_them_in_held_out_pairs_too(task, tmp_path):
    pair = {"prompt": "a film", "chosen": " good .", "rejected": " dull ."}
    with_margin, without = tmp_path / "margin.jsonl", tmp_path / "none.jsonl"
    with_margin.write_text(json.dumps(pair | {"margin": 2}) + "\n")
    without.write_text(json.dumps(pair) + "\n")

    def asking(held_out: Path):
        tree = config(task, "reward_model", str(with_margin), evaluation={"data": {"path": str(held_out)}})
        return tree.model_copy(update={"algorithm": RewardModelConfig(name="reward_model", margin=True)})

    rows, held_out = load_inputs(asking(with_margin))
    for found in (rows, held_out):
        assert isinstance(found, PairSet)
        assert found.margin is not None
        assert found.margin.tolist() == [2.0]
    with pytest.raises(DataError, match=r"none\.jsonl:1: no margin"):
        load_inputs(asking(without))


@pytest.mark.parametrize(
    ("algorithm", "needed"),
    [
        ("sft", False),
        ("reward_model", False),
        ("dpo", True),
        ("simpo", False),
        ("cpo", False),
        ("orpo", False),
        ("kto", True),
    ],
)
def test_which_offline_algorithms_need_a_reference(task, algorithm, needed):
    assert config(task, algorithm, "rows.jsonl").algorithm.needs_reference is needed


def test_the_reference_cache_follows_the_rows_and_the_reference(task, tmp_path):
    dpo = config(task, "dpo", "rows.jsonl")
    precision = "float32" if dpo.model.compute_dtype == "bfloat16" else "bfloat16"
    other = dpo.model_copy(update={"model": dpo.model.model_copy(update={"compute_dtype": precision})})
    keys = [reference_key(dpo, data) for data in (pairs(3), labelled(3), pairs(3, seed=1))]
    assert len({*keys, reference_key(other, pairs(3))}) == 4
    assert reference_key(dpo, pairs(3)) == keys[0]
    logprobs = np.arange(3, dtype=np.float32), np.arange(3, 6, dtype=np.float32)
    file = tmp_path / "cache" / "reference.safetensors"
    assert cached_logprobs(file) is None
    cache_logprobs(file, logprobs)
    found = cached_logprobs(file)
    assert found is not None
    for one, read in zip(logprobs, found, strict=True):
        np.testing.assert_array_equal(one, read)


def test_held_out_rows_are_checked_too(task, tmp_path):
    bad = tmp_path / "held_out.jsonl"
    bad.write_text('{"prompt": "a film"}\n{"prompt": ""}\n')
    with pytest.raises(DataError, match=r"held_out\.jsonl:2: prompt is empty"):
        load_inputs(config(task, "ppo", str(task.resolve("prompts")), evaluation={"data": {"path": str(bad)}}))


@pytest.mark.parametrize(
    ("rollout", "limit"),
    [
        ({"sampling": {"max_tokens": 64}}, 32),
        ({"sampling": {"max_tokens": 95}}, 1),
        ({"sampling": {"max_tokens": 8}, "max_model_len": 20}, 12),
        ({"sampling": {"max_tokens": 8}, "max_model_len": 500}, 88),
    ],
)
def test_a_prompt_leaves_room_for_its_completion(task, rollout, limit):
    assert prompt_limit(config(task, "ppo", "x", rollout=rollout), 96) == limit


def test_no_room_at_all_is_refused(task):
    no_room = config(task, "ppo", str(task.resolve("prompts")), rollout={"sampling": {"max_tokens": 96}})
    with pytest.raises(UserError, match=r"^rollout\.sampling\.max_tokens: 96 leaves no room .* 96 tokens; lower it$"):
        load_inputs(no_room)


@pytest.fixture
def result(tmp_path) -> RunResult:
    summary = {
        "name": "mine",
        "algorithm": "ppo",
        "steps": 3,
        "wall_seconds": 12.4,
        "score_before": 0.5,
        "score_after": 1.25,
        "kl": 2.0,
    }
    return RunResult(tmp_path / "a[b]c", summary)


def shown(result: RunResult) -> str:
    console = Console(file=io.StringIO(), width=100)
    show_result(result, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_result_is_told_in_two_lines(result):
    first, last = shown(result).splitlines()
    assert first == "mine (ppo, 3 steps, 12 s): score 0.500 -> 1.250, KL 2.00 nats"
    assert last == f"run directory: {result.folder}"


def test_a_run_without_evaluation_has_no_score(result):
    bare = RunResult(result.folder, result.summary | {"score_before": None, "score_after": None, "kl": None})
    assert shown(bare).splitlines()[0] == "mine (ppo, 3 steps, 12 s)"
    assert samples_table(bare) is None


def test_samples_are_shown_as_the_model_wrote_them(result):
    """Text that looks like rich markup is neither swallowed nor an error."""
    folder = result.folder / "evaluations"
    folder.mkdir(parents=True)
    for label, completion, score in (("before", " see [bold] here", None), ("after", " closed [/dim] twice", 1.0)):
        row = {"prompt": "[red] film", "completion": completion, "score": score}
        (folder / f"{label}_samples.jsonl").write_text(json.dumps(row) + "\n")
    text = shown(result)
    assert "[red] film" in text
    assert "see [bold] here" in text
    assert "closed [/dim] twice" in text
    assert "no score" in text
    assert "score +1.00" in text
