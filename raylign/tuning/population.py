"""Population based training (Jaderberg et al. 2017): after each generation the worst trials copy the committed state of
the best (exploit) and continue with slightly changed values (explore).

A generation is `every_steps` steps of every trial. Its decisions are written to `population.json` before they are
applied, so a sweep that is killed at any moment continues as if it had not been.
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

from raylign.config import RunConfig, parse_config
from raylign.config.load import Lines, set_value, value_at
from raylign.config.search_space import sample_value
from raylign.config.sweep import Parameter, PBTConfig, SweepConfig
from raylign.files import write_atomic
from raylign.storage.run_folder import RunFolder
from raylign.tuning import folders
from raylign.tuning.results import final_metric

RECORD = "population.json"
_RESAMPLED = 0.25  # share of changed values that are drawn anew; the others move to a value nearby
_FACTORS = (0.8, 1.2)


@dataclass(frozen=True)
class Exploit:
    """One exploit step of PBT: `trial` copies the state of `donor`, with new values of the mutated keys and a new seed."""

    trial: str
    donor: str
    values: dict[str, Any]
    seed: int


class Population:
    """The trials of a sweep whose scheduler is PBT.

    Args:
        folder: the sweep's folder.
        config: the sweep.
        trials: the original configs, by trial id; the current ones are in the trials' folders.
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
        on_exploit: Callable[[int, Exploit], None] = lambda step, exploit: None,
    ) -> None:
        """Run all trials to their ends, generation by generation.

        Args:
            execute: runs the given trials until they have committed the given step or finished; returns early if it is
                stopped.
            on_exploit: called with the step and each exploit.
        """
        until = 0
        while live := [name for name in self._live() if name not in self._failed]:
            until += self.scheduler.every_steps
            left = {name: folders.load_trial_config(self.folder, name) for name in live if self._step(name) < until}
            if left:
                execute(left, until)
                self._failed |= {name for name in left if folders.read_outcome(self.folder, name).error}
            candidates = [name for name in self._live() if name not in self._failed]
            if any(self._step(name) < until for name in candidates):
                return  # stopped
            self._exploit(until, candidates, on_exploit)

    def _exploit(self, step: int, candidates: list[str], on_exploit: Callable[[int, Exploit], None]) -> None:
        """Decide once who copies whom, and apply the decisions that are not applied yet."""
        record = load_exploits(self.folder)
        if step not in record:
            scores = {name: final_metric(self.folder, name, self.config.metric) for name in candidates}
            configs = {name: folders.load_trial_config(self.folder, name) for name in candidates}
            record[step] = choose_exploits(self.config, step, scores, configs)
            tree = {str(at): [asdict(exploit) for exploit in exploits] for at, exploits in record.items()}
            write_atomic(self._file, json.dumps(tree, indent=1))
        for exploit in record[step]:
            if exploit.trial in candidates and self._apply(exploit, step):
                on_exploit(step, exploit)

    def _apply(self, exploit: Exploit, step: int) -> bool:
        """Copy the donor's config and commit to the trial, which keeps its name and history; False if done before."""
        place = self._trial(exploit.trial)
        before = folders.load_trial_config(self.folder, exploit.trial)
        commits = place.commits(before.checkpoint.keep)
        own, mark = commits.latest(), {"donor": exploit.donor, "step": step}
        if own and (own.step > step or own.state.get("taken_over") == mark):
            return False
        donor = self._trial(exploit.donor).commits(1).latest()
        assert donor is not None
        assert donor.step == step
        tree = folders.load_trial_config(self.folder, exploit.donor).model_dump(mode="json")
        for key, value in (exploit.values | {"seed": exploit.seed, "name": before.name}).items():
            set_value(tree, Lines(), key, value, str(self._file))
        config = parse_config(tree, str(self._file))
        place.write_config(config)
        place.forget_content()
        kept = {key: own.state[key] for key in ("tracker", "totals", "wall_seconds")} if own else {}
        commits.take_over(donor, exploit.seed, kept | {"taken_over": mark})
        return True

    def _live(self) -> list[str]:
        return [name for name in self.trials if not folders.read_outcome(self.folder, name).ended]

    def _step(self, name: str) -> int:
        """Return the step of a trial's newest commit."""
        return self._trial(name).newest_step

    def _trial(self, name: str) -> RunFolder:
        return RunFolder(folders.trial_folder(self.folder, name))


def load_exploits(folder: Path) -> dict[int, list[Exploit]]:
    """Load all exploits of a sweep so far, by step."""
    file = folder / RECORD
    record = json.loads(file.read_text()) if file.exists() else {}
    return {int(step): [Exploit(**fields) for fields in exploits] for step, exploits in record.items()}


def choose_exploits(
    config: SweepConfig, step: int, scores: Mapping[str, float | None], configs: Mapping[str, RunConfig]
) -> list[Exploit]:
    """Choose who copies whom: each trial in the worst `quantile` copies a random one of the best.

    Trials without a score, or with NaN, rank worst. The random choices depend only on the sweep's seed, the step and the
    trial's name.
    """
    assert isinstance(config.scheduler, PBTConfig)
    sign = 1.0 if config.mode == "max" else -1.0

    def rank(name: str) -> float:
        score = scores[name]
        return -math.inf if score is None or math.isnan(score) else sign * score

    ordered = sorted(scores, key=rank)  # worst first
    num = min(max(1, int(len(ordered) * config.scheduler.quantile)), len(ordered) // 2)
    exploits = []
    for loser in ordered[:num]:
        random = Random(f"{config.seed} {step} {loser}")
        donor = random.choice(ordered[-num:])
        if rank(donor) <= rank(loser):
            continue  # the donor is not better
        current = configs[donor].model_dump(mode="json")
        values = {}
        for key in config.scheduler.mutate:
            value = value_at(current, key)
            if value is not None:
                values[key] = explore(config.search[key], value, random)
        seed = zlib.crc32(f"{configs[donor].seed} {step} {loser}".encode()) % 2**31
        exploits.append(Exploit(loser, donor, values, seed))
    return exploits


def explore(parameter: Parameter, value: Any, random: Random) -> Any:
    """Return a changed value within the range: a new draw, or a value nearby (a factor, or the neighbour in a list)."""
    if random.random() < _RESAMPLED:
        return sample_value(parameter, random)
    if parameter.kind in ("grid", "choice"):
        listed = parameter.samples
        index = min(range(len(listed)), key=lambda i: (listed[i] != value, i))
        return listed[min(max(index + random.choice((-1, 1)), 0), len(listed) - 1)]
    low, high = parameter.samples
    moved = min(max(float(f"{value * random.choice(_FACTORS):.4g}"), low), high)
    return round(moved) if parameter.kind == "integer" else moved
