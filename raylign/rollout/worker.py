"""The rollout worker, which a Ray actor wraps: an engine, the version of its weights, and reproducible samples."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylign.config import LoRAConfig, RolloutConfig
from raylign.errors import StaleEngineError, UserError
from raylign.rollout.engine import Completion, Dtype
from raylign.rollout.factory import make_engine
from raylign.types import LongArray, PromptSet, RolloutBatch

UNSYNCED = -1


class RolloutWorker:
    """A rollout engine that samples only from the policy version it has acknowledged.

    A new worker, or one restarted after a crash, is unsynced and refuses to sample: it has the weights of `model_path`,
    which may not be those of the current policy.

    Args:
        lora: the adapter that the policy learns, if any; `load_weights` then takes the adapter only.
    """

    def __init__(
        self,
        model_path: str,
        rollout: RolloutConfig,
        dtype: Dtype,
        eos_token_ids: tuple[int, ...],
        run_seed: int,
        trust_remote_code: bool = False,
        lora: LoRAConfig | None = None,
        sleeps: bool = False,
    ) -> None:
        self._engine = make_engine(rollout.engine, model_path, rollout, dtype, trust_remote_code, lora, sleeps)
        self._dtype = dtype
        self._sampling = rollout.sampling
        self._stop_token_ids = tuple(sorted({*eos_token_ids, *rollout.sampling.stop_token_ids}))
        self._run_seed = run_seed
        self.policy_version = UNSYNCED
        self.asleep = False
        self._metrics = _no_metrics()

    def load_weights(self, version: int, *buckets: dict[str, NDArray[Any]]) -> int:
        """Replace the whole model, or the adapter, by `buckets`; return the acknowledged version.

        Names and types are those of `RolloutEngine.load_weights`. If this raises, the worker is unsynced, because part
        of the model may have been written.
        """
        started = time.perf_counter()
        self.policy_version = UNSYNCED
        self._engine.load_weights(chain.from_iterable(bucket.items() for bucket in buckets))
        self.policy_version = version
        self._metrics["time/load_weights"] += time.perf_counter() - started
        return version

    def load_folder(self, version: int, folder: str) -> int:
        """Replace the whole model by the weights of a Hugging Face folder; return the acknowledged version."""
        from raylign.models.load import read_weights  # imports torch, which a user's own engine may not need

        return self.load_weights(version, read_weights(folder, self._dtype))

    def use_initial_weights(self, version: int) -> int:
        """Acknowledge that the weights of `model_path` are those of `version`; refused once others were loaded."""
        if self.policy_version not in (UNSYNCED, version):
            raise StaleEngineError(
                f"rollout worker: it has loaded policy version {self.policy_version}, so its weights are no longer "
                f"the initial ones (version {version})"
            )
        self.policy_version = version
        return version

    def generate(
        self, prompts: PromptSet, rows: LongArray, num_samples: int, step: int, policy_version: int
    ) -> RolloutBatch:
        """Sample `num_samples` completions of each prompt in `rows` [B]: N = B * num_samples rows, grouped by prompt.

        Raises:
            StaleEngineError: the engine's weights are not those of `policy_version`.
            UserError: a prompt leaves no room for `max_tokens` in the engine's context.
        """
        if self.policy_version == UNSYNCED:
            raise StaleEngineError(
                f"rollout worker: asked for samples of policy version {policy_version} but never synced; "
                "load weights into it first"
            )
        if policy_version != self.policy_version:
            raise StaleEngineError(
                f"rollout worker: asked for samples of policy version {policy_version}, but its weights are of "
                f"version {self.policy_version}"
            )
        if self.asleep:
            raise RuntimeError("rollout worker: asked for samples while asleep; call wake first")
        self._check_lengths(prompts, rows)
        started = time.perf_counter()
        prompt_rows = np.repeat(np.asarray(rows, dtype=np.int64), num_samples)  # [N]
        picked = [prompts.tokens[int(row)] for row in prompt_rows]
        seeds = [sample_seed(self._run_seed, step, int(row), i % num_samples) for i, row in enumerate(prompt_rows)]
        completions = self._engine.generate(picked, self._sampling, seeds, self._stop_token_ids)
        batch = pack(picked, completions, prompt_rows, policy_version)
        self._metrics["tokens/generated"] += sum(len(completion.token_ids) for completion in completions)
        self._metrics["time/generate"] += time.perf_counter() - started
        return batch

    def pop_metrics(self) -> dict[str, float]:
        """Return busy seconds (`time/generate`, `time/load_weights`) and `tokens/generated` since the last call."""
        metrics, self._metrics = self._metrics, _no_metrics()
        return metrics

    def sleep(self) -> None:
        """Free the GPU's memory; `wake` must be called before the next sample or weights."""
        self.asleep = True
        self._engine.sleep()

    def wake(self) -> None:
        """Undo `sleep`."""
        self._engine.wake()
        self.asleep = False

    def close(self) -> None:
        """Free the engine."""
        self.policy_version = UNSYNCED
        self._engine.close()

    def _check_lengths(self, prompts: PromptSet, rows: LongArray) -> None:
        limit, max_tokens = self._engine.max_model_len, self._sampling.max_tokens
        for row in rows:
            length = len(prompts.tokens[int(row)])
            if length == 0:
                raise UserError(f"prompt row {row}: it has no tokens; remove it from the dataset")
            if limit is not None and length + max_tokens > limit:
                raise UserError(
                    f"prompt row {row}: its {length} tokens and a completion of rollout.sampling.max_tokens "
                    f"{max_tokens} exceed the engine's context of {limit}; lower max_tokens, "
                    + (
                        f"or set data.max_prompt_tokens: {limit - max_tokens} and data.long_rows: drop"
                        if limit > max_tokens
                        else "which fills the context by itself"
                    )
                )


def sample_seed(run_seed: int, step: int, prompt_row: int, sample: int) -> int:
    """Return the 63-bit seed of a sample, the same on every worker, so that any worker can redo the sample."""
    digest = hashlib.blake2b(struct.pack("<4q", run_seed, step, prompt_row, sample), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def pack(
    prompts: Sequence[NDArray[np.int32]], completions: Sequence[Completion], prompt_rows: LongArray, version: int
) -> RolloutBatch:
    """Pack prompts and their completions into the padded layout of `RolloutBatch`."""
    num_rows = len(prompts)
    width = max((len(p) + len(c.token_ids) for p, c in zip(prompts, completions, strict=True)), default=0)
    tokens = np.zeros((num_rows, width), dtype=np.int32)
    mask = np.zeros((num_rows, width), dtype=np.bool_)
    logprobs = np.zeros((num_rows, width), dtype=np.float32)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start, end = len(prompt), len(prompt) + len(completion.token_ids)
        tokens[i, :start] = prompt
        tokens[i, start:end] = completion.token_ids
        mask[i, start:end] = True
        logprobs[i, start:end] = completion.logprobs
    return RolloutBatch(
        tokens=tokens,
        prompt_lengths=np.array([len(prompt) for prompt in prompts], dtype=np.int32),
        completion_mask=mask,
        logprobs=logprobs,
        finished=np.array([completion.finished for completion in completions], dtype=np.bool_),
        prompt_rows=prompt_rows,
        policy_version=np.full(num_rows, version, dtype=np.int64),
    )


def _no_metrics() -> dict[str, float]:
    return {"time/generate": 0.0, "tokens/generated": 0.0, "time/load_weights": 0.0}
