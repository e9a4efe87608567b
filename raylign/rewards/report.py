"""From scored rollouts to what leaves the actors: preference rows and the sums of an evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from raylign.types import FloatArray, PromptSet, RolloutBatch, Scores


def completion_text(tokenizer: PreTrainedTokenizerBase, batch: RolloutBatch, row: int) -> str:
    """The completion of a row as text, without special tokens."""
    return str(tokenizer.decode(batch.tokens[row][batch.completion_mask[row]], skip_special_tokens=True))


def label_pairs(
    tokenizer: PreTrainedTokenizerBase,
    batch: RolloutBatch,
    prompts: PromptSet,
    scores: Scores,
    label: str,
    seed: int,
    step: int,
    distinct: bool,
) -> list[dict[str, Any]]:
    """Preference rows from two neighbouring samples a prompt.

    Args:
        batch: rows 2i and 2i + 1 answer the same prompt.
        label: `best` prefers the higher score; `bradley_terry` prefers the first with probability
            sigmoid(score_1 - score_2), as people err (Bradley & Terry 1952).
        distinct: leave out pairs whose two completions are the same text.
    Returns:
        {prompt, chosen, rejected, chosen_score, rejected_score}; a pair with an invalid score is left out.
    """
    uniform = np.random.default_rng([seed, step]).random(len(batch) // 2)
    rows = []
    for pair, u in enumerate(uniform):
        first, second = 2 * pair, 2 * pair + 1
        if not (scores.valid[first] and scores.valid[second]):
            continue
        gap = float(scores.values[first] - scores.values[second])
        prefers_first = gap > 0 if label == "best" else u < 1 / (1 + np.exp(-gap))
        won, lost = (first, second) if prefers_first else (second, first)
        chosen, rejected = (completion_text(tokenizer, batch, row) for row in (won, lost))
        if not chosen.strip() or not rejected.strip() or (distinct and chosen == rejected):
            continue
        rows.append(
            {
                "prompt": prompts.columns["prompt"][int(batch.prompt_rows[first])],
                "chosen": chosen,
                "rejected": rejected,
                "chosen_score": float(scores.values[won]),
                "rejected_score": float(scores.values[lost]),
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
    """What one evaluated batch adds: its scores, KLs and lengths, and the text of its first `keep` rows.

    The KL of a row is the sum over its completion of log policy - log reference (k1), in nats.
    """
    kl = None
    if ref_logprobs is not None:
        kl = ((batch.logprobs - ref_logprobs) * batch.completion_mask).sum(1, dtype=np.float64).tolist()
    samples = [
        {
            "prompt": prompts.columns["prompt"][int(batch.prompt_rows[row])],
            "completion": completion_text(tokenizer, batch, row),
            "score": float(scores.values[row]) if scores.valid[row] else None,
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
