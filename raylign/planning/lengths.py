"""Lengths of the rows of a run: read from its data if that is on this machine, else taken from limits in the config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raylign.config import CollectConfig, OfflineConfig, OnlineConfig, RunConfig
from raylign.data.batching import micro_batches
from raylign.errors import UserError
from raylign.models.description import context_length
from raylign.pipeline.inputs import load_inputs, prompt_limit
from raylign.planning.trace import Shape
from raylign.types import Dataset, LongArray, PromptSet, SequenceSet

_NUM_ASSUMED = 4096  # items assumed where the data is elsewhere: as many as any pass can hold


@dataclass(frozen=True)
class LengthProfile:
    """Lengths of the items that a step consists of: samples, sequences, or pairs."""

    lengths: LongArray  # [N] tokens of an item (of its longer side)
    completions: LongArray  # [N] completion tokens of an item, both sides of a pair together
    rows_per_item: int
    origin: str  # where the lengths come from, for the reader

    @property
    def mean_tokens(self) -> float:
        """Mean tokens of an item, both sides of a pair together, without padding."""
        return float(self.lengths.mean()) * self.rows_per_item

    def largest(self, max_tokens: int, items: int, rows_per_item: int | None = None) -> Shape:
        """Return the largest pass over at most `items` items: most padded tokens, then most completion tokens.

        Args:
            max_tokens: budget of padded tokens of a pass.
            rows_per_item: 1 if the sides of a pair are passed separately; this profile's own if not given.
        """
        sides = rows_per_item or self.rows_per_item
        shapes = []
        for group in micro_batches(self.lengths, max_tokens, sides):
            group = group[:items]
            completion = int(self.completions[group].sum()) * sides // self.rows_per_item
            shapes.append(Shape(len(group) * sides, int(self.lengths[group].max()), max(completion, 1)))
        return max(shapes, key=lambda shape: (shape.tokens, shape.completion))

    def passes(self, max_tokens: int, items: int) -> int:
        """Return the number of micro-batches that `items` items fill."""
        spread = np.linspace(0, len(self.lengths) - 1, min(items, len(self.lengths))).astype(np.int64)
        groups = len(micro_batches(np.sort(self.lengths)[spread], max_tokens, self.rows_per_item))
        return max(1, round(groups * items / len(spread)))


def measure_lengths(
    config: RunConfig, upstream: LengthProfile | None, upstream_rows: int | None
) -> tuple[LengthProfile, int | None]:
    """Return the lengths of the rows that `config` reads, and the number of these rows if it is known.

    Args:
        config: config with resolved paths.
        upstream: samples of the collect run that will write the data, if that run is still to be done.
        upstream_rows: number of rows that it will write.
    """
    if upstream is not None:
        return _from_samples(config, upstream), upstream_rows
    if Path(config.data.path).expanduser().exists():
        data, _ = load_inputs(config.model_copy(update={"evaluation": None}))
        return _from_data(config, data), len(data)
    return _from_limits(config), config.data.max_rows


def count_steps(config: RunConfig, num_rows: int | None) -> int:
    """Return the number of steps of the whole run.

    Raises:
        UserError: the number follows from the data, which is not on this machine.
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


def _from_data(config: RunConfig, data: Dataset) -> LengthProfile:
    if isinstance(data, PromptSet):
        longest = config.rollout.sampling.max_tokens
        lengths = data.tokens.lengths + longest
        samples = config.algorithm.samples_per_item
        lengths = np.repeat(lengths, _samples_per_prompt(config) // samples)
        return LengthProfile(lengths, np.full(len(lengths), longest * samples), samples, "data.path")
    if isinstance(data, SequenceSet):
        return LengthProfile(data.tokens.lengths, _completion_tokens(data), 1, "data.path")
    first, second = data.sides
    lengths = np.maximum(first.tokens.lengths, second.tokens.lengths)
    if config.algorithm.reads == "labelled":
        return LengthProfile(lengths, _completion_tokens(first), 1, "data.path")
    return LengthProfile(lengths, _completion_tokens(first) + _completion_tokens(second), 2, "data.path")


def _from_samples(config: RunConfig, samples: LengthProfile) -> LengthProfile:
    """Return the lengths of rows that a collect run will sample, with every completion as long as allowed."""
    sides = config.algorithm.samples_per_item
    origin = f"longest samples for {config.data.path}"
    return LengthProfile(samples.lengths, samples.completions * sides, sides, origin)


def _from_limits(config: RunConfig) -> LengthProfile:
    context = context_length(config.model)
    samples = config.algorithm.samples_per_item
    if config.algorithm.reads == "prompts":
        prompt = min(config.data.max_prompt_tokens or context, prompt_limit(config, context))
        longest = config.rollout.sampling.max_tokens
        origin = "data.max_prompt_tokens" if config.data.max_prompt_tokens else "the model's context"
        return _uniform(prompt + longest, longest * samples, samples, origin)
    longest = min(config.data.max_tokens or context, context)
    completion = longest - min(config.data.max_prompt_tokens or 0, longest - 1)
    origin = "data.max_tokens" if config.data.max_tokens else "the model's context"
    return _uniform(longest, completion * samples, samples, origin)


def _uniform(length: int, completion: int, rows_per_item: int, origin: str) -> LengthProfile:
    lengths, completions = np.full(_NUM_ASSUMED, length), np.full(_NUM_ASSUMED, completion)
    return LengthProfile(lengths, completions, rows_per_item, f"longest rows by {origin}")


def _samples_per_prompt(config: RunConfig) -> int:
    algorithm = config.algorithm
    return algorithm.samples_per_prompt if isinstance(algorithm, OnlineConfig | CollectConfig) else 1


def _completion_tokens(data: SequenceSet) -> LongArray:
    return np.array([int(data.completion_mask[row].sum()) for row in range(len(data))], dtype=np.int64)
