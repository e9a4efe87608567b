"""Runs whose measured memory is compared with the plan's: models large enough that libraries are not most of the memory,
random weights, data of known lengths, few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from raylign.config import RunConfig

SMALL = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}  # 58 million parameters
LARGE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 14}  # 149 million
WORDS = 16_000


def make_model(folder: Path, **shape: int) -> Path:
    """Write a Qwen2-shaped model with random weights and a tokenizer of one token a word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    if folder.exists():
        return folder
    words = {f"w{i}": i for i in range(2, WORDS)} | {"<unk>": 0, "<eos>": 1}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = Qwen2Config(
        **{
            "vocab_size": WORDS,
            "num_attention_heads": shape["hidden_size"] // 64,
            "num_key_value_heads": shape["hidden_size"] // 128,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "eos_token_id": 1,
            "pad_token_id": 1,
            "bos_token_id": None,
            **shape,
        }
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(file: Path, num_rows: int, prompt: int, completion: int) -> Path:
    """Write rows with the columns of all algorithms, of exactly these lengths in tokens."""
    rng = np.random.default_rng(0)

    def words(n: int) -> str:
        return " " + " ".join(f"w{i}" for i in rng.integers(2, WORDS, n))

    rows: list[dict[str, Any]] = [
        {"prompt": words(prompt), "chosen": words(completion), "rejected": words(completion)} for _ in range(num_rows)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_reward(file: Path) -> Path:
    file.write_text("def score(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    return file


def cases(folder: Path) -> dict[str, RunConfig]:
    """Return the runs by name, and make in `folder` what they read."""
    folder.mkdir(parents=True, exist_ok=True)
    small, large = make_model(folder / "small", **SMALL), make_model(folder / "large", **LARGE)
    prompts = write_rows(folder / "prompts.jsonl", 64, 64, 1)
    pairs = write_rows(folder / "pairs.jsonl", 16, 64, 192)
    long = write_rows(folder / "long.jsonl", 16, 24, 1000)
    reward = {"type": "function", "function": f"{write_reward(folder / 'reward.py')}:score", "allow_code": True}
    online = {
        "data": {"path": str(prompts)},
        "reward": reward,
        "rollout": {"sampling": {"max_tokens": 64}, "kv_cache_gib": 0.25, "max_model_len": 128},
        "learner": {"micro_batch_tokens": 4096},
    }
    trees: dict[str, dict[str, Any]] = {
        # fp32, a critic, several micro-batches in each of two steps
        "ppo": {
            **online,
            "model": {"path": str(small), "compute_dtype": "float32"},
            "algorithm": {"name": "ppo", "steps": 2, "prompts_per_step": 64, "samples_per_prompt": 1},
        },
        # bf16 products, groups, a KL in the loss
        "grpo": {
            **online,
            "model": {"path": str(small), "compute_dtype": "bfloat16"},
            "algorithm": {"name": "grpo", "steps": 2, "prompts_per_step": 16, "samples_per_prompt": 4},
        },
        # a larger model, pairs
        "dpo": {
            "model": {"path": str(large), "compute_dtype": "float32"},
            "data": {"path": str(pairs)},
            "algorithm": {"name": "dpo", "batch_size": 8, "max_steps": 2},
        },
        # long rows, recomputed activations
        "sft": {
            "model": {"path": str(small), "compute_dtype": "bfloat16", "gradient_checkpointing": True},
            "data": {"path": str(long), "columns": {"completion": "chosen"}},
            "learner": {"micro_batch_tokens": 4096},
            "algorithm": {"name": "sft", "batch_size": 8, "max_steps": 2},
        },
        # no logits, long rows
        "reward_model": {
            "model": {"path": str(small), "compute_dtype": "bfloat16"},
            "data": {"path": str(long)},
            "learner": {"micro_batch_tokens": 4096},
            "algorithm": {"name": "reward_model", "batch_size": 4, "max_steps": 2},
        },
    }
    return {
        name: RunConfig.model_validate({"name": name, "output_dir": str(folder / "runs"), **tree})
        for name, tree in trees.items()
    }
