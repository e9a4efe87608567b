"""The exact task: a world so small that every completion can be listed, with a reference model trained here.

The value of a policy is computed, not sampled (`raylign.tasks.exact_optimum`), so an algorithm's distance from the best
possible policy has no sampling noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylign.config import ExactTask
from raylign.tasks.exact_reward import EOS_WORD, task_prompts, task_rng, vocabulary
from raylign.tasks.files import TaskFiles, write_once, write_rows

NUM_ROWS = {"prompts": 1024, "eval_prompts": 256, "corpus": 4096}
"""Smallest number of rows of each file. A step samples rows, so a few prompts are repeated, all equally often."""

_HIDDEN_SIZE, _NUM_LAYERS, _NUM_HEADS = 64, 2, 2
_STEPS, _BATCH_SIZE, _LEARNING_RATE = 300, 64, 4e-3


def prepare(task: ExactTask, directory: Path) -> TaskFiles:
    """Write the data and model of the task into `directory`, as `raylign.tasks.prepare` does.

    `model` is the trained reference. Training and evaluation prompts are the same; the corpus is sampled from the
    source that the reference has learned, as {"prompt", "completion"}.
    """
    return write_once(directory, lambda files: _write(task, files))


def source(task: ExactTask) -> NDArray[np.float64]:
    """Return the transition probabilities of the Markov source: [previous token, token], rows sum to 1.

    The logits are standard normal, so a row is neither uniform nor almost certain. In the variant `eos` every word is
    the last with a probability between 0.1 and 0.3.
    """
    rng = task_rng(task, "source")
    weights = np.exp(rng.normal(size=(task.vocab_size, task.vocab_size)))
    if task.variant == "eos":
        weights[:, 0] = 0.0
        ends = rng.uniform(0.1, 0.3, size=task.vocab_size)
        weights *= (1 - ends)[:, None] / weights.sum(axis=1, keepdims=True)
        weights[:, 0] = ends
    return weights / weights.sum(axis=1, keepdims=True)


def sample_source(
    transitions: NDArray[np.float64], last: NDArray[np.integer], length: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Sample completions after prompts that end with `last` [N]: [N, length], meaningless after an end."""
    cumulative = transitions.cumsum(axis=1)
    cumulative[:, -1] = 1.0  # exactly, without the rounding error of the sum
    out = np.empty((len(last), length), dtype=np.int64)
    for t in range(length):
        last = (rng.random((len(last), 1)) >= cumulative[last]).sum(axis=1)
        out[:, t] = last
    return out


def make_tokenizer(task: ExactTask) -> Any:
    """Create a tokenizer with one token for each word of the task; decoding joins words with spaces.

    It has an eos only in the variant `eos`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary(task))}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": EOS_WORD, "pad_token": EOS_WORD} if task.variant == "eos" else {}
    return PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=False, **special)


def _write(task: ExactTask, files: TaskFiles) -> None:
    words = vocabulary(task)

    def text(tokens: Any) -> str:
        return " ".join(words[token] for token in tokens)

    prompts = task_prompts(task)
    for name in ("prompts", "eval_prompts"):
        repeats = -(-NUM_ROWS[name] // len(prompts))
        write_rows(files.resolve(name), ({"prompt": text(prompt)} for prompt in prompts * repeats))

    rng = task_rng(task, "corpus")
    picked = [prompts[i] for i in rng.integers(len(prompts), size=NUM_ROWS["corpus"])]
    completions = sample_source(source(task), np.array(picked)[:, -1], task.length, rng)
    pairs = zip(picked, (_until_end(task, completion) for completion in completions), strict=True)
    write_rows(files.resolve("corpus"), ({"prompt": text(p), "completion": f" {text(c)}"} for p, c in pairs if len(c)))
    _write_model(task, files.resolve("model"))


def _until_end(task: ExactTask, completion: NDArray[np.int64]) -> NDArray[np.int64]:
    ends = np.flatnonzero(completion == 0) if task.variant == "eos" else []
    return completion[: ends[0]] if len(ends) else completion


def _write_model(task: ExactTask, path: Path) -> None:
    # Imported here, so that importing the task does not import torch.
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    end = 0 if task.variant == "eos" else None
    # Learned positions: if only the last tokens are rewarded, the best policy must know its position, and a model with
    # rotary positions and no start token learns to count too slowly.
    config = GPT2Config(
        vocab_size=task.vocab_size,
        n_embd=_HIDDEN_SIZE,
        n_layer=_NUM_LAYERS,
        n_head=_NUM_HEADS,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        pad_token_id=end,
        eos_token_id=end,
        bos_token_id=None,
        dtype="float32",
    )
    num_threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        try:
            torch.set_num_threads(1)  # so that sums are taken in the same order on every machine
            model = GPT2LMHeadModel(config)
            _learn_source(task, model)
        finally:
            torch.set_num_threads(num_threads)
    model.save_pretrained(path)
    make_tokenizer(task).save_pretrained(path)


def _learn_source(task: ExactTask, model: Any) -> None:
    """Train by Adam on the cross-entropy of new sequences of the source, until it is close to the source's entropy."""
    import torch

    rng = task_rng(task, "training")
    transitions, prompts = source(task), np.array(task_prompts(task))  # [V, V], [P, prompt tokens]
    before = prompts.shape[1] - 1  # the prompt itself is not predicted
    optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    model.train()
    for _ in range(_STEPS):
        batch = prompts[rng.integers(len(prompts), size=_BATCH_SIZE)]
        completions = sample_source(transitions, batch[:, -1], task.length, rng)
        tokens = torch.from_numpy(np.concatenate([batch, completions], axis=1))
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[:, before:]  # [N, T, V]
        targets = tokens[:, before + 1 :]
        losses = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")  # [N, T]
        if task.variant == "eos":
            losses = losses * (tokens[:, before:-1] != 0).cumprod(dim=1)  # nothing follows the end
        optimizer.zero_grad(set_to_none=True)
        losses.mean().backward()
        optimizer.step()
        schedule.step()
    model.eval()
