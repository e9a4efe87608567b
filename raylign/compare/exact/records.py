"""The runs of an exact comparison, executed and measured one after another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from raylign.compare.exact.scores import exact_reference
from raylign.compare.expand import PlannedRun
from raylign.files import write_atomic


@dataclass(frozen=True)
class ExactRecord:
    """A run and the exact value of its policy; see `raylign.tasks.exact_optimum` for the definitions."""

    algorithm: str
    beta: float
    seed: int
    fraction_of_optimum: float
    J: float
    J_ref: float
    J_star: float
    reward: float
    kl: float
    policy: str  # folder
    config: str  # `raylign run` of this file makes the same policy
    seconds: float


def execute(planned: Sequence[PlannedRun], note: Callable[[str], None]) -> Iterator[ExactRecord]:
    """Execute the runs one after another on one Ray, and yield the record of each; finished runs are not redone.

    The runs share their actors (docs/decisions/0011-exact-runs-share-actors.md).

    Args:
        note: called with a line about the run that begins.
    """
    from raylign.actors.session import ray_session
    from raylign.controllers.pool import actor_pool
    from raylign.controllers.run import run

    with ray_session(), actor_pool() as pool:
        for number, one in enumerate(planned, 1):
            note(f"{number} of {len(planned)}: {one.method}, beta {one.setting['beta']:g}, seed {one.seed}")
            result = run(one.config, resume=True, quiet=True, pool=pool)
            yield measure(one, result.output, result.summary["wall_seconds"])


def measure(run: PlannedRun, policy: Path, seconds: float) -> ExactRecord:
    """Return the record of a finished run.

    Args:
        policy: its Hugging Face folder, in the run directory.
    """
    from raylign.tasks.exact_optimum import evaluate, log_probabilities, optimum

    measured = exact_reference(str(policy.parent))
    assert measured is not None
    enumeration, ref = measured
    beta: float = run.setting["beta"]
    value = evaluate(log_probabilities(policy, enumeration), ref, enumeration.rewards, beta)
    best = optimum(ref, enumeration.rewards, beta)
    return ExactRecord(
        algorithm=run.method,
        beta=beta,
        seed=run.seed,
        fraction_of_optimum=value.fraction,
        J=value.j,
        J_ref=best.j_ref,
        J_star=best.j_star,
        reward=value.reward,
        kl=value.kl,
        policy=str(policy),
        config=str(run.file),
        seconds=seconds,
    )


def write_records(file: Path, records: Sequence[ExactRecord]) -> None:
    """Write a JSON list with an object for every run."""
    write_atomic(file, json.dumps([asdict(record) for record in records], indent=1))
