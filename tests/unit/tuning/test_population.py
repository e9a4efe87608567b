"""Population based training: who takes over whom, with which values, and that a crash at any moment changes nothing."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from raylign.config import RunConfig, parse_config
from raylign.config.sweep import Parameter, SweepConfig
from raylign.files import write_atomic
from raylign.storage.run_folder import RunFolder
from raylign.tuning import folders
from raylign.tuning.population import Population, choose_exploits, explore, load_exploits

RATE = "algorithm.optimizer.learning_rate"
STEPS = 6


def sweep_config(**changes: Any) -> SweepConfig:
    tree = {
        "name": "p",
        "run": "sft.yaml",
        "search": {RATE: {"loguniform": [1e-4, 1e-2]}},
        "trials": 4,
        "metric": "sft/loss",
        "mode": "min",
        "scheduler": {"type": "pbt", "every_steps": 2, "mutate": [RATE]},
    }
    return SweepConfig.model_validate(tree | changes)


def rate_of(config: RunConfig) -> float:
    return config.algorithm.optimizer.learning_rate  # pyright: ignore[reportAttributeAccessIssue]


def run_config(name: str, rate: float) -> RunConfig:
    return parse_config(
        {
            "name": f"p-{name}",
            "task": {"name": "sentiment"},
            "model": {"path": "task:model"},
            "data": {"path": "task:corpus"},
            "algorithm": {"name": "sft", "optimizer": {"learning_rate": rate}},
        }
    )


CONFIGS = {f"{i:03d}": run_config(f"{i:03d}", rate) for i, rate in enumerate((1e-3, 2e-3, 3e-3, 4e-3))}


class Learns:
    """In the place of the runs: a trial's loss is the distance of its weight from 1, which it nears by its rate."""

    def __init__(self, folder: Path, fails: frozenset[str] = frozenset()) -> None:
        self.folder, self.fails, self.calls = folder, fails, []

    def __call__(self, trials: Mapping[str, RunConfig], until: int) -> None:
        self.calls.append((until, sorted(trials)))
        for name in trials:
            place = folders.trial_folder(self.folder, name)
            config = RunFolder(place).config
            commits = RunFolder(place).commits(1)
            if name in self.fails:
                write_atomic(place / folders.ERROR, '{"error": "OSError: no"}')
                continue
            last = commits.latest()
            weight = load_file(Path(last.role("policy")) / "model.safetensors")["w"] if last else np.zeros(1)
            with RunFolder(place).metrics_file.open("a") as log:
                for step in range(last.step if last else 0, until):
                    weight = weight + 100 * rate_of(config) * (1 - weight)
                    log.write(json.dumps({"step": step + 1, "sft/loss": float(abs(1 - weight[0]))}) + "\n")
            path = commits.begin(until)
            (path / "policy" / "state").mkdir(parents=True)
            save_file({"w": weight}, path / "policy" / "model.safetensors")
            save_file({"torch": np.zeros(1)}, path / "policy" / "state" / "random-0.safetensors")
            state = {"sampler": {"seed": config.seed, "num_batches": until}, "tracker": {"wandb_run_id": name}}
            commits.finish(path, until, state | {"totals": {"tokens/trained": 1.0}, "wall_seconds": float(name)})
            if until >= STEPS:
                RunFolder(place).write_summary({})


def begin(folder: Path) -> Population:
    folders.prepare(
        folder, CONFIGS, resume=True, changed=[m.trial for moves in load_exploits(folder).values() for m in moves]
    )
    return Population(folder, sweep_config(), CONFIGS)


def state_of(folder: Path) -> dict[str, Any]:
    """All that a sweep leaves, less what is not repeatable."""
    found: dict[str, Any] = {"moves": load_exploits(folder)}
    for name in CONFIGS:
        place = folders.trial_folder(folder, name)
        commit = RunFolder(place).commits(1).latest()
        assert commit
        weight = load_file(Path(commit.role("policy")) / "model.safetensors")["w"]
        found[name] = (RunFolder(place).config, weight.tobytes(), commit.step, commit.state)
    return found


def test_the_worst_go_on_from_the_best_and_every_trial_comes_to_its_end(tmp_path):
    learns, told = Learns(tmp_path), []
    begin(tmp_path).train(learns, lambda step, move: told.append((step, move)))
    assert learns.calls == [(until, sorted(CONFIGS)) for until in (2, 4, 6)]
    moves = load_exploits(tmp_path)
    assert {step: [(m.trial, m.donor) for m in found] for step, found in moves.items()}[2] == [("000", "003")]
    assert set(moves) == {2, 4, 6}
    assert moves[6] == [], "who is at the end is left alone"
    assert told == [(step, move) for step in (2, 4) for move in moves[step]]
    for name in CONFIGS:
        assert folders.read_outcome(tmp_path, name).summary is not None
    (move,) = moves[2]
    config = RunFolder(folders.trial_folder(tmp_path, "000")).config
    assert config.name == "p-000"
    assert config.seed != CONFIGS["000"].seed
    assert move.values[RATE] != rate_of(CONFIGS["000"])


