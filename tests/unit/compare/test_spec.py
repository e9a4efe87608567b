"""Specs of comparisons: every run written and checked, and what is wrong named with its line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from raylign.compare.command import prepare
from raylign.config import CollectConfig, load_config
from raylign.errors import ConfigError

RECIPES = Path(__file__).parents[3] / "recipes"
SPEC: dict[str, Any] = {
    "name": "test",
    "task": {"name": "sentiment", "num_eval_prompts": 16},
    "methods": [
        {"name": "ppo", "run": "ppo_sentiment.yaml"},
        {"name": "dpo", "run": "dpo_sentiment.yaml"},
    ],
    "betas": [0.1, 0.5],
    "seeds": [0, 7],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in RECIPES.glob("*.yaml"):
        shutil.copy(file, tmp_path)
    return tmp_path


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "spec.yaml"
    tree = {**SPEC, "output_dir": str(folder / "runs"), **changes}
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def with_method(*, at: int = 1, **changes: Any) -> list[dict[str, Any]]:
    methods = [dict(method) for method in SPEC["methods"]]
    methods[at] |= changes
    return methods


def problem(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare(file)
    return str(caught.value)


def test_every_method_setting_and_seed_is_a_run_of_its_own(folder):
    planned = prepare(write(folder, budget={"unit": "optimizer_steps", "amount": 48})).planned
    assert [one.id for one in planned] == [
        f"{method}-beta{beta}-seed{seed}" for seed in (0, 7) for method in ("ppo", "dpo") for beta in ("0.1", "0.5")
    ]
    for one in planned:
        algorithm: Any = one.config.algorithm
        assert (algorithm.kl.coef if one.method == "ppo" else algorithm.beta) == one.setting["beta"]
        assert one.config.seed == one.seed
        assert one.config.task is not None
        assert one.config.evaluation is not None
        assert one.config.evaluation.keep_samples > 10**6
        assert load_config(one.file) == one.config
    ppo, dpo = (next(p for p in planned if p.method == name).config.algorithm for name in ("ppo", "dpo"))
    found: Any = (ppo, dpo)
    assert found[0].steps == 12  # 2 epochs of 2 minibatches each
    assert found[1].max_steps == 48


def test_tokens_are_a_budget_too(folder):
    planned = prepare(write(folder, budget={"unit": "tokens", "amount": 200_000})).planned
    found: Any = {one.method: one.config.algorithm for one in planned}
    assert found["ppo"].steps == 200_000 // (128 * 2 * 32)  # 2 epochs of 128 completions of 32 tokens
    assert found["dpo"].max_steps == 200_000 // (32 * 2 * 32)
    assert "are too few for one step of" in problem(write(folder, budget={"unit": "tokens", "amount": 100}))


def test_search_and_betas_of_a_method(folder):
    methods = with_method(betas=[0.3], search={"algorithm.optimizer.learning_rate": [1e-4, 1e-3]})
    planned = [one for one in prepare(write(folder, methods=methods, seeds=[0])).planned if one.method == "dpo"]
    assert [one.id for one in planned] == [
        "dpo-beta0.3-learning_rate0.0001-seed0",
        "dpo-beta0.3-learning_rate0.001-seed0",
    ]
    found: Any = [one.config.algorithm for one in planned]
    assert [algorithm.optimizer.learning_rate for algorithm in found] == [1e-4, 1e-3]


def test_best_of_n_samples_the_held_out_prompts_with_the_reward_that_judges(folder):
    methods = [*SPEC["methods"], {"name": "best", "run": "ppo_sentiment_rm.yaml", "best_of": [2, 4]}]
    planned = [one for one in prepare(write(folder, methods=methods, seeds=[0])).planned if one.method == "best"]
    assert [one.setting for one in planned] == [{"n": 2}, {"n": 4}]
    config = planned[1].config
    assert isinstance(config.algorithm, CollectConfig)
    assert (config.algorithm.samples_per_prompt, config.algorithm.keep) == (4, "all")
    assert config.data.path == "task:eval_prompts"
    assert config.reward is not None
    assert config.reward.type == "task"


def test_the_folder_is_that_of_the_same_command_and_prices_do_not_move_it(folder):
    first = prepare(write(folder)).folder
    assert prepare(write(folder, seeds=[0, 7, 8], betas=[0.2], price_per_device_hour=3.0)).folder == first
    assert prepare(write(folder, budget={"unit": "optimizer_steps", "amount": 8})).folder != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"betta": [1]}, r"spec.yaml:\d+: betta: unknown key; did you mean betas\?"),
        ({"betas": [0]}, r"spec.yaml:\d+: betas.0: input should be greater than 0"),
        ({"seeds": [1, 1]}, "seeds: 1 is listed twice; remove one"),
        ({"methods": with_method(name="ppo")}, "methods: ppo is listed twice"),
        ({"methods": with_method(run="dpo.yaml")}, r"spec.yaml:\d+: methods.1.run: no such file: dpo.yaml"),
        ({"methods": with_method(run="dpo.json")}, "dpo: run: dpo.json is not a run config; name a .yaml file"),
        ({"methods": with_method(best_of=[2], betas=[0.1])}, "best-of-n does not train, so it has no betas"),
        ({"methods": with_method(best_of=[1])}, "the best of 1 is a plain sample; set 2 or more"),
        ({"methods": with_method(search={"algorithm.beta": []})}, "algorithm.beta has no value to search over"),
        (
            {"methods": with_method(overrides={"algorithm.betta": 1})},
            r"spec.yaml:\d+: algorithm.betta: unknown key; did you mean beta\?",
        ),
        ({"overrides": {"seed.x": 1}}, r"spec.yaml:\d+: seed: "),
        (
            {"methods": with_method(overrides={"name.x": 1})},
            "name is the value 'dpo_sentiment' and has no keys below it",
        ),
        (
            {"methods": with_method(run="sft_sentiment.yaml")},
            r"sft_sentiment.yaml:\d+: algorithm.name: sft has no KL coefficient to compare over",
        ),
        ({"methods": with_method(overrides={"evaluation": None})}, "method dpo is not evaluated; add evaluation"),
        ({"budget": {"unit": "gpu_hours", "amount": 1}}, "budget.unit"),
    ],
)
def test_a_wrong_spec_is_named_with_its_line(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        prepare(write(folder, **changes))


def test_a_renamed_key_is_an_error_with_the_new_name_alone(folder):
    file = write(folder, budget={"per": "tokens", "of_each": 4})
    first = next(i for i, line in enumerate(file.read_text().splitlines(), 1) if "per:" in line)
    assert problem(file).splitlines() == [  # and no line that says that unit and amount are missing
        f"{file}:{first}: budget.per: renamed to unit; write that instead",
        f"{file}:{first + 1}: budget.of_each: renamed to amount; write that instead",
    ]
    assert "budget.amount: this key is required" in problem(write(folder, budget={"per": "tokens"}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.path": "task:model"}, "model.path: task:model, but ppo has run:.*start from the same model"),
        (
            {"evaluation.data.path": "task:prompts"},
            "evaluation.data.path: task:prompts, but ppo has task:eval_prompts.*be evaluated on the same prompts",
        ),
        (
            {"evaluation.reward": {"type": "model", "path": "run:reward_model_sentiment.yaml"}},
            "evaluation.reward.type: model, but ppo has task.*be evaluated by the same reward",
        ),
        (
            {"rollout.sampling.temperature": 0.7},
            "rollout.sampling.temperature: 0.7, but ppo has 1.0.*be sampled in the same way",
        ),
        ({"reference": {"path": "task:model"}}, "reference: .*but ppo has none.*stay close to the same reference"),
        ({"model.compute_dtype": "bfloat16"}, "model.compute_dtype: bfloat16, but ppo has float32"),
    ],
)
def test_methods_that_are_not_matched_are_refused_with_both_places(folder, overrides, message):
    text = problem(write(folder, methods=with_method(overrides=overrides)))
    assert text.startswith(f"{folder}/spec.yaml:")
    assert "ppo_sentiment.yaml:" in text
    assert re.search(message, text), text


def test_preferences_must_be_the_same_also_behind_a_reward_model(folder):
    other = yaml.safe_load((folder / "preferences_sentiment.yaml").read_text()) | {"name": "other"}
    (folder / "other.yaml").write_text(yaml.safe_dump(other))
    methods = [{"name": "ppo", "run": "ppo_sentiment_rm.yaml"}, {"name": "dpo", "run": "dpo_sentiment.yaml"}]
    prepare(write(folder, methods=methods))
    methods[1]["overrides"] = {"data.path": "run:other.yaml"}  # type: ignore[assignment]
    text = problem(write(folder, methods=methods))
    assert "dpo learns from the preferences run:" in text
    assert "methods that are compared must learn from the same ones" in text


def test_a_beta_that_moves_by_itself_is_refused(folder):
    methods = with_method(at=0, overrides={"algorithm.kl.controller": "adaptive"})
    assert "adaptive changes the beta that methods are compared over" in problem(write(folder, methods=methods))


def test_the_shipped_comparison_is_valid_and_has_what_the_docs_say(tmp_path):
    shutil.copytree(RECIPES, tmp_path / "recipes")
    file = tmp_path / "recipes" / "compare_sentiment.yaml"
    file.write_text(file.read_text() + f"output_dir: {tmp_path / 'runs'}\n")
    comparison = prepare(file)
    assert len(comparison.planned) == 2 * 4 * 3
    assert all(one.config.algorithm.kl_key for one in comparison.planned if not one.method.startswith("best_of"))
