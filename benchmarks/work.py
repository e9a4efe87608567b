"""The shared work: one folder with the model, tokenizer, data and settings that every side of a benchmark reads.

    work/
      settings.json   hyperparameters and sizes; the same file for raylign, TRL and the plain loops
      tokenizer/      word-level tokenizer: one word is one token
      policy/         Qwen2-shaped causal model of about 7M parameters
      reward/         the same shape with one output, for PPO
      pairs.jsonl     prompt, chosen, rejected
      prompts.jsonl   prompt

Everything follows from the seed, so two machines that generate the folder measure the same work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

SETTINGS: dict[str, Any] = {
    "seed": 0,
    "optimizer": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0},
    "dpo": {
        "num_pairs": 128,
        "batch_size": 8,
        "beta": 0.1,
        "learning_rate": 5e-5,
        "prompt_tokens": [32, 128],
        "completion_tokens": [64, 256],
    },
    "ppo": {
        "steps": 40,
        "prompts_per_step": 64,
        "minibatches": 4,
        "prompt_tokens": 32,
        "completion_tokens": 64,
        "learning_rate": 5e-5,  # for policy and critic: TRL updates both with one optimizer
        "kl_coef": 0.05,
        "clip_range": 0.2,
        "value_clip_range": 0.2,
        "gamma": 1.0,
        "gae_lambda": 0.95,
    },
}
VOCABULARY = 4096
SPECIAL = ["<pad>", "<eos>", "<unk>"]


def settings(num_pairs: int | None = None, ppo_steps: int | None = None) -> dict[str, Any]:
    """Return the settings of a benchmark; smaller sizes only serve to check that everything runs."""
    chosen = json.loads(json.dumps(SETTINGS))
    chosen["dpo"]["num_pairs"] = num_pairs or chosen["dpo"]["num_pairs"]
    chosen["ppo"]["steps"] = ppo_steps or chosen["ppo"]["steps"]
    return chosen


def make(folder: Path, wanted: dict[str, Any]) -> None:
    """Write the work into `folder`, unless it already holds exactly this work."""
    stamp = folder / "settings.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = _words()
    _write_models(folder, wanted["seed"], words)
    rng = random.Random(wanted["seed"])
    _write_rows(folder / "pairs.jsonl", _pairs(wanted["dpo"], words, rng))
    _write_rows(folder / "prompts.jsonl", _prompts(wanted["ppo"], words, rng))
    stamp.write_text(json.dumps(wanted, indent=2))  # last, so that an interrupted folder is regenerated


def _words() -> list[str]:
    """Return as many made-up two-syllable words as fit in the vocabulary beside the special tokens."""
    syllables = [c + v for c in "bdfghjklmnprstvz" for v in "aeio"]
    made = (first + second for first, second in itertools.product(syllables, syllables))
    return list(itertools.islice(made, VOCABULARY - len(SPECIAL)))


def _write_models(folder: Path, seed: int, words: list[str]) -> None:
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

    ids = {word: i for i, word in enumerate(SPECIAL + words)}
    raw = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    raw.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=512
    )
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,  # head dim 64
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "pad_token_id": ids["<pad>"],
        "eos_token_id": ids["<eos>"],
        "bos_token_id": None,
    }
    torch.manual_seed(seed)
    policy = Qwen2ForCausalLM(Qwen2Config(**shape))
    policy.save_pretrained(folder / "policy")
    reward = Qwen2ForSequenceClassification(Qwen2Config(**shape, id2label={0: "reward"}, label2id={"reward": 0}))
    reward.save_pretrained(folder / "reward")
    # Beside a Qwen2 config, AutoTokenizer replaces this pre-tokeniser by Qwen2's own (transformers 5). So the tokenizer has
    # its own folder, which all sides read; the copy only shows that policy and reward model share a vocabulary.
    tokenizer.save_pretrained(folder / "tokenizer")
    tokenizer.save_pretrained(folder / "reward")


def _pairs(sizes: dict[str, Any], words: list[str], rng: random.Random) -> list[dict[str, str]]:
    # Chosen completions prefer the first half of the words, rejected ones the second half: with something to learn
    # the loss moves, and a side that computes it wrongly is noticed.
    half = len(words) // 2

    def completion(liked: list[str], other: list[str]) -> str:
        length = rng.randint(*sizes["completion_tokens"]) - 1  # eos is the last token
        return "".join(" " + rng.choice(liked if rng.random() < 0.6 else other) for _ in range(length))

    return [
        {
            "prompt": " ".join(rng.choices(words, k=rng.randint(*sizes["prompt_tokens"]))),
            "chosen": completion(words[:half], words[half:]),
            "rejected": completion(words[half:], words[:half]),
        }
        for _ in range(sizes["num_pairs"])
    ]


def _prompts(sizes: dict[str, Any], words: list[str], rng: random.Random) -> list[dict[str, str]]:
    count = sizes["steps"] * sizes["prompts_per_step"]
    return [{"prompt": " ".join(rng.choices(words, k=sizes["prompt_tokens"]))} for _ in range(count)]


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Generate the shared work of the benchmarks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-pairs", type=int)
    parser.add_argument("--ppo-steps", type=int)
    arguments = parser.parse_args()
    make(arguments.folder, settings(arguments.num_pairs, arguments.ppo_steps))
