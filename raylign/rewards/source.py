"""`RewardSource`, the protocol of every reward source."""

from __future__ import annotations

from typing import Protocol

from raylign.types import PromptSet, RolloutBatch, Scores


class RewardSource(Protocol):
    """A source of scores for completions."""

    def score(self, batch: RolloutBatch, prompts: PromptSet) -> Scores:
        """Score every row of `batch`: [N]. Row i answers row `batch.prompt_rows[i]` of `prompts`.

        A row that cannot be scored is marked invalid; it never gets a made-up value.
        """
        ...
