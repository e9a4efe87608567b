"""Generation with Hugging Face `generate`, for machines without vLLM and as the baseline in tests of vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from raylign.config import LoRAConfig, RolloutConfig, SamplingConfig
from raylign.models.lora import adapter_parameters, add_adapter, keep_layout, quantization, set_adapter
from raylign.rollout.engine import Completion, Dtype, context_length
from raylign.rollout.weights import as_tensor, check_adapter, check_weights

# Limits of one `generate` call: keys and values of 65,536 tokens, and 2**26 logits (256 MiB in fp32) a step.
CHUNK_TOKENS = 65_536
CHUNK_LOGITS = 2**26


class TransformersEngine:
    """A `RolloutEngine` over an `AutoModelForCausalLM`, on the accelerator if there is one."""

    def __init__(
        self,
        model_path: str,
        rollout: RolloutConfig,
        dtype: Dtype,
        trust_remote_code: bool = False,
        lora: LoRAConfig | None = None,
        sleeps: bool = False,  # nothing to prepare
    ) -> None:
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
        self.max_model_len = context_length(config, rollout)
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self._device = accelerator or torch.device("cpu")
        # Any: the stubs of transformers declare neither `.to` nor `.generate` on the result.
        model: Any = AutoModelForCausalLM.from_pretrained(
            model_path,
            config=config,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            **quantization(lora, getattr(torch, dtype)),
        )
        if lora:
            if lora.base_quantization != "none":
                keep_layout(model)
            add_adapter(model, lora)
        self._has_adapter = lora is not None
        self._model = model.to(self._device).eval()
        # A checkpoint may set its own top-k or repetition penalty, which would silently bias the samples.
        self._model.generation_config = GenerationConfig()
        self._vocab_size: int = model.config.get_text_config().vocab_size

    def generate(
        self,
        prompts: Sequence[NDArray[np.int32]],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        stop_token_ids: tuple[int, ...],
    ) -> list[Completion]:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths need little padding
        done: dict[int, Completion] = {}
        while order:
            longest = len(prompts[order[-1]]) + sampling.max_tokens
            rows = max(1, min(CHUNK_TOKENS // longest, CHUNK_LOGITS // self._vocab_size))
            chunk, order = order[-rows:], order[:-rows]
            completions = self._generate_chunk(
                [prompts[i] for i in chunk], sampling, [seeds[i] for i in chunk], stop_token_ids
            )
            done.update(zip(chunk, completions, strict=True))
        return [done[i] for i in range(len(prompts))]

    def load_weights(self, weights: Iterable[tuple[str, NDArray[Any]]]) -> None:
        arrays = dict(weights)
        if self._has_adapter:
            check_adapter(adapter_parameters(self._model), arrays)
            set_adapter(self._model, {name: as_tensor(array) for name, array in arrays.items()}, "weights: the adapter")
            return
        check_weights(self._model, arrays)
        tensors = dict(self._model.named_parameters(remove_duplicate=False)) | dict(self._model.named_buffers())
        with torch.no_grad():
            for name, array in arrays.items():
                tensors[name].copy_(as_tensor(array))

    def sleep(self) -> None:
        self._model.to("cpu")

    def wake(self) -> None:
        self._model.to(self._device)

    def close(self) -> None:
        del self._model
        if self._device.type != "cpu":
            torch.accelerator.empty_cache()

    def _generate_chunk(
        self,
        prompts: list[NDArray[np.int32]],
        sampling: SamplingConfig,
        seeds: list[int],
        stop_token_ids: tuple[int, ...],
    ) -> list[Completion]:
        width = max(map(len, prompts))
        tokens = np.zeros((len(prompts), width), dtype=np.int64)  # [N, width], left-padded
        attention = np.zeros_like(tokens)
        for i, prompt in enumerate(prompts):
            tokens[i, width - len(prompt) :] = prompt
            attention[i, width - len(prompt) :] = 1

        sampler = SeededSampler(seeds, sampling.max_tokens, self._device)
        processors = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
        if sampling.top_k:
            processors.append(TopKLogitsWarper(min(sampling.top_k, self._vocab_size)))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        processors.append(sampler)
        with torch.inference_mode():
            output = self._model.generate(
                torch.from_numpy(tokens).to(self._device),
                attention_mask=torch.from_numpy(attention).to(self._device),
                logits_processor=processors,
                generation_config=GenerationConfig(
                    do_sample=False,  # the sampler leaves one token to choose from
                    max_new_tokens=sampling.max_tokens,
                    eos_token_id=list(stop_token_ids) or None,
                    pad_token_id=0,
                ),
            )
        generated = output[:, width:].cpu().numpy().astype(np.int32)  # [N, T]
        logprobs = sampler.logprobs()  # [N, >= T]
        # A row continues as padding after its first stop token, so tokens after it are meaningless.
        stops = np.isin(generated, np.array(stop_token_ids, dtype=np.int32))
        finished = np.any(stops, axis=1)
        lengths = np.where(finished, np.argmax(stops, axis=1) + 1, generated.shape[1])
        return [
            Completion(generated[i, :n].copy(), logprobs[i, :n].copy(), bool(finished[i]))
            for i, n in enumerate(lengths)
        ]


class SeededSampler(LogitsProcessor):
    """Logits processor that draws a token for each row from the row's own random stream and masks all others.

    Inverse transform sampling: with u uniform in [0, 1), the first token whose cumulative probability exceeds u.
    Each token takes one random number, whatever the size of the vocabulary. Sums are in fp64: in fp32 the unlikely
    tail of a vocabulary of 150,000 would be lost.
    """

    def __init__(self, seeds: Sequence[int], max_tokens: int, device: torch.device) -> None:
        uniforms = np.stack([np.random.default_rng(seed).random(max_tokens) for seed in seeds])
        self._uniforms = torch.from_numpy(uniforms).to(device)  # [N, max_tokens], fp64
        self._logprobs: list[torch.Tensor] = []  # of each step [N]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        step = len(self._logprobs)
        logprobs = scores.float().log_softmax(dim=-1)  # [N, V]
        cumulative = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
        target = self._uniforms[:, step, None] * cumulative[:, -1:]
        picked = torch.searchsorted(cumulative, target, right=True).clamp_(max=scores.shape[1] - 1)  # [N, 1]
        self._logprobs.append(logprobs.gather(1, picked).squeeze(1))
        return torch.full_like(scores, -torch.inf).scatter_(1, picked, 0.0)

    def logprobs(self) -> NDArray[np.float32]:
        """Return the logprob of every token drawn, in nats: [N, T]."""
        return torch.stack(self._logprobs, dim=1).cpu().numpy()
