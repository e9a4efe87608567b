"""What every reward source does."""

from __future__ import annotations

from typing import Protocol

from raylign.types import PromptSet, RolloutBatch, Scores


class RewardSource(Protocol):
    def score(self, batch: RolloutBatch, prompts: PromptSet) -> Scores:
        """One raw score a row of `batch`: [N]. `batch.prompt_rows` says which row of `prompts` each answers.

        A row that cannot be scored is not valid; it never gets a made-up value.
        """
        ...
