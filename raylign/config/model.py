"""Settings of models, LoRA adapters and optimizers."""

from typing import Literal

from pydantic import Field

from raylign.config.base import Config


class LoRAConfig(Config):
    """Low-rank adapters over frozen weights (Hu et al. 2021): only the adapters are trained, sent to engines and committed."""

    rank: int = Field(default=16, ge=1)
    """Rank of the low-rank update of each matrix."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the update: it is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the adapter's input during training."""
    targets: tuple[str, ...] = ("all-linear",)
    """Names of the linear layers that get an adapter; all-linear is every linear layer except the head."""
    base_quantization: Literal["none", "nf4", "int8"] = "none"
    """Precision of the frozen weights; nf4 is QLoRA (Dettmers et al. 2023). nf4 and int8 need bitsandbytes."""


class ModelConfig(Config):
    """A model: where it is, and how it is loaded and trained."""

    path: str
    """Hugging Face folder or hub name of the model; `task:model` for the embedded task's untrained model; `run:other.yaml`
    for the model that another run makes (that run is executed first if it has not finished yet)."""
    tokenizer: str | None = None
    """Hugging Face folder or hub name of the tokenizer, if it is not with the model."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    weights_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the master weights that the optimizer updates."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the forward and backward pass (autocast over the master weights)."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora: LoRAConfig | None = None
    """Train low-rank adapters and keep the model's own weights frozen."""
    dropout: bool = False
    """Keep the model's own dropout during training. Off by default, because it makes the policy ratio noisy."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Use it only for sources that you trust."""


class OptimizerConfig(Config):
    """Settings of AdamW and its learning-rate schedule."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW moment decay rates."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW epsilon."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay, on matrices only (not on biases and norms)."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Largest global norm of the gradients, which are scaled down to it."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of all optimizer steps during which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up; linear and cosine end at 0."""
