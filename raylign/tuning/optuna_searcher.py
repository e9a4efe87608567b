"""Suggest the values of each trial from the results of finished ones: Optuna's TPE (Bergstra et al. 2011) in Tune.

A trial is suggested when there is room for it. Its values are written to its folder, so that a resumed sweep can give
Optuna the finished trials again and continue the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune.search import Searcher

from raylign.config import RunConfig
from raylign.config.search_space import RUN, SearchSpace, Sweep, TrialSpec
from raylign.config.sweep import Parameter
from raylign.controllers.run import make_stages
from raylign.errors import UserError
from raylign.files import write_atomic
from raylign.tuning import folders
from raylign.tuning.results import final_metric
from raylign.tuning.size import check_sizes

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

VALUES = "values.json"  # the searched values, in a trial's folder


class OptunaSearcher(Searcher):
    """Suggests the trials of a sweep one by one.

    Args:
        sweep: its trials are those of earlier processes; each new one is appended.
        folder: the sweep's folder.
        examples: configs that the search space may produce, for checks before the first suggestion.
    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(self, sweep: Sweep, folder: Path, examples: Sequence[RunConfig]) -> None:
        super().__init__(metric=None, mode=None)
        self._optuna = _import_optuna()
        self._space, self._config, self._trials, self._folder = sweep.space, sweep.config, sweep.trials, folder
        self.examples = examples
        sampler = self._optuna.samplers.TPESampler(seed=self._config.seed + len(self._trials))
        direction = "maximize" if self._config.mode == "max" else "minimize"
        self._study = self._optuna.create_study(sampler=sampler, direction=direction)
        self._running: dict[str, tuple[TrialSpec, Trial | None]] = {}  # by Tune's trial id
        self._unfinished = []
        for spec in self._trials:
            if folders.read_outcome(folder, spec.id).ended:
                self._study.add_trial(self._finished_trial(spec))
            else:
                self._unfinished.append(spec)

    @property
    def num_left(self) -> int:
        """Number of trials that have not ended."""
        return len(self._unfinished) + self._config.trials - len(self._trials)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next trial: an unfinished one of an earlier process, or a new one."""
        if self._unfinished:
            spec, suggestion = self._unfinished.pop(0), None
        elif len(self._trials) < self._config.trials:
            suggestion = self._study.ask()
            spec = self._new_trial(self._suggest_values(suggestion))
        else:
            return Searcher.FINISHED  # pyright: ignore[reportReturnType]
        self._running[trial_id] = spec, suggestion
        return {"trial": spec.id}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Give Optuna the final value of the trial."""
        spec, suggestion = self._running.pop(trial_id)
        if suggestion is None:
            self._study.add_trial(self._finished_trial(spec))
            return
        value = final_metric(self._folder, spec.id, self._config.metric)
        failed = self._optuna.trial.TrialState.FAIL
        self._study.tell(suggestion, value, state=failed if value is None else None)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None: ...

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the trials' folders hold all state."""

    def restore(self, checkpoint_path: str) -> None: ...

    def _new_trial(self, values: dict[str, Any]) -> TrialSpec:
        """Check a new trial, make the runs that it needs, and write its folder."""
        width = max(3, len(str(self._config.trials - 1)))
        spec = self._space.trial(f"{len(self._trials):0{width}d}", values)
        config = folders.with_absolute_output_dir(spec.config)
        check_sizes({spec.id: config})
        make_stages([config], quiet=True)
        write_atomic(folders.trial_folder(self._folder, spec.id) / VALUES, json.dumps(values))
        folders.prepare(self._folder, {spec.id: config}, resume=True)
        self._trials.append(spec)
        return spec

    def _suggest_values(self, suggestion: Trial) -> dict[str, Any]:
        """Suggest a value for each key whose condition holds, after the keys that the condition refers to."""
        parameters, values = self._space.parameters, {}
        while ready := [key for key in parameters if not (self._space.condition_keys(key) & parameters.keys())]:
            for key in ready:
                parameter = parameters.pop(key)
                if key == RUN or self._space.condition_holds(key, values):
                    values[key] = _suggest(suggestion, key, parameter)
        return values

    def _finished_trial(self, spec: TrialSpec) -> FrozenTrial:
        """Return a finished trial of an earlier process as an Optuna trial."""
        values = json.loads((folders.trial_folder(self._folder, spec.id) / VALUES).read_text())
        parameters = self._space.parameters
        metric = final_metric(self._folder, spec.id, self._config.metric)
        state = self._optuna.trial.TrialState
        return self._optuna.trial.create_trial(
            params={key: _to_optuna(parameters[key], value) for key, value in values.items()},
            distributions={key: _distribution(parameters[key]) for key in values},
            value=metric,
            state=state.FAIL if metric is None else state.COMPLETE,
        )


def load_suggested_trials(space: SearchSpace, folder: Path) -> list[TrialSpec]:
    """Load the trials that earlier processes suggested for a sweep, in order."""
    files = sorted(folder.glob(f"trials/*/{VALUES}"))
    return [space.trial(file.parent.name, json.loads(file.read_text())) for file in files]


def _suggest(suggestion: Trial, key: str, parameter: Parameter) -> Any:
    samples = parameter.samples
    match parameter.kind:
        case "grid" | "choice":
            return samples[suggestion.suggest_categorical(key, list(range(len(samples))))]
        case "integer":
            return suggestion.suggest_int(key, *samples)
        case kind:
            return suggestion.suggest_float(key, *samples, log=kind == "loguniform")


def _distribution(parameter: Parameter) -> Any:
    """Return the Optuna distribution of a parameter."""
    distributions = _import_optuna().distributions
    samples = parameter.samples
    match parameter.kind:
        case "grid" | "choice":
            return distributions.CategoricalDistribution(list(range(len(samples))))
        case "integer":
            return distributions.IntDistribution(*samples)
        case kind:
            return distributions.FloatDistribution(*samples, log=kind == "loguniform")


def _to_optuna(parameter: Parameter, value: Any) -> Any:
    """Return a value as Optuna stores it: listed values by index, since Optuna accepts only simple types."""
    return parameter.samples.index(value) if parameter.kind in ("grid", "choice") else value


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(
            "searcher: optuna: Optuna is not installed; pip install 'raylign[optuna]', or use searcher: random"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
