"""The base class of learners: one optimizer step over micro-batches, saved and restored bit by bit."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raylign.algorithms.loss import LossSum
from raylign.errors import NonFiniteError
from raylign.learners.schedule import learning_rate
from raylign.learners.spec import LearnerSpec
from raylign.learners.state import load_moments, load_random, parameter_groups, save_moments, save_random
from raylign.learners.world import World
from raylign.models.infer import autocast
from raylign.models.load import DTYPES, save_model
from raylign.models.lora import adapter_state, has_adapter, load_adapter, save_adapter
from raylign.models.merge import save_merged
from raylign.models.shard import Shards, clip_gradients, whole_state

Group = TypeVar("Group")


class Learner:
    """A model and its optimizer.

    A step whose loss or gradient is not finite is skipped and counted; `max_skipped_steps` of them in a row raise
    NonFiniteError. `save` writes everything that decides the next step (weights, moments, step count, random state).
    """

    role = "learner"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: LearnerSpec, world: World | None = None
    ) -> None:
        if spec.num_threads:
            torch.set_num_threads(spec.num_threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        self.world = world or World()
        self.ranks = self.world.arrange(spec.sharding, self.device)
        self.compute_dtype = DTYPES[spec.compute_dtype]
        self.shards: Shards | None = None
        if self.ranks.mesh is None:
            self.model.to(device=self.device)  # pyright: ignore[reportCallIssue]  (transformers hides the signature)
        else:
            self.shards = Shards(model, self.ranks, spec.sharding, self.compute_dtype, self.device)
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.named.values(), spec.optimizer.weight_decay),
            lr=spec.optimizer.learning_rate,
            betas=spec.optimizer.betas,
            eps=spec.optimizer.eps,
            fused=True,
        )
        self.asleep = False
        self.num_steps = 0
        self.num_skipped = 0
        self.skipped_in_a_row = 0
        self.shuffle = torch.Generator().manual_seed(spec.seed)
        torch.manual_seed(spec.seed + self.ranks.data_rank)
        self._busy: dict[str, float] = defaultdict(float)

    @property
    def collective(self) -> bool:
        """True if all ranks must be called together for anything that uses the model or its weights.

        Then every rank returns the whole result. Otherwise each rank holds the model and can be called alone.
        """
        return self.ranks.collective

    def optimizer_step(
        self,
        groups: Sequence[Group],
        normaliser: float,
        loss: Callable[[Group], LossSum],
        num_elements: float | None = None,
    ) -> dict[str, float]:
        """Take one step on the sum of `loss` over all micro-batches, divided by `normaliser`.

        Args:
            groups: the micro-batches of the whole step; each rank takes its share (`Ranks.share`).
            normaliser: number of tokens, rows or pairs of the whole step over all ranks, so that no split changes the
                step.
            loss: returns the sums over one micro-batch.
            num_elements: divisor of the metrics, if the loss weights its elements; by default the normaliser.
        Returns:
            `loss` and its metrics as means, `optimizer/lr`, `optimizer/grad_norm`, `optimizer/skipped`.
        Raises:
            NonFiniteError: too many steps in a row had to be skipped.
        """
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        share = self.ranks.share(groups)
        for i, (group, counts) in enumerate(share):
            if self.shards:
                self.shards.reduce_over_replicas(i == len(share) - 1)
            with autocast(self.device, self.compute_dtype):
                result = loss(group)
            part = result.total / normaliser
            (part if counts else 0 * part).backward()
            for name, value in {"loss": result.total.detach(), **result.metrics}.items() if counts else ():
                sums[name] += value
        norm = self._reduce_gradients()
        totals = self.world.sum_metrics({name: float(value) for name, value in sums.items()}, self.ranks)
        rate = learning_rate(self.spec.optimizer, self.num_steps, self.spec.total_steps)
        metrics = {
            name: value / (normaliser if name == "loss" else num_elements or normaliser)
            for name, value in totals.items()
        }
        self._apply(rate, finite=math.isfinite(float(norm)) and math.isfinite(metrics["loss"]))
        return {
            **metrics,
            "optimizer/lr": rate,
            "optimizer/grad_norm": float(norm),
            "optimizer/skipped": float(self.num_skipped),
        }

    def _reduce_gradients(self) -> Tensor:
        """Sum the gradients over the ranks and clip them; return their norm before clipping."""
        limit = self.spec.optimizer.max_grad_norm
        if self.shards:
            self.shards.sum_gradients(self.named)
            return clip_gradients(self.named.values(), limit, self.device)
        self.world.sum_gradients(self.named.values())
        return torch.nn.utils.clip_grad_norm_(self.named.values(), limit)

    def _apply(self, rate: float, finite: bool) -> None:
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.skipped_in_a_row = 0
        else:
            self.num_skipped += 1
            self.skipped_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.num_steps += 1
        if self.skipped_in_a_row >= self.spec.max_skipped_steps:
            raise NonFiniteError(
                f"{self.role}: the loss or gradient was not finite in {self.skipped_in_a_row} optimizer steps in a row "
                f"(up to step {self.num_steps}); lower the learning rate, or check the data of these steps"
            )

    def save(self, folder: str) -> None:
        """Write `folder/` as a Hugging Face model or adapter, and `folder/state/` with all that decides the next step.

        All ranks must call this: rank 0 writes the model, each rank its random state and its part of the moments.
        """
        path = Path(folder)
        state = path / "state"
        state.mkdir(parents=True, exist_ok=True)
        if self.ranks.tensor_rank == 0:
            save_random(state, self.ranks.data_rank, self.shuffle, self.device)
        save_moments(state, self.optimizer, self.named, self.world.rank, split=self.shards is not None)
        adapter = adapter_state(self.model) if has_adapter(self.model) else None
        weights = whole_state(self.model) if self.shards and adapter is None else None
        if self.world.rank > 0:
            return
        if adapter is not None:
            save_adapter(self.model, adapter, path)
            self.tokenizer.save_pretrained(path)
        else:
            save_model(self.model, self.tokenizer, path, weights)
        counts = {name: getattr(self, name) for name in ("num_steps", "num_skipped", "skipped_in_a_row")}
        (state / "learner.json").write_text(json.dumps(counts, indent=1))

    def export_merged(self, folder: str) -> None:
        """Write `folder/` as a plain Hugging Face model with the adapter merged in. All ranks must call this."""
        save_merged(self.model, self.tokenizer, Path(folder), writes=self.world.rank == 0)

    def restore(self, folder: str) -> None:
        """Restore the state that `save` wrote, and the adapter if the model has one.

        Other weights are already those of the folder that the model was built from. The folder may have been written by
        another number of ranks, with another split of the model.
        """
        state = Path(folder) / "state"
        if has_adapter(self.model):
            load_adapter(self.model, folder)
        load_moments(state, self.optimizer, self.named)
        for name, value in json.loads((state / "learner.json").read_text()).items():
            setattr(self, name, value)
        self.restore_random(state)

    def restore_random(self, state: Path) -> None:
        """Restore this rank's random state from `folder/state/`."""
        load_random(state, self.ranks.data_rank, self.shuffle, self.device)

    def pop_metrics(self) -> dict[str, float]:
        """Return the seconds that this learner worked since the last call, by `time/...` name."""
        busy, self._busy = dict(self._busy), defaultdict(float)
        return busy

    def sleep(self) -> None:
        """Move everything from the GPU to the host's memory; `wake` moves it back."""
        self.asleep = True
        self._move("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """Move everything back to the GPU after `sleep`."""
        self._move(self.device)
        self.asleep = False

    def _move(self, device: torch.device | str) -> None:
        if self.spec.sharding.cpu_offload:  # always in the host's memory
            return
        self.model.to(device=device)  # pyright: ignore[reportCallIssue, reportArgumentType]
        for values in self.optimizer.state.values():
            for key, tensor in values.items():
                values[key] = tensor.to(device)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time a section of work and add its seconds to the metric `name`."""
        if self.asleep:
            raise RuntimeError(f"{self.role}: asked to work while asleep ({name}); call wake first")
        start = time.perf_counter()
        try:
            yield
        finally:
            self._busy[name] += time.perf_counter() - start

    def close(self) -> None:
        """Leave the process group."""
        self.world.close()
