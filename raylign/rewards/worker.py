"""The reward worker, which a Ray actor wraps: a reward source and its metrics."""

from __future__ import annotations

import time
from typing import Any, Literal

from raylign.config import CollectConfig, RewardConfig, TaskConfig
from raylign.models.description import open_tokenizer
from raylign.rewards import make_source
from raylign.rewards.report import evaluation_part, rows_to_keep
from raylign.types import FloatArray, PromptSet, RolloutBatch, Scores


class RewardWorker:
    """A reward source that counts its work."""

    def __init__(
        self,
        reward: RewardConfig,
        tokenizer_path: str,
        task: TaskConfig | None = None,
        compute_dtype: Literal["float32", "bfloat16"] = "float32",
        trust_remote_code: bool = False,
        num_threads: int | None = None,
        place: str = "reward",
    ) -> None:
        """Load the policy's tokenizer, to which `trust_remote_code` applies, and the source (see `make_source`)."""
        self.tokenizer = open_tokenizer(tokenizer_path, trust_remote_code)
        self._source = make_source(reward, self.tokenizer, task, compute_dtype, place, num_threads)
        self._metrics = _no_metrics()

    def score(self, batch: RolloutBatch, prompts: PromptSet) -> Scores:
        """Score every row of a batch: [N]; count the time and the invalid rows."""
        started = time.perf_counter()
        scores = self._source.score(batch, prompts)
        self._metrics["time/score"] += time.perf_counter() - started
        self._metrics["reward/invalid"] += float((~scores.valid).sum())
        return scores

    def rows_to_keep(
        self, batch: RolloutBatch, prompts: PromptSet, scores: Scores, algorithm: CollectConfig, seed: int, step: int
    ) -> list[dict[str, Any]]:
        """Select the rows of a scored batch that a collect run writes, by `report.rows_to_keep`."""
        return rows_to_keep(
            self.tokenizer,
            batch,
            prompts,
            scores,
            algorithm.keep,
            algorithm.samples_per_prompt,
            algorithm.label,
            seed,
            step,
        )

    def evaluation_part(
        self, batch: RolloutBatch, prompts: PromptSet, scores: Scores, ref_logprobs: FloatArray | None, keep: int
    ) -> dict[str, Any]:
        """Return the results of one evaluated batch, by `report.evaluation_part`."""
        return evaluation_part(self.tokenizer, batch, prompts, scores, ref_logprobs, keep)

    def pop_metrics(self) -> dict[str, float]:
        """Return busy seconds (`time/score`) and the number of invalid rows (`reward/invalid`) since the last call."""
        metrics, self._metrics = self._metrics, _no_metrics()
        return metrics


def _no_metrics() -> dict[str, float]:
    return {"time/score": 0.0, "reward/invalid": 0.0}
