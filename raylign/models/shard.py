"""Splitting a model over the ranks of its learner, and putting it together again.

FSDP2 splits weights, gradients and moments over the ranks and gathers a block's weights when it is needed. Tensor
parallelism splits the matrices themselves by the plan that transformers keeps with the model. Both make DTensors, so
they combine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from raylign.config import ShardingConfig
from raylign.errors import UserError, one_line
from raylign.models.ranks import Ranks

_PARTIAL = "replicated_with_grad_allreduce"  # style of norms that see the heads of one rank only
_PLACE = "learner.sharding"


class Shards:
    """A model split over the ranks of a mesh, in place. Every rank must make it, and make every pass, at once.

    Rank 0 brings the weights; what the others bring may be empty (on the meta device). None holds all weights on its
    device at once: they are sent one by one, and each rank keeps its slice.

    Args:
        model: on the CPU (rank 0) or empty; the same on all ranks.
        compute_dtype: what weights are gathered in. Gradients are summed in fp32, and a score head stays as it is.
        device: where passes are computed.
    Raises:
        UserError: the model cannot be split like that.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ranks: Ranks,
        sharding: ShardingConfig,
        compute_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        assert ranks.mesh is not None
        self.model, self.mesh = model, ranks.mesh
        weights = model.state_dict() if dist.get_rank() == 0 else {}
        buffers = dict(model.named_buffers())
        _agree(model)
        model.to(device="meta")  # pyright: ignore[reportCallIssue]  (transformers hides the signature)
        model.tie_weights()
        self.partial: list[str] = []
        if sharding.tensor_parallel > 1:
            self.partial = _split_matrices(model, self.mesh["tensor"], sharding.tensor_parallel)
        if sharding.strategy == "fsdp":
            _split_blocks(model, self.mesh, sharding, compute_dtype)
        model.to_empty(device=torch.device("cpu") if sharding.cpu_offload else device)
        model.tie_weights()
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
        _send_buffers(model, buffers, device)

    def reduce_over_replicas(self, now: bool) -> None:
        """Whether the next backward pass sums over the copies of the model too, which once a step suffices.

        The sum over the shards of a copy is taken in every pass: gradients then never take more than a shard.
        """
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.set_requires_all_reduce(now, recurse=False)

    def sum_gradients(self, named: dict[str, nn.Parameter]) -> None:
        """Finish the gradients: FSDP has summed those of its shards, the rest is summed here."""
        copies = [] if any(isinstance(m, FSDPModule) for m in self.model.modules()) else [self.mesh["replicate"]]
        for name, parameter in named.items():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if isinstance(parameter, DTensor) and isinstance(parameter.grad, DTensor):
                parameter.grad = parameter.grad.redistribute(placements=parameter.placements)
            for mesh in [*copies, *([self.mesh["tensor"]] if name in self.partial else [])]:
                if mesh.size() > 1:
                    dist.all_reduce(local(parameter.grad), group=mesh.get_group())


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, device: torch.device) -> Tensor:
    """As `torch.nn.utils.clip_grad_norm_`, also where parameters are split over different meshes.

    Returns:
        The norm of all gradients before clipping, the same on every rank.
    """
    squares: dict[tuple[Any, ...], Tensor] = defaultdict(lambda: torch.zeros((), device=device))
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for gradient in gradients:
        groups: tuple[Any, ...] = ()
        if isinstance(gradient, DTensor):
            split = [i for i, placement in enumerate(gradient.placements) if not placement.is_replicate()]
            groups = tuple(gradient.device_mesh.get_group(i) for i in split)
        squares[groups] += torch.linalg.vector_norm(local(gradient), dtype=torch.float32).square().to(device)
    for groups, square in squares.items():
        for group in groups:
            dist.all_reduce(square, group=group)
    norm = torch.stack([*squares.values()]).sum().sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        part = local(gradient)
        part.mul_(scale.to(part.device))
    return norm


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, detached; of a split one all ranks must ask at once."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_split(model: nn.Module) -> bool:
    """Whether this rank holds a part of the model only."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_state(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """The state dict put together in rank 0's host memory, tensor by tensor; None on the other ranks."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name not in model.all_tied_weights_keys:
            full = whole(tensor)
            if dist.get_rank() == 0:
                state[name] = full.cpu()
    return state if dist.get_rank() == 0 else None


