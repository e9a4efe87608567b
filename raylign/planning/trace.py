"""Memory of a model's passes, measured without allocating it: the model's own code runs on tensors without storage.

transformers builds the model under torch's FakeTensorMode, a pass of one micro-batch runs through it (attention kernels,
autocast and recomputation included), and every storage is counted from its first to its last use. So the numbers
are right for every architecture that transformers has, not only for those that a formula describes.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    masking_utils,
)

from raylign.algorithms.logprobs import token_logprobs
from raylign.config import ModelConfig
from raylign.errors import UserError
from raylign.models.description import load_pretrained
from raylign.models.infer import autocast
from raylign.models.load import DTYPES
from raylign.models.lora import add_adapter

Head = Literal["logprobs", "value", "score"]
_CPU = torch.device("cpu")  # where the pass is traced; kernels for a GPU keep the same tensors


@dataclass(frozen=True)
class Shape:
    """Size of a micro-batch."""

    rows: int
    length: int  # padded tokens of a row
    completion: int  # completion tokens of all rows together

    @property
    def tokens(self) -> int:
        """Padded tokens of all rows."""
        return self.rows * self.length


@dataclass(frozen=True)
class Model:
    """Sizes of a model, in bytes of one process, before it is split over ranks."""

    name: str
    num_parameters: int
    num_body: int  # parameters that every token passes through: without embeddings and head
    num_head: int  # vocabulary x width; only completion tokens pass through it
    num_layers: int
    width: int
    kv_elements: int  # keys and values of one token in all layers
    vocabulary: int
    weights: int
    gradients: int
    largest_layer: int  # weights that FSDP gathers at once


@dataclass(frozen=True)
class Pass:
    """Bytes that a pass adds to weights and to gradients that exist already."""

    body: int  # what the layers keep for the backward pass; without one, what the largest layer uses
    peak: int  # the most at any moment, body included


class Skeleton:
    """A model without storage.

    Args:
        model: the model that a run would load.
        head: logprobs for a language model; value and score for a head with one output.
    Raises:
        UserError: transformers has no config of the model, or cannot build it.
    """

    def __init__(self, model: ModelConfig, head: Head = "logprobs") -> None:
        self.config, self.head = model, head
        trust = {"trust_remote_code": model.trust_remote_code}
        description = load_pretrained(AutoConfig, model.path, "model.path", revision=model.revision, **trust)
        if head != "logprobs":
            description.num_labels = 1
        kind: Any = AutoModelForCausalLM if head == "logprobs" else AutoModelForSequenceClassification
        with torch.device("meta"):
            made = kind.from_config(
                description, dtype=DTYPES[model.weights_dtype], attn_implementation=_traceable(model.attention), **trust
            )
            if model.lora:
                add_adapter(made, model.lora)
        if model.gradient_checkpointing:
            made.gradient_checkpointing_enable({"use_reentrant": False})
        self._mode = FakeTensorMode()
        with self._mode:
            _fake(made)
        self._module: PreTrainedModel = made.train(model.dropout or model.gradient_checkpointing)
        self.sizes = self._sizes(description)
        # A pass of a large model takes seconds, and a plan needs it many times.
        self._scored: dict[Shape, Pass] = {}
        self._trained: dict[tuple[Shape, bool, bool], Pass] = {}

    def forward(self, shape: Shape) -> Pass:
        """Return the memory of a scoring pass, under `inference_mode`."""
        if shape not in self._scored:
            self._scored[shape] = self._forward(shape)
        return self._scored[shape]

    def _forward(self, shape: Shape) -> Pass:
        with self._mode, torch.inference_mode():
            self._module.eval()
            counted = _Storages()
            with _tracing(self.config.path), counted:
                self._loss(shape, entropy=False, counted=counted)
            self._module.train(self.config.dropout or self.config.gradient_checkpointing)
        return Pass(counted.body, counted.peak)

    def training(self, shape: Shape, entropy: bool, accumulates: bool) -> Pass:
        """Return the memory of a forward and backward pass.

        Args:
            entropy: the loss computes the entropy too.
            accumulates: gradients of an earlier micro-batch exist; otherwise the peak includes those that this pass
                makes.
        """
        key = (shape, entropy, accumulates)
        if key not in self._trained:
            self._trained[key] = self._training(*key)
        return self._trained[key]

    def _training(self, shape: Shape, entropy: bool, accumulates: bool) -> Pass:
        with self._mode:
            for parameter in self._module.parameters():
                parameter.grad = torch.zeros_like(parameter) if accumulates and parameter.requires_grad else None
            counted = _Storages()
            with _tracing(self.config.path), counted:
                self._loss(shape, entropy, counted).backward()
            for parameter in self._module.parameters():
                parameter.grad = None
        return Pass(counted.body, counted.peak)

    def _loss(self, shape: Shape, entropy: bool, counted: _Storages) -> Tensor:
        """Compute a loss as the learners do. It selects completion tokens by number: a mask would need data."""
        tokens = torch.zeros(shape.rows, shape.length, dtype=torch.long)
        with autocast(_CPU, DTYPES[self.config.compute_dtype]):
            body: Any = self._module.base_model
            hidden = body(input_ids=tokens, use_cache=False).last_hidden_state
            counted.body = counted.now
            flat = hidden.reshape(-1, hidden.shape[-1])
            index = torch.zeros(shape.rows if self.head == "score" else shape.completion, dtype=torch.long)
            picked = flat[index]
            if self.head == "logprobs":
                head: Any = self._module.get_output_embeddings()
                assert head is not None, "a language model has an output head"
                scored = token_logprobs(head(picked), index, with_entropy=entropy)
                return scored.logprobs.sum()
            score = self._module.get_submodule("score")
            with torch.autocast("cpu", enabled=False):
                return score(picked.to(next(score.parameters()).dtype)).float().sum()

    def _sizes(self, description: Any) -> Model:
        module, text = self._module, description.get_text_config()
        embedding: Any = module.get_input_embeddings()
        embedded = embedding.weight
        head: Any = module.get_output_embeddings() if self.head == "logprobs" else None
        outside = {id(p): p for p in (embedded, head.weight if head is not None else embedded)}
        total = sum(p.numel() for p in module.parameters())
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads  # GPT-2 has no groups
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        blocks = [child for child in module.modules() if isinstance(child, nn.ModuleList) and len(child) > 1]
        return Model(
            name=description.model_type,
            num_parameters=total,
            num_body=total - sum(p.numel() for p in outside.values()),
            num_head=head.weight.numel() if head is not None else 0,
            num_layers=text.num_hidden_layers,
            width=text.hidden_size,
            kv_elements=2 * text.num_hidden_layers * heads * width,
            vocabulary=text.vocab_size,
            weights=_bytes(module, trained=False),
            gradients=_bytes(module, trained=True),
            largest_layer=max((_bytes(block, trained=False) for group in blocks for block in group), default=0),
        )


class _Storages(TorchDispatchMode):
    """Count of the bytes of all live storages that operations made."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.body = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._alive:
                    self._count(storage)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        self._alive[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, storage._cdata)

    def _release(self, key: int) -> None:
        self.now -= self._alive.pop(key)


