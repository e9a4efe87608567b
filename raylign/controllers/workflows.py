"""What each kind of run does from its first actor to its last: roles, loop, evaluation before and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from raylign.config import CollectConfig, OfflineAlgorithm, OnlineAlgorithm, OnlineConfig
from raylign.controllers.collect import collect
from raylign.controllers.context import Run
from raylign.controllers.evaluate import Evaluation, evaluate
from raylign.controllers.launch import launch
from raylign.controllers.offline import OfflineLoop
from raylign.controllers.online import OnlineLoop
from raylign.controllers.reference_cache import ReferenceLogprobs
from raylign.controllers.supervisor import Supervisor
from raylign.controllers.usage import note_use
from raylign.storage.commits import Commit
from raylign.types import Dataset, PairSet, PromptSet

Scores = dict[str, Any]  # {"before": {...}, "after": {...}}


def execute(run: Run, rows: Dataset, held_out: Dataset | None, commit: Commit | None) -> Scores:
    """Take a run from a commit (or its start) to its end; `rows` are what `config.algorithm.reads`."""
    match run.config.algorithm:
        case CollectConfig() as algorithm:
            assert isinstance(rows, PromptSet)
            return collected(run, algorithm, rows)
        case OnlineConfig() as algorithm:
            assert isinstance(rows, PromptSet)
            assert held_out is None or isinstance(held_out, PromptSet)
            return online(run, algorithm, rows, held_out, commit)
        case algorithm:
            return offline(run, algorithm, rows, held_out, commit)


def online(
    run: Run, algorithm: OnlineAlgorithm, prompts: PromptSet, held_out: PromptSet | None, commit: Commit | None
) -> Scores:
    """Train on rollouts of the policy; the same actors evaluate it before and after."""
    data, held_out_ref = ray.put(prompts), ray.put(held_out)
    total = algorithm.num_optimizer_steps(len(prompts))
    evaluations = EvaluationStore(run, held_out)
    with launch(run, run.config.phases[0], total, commit) as roles:
        loop = OnlineLoop(run, roles, algorithm, data, len(prompts))
        if commit:
            loop.restore(commit.step, commit.state)
        loop.sync()
        evaluations.get_or_compute("before", lambda: loop.evaluate(held_out_ref, evaluations.num_rows, "before"))
        run.view.status("training")
        loop.train(held_out_ref if held_out is not None else None, evaluations.num_rows)
        evaluations.get_or_compute("after", lambda: loop.evaluate(held_out_ref, evaluations.num_rows, "after"))
        note_use(run, roles)
    publish(run, commit)
    return evaluations.scores


def offline(
    run: Run, algorithm: OfflineAlgorithm, rows: Dataset, held_out: Dataset | None, commit: Commit | None
) -> Scores:
    """Train on a dataset, then release the learner and evaluate; a reward model evaluates itself while it is there."""
    total = algorithm.num_optimizer_steps(len(rows))
    evaluations = EvaluationStore(run, held_out)
    if commit is None or commit.step < total or algorithm.makes == "reward_model":
        data, held_out_ref = ray.put(rows), ray.put(held_out)
        with (
            ReferenceLogprobs(run, rows) as reference,
            launch(run, ["policy", *reference.roles], total, commit) as roles,
        ):
            loop = OfflineLoop(run, roles, algorithm, len(rows))
            loop.set_data(data, reference.get(roles, data))
            if commit:
                loop.restore(commit.step, commit.state)
            if isinstance(held_out, PairSet):
                evaluations.get_or_compute("before", lambda: loop.accuracy(held_out_ref))
            run.view.status("training")
            loop.train()
            if isinstance(held_out, PairSet):
                evaluations.get_or_compute("after", lambda: loop.accuracy(held_out_ref))
            note_use(run, roles)
    publish(run, commit)
    if isinstance(held_out, PromptSet):
        evaluate_after_training(run, held_out, evaluations)
    return evaluations.scores


def collected(run: Run, algorithm: CollectConfig, prompts: PromptSet) -> Scores:
    """Sample and score the prompts, and write the dataset."""
    with launch(run, run.config.phases[0]) as roles:
        collect(run, roles, algorithm, ray.put(prompts), len(prompts))
        note_use(run, roles)
    return {}


class EvaluationStore:
    """Evaluations of a run, kept on disk so that a resumed run does not repeat them."""

    def __init__(self, run: Run, held_out: Dataset | None) -> None:
        self._folder = run.folder
        self.num_rows = len(held_out) if held_out is not None else 0
        self.scores: Scores = {}

    def get_or_compute(self, label: str, compute: Callable[[], Evaluation | dict[str, Any]]) -> None:
        """Set `scores[label]`, computed unless it is on disk; without held-out rows there is nothing to evaluate."""
        if not self.num_rows:
            return
        if self._folder.evaluation(label) is None:
            evaluation = compute()
            if isinstance(evaluation, Evaluation):
                self._folder.write_evaluation(label, evaluation.numbers(), evaluation.samples)
            else:
                self._folder.write_evaluation(label, evaluation)
        self.scores[label] = self._folder.evaluation(label)


def evaluate_after_training(run: Run, held_out: PromptSet, evaluations: EvaluationStore) -> None:
    """Evaluate the start model, then the trained one. The engines are placed only now that the learner is gone."""
    with launch(run, run.config.phases[1]) as roles:
        data, supervisor = ray.put(held_out), Supervisor(run, roles)

        def score(version: int, label: str) -> Evaluation:
            return evaluate(run, roles, data, len(held_out), version, label, supervisor)

        supervisor.sync(0, lambda engine: engine.use_initial_weights.remote(0))
        evaluations.get_or_compute("before", lambda: score(0, "before"))
        model = str(run.folder.model)
        supervisor.sync(1, lambda engine: engine.load_folder.remote(1, model))
        evaluations.get_or_compute("after", lambda: score(1, "after"))
        note_use(run, roles, "evaluation")


def publish(run: Run, resumed_from: Commit | None) -> None:
    """Make the run's model of its last commit (see `RunFolder.publish`)."""
    commit = run.committed or resumed_from
    assert commit is not None
    run.folder.publish(commit, has_adapter=run.config.model.lora is not None)
