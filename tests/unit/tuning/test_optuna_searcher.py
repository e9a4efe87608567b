"""Trials that Optuna asks for: within the space, better than chance, and told again to who resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.tune.search import Searcher

from raylign.config.search_space import Sweep, load_sweep
from raylign.errors import ConfigError, UserError
from raylign.storage.run_folder import RunFolder
from raylign.tuning import folders, optuna_searcher
from raylign.tuning.optuna_searcher import OptunaSearcher, load_suggested_trials
from tests.unit.config.test_sweep import DPO, PPO

RATE, BETA = "algorithm.optimizer.learning_rate", "algorithm.beta"


@pytest.fixture
def loaded(tmp_path, monkeypatch) -> Sweep:
    for place in ("check_sizes", "make_stages"):  # they need a cluster
        monkeypatch.setattr(optuna_searcher, place, lambda *_, **__: None)
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(PPO))
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(DPO))
    return load(tmp_path)


def load(folder: Path, **changes: Any) -> Sweep:
    tree = {
        "name": "asked",
        "run": ["ppo.yaml", "dpo.yaml"],
        "search": {
            BETA: {"grid": [0.1, 0.5], "when": {"run": "dpo.yaml"}},
            RATE: {"loguniform": [1e-6, 1e-2]},
            "algorithm.prompts_per_step": {"integer": [2, 5], "when": {"run": "ppo.yaml"}},
        },
        "trials": 30,
        "metric": "score_after",
        "searcher": "optuna",
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(tree | changes))
    return load_sweep(file)


def begin(loaded: Sweep, folder: Path) -> OptunaSearcher:
    return OptunaSearcher(Sweep(loaded.config, load_suggested_trials(loaded.space, folder), loaded.space), folder, [])


def finish(searcher: OptunaSearcher, folder: Path, tune_id: str, name: str, score: float) -> None:
    RunFolder(folders.trial_folder(folder, name)).write_summary({"score_after": score})
    searcher.on_trial_complete(tune_id)


def nearness(folder: Path, name: str) -> float:
    """Best where the rate is 1e-3."""
    rate = folders.load_trial_config(folder, name).algorithm.optimizer.learning_rate  # pyright: ignore[reportAttributeAccessIssue]
    return -abs(rate - 1e-3)


def test_every_trial_is_a_checked_config_and_conditions_hold(loaded, tmp_path):
    folder = tmp_path / "asked"
    searcher = begin(loaded, folder)
    names = []
    for i in range(30):
        asked = searcher.suggest(f"t{i}")
        assert asked
        names.append(asked["trial"])
        finish(searcher, folder, f"t{i}", asked["trial"], nearness(folder, asked["trial"]))
    assert names == [f"{i:03d}" for i in range(30)]
    assert searcher.suggest("one more") == Searcher.FINISHED
    assert searcher.num_left == 0
    points = load_suggested_trials(loaded.space, folder)
    assert {point.config.algorithm.name for point in points} == {"ppo", "dpo"}
    for point in points:
        keys = {"run", RATE, BETA if point.config.algorithm.name == "dpo" else "algorithm.prompts_per_step"}
        assert point.values.keys() == keys
        assert 1e-6 <= point.values[RATE] <= 1e-2
    late = sorted(-nearness(folder, name) for name in names[15:])
    early = sorted(-nearness(folder, name) for name in names[:10])  # before TPE has seen enough, it draws
    assert late[len(late) // 2] < early[len(early) // 2], "the later trials are nearer to the best"


def test_a_resumed_sweep_goes_on_with_what_was_begun_and_knows_what_has_ended(loaded, tmp_path):
    folder = tmp_path / "asked"
    first = begin(loaded, folder)
    for i in range(4):
        asked = first.suggest(f"t{i}")
        assert asked
        if i != 2:
            finish(first, folder, f"t{i}", asked["trial"], float(i))
    second = begin(loaded, folder)
    assert second.num_left == 27
    told = second._study.trials
    assert [trial.value for trial in told] == [0.0, 1.0, 3.0]
    values = [json.loads((folder / "trials" / f"{i:03d}" / "values.json").read_text()) for i in (0, 1, 3)]
    assert [trial.params[RATE] for trial in told] == [one[RATE] for one in values]
    before = folders.load_trial_config(folder, "002")
    assert second.suggest("again") == {"trial": "002"}
    assert folders.load_trial_config(folder, "002") == before
    assert second.suggest("new") == {"trial": "004"}
    finish(second, folder, "again", "002", 2.0)
    assert {trial.value for trial in second._study.trials} == {0.0, 1.0, 2.0, 3.0, None}


def test_a_trial_without_a_number_is_told_as_failed(loaded, tmp_path):
    searcher = begin(loaded, tmp_path / "asked")
    searcher.suggest("t0")
    searcher.on_trial_complete("t0", error=True)
    assert searcher._study.trials[0].state.name == "FAIL"
    assert searcher.suggest("t1") == {"trial": "001"}


def test_its_number_of_trials_is_what_the_budget_is_compared_with(loaded, tmp_path):
    assert len(loaded.trials) <= 30
    assert loaded.num_trials == 30
    with pytest.raises(ConfigError, match="are more than 5"):
        load(tmp_path, budget={"max_trials": 5})
    with pytest.raises(ConfigError, match="pbt changes the values during the run"):
        load(tmp_path, scheduler={"type": "pbt", "every_steps": 2, "mutate": [RATE]}, metric="reward/mean")


def test_without_optuna_there_is_one_clear_error(loaded, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"searcher: optuna: Optuna is not installed; pip install 'raylign\[optuna\]'"):
        begin(loaded, tmp_path / "asked")
