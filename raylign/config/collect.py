"""`CollectConfig`: sample completions, score them and write a dataset."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from raylign.config.traits import ENGINE_METRICS, SPEED_METRICS, Algorithm, Headline, Makes, Reads


class CollectConfig(Algorithm):
    """Sample completions of every prompt, score them, and write them as a dataset, without training."""

    reads: ClassVar[Reads] = "prompts"
    makes: ClassVar[Makes] = "dataset"
    learner: ClassVar[str | None] = None
    kl_key: ClassVar[str | None] = None
    headline: ClassVar[Headline] = (("collect/rows", "rows"), ("collect/score", "score"))

    name: Literal["collect"]
    rows: int | None = Field(default=1024, ge=1)
    """Number of rows to write; prompts are sampled again, with other seeds, until there are enough. null: one pass over the
    prompts."""
    prompts_per_step: int = Field(default=256, ge=1)
    """Number of prompts sampled and written in one step."""
    samples_per_prompt: int = Field(default=2, ge=1)
    """Number of completions of each prompt."""
    keep: Literal["pairs", "best", "all"] = "pairs"
    """Completions to keep. pairs: neighbouring samples as chosen and rejected, except identical ones; best: the sample of each prompt with
    the highest score (best-of-n, rejection sampling); all: every sample with its score."""
    label: Literal["bradley_terry", "best"] = "bradley_terry"
    """Choice within a pair. bradley_terry: random, with probability sigmoid(difference of scores), like the errors of a
    person; best: the higher score."""

    @property
    def rows_per_prompt(self) -> int:
        """Number of rows written for each prompt if none is left out."""
        return {"pairs": self.samples_per_prompt // 2, "best": 1, "all": self.samples_per_prompt}[self.keep]

    @property
    def file_name(self) -> str:
        """Name of the dataset's file in the run directory."""
        return "preferences.jsonl" if self.keep == "pairs" else "completions.jsonl"

    @property
    def batch_size(self) -> int:
        """Number of prompts sampled in a step, no more than needed for `rows`."""
        if self.rows is None:
            return self.prompts_per_step
        return min(self.prompts_per_step, -(-self.rows // self.rows_per_prompt))

    def num_steps(self, num_rows: int) -> int:
        """Return the number of steps over `num_rows` prompts if no row is left out."""
        needed = num_rows if self.rows is None else -(-self.rows // self.rows_per_prompt)
        epochs, rest = divmod(needed, num_rows)
        return epochs * -(-num_rows // self.batch_size) + -(-rest // self.batch_size)

    def num_optimizer_steps(self, num_rows: int) -> int:
        """Return 0: nothing is trained."""
        return 0

    def step_metrics(self) -> set[str]:
        return {"collect/rows", "collect/score", *ENGINE_METRICS, *SPEED_METRICS}

    @model_validator(mode="after")
    def _pairs_need_two(self):
        if self.keep == "pairs" and self.samples_per_prompt % 2:
            raise ValueError(f"samples_per_prompt: {self.samples_per_prompt} does not make pairs; set an even number")
        return self
