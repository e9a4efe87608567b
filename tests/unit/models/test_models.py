"""Models: every per-token and per-row result equals the plain forward pass of transformers on one unpadded row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from raylign.errors import UserError
from raylign.models.description import context_length, load_tokenizer, stop_tokens
from raylign.models.forward import completion_hidden, completion_logits, completion_values, sequence_scores
from raylign.models.infer import batch_logprobs, batch_values
from raylign.models.load import (
    export_weights,
    load_causal,
    load_critic,
    load_reward_model,
    read_weights,
    save_model,
)
from tests.unit.tiny import EOS, VOCAB, model_config, plain_logprobs, rows_of, save_tiny, tiny_tokenizer

KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2_tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    # Caps low enough to bend every logit.
    "gemma2_softcapped": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0, "head_dim": 8, "query_pre_attn_scalar": 8},
    ),
    "granite_scaled": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 3.0}),
    "cohere_scaled": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.25}),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {name: save_tiny(root / name, *kind[:2], **kind[2]) for name, kind in KINDS.items()}
    made["reward"] = save_tiny(root / "reward", LlamaForSequenceClassification, LlamaConfig, num_labels=1)
    made["critic"] = save_tiny(root / "critic", LlamaForSequenceClassification, LlamaConfig, num_labels=1)
    return made


def padded(rows: list[np.ndarray], masks: list[np.ndarray], fill: int = EOS, extra: int = 3):
    """tokens [N, L], lengths [N], completion_mask [N, L]; `extra` columns that no row reaches."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    tokens = np.full((len(rows), lengths.max() + extra), fill, dtype=np.int32)
    mask = np.zeros(tokens.shape, dtype=np.bool_)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, masks[i]
    return tokens, lengths, mask