@contextmanager
def _tracing(path: str) -> Iterator[None]:
    """Trace rows as learners pass them, and turn failures of the tracer into one line instead of torch's log.

    Learners' rows are not packed. transformers would have to read their values to see that; without values it assumes
    packing, and builds a mask that no learner needs.
    """
    log = logging.getLogger("torch._subclasses.fake_tensor")
    find = masking_utils.find_packed_sequence_indices
    log.disabled, masking_utils.find_packed_sequence_indices = True, lambda *_: None
    try:
        yield
    except (RuntimeError, NotImplementedError) as e:
        raise UserError(
            f"model.path: the passes of {path} depend on its data (a mixture of experts does), so their memory "
            "cannot be computed before they run; plan with a dense model of this size"
        ) from e
    finally:
        log.disabled, masking_utils.find_packed_sequence_indices = False, find


def _fake(module: nn.Module) -> None:
    """Replace meta tensors, which autocast ignores, by fake CPU tensors; tied parameters stay tied.

    (The model is not built from fake tensors directly: peft moves the layers of an adapter, which they do not allow.)
    """
    made: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, old in list(owner.named_parameters(recurse=False)):
            if id(old) not in made:
                made[id(old)] = nn.Parameter(torch.empty(old.shape, dtype=old.dtype), requires_grad=old.requires_grad)
            setattr(owner, name, made[id(old)])
        for name, old in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, torch.zeros(old.shape, dtype=old.dtype))


def _bytes(module: nn.Module, trained: bool) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad or not trained)


def _traceable(attention: str) -> str:
    """Return an attention that runs here and keeps the same tensors: flash_attention_2 needs its package and a GPU."""
    return "sdpa" if attention == "flash_attention_2" else attention
