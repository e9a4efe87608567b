"""What a collect run keeps of its samples, and that its rows are learned with the tokens that were sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylign.config import CollectConfig, DataConfig, SentimentTask, TaskReward
from raylign.data import load_pairs, load_sequences
from raylign.rewards.report import evaluation_part, label_pairs, rows_to_keep
from raylign.rewards.worker import RewardWorker
from raylign.tasks.sentiment import make_tokenizer
from raylign.types import PromptSet, Ragged, RolloutBatch, Scores

TOKENIZER = make_tokenizer()
IDS = TOKENIZER.get_vocab()
PAD, EOS = IDS["<pad>"], IDS["<eos>"]


def ids(text: str) -> list[int]:
    return [IDS[word] for word in text.split()]


def rollout(prompts: list[str], completions: list[list[str]]) -> tuple[PromptSet, RolloutBatch]:
    """Sampled completions of each prompt; a sample that ends in <eos> is finished, every other one was cut."""
    rows = [(p, ids(text)) for p, samples in enumerate(completions) for text in samples]
    starts = [ids(prompts[p]) for p, _ in rows]
    width = max(len(start) + len(tokens) for start, (_, tokens) in zip(starts, rows, strict=True))
    padded, mask = np.zeros((len(rows), width), dtype=np.int32), np.zeros((len(rows), width), dtype=np.bool_)
    for i, (start, (_, tokens)) in enumerate(zip(starts, rows, strict=True)):
        padded[i, : len(start) + len(tokens)] = start + tokens
        mask[i, len(start) : len(start) + len(tokens)] = True
    batch = RolloutBatch(
        tokens=padded,
        prompt_lengths=np.array([len(start) for start in starts], dtype=np.int32),
        completion_mask=mask,
        logprobs=np.zeros(mask.shape, dtype=np.float32),
        finished=np.array([tokens[-1:] == [EOS] for _, tokens in rows]),
        prompt_rows=np.array([p for p, _ in rows]),
        policy_version=np.zeros(len(rows), dtype=np.int64),
    )
    return PromptSet(Ragged.from_rows([ids(p) for p in prompts], np.int32), {"prompt": prompts}), batch


def scores(*values: float | None) -> Scores:
    valid = np.array([value is not None for value in values])
    return Scores(np.array([value or 0.0 for value in values], dtype=np.float32), valid)


def keep(kind: Any, prompts: PromptSet, batch: RolloutBatch, found: Scores, num_samples: int) -> list[dict[str, Any]]:
    return rows_to_keep(TOKENIZER, batch, prompts, found, kind, num_samples, "best", 0, 0)


PROMPTS = ["the film", "a story"]
FOUR = [["good <eos>", "dull <eos>", "is", "<eos>"], ["dull", "dull <eos>", "dull", "good"]]


def test_best_keeps_the_highest_score_of_each_prompt_and_the_first_of_equals():
    prompts, batch = rollout(PROMPTS, FOUR)
    found = scores(1.0, 2.0, 2.0, None, -1.0, -0.5, -3.0, -0.5)
    assert keep("best", prompts, batch, found, 4) == [
        {"prompt": "the film", "completion": "dull", "score": 2.0, "finished": True},
        {"prompt": "a story", "completion": "dull", "score": -0.5, "finished": True},
    ]
    nothing = scores(*[None] * 4, 1.0, 0.0, 0.0, 0.0)
    assert [row["prompt"] for row in keep("best", prompts, batch, nothing, 4)] == ["a story"]


def test_all_keeps_every_sample_that_has_a_score():
    prompts, batch = rollout(PROMPTS, FOUR)
    rows = keep("all", prompts, batch, scores(1.0, 2.0, 3.0, 4.0, None, 6.0, 7.0, 8.0), 4)
    assert [(row["completion"], row["score"], row["finished"]) for row in rows] == [
        ("good", 1.0, True), ("dull", 2.0, True), ("is", 3.0, False), ("", 4.0, True),
        ("dull", 6.0, True), ("dull", 7.0, False), ("good", 8.0, False),
    ]  # fmt: skip
    assert [row["prompt"] for row in rows] == ["the film"] * 4 + ["a story"] * 3


def test_pairs_are_neighbours():
    prompts, batch = rollout(PROMPTS, FOUR)
    rows = keep("pairs", prompts, batch, scores(1.0, 2.0, 0.5, 0.0, 1.0, 0.0, None, 1.0), 4)
    assert rows[0] == {
        "prompt": "the film",
        "chosen": "dull",
        "rejected": "good",
        "chosen_score": 2.0,
        "rejected_score": 1.0,
        "chosen_finished": True,
        "rejected_finished": True,
    }
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("dull", "good"), ("is", ""), ("dull", "dull")]
    assert [(row["chosen_finished"], row["rejected_finished"]) for row in rows][1:] == [(False, True), (False, True)]


def test_only_a_side_without_tokens_or_equal_sides_leave_a_pair_out():
    prompts, batch = rollout(["the film"], [["", "good", "<eos>", "good", "good", "good"]])
    found = scores(*range(6))
    assert [row["rejected"] for row in label_pairs(TOKENIZER, batch, prompts, found, "best", 0, 0)] == [""]
    assert len(keep("all", prompts, batch, found, 6)) == 5


def test_people_err_as_bradley_and_terry_say():
    prompts, batch = rollout(["the film"] * 2000, [["good", "dull"]] * 2000)
    rows = label_pairs(TOKENIZER, batch, prompts, scores(*[1.0, 0.0] * 2000), "bradley_terry", 3, 4)
    share = np.mean([row["chosen"] == "good" for row in rows])
    assert share == pytest.approx(1 / (1 + np.exp(-1)), abs=0.03)
    again = label_pairs(TOKENIZER, batch, prompts, scores(*[1.0, 0.0] * 2000), "bradley_terry", 3, 4)
    assert again == rows


def test_an_evaluation_keeps_the_columns_of_its_first_rows():
    prompts, batch = rollout(PROMPTS, [["good <eos>"], ["dull is"]])
    prompts.columns["reference"] = ["fine", None]
    ref = batch.logprobs - batch.completion_mask * np.array([[0.25], [-0.5]], np.float32)  # two tokens each
    part = evaluation_part(TOKENIZER, batch, prompts, scores(1.0, None), ref, keep=9)
    first, second = (
        {"prompt": "the film", "completion": "good"},
        {"prompt": "a story", "completion": "dull is"},
    )
    assert part["samples"] == [
        {**first, "score": 1.0, "length": 2, "kl": 0.5, "columns": {"reference": "fine"}},
        {**second, "score": None, "length": 2, "kl": -1.0, "columns": {"reference": None}},
    ]
    assert (part["scores"], part["num_invalid"], part["lengths"]) == ([1.0], 1, [2, 2])
    fewer = evaluation_part(TOKENIZER, batch, prompts, scores(1.0, None), ref, keep=1)
    assert fewer["samples"] == part["samples"][:1]
    assert evaluation_part(TOKENIZER, batch, prompts, scores(1.0, None), None, keep=0)["samples"] == []


# --- text -> tokens


def write(folder: Path, rows: list[dict[str, Any]]) -> DataConfig:
    path = folder / "collected.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(path))


def sampled_rows(num: int) -> tuple[PromptSet, RolloutBatch]:
    """Any token of the embedded vocabulary anywhere, <pad> and <unk> too, and eos at the end or not at all."""
    rng = np.random.default_rng(0)
    words = {i: word for word, i in IDS.items()}
    others = [word for i, word in words.items() if i != EOS]
    samples = []
    for i in range(num):
        text = " ".join(rng.choice(others, rng.integers(0 if i % 2 else 1, 6)))
        samples.append(f"{text} <eos>" if i % 2 else text)
    samples[0] = "<pad> good <unk> <pad>"
    samples[1] = "<eos>"
    return rollout(["the film"] * (num // 2), [samples[i : i + 2] for i in range(0, num, 2)])


def test_collected_pairs_are_learned_with_the_tokens_that_were_sampled(tmp_path):
    prompts, batch = sampled_rows(200)
    found = scores(*np.random.default_rng(1).normal(size=200))
    rows = keep("pairs", prompts, batch, found, 2)
    assert len(rows) == 100
    pairs = load_pairs(write(tmp_path, rows), TOKENIZER, 96)
    for i in range(100):
        first_won = found.values[2 * i] > found.values[2 * i + 1]
        for side, row in zip(pairs.sides, (2 * i, 2 * i + 1) if first_won else (2 * i + 1, 2 * i), strict=True):
            length = batch.lengths[row]
            assert side.tokens[i].tolist() == batch.tokens[row, :length].tolist()
            assert side.completion_mask[i].tolist() == batch.completion_mask[row, :length].tolist()


def test_collected_samples_are_learned_with_the_tokens_that_were_sampled(tmp_path):
    prompts, batch = sampled_rows(100)
    rows = keep("all", prompts, batch, scores(*range(100)), 2)
    sequences = load_sequences(write(tmp_path, rows), TOKENIZER, 96)
    assert len(sequences) == 100
    for i in range(100):
        assert sequences.tokens[i].tolist() == batch.tokens[i, : batch.lengths[i]].tolist()


def test_a_stop_token_that_is_not_eos_stays_in_the_text(tmp_path):
    prompts, batch = rollout(["the film"], [["good ."]])
    batch.finished[0] = True  # stopped at "."
    [row] = keep("all", prompts, batch, scores(1.0), 1)
    assert (row["completion"], row["finished"]) == ("good .", False)
    assert load_sequences(write(tmp_path, [row]), TOKENIZER, 96).tokens[0].tolist() == ids("the film good .")


def test_the_worker_reads_what_to_keep_from_the_algorithm(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    worker = RewardWorker(TaskReward(type="task"), str(tmp_path), SentimentTask(name="sentiment"))
    prompts, batch = rollout(PROMPTS, FOUR)
    found = scores(*range(8))
    for kind, num in (("pairs", 4), ("best", 2), ("all", 8)):
        settings = {"name": "collect", "keep": kind, "samples_per_prompt": 4, "label": "best"}
        algorithm = CollectConfig.model_validate(settings)
        rows = worker.rows_to_keep(batch, prompts, found, algorithm, 0, 0)
        assert rows == keep(kind, prompts, batch, found, 4)
        assert len(rows) == num
