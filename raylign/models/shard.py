"""Splitting of a model over the ranks of its learner, and gathering of its parts.

FSDP2 splits weights, gradients and moments over the ranks and gathers the weights of a block when it runs. Tensor
parallelism splits the matrices themselves by the plan that transformers has for the model. Both produce DTensors, so
they can be combined.
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

_PARTIAL = "replicated_with_grad_allreduce"  # style of norms that see only the heads of one rank
_PLACE = "learner.sharding"


class Shards:
    """A model split in place over the ranks of a mesh. All ranks must create it, and run every pass, together.

    Rank 0 provides the weights; the models of the other ranks may be empty (on the meta device). No rank holds all
    weights on its device at once: they are sent one by one, and each rank keeps its slice.

    Args:
        model: on the CPU (rank 0) or empty; the same model on all ranks.
        compute_dtype: precision of gathered weights. Gradients are summed in fp32, and a score head keeps its own.
        device: device that computes passes.
    Raises:
        UserError: the model cannot be split in this way.
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
        """Set whether the next backward pass also sums gradients over the copies of the model.

        Once a step is enough. The sum over the shards of a copy is taken in every pass, so that gradients never take
        more memory than a shard.
        """
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.set_requires_all_reduce(now, recurse=False)

    def sum_gradients(self, named: dict[str, nn.Parameter]) -> None:
        """Complete the sums of the gradients: FSDP has summed over its shards, this sums over the other ranks."""
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
    """Clip gradients like `torch.nn.utils.clip_grad_norm_`, even if parameters are split over different meshes.

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
    """Return this rank's part of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor, detached; all ranks must call this together for a split tensor."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_split(model: nn.Module) -> bool:
    """Return whether this rank holds only a part of the model."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_state(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """Gather the state dict in the host memory of rank 0, tensor by tensor; return None on the other ranks."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name not in model.all_tied_weights_keys:
            full = whole(tensor)
            if dist.get_rank() == 0:
                state[name] = full.cpu()
    return state if dist.get_rank() == 0 else None


def _agree(model: PreTrainedModel) -> None:
    """Give empty models the precisions and frozen parameters of rank 0's model, which a loader may choose by name."""
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
    """Apply tensor parallelism by the model's plan; return the parameters whose gradient is partial on each rank."""
    place, kind = f"{_PLACE}.tensor_parallel", type(model).__name__
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise UserError(
            f"{place}: matrices with adapters (model.lora) cannot be split; set 1, and strategy: fsdp instead"
        )
    config = model.config.get_text_config()
    plan = {name: style for name, style in model.tp_plan.items() if style != _PARTIAL}
    if not plan:
        raise UserError(f"{place}: transformers has no plan for splitting {kind}; set 1 and strategy: fsdp")
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
    model.tie_weights()  # head and embedding were split in the same way, but separately
    return [name for name, _ in model.named_parameters() if _generic(name).rpartition(".")[0] in partial]


def _generic(name: str) -> str:
    """Return a name in the form of plans: `layers.3.mlp` becomes `layers.*.mlp`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _split_blocks(
    model: PreTrainedModel, mesh: DeviceMesh, sharding: ShardingConfig, compute_dtype: torch.dtype
) -> None:
    """Apply FSDP2 to every block, to the score head if there is one, and to the rest of the model."""
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
        raise UserError(
            f"{_PLACE}.strategy: transformers does not name the blocks of {type(model).__name__}; set replicate"
        )
    for block in blocks:
        fully_shard(block, mp_policy=mixed or MixedPrecisionPolicy(), **options)
    for name, module in model.named_children():
        if name == "score":
            fully_shard(module, **options)
    fully_shard(model, mp_policy=mixed or MixedPrecisionPolicy(), **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are divided by the step's normaliser, so gradients are summed; a mean would depend on the number of
            # ranks. Both settings are needed because gloo can only sum.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.compute = MethodType(_compute, model)  # pyright: ignore[reportArgumentType]
    register_fsdp_forward_method(model, "compute")


def _compute(model: PreTrainedModel, function: Any, *args: Any) -> Any:
    """Call `function(model, *args)`; as a forward method to FSDP, which gathers the weights outside the blocks."""
    return function(model, *args)


def _send_buffers(model: PreTrainedModel, computed: dict[str, Tensor], device: torch.device) -> None:
    """Send rank 0's buffers to all ranks: those not saved with a model (rotary frequencies) are computed on loading."""
    for name, buffer in list(model.named_buffers()):
        sent = computed[name].to(device) if dist.get_rank() == 0 else torch.empty_like(buffer, device=device)
        dist.broadcast(sent, src=0)
        parent, _, leaf = name.rpartition(".")
        model.get_submodule(parent)._buffers[leaf] = sent