def test_a_take_over_is_the_donors_state_with_a_seed_and_a_history_of_its_own(tmp_path):
    population, learns = begin(tmp_path), Learns(tmp_path)
    learns(CONFIGS, 2)
    population._exploit(2, list(CONFIGS), lambda step, move: None)
    loser, donor = (RunFolder(folders.trial_folder(tmp_path, n)).commits(1).latest() for n in ("000", "003"))
    assert loser
    assert donor
    weights = [load_file(Path(c.role("policy")) / "model.safetensors")["w"] for c in (loser, donor)]
    assert weights[0] == weights[1]
    assert (loser.state["tracker"], loser.state["wall_seconds"]) == ({"wandb_run_id": "000"}, 0.0)
    assert loser.state["sampler"] == {"seed": load_exploits(tmp_path)[2][0].seed, "num_batches": 2}
    assert (Path(donor.role("policy")) / "state" / "random-0.safetensors").exists()
    assert not (Path(loser.role("policy")) / "state" / "random-0.safetensors").exists(), "it draws by its own seed"


BREAKS = (
    "tuning.population.write_atomic",
    "tuning.population.parse_config",
    "storage.run_folder.RunFolder.write_config",
    "storage.commits.Commits.finish",
)


@pytest.mark.parametrize("breaks", BREAKS)
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_moment_of_a_take_over_changes_nothing(tmp_path, monkeypatch, breaks, after):
    whole, crashed = tmp_path / "whole", tmp_path / "crashed"
    begin(whole).train(Learns(whole))

    learns, population = Learns(crashed), begin(crashed)
    learns(CONFIGS, 2)
    with monkeypatch.context() as patched:
        place = f"raylign.{breaks}"
        real = pkgutil.resolve_name(place)

        def breaking(*args: Any, **more: Any) -> Any:
            if after:
                real(*args, **more)
            raise KeyboardInterrupt

        patched.setattr(place, breaking)
        with pytest.raises(KeyboardInterrupt):
            population._exploit(2, list(CONFIGS), lambda step, move: None)
    begin(crashed).train(learns)
    assert state_of(crashed) == state_of(whole)


def test_a_trial_that_fails_takes_no_part_and_is_tried_again_by_who_resumes(tmp_path):
    learns = Learns(tmp_path, fails=frozenset({"003"}))
    begin(tmp_path).train(learns)
    assert load_exploits(tmp_path)[2][0].donor == "002"
    assert learns.calls[1] == (4, ["000", "001", "002"])
    folders.trial_folder(tmp_path, "003").joinpath(folders.ERROR).unlink()
    again = Learns(tmp_path)
    begin(tmp_path).train(again)
    assert again.calls == [(until, ["003"]) for until in (2, 4, 6)]
    assert folders.read_outcome(tmp_path, "003").summary is not None


def test_what_was_stopped_is_not_decided_about(tmp_path):
    begin(tmp_path).train(lambda trials, until: None)
    assert load_exploits(tmp_path) == {}


@pytest.mark.parametrize(("mode", "loser", "donor"), [("max", "000", "003"), ("min", "003", "000")])
def test_best_is_by_the_mode(mode, loser, donor):
    scores = dict(zip(CONFIGS, (1.0, 2.0, 3.0, 4.0), strict=True))
    (move,) = choose_exploits(sweep_config(mode=mode), 2, scores, CONFIGS)
    assert (move.trial, move.donor) == (loser, donor)


def test_no_number_is_the_worst_and_equals_do_not_move():
    scores: dict[str, float | None] = {"000": 1.0, "001": float("nan"), "002": 1.0, "003": 0.5}
    (move,) = choose_exploits(sweep_config(mode="max"), 2, scores, CONFIGS)
    assert move.trial == "001"
    assert choose_exploits(sweep_config(mode="max"), 2, dict.fromkeys(CONFIGS, 1.0), CONFIGS) == []
    assert choose_exploits(sweep_config(), 2, {"000": 1.0}, CONFIGS) == [], "alone there is nobody to go on from"


def test_half_of_the_population_at_most_is_replaced():
    half = {"type": "pbt", "every_steps": 2, "mutate": [RATE], "quantile": 0.5}
    moves = choose_exploits(
        sweep_config(scheduler=half), 2, dict(zip(CONFIGS, (4.0, 3.0, 2.0, 1.0), strict=True)), CONFIGS
    )
    assert [m.trial for m in moves] == ["000", "001"]
    assert {m.donor for m in moves} <= {"002", "003"}


def test_decisions_follow_from_the_seed():
    scores = dict(zip(CONFIGS, (1.0, 2.0, 3.0, 4.0), strict=True))
    assert choose_exploits(sweep_config(), 2, scores, CONFIGS) == choose_exploits(sweep_config(), 2, scores, CONFIGS)
    many = {choose_exploits(sweep_config(seed=seed), 2, scores, CONFIGS)[0].values[RATE] for seed in range(20)}
    assert len(many) > 3


def test_exploring_stays_in_the_range_and_moves():
    rate = Parameter(loguniform=(1e-4, 1e-2))
    found = [explore(rate, 9e-3, Random(i)) for i in range(200)]
    assert all(1e-4 <= value <= 1e-2 for value in found)
    assert {7.2e-3, 1e-2} <= set(found)  # x 0.8, and x 1.2 cut at the end
    assert 0.15 < np.mean([value not in (7.2e-3, 1e-2) for value in found]) < 0.35  # new draws
    listed = Parameter(choice=(1, 2, 3))
    assert {explore(listed, 2, Random(i)) for i in range(50)} == {1, 2, 3}
    whole = Parameter(integer=(1, 4))
    assert {type(explore(whole, 3, Random(i))) for i in range(50)} == {int}
