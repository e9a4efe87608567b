"""Time of a step and cost of a run: operations divided by rates, with assumed efficiencies."""

from __future__ import annotations

from dataclasses import dataclass

from raylign.config import CollectConfig, ModelReward, OnlineConfig, RunConfig
from raylign.planning.devices import Device
from raylign.planning.memory import BYTES, MemoryModel, items_per_update
from raylign.planning.trace import Model

# Shares of the data sheet's peak that work reaches: passes as in docs/performance.md, generation as vLLM reports.
LEARNING, SCORING, READING = 0.40, 0.45, 0.60
# Shares of the rate that a large matrix product reached on this machine.
LEARNING_CPU, SCORING_CPU = 0.45, 0.55
ENGINE_STEP, ENGINE_STEP_CPU = (
    0.008,
    0.015,
)  # seconds that vLLM adds to each token of all its sequences, whatever the model
CORE = 80e9  # operations a second of a CPU core, for roles without a GPU on machines with GPUs
LOW, HIGH = 0.6, 1.7  # the true time usually lies between these multiples of the prediction
START = 90.0  # seconds to place actors and load models


@dataclass(frozen=True)
class Work:
    """One kind of work that a role does in a step."""

    role: str
    seconds: float
    how: str


@dataclass(frozen=True)
class Cost:
    """Time of a step, and GPU-hours and price of the runs."""

    works: tuple[Work, ...]
    step_seconds: float
    steps: int
    num_gpus: float
    runs: int
    price: float | None  # of a GPU for an hour

    @property
    def run_hours(self) -> float:
        """Hours of one run, with its start."""
        return (START + self.step_seconds * self.steps) / 3600

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of all runs; a run reserves each GPU from its first to its last second."""
        return self.run_hours * self.num_gpus * self.runs

    @property
    def money(self) -> float | None:
        """Price of all runs, or None if no price of a GPU-hour was given."""
        return None if self.price is None else self.gpu_hours * self.price


def cost_of(model: MemoryModel, device: Device, runs: int, price: float | None) -> Cost:
    """Return the cost of `runs` runs like this one, one after another or side by side."""
    config = model.config
    works = _works(model, device)
    resources = [config.role_resources(role) for role in config.phases[0]]
    gpus = [needed.num_actors * needed.num_gpus for needed in resources]
    num_gpus = max(gpus) if config.placement.mode == "colocated" else sum(gpus)
    return Cost(tuple(works), _step_seconds(config, works, device), model.steps, num_gpus, runs, price)


def _step_seconds(config: RunConfig, works: list[Work], device: Device) -> float:
    """Return the wall time of a step. Roles that share one machine or take turns do not overlap."""
    if not device.is_gpu or config.placement.mode == "colocated":
        return sum(work.seconds for work in works)
    sampled = max((w.seconds for w in works if not w.how.startswith("learn")), default=0.0)
    learned = max((w.seconds for w in works if w.how.startswith("learn")), default=0.0)
    stale = isinstance(config.algorithm, OnlineConfig) and config.algorithm.max_staleness > 0
    return max(sampled, learned) if stale else sampled + learned


def _works(model: MemoryModel, device: Device) -> list[Work]:
    config, algorithm = model.config, model.config.algorithm
    works: list[Work] = []
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
    items = items_per_update(config, model.profile)
    repeats = algorithm.epochs * algorithm.minibatches if isinstance(algorithm, OnlineConfig) else 1
    learners = ["policy", "critic"] if algorithm.has_critic else ["policy"]
    return works + [_learning(model, device, name, items * repeats) for name in learners]


def _learning(model: MemoryModel, device: Device, name: str, items: int) -> Work:
    config = model.config
    sizes = model.skeleton(name).sizes
    tokens = items * model.profile.mean_tokens
    learned = items * float(model.profile.completions.mean())
    factor = 8 if config.model.gradient_checkpointing else 6
    operations = factor * (tokens * _per_token(sizes, float(model.profile.lengths.mean())) + learned * sizes.num_head)
    seconds = operations / _rate(config, name, device, LEARNING, LEARNING_CPU)
    how = f"learn: {factor} x {sizes.num_body:,} x {tokens:,.0f} tokens, {operations / 1e12:,.2f} TFLOP"
    return Work(name, seconds, how)


def _scoring(model: MemoryModel, device: Device, name: str, samples: int) -> Work:
    config = model.config
    sizes = model.skeleton(name).sizes
    tokens = samples * float(model.profile.lengths.mean())
    learned = samples * float(model.profile.completions.mean()) / model.profile.rows_per_item
    operations = 2 * (tokens * _per_token(sizes, float(model.profile.lengths.mean())) + learned * sizes.num_head)
    seconds = operations / _rate(config, name, device, SCORING, SCORING_CPU)
    return Work(name, seconds, f"score: 2 x {sizes.num_body:,} x {tokens:,.0f} tokens, {operations / 1e12:,.2f} TFLOP")


def _generation(model: MemoryModel, device: Device, samples: int) -> Work:
    """Return the work of the engines: a pass over the prompts, then a read of weights and cached keys for every token."""
    config = model.config
    sizes, width = model.skeleton("rollout").sizes, BYTES[config.rollout_dtype]
    engines = config.placement.rollout.num_actors
    split = config.rollout.tensor_parallel * config.rollout.pipeline_parallel
    longest = config.rollout.sampling.max_tokens
    length = float(model.profile.lengths.mean())
    sequences = samples / engines
    rate = device.flops(config.rollout_dtype) * (SCORING if device.is_gpu else SCORING_CPU) * split
    if not device.is_gpu:
        rate /= engines  # they share the cores
    parameters = sizes.num_body + sizes.num_head
    prefill = 2 * sizes.num_body * (length - longest) * sequences / rate
    # On average a token has half of its completion before it.
    cached = sequences * (length - longest / 2) * sizes.kv_elements * width
    reading = (parameters * width + cached) / (device.bandwidth * READING * split)
    overhead = ENGINE_STEP if device.is_gpu else ENGINE_STEP_CPU
    token = overhead + max(reading, 2 * parameters * sequences / rate)
    how = (
        f"generate: {longest} tokens x {1000 * token:,.1f} ms for {sequences:,.0f} sequences, prompts {prefill:,.2f} s"
    )
    return Work("rollout", prefill + longest * token, how)


def _per_token(sizes: Model, length: float) -> float:
    """Return the multiply-adds of one token in the body: its parameters, and attention to half of its row."""
    return sizes.num_body + sizes.num_layers * sizes.width * length


def _rate(config: RunConfig, name: str, device: Device, gpu_share: float, cpu_share: float) -> float:
    """Return the operations a second of all actors of a role. The actors on a CPU share its cores."""
    needed = config.role_resources(name)
    if not device.is_gpu:
        return device.flops(config.model.compute_dtype) * cpu_share
    if needed.num_gpus == 0:
        return needed.num_actors * max(1.0, needed.num_cpus) * CORE * cpu_share
    return needed.num_actors * min(1.0, needed.num_gpus) * device.flops(config.model.compute_dtype) * gpu_share
