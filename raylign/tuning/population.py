"""Population based training (Jaderberg et al. 2017): trials advance by generations, and between two of them the worst go
on from the committed state of the best, with values a little changed.

A generation is `every_steps` steps of every trial. Its decisions are written to `population.json` before they are
carried out, so a sweep that is killed at any moment goes on as it would have.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from raylign.config import RunConfig, parse_config
from raylign.config.draw import draw
from raylign.config.load import Lines, set_value, value_at
from raylign.config.sweep import Parameter, PBTConfig, SweepConfig
from raylign.controllers.commits import Commits
from raylign.controllers.run_folders import CONTENT
from raylign.files import write_atomic
from raylign.tuning import folders
from raylign.tuning.results import metric_of

RECORD = "population.json"
_RESAMPLED = 0.25  # share of changes that are a new draw; the others are a step to the side
_FACTORS = (0.8, 1.2)


@dataclass(frozen=True)
class TakeOver:
    """`trial` goes on as `donor` does, with these values of the mutated keys, and another seed."""

    trial: str
    donor: str
    values: dict[str, Any]
    seed: int


class Population:
    """The trials of one sweep.

    Args:
        folder: of the sweep.
        config: its scheduler is PBT.
        trials: as they were drawn; what they have become is in their folders.
    """

    def __init__(self, folder: Path, config: SweepConfig, trials: Mapping[str, RunConfig]) -> None:
        assert isinstance(config.scheduler, PBTConfig)
        self.folder, self.config, self.scheduler = folder, config, config.scheduler
        self.trials = list(trials)
        self._failed: set[str] = set()
        self._file = folder / RECORD

    def train(
        self,
        execute: Callable[[Mapping[str, RunConfig], int], None],
        tell: Callable[[int, TakeOver], None] = lambda step, move: None,
    ) -> None:
        """Run all trials to their ends.

        Args:
            execute: runs these trials until they have committed that step, or came to their end; returns early if it
                was stopped.
            tell: is given each take-over and the step at which it was.
        """
        until = 0
        while live := [name for name in self._live() if name not in self._failed]:
            until += self.scheduler.every_steps
            left = {name: folders.config_of(self.folder, name) for name in live if self._step(name) < until}
            if left:
                execute(left, until)
                self._failed |= {name for name in left if folders.outcome(self.folder, name).error}
            there = [name for name in self._live() if name not in self._failed]
            if any(self._step(name) < until for name in there):
                return
            self._evolve(until, there, tell)

    def _evolve(self, step: int, there: list[str], tell: Callable[[int, TakeOver], None]) -> None:
        """Decide once, and carry out what is not carried out yet."""
        record = taken(self.folder)
        if step not in record:
            scores = {name: metric_of(self.folder, name, self.config.metric) for name in there}
            configs = {name: folders.config_of(self.folder, name) for name in there}
            record[step] = decide(self.config, step, scores, configs)
            written = {str(at): [asdict(one) for one in moves] for at, moves in record.items()}
            write_atomic(self._file, json.dumps(written, indent=1))
        for move in record[step]:
            if move.trial in there and self._carry_out(move, step):
                tell(step, move)

    def _carry_out(self, move: TakeOver, step: int) -> bool:
        """The loser's config and commit become the donor's, less what is its own; False if that was done before."""
        place = self._trial(move.trial)
        before = folders.config_of(self.folder, move.trial)
        commits = Commits(place / "commits", before.checkpoint.keep)
        own, mark = commits.latest(), {"donor": move.donor, "step": step}
        if own and (own.step > step or own.state.get("taken_over") == mark):
            return False
        donor = Commits(self._trial(move.donor) / "commits", 1).latest()
        assert donor is not None
        assert donor.step == step
        tree = folders.config_of(self.folder, move.donor).model_dump(mode="json")
        for key, value in (move.values | {"seed": move.seed, "name": before.name}).items():
            set_value(tree, Lines(), key, value, str(self._file))
        config = parse_config(tree, str(self._file))
        write_atomic(place / folders.CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        (place / CONTENT).unlink(missing_ok=True)
        kept = {key: own.state[key] for key in ("tracker", "totals", "wall_seconds")} if own else {}
        commits.take_over(donor, move.seed, kept | {"taken_over": mark})
        return True

    def _live(self) -> list[str]:
        return [name for name in self.trials if not folders.outcome(self.folder, name).ended]

    def _step(self, name: str) -> int:
        """The step of its newest commit."""
        steps = [int(path.name.removeprefix("step_")) for path in (self._trial(name) / "commits").glob("step_*")]
        return max(steps, default=0)

    def _trial(self, name: str) -> Path:
        return folders.trial_folder(self.folder, name)


def taken(folder: Path) -> dict[int, list[TakeOver]]:
    """All take-overs of a sweep so far, by step."""
    file = folder / RECORD
    found = json.loads(file.read_text()) if file.exists() else {}
    return {int(step): [TakeOver(**one) for one in moves] for step, moves in found.items()}


def decide(
    config: SweepConfig, step: int, scores: Mapping[str, float | None], configs: Mapping[str, RunConfig]
) -> list[TakeOver]:
    """Who takes over whom: the worst `quantile` of the trials, each from one of the best, drawn.

    A trial without a score, or whose score is not a number, is the worst. Everything follows from the sweep's seed, the
    step and the trial's name.
    """
    assert isinstance(config.scheduler, PBTConfig)
    sign = 1.0 if config.mode == "max" else -1.0

    def rank(name: str) -> float:
        score = scores[name]
        return -math.inf if score is None or math.isnan(score) else sign * score

    ordered = sorted(scores, key=rank)  # worst first
    num = min(max(1, int(len(ordered) * config.scheduler.quantile)), len(ordered) // 2)
    moves = []
    for loser in ordered[:num]:
        random = Random(f"{config.seed} {step} {loser}")
        donor = random.choice(ordered[-num:])
        if rank(donor) <= rank(loser):
            continue  # nobody is better
        current = configs[donor].model_dump(mode="json")
        values = {}
        for key in config.scheduler.mutate:
            value = value_at(current, key)
            if value is not None:
                values[key] = explore(config.search[key], value, random)
        seed = zlib.crc32(f"{configs[donor].seed} {step} {loser}".encode()) % 2**31
        moves.append(TakeOver(loser, donor, values, seed))
    return moves


def explore(parameter: Parameter, value: Any, random: Random) -> Any:
    """Another value: a new draw, or a step to the side (a factor, or the neighbour in a list) within the range."""
    if random.random() < _RESAMPLED:
        return draw(parameter, random)
    if parameter.kind in ("grid", "choice"):
        listed = parameter.samples
        place = min(range(len(listed)), key=lambda i: (listed[i] != value, i))
        return listed[min(max(place + random.choice((-1, 1)), 0), len(listed) - 1)]
    low, high = parameter.samples
    moved = min(max(float(f"{value * random.choice(_FACTORS):.4g}"), low), high)
    return round(moved) if parameter.kind == "integer" else moved
