"""`RunConfig`: all settings of a run. Two runs with equal configs and equal data are the same run."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from raylign.config.algorithm import AlgorithmConfig
from raylign.config.base import Config
from raylign.config.collect import CollectConfig
from raylign.config.data import DataConfig
from raylign.config.learner import LearnerConfig
from raylign.config.model import ModelConfig
from raylign.config.online import OnlineConfig
from raylign.config.roles import (
    EvaluationConfig,
    LimitsConfig,
    PlacementConfig,
    RewardConfig,
    RoleResources,
    RolloutConfig,
)
from raylign.config.task import TaskConfig


class CheckpointConfig(Config):
    """Commits of a run's state, from which it resumes."""

    every_steps: int = Field(default=50, ge=1)
    """Number of steps between commits; the last step is always committed."""
    keep: int = Field(default=2, ge=1)
    """Number of commits kept on disk."""


class WandbConfig(Config):
    """Weights & Biases run to log to."""

    project: str
    """Name of the W&B project."""
    entity: str | None = None
    """W&B team or user."""
    group: str | None = None
    """W&B group, which gathers the runs of a comparison."""
    mode: Literal["online", "offline", "shared"] = "online"
    """online sends metrics as they come; offline writes them to the run directory, for a later `wandb sync`; shared lets
    several processes write to one W&B run."""


