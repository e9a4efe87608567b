"""What each kind of run does from its first actor to its last: roles, loop, evaluation before and after."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray

from raylign.config import CollectConfig, OfflineAlgorithm, OnlineAlgorithm, OnlineConfig
from raylign.controllers.collect import collect
from raylign.controllers.context import Run
from raylign.controllers.evaluate import Evaluation, evaluate
from raylign.controllers.launch import launch
from raylign.controllers.offline import (
    OfflineLoop,
    cache_logprobs,
    cached_logprobs,
    reference_key,
    reference_logprobs,
)
from raylign.controllers.online import OnlineLoop
from raylign.controllers.supervisor import Supervisor
from raylign.controllers.usage import note_use
from raylign.storage.commits import Commit
from raylign.storage.lock import locked
from raylign.storage.outputs import output_base
from raylign.types import Dataset, LabelledSet, PairSet, PromptSet

Scores = dict[str, Any]  # {"before": {...}, "after": {...}}


def execute(run: Run, rows: Any, held_out: Any, commit: Commit | None) -> Scores:
    """Take a run from a commit (or its start) to its end; `rows` are what `config.algorithm.reads`."""
    match run.config.algorithm:
        case CollectConfig() as algorithm:
            return collected(run, algorithm, rows)
        case OnlineConfig() as algorithm:
            return online(run, algorithm, rows, held_out, commit)
        case algorithm:
            return offline(run, algorithm, rows, held_out, commit)


def online(
    run: Run, algorithm: OnlineAlgorithm, prompts: PromptSet, held_out: PromptSet | None, commit: Commit | None
) -> Scores:
    config = run.config
    data, held = ray.put(prompts), ray.put(held_out)
    total = algorithm.num_optimizer_steps(len(prompts))
    scores = Found(run, held_out)
    with launch(run, config.phases[0], total, commit) as roles:
        loop = OnlineLoop(run, roles, algorithm, data, len(prompts))
        if commit:
            loop.restore(commit.step, commit.state)
        loop.sync()
        scores.need("before", lambda: loop.evaluate(held, scores.num_prompts, "before"))
        run.view.status("training")
        loop.train(held if held_out is not None else None, scores.num_prompts)
        scores.need("after", lambda: loop.evaluate(held, scores.num_prompts, "after"))
        note_use(run, roles)
    publish(run, run.committed or commit)
    return scores.found


def offline(
    run: Run, algorithm: OfflineAlgorithm, rows: Any, held_out: Dataset | None, commit: Commit | None
) -> Scores:
    data, held = ray.put(rows), ray.put(held_out)
    total = algorithm.num_optimizer_steps(len(rows))
    scores = Found(run, held_out)
    judges_itself = algorithm.makes == "reward_model"
    if commit is None or commit.step < total or judges_itself:
        cache = _reference_cache(run, rows) if algorithm.needs_reference else None
        making = ExitStack()  # of the cache, by one run at a time
        if cache:
            holds = "computes these reference logprobs"
            making.enter_context(locked(cache, timeout=run.config.limits.generate, holds=holds, stop=run.stop))
        cached = cache and cached_logprobs(cache)
        if cached:
            making.close()
        names = ["policy", *(["reference"] if cache and not cached else [])]
        with making, launch(run, names, total, commit) as roles:
            loop = OfflineLoop(run, roles, algorithm, len(rows))
            if cache and not cached:
                cached = reference_logprobs(run, roles, rows, data)
                cache_logprobs(cache, cached)
                note_use(run, roles)
                roles.dismiss_reference()
                making.close()
            loop.set_data(data, cached)
            if commit:
                loop.restore(commit.step, commit.state)
            if judges_itself:
                scores.need("before", lambda: loop.accuracy(held))
            run.view.status("training")
            loop.train()
            if judges_itself:
                scores.need("after", lambda: loop.accuracy(held))
            note_use(run, roles)
    publish(run, run.committed or commit)
    if isinstance(held_out, PromptSet):
        _judge(run, held_out, scores)
    return scores.found


def collected(run: Run, algorithm: CollectConfig, prompts: PromptSet) -> Scores:
    with launch(run, run.config.phases[0]) as roles:
        collect(run, roles, algorithm, ray.put(prompts), len(prompts))
        note_use(run, roles)
    return {}


class Found:
    """Evaluations of a run, kept on disk so that a resumed run does not repeat them."""

    def __init__(self, run: Run, held_out: Dataset | None) -> None:
        self._folder = run.folder
        self.num_prompts = len(held_out) if held_out is not None else 0
        self.found: Scores = {}

    def need(self, label: str, make: Any) -> None:
        """`make()` an Evaluation (or a dict of numbers) unless there is nothing to evaluate or it was done before."""
        if not self.num_prompts:
            return
        if self._folder.evaluation(label) is None:
            made = make()
            if isinstance(made, Evaluation):
                self._folder.write_evaluation(label, made.numbers(), made.samples)
            else:
                self._folder.write_evaluation(label, made)
        self.found[label] = self._folder.evaluation(label)


def _reference_cache(run: Run, rows: PairSet | LabelledSet) -> Path:
    """Where the reference logprobs of these rows are kept, for this run and all others that need the same."""
    key = reference_key(run.config, rows)
    return output_base(run.config.output_dir) / "cache" / f"reference-{key}.safetensors"


def _judge(run: Run, held_out: PromptSet, scores: Found) -> None:
    """Engines are placed only now that the learner is gone: first with the start model, then with what was learned."""
    config = run.config
    with launch(run, config.phases[1]) as roles:
        held, supervisor = ray.put(held_out), Supervisor(run, roles)
        supervisor.sync(0, lambda engine: engine.use_initial_weights.remote(0))
        scores.need("before", lambda: evaluate(run, roles, held, len(held_out), 0, "before", supervisor))
        model = str(run.folder.model)
        supervisor.sync(1, lambda engine: engine.load_folder.remote(1, model))
        scores.need("after", lambda: evaluate(run, roles, held, len(held_out), 1, "after", supervisor))
        note_use(run, roles, "evaluation")


def publish(run: Run, commit: Commit | None) -> None:
    """Make the run's model of its last commit (see `RunFolder.publish`)."""
    assert commit is not None
    run.folder.publish(commit, has_adapter=run.config.model.lora is not None)
