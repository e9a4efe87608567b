"""Generation with vLLM inside this process. No other file imports vLLM."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from raylign.config import LoRAConfig, RolloutConfig, SamplingConfig
from raylign.errors import UserError, folded
from raylign.models.load import to_numpy
from raylign.models.lora import adapter_files, adapter_parameters, add_adapter, quantization
from raylign.models.merge import merged_state
from raylign.rollout.engine import Completion, Dtype, context_length
from raylign.rollout.weights import as_tensor, check_adapter, check_weights, tied_names

SHARED_MEMORY = Path("/dev/shm")
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0  # vLLM silently raises lower temperatures and refuses higher ones


class VLLMEngine:
    """A `RolloutEngine` over the synchronous `vllm.LLM`, whose engine core runs in this process.

    If `rollout` splits the model, each rank is a child process on its own GPU; the children end with this process.

    Create it in a process of its own: on a CPU vLLM fixes the number of torch threads (from OMP_NUM_THREADS) and takes
    the process's default torch.distributed group.
    """

    def __init__(
        self,
        model_path: str,
        rollout: RolloutConfig,
        dtype: Dtype,
        trust_remote_code: bool = False,
        lora: LoRAConfig | None = None,
        sleeps: bool = False,
    ) -> None:
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
        context_length(config, rollout)  # fails with one line, where vLLM's own error has ten
        on_cpu = not torch.accelerator.is_available()
        self._sleeps = sleeps and not on_cpu  # on a CPU there is no GPU memory to free
        if on_cpu and rollout.pipeline_parallel > 1:
            raise UserError("rollout.pipeline_parallel: vLLM's CPU build samples on the first stage only; set 1")
        self._is_split = rollout.tensor_parallel * rollout.pipeline_parallel > 1
        enforce_eager = on_cpu if rollout.enforce_eager is None else rollout.enforce_eager
        _prepare_process(compile_nothing=on_cpu and enforce_eager)
        try:
            self._llm = _quiet_llm(
                model_path,
                lora,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                skip_tokenizer_init=True,
                generation_config="vllm",  # not the checkpoint's own top-k or repetition penalty
                max_model_len=rollout.max_model_len,
                enforce_eager=enforce_eager,
                # vLLM rewinds the random generator of a prompt that it prefills in parts, which only a GPU's generator
                # supports: on a CPU it fails with "CPU Generator does not use offset". So prefill whole prompts there.
                enable_chunked_prefill=False if on_cpu else None,
                enable_sleep_mode=self._sleeps,
                gpu_memory_utilization=rollout.gpu_memory_utilization,
                kv_cache_memory_bytes=int(rollout.kv_cache_gib * 2**30) if on_cpu else None,
                logprobs_mode="processed_logprobs",  # after temperature, top-k and top-p
                tensor_parallel_size=rollout.tensor_parallel,
                pipeline_parallel_size=rollout.pipeline_parallel,
                # Set, because inside a placement group vLLM would choose Ray, whose ranks would need bundles.
                distributed_executor_backend="mp" if self._is_split else "uni",
                worker_extension_cls=f"{WeightLoader.__module__}.{WeightLoader.__qualname__}",
                seed=0,  # every request has its own seed
                use_tqdm_on_load=False,
            )
        except ValueError as error:
            problem = folded(error)
            if "does not support LoRA" in problem:
                raise UserError(
                    f"model.lora: vLLM cannot serve adapters of this model ({problem}); set rollout.engine: transformers"
                ) from error
            if "KV cache" not in problem and "cache blocks" not in problem:
                raise
            raise UserError(
                "rollout.max_model_len: the KV cache does not hold one sequence of this length; lower it, or raise "
                f"rollout.kv_cache_gib (CPU) or rollout.gpu_memory_utilization (GPU). vLLM says: {problem}"
            ) from error
        self.max_model_len: int | None = self._llm.llm_engine.model_config.max_model_len
        with torch.device("meta"):  # names and shapes of the parameters, without their memory
            self._skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        self._has_adapter = lora is not None
        if lora:
            self._start_adapter(model_path, lora, dtype, trust_remote_code)

    def generate(
        self,
        prompts: Sequence[NDArray[np.int32]],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        stop_token_ids: tuple[int, ...],
    ) -> list[Completion]:
        from vllm import SamplingParams, TokensPrompt

        if not MIN_TEMPERATURE <= sampling.temperature <= MAX_TEMPERATURE:
            raise UserError(
                f"rollout.sampling.temperature: vLLM does not sample at {sampling.temperature}; set {MIN_TEMPERATURE} "
                f"to {MAX_TEMPERATURE}, or rollout.engine: transformers"
            )
        # Cached keys and values belong to the weights that computed them, and would make the rounding of this call
        # depend on earlier calls. Samples of one prompt still share its prefix.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM could not reset its prefix cache, so it may hold keys of older weights")
        params = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                seed=seed,
                stop_token_ids=list(stop_token_ids),
                ignore_eos=True,  # the model's own eos; the run's are in stop_token_ids
                logprobs=0,  # of the sampled token only
                flat_logprobs=True,
                detokenize=False,
            )
            for seed in seeds
        ]
        requests = [TokensPrompt(prompt_token_ids=prompt.tolist()) for prompt in prompts]
        adapter = _lora_request("loaded before") if self._has_adapter else None
        outputs = self._llm.generate(requests, params, lora_request=adapter, use_tqdm=False)
        return [_completion(output.outputs[0]) for output in outputs]

    def load_weights(self, weights: Iterable[tuple[str, NDArray[Any]]]) -> None:
        arrays = dict(weights)
        # Checked before vLLM gets them: it only logs missing weights, and an error would leave it half loaded.
        if self._has_adapter:
            check_adapter(adapter_parameters(self._skeleton), arrays)
            self._load_adapter({name: as_tensor(array) for name, array in arrays.items()})
        else:
            check_weights(self._skeleton, arrays)
            self._load_model(arrays)

    def _load_model(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        tied = tied_names(self._skeleton)

        def tensors():
            for name, array in arrays.items():
                tensor = as_tensor(array)
                yield name, tensor
                # On a CPU vLLM keeps a packed copy of a tied head, refreshed only if the head is sent by its own name.
                for other in tied.get(name, ()):
                    if other not in arrays:
                        yield other, tensor

        if not self._is_split:
            self._llm.collective_rpc("load_policy", args=(tensors(),))
            return
        with _shared_folder(sum(array.nbytes for array in arrays.values())) as folder:  # ranks map it without copying
            file = str(Path(folder, "policy.safetensors"))
            save_file({name: tensor.contiguous() for name, tensor in tensors() if name in arrays}, file)
            self._llm.collective_rpc("load_policy_file", args=(file, tied))

    def _start_adapter(self, model_path: str, lora: LoRAConfig, dtype: Dtype, trust_remote_code: bool) -> None:
        """Load an adapter of zeros, so that layers that vLLM cannot adapt are refused before training begins."""
        if lora.base_quantization != "none":
            # The values of the learner's quantised weights, so that engine and learner have the same base. Quantised
            # from fp32, which represents a checkpoint of any precision.
            quantized = AutoModelForCausalLM.from_pretrained(
                model_path,
                dtype=torch.float32,
                trust_remote_code=trust_remote_code,
                **quantization(lora, torch.float32),
            )
            precision = getattr(torch, dtype)
            self._load_model({name: to_numpy(t.to(precision)) for name, t in merged_state(quantized).items()})
        add_adapter(self._skeleton, lora)
        try:
            self._load_adapter({name: torch.zeros(p.shape) for name, p in adapter_parameters(self._skeleton).items()})
        except ValueError as error:
            problem = folded(error)
            raise UserError(
                f"model.lora.targets: vLLM cannot adapt all of these layers; name others, or set rollout.engine: "
                f"transformers. vLLM says: {problem}"
            ) from error

    def _load_adapter(self, state: dict[str, torch.Tensor]) -> None:
        self._llm.collective_rpc("load_adapter", args=(adapter_files(self._skeleton, state),))

    def sleep(self) -> None:
        if self._sleeps:
            self._llm.sleep(level=1)  # keeps the weights, in the host's memory

    def wake(self) -> None:
        if self._sleeps:
            self._llm.wake_up()

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm


class WeightLoader:
    """Extension of vLLM's worker (`worker_extension_cls`), which has access to the model runner."""

    model_runner: Any

    def load_policy(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.model_runner.reload_weights(weights_iterator=weights)

    def load_policy_file(self, file: str, tied: Mapping[str, Sequence[str]]) -> None:
        """Load the policy from a file, for an engine whose ranks are separate processes."""
        with safe_open(file, framework="pt") as weights:
            names = [(name, other) for name in weights.keys() for other in (name, *tied.get(name, ()))]  # noqa: SIM118
            self.load_policy((as_name, weights.get_tensor(name)) for name, as_name in names)

    def load_adapter(self, files: Mapping[str, bytes]) -> None:
        """Replace the adapter by the files of a peft folder; vLLM reads it from a path, during this call only."""
        with _shared_folder(sum(map(len, files.values()))) as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            self.model_runner.add_lora(_lora_request(folder, load_inplace=True))


def _shared_folder(size: int) -> TemporaryDirectory[str]:
    """Create a temporary folder for files of `size` bytes: in shared memory, if there is room."""
    shared = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size
    return TemporaryDirectory(prefix="raylign-weights-", dir=SHARED_MEMORY if shared else None)


def _lora_request(path: str, load_inplace: bool = False) -> Any:
    """Return the request for the only adapter; vLLM reads its folder if `load_inplace`, else uses what it has read."""
    from vllm.lora.request import LoRARequest

    return LoRARequest("policy", 1, path, load_inplace=load_inplace)


def _slot_rank(lora: LoRAConfig) -> int:
    """Return the smallest rank that vLLM has kernels for and that is large enough for the adapter."""
    from vllm.config.lora import MaxLoRARanks

    ranks = get_args(MaxLoRARanks)
    if lora.rank > max(ranks):
        raise UserError(
            f"model.lora.rank: vLLM serves adapters up to rank {max(ranks)}; lower {lora.rank}, "
            "or set rollout.engine: transformers"
        )
    return min(rank for rank in ranks if rank >= lora.rank)


def _completion(output: Any) -> Completion:
    return Completion(
        token_ids=np.array(output.token_ids, dtype=np.int32),
        logprobs=np.array(output.logprobs.logprobs, dtype=np.float32),
        finished=output.finish_reason == "stop",
    )


def _quiet_llm(model_path: str, lora: LoRAConfig | None, **options: Any) -> Any:
    """Create `vllm.LLM`, with slots for the adapter, and without the deprecation warnings of its imports and start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        from vllm import LLM

        slots = {"enable_lora": True, "max_lora_rank": _slot_rank(lora)} if lora else {}
        return LLM(model_path, **slots, **options)


def _prepare_process(compile_nothing: bool) -> None:
    """Set the environment that vLLM reads when it is imported; variables that the user has set are kept."""
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights reach the model without a copy to another process
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # ranks on a CPU would each ask for a NUMA node
        "VLLM_HOST_IP": "127.0.0.1",  # one process: nothing listens to the network
    }
    if compile_nothing:
        # On a CPU the first call would spend 20 s compiling one small operation.
        defaults["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # vLLM logs before it has set up its own logging.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())