class TrackingConfig(Config):
    """Metric sinks of a run, in addition to metrics.jsonl, which is always written."""

    wandb: WandbConfig | None = None
    """Also log to Weights & Biases."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""


class RunConfig(Config):
    """A run: model, data, algorithm, and how it is executed."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run and of its directory."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of all random choices of the run."""
    output_dir: str = "runs"
    """Folder in which run directories are made, relative to the working directory."""
    task: TaskConfig | None = None
    """Embedded task whose model, data and ground truth `task:...` paths refer to."""
    model: ModelConfig
    """The model that is trained: the start of the policy or of the reward model."""
    reference: ModelConfig | None = None
    """Frozen model that the KL is measured against; the policy's start if not set."""
    data: DataConfig
    """Training rows: prompts for the online algorithms and collect; text, messages or prompt/completion for sft; pairs for
    dpo, simpo, cpo, orpo and reward_model; prompt/completion/label for kto."""
    reward: RewardConfig | None = None
    """Reward that scores completions."""
    evaluation: EvaluationConfig | None = None
    """Evaluation on held-out data; none if not set."""
    algorithm: AlgorithmConfig
    """Algorithm, chosen by `name`, and its settings."""
    learner: LearnerConfig = LearnerConfig()
    """Settings of the learners: batches and sharding."""
    rollout: RolloutConfig = RolloutConfig()
    """The generation engines, and how they sample."""
    placement: PlacementConfig = PlacementConfig()
    """Resources of each role, and how they are placed on the cluster."""
    limits: LimitsConfig = LimitsConfig()
    """Deadlines, and numbers of failures to accept."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Commits of the run's state."""
    tracking: TrackingConfig = TrackingConfig()
    """Metric sinks in addition to metrics.jsonl."""

    @field_validator("name")
    @classmethod
    def _no_dots_only(cls, name: str) -> str:
        if set(name) == {"."}:
            raise ValueError("is not a directory name")
        return name

    @model_validator(mode="after")
    def _consistent(self):
        algorithm = self.algorithm.name
        if isinstance(self.algorithm, OnlineConfig | CollectConfig) and self.reward is None:
            raise ValueError(
                f"reward: {algorithm} scores its samples; add a reward section, e.g. reward: {{type: task}}"
            )
        if isinstance(self.algorithm, OnlineConfig):
            if self.rollout.sampling.top_p < 1 or self.rollout.sampling.top_k > 0:
                raise ValueError(
                    f"rollout.sampling: {algorithm} must sample from the policy itself; set top_p: 1.0 and top_k: 0"
                )
            overlong, longest = self.algorithm.overlong, self.rollout.sampling.max_tokens
            if overlong and overlong.buffer > longest:
                raise ValueError(
                    f"algorithm.overlong.buffer: {overlong.buffer} is more than rollout.sampling.max_tokens {longest}; "
                    "lower it"
                )
            samples = self.algorithm.samples_per_step
            if self.algorithm.minibatches > samples:
                raise ValueError(
                    f"algorithm.minibatches: {self.algorithm.minibatches} is more than the {samples} samples of a step"
                )
        self._check_ranks()
        self._check_adapter()
        self._check_colocation()
        self._check_engine_gpus()
        if self.evaluation and self.algorithm.makes != "reward_model" and not self.evaluation_reward:
            raise ValueError("evaluation.reward: nothing scores the evaluation; set it or the run's reward")
        if self.task is None:
            for place, value in self.sources():
                if value.startswith("task:"):
                    raise ValueError(f"{place}: {value} needs a task section, e.g. task: {{name: sentiment}}")
            rewards = {"reward": self.reward, "evaluation.reward": self.evaluation and self.evaluation.reward}
            for place, reward in rewards.items():
                if reward and reward.type == "task":
                    raise ValueError(f"{place}: type task needs a task section, e.g. task: {{name: sentiment}}")
        return self

    def _check_ranks(self) -> None:
        """Check that the ranks of each learner make whole copies of the model."""
        sharding = self.learner.sharding
        roles = ["policy", "critic"] if self.algorithm.has_critic else ["policy"]
        for role in roles:
            ranks = self.role_resources(role).num_actors
            copy = (sharding.shard_size or 1) * sharding.tensor_parallel
            if ranks % copy:
                raise ValueError(
                    f"placement.{role}.num_actors: {ranks} ranks do not make whole copies of learner.sharding.shard_size "
                    f"{sharding.shard_size or 1} x tensor_parallel {sharding.tensor_parallel}; set a multiple of {copy}"
                )

    def _check_adapter(self) -> None:
        """Check that a model with an adapter is not split in an unsupported way."""
        lora, sharding = self.model.lora, self.learner.sharding
        if lora and sharding.tensor_parallel > 1:
            raise ValueError(
                "learner.sharding.tensor_parallel: matrices with an adapter stay whole; set 1, or no model.lora"
            )
        if lora and lora.base_quantization != "none" and sharding.strategy == "fsdp":
            raise ValueError(
                "model.lora.base_quantization: quantised weights are not split; set none, or learner.sharding.strategy: "
                "replicate"
            )

    def _check_colocation(self) -> None:
        """Check that colocated engines and policy ranks can share their places and take turns."""
        if self.placement.mode != "colocated" or not isinstance(self.algorithm, OnlineConfig):
            return
        ranks, engines = self.placement.policy.num_actors, self.placement.rollout.num_actors
        if engines != ranks:
            raise ValueError(
                f"placement.rollout.num_actors: each colocated engine shares the place of a policy rank; set {ranks}, not {engines}"
            )
        for role in ("policy", "critic", "rollout", "reference", "reward"):
            if self.role_resources(role).num_gpus > 1:
                raise ValueError(
                    f"placement.{role}.num_gpus: colocated actors take turns on one GPU; set 1 and more num_actors, or "
                    "placement.mode: disaggregated"
                )
        if self.rollout.elastic:
            raise ValueError("rollout.elastic: colocated engines cannot come and go; set placement.mode: disaggregated")
        if self.algorithm.max_staleness:
            raise ValueError("algorithm.max_staleness: colocated engines sleep while the policy learns; set 0")

    def _check_engine_gpus(self) -> None:
        """Check that an engine split over GPUs has as many GPUs; without GPUs it is split over CPU processes."""
        rollout, num_gpus = self.rollout, self.placement.rollout.num_gpus
        ranks = rollout.tensor_parallel * rollout.pipeline_parallel
        if num_gpus and ranks > 1 and num_gpus != ranks:
            raise ValueError(
                f"placement.rollout.num_gpus: {num_gpus:g} for an engine of rollout.tensor_parallel "
                f"{rollout.tensor_parallel} x pipeline_parallel {rollout.pipeline_parallel}; set {ranks}, or split it less"
            )

    def sources(self) -> list[tuple[str, str]]:
        """Return each dotted key that names a model or dataset, with its value: the edges of the graph of runs."""
        paths = [("model.path", self.model.path), ("data.path", self.data.path)]
        if self.model.tokenizer:
            paths.append(("model.tokenizer", self.model.tokenizer))
        if self.reference:
            paths.append(("reference.path", self.reference.path))
        if self.reward and self.reward.type == "model":
            paths.append(("reward.path", self.reward.path))
        if self.evaluation:
            paths.append(("evaluation.data.path", self.evaluation.data.path))
            if self.evaluation.reward and self.evaluation.reward.type == "model":
                paths.append(("evaluation.reward.path", self.evaluation.reward.path))
        return paths + self.algorithm.model_paths()

    @property
    def evaluation_reward(self) -> RewardConfig | None:
        """Reward that scores the held-out completions: the evaluation's own, else the run's."""
        return (self.evaluation and self.evaluation.reward) or self.reward

    @property
    def rollout_dtype(self) -> Literal["float32", "bfloat16"]:
        """Precision of the engines' weights."""
        return self.model.compute_dtype if self.rollout.dtype == "auto" else self.rollout.dtype

    @property
    def num_shards(self) -> int:
        """Number of parts into which the prompts of a step are split, whatever the present number of engines."""
        elastic = self.rollout.elastic
        most = elastic.max_engines if elastic else self.placement.rollout.num_actors
        return max(self.rollout.shards_per_step, most)

    @property
    def phases(self) -> tuple[tuple[str, ...], ...]:
        """Roles that are placed together, phase after phase, including all that the run may have to do itself."""
        if isinstance(self.algorithm, CollectConfig):
            return (("rollout", "reward"),)
        if isinstance(self.algorithm, OnlineConfig):
            return (self._online_roles,)
        reference: tuple[str, ...] = ("reference",) if self.algorithm.needs_reference else ()
        if self.evaluation is None or self.algorithm.makes == "reward_model":
            return (("policy", *reference),)
        return (("policy", *reference), ("rollout", "evaluator", *reference))

    @property
    def _online_roles(self) -> tuple[str, ...]:
        evaluates_apart = self.evaluation is not None and self.evaluation_reward != self.reward
        wanted = {
            "policy": True,
            "critic": self.algorithm.has_critic,
            "reward": True,
            "rollout": True,
            "reference": self.algorithm.needs_reference,
            "evaluator": evaluates_apart,
        }
        return tuple(role for role, is_wanted in wanted.items() if is_wanted)

    def role_resources(self, role: str) -> RoleResources:
        """Return what each actor of a role gets. An evaluator scores held-out samples and is as large as a reward actor."""
        if role == "evaluator":
            return self.placement.reward.model_copy(update={"num_actors": 1})
        return getattr(self.placement, role)

    @property
    def uses_gpus(self) -> bool:
        """True if any role of the run is given a GPU, or a part of one."""
        return any(self.role_resources(role).num_gpus > 0 for phase in self.phases for role in phase)
