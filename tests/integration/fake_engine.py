"""A fake engine, which says what it did: no model, no torch. What it samples follows from the seed and from the bytes of
the weights it was given, so an engine that served other weights than the policy's would change the run."""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from raylign.config import RolloutConfig, SamplingConfig
from raylign.rollout.engine import Completion

LOG = "FAKE_ENGINE_LOG"  # environment variable: the folder its records go to
PACE = "pace"  # file in that folder: seconds that a call takes; without it, none


class FakeEngine:
    """A `RolloutEngine` in all but the model."""

    def __init__(self, model_path: str, rollout: RolloutConfig, dtype: str, trust_remote_code: bool) -> None:
        self.max_model_len = None
        self._vocab_size = json.loads((Path(model_path) / "config.json").read_text())["vocab_size"]
        self._checksum = 0
        context = ray.get_runtime_context()
        self._log(node=context.get_node_id(), gpus=context.get_accelerator_ids()["GPU"])

    def generate(
        self,
        prompts: Sequence[NDArray[np.int32]],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        stop_token_ids: tuple[int, ...],
    ) -> list[Completion]:
        pace = Path(os.environ[LOG]) / PACE
        time.sleep(float(pace.read_text()) if pace.exists() else 0.0)
        self._log(weights=self._checksum, seeds=[int(seed) for seed in seeds], torch="torch" in sys.modules)
        return [self._complete(sampling.max_tokens, seed, stop_token_ids[-1]) for seed in seeds]

    def load_weights(self, weights: Iterable[tuple[str, NDArray[Any]]]) -> None:
        self._checksum = 0
        for name, array in weights:
            self._checksum = zlib.crc32(
                np.ascontiguousarray(array).tobytes(), zlib.crc32(name.encode(), self._checksum)
            )

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...

    def _complete(self, max_tokens: int, seed: int, stop: int) -> Completion:
        random = np.random.default_rng([seed, self._checksum])
        tokens = random.integers(0, self._vocab_size, random.integers(1, max_tokens + 1)).astype(np.int32)
        tokens[-1] = stop
        logprobs = np.full(len(tokens), -np.log(self._vocab_size), dtype=np.float32)
        return Completion(tokens, logprobs, finished=True)

    def _log(self, **record: Any) -> None:
        with open(Path(os.environ[LOG]) / f"{os.getpid()}.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")


def score(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """A reward that differs between completions and costs nothing."""
    return [zlib.crc32(completion.encode()) % 1000 / 1000 for completion in completions]
