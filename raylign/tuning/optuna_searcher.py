"""Values that follow from the trials that ended: Optuna's TPE (Bergstra et al. 2011) behind Tune's interface of a searcher.

Trials are asked for as there is room for them. What was asked for is written into the trial's folder, so a resumed sweep
tells Optuna again what came of the ended trials, and asks for the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune.search import Searcher

from raylign.config import RunConfig
from raylign.config.draw import RUN, Drawing, Point, Sweep
from raylign.config.sweep import Parameter
from raylign.controllers.run import make_stages
from raylign.errors import UserError
from raylign.files import write_atomic
from raylign.tuning import folders
from raylign.tuning.results import metric_of
from raylign.tuning.size import check_sizes

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

VALUES = "values.json"  # in a trial's folder: what was searched


class Asked(Searcher):
    """Makes the trials of a sweep one by one.

    Args:
        sweep: its points are the trials of earlier processes; each new one is added.
        folder: of the sweep.
        examples: configs as they may come out.
    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(self, sweep: Sweep, folder: Path, examples: Sequence[RunConfig]) -> None:
        super().__init__(metric=None, mode=None)
        self._optuna = _optuna()
        self._drawing, self._config, self._points, self._folder = sweep.drawing, sweep.config, sweep.points, folder
        self.examples = examples
        sampler = self._optuna.samplers.TPESampler(seed=self._config.seed + len(self._points))
        direction = "maximize" if self._config.mode == "max" else "minimize"
        self._study = self._optuna.create_study(sampler=sampler, direction=direction)
        self._open: dict[str, tuple[Point, Trial | None]] = {}  # by Tune's name of the trial
        self._left = []
        for point in self._points:
            if folders.outcome(folder, point.id).ended:
                self._study.add_trial(self._told(point))
            else:
                self._left.append(point)

    @property
    def num_left(self) -> int:
        """Trials that have not ended."""
        return len(self._left) + self._config.trials - len(self._points)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial: one of an earlier process that did not end, or a new one."""
        if self._left:
            point, asked = self._left.pop(0), None
        elif len(self._points) < self._config.trials:
            asked = self._study.ask()
            point = self._new(self._values(asked))
        else:
            return Searcher.FINISHED  # pyright: ignore[reportReturnType]
        self._open[trial_id] = point, asked
        return {"trial": point.id}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna what came of it."""
        point, asked = self._open.pop(trial_id)
        if asked is None:
            self._study.add_trial(self._told(point))
            return
        value = metric_of(self._folder, point.id, self._config.metric)
        failed = self._optuna.trial.TrialState.FAIL
        self._study.tell(asked, value, state=failed if value is None else None)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None: ...

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' folders have it all."""

    def restore(self, checkpoint_path: str) -> None: ...

    def _new(self, values: dict[str, Any]) -> Point:
        """A trial in a folder of its own."""
        width = max(3, len(str(self._config.trials - 1)))
        point = self._drawing.point(f"{len(self._points):0{width}d}", values)
        config = folders.with_absolute_output_dir(point.config)
        check_sizes({point.id: config})
        make_stages([config], quiet=True)
        write_atomic(folders.trial_folder(self._folder, point.id) / VALUES, json.dumps(values))
        folders.prepare(self._folder, {point.id: config}, resume=True)
        self._points.append(point)
        return point

    def _values(self, asked: Trial) -> dict[str, Any]:
        """Each key whose condition holds; a key is asked for behind those that its condition is about."""
        space, values = self._drawing.space, {}
        while ready := [key for key in space if not (self._drawing.about(key) & space.keys())]:
            for key in ready:
                parameter = space.pop(key)
                if key == RUN or self._drawing.holds(key, values):
                    values[key] = _suggest(asked, key, parameter)
        return values

    def _told(self, point: Point) -> FrozenTrial:
        """An ended trial of an earlier process."""
        values = json.loads((folders.trial_folder(self._folder, point.id) / VALUES).read_text())
        space = self._drawing.space
        value = metric_of(self._folder, point.id, self._config.metric)
        state = self._optuna.trial.TrialState
        return self._optuna.trial.create_trial(
            params={key: _coded(space[key], value) for key, value in values.items()},
            distributions={key: _distribution(space[key]) for key in values},
            value=value,
            state=state.FAIL if value is None else state.COMPLETE,
        )


def asked_before(drawing: Drawing, folder: Path) -> list[Point]:
    """The trials that are in the folder of a sweep, in order."""
    files = sorted(folder.glob(f"trials/*/{VALUES}"))
    return [drawing.point(file.parent.name, json.loads(file.read_text())) for file in files]


def _suggest(asked: Trial, key: str, parameter: Parameter) -> Any:
    ends = parameter.samples
    match parameter.kind:
        case "grid" | "choice":
            return ends[asked.suggest_categorical(key, list(range(len(ends))))]
        case "integer":
            return asked.suggest_int(key, *ends)
        case kind:
            return asked.suggest_float(key, *ends, log=kind == "loguniform")


def _distribution(parameter: Parameter) -> Any:
    of = _optuna().distributions
    ends = parameter.samples
    match parameter.kind:
        case "grid" | "choice":
            return of.CategoricalDistribution(list(range(len(ends))))
        case "integer":
            return of.IntDistribution(*ends)
        case kind:
            return of.FloatDistribution(*ends, log=kind == "loguniform")


def _coded(parameter: Parameter, value: Any) -> Any:
    """As Optuna knows it: values of a list by their place, for they may be anything."""
    return parameter.samples.index(value) if parameter.kind in ("grid", "choice") else value


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(
            "searcher: optuna: Optuna is not installed; pip install 'raylign[optuna]', or use searcher: random"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
