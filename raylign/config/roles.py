"""Settings of sampling, rewards, evaluation, and the resources of each role."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raylign.config.base import Config
from raylign.config.data import DataConfig
from raylign.config.engines import EngineTraits, traits_of


class SamplingConfig(Config):
    """Settings of how completions are sampled."""

    max_tokens: int = Field(default=64, ge=1)
    """Longest completion, in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature; learners compute logprobs of the samples at the same temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 keeps the policy's own distribution, which PPO needs."""
    top_k: int = Field(default=0, ge=0)
    """Sample among the k likeliest tokens; 0 samples among all."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a completion, in addition to the tokenizer's eos."""


class ElasticConfig(Config):
    """Engines that join while the cluster has room for them and may leave at any time (spot machines)."""

    min_engines: int = Field(default=1, ge=1)
    """Smallest number of engines to run with; with fewer, the run waits up to limits.placement for more."""
    max_engines: int = Field(ge=1)
    """Largest number of engines; no further engine joins."""

    @model_validator(mode="after")
    def _ordered(self):
        if self.max_engines < self.min_engines:
            raise ValueError(f"max_engines: {self.max_engines} is less than min_engines {self.min_engines}; raise it")
        return self


class RolloutConfig(Config):
    """The generation engines, and how they sample."""

    engine: str = Field(default="auto", pattern=r"^(auto|vllm|transformers|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")
    """Generation engine: auto is vLLM if it is installed, else transformers; `package.module:Class` is your own engine
    (see `raylign.rollout.engine.RolloutEngine`), which needs allow_code: true."""
    allow_code: bool = False
    """Permit the run to import and execute your own engine class."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Number of GPUs that split every matrix of one vLLM engine; must divide the number of attention heads."""
    pipeline_parallel: int = Field(default=1, ge=1)
    """Number of GPU groups that split the layers of one vLLM engine, as consecutive stages."""
    elastic: ElasticConfig | None = None
    """Let engines join and leave during the run, which starts with placement.rollout.num_actors engines."""
    sampling: SamplingConfig = SamplingConfig()
    """Settings of how completions are sampled."""
    shards_per_step: int = Field(default=2, ge=1)
    """Number of parts into which a step's prompts are split, raised to the largest number of engines if that is higher; one
    part is scored while the next is generated."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the engine's weights; auto is the policy's compute_dtype."""
    max_model_len: int | None = Field(default=None, ge=8)
    """Context length that the engine reserves memory for, in tokens; the model's own if not set."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Size of the KV cache of a CPU engine, in GiB."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of the GPU's memory that a vLLM engine claims."""
    enforce_eager: bool | None = None
    """Skip CUDA graphs and compilation; if not set, true on a CPU and false on a GPU."""

    @property
    def engine_traits(self) -> EngineTraits:
        """Facts about the engine class, known without importing it."""
        return traits_of(self.engine)

    @model_validator(mode="after")
    def _consistent(self):
        if ":" in self.engine and not self.allow_code:
            raise ValueError(f"engine: {self.engine} runs your own code; set allow_code: true to permit it")
        if self.tensor_parallel * self.pipeline_parallel > 1 and not self.engine_traits.splits_model:
            raise ValueError("tensor_parallel: only vLLM splits a model; set engine: vllm, or tensor_parallel: 1")
        return self


class FunctionReward(Config):
    """A Python function `score(prompts, completions, **columns) -> list[float]`, as in TRL."""

    type: Literal["function"]
    function: str
    """Reward function: `package.module:function`, or `path/to/file.py:function`."""
    allow_code: bool = False
    """Permit the run to import and execute this code."""


class ModelReward(Config):
    """A reward model: a Hugging Face sequence-classification model with one output, or one that raylign trained."""

    type: Literal["model"]
    path: str
    """Hugging Face folder or hub name of the model, or `run:reward_model.yaml`."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Number of padded tokens scored at once; if not set, the same default as `learner.micro_batch_tokens`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


class TaskReward(Config):
    """The true reward of the embedded task."""

    type: Literal["task"]


RewardConfig = Annotated[FunctionReward | ModelReward | TaskReward, Field(discriminator="type")]


class EvaluationConfig(Config):
    """Evaluation before and after training, on held-out data."""

    data: DataConfig
    """Held-out prompts (pairs, for a reward model)."""
    reward: RewardConfig | None = None
    """Reward that scores the completions; the run's own reward if not set."""
    every_steps: int = Field(default=0, ge=0)
    """Steps between evaluations during an online run; 0 evaluates only before and after."""
    batch_size: int = Field(default=256, ge=1)
    """Number of prompts evaluated at once."""
    keep_samples: int = Field(default=8, ge=0)
    """Number of completions written to `evaluations/*_samples.jsonl`, with score and the prompt's columns. To compute win
    rates from the files, keep as many as there are prompts."""


class RoleResources(Config):
    """Actors of a role, and the resources of each."""

    num_actors: int = Field(default=1, ge=1)
    """Number of Ray actors of this role."""
    num_cpus: float = Field(default=0.5, ge=0)
    """Number of logical CPUs of each actor, for Ray's scheduling."""
    num_gpus: float = Field(default=0.0, ge=0)
    """Number of GPUs of each actor; actors with fractions share a GPU."""
    num_threads: int | None = Field(default=None, ge=1)
    """Number of torch threads of each actor; if not set, the learners share the node's cores."""

    @model_validator(mode="after")
    def _nonzero(self):
        if self.num_cpus == 0 and self.num_gpus == 0:
            raise ValueError("an actor needs num_cpus or num_gpus above 0, or Ray cannot place it")
        return self


class PlacementConfig(Config):
    """Resources of each role, and how they are placed on the cluster."""

    mode: Literal["disaggregated", "colocated"] = "disaggregated"
    """disaggregated: every actor has its own CPUs and GPUs. colocated: engine i shares those of policy rank i, and while
    one works the other sleeps (its weights and caches are moved to host memory)."""
    policy: RoleResources = RoleResources()
    """Learners of the policy, or of the reward model."""
    critic: RoleResources = RoleResources(num_cpus=0.25)
    """Learners of the critic."""
    reference: RoleResources = RoleResources(num_cpus=0.25)
    """Actors that compute logprobs of the reference."""
    reward: RoleResources = RoleResources(num_cpus=0.25)
    """Actors that score completions."""
    rollout: RoleResources = RoleResources()
    """Actors that run the generation engines."""
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Strategy by which Ray distributes the actors over the nodes."""
    autoscaling: bool = False
    """Wait up to limits.placement for the cluster to add nodes, instead of refusing a run that is too large for the present
    nodes."""


class LimitsConfig(Config):
    """Deadlines, in seconds, and numbers of failures to accept. No wait is unbounded."""

    placement: float = Field(default=120.0, gt=0)
    """Time for the cluster to reserve the run's resources."""
    start: float = Field(default=300.0, gt=0)
    """Time for an actor to load its model."""
    generate: float = Field(default=1800.0, gt=0)
    """Time for the samples of one step, with their scores and logprobs."""
    update: float = Field(default=1800.0, gt=0)
    """Time for one update of a learner."""
    sync: float = Field(default=300.0, gt=0)
    """Time for every engine to receive and acknowledge new weights."""
    save: float = Field(default=600.0, gt=0)
    """Time for one commit."""
    max_failures: int = Field(default=3, ge=0)
    """Number of actor deaths that are repaired; at the next one the run stops."""
    max_skipped_steps: int = Field(default=5, ge=1)
    """Number of optimizer steps in a row that may be skipped because a loss or gradient is not finite."""
