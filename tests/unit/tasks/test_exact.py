"""The embedded exact task: its enumeration, its optimum, its reward, and the reference it hands out."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from raylign.config import ExactTask, RolloutConfig, SamplingConfig
from raylign.errors import RaylignError, UserError
from raylign.rollout.transformers_engine import TransformersEngine
from raylign.tasks import TaskFiles, prepare, score_function
from raylign.tasks.exact import source
from raylign.tasks.exact_optimum import Enumeration, evaluate, frontier, log_probabilities, optimum
from raylign.tasks.exact_reward import ExactReward, task_prompts, vocabulary

pytestmark = pytest.mark.usefixtures("one_thread")

VARIANTS = ("bigram", "sparse", "terminal", "eos")


def small(variant: str, **options: int) -> ExactTask:
    return ExactTask.model_validate(
        {"name": "exact", "variant": variant, "vocab_size": 4, "length": 3, "num_prompts": 6, **options}
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Callable[[str], TaskFiles]:
    """The files of a small task of a variant, made once."""
    folder = tmp_path_factory.mktemp("tasks")
    return lambda variant: prepare(small(variant), folder / variant)


def random_world(num_prompts: int = 2, num_completions: int = 9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(ref_logprobs, rewards), each [P, C]."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_prompts, num_completions))
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), rng.normal(size=(num_prompts, num_completions))


def as_policy(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_completion_is_listed_once(variant):
    task = small(variant)
    listed = Enumeration.of(task)
    expected = set()
    for tokens in itertools.product(range(task.vocab_size), repeat=task.length):
        end = tokens.index(0) + 1 if variant == "eos" and 0 in tokens else task.length
        expected.add(tokens[:end])
    found = [tuple(row[:n].tolist()) for row, n in zip(listed.tokens, listed.lengths, strict=True)]
    assert len(found) == len(set(found)) == task.num_completions
    assert set(found) == expected
    assert listed.rewards.shape == (task.num_prompts, task.num_completions)


@pytest.mark.parametrize("variant", ["bigram", "eos"])
@pytest.mark.parametrize(("num_prompts", "prompt_tokens"), [(3, 1), (6, 2)])
def test_logprobs_are_those_of_each_completion_by_itself(prepared, variant, num_prompts, prompt_tokens):
    listed = Enumeration.of(small(variant, num_prompts=num_prompts))
    # Of one length: where one prompt begins another, no policy can know which it is asked.
    assert {len(prompt) for prompt in listed.prompts} == {prompt_tokens}
    folder = prepared(variant).resolve("model")
    logprobs = log_probabilities(folder, listed, batch_rows=5)
    np.testing.assert_allclose(np.exp(logprobs).sum(axis=1), 1.0, atol=1e-6)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for i, prompt in enumerate(listed.prompts):
        for row in range(len(listed)):
            completion = listed.tokens[row, : listed.lengths[row]].tolist()
            with torch.no_grad():
                steps = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            alone = steps[torch.arange(len(completion)), completion].sum().item()
            assert logprobs[i, row] == pytest.approx(alone, abs=1e-5)
    np.testing.assert_array_equal(log_probabilities(model.train(), listed, batch_rows=5), logprobs)
    assert model.training


def test_a_policy_with_mass_elsewhere_is_caught(prepared):
    listed = Enumeration.of(small("bigram"))
    model = GPT2LMHeadModel.from_pretrained(prepared("bigram").resolve("model"))
    assert isinstance(model, GPT2LMHeadModel)
    log_probabilities(model, listed)  # as it is, it passes
    model.resize_token_embeddings(6, mean_resizing=False)
    with pytest.raises(UserError, match=r"model: the probabilities of all completions of prompt 't\d.*' sum to 0\.\d+"):
        log_probabilities(model, listed)
    model.resize_token_embeddings(3)
    with pytest.raises(UserError, match="its vocabulary of 3 is smaller than the task's 4"):
        log_probabilities(model, listed)
    broken = GPT2LMHeadModel.from_pretrained(prepared("bigram").resolve("model"))
    with torch.no_grad():
        broken.get_parameter("lm_head.weight")[0, 0] = torch.nan
    with pytest.raises(UserError, match="sum to nan, not 1"):
        log_probabilities(broken, listed)


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_the_optimum_is_what_direct_maximisation_finds(beta):
    ref, rewards = random_world()  # as of 3 tokens and length 2
    logits = torch.tensor(ref, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logprobs = logits.log_softmax(-1)
        gain = (logprobs.exp() * (torch.tensor(rewards) - beta * (logprobs - torch.tensor(ref)))).sum(-1).mean()
        (-gain).backward()
        return -gain

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]  (the stub wants a float)
    best = optimum(ref, rewards, beta)
    assert best.j_star == pytest.approx(-loss().item(), abs=1e-7)
    assert best.reward - beta * best.kl == pytest.approx(best.j_star, abs=1e-12)
    found = logits.detach().log_softmax(-1).numpy()
    np.testing.assert_allclose(np.exp(best.logprobs), np.exp(found), atol=1e-5)


def test_values_by_hand():
    # Two completions, evenly likely, with rewards 0 and 1; beta 1: J* = log((1 + e) / 2), J_ref = 1/2.
    ref, rewards = np.log([[0.5, 0.5]]), np.array([[0.0, 1.0]])
    best = optimum(ref, rewards, 1.0)
    assert best.j_star == pytest.approx(np.log((1 + np.e) / 2), abs=1e-12)
    assert best.j_ref == pytest.approx(0.5)
    # A policy of (1/4, 3/4): reward 3/4, KL = 1/4 log 1/2 + 3/4 log 3/2 = 0.130812.
    value = evaluate(np.log([[0.25, 0.75]]), ref, rewards, 1.0)
    assert (value.reward, value.kl, value.j) == pytest.approx((0.75, 0.130812, 0.619188), abs=1e-6)
    assert value.fraction == pytest.approx((0.619188 - 0.5) / (0.620115 - 0.5), abs=1e-5)
    # One that never does the first: what has probability 0 counts nothing.
    never = evaluate(np.array([[-np.inf, 0.0]]), ref, rewards, 1.0)
    assert (never.reward, never.kl) == pytest.approx((1.0, np.log(2)))


@pytest.mark.parametrize("beta", [1.0, 0.3, 0.1])
def test_fraction_is_1_at_the_optimum_and_0_at_the_reference(beta):
    ref, rewards = random_world(num_prompts=3, num_completions=50)
    best = optimum(ref, rewards, beta)
    assert evaluate(best.logprobs, ref, rewards, beta).fraction == pytest.approx(1.0, abs=1e-12)
    assert evaluate(ref, ref, rewards, beta).fraction == pytest.approx(0.0, abs=1e-12)
    rng = np.random.default_rng(1)
    others = [as_policy(best.logprobs + 0.1 * rng.normal(size=ref.shape)) for _ in range(20)]
    assert all(evaluate(other, ref, rewards, beta).fraction < 1 for other in others)
    assert evaluate(as_policy(ref - rewards / beta), ref, rewards, beta).fraction < 0  # it seeks the worst


def test_no_policy_has_more_reward_at_the_kl_of_the_frontier():
    ref, rewards = random_world()
    points = frontier(ref, rewards, [3.0, 1.0, 0.3, 0.1])
    assert points == sorted(points)
    assert [reward for _, reward in points] == sorted(reward for _, reward in points)
    assert points[1] == (optimum(ref, rewards, 1.0).kl, optimum(ref, rewards, 1.0).reward)


def test_what_has_no_optimum_is_refused():
    ref, rewards = random_world()
    with pytest.raises(ValueError, match="beta is 0"):
        optimum(ref, rewards, 0)
    with pytest.raises(ValueError, match="every completion has the same reward"):
        evaluate(ref, ref, np.ones_like(rewards), 1.0)


@pytest.mark.parametrize(
    ("variant", "completion", "expected"),
    [
        ("bigram", "t2 t0", 5 + 6),  # R[1, 2] + R[2, 0], from the prompt's last token on
        ("sparse", "t2 t0", 5 + 6),
        ("terminal", "t2 t0", 6),
        ("eos", "t2 t1", 5 + 7 - 2 * 0.2),
        ("eos", "t2", 5 - 0.2),
        ("eos", "", 0),
    ],
)
def test_reward_by_hand(variant, completion, expected):
    reward = ExactReward(small(variant, vocab_size=3, length=2, num_prompts=1))
    reward.table = np.arange(9.0).reshape(3, 3)
    assert reward(["t2 t1", "t1"], [completion, completion], any_column=[0, 0]) == pytest.approx([expected] * 2)


def test_tables_of_the_variants():
    def tables(variant: str) -> np.ndarray:
        return ExactReward(ExactTask.model_validate({"name": "exact", "variant": variant})).table

    np.testing.assert_allclose(tables("bigram") * np.sqrt(5), tables("terminal"))
    assert np.array_equal(tables("bigram"), tables("eos"))
    sparse = tables("sparse")
    assert (sparse != 0).sum() == round(0.15 * 64)
    np.testing.assert_allclose(sparse[sparse != 0] * np.sqrt(0.15), tables("bigram")[sparse != 0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_is_enough_for_the_reward(variant, prepared):
    """Ids -> text, as a reward actor sees it, -> the reward of the enumeration; and text -> the same ids."""
    listed = Enumeration.of(small(variant))
    tokenizer = AutoTokenizer.from_pretrained(prepared(variant).resolve("model"))
    assert len(tokenizer) == 4
    assert tokenizer.eos_token_id == (0 if variant == "eos" else None)
    ids = [row[:n].tolist() for row, n in zip(listed.tokens, listed.lengths, strict=True)]
    assert [tokenizer(tokenizer.decode(row))["input_ids"] for row in ids] == ids
    completions = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    score = pickle.loads(pickle.dumps(score_function(small(variant))))
    for prompt, rewards in zip(listed.prompts, listed.rewards, strict=True):
        scores = score([tokenizer.decode(prompt)] * len(ids), completions)
        np.testing.assert_allclose(scores, rewards, atol=1e-12)


def test_a_word_of_another_task_is_not_scored():
    with pytest.raises(RaylignError, match="exact task: 't9' is not one of its 4 words"):
        score_function(small("bigram"))(["t1"], ["t9"])
    with pytest.raises(RaylignError, match="exact task: '<eos>' is not one of its 3 words"):
        score_function(small("eos"))(["t1"], ["<eos>"])


@pytest.mark.parametrize("variant", ["bigram", "eos"])
def test_the_reference_has_learned_the_source(prepared, variant):
    task = small(variant)
    transitions = source(task)
    np.testing.assert_allclose(transitions.sum(axis=1), 1.0)
    entropy = -(transitions * np.log(transitions)).sum(axis=1)
    assert entropy.max() < np.log(4) - 0.02  # not uniform
    assert entropy.min() > 0.3  # nor near certain
    listed = Enumeration.of(task)
    model = log_probabilities(prepared(variant).resolve("model"), listed)
    inside = np.arange(task.length) < listed.lengths[:, None]
    for prompt, logprobs in zip(listed.prompts, model, strict=True):
        before = np.concatenate([np.full((len(listed), 1), prompt[-1]), listed.tokens[:, :-1]], axis=1)
        truth = np.where(inside, np.log(transitions[before, listed.tokens]), 0.0).sum(axis=1)
        kl = (np.exp(truth) * (truth - logprobs)).sum()
        assert 0 < kl < 0.02  # of three tokens


def test_prompts_are_distinct_and_stand_often_enough(prepared):
    for variant in ("bigram", "eos"):
        task = small(variant)
        words, prompts = vocabulary(task), task_prompts(task)
        assert len(set(prompts)) == 6
        assert variant == "bigram" or not any(0 in prompt for prompt in prompts)
        texts = [" ".join(words[token] for token in prompt) for prompt in prompts]
        for name, at_least in (("prompts", 1024), ("eval_prompts", 256)):
            rows = [json.loads(line) for line in prepared(variant).resolve(name).read_text().splitlines()]
            counts = {text: sum(row == {"prompt": text} for row in rows) for text in texts}
            assert len(set(counts.values())) == 1
            assert at_least <= sum(counts.values()) == len(rows) < at_least + 6


def test_the_same_task_makes_the_same_bytes_and_another_seed_others(prepared, tmp_path):
    files = prepared("eos")
    state = torch.random.get_rng_state()
    torch.set_num_threads(2)
    again = prepare(small("eos"), tmp_path / "again")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = prepare(small("eos", seed=1), tmp_path / "other")
    for file in (Path("corpus.jsonl"), Path("prompts.jsonl"), Path("model", "model.safetensors")):
        assert (again.directory / file).read_bytes() == (files.directory / file).read_bytes()
        assert (other.directory / file).read_bytes() != (files.directory / file).read_bytes()
    assert not np.array_equal(ExactReward(small("eos")).table, ExactReward(small("eos", seed=1)).table)


@pytest.mark.parametrize("variant", ["bigram", "eos"])
def test_an_engine_samples_what_is_listed(prepared, variant):
    listed = Enumeration.of(small(variant))
    folder = prepared(variant).resolve("model")
    logprobs = log_probabilities(folder, listed)
    engine = TransformersEngine(str(folder), RolloutConfig(), "float32")
    prompts = [np.array(prompt, dtype=np.int32) for prompt in listed.prompts]
    stop_tokens = (0,) if variant == "eos" else ()
    made = engine.generate(prompts * 40, SamplingConfig(max_tokens=3), range(240), stop_tokens)
    engine.close()
    row_of = {tuple(row[:n].tolist()): i for i, (row, n) in enumerate(zip(listed.tokens, listed.lengths, strict=True))}
    rows = [row_of[tuple(completion.token_ids.tolist())] for completion in made]  # each of them is listed
    expected = [logprobs[i % 6, row] for i, row in enumerate(rows)]
    np.testing.assert_allclose([completion.logprobs.sum() for completion in made], expected, atol=1e-4)
    ended = [row[n - 1] == 0 for row, n in zip(listed.tokens[rows], listed.lengths[rows], strict=True)]
    assert [completion.finished for completion in made] == [variant == "eos" and end for end in ended]


def test_what_cannot_be_listed_is_refused():
    assert small("bigram", vocab_size=8, length=7, num_prompts=1).num_completions == 2**21
    with pytest.raises(
        ValidationError, match=r"4,782,969 completions of 1 prompt\(s\) cannot all be listed, 2,097,152"
    ):
        small("bigram", vocab_size=9, length=7, num_prompts=1)
    with pytest.raises(ValidationError, match=r"2,097,152 completions of 2 prompt\(s\) cannot all be listed"):
        small("bigram", vocab_size=8, length=7, num_prompts=2)
    assert small("eos", vocab_size=3, num_prompts=4).num_completions == 1 + 2 + 4 + 8
    with pytest.raises(ValidationError, match="num_prompts: 2 words make only 4 prompts of two; lower it"):
        small("eos", vocab_size=3, num_prompts=5)
