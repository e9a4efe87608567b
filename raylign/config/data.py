"""Which rows a run reads."""

from typing import Literal

from pydantic import Field

from raylign.config.base import Config


class DataConfig(Config):
    path: str
    """A .jsonl or .parquet file, a folder written by `datasets.save_to_disk`, a hub name, `task:NAME` for data of
    the embedded task, or `run:other.yaml` for the dataset that another run writes."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    subset: str | None = None
    """Configuration name of a hub dataset."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names the dataset uses, by the name raylign expects: {chosen: preferred_answer}."""
    max_rows: int | None = Field(default=None, ge=1)
    """Read no more than this many rows."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Longest prompt that is accepted."""
    max_tokens: int | None = Field(default=None, ge=2)
    """Longest prompt + completion that is accepted; the model's context length if not set."""
    long_rows: Literal["error", "drop", "truncate"] = "error"
    """What happens to a longer row: refuse the dataset, leave the row out, or cut it (prompts lose their beginning,
    completions their end). Dropped and truncated rows are counted in the log."""
