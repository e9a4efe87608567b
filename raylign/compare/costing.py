"""Cost of a run, from its summary and its config: device-seconds, memory, tokens, operations and price.

- Reserved seconds of a role: from the reservation of its actors' places to their end, working or waiting (`reserved_seconds` of
  summary.json).
- A device is a GPU if the run asks for any, else one of Ray's logical CPUs. Device-seconds of a role are reserved seconds x
  actors x devices of an actor. Where roles are colocated they take turns on the same devices, so the run has those of
  its largest role, and the roles' own do not add up.
- `learning` leaves out evaluation: its seconds, and the engines and evaluator that are started for it after an offline
  run. Methods are compared by this cost.
- Offline runs on the same rows share the logprobs of the reference: the first run computes them. Its cost for
  that is divided evenly among them (`split_reference_pass_cost`).
- Operations: 6 per parameter and completion token learned from (every pass counted), 2 per token generated or
  scored. Prompts and attention are left out for all methods, so this is a lower bound.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raylign.config import CollectConfig, ModelReward, OfflineConfig, OnlineConfig, RunConfig
from raylign.errors import UserError
from raylign.storage.run_folder import RunFolder

FLOPS_LEARNED, FLOPS_SCORED = 6, 2


@dataclass(frozen=True)
class Cost:
    """Cost of one run; dicts are by role."""

    wall_seconds: float
    start_seconds: float  # placing actors and loading models, in wall_seconds
    device: str  # gpu or cpu
    device_seconds: dict[str, float]
    learning_seconds: float  # wall seconds for which roles were reserved to learn
    learning_device_seconds: float
    reference_device_seconds: float  # an offline run's reference pass over its dataset, while the policy waits
    devices: float  # reserved while learning
    peak_bytes: dict[str, int]  # peak of the largest actor
    learning_bytes: int  # all actors that learning needs, each at its own peak
    tokens_generated: int
    tokens_trained: int  # every pass counted
    flops: float
    model_copies: int
    copies_of: tuple[str, ...]

    @property
    def total_device_seconds(self) -> float:
        return sum(self.device_seconds.values())

    def money(self, price_per_device_hour: float | None) -> float | None:
        return None if price_per_device_hour is None else self.total_device_seconds / 3600 * price_per_device_hour

    def tree(self) -> dict[str, Any]:
        return asdict(self)


def cost_of_run(folder: Path) -> Cost:
    """Return the cost of a finished run, read from its directory."""
    run = RunFolder(folder)
    summary = run.summary
    if "section_seconds" not in summary:
        raise UserError(
            f"{folder}: the run was written by an earlier raylign, without section_seconds; delete the folder and run it again"
        )
    return cost_of(run.config, summary, num_parameters(run), _passes(run, summary["steps"]))


def cost_of(config: RunConfig, summary: dict[str, Any], parameters: int, passes: float = 1.0) -> Cost:
    """Compute the cost of a run (definitions: top of this file).

    Args:
        summary: what `summary.json` holds.
        parameters: size of the model; critic and reward model are assumed to be as large.
        passes: number of passes of an offline run over its dataset. Its reference scores every row once. That is
            counted for every run, although runs that find the logprobs in the cache spend no time on it.
    """
    wall: float = summary["wall_seconds"]
    evaluating: float = summary["section_seconds"].get("evaluate", 0.0)
    reserved: dict[str, dict[str, float]] = summary["reserved_seconds"]
    train, separate = reserved.get("train", {}), reserved.get("evaluation", {})
    if not separate:  # the same actors trained and evaluated
        train = {role: max(0.0, seconds - evaluating) for role, seconds in train.items()}
    evaluation: dict[str, float] = separate or dict.fromkeys(train, evaluating)
    per_role = {role: _devices(config, role) for role in {**train, **evaluation}}
    colocated = config.placement.mode == "colocated"

    def add_up(seconds: dict[str, float]) -> float:
        parts = [seconds[role] * per_role[role] for role in seconds]
        return max(parts, default=0.0) if colocated else sum(parts)

    learners = {role: seconds for role, seconds in train.items() if role != "evaluator"}
    everything = {role: (train.get(role, 0.0) + evaluation.get(role, 0.0)) * per_role[role] for role in per_role}
    if colocated:
        largest = max(everything, key=lambda role: everything[role])
        everything = {role: value if role == largest else 0.0 for role, value in everything.items()}
    longest = max(learners.values(), default=0.0)
    copies = model_copies(config)
    memory = {role: peak["peak_bytes"] for role, peak in summary["memory"].items()}
    learning_roles = {role for role in memory if role in learners or role in copies}
    reference_pass = 0.0 if isinstance(config.algorithm, OnlineConfig | CollectConfig) else train.get("reference", 0.0)
    reference_seconds = reference_pass * sum(_devices(config, role) for role in ("reference", "policy"))
    generated, trained = summary["tokens"].get("generated", 0), _passed(config, summary["tokens"].get("trained", 0))
    return Cost(
        wall_seconds=wall,
        start_seconds=summary["section_seconds"].get("start", 0.0),
        device="gpu" if config.uses_gpus else "cpu",
        device_seconds=everything,
        learning_seconds=longest,
        learning_device_seconds=add_up(learners) - reference_seconds,
        reference_device_seconds=reference_seconds,
        devices=add_up(learners) / longest if longest else 0.0,
        peak_bytes=memory,
        learning_bytes=sum(memory[role] * config.role_resources(role).num_actors for role in learning_roles),
        tokens_generated=generated,
        tokens_trained=trained,
        flops=_flops(config, parameters, generated, trained, passes),
        model_copies=len(copies),
        copies_of=copies,
    )


def model_copies(config: RunConfig) -> tuple[str, ...]:
    """Return the role of every copy of a model in memory while the run learns; ranks that split a model count as one."""
    algorithm = config.algorithm
    names = ["policy"]
    if isinstance(algorithm, OnlineConfig):
        names += ["critic"] * algorithm.has_critic + ["rollout"] + ["reference"] * algorithm.needs_reference
    elif isinstance(algorithm, CollectConfig):
        names = ["rollout"]
    elif algorithm.needs_reference:
        names.append("reference")
    if isinstance(algorithm, OnlineConfig | CollectConfig) and isinstance(config.reward, ModelReward):
        names.append("reward")
    return tuple(name for name in names for _ in range(_copies(config, name)))


def num_parameters(run: RunFolder) -> int:
    """Return the size of the model that a run trained or sampled, read from the headers of its safetensors files.

    0 if the model is not on this machine.
    """
    model = run.model
    if not model.is_dir():
        model = Path(run.resolved.model.path)
    total = 0
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(length))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        total += sum(_product(shape) for shape in shapes)
    return total


def _flops(config: RunConfig, parameters: int, generated: int, trained: int, passes: float) -> float:
    algorithm = config.algorithm
    learned = 8 if config.model.gradient_checkpointing else FLOPS_LEARNED
    learners, scorers, seen = 1, 0, 0.0
    if isinstance(algorithm, CollectConfig):
        learners, seen = 0, generated
        scorers = int(isinstance(config.reward, ModelReward))
    elif isinstance(algorithm, OnlineConfig):
        copies = model_copies(config)
        critic = algorithm.has_critic  # it also computes values before the update
        learners += critic
        scorers = ("reference" in copies) + ("reward" in copies) + critic + algorithm.recomputes_old_logprobs
        seen = generated
    elif algorithm.needs_reference:
        scorers, seen = 1, trained / passes
    return float(parameters) * (learned * learners * trained + FLOPS_SCORED * (generated + scorers * seen))


def _passed(config: RunConfig, trained: int) -> int:
    """Return the trained tokens with every pass counted; online runs report each sample once and pass it `epochs` times."""
    return trained * config.algorithm.epochs if isinstance(config.algorithm, OnlineConfig) else trained


def _passes(run: RunFolder, steps: int) -> float:
    """Return the passes of an offline run over its dataset; 1 if that is not a file on this machine."""
    config = run.resolved
    data = Path(config.data.path)
    if not isinstance(config.algorithm, OfflineConfig) or data.suffix != ".jsonl" or not data.is_file():
        return 1.0
    with data.open("rb") as f:
        rows = sum(1 for line in f if line.strip())
    return steps * config.algorithm.batch_size / min(rows, config.data.max_rows or rows)


def _devices(config: RunConfig, role: str) -> float:
    """Return the number of devices of all actors of a role."""
    needed = config.role_resources(role)
    return needed.num_actors * (needed.num_gpus if config.uses_gpus else needed.num_cpus)


def _copies(config: RunConfig, role: str) -> int:
    actors = config.role_resources(role).num_actors
    sharding = config.learner.sharding
    if role not in ("policy", "critic") or not sharding.splits_model:
        return actors
    ranks = actors if sharding.strategy == "fsdp" and sharding.shard_size is None else 0
    of_one = ranks or (sharding.shard_size or 1) * sharding.tensor_parallel
    return max(1, actors // of_one)


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
