"""How long a step takes, and what a run costs: operations over rates, with the efficiencies that are assumed."""

from __future__ import annotations

from dataclasses import dataclass

from raylign.config import CollectConfig, ModelReward, OnlineConfig, RunConfig
from raylign.planning.devices import Device
from raylign.planning.memory import BYTES, MemoryModel, items_per_update
from raylign.planning.trace import Model

# Shares of the data sheet's peak that such work reaches; passes in docs/performance.md, generation in vLLM's reports.
LEARNING, SCORING, READING = 0.40, 0.45, 0.60
# Of the rate that a large product reached on this machine.
LEARNING_CPU, SCORING_CPU = 0.45, 0.55
ENGINE_STEP, ENGINE_STEP_CPU = 0.008, 0.015  # seconds vLLM needs for a token of all its sequences, whatever the model
CORE = 80e9  # operations a second of a CPU core beside a GPU, for roles that are given none
LOW, HIGH = 0.6, 1.7  # the truth lies between these multiples of the prediction, most times
START = 90.0  # seconds to place actors and load models


@dataclass(frozen=True)
class Work:
    """What one step asks of a role."""

    role: str
    seconds: float
    how: str


@dataclass(frozen=True)
class Cost:
    works: tuple[Work, ...]
    step_seconds: float
    steps: int
    num_gpus: float
    runs: int
    price: float | None  # of a GPU for an hour

    @property
    def run_hours(self) -> float:
        return (START + self.step_seconds * self.steps) / 3600

    @property
    def gpu_hours(self) -> float:
        """Of all runs: every GPU is held from the first to the last second."""
        return self.run_hours * self.num_gpus * self.runs

    @property
    def money(self) -> float | None:
        return None if self.price is None else self.gpu_hours * self.price


def cost_of(model: MemoryModel, device: Device, runs: int, price: float | None) -> Cost:
    """Of `runs` runs like this one, one after another or side by side."""
    config = model.config
    works = _works(model, device)
    seconds = {work.role: 0.0 for work in works}
    for work in works:
        seconds[work.role] += work.seconds
    stage = config.phases[0]
    gpus = sum(config.role_resources(name).num_actors * config.role_resources(name).num_gpus for name in stage)
    if config.placement.mode == "colocated":
        gpus = max(config.role_resources(name).num_actors * config.role_resources(name).num_gpus for name in stage)
    return Cost(tuple(works), _together(config, works, device), model.steps, gpus, runs, price)


def _together(config: RunConfig, works: list[Work], device: Device) -> float:
    """Wall time of the parts of a step. Where they share one machine or take turns nothing overlaps."""
    if not device.is_gpu or config.placement.mode == "colocated":
        return sum(work.seconds for work in works)
    sampled = max((w.seconds for w in works if not w.how.startswith("learn")), default=0.0)
    learned = max((w.seconds for w in works if w.how.startswith("learn")), default=0.0)
    stale = isinstance(config.algorithm, OnlineConfig) and config.algorithm.max_staleness > 0
    return max(sampled, learned) if stale else sampled + learned


def _works(model: MemoryModel, device: Device) -> list[Work]:
    config, algorithm = model.config, model.config.algorithm
    works: list[Work] = []
    rows = model.rows
    if isinstance(algorithm, OnlineConfig | CollectConfig):
        samples = algorithm.prompts_per_step * algorithm.samples_per_prompt
        works.append(_generation(model, device, samples))
        for name in ("reference", "reward", "critic"):
            if name not in config.phases[0]:
                continue
            if name == "reward" and not isinstance(config.reward, ModelReward):
                continue
            works.append(_scoring(model, device, name, samples))
        if isinstance(algorithm, OnlineConfig) and algorithm.recomputes_old_logprobs:
            works.append(_scoring(model, device, "policy", samples))
    if isinstance(algorithm, CollectConfig):
        return works
    items = items_per_update(config, rows)
    repeats = algorithm.epochs * algorithm.minibatches if isinstance(algorithm, OnlineConfig) else 1
    learners = ["policy", "critic"] if algorithm.has_critic else ["policy"]
    return works + [_learning(model, device, name, items * repeats) for name in learners]


