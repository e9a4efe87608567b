"""A sweep file becomes checked runs, or one line that says what is wrong with it. Nothing here starts Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raylign.config import load_config
from raylign.config.metrics import end_metrics, step_metrics
from raylign.config.search_space import Sweep, load_sweep
from raylign.errors import ConfigError

RUN = {
    "name": "mine",
    "task": {"name": "sentiment"},
    "model": {"path": "task:model"},
    "data": {"path": "task:prompts"},
    "reward": {"type": "task"},
    "evaluation": {"data": {"path": "task:eval_prompts"}},
}
PPO = RUN | {"algorithm": {"name": "ppo", "steps": 9}}
DPO = RUN | {"data": {"path": "org/pairs"}, "algorithm": {"name": "dpo"}}
SWEEP = {
    "name": "kl",
    "run": "ppo.yaml",
    "search": {"algorithm.kl.coef": {"grid": [0.1, 0.2]}},
    "metric": "score_after",
}
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def load(tmp_path):
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(PPO))
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(DPO))

    def write(**changes: Any) -> Sweep:
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(SWEEP | changes, sort_keys=False))
        return load_sweep(file)

    return write


def fault(load, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**changes)
    (problem,) = caught.value.problems
    return problem


def test_a_grid_is_every_combination_in_order(load):
    sweep = load(search=SWEEP["search"] | {"seed": {"grid": [0, 1]}})
    assert [point.values for point in sweep.trials] == [
        {"algorithm.kl.coef": kl, "seed": seed} for kl in (0.1, 0.2) for seed in (0, 1)
    ]
    assert [point.id for point in sweep.trials] == ["000", "001", "002", "003"]
    third = sweep.trials[2].config
    assert (third.name, third.seed, third.algorithm.kl.coef) == ("kl-002", 0, 0.2)  # pyright: ignore


def test_draws_stay_in_their_range_and_are_the_same_every_time(load):
    search = {
        "algorithm.optimizer.learning_rate": {"loguniform": [1e-5, 1e-3]},
        "algorithm.clip_range": {"uniform": [0.1, 0.3]},
        "algorithm.minibatches": {"integer": [1, 4]},
        "algorithm.kl.estimator": {"choice": ["k1", "k3"]},
    }
    points = load(search=search, trials=40).trials
    assert len(points) == 40
    rates = sorted(point.values["algorithm.optimizer.learning_rate"] for point in points)
    assert rates[0] >= 1e-5
    assert rates[-1] <= 1e-3
    assert 10 <= sum(rate < 1e-4 for rate in rates) <= 30  # half of them, by the logarithm
    assert all(0.1 <= point.values["algorithm.clip_range"] <= 0.3 for point in points)
    assert {point.values["algorithm.minibatches"] for point in points} == {1, 2, 3, 4}
    assert {point.values["algorithm.kl.estimator"] for point in points} == {"k1", "k3"}
    again = load(search=search | {"algorithm.gamma": {"uniform": [0.9, 1.0]}}, trials=40).trials
    for one, other in zip(points, again, strict=True):  # a further key does not change the others
        assert one.values == {key: value for key, value in other.values.items() if key in search}
    assert load(search=search, trials=40, seed=1).trials[0].values != points[0].values


def test_a_key_can_depend_on_the_algorithm(load):
    search = {
        "algorithm.kl.coef": {"grid": [0.1, 0.2], "when": {"algorithm.name": "ppo"}},
        "algorithm.beta": {"grid": [0.3], "when": {"run": "dpo.yaml"}},
        "seed": {"grid": [0, 1]},
        "algorithm.clip_range": {"grid": [0.1, 0.3], "when": {"algorithm.kl.coef": 0.2, "seed": 1}},
    }
    found = [point.values for point in load(run=["ppo.yaml", "dpo.yaml"], search=search).trials]
    assert found == [
        {"run": "ppo.yaml", "algorithm.kl.coef": 0.1, "seed": 0},
        {"run": "ppo.yaml", "algorithm.kl.coef": 0.1, "seed": 1},
        {"run": "ppo.yaml", "algorithm.kl.coef": 0.2, "seed": 0},
        {"run": "ppo.yaml", "algorithm.kl.coef": 0.2, "seed": 1, "algorithm.clip_range": 0.1},
        {"run": "ppo.yaml", "algorithm.kl.coef": 0.2, "seed": 1, "algorithm.clip_range": 0.3},
        {"run": "dpo.yaml", "algorithm.beta": 0.3, "seed": 0},
        {"run": "dpo.yaml", "algorithm.beta": 0.3, "seed": 1},
    ]


def test_overrides_hold_for_every_trial_and_paths_start_at_their_file(load, tmp_path):
    sweep = load(
        overrides={"seed": 7, "model.path": "run:sft.yaml", "data.path": "task:prompts"}, search=SWEEP["search"]
    )
    assert {point.config.seed for point in sweep.trials} == {7}
    assert sweep.trials[0].config.model.path == f"run:{tmp_path / 'sft.yaml'}"


@pytest.fixture(autouse=True)
def sft(tmp_path):
    tree = RUN | {"data": {"path": "task:corpus"}, "algorithm": {"name": "sft"}, "name": "sft"}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump({k: v for k, v in tree.items() if k != "evaluation"}))


def test_the_numbers_of_yaml_that_are_texts_are_numbers_here(load):
    points = load(search={"algorithm.optimizer.learning_rate": {"grid": ["1e-4"]}}).trials
    assert points[0].values == {"algorithm.optimizer.learning_rate": 1e-4}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"search": {"algorithm.kl.coeff": {"grid": [1]}}},
            "sweep.yaml:4: algorithm.kl.coeff: unknown key; did you mean coef?",
        ),
        (
            {"search": {"algorithm.kl.coef": {"grid": [0.1, -1]}}},
            "sweep.yaml:4: algorithm.kl.coef: input should be greater than or equal to 0, not -1",
        ),
        (
            {"search": {"algorithm.kl.coef": {"gird": [0.1]}}},
            "sweep.yaml:5: search.algorithm.kl.coef.gird: unknown key; did you mean grid?",
        ),
        (
            {"search": {"algorithm.kl.coef": {"grid": [0.1], "uniform": [0.1, 1]}}},
            "search.algorithm.kl.coef: grid and uniform given; write one of grid, choice",
        ),
        (
            {"search": {"algorithm.kl.coef": {"uniform": [1, 0.1]}}},
            "uniform: 1 to 0.1 is not a range; write [low, high]",
        ),
        ({"search": {"algorithm.kl.coef": {"loguniform": [0, 0.1]}}}, "loguniform: 0 has no logarithm"),
        (
            {"search": {"name.first": {"grid": [1]}}},
            "search.name.first: name is the value 'mine' and has no keys below it",
        ),
        ({"metrik": "x"}, "metrik: unknown key; did you mean metric?"),
        (
            {"metric": "reward/maen"},
            "metric: no ppo run of this sweep reports 'reward/maen'; did you mean reward/mean?",
        ),
        ({"metric": "dpo/margin"}, "metric: no ppo run of this sweep reports 'dpo/margin'"),
        ({"metric": "evaluation/score"}, "only online runs with evaluation.every_steps above 0 report it"),
        ({"overrides": {"evaluation": None}}, "reports 'score_after'; there is no evaluation section; add one"),
        (
            {"scheduler": {"type": "asha"}},
            "score_after is known only when a run has finished, but asha decides during the run; use a metric of a step, such as reward/mean",
        ),
        ({"scheduler": {"type": "ashaa"}}, "scheduler.type: unknown type 'ashaa'; did you mean asha?"),
        ({"trials": 3}, "trials: with a grid alone, 3 trials would repeat the same run 3 times"),
        ({"budget": {"max_trials": 1}}, "budget.max_trials: 2 trials are more than 1; raise it, or search over less"),
        ({"budget": {"trials": 1}}, "sweep.yaml:10: budget.trials: renamed to max_trials; write that instead"),
        ({"budget": {"per": 1}}, "budget.per: unknown key; known: max_trials, max_seconds"),  # renamed elsewhere
        (
            {"search": {"algorithm.clip_range": {"grid": [0.1], "when": {"algorithm.nme": "ppo"}}}},
            "search.algorithm.clip_range.when.algorithm.nme: neither searched nor in the run config",
        ),
        (
            {"search": {"algorithm.clip_range": {"grid": [0.1], "when": {"algorithm.name": "dpo"}}}},
            "search.algorithm.clip_range.when.algorithm.name: is never 'dpo', only 'ppo'",
        ),
        (
            {
                "search": {
                    "algorithm.kl.coef": {"uniform": [0.1, 0.2]},
                    "algorithm.clip_range": {"grid": [0.1], "when": {"algorithm.kl.coef": 0.1}},
                }
            },
            "a random number never equals a given one",
        ),
        ({"run": "nothing.yaml"}, "nothing.yaml: cannot read the config: No such file or directory"),
        ({"overrides": {"model.path": "run:ppo.yml"}}, "ppo.yml: cannot read the config"),
        (
            {"overrides": {"rollout.elastic": {"max_engines": 2}}},
            "rollout.elastic: a trial has a fixed placement group, so its engines cannot change",
        ),
    ],
)
def test_bad_input_is_one_line_with_its_place(load, changes, problem):
    found = fault(load, **changes)
    assert problem in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("algorithm.prompts_per_step", "a commit counts its place in the data in batches"),
        ("algorithm.steps", "the learning-rate schedule runs over all steps"),
        ("model.lora.rank", "it decides what the run started from"),
        ("seed", "it decides the order of the data and all samples"),
    ],
)
def test_pbt_refuses_what_cannot_change_in_the_middle_of_a_run(load, key, why):
    scheduler = {"type": "pbt", "every_steps": 2, "mutate": [key]}
    found = fault(load, search={key: {"grid": [4]}}, scheduler=scheduler)
    assert f"scheduler.mutate: {key} cannot change in the middle of a run: {why}; PBT can change" in found
    assert "algorithm.beta" in found
    allowed = {"type": "pbt", "every_steps": 2, "mutate": ["algorithm.kl.coef"]}
    assert load(scheduler=allowed, metric="reward/mean").trials  # the guard lets through what can
    assert "is not searched" in fault(load, scheduler=allowed | {"mutate": ["algorithm.beta"]})
    assert "but pbt decides during the run; use a metric of a step" in fault(
        load, scheduler=allowed, metric="score_after"
    )
    steered = {"algorithm.kl.controller": "adaptive"}
    found = fault(load, scheduler=allowed, metric="reward/mean", overrides=steered)
    assert "scheduler.mutate: algorithm.kl.coef cannot change in the middle of a run whose" in found


def test_metrics_follow_the_algorithm_and_its_settings(tmp_path):
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(PPO))
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(DPO))
    ppo, dpo = load_config(tmp_path / "ppo.yaml"), load_config(tmp_path / "dpo.yaml")
    assert {"reward/mean", "kl/k1", "critic/loss"} <= step_metrics(ppo)
    assert "evaluation/score" not in step_metrics(ppo)
    assert "evaluation/score" in step_metrics(load_config(tmp_path / "ppo.yaml", ["evaluation.every_steps=2"]))
    assert "kl/k1" not in step_metrics(load_config(tmp_path / "ppo.yaml", ["algorithm.kl.coef=0"]))
    assert "dpo/margin" in step_metrics(dpo)
    assert "reward/mean" not in step_metrics(dpo)
    assert {"score_after", "kl"} <= end_metrics(dpo)
    assert end_metrics(load_config(tmp_path / "dpo.yaml", ["evaluation=null"])) == {"wall_seconds"}


@pytest.mark.parametrize("file", sorted((REPOSITORY / "sweeps").glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_sweep_parses(file):
    assert len(load_sweep(file).trials) > 1
