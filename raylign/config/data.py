"""Settings of the rows that a run reads."""

from typing import Literal

from pydantic import Field

from raylign.config.base import Config


class DataConfig(Config):
    """Dataset of a run, and which of its rows are read."""

    path: str
    """Dataset: a .jsonl or .parquet file, a folder written by `datasets.save_to_disk`, a hub name, `task:NAME` for data of
    the embedded task, or `run:other.yaml` for the dataset that another run writes."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    subset: str | None = None
    """Configuration name of a hub dataset."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column names in the dataset, by the names that raylign expects: {chosen: preferred_answer}."""
    max_rows: int | None = Field(default=None, ge=1)
    """Read no more than this many rows."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Longest prompt that is accepted, in tokens."""
    max_tokens: int | None = Field(default=None, ge=2)
    """Longest prompt + completion that is accepted, in tokens; the model's context length if not set."""
    long_rows: Literal["error", "drop", "truncate"] = "error"
    """Action for longer rows: stop with an error, drop the row, or truncate it (prompts at the start, completions at the
    end). The log says how many rows were dropped or truncated."""
