"""What every learner shares: one optimizer step over micro-batches, saved and restored bit by bit."""

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

    A step is skipped, and counted, when its loss or gradient is not finite; `max_skipped_steps` in a row raise
    NonFiniteError. Everything that decides the next step (weights, moments, step count, random state) is in `save`.
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
        """Whether every rank must make a call that computes with the model or reads its weights.

        Then all return the whole result. Otherwise each rank holds the model and can be called alone.
        """
        return self.ranks.collective

    def optimizer_step(
        self,
        groups: Sequence[Group],
        normaliser: float,
        loss: Callable[[Group], LossSum],
        num_elements: float | None = None,
    ) -> dict[str, float]:
        """One step on the sum of `loss` over all micro-batches, divided by `normaliser`.

        Args:
            groups: the micro-batches of the whole step; each rank takes its share (`Ranks.share`).
            normaliser: tokens, rows or pairs of the whole step over all ranks, so that no split changes the step.
            loss: sums over one micro-batch.
            num_elements: what the metrics are divided by, where the loss weighs its elements; else the normaliser.
        Returns:
            `loss` and its metrics as means, `optimizer/lr`, `optimizer/grad_norm`.
        Raises:
            NonFiniteError: when too many steps in a row had to be skipped.
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
        """Sum the gradients over the ranks and clip them; returns their norm before."""
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
                f"(up to step {self.num_steps}); lower the learning rate, or look at the data of these steps"
            )

    def save(self, folder: str) -> None:
        """Write `folder/` as a Hugging Face model (the adapter's folder, where it is an adapter that learns) and
        `folder/state/` with all that the next step depends on.

        Every rank must take part: rank 0 writes the model, each rank its random state and its part of the moments.
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
        """Write `folder/` as a plain Hugging Face model, the adapter merged into its weights. Every rank must take part."""
        save_merged(self.model, self.tokenizer, Path(folder), writes=self.world.rank == 0)

    def restore(self, folder: str) -> None:
        """Take up the state that `save` wrote, and the adapter if it is one that learns; other weights are those of the
        folder that the model was built from.

        It may have been written by another number of ranks, whose model was split in another way.
        """
        state = Path(folder) / "state"
        if has_adapter(self.model):
            load_adapter(self.model, folder)
        load_moments(state, self.optimizer, self.named)
        for name, value in json.loads((state / "learner.json").read_text()).items():
            setattr(self, name, value)
        self.restore_random(state)

    def restore_random(self, state: Path) -> None:
        load_random(state, self.ranks.data_rank, self.shuffle, self.device)

    def pop_metrics(self) -> dict[str, float]:
        """Seconds this learner worked since the last call, by `time/...` name."""
        busy, self._busy = dict(self._busy), defaultdict(float)
        return busy

    def sleep(self) -> None:
        """Move all that lies on the GPU to the host's memory; `wake` brings it back."""
        self.asleep = True
        self._move("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wake(self) -> None:
        self._move(self.device)
        self.asleep = False

    def _move(self, device: torch.device | str) -> None:
        if self.spec.sharding.cpu_offload:  # at home in the host's memory
            return
        self.model.to(device=device)  # pyright: ignore[reportCallIssue, reportArgumentType]
        for values in self.optimizer.state.values():
            for key, tensor in values.items():
                values[key] = tensor.to(device)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        if self.asleep:
            raise RuntimeError(f"{self.role}: asked to work while it sleeps ({name}); wake it first")
        start = time.perf_counter()
        try:
            yield
        finally:
            self._busy[name] += time.perf_counter() - start

    def close(self) -> None:
        self.world.close()