def _learning(model: MemoryModel, device: Device, name: str, items: int) -> Work:
    config = model.config
    sizes = model.skeleton(name).sizes
    tokens = items * model.rows.mean_tokens
    learned = items * float(model.rows.completions.mean())
    factor = 8 if config.model.gradient_checkpointing else 6
    operations = factor * (tokens * _per_token(sizes, float(model.rows.lengths.mean())) + learned * sizes.num_head)
    seconds = operations / _rate(config, name, device, LEARNING, LEARNING_CPU)
    how = f"learn: {factor} x {sizes.num_body:,} x {tokens:,.0f} tokens, {operations / 1e12:,.2f} TFLOP"
    return Work(name, seconds, how)


def _scoring(model: MemoryModel, device: Device, name: str, samples: int) -> Work:
    config = model.config
    sizes = model.skeleton(name).sizes
    tokens = samples * float(model.rows.lengths.mean())
    learned = samples * float(model.rows.completions.mean()) / model.rows.rows_per_item
    operations = 2 * (tokens * _per_token(sizes, float(model.rows.lengths.mean())) + learned * sizes.num_head)
    seconds = operations / _rate(config, name, device, SCORING, SCORING_CPU)
    return Work(name, seconds, f"score: 2 x {sizes.num_body:,} x {tokens:,.0f} tokens, {operations / 1e12:,.2f} TFLOP")


def _generation(model: MemoryModel, device: Device, samples: int) -> Work:
    """Prompts are read at once; then every token of a sequence reads the weights and the keys and values before it."""
    config = model.config
    sizes, width = model.skeleton("rollout").sizes, BYTES[config.rollout_dtype]
    engines = config.placement.rollout.num_actors
    split = config.rollout.tensor_parallel * config.rollout.pipeline_parallel
    longest = config.rollout.sampling.max_tokens
    length = float(model.rows.lengths.mean())
    sequences = samples / engines
    rate = device.flops(config.rollout_dtype) * (SCORING if device.is_gpu else SCORING_CPU) * split
    if not device.is_gpu:
        rate /= engines  # they share the cores
    parameters = sizes.num_body + sizes.num_head
    prefill = 2 * sizes.num_body * (length - longest) * sequences / rate
    # Half of its tokens stand before the middle one of a completion.
    cached = sequences * (length - longest / 2) * sizes.kv_elements * width
    reading = (parameters * width + cached) / (device.bandwidth * READING * split)
    overhead = ENGINE_STEP if device.is_gpu else ENGINE_STEP_CPU
    token = overhead + max(reading, 2 * parameters * sequences / rate)
    how = (
        f"generate: {longest} tokens x {1000 * token:,.1f} ms for {sequences:,.0f} sequences, prompts {prefill:,.2f} s"
    )
    return Work("rollout", prefill + longest * token, how)


def _per_token(sizes: Model, length: float) -> float:
    """Multiply-adds of one token in the body: its parameters, and attention to the half of the row before it."""
    return sizes.num_body + sizes.num_layers * sizes.width * length


def _rate(config: RunConfig, name: str, device: Device, gpu_share: float, cpu_share: float) -> float:
    """Operations a second of all actors of a role. A CPU has its cores once, whatever the number of actors."""
    needed = config.role_resources(name)
    if not device.is_gpu:
        return device.flops(config.model.compute_dtype) * cpu_share
    if needed.num_gpus == 0:
        return needed.num_actors * max(1.0, needed.num_cpus) * CORE * cpu_share
    return needed.num_actors * min(1.0, needed.num_gpus) * device.flops(config.model.compute_dtype) * gpu_share
