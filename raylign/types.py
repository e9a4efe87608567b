"""The data that actors exchange: frozen dataclasses of numpy arrays, with the shape beside every array.

Numpy, never torch: arrays travel through Ray's object store without a copy (torch tensors are pickled).
Letters: N rows, L padded length of prompt + completion, S sum of lengths.

One alignment everywhere: element `[i, t]` of an array `[N, L]` belongs to **token t itself**. So
`logprobs[i, t] = log p(tokens[i, t] | tokens[i, :t])`, and `values[i, t]` is the value of the state in
which token t is about to be chosen. Rows are right-padded; masks come from lengths, never from token ids
(pad may equal eos).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
LongArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths in one flat array, so that a dataset is two buffers in the object store.

    >>> r = Ragged.from_rows([[1, 2, 3], [4]], np.int32)
    >>> r.values, r.offsets
    (array([1, 2, 3, 4], dtype=int32), array([0, 3, 4]))
    >>> r[1]
    array([4], dtype=int32)
    """

    values: NDArray[Any]  # [S]
    offsets: LongArray  # [N + 1], offsets[0] == 0, row i is values[offsets[i]:offsets[i + 1]]

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[Any] | NDArray[Any]], dtype: Any) -> Self:
        """Concatenate rows into one array of the given dtype; no rows give an empty one."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(a) for a in arrays], out=offsets[1:])
        return cls(np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> LongArray:
        """Length of each row: [N]."""
        return np.diff(self.offsets)

    def padded(self, rows: Iterable[int], fill: Any = 0) -> NDArray[Any]:
        """Stack the given rows, right-padded with `fill` to the longest of them: [len(rows), L]."""
        picked = [self[int(row)] for row in rows]
        out = np.full((len(picked), max(map(len, picked), default=0)), fill, dtype=self.values.dtype)
        for i, row in enumerate(picked):
            out[i, : len(row)] = row
        return out


@dataclass(frozen=True)
class PromptSet:
    """Tokenised prompts, with the other columns that a reward function may need."""

    tokens: Ragged  # int32
    columns: dict[str, list[Any]] = field(default_factory=dict)  # each list has N entries

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class SequenceSet:
    """Whole sequences (prompt + completion), with a mask of the tokens that are learned.

    The row "2 + 2 = | 4 <eos>" is tokens [5, 9, 5, 7, 6, 1] and mask [F, F, F, F, T, T].
    The mask may have holes (several assistant turns of one conversation). Token 0 is never True: nothing precedes it.
    """

    tokens: Ragged  # int32
    completion_mask: Ragged  # bool, same offsets

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class PairSet:
    """Preference pairs; row i of `chosen` was preferred to row i of `rejected` for the same prompt."""

    chosen: SequenceSet
    rejected: SequenceSet
    margin: FloatArray | None = None  # [N], by how much chosen should win, for a reward model with margins

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def sides(self) -> tuple[SequenceSet, SequenceSet]:
        """The two sets of sequences that the reference model scores: chosen, rejected."""
        return self.chosen, self.rejected


@dataclass(frozen=True)
class LabelledSet:
    """Single completions, each labelled good or bad, for KTO.

    Rows "a | b <eos>" (good) and "c | d <eos>" (bad) have the mismatched rows "a | d <eos>" and "c | b <eos>". Their
    completions answer another prompt; how far the policy has moved on them is the point from which gains and losses
    are measured.
    """

    sequences: SequenceSet
    desirable: BoolArray  # [N]
    mismatched: SequenceSet  # the prompt of row i with the completion of another row

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def sides(self) -> tuple[SequenceSet, SequenceSet]:
        """The two sets of sequences that the reference model scores: the rows, their mismatched rows."""
        return self.sequences, self.mismatched


Dataset = PromptSet | SequenceSet | PairSet | LabelledSet


@dataclass(frozen=True)
class RolloutBatch:
    """Sampled completions of one shard, as the rollout engine returned them.

    Prompt [5, 9] with completion [7, 1] and prompt [6] with completion [8], finished by length:
    tokens [[5, 9, 7, 1], [6, 8, 0, 0]], prompt_lengths [2, 1], completion_mask [[F, F, T, T], [F, T, F, F]].
    """

    tokens: IntArray  # [N, L], right-padded with 0
    prompt_lengths: IntArray  # [N]
    completion_mask: BoolArray  # [N, L]
    logprobs: FloatArray  # [N, L], of the sampled tokens at the sampling temperature; 0 outside the mask
    finished: BoolArray  # [N], True where the completion ended with a stop token, False where it was cut
    prompt_rows: LongArray  # [N], row of the prompt in its PromptSet
    policy_version: LongArray  # [N], version of the weights that made the sample

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> LongArray:
        """Number of tokens of prompt + completion in each row: [N]."""
        mask = self.completion_mask
        last = mask.shape[1] - np.argmax(mask[:, ::-1], axis=1)
        return np.where(mask.any(axis=1), last, self.prompt_lengths).astype(np.int64)


@dataclass(frozen=True)
class Scores:
    """Raw scores from a reward source. A row that could not be scored is marked invalid, never given a zero."""

    values: FloatArray  # [N], meaningless where not valid
    valid: BoolArray  # [N]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Experience:
    """Samples of one step, with every array that the policy-gradient losses read.

    Arrays are `[N, L]` unless a shape stands beside them; None where the algorithm does not use the array.
    """

    tokens: IntArray
    lengths: LongArray  # [N]
    completion_mask: BoolArray
    old_logprobs: FloatArray  # under the policy before the update, the denominator of the ratio; nats
    advantages: FloatArray  # whitened over the whole step if the config says so
    ref_logprobs: FloatArray | None = None  # for the KL in the loss; nats
    importance: FloatArray | None = None  # weights for samples that the engine drew with other probabilities
    values: FloatArray | None = None  # of the critic before the update
    returns: FloatArray | None = None
    kl_coef: float = 0.0  # weight of the KL in the loss

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class PairExperience:
    """Samples of one step as P labelled pairs, for online DPO. Row 2j is preferred to row 2j + 1."""

    tokens: IntArray  # [2P, L]
    lengths: LongArray  # [2P]
    completion_mask: BoolArray  # [2P, L]
    ref_logprobs: FloatArray  # [2P], sums over the completion, nats
    probability: FloatArray  # [P], probability that the label is right: 1 for a hard label, 0.5 to 1 for a soft one

    def __len__(self) -> int:
        return len(self.probability)


def concat(shards: Sequence[RolloutBatch]) -> RolloutBatch:
    """Join shards into one batch; rows keep their order, `[N, L]` arrays are right-padded to the longest L."""
    width = max(shard.tokens.shape[1] for shard in shards)

    def join(name: str) -> NDArray[Any]:
        arrays = [getattr(shard, name) for shard in shards]
        if arrays[0].ndim == 2:
            arrays = [np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays]
        return np.concatenate(arrays)

    return RolloutBatch(**{f.name: join(f.name) for f in fields(RolloutBatch)})