def _agree(model: PreTrainedModel) -> None:
    """Give empty models the precision and the frozen parameters of rank 0's, which a loader may have chosen by name."""
    kinds = [{name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()}]
    dist.broadcast_object_list(kinds, src=0)
    parameters = dict(model.named_parameters())
    if kinds[0].keys() != parameters.keys():
        raise RuntimeError(
            f"{type(model).__name__}: ranks built different models: {kinds[0].keys() ^ parameters.keys()}"
        )
    for name, (dtype, requires_grad) in kinds[0].items():
        parameters[name].data = parameters[name].data.to(dtype)
        parameters[name].requires_grad_(requires_grad)


def _split_matrices(model: PreTrainedModel, mesh: DeviceMesh, size: int) -> list[str]:
    """Tensor parallelism by the model's plan; returns the parameters whose gradient is a part on each rank."""
    place, kind = f"{_PLACE}.tensor_parallel", type(model).__name__
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise UserError(
            f"{place}: matrices with adapters (model.lora) are not split; set 1, and strategy: fsdp instead"
        )
    config = model.config.get_text_config()
    plan = {name: style for name, style in model.tp_plan.items() if style != _PARTIAL}
    if not plan:
        raise UserError(f"{place}: {kind} has no plan for it in transformers; set 1 and strategy: fsdp")
    for heads in ("num_attention_heads", "num_key_value_heads"):
        number = config.to_dict().get(heads) or size
        if number % size:
            raise UserError(
                f"{place}: {size} ranks cannot share {heads} {number} of {kind} evenly; set a divisor of it"
            )
    partial = {name for name, style in model.tp_plan.items() if style == _PARTIAL}
    try:
        apply_tensor_parallelism(model, mesh, plan)
    except ValueError as e:
        raise UserError(f"{place}: {kind}: {one_line(e)}; set another size") from e
    model.tie_weights()  # head and embedding were split alike, each by itself
    return [name for name, _ in model.named_parameters() if _generic(name).rpartition(".")[0] in partial]


def _generic(name: str) -> str:
    """`layers.3.mlp` as plans write it: `layers.*.mlp`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _split_blocks(
    model: PreTrainedModel, mesh: DeviceMesh, sharding: ShardingConfig, compute_dtype: torch.dtype
) -> None:
    """FSDP2 over every block, the score head if there is one, and all that is left."""
    lower = compute_dtype == torch.bfloat16
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if lower else None
    data_mesh = mesh["replicate", "shard"] if mesh["replicate"].size() > 1 else mesh["shard"]
    options: dict[str, Any] = {
        "mesh": data_mesh,
        "reshard_after_forward": True,
        "offload_policy": CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
        if sharding.cpu_offload
        else OffloadPolicy(),
    }
    kinds = set(model._no_split_modules or ())
    blocks = [module for module in model.modules() if type(module).__name__ in kinds]
    if not blocks:
        raise UserError(f"{_PLACE}.strategy: transformers names no blocks of {type(model).__name__}; set replicate")
    for block in blocks:
        fully_shard(block, mp_policy=mixed or MixedPrecisionPolicy(), **options)
    for name, module in model.named_children():
        if name == "score":
            fully_shard(module, **options)
    fully_shard(model, mp_policy=mixed or MixedPrecisionPolicy(), **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are divided by the step's normaliser, so gradients add up; a mean would depend on the ranks. Asked
            # for like this because gloo can only sum.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.compute = MethodType(_compute, model)  # pyright: ignore[reportArgumentType]
    register_fsdp_forward_method(model, "compute")


def _compute(model: PreTrainedModel, function: Any, *args: Any) -> Any:
    """`function(model, *args)`; as a forward method of an FSDP model, with all weights outside of its blocks gathered."""
    return function(model, *args)


def _send_buffers(model: PreTrainedModel, ours: dict[str, Tensor], device: torch.device) -> None:
    """Buffers that are not saved with a model (rotary frequencies) are computed while it is loaded: by rank 0."""
    for name, buffer in list(model.named_buffers()):
        sent = ours[name].to(device) if dist.get_rank() == 0 else torch.empty_like(buffer, device=device)
        dist.broadcast(sent, src=0)
        parent, _, leaf = name.rpartition(".")
        model.get_submodule(parent)._buffers[leaf] = sent
