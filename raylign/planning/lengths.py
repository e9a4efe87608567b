"""How long the rows of a run are: read from its data where that is here, else taken from the limits of its config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raylign.config import CollectConfig, OfflineConfig, OnlineConfig, RunConfig
from raylign.controllers.inputs import load_inputs, prompt_limit
from raylign.data.batching import micro_batches
from raylign.errors import UserError
from raylign.models.description import context_length
from raylign.planning.trace import Shape
from raylign.types import Dataset, LongArray, PromptSet, SequenceSet

_MANY = 4096  # rows of data that is not here


@dataclass(frozen=True)
class Rows:
    """Lengths of the items that a step is made of: samples, sequences, or pairs."""

    lengths: LongArray  # [N] tokens of an item (of its longer side)
    completions: LongArray  # [N] tokens of its completions, both sides of a pair together
    rows_per_item: int
    origin: str  # where the lengths are from, for the reader

    @property
    def mean_tokens(self) -> float:
        """Of an item, both sides of a pair together, without padding."""
        return float(self.lengths.mean()) * self.rows_per_item

    def largest(self, max_tokens: int, items: int, rows_per_item: int | None = None) -> Shape:
        """The largest pass over at most `items` of them: most padded tokens, then most completion tokens.

        Args:
            max_tokens: budget of padded tokens of a pass.
            rows_per_item: if not its own: 1 where the sides of a pair are passed one by one.
        """
        sides = rows_per_item or self.rows_per_item
        shapes = []
        for group in micro_batches(self.lengths, max_tokens, sides):
            group = group[:items]
            completion = int(self.completions[group].sum()) * sides // self.rows_per_item
            shapes.append(Shape(len(group) * sides, int(self.lengths[group].max()), max(completion, 1)))
        return max(shapes, key=lambda shape: (shape.tokens, shape.completion))

    def passes(self, max_tokens: int, items: int) -> int:
        """Micro-batches that `items` of them fill."""
        spread = np.linspace(0, len(self.lengths) - 1, min(items, len(self.lengths))).astype(np.int64)
        groups = len(micro_batches(np.sort(self.lengths)[spread], max_tokens, self.rows_per_item))
        return max(1, round(groups * items / len(spread)))


def rows_of(config: RunConfig, upstream: Rows | None, upstream_rows: int | None) -> tuple[Rows, int | None]:
    """Lengths of what `config` learns from, and how many rows its data has, if that can be known.

    Args:
        config: with resolved paths.
        upstream: samples of the collect run that will write the data, where it has not been run.
        upstream_rows: rows it will write.
    """
    if upstream is not None:
        return _of_samples(config, upstream), upstream_rows
    if Path(config.data.path).expanduser().exists():
        data, _ = load_inputs(config.model_copy(update={"evaluation": None}))
        return _of_data(config, data), len(data)
    return _of_limits(config), config.data.max_rows


def steps_of(config: RunConfig, num_rows: int | None) -> int:
    """Steps of the whole run.

    Raises:
        UserError: they follow from the data, which is not here.
    """
    algorithm = config.algorithm
    if num_rows is not None:
        return algorithm.num_steps(num_rows)
    if isinstance(algorithm, OnlineConfig):
        return algorithm.steps
    if isinstance(algorithm, OfflineConfig) and algorithm.max_steps is not None:
        return algorithm.max_steps
    raise UserError(
        f"data.path: {config.data.path} is not on this machine, so its number of rows is not known; give --rows"
    )


def _of_data(config: RunConfig, data: Dataset) -> Rows:
    if isinstance(data, PromptSet):
        longest = config.rollout.sampling.max_tokens
        lengths = data.tokens.lengths + longest
        samples = config.algorithm.samples_per_item
        lengths = np.repeat(lengths, _samples_per_prompt(config) // samples)
        return Rows(lengths, np.full(len(lengths), longest * samples), samples, "data.path")
    if isinstance(data, SequenceSet):
        return Rows(data.tokens.lengths, _learned(data), 1, "data.path")
    one, other = data.sides
    lengths = np.maximum(one.tokens.lengths, other.tokens.lengths)
    if config.algorithm.reads == "labelled":
        return Rows(lengths, _learned(one), 1, "data.path")
    return Rows(lengths, _learned(one) + _learned(other), 2, "data.path")


def _of_samples(config: RunConfig, samples: Rows) -> Rows:
    """Of rows that are still to be sampled: every completion as long as it may be."""
    sides = config.algorithm.samples_per_item
    return Rows(samples.lengths, samples.completions * sides, sides, f"longest samples for {config.data.path}")


def _of_limits(config: RunConfig) -> Rows:
    context = context_length(config.model)
    if config.algorithm.reads == "prompts":
        prompt = min(config.data.max_prompt_tokens or context, prompt_limit(config, context))
        longest = config.rollout.sampling.max_tokens
        origin = "data.max_prompt_tokens" if config.data.max_prompt_tokens else "the model's context"
        samples = config.algorithm.samples_per_item
        return _alike(prompt + longest, longest * samples, samples, origin)
    longest = min(config.data.max_tokens or context, context)
    sides = config.algorithm.samples_per_item
    completion = longest - min(config.data.max_prompt_tokens or 0, longest - 1)
    origin = "data.max_tokens" if config.data.max_tokens else "the model's context"
    return _alike(longest, completion * sides, sides, origin)


def _alike(length: int, completion: int, rows_per_item: int, origin: str) -> Rows:
    """As many equal rows as any pass can hold."""
    return Rows(np.full(_MANY, length), np.full(_MANY, completion), rows_per_item, f"longest rows by {origin}")


def _samples_per_prompt(config: RunConfig) -> int:
    algorithm = config.algorithm
    return algorithm.samples_per_prompt if isinstance(algorithm, OnlineConfig | CollectConfig) else 1


def _learned(data: SequenceSet) -> LongArray:
    return np.array([int(data.completion_mask[row].sum()) for row in range(len(data))], dtype=np.int64)
