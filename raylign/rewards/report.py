"""Reduction of scored rollouts to the results that leave the actors: rows of a dataset, and parts of an evaluation."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from raylign.types import BoolArray, FloatArray, PromptSet, RolloutBatch, Scores


def completion_text(tokenizer: PreTrainedTokenizerBase, batch: RolloutBatch, row: int) -> str:
    """Decode the completion of a row, without special tokens."""
    return str(tokenizer.decode(batch.tokens[row][batch.completion_mask[row]], skip_special_tokens=True))


def sampled(tokenizer: PreTrainedTokenizerBase, batch: RolloutBatch, row: int) -> tuple[str, bool]:
    """Decode the completion of a row without its final eos, and return whether there was one.

    Special tokens stay in the text, and so does a stop token other than eos, so that tokenising the text gives the
    sampled tokens again.
    """
    tokens = batch.tokens[row][batch.completion_mask[row]]
    finished = bool(batch.finished[row]) and int(tokens[-1]) == tokenizer.eos_token_id
    text = tokenizer.decode(
        tokens[:-1] if finished else tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text), finished


def rows_to_keep(
    tokenizer: PreTrainedTokenizerBase,
    batch: RolloutBatch,
    prompts: PromptSet,
    scores: Scores,
    keep: Literal["pairs", "best", "all"],
    num_samples: int,
    label: str,
    seed: int,
    step: int,
) -> list[dict[str, Any]]:
    """Select the rows of a scored batch that a collect run writes; samples without a valid score or tokens are dropped.

    Args:
        batch: `num_samples` neighbouring rows answer the same prompt.
        keep: `pairs`: the pairs of `label_pairs`, which alone uses label, seed and step; `best`: for each prompt the
            sample with the highest score, the first if several are equal; `all`: every sample.
    Returns:
        Pairs, or {prompt, completion, score, finished}, in the order of the batch.
    """
    if keep == "pairs":
        return label_pairs(tokenizer, batch, prompts, scores, label, seed, step)
    usable = _usable(batch, scores)
    rows = [row for row in range(len(batch)) if usable[row]]
    if keep == "best":
        best: dict[int, int] = {}  # by prompt
        for row in rows:
            group = row // num_samples
            if group not in best or scores.values[row] > scores.values[best[group]]:
                best[group] = row
        rows = list(best.values())
    kept = []
    for row in rows:
        text, finished = sampled(tokenizer, batch, row)
        score = float(scores.values[row])
        kept.append({"prompt": _prompt(prompts, batch, row), "completion": text, "score": score, "finished": finished})
    return kept


def label_pairs(
    tokenizer: PreTrainedTokenizerBase,
    batch: RolloutBatch,
    prompts: PromptSet,
    scores: Scores,
    label: str,
    seed: int,
    step: int,
) -> list[dict[str, Any]]:
    """Make preference rows from neighbouring samples of a prompt.

    Args:
        batch: rows 2i and 2i + 1 answer the same prompt.
        label: `best` prefers the higher score; `bradley_terry` prefers the first with probability
            sigmoid(score_1 - score_2), a model of human error (Bradley & Terry 1952).
    Returns:
        {prompt, chosen, rejected, chosen_score, rejected_score, chosen_finished, rejected_finished}; a pair is dropped
        if a side has no valid score or no tokens, or if both sides are the same: such a pair teaches nothing, and
        `load_pairs` refuses it.
    """
    uniform = np.random.default_rng([seed, step]).random(len(batch) // 2)
    usable = _usable(batch, scores)
    rows = []
    for pair, u in enumerate(uniform):
        first, second = 2 * pair, 2 * pair + 1
        if not (usable[first] and usable[second]):
            continue
        gap = float(scores.values[first] - scores.values[second])
        prefers_first = gap > 0 if label == "best" else u < 1 / (1 + np.exp(-gap))
        won, lost = (first, second) if prefers_first else (second, first)
        chosen, rejected = (sampled(tokenizer, batch, row) for row in (won, lost))
        if chosen == rejected:
            continue
        rows.append(
            {
                "prompt": _prompt(prompts, batch, first),
                "chosen": chosen[0],
                "rejected": rejected[0],
                "chosen_score": float(scores.values[won]),
                "rejected_score": float(scores.values[lost]),
                "chosen_finished": chosen[1],
                "rejected_finished": rejected[1],
            }
        )
    return rows


def evaluation_part(
    tokenizer: PreTrainedTokenizerBase,
    batch: RolloutBatch,
    prompts: PromptSet,
    scores: Scores,
    ref_logprobs: FloatArray | None,
    keep: int,
) -> dict[str, Any]:
    """Return the results of one evaluated batch: scores, KLs and lengths, and its first `keep` rows in full.

    Each kept row has its prompt, completion, score, length (tokens), KL, and the prompt's other columns as `columns`.
    The KL of a row is the sum over its completion of log policy - log reference (k1), in nats.
    """
    kl = None
    if ref_logprobs is not None:
        kl = ((batch.logprobs - ref_logprobs) * batch.completion_mask).sum(1, dtype=np.float64).tolist()
    samples = [
        {
            "prompt": _prompt(prompts, batch, row),
            "completion": completion_text(tokenizer, batch, row),
            "score": float(scores.values[row]) if scores.valid[row] else None,
            "length": int(batch.completion_mask[row].sum()),
            "kl": None if kl is None else kl[row],
            "columns": _other_columns(prompts, batch, row),
        }
        for row in range(min(keep, len(batch)))
    ]
    return {
        "scores": scores.values[scores.valid].astype(float).tolist(),
        "num_invalid": int((~scores.valid).sum()),
        "kl": kl,
        "lengths": batch.completion_mask.sum(1).tolist(),
        "finished": batch.finished.tolist(),
        "samples": samples,
    }


def _usable(batch: RolloutBatch, scores: Scores) -> BoolArray:
    return scores.valid & batch.completion_mask.any(axis=1)


def _other_columns(prompts: PromptSet, batch: RolloutBatch, row: int) -> dict[str, Any]:
    prompt_row = int(batch.prompt_rows[row])
    return {name: column[prompt_row] for name, column in prompts.columns.items() if name != "prompt"}


def _prompt(prompts: PromptSet, batch: RolloutBatch, row: int) -> str:
    return prompts.columns["prompt"][int(batch.prompt_rows[row])]
