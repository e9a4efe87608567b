"""How samples are made and scored, and what each role of actors gets of the machine."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raylign.config.base import Config
from raylign.config.data import DataConfig
from raylign.config.engines import EngineTraits, traits_of


class SamplingConfig(Config):
    max_tokens: int = Field(default=64, ge=1)
    """Longest completion."""
    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature; learners score the samples at the same one."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 keeps the policy's own distribution, which PPO needs."""
    top_k: int = Field(default=0, ge=0)
    """Sample among the k likeliest tokens; 0 is all of them."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a completion besides the tokenizer's eos."""


class ElasticConfig(Config):
    """Engines that join while the cluster has room for them and may leave at any time (spot machines)."""

    min_engines: int = Field(default=1, ge=1)
    """With fewer the run does not go on; it waits for them up to limits.placement."""
    max_engines: int = Field(ge=1)
    """No more join."""

    @model_validator(mode="after")
    def _ordered(self):
        if self.max_engines < self.min_engines:
            raise ValueError(f"max_engines: {self.max_engines} is less than min_engines {self.min_engines}; raise it")
        return self


class RolloutConfig(Config):
    engine: str = Field(default="auto", pattern=r"^(auto|vllm|transformers|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")
    """auto is vLLM where it is installed, else transformers; `package.module:Class` is an engine of your own (see
    `raylign.rollout.engine.RolloutEngine`), with allow_code: true."""
    allow_code: bool = False
    """Say true to let the run import and execute the engine class that `engine` names."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that split every matrix of one vLLM engine; must divide the model's attention heads."""
    pipeline_parallel: int = Field(default=1, ge=1)
    """Groups of GPUs that hold the layers of one vLLM engine one after another."""
    elastic: ElasticConfig | None = None
    """Let engines join and leave during the run; placement.rollout.num_actors is how many it starts with."""
    sampling: SamplingConfig = SamplingConfig()
    shards_per_step: int = Field(default=2, ge=1)
    """Parts a step's prompts are generated in, at least as many as there may be engines; a part is scored while the next
    one is generated."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the engine's weights; auto is the policy's compute_dtype."""
    max_model_len: int | None = Field(default=None, ge=8)
    """Context the engine reserves; the model's own if not set."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """KV cache on a CPU engine, in GiB."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of the GPU a vLLM engine claims."""
    enforce_eager: bool | None = None
    """Skip CUDA graphs and compilation; true on CPU, false on GPU if not set."""

    @property
    def engine_traits(self) -> EngineTraits:
        return traits_of(self.engine)

    @model_validator(mode="after")
    def _consistent(self):
        if ":" in self.engine and not self.allow_code:
            raise ValueError(f"engine: {self.engine} is code of yours; say allow_code: true to let the run execute it")
        if self.tensor_parallel * self.pipeline_parallel > 1 and not self.engine_traits.splits_model:
            raise ValueError("tensor_parallel: only vLLM splits a model; set engine: vllm, or tensor_parallel: 1")
        return self


class FunctionReward(Config):
    """A Python function `score(prompts, completions, **columns) -> list[float]`, as in TRL."""

    type: Literal["function"]
    function: str
    """`package.module:function`, or `path/to/file.py:function`."""
    allow_code: bool = False
    """Say true to let the run import and execute this code."""


class ModelReward(Config):
    """A Hugging Face sequence-classification model with one output (or one that raylign trained)."""

    type: Literal["model"]
    path: str
    """Folder, hub name, or `run:reward_model.yaml`."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Padded tokens scored at once. If not set, as many as a learner's micro-batch has where none is set."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


class TaskReward(Config):
    """The ground truth of the embedded task."""

    type: Literal["task"]


RewardConfig = Annotated[FunctionReward | ModelReward | TaskReward, Field(discriminator="type")]


class EvaluationConfig(Config):
    data: DataConfig
    """Held-out prompts (pairs, for a reward model)."""
    reward: RewardConfig | None = None
    """What scores the completions; the run's own reward if not set."""
    every_steps: int = Field(default=0, ge=0)
    """Evaluate the policy also during an online run; 0 is only before and after."""
    batch_size: int = Field(default=256, ge=1)
    """Prompts evaluated at once."""
    keep_samples: int = Field(default=8, ge=0)
    """Completions written to `evaluations/*_samples.jsonl`, with score and the prompt's columns. As many as there are
    prompts, and win rates can be computed from the files."""


class RoleResources(Config):
    num_actors: int = Field(default=1, ge=1)
    """Ray actors of this role."""
    num_cpus: float = Field(default=0.5, ge=0)
    """Logical CPUs of each actor, for Ray's scheduling."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs of each actor; fractions share one."""
    num_threads: int | None = Field(default=None, ge=1)
    """Torch threads of each actor; if not set, the node's cores are shared among the learners."""

    @model_validator(mode="after")
    def _nonzero(self):
        if self.num_cpus == 0 and self.num_gpus == 0:
            raise ValueError("an actor needs num_cpus or num_gpus above 0, or Ray cannot place it")
        return self


class PlacementConfig(Config):
    mode: Literal["disaggregated", "colocated"] = "disaggregated"
    """disaggregated: every actor has CPUs and GPUs of its own. colocated: engine i shares those of policy rank i, and
    while one works the other sleeps (its weights and caches moved to the host)."""
    policy: RoleResources = RoleResources()
    critic: RoleResources = RoleResources(num_cpus=0.25)
    reference: RoleResources = RoleResources(num_cpus=0.25)
    reward: RoleResources = RoleResources(num_cpus=0.25)
    rollout: RoleResources = RoleResources()
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray lays the actors over the nodes."""
    autoscaling: bool = False
    """The cluster grows when asked: wait up to limits.placement for nodes instead of refusing what is too large for
    those that are there."""


class LimitsConfig(Config):
    """Deadlines in seconds: no wait is unbounded."""

    placement: float = Field(default=120.0, gt=0)
    """For the cluster to reserve what the run needs."""
    start: float = Field(default=300.0, gt=0)
    """For an actor to load its model."""
    generate: float = Field(default=1800.0, gt=0)
    """For the samples of one step, with their scores and logprobs."""
    update: float = Field(default=1800.0, gt=0)
    """For one update of a learner."""
    sync: float = Field(default=300.0, gt=0)
    """For new weights to reach and be acknowledged by every engine."""
    save: float = Field(default=600.0, gt=0)
    """For one commit."""
    max_failures: int = Field(default=3, ge=0)
    """Actor deaths that are repaired before the run gives up."""
    max_skipped_steps: int = Field(default=5, ge=1)
    """Optimizer steps in a row that may be skipped for a loss or gradient that is not finite."""
