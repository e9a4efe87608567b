"""The plan of a comparison on the exact task: every run written, checked and named before anything starts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raylign.cli import split_list
from raylign.compare.exact.expand import COMPARABLE, ExactSpec, expand_exact
from raylign.compare.exact.frontier import draw
from raylign.compare.exact.records import ExactRecord, write_records
from raylign.config import ALGORITHMS, CollectConfig, ExactTask, load_config
from raylign.config.graph import check_graph
from raylign.errors import ConfigError, UserError


def planned(tmp_path, algorithms=("ppo",), betas=(0.3,), seeds=(0,), overrides=(), num_pairs=50):
    return expand_exact(ExactSpec(algorithms, betas, seeds, overrides, num_pairs, str(tmp_path)))


@pytest.mark.parametrize("algorithm", COMPARABLE)
def test_every_algorithm_has_a_recipe_that_takes_beta_and_seed(tmp_path, algorithm):
    _, plans = planned(tmp_path, [algorithm], [1.0, 0.1], [0, 7])
    assert [(p.method, p.setting["beta"], p.seed) for p in plans] == [
        (algorithm, b, s) for s in (0, 7) for b in (1.0, 0.1)
    ]
    for one in plans:
        found: Any = one.config.algorithm
        assert found.name == algorithm
        assert (found.kl.coef if ALGORITHMS[algorithm].kl_key == "algorithm.kl.coef" else found.beta) == one.setting[
            "beta"
        ]
        assert one.config.seed == one.seed
        assert load_config(one.file) == one.config  # the file alone repeats the run
        check_graph(one.config)
    assert len({p.config.name for p in plans}) == 4


def test_task_settings_reach_every_run_and_set_the_length(tmp_path):
    _, plans = planned(tmp_path, ["dpo", "ppo"], overrides=["task.length=3", "task.variant=eos", "task.seed=5"])
    for one in plans:
        assert one.config.task == ExactTask(name="exact", length=3, variant="eos", seed=5)
        assert one.config.rollout.sampling.max_tokens == 3
    pairs = load_config(plans[0].config.data.path.removeprefix("run:"))
    assert isinstance(pairs.algorithm, CollectConfig)
    assert pairs.algorithm.rows == 50
    assert pairs.task == plans[0].config.task


def test_the_same_command_goes_on_in_its_folder_and_another_task_has_its_own(tmp_path):
    folder, _ = planned(tmp_path)
    assert planned(tmp_path, ["ppo", "rloo"])[0] == folder
    assert planned(tmp_path, overrides=["task.seed=1"])[0] != folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithms": ["pppo"]}, "--algorithms: 'pppo' cannot be compared on the exact task; did you mean ppo?"),
        ({"betas": [0.0]}, "--betas: 0; the optimum exists only for a beta above 0"),
        ({"seeds": [-1]}, "--seeds: -1; a seed is 0 or more"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    with pytest.raises(UserError, match="^" + message.replace("?", r"\?").replace(";", ";") + "$"):
        planned(tmp_path, **options)


def test_a_wrong_task_key_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"task\.vocabsize: unknown key; did you mean vocab_size\?"):
        planned(tmp_path, overrides=["task.vocabsize=3"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [("1,x", "'x' is not a number"), ("", "'' is not a number"), ("1,1.0", "1.0 is listed twice; remove one")],
)
def test_lists_of_options(text, problem):
    assert split_list("--betas", "1.0, 0.3", float) == [1.0, 0.3]
    with pytest.raises(UserError, match=f"--betas: .*{problem}"):
        split_list("--betas", text, float)


def test_rows_and_picture_are_written(tmp_path):
    row = ExactRecord("ppo", 0.3, 0, 0.99, 1.6, -0.1, 1.7, 3.0, 4.7, "/policy", "/config.yaml", 12.0)
    write_records(tmp_path / "rows.json", [row])
    (found,) = json.loads((tmp_path / "rows.json").read_text())
    assert found["fraction_of_optimum"] == 0.99
    assert {"algorithm", "beta", "seed", "J", "J_ref", "J_star", "reward", "kl", "policy"} <= found.keys()
    for file in draw([row], [(0.0, -0.1), (4.0, 2.8), (9.0, 4.0)], tmp_path, "title"):
        assert file.stat().st_size > 1000
