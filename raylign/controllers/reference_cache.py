"""Logprobs of a dataset under the frozen reference: computed once, then read from a cache that all runs share."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
from ray import ObjectRef
from safetensors.numpy import load_file, save_file

from raylign.actors.role_groups import ReferenceGroup
from raylign.config import RunConfig
from raylign.controllers.context import Run
from raylign.controllers.roles import Roles, required
from raylign.controllers.usage import note_use
from raylign.data.batching import ROWS_PER_REFERENCE_CALL
from raylign.files import replacing, sha256_of
from raylign.storage.lock import locked
from raylign.storage.outputs import output_base
from raylign.types import Dataset, FloatArray, LabelledSet, PairSet

Logprobs = tuple[FloatArray, FloatArray]  # sums of both sides of every row, [N] each


class ReferenceLogprobs:
    """The reference logprobs of a run's dataset.

    Enter it before the roles are launched: while the cache is empty, it holds a lock, so that of several runs on the same
    rows one computes them and the others read them.

        with ReferenceLogprobs(run, rows) as reference, launch(run, ["policy", *reference.roles]) as roles:
            logprobs = reference.get(roles, data)
    """

    def __init__(self, run: Run, rows: Dataset) -> None:
        self._run, self._rows = run, rows
        self._lock = ExitStack()
        self._file: Path | None = None
        self._cached: Logprobs | None = None

    def __enter__(self) -> Self:
        if self._run.config.algorithm.needs_reference:
            assert isinstance(self._rows, PairSet | LabelledSet)
            config = self._run.config
            key = reference_key(config, self._rows)
            self._file = output_base(config.output_dir) / "cache" / f"reference-{key}.safetensors"
            holds, timeout = "computes these reference logprobs", config.limits.generate
            self._lock.enter_context(locked(self._file, timeout=timeout, holds=holds, stop=self._run.stop))
            self._cached = cached_logprobs(self._file)
            if self._cached:
                self._lock.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    @property
    def roles(self) -> list[str]:
        """Names of the roles that `get` needs beside the policy."""
        return ["reference"] if self._file and not self._cached else []

    def get(self, roles: Roles, data: ObjectRef) -> Logprobs | None:
        """Return the logprobs, or None if the algorithm reads none. The reference actors are released.

        Args:
            data: the rows in the object store.
        """
        if self._file and not self._cached:
            self._cached = _compute(self._run, roles, len(self._rows), data)
            cache_logprobs(self._file, self._cached)
            note_use(self._run, roles)
            roles.dismiss_reference()
            self._lock.close()
        return self._cached


def _compute(run: Run, roles: Roles, num_rows: int, data: ObjectRef) -> Logprobs:
    reference = required(roles.reference, ReferenceGroup)
    firsts = range(0, num_rows, ROWS_PER_REFERENCE_CALL)
    run.view.status("scoring the dataset with the reference")
    with run.timed("reference"):
        parts = run.waiter.fetch(
            [
                reference.submit_dataset_logprobs(i, data, first, min(first + ROWS_PER_REFERENCE_CALL, num_rows))
                for i, first in enumerate(firsts)
            ],
            timeout=run.config.limits.generate,
            waiting_for="reference logprobs of the dataset (limits.generate)",
            interruptible=True,
        )
    one, other = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    return one, other


def cached_logprobs(file: Path) -> Logprobs | None:
    """Read what `cache_logprobs` wrote; None if it wrote nothing yet."""
    if not file.exists():
        return None
    arrays = load_file(file)
    return arrays["side_0"], arrays["side_1"]


def cache_logprobs(file: Path, logprobs: Logprobs) -> None:
    """Keep reference logprobs for the next run on the same rows and reference."""
    with replacing(file) as writing:
        save_file({f"side_{i}": np.ascontiguousarray(side) for i, side in enumerate(logprobs)}, writing)


def reference_key(config: RunConfig, rows: PairSet | LabelledSet) -> str:
    """Return a hash of all that reference logprobs depend on: tokens, masks, the reference's files, the precision."""
    reference = config.reference or config.model
    quantization = reference.lora.base_quantization if reference.lora else "none"
    digest = hashlib.sha256(f"sides {reference.compute_dtype} {reference.weights_dtype} {quantization}".encode())
    for side in rows.sides:
        for array in (side.tokens.values, side.tokens.offsets, side.completion_mask.values):
            digest.update(np.ascontiguousarray(array).tobytes())
    folder = Path(reference.path)
    if folder.is_dir():
        for file in sorted(folder.glob("*.safetensors")):
            digest.update(bytes.fromhex(sha256_of(file)))
        digest.update((folder / "config.json").read_bytes())
    else:
        digest.update(f"{reference.path} {reference.revision}".encode())
    return digest.hexdigest()[:32]
