"""Untrained models of the embedded tasks: small models of Llama's architecture, with one token for each word."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raylign.errors import ConfigError

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
HEAD_DIM = 32


def word_tokenizer(words: Iterable[str], max_positions: int):
    """Create a tokenizer with one token for each word; ids 0, 1, 2 are <pad>, <eos>, <unk>.

    Decoding joins words with spaces.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate([PAD, EOS, UNK, *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    )


def write_word_model(
    path: Path, tokenizer: Any, *, hidden_size: int, num_layers: int, num_heads: int, seed: int, **more: Any
) -> None:
    """Write a model with random weights drawn from `seed`, and its tokenizer.

    Args:
        more: further options of `LlamaConfig`.
    Raises:
        ConfigError: `hidden_size` is not a multiple of the heads' size.
    """
    if hidden_size % HEAD_DIM:
        raise ConfigError([f"task.hidden_size: {hidden_size} is not a multiple of {HEAD_DIM}; set a multiple"])
    # Imported here, so that importing the task does not import torch.
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = tokenizer.get_vocab()
    # Not Qwen2: for that model type AutoTokenizer returns a Qwen2Tokenizer and ignores the tokenizer of the folder.
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        head_dim=HEAD_DIM,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        pad_token_id=ids[PAD],
        eos_token_id=ids[EOS],
        bos_token_id=None,
        dtype="float32",
        **more,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
