"""Settings of the embedded tasks, which make their own data and model and know the true reward."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raylign.config.base import Config

MOST_COMPLETIONS = 2**21
"""Largest number of completions of all prompts of the exact task: seconds of forward passes, arrays of 16 MiB."""


class SentimentTask(Config):
    """The sentiment task: short reviews with a known sentiment, after section 6.1 of Rafailov et al. 2023."""

    name: Literal["sentiment"]
    seed: int = 0
    """Seed of the corpus and of the model's first weights."""
    num_reviews: int = Field(default=6000, ge=100)
    """Number of reviews in the corpus for SFT."""
    num_prompts: int = Field(default=2000, ge=10)
    """Number of training prompts (beginnings of further reviews)."""
    num_eval_prompts: int = Field(default=256, ge=10)
    """Number of held-out prompts."""
    hidden_size: int = Field(default=128, ge=16)
    """Width of the model."""
    num_layers: int = Field(default=4, ge=1)
    """Depth of the model."""


class SummarizeTask(Config):
    """The summarize task: generated posts to summarize, with a known quality of every summary, after section 6 of Rafailov
    et al. 2023."""

    name: Literal["summarize"]
    seed: int = Field(default=0, ge=0)
    """Seed of the posts, the summaries and the model's first weights."""
    num_facts: int = Field(default=3, ge=2, le=8)
    """Number of facts, one per sentence, in a post."""
    num_posts: int = Field(default=12000, ge=100)
    """Number of posts with a summary in the corpus for SFT."""
    num_prompts: int = Field(default=2000, ge=10)
    """Number of training prompts (further posts)."""
    num_eval_prompts: int = Field(default=256, ge=10)
    """Number of held-out prompts, each with a reference summary."""
    hidden_size: int = Field(default=64, ge=32)
    """Width of the model, a multiple of 32."""
    num_layers: int = Field(default=2, ge=1)
    """Depth of the model. One layer cannot learn to copy facts."""


class ExactTask(Config):
    """The exact task: so few completions that all can be listed, so the best policy and its value are known exactly."""

    name: Literal["exact"]
    seed: int = Field(default=0, ge=0)
    """Seed of the Markov source, the reward and the reference model."""
    vocab_size: int = Field(default=8, ge=2, le=64)
    """Number of tokens in the vocabulary. All vocab_size ** length completions of every prompt are listed; they may be at
    most 2 million (2 ** 21) in all."""
    length: int = Field(default=5, ge=1, le=16)
    """Number of tokens of a completion (the maximum, in the variant `eos`)."""
    num_prompts: int = Field(default=1, ge=1)
    """Number of different prompts: of one token each, or of two if there are more prompts than tokens."""
    variant: Literal["bigram", "sparse", "terminal", "eos"] = "bigram"
    """Reward: bigram rewards every pair of neighbouring tokens; sparse only a few of the pairs; terminal only the last
    two tokens; eos is bigram with a cost per token, and token 0 ends the completion."""

    @model_validator(mode="after")
    def _listable(self):
        if self.num_completions > MOST_COMPLETIONS // self.num_prompts:
            raise ValueError(
                f"{self.num_completions:,} completions of {self.num_prompts} prompt(s) cannot all be listed, "
                f"{MOST_COMPLETIONS:,} is the maximum; lower vocab_size, length or num_prompts"
            )
        words = self.vocab_size - (self.variant == "eos")
        if self.num_prompts > words**2:
            raise ValueError(
                f"num_prompts: {words} words make only {words**2} prompts of two; lower it, or raise vocab_size"
            )
        return self

    @property
    def num_completions(self) -> int:
        """Number of different completions of a prompt."""
        if self.variant != "eos":
            return self.vocab_size**self.length
        return sum((self.vocab_size - 1) ** words for words in range(self.length + 1))


TaskConfig = Annotated[SentimentTask | SummarizeTask | ExactTask, Field(discriminator="name")]