# ---------------------------------------------------------------- forward


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_logprobs_are_those_of_the_full_forward_on_one_row(folders, kind, temperature):
    rows, masks = rows_of(7, seed=3)
    model = load_causal(model_config(folders[kind]))
    plain = AutoModelForCausalLM.from_pretrained(folders[kind], dtype=torch.float32).eval()
    expected = np.zeros(padded(rows, masks)[0].shape, dtype=np.float32)
    with torch.no_grad():
        for i, row in enumerate(rows):
            expected[i, : len(row)] = plain_logprobs(plain, row, temperature).numpy() * masks[i]
    assert np.abs(expected).max() > 1  # the rows are not trivially likely

    for fill in (0, EOS):
        tokens, lengths, mask = padded(rows, masks, fill)
        for max_tokens in (1, 40, 10_000):
            found = batch_logprobs(
                model,
                tokens,
                lengths,
                mask,
                temperature=temperature,
                max_tokens=max_tokens,
                compute_dtype=torch.float32,
            )
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
            assert (found[~mask] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_completion_logits_are_those_of_the_full_forward(folders, kind):
    rows, masks = rows_of(5, seed=4)
    tokens, _, mask = padded(rows, masks)
    model = load_causal(model_config(folders[kind]))
    with torch.no_grad():
        found = completion_logits(model, torch.from_numpy(tokens).long(), torch.from_numpy(mask))
        expected = torch.cat(
            [
                # The logits *before* a token predict it.
                model(input_ids=torch.from_numpy(row)[None].long()).logits[0, np.flatnonzero(row_mask) - 1]
                for row, row_mask in zip(rows, masks, strict=True)
            ]
        )
    assert found.shape == (int(mask.sum()), VOCAB)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_softcapping_and_scaling_matter_in_these_models(folders):
    """Negative control: the head alone is not the model's logits."""
    rows, masks = rows_of(5, seed=4)
    tokens, _, mask = padded(rows, masks)
    for kind in ("gemma2_softcapped", "granite_scaled", "cohere_scaled"):
        model = load_causal(model_config(folders[kind]))
        head = model.get_output_embeddings()
        assert head is not None
        with torch.no_grad():
            inputs = torch.from_numpy(tokens).long(), torch.from_numpy(mask)
            bare = head(completion_hidden(model, *inputs))
            assert (bare - completion_logits(model, *inputs)).abs().max() > 0.1


def test_a_mask_shifted_by_one_gives_other_logprobs(folders):
    rows, masks = rows_of(5, seed=5, prompt=(3, 6))
    tokens, lengths, mask = padded(rows, masks)
    model = load_causal(model_config(folders["llama"]))
    options = {"temperature": 1.0, "max_tokens": 1000, "compute_dtype": torch.float32}
    right = batch_logprobs(model, tokens, lengths, mask, **options)
    shifted = batch_logprobs(model, tokens, lengths, np.roll(mask, -1, axis=1), **options)
    assert np.abs(right.sum(1) - shifted.sum(1)).min() > 1e-2


def test_a_row_without_completion_tokens_gives_zeros_beside_others(folders):
    rows, masks = rows_of(4, seed=6)
    masks[2][:] = False
    tokens, lengths, mask = padded(rows, masks)
    model = load_causal(model_config(folders["llama"]))
    found = batch_logprobs(
        model, tokens, lengths, mask, temperature=1.0, max_tokens=1, compute_dtype=torch.float32
    )  # every row alone
    assert (found[2] == 0).all()
    assert (found[mask] < 0).all()


def test_inference_leaves_the_model_in_the_mode_it_was_in(folders):
    rows, masks = rows_of(2, seed=6)
    model = load_causal(model_config(folders["llama"]))
    for learning in (True, False):
        model.train(learning)
        batch_logprobs(model, *padded(rows, masks), temperature=1.0, max_tokens=1000, compute_dtype=torch.float32)
        assert model.training is learning


def test_bfloat16_compute_is_near_and_is_not_float32(folders):
    rows, masks = rows_of(4, seed=7)
    model = load_causal(model_config(folders["llama"]))
    full, half = (
        batch_logprobs(model, *padded(rows, masks), temperature=1.0, max_tokens=1000, compute_dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert 0 < np.abs(full - half).max() < 0.5


def test_values_are_those_of_the_state_before_the_token(folders):
    rows, masks = rows_of(7, seed=8)
    tokens, lengths, mask = padded(rows, masks)
    model = load_critic(model_config(folders["critic"]))
    plain = AutoModelForSequenceClassification.from_pretrained(folders["critic"], dtype=torch.float32).eval()
    expected = np.zeros(tokens.shape, dtype=np.float32)
    with torch.no_grad():
        for i, row in enumerate(rows):
            hidden = plain.base_model(input_ids=torch.from_numpy(row)[None].long()).last_hidden_state
            values = plain.score(hidden)[0, :, 0].numpy()
            expected[i, 1 : len(row)] = values[:-1]
    expected *= mask
    assert np.abs(expected).max() > 0.1
    for max_tokens in (1, 10_000):
        found = batch_values(model, tokens, lengths, mask, max_tokens=max_tokens, compute_dtype=torch.float32)
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_sequence_scores_are_those_of_the_classification_forward(folders):
    rows, masks = rows_of(7, seed=9)
    rows = [np.append(row[:-1], 5) if i % 2 else np.append(row, EOS) for i, row in enumerate(rows)]
    masks = [np.ones(len(row), dtype=bool) for row in rows]
    tokens, lengths, _ = padded(rows, masks)
    model = load_reward_model(model_config(folders["reward"]))
    plain = AutoModelForSequenceClassification.from_pretrained(folders["reward"], dtype=torch.float32).eval()
    plain.config.pad_token_id = None  # transformers would take an eos at the end of a row for padding
    with torch.no_grad():
        expected = torch.cat([plain(input_ids=torch.from_numpy(row)[None].long()).logits[0] for row in rows])
        found = sequence_scores(model, torch.from_numpy(tokens).long(), torch.from_numpy(lengths))
        one_earlier = sequence_scores(model, torch.from_numpy(tokens).long(), torch.from_numpy(lengths) - 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (one_earlier - found).abs().min() > 1e-4  # negative control


def test_heads_compute_in_the_precision_of_their_weights_under_autocast(folders):
    rows, masks = rows_of(3, seed=10)
    tokens, lengths, mask = padded(rows, masks)
    inputs = torch.from_numpy(tokens).long()
    reward, critic = load_reward_model(model_config(folders["reward"])), load_critic(model_config(folders["critic"]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = sequence_scores(reward, inputs, torch.from_numpy(lengths))
        values = completion_values(critic, inputs, torch.from_numpy(mask))
    for result in (scores, values):
        assert result.dtype == torch.float32
        assert (result.to(torch.bfloat16).float() != result).any()  # more digits than bfloat16 holds


# ---------------------------------------------------------------- loading


def test_a_new_critic_values_everything_at_zero_and_a_saved_one_is_kept(folders, tmp_path):
    critic = load_critic(model_config(folders["llama"]))
    rows, masks = rows_of(3, seed=11)
    assert not batch_values(critic, *padded(rows, masks), max_tokens=1000, compute_dtype=torch.float32).any()
    with torch.no_grad():
        critic.score.weight.fill_(0.25)  # pyright: ignore
    save_model(critic, tiny_tokenizer(), tmp_path / "critic")
    again = load_critic(model_config(tmp_path / "critic"))
    assert again.state_dict().keys() == critic.state_dict().keys()
    for name, tensor in critic.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_critic_that_starts_from_a_reward_model_takes_its_head(folders):
    """As in InstructGPT: the critic begins as the reward model, read at every token."""
    critic, reward = (load(model_config(folders["reward"])) for load in (load_critic, load_reward_model))
    assert critic.get_parameter("score.weight").any()
    assert torch.equal(critic.get_parameter("score.weight"), reward.get_parameter("score.weight"))


def test_the_head_of_a_new_reward_model_follows_from_the_seed(folders):
    config = model_config(folders["llama"])
    torch.manual_seed(123)
    one = load_reward_model(config, seed=7).get_parameter("score.weight")
    torch.manual_seed(456)
    same, other = (load_reward_model(config, seed=s).get_parameter("score.weight") for s in (7, 8))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.std().item() == pytest.approx((1 / 33) ** 0.5, rel=0.4)  # 32 draws


def test_the_head_of_a_saved_reward_model_is_kept(folders):
    saved = AutoModelForSequenceClassification.from_pretrained(folders["reward"], dtype=torch.float32)
    for seed in (0, 1):
        loaded = load_reward_model(model_config(folders["reward"]), seed=seed)
        assert torch.equal(loaded.get_parameter("score.weight"), saved.get_parameter("score.weight"))


def test_save_model_writes_a_folder_that_transformers_loads_with_equal_logits(folders, tmp_path):
    for kind in ("llama", "qwen2_tied"):
        model = load_causal(model_config(folders[kind]))
        with torch.no_grad():
            model.get_input_embeddings().weight.add_(0.1)  # pyright: ignore
        save_model(model, load_tokenizer(model_config(folders[kind])), tmp_path / kind)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / kind, dtype=torch.float32)
        ids = torch.tensor([[4, 9, EOS, 33]])
        with torch.no_grad():
            assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
        tokenizer = load_tokenizer(model_config(tmp_path / kind))
        assert tokenizer("w4 w9 <eos>")["input_ids"] == [4, 9, EOS]


@pytest.mark.parametrize(
    ("kind", "config", "rates"),
    [
        (LlamaForCausalLM, LlamaConfig, {"attention_dropout": 0.5}),
        (OPTForCausalLM, OPTConfig, {"dropout": 0.5, "word_embed_proj_dim": 32}),  # a number, not a nn.Dropout
        (GPT2LMHeadModel, GPT2Config, {"resid_pdrop": 0.5}),  # a nn.Dropout
    ],
)
def test_dropout_is_off_unless_asked_for(tmp_path, kind, config, rates):
    folder = save_tiny(tmp_path / "dropout", kind, config, **rates)
    ids = torch.arange(2, 20)[None]
    for options, is_random in (({}, False), ({"gradient_checkpointing": True}, False), ({"dropout": True}, True)):
        model = load_causal(model_config(folder, **options))
        with torch.no_grad():
            one, two = model(input_ids=ids).logits, model(input_ids=ids).logits
        assert torch.equal(one, two) is not is_random, options


def test_weights_dtype_is_that_of_the_master_weights(folders):
    model = load_causal(model_config(folders["llama"], weights_dtype="bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("load", [load_causal, load_critic, load_reward_model, load_tokenizer, context_length])
def test_a_missing_folder_is_one_line_for_the_user(load):
    with pytest.raises(UserError) as caught:
        load(model_config("/no/such/model"))
    message = str(caught.value)
    assert "/no/such/model" in message
    assert message.startswith("model.")
    assert "\n" not in message


def test_a_folder_without_a_model_is_one_line_for_the_user(tmp_path):
    with pytest.raises(UserError) as caught:
        load_causal(model_config(tmp_path))
    assert str(caught.value).startswith("model.path: cannot load")
    assert "\n" not in str(caught.value)


def test_context_length_and_stop_tokens(folders, tmp_path):
    assert context_length(model_config(folders["llama"])) == 64
    folder = save_tiny(tmp_path / "many_eos", LlamaForCausalLM, LlamaConfig, eos_token_id=[7, 3])
    config = model_config(folder)
    assert stop_tokens(config, load_tokenizer(config)) == (EOS, 3, 7)


# ---------------------------------------------------------------- weights that travel


@pytest.mark.parametrize(("kind", "is_tied"), [("llama", False), ("qwen2_tied", True)])
def test_export_weights_by_hugging_face_name_with_tied_weights_once(folders, kind, is_tied):
    model = load_causal(model_config(folders[kind]))
    weights = export_weights(model, torch.float32)
    assert ("lm_head.weight" in weights) is not is_tied
    assert weights.keys() | {"lm_head.weight"} == model.state_dict().keys() | {"lm_head.weight"}
    for name, array in weights.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, model.state_dict()[name].numpy())


def test_exported_weights_do_not_change_with_the_model(folders):
    model = load_causal(model_config(folders["llama"]))
    weights = export_weights(model, torch.float32)
    before = {name: array.copy() for name, array in weights.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    for name, array in weights.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("kind", ["llama", "qwen2_tied"])
def test_bfloat16_weights_travel_as_uint16_and_come_back(folders, kind):
    model = load_causal(model_config(folders[kind]))
    weights = export_weights(model, torch.bfloat16)
    for name, array in weights.items():
        assert array.dtype == np.uint16
        back = torch.from_numpy(array).view(torch.bfloat16)
        assert torch.equal(back, model.state_dict()[name].to(torch.bfloat16)), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "qwen2_tied"])
def test_read_weights_of_a_folder_are_the_exported_ones(folders, kind, dtype):
    exported = export_weights(load_causal(model_config(folders[kind])), getattr(torch, dtype))
    read = read_weights(str(folders[kind]), dtype)
    assert read.keys() == exported.keys()
    for name in read:
        assert read[name].dtype == exported[name].dtype
        np.testing.assert_array_equal(read[name], exported[name])
