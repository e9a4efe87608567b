"""Reward functions: what they are given, what happens when they fail, and how they are found."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch

from raylign.config import FunctionReward, SentimentTask, TaskReward
from raylign.errors import ConfigError, RaylignError, UserError
from raylign.rewards import FunctionSource, import_function, make_source
from raylign.rewards.worker import RewardWorker
from raylign.tasks.sentiment import make_tokenizer, sentiment
from raylign.types import PromptSet, Ragged, RolloutBatch

TOKENIZER = make_tokenizer()
PROMPTS = ["the plot is not", "i loved"]
COMPLETIONS = ["good .", "dull .", "the acting ."]
PROMPT_ROWS = [0, 0, 1]


def ids(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def prompt_set(**columns) -> PromptSet:
    return PromptSet(Ragged.from_rows([ids(p) for p in PROMPTS], np.int32), columns)


def rollout() -> RolloutBatch:
    """Every completion ended by eos, right-padded with 0."""
    completions = [[*ids(c), TOKENIZER.eos_token_id] for c in COMPLETIONS]
    prompts = [ids(PROMPTS[row]) for row in PROMPT_ROWS]
    width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    tokens, mask = np.zeros((3, width), np.int32), np.zeros((3, width), np.bool_)
    for i, (p, c) in enumerate(zip(prompts, completions, strict=True)):
        tokens[i, : len(p) + len(c)] = p + c
        mask[i, len(p) : len(p) + len(c)] = True
    return RolloutBatch(
        tokens=tokens,
        prompt_lengths=np.array([len(p) for p in prompts], np.int32),
        completion_mask=mask,
        logprobs=np.zeros((3, width), np.float32),
        finished=np.ones(3, np.bool_),
        prompt_rows=np.array(PROMPT_ROWS, np.int64),
        policy_version=np.zeros(3, np.int64),
    )


def test_function_sees_text_and_the_columns_of_its_prompts():
    seen = {}

    def function(prompts, completions, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [1, np.float32(2), torch.tensor(3.0)]

    scores = FunctionSource(function, TOKENIZER).score(rollout(), prompt_set(answer=["a", "b"]))
    assert seen == {
        "prompts": [PROMPTS[0], PROMPTS[0], PROMPTS[1]],
        "completions": COMPLETIONS,
        "answer": ["a", "a", "b"],
    }
    assert scores.values.dtype == np.float32
    assert scores.values.tolist() == [1, 2, 3]
    assert scores.valid.all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300, 10**400, None])
def test_a_row_without_a_finite_score_is_not_valid_and_the_others_keep_theirs(bad):
    def function(prompts, completions):
        return [bad if c == "dull ." else 1.0 for c in completions]

    scores = FunctionSource(function, TOKENIZER).score(rollout(), prompt_set())
    assert scores.valid.tolist() == [True, False, True]
    assert scores.values[[0, 2]].tolist() == [1.0, 1.0]
    assert scores.values[1] != 0.0


def test_an_exception_is_narrowed_to_its_rows_and_logged_once(caplog):
    calls = []

    def function(prompts, completions):
        calls.append(len(completions))
        if "dull ." in completions:
            raise KeyError("dull")
        return [2.0] * len(completions)

    source = FunctionSource(function, TOKENIZER)
    with caplog.at_level(logging.WARNING):
        scores = source.score(rollout(), prompt_set())
        source.score(rollout(), prompt_set())
    assert scores.valid.tolist() == [True, False, True]
    assert calls == [3, 1, 1, 1] * 2
    assert len(caplog.records) == 1
    assert "reward.function: KeyError: 'dull'" in caplog.text


def test_failure_on_every_row_stops_with_the_first_cause():
    def function(prompts, completions):
        raise ConnectionError(f"no\nserver for {len(completions)}")

    with pytest.raises(
        RaylignError, match=r"failed on all 3 completions; first cause: ConnectionError: no server for 3$"
    ):
        FunctionSource(function, TOKENIZER).score(rollout(), prompt_set())


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        ([1.0, 2.0], "returned 2 scores for 3 completions"),
        (1.0, "returned float, not a list"),
        (["1.0", "2.0", "3.0"], "returned str among the scores"),
        (np.ones((3, 2)), "returned ndarray of several numbers"),
    ],
)
def test_a_wrong_result_is_for_the_user_to_fix(result, problem):
    with pytest.raises(UserError, match=f"^reward.function: {problem}"):
        FunctionSource(lambda prompts, completions: result, TOKENIZER).score(rollout(), prompt_set())


def test_columns_that_do_not_fit_the_function():
    source = FunctionSource(lambda prompts, completions: [0.0] * len(prompts), TOKENIZER)
    with pytest.raises(UserError, match=r"unexpected keyword argument 'answer'; write it as score\("):
        source.score(rollout(), prompt_set(answer=[1, 2]))
    with pytest.raises(UserError, match="a column 'prompts', a reserved name"):
        source.score(rollout(), prompt_set(prompts=["x", "y"]))


def test_an_empty_batch_has_no_scores():
    batch = RolloutBatch(**{name: array[:0] for name, array in vars(rollout()).items()})
    assert len(FunctionSource(lambda prompts, completions: [], TOKENIZER).score(batch, prompt_set())) == 0


def test_import_from_module_and_file(tmp_path):
    assert import_function("math:sqrt") is math.sqrt
    for name, value in [("a", 1.0), ("b", 2.0)]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "reward.py").write_text(f"def score(prompts, completions):\n    return [{value}]\n")
    functions = [import_function(f"{tmp_path}/{name}/reward.py:score") for name in "ab"]
    assert [f([], []) for f in functions] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("math.sqrt", "write it as package.module:function"),
        ("no_such_package.rewards:score", "no module 'no_such_package.rewards'"),
        ("math:sqr", "did you mean sqrt"),
        ("math:pi", "math has no function 'pi'"),
        ("{tmp}/none.py:score", "no such file"),
        ("{tmp}/broken.py:score", "fails with ZeroDivisionError: division by zero"),
        ("{tmp}/needs.py:score", "fails with ModuleNotFoundError: No module named 'no_such_dependency'"),
    ],
)
def test_a_function_that_cannot_be_imported(spec, problem, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "needs.py").write_text("import no_such_dependency")
    with pytest.raises(UserError, match=problem) as caught:
        import_function(spec.format(tmp=tmp_path))
    assert str(caught.value).startswith("reward.function: ")
    assert "\n" not in str(caught.value)


def test_code_runs_only_when_allowed(tmp_path):
    (tmp_path / "reward.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef score(prompts, completions):\n    return [1.0] * len(prompts)\n"
    )
    spec = f"{tmp_path}/reward.py:score"
    with pytest.raises(UserError, match=r"^reward\.allow_code: .*set true to permit it$"):
        make_source(FunctionReward(type="function", function=spec), TOKENIZER, None)
    assert not (tmp_path / "ran").exists()
    allowed = make_source(FunctionReward(type="function", function=spec, allow_code=True), TOKENIZER, None)
    assert (tmp_path / "ran").exists()
    assert allowed.score(rollout(), prompt_set()).values.tolist() == [1, 1, 1]


def test_worker_scores_with_the_tasks_truth_and_counts(tmp_path):
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    worker = RewardWorker(TaskReward(type="task"), str(tmp_path / "tokenizer"), SentimentTask(name="sentiment"))
    scores = worker.score(rollout(), prompt_set())
    expected = [sentiment("good .", PROMPTS[0]), sentiment("dull .", PROMPTS[0]), 0.0]
    assert scores.values == pytest.approx(expected)
    assert scores.valid.all()
    metrics = worker.pop_metrics()
    assert metrics["time/score"] > 0
    assert metrics["reward/invalid"] == 0
    assert worker.pop_metrics() == {"time/score": 0.0, "reward/invalid": 0.0}


def test_worker_counts_rows_without_a_score(tmp_path):
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "reward.py").write_text(
        "def score(prompts, completions):\n    return [None if c == 'dull .' else 1.0 for c in completions]\n"
    )
    reward = FunctionReward(type="function", function=f"{tmp_path}/reward.py:score", allow_code=True)
    worker = RewardWorker(reward, str(tmp_path / "tokenizer"))
    worker.score(rollout(), prompt_set())
    worker.score(rollout(), prompt_set())
    assert worker.pop_metrics()["reward/invalid"] == 2


def test_task_reward_needs_a_task():
    with pytest.raises(ConfigError, match="needs a task section"):
        make_source(TaskReward(type="task"), TOKENIZER, None)
