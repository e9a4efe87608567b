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
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raylign.algorithms.loss import LossSum
from raylign.errors import NonFiniteError
from raylign.learners.schedule import learning_rate
from raylign.learners.spec import LearnerSpec
from raylign.learners.world import World
from raylign.models.infer import autocast
from raylign.models.load import DTYPES, save_model

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
        self.model.to(device=self.device)  # pyright: ignore[reportCallIssue]  (transformers hides the signature)
        self.tokenizer = tokenizer
        self.spec = spec
        self.world = world or World()
        self.compute_dtype = DTYPES[spec.compute_dtype]
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = [p for p in self.named.values() if p.ndim >= 2]
        vectors = [p for p in self.named.values() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": spec.optimizer.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=spec.optimizer.learning_rate,
            betas=spec.optimizer.betas,
            eps=spec.optimizer.eps,
            fused=True,
        )
        self.num_steps = 0
        self.num_skipped = 0
        self.skipped_in_a_row = 0
        self.shuffle = torch.Generator().manual_seed(spec.seed)
        torch.manual_seed(spec.seed + self.world.rank)
        self._busy: dict[str, float] = defaultdict(float)

    def optimizer_step(
        self,
        groups: Sequence[Group],
        normaliser: float,
        loss: Callable[[Group], LossSum],
        num_elements: float | None = None,
    ) -> dict[str, float]:
        """One step on the sum of `loss` over all micro-batches, divided by `normaliser`.

        Args:
            groups: the micro-batches of the whole step; each rank takes its share.
            normaliser: tokens, rows or pairs of the whole step over all ranks, so that no split changes the step.
            loss: sums over one micro-batch.
            num_elements: what the metrics are divided by, where the loss weighs its elements; else the normaliser.
        Returns:
            `loss` and its metrics as means, `optimizer/lr`, `optimizer/grad_norm`.
        Raises:
            NonFiniteError: when too many steps in a row had to be skipped.
        """
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        for group in groups[self.world.rank :: self.world.size]:
            with autocast(self.device, self.compute_dtype):
                result = loss(group)
            (result.total / normaliser).backward()
            for name, value in {"loss": result.total.detach(), **result.metrics}.items():
                sums[name] += value
        self.world.sum_gradients(self.named.values())
        totals = self.world.sum_metrics({name: float(value) for name, value in sums.items()})
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), self.spec.optimizer.max_grad_norm)
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
        """Write `folder/` as a Hugging Face model and `folder/state/` with all that the next step depends on.

        Rank 0 writes model and optimizer, every rank its own random state.
        """
        path = Path(folder)
        state = path / "state"
        state.mkdir(parents=True, exist_ok=True)
        random = {"torch": torch.get_rng_state(), "shuffle": self.shuffle.get_state()}
        save_file(random, state / f"random-{self.world.rank}.safetensors")
        if self.world.rank > 0:
            return
        save_model(self.model, self.tokenizer, path)
        moments = {}
        for name, parameter in self.named.items():
            for key, tensor in self.optimizer.state.get(parameter, {}).items():
                moments[f"{key}/{name}"] = tensor.contiguous()
        save_file(moments, state / "optimizer.safetensors")
        counts = {name: getattr(self, name) for name in ("num_steps", "num_skipped", "skipped_in_a_row")}
        (state / "learner.json").write_text(json.dumps(counts, indent=1))

    def restore(self, folder: str) -> None:
        """Take up the state that `save` wrote; the weights are those of the folder the model was built from."""
        state = Path(folder) / "state"
        moments: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in load_file(state / "optimizer.safetensors").items():
            key, _, parameter = name.partition("/")
            # The step count too goes to the device: fused AdamW reads it there. Copied, as the weights are on loading.
            moments[parameter][key] = tensor.to(self.device, copy=True)
        for name, values in moments.items():
            self.optimizer.state[self.named[name]] = values
        for name, value in json.loads((state / "learner.json").read_text()).items():
            setattr(self, name, value)
        self.restore_random(state / f"random-{self.world.rank}.safetensors")

    def restore_random(self, file: Path) -> None:
        random = load_file(file)
        torch.set_rng_state(random["torch"])
        self.shuffle.set_state(random["shuffle"])

    def pop_metrics(self) -> dict[str, float]:
        """Seconds this learner worked since the last call, by `time/...` name."""
        busy, self._busy = dict(self._busy), defaultdict(float)
        return busy

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._busy[name] += time.perf_counter() - start

    def close(self) -> None:
        self.world.close()
