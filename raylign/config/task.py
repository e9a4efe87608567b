"""Embedded tasks: each makes its own data and model, and knows the true reward."""

from typing import Annotated, Literal

from pydantic import Field

from raylign.config.base import Config


class SentimentTask(Config):
    """Short reviews with a known sentiment, after section 6.1 of Rafailov et al. 2023."""

    name: Literal["sentiment"]
    seed: int = 0
    """Seed of the corpus and of the model's first weights."""
    num_reviews: int = Field(default=6000, ge=100)
    """Reviews in the corpus that the SFT stage learns from."""
    num_prompts: int = Field(default=2000, ge=10)
    """Training prompts (beginnings of further reviews)."""
    num_eval_prompts: int = Field(default=256, ge=10)
    """Held-out prompts."""
    hidden_size: int = Field(default=128, ge=16)
    """Width of the model."""
    num_layers: int = Field(default=4, ge=1)
    """Depth of the model."""


class ExactTask(Config):
    """A world so small that every completion can be listed: the best policy and its value are known exactly."""

    name: Literal["exact"]
    seed: int = 0
    """Seed of the Markov source, the reward and the reference model."""
    vocab_size: int = Field(default=8, ge=2, le=64)
    """Tokens. vocab_size ** length completions are listed, 2 million at most."""
    length: int = Field(default=5, ge=1, le=16)
    """Tokens of a completion (at most, in the variant `eos`)."""
    num_prompts: int = Field(default=1, ge=1)
    """Different prompts; each is one or more tokens of the same vocabulary."""
    variant: Literal["bigram", "sparse", "terminal", "eos"] = "bigram"
    """bigram: every pair of neighbouring tokens has a reward; sparse: most of them have none; terminal: the last two
    tokens alone decide; eos: as bigram with a reward for the length, and token 0 ends the completion."""


TaskConfig = Annotated[SentimentTask | ExactTask, Field(discriminator="name")]
