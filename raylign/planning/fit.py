"""The check that a run fits its device, and the changes that would make it fit, the cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from raylign.actors.layout import lay_out
from raylign.config import LoRAConfig, RunConfig
from raylign.data.batching import default_pass_tokens
from raylign.planning.devices import Device
from raylign.planning.memory import MemoryModel
from raylign.planning.parts import GIB, MIB, RoleMemory

# Share of a GPU's memory; fragments of the allocator and NCCL's buffers take the rest.
USABLE_GPU = 0.92
# Memory of the driver, Ray's own processes and its shared memory for rows, on the machine of a run.
HOST_BESIDE = 1200 * MIB
_SMALLEST_PASS = 512  # tokens; smaller passes cost more than they save


@dataclass(frozen=True)
class Demand:
    """Memory that roles need in one place, and the memory available there."""

    where: str
    roles: tuple[str, ...]
    needed: int  # bytes
    available: int  # bytes

    @property
    def fits(self) -> bool:
        """True if the memory suffices."""
        return self.needed <= self.available


@dataclass(frozen=True)
class Change:
    """Settings that lower the demand, and the demand of the tightest place after them and all earlier changes."""

    settings: tuple[str, ...]  # dotted.key=value
    cost: str
    demand: Demand


Measure = Callable[[RunConfig], MemoryModel]


def demands(model: MemoryModel, device: Device) -> list[Demand]:
    """Return the demand on each kind of GPU seat, or on this machine; the tightest first."""
    config = model.config
    places: list[Demand] = []
    for phase in config.phases:
        roles = {name: model.role(name) for name in phase}
        places += _on_gpus(config, roles, device) if device.is_gpu else _on_host(config, roles, device)
    return sorted(places, key=lambda demand: demand.needed / demand.available, reverse=True)


def changes(measure: Measure, config: RunConfig, device: Device) -> list[Change]:
    """Return changes to make one after another until the run fits, without those that do not help the tightest place.

    Args:
        measure: returns the memory model of a config; it differs from `config` only in settings that leave the data.
    """
    tightest = demands(measure(config), device)[0]
    helpful: list[Change] = []
    for settings, cost, changed in _candidates(config):
        if tightest.fits:
            break
        candidate = _apply(config, changed)
        then = demands(measure(candidate), device)[0]
        if then.needed / then.available < 0.99 * tightest.needed / tightest.available:
            helpful.append(Change(settings, cost, then))
            config, tightest = candidate, then
    return helpful


Update = Callable[[RunConfig], RunConfig]


def _candidates(config: RunConfig) -> Iterator[tuple[tuple[str, ...], str, Update]]:
    """Yield (settings, their cost in words, change), the cheapest first."""
    tokens = config.learner.micro_batch_tokens or default_pass_tokens(config.placement.policy.num_gpus > 0)
    while tokens // 2 >= _SMALLEST_PASS:
        tokens //= 2
        yield (
            (f"learner.micro_batch_tokens={tokens}",),
            "a few percent of speed",
            _set("learner", micro_batch_tokens=tokens),
        )
    if config.rollout.kv_cache_gib > 0.5:
        half = config.rollout.kv_cache_gib / 2
        yield (f"rollout.kv_cache_gib={half:g}",), "fewer samples at once (CPU)", _set("rollout", kv_cache_gib=half)
    if config.model.compute_dtype == "float32":
        yield ("model.compute_dtype=bfloat16",), "rounding of products", _set("model", compute_dtype="bfloat16")
    if not config.model.gradient_checkpointing:
        yield (
            ("model.gradient_checkpointing=true",),
            "a third more time to learn",
            _set("model", gradient_checkpointing=True),
        )
    if config.placement.policy.num_gpus > 0:
        yield from _sharded(config)
    if config.model.lora is None:
        yield ("model.lora.rank=16",), "adapters learn less than all weights", _set("model", lora=LoRAConfig())
    if config.model.weights_dtype == "float32":
        yield (
            ("model.weights_dtype=bfloat16",),
            "small updates are rounded away",
            _set("model", weights_dtype="bfloat16"),
        )


def _sharded(config: RunConfig) -> Iterator[tuple[tuple[str, ...], str, Update]]:
    ranks = config.placement.policy.num_actors
    for more in (n for n in (2, 4, 8, 16, 32) if n >= ranks):
        settings = ("learner.sharding.strategy=fsdp", f"placement.policy.num_actors={more}")
        yield settings, f"{more} GPUs a learner", _fsdp(more, cpu_offload=False)
    yield ("learner.sharding.cpu_offload=true",), "steps wait for the host's bus", _fsdp(None, cpu_offload=True)


def _fsdp(ranks: int | None, cpu_offload: bool) -> Update:
    def change(config: RunConfig) -> RunConfig:
        placement = config.placement.model_dump()
        for role in ("policy", "critic") if ranks else ():
            placement[role]["num_actors"] = ranks
        if ranks and config.placement.mode == "colocated":
            placement["rollout"]["num_actors"] = ranks
        sharding = config.learner.sharding.model_dump() | {"strategy": "fsdp", "cpu_offload": cpu_offload}
        return _apply(config, _set("learner", sharding=sharding), _set("placement", **placement))

    return change


def _set(section: str, **values: object) -> Update:
    def change(config: RunConfig) -> RunConfig:
        tree = config.model_dump()
        tree[section] |= {key: v.model_dump() if isinstance(v, LoRAConfig) else v for key, v in values.items()}
        return RunConfig.model_validate(tree)

    return change


def _apply(config: RunConfig, *updates: Update) -> RunConfig:
    for update in updates:
        config = update(config)
    return config


def _on_gpus(config: RunConfig, roles: dict[str, RoleMemory], device: Device) -> list[Demand]:
    """Return a demand for every distinct set of roles that share a GPU."""
    layout = lay_out({name: config.role_resources(name) for name in roles}, config.placement.mode)
    usable = int(USABLE_GPU * device.memory)
    by_roles: dict[tuple[str, ...], Demand] = {}
    for seat in range(len(layout.bundles)):
        here = tuple(name for name in roles if seat in layout.seats[name] and roles[name].place == "gpu")
        if not here:
            continue
        if config.placement.mode == "colocated":
            share = 1.0
            turns = [roles[name].peak for name in here if name in ("policy", "critic")]
            turns.append(_engine(config, roles, device) if "rollout" in here else 0)
            others = sum(roles[name].peak for name in here if name not in ("policy", "critic", "rollout"))
            needed = max(turns) + others
        else:
            (name,) = here
            share = min(1.0, config.role_resources(name).num_gpus)
            needed = _engine(config, roles, device) if name == "rollout" else roles[name].peak
        by_roles[here] = Demand(
            f"one {device.name}" if share == 1 else f"{share:g} of one {device.name}", here, needed, int(usable * share)
        )
    return list(by_roles.values())


def _engine(config: RunConfig, roles: dict[str, RoleMemory], device: Device) -> int:
    """Return the memory of an engine: vLLM takes its whole share, which must exceed the weights."""
    if not config.rollout.engine_traits.reserves_memory:
        return roles["rollout"].peak
    return max(roles["rollout"].peak + GIB, int(config.rollout.gpu_memory_utilization * device.memory))


def _on_host(config: RunConfig, roles: dict[str, RoleMemory], device: Device) -> list[Demand]:
    """Return the demands of all actors on one machine; pages that they share count once."""
    if "reference" not in roles or "rollout" in roles:
        return [_sum(roles, device)]
    # Offline, the reference finishes before the learner, which has loaded its weights by then, starts to learn.
    offline_reference = roles["reference"]
    demand = _sum({name: role for name, role in roles.items() if name != "reference"}, device)
    idle = roles["policy"].states[0].total
    scoring = Demand(
        "this machine",
        ("reference",),
        offline_reference.peak * offline_reference.num_actors + idle + HOST_BESIDE,
        device.memory,
    )
    return [demand, scoring]


def _sum(roles: dict[str, RoleMemory], device: Device) -> Demand:
    shared: dict[str, list[int]] = {}  # sizes by part, one for every process that has it
    for role in roles.values():
        for part in role.worst.parts:
            shared.setdefault(part.name, []).extend([part.shared] * role.num_actors)
    counted_again = sum(sum(sizes) - max(sizes) for sizes in shared.values())
    peaks = sum(role.peak * role.num_actors for role in roles.values())
    return Demand("this machine", tuple(roles), peaks - counted_again + HOST_BESIDE, device.memory)
