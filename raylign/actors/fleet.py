"""Rollout engines of a run: which of them serve, which work each gets, and how they join and leave.

An engine serves only the version that it has acknowledged. The first engines have bundles in the run's placement group;
an elastic fleet reserves a group of its own for each further engine, without waiting for it. Nothing here influences the samples (see
`routing`), so the run has the same result whatever the fleet does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raylign.actors.actor_classes import RolloutActor
from raylign.actors.engine import Engine, EngineState, Work
from raylign.actors.group import Launcher
from raylign.actors.layout import bundle_of
from raylign.actors.routing import LengthBook, assign
from raylign.actors.waiting import ActorLost, Waiter, translate
from raylign.config import RoleResources, RolloutConfig
from raylign.errors import DeadlineError, StaleEngineError
from raylign.types import LongArray

_RUNNING = (EngineState.SYNCING, EngineState.SERVING, EngineState.DRAINING)


@dataclass(frozen=True)
class Job:
    """Part of a step: the RolloutBatch it becomes, and the id of the engine that makes it."""

    batch: ObjectRef
    engine: str


class RolloutFleet:
    """Group of `len(slots)` engines, launched at once; `submit_start`, which needs `build`, loads their models.

    Args: see `ActorGroup`; `rollout` has the bounds of an elastic fleet.
    """

    def __init__(
        self,
        role: str,
        resources: RoleResources,
        slots: list[PlacementGroupSchedulingStrategy],
        num_threads: int,
        rollout: RolloutConfig,
    ) -> None:
        self.role = role
        self.build: Callable[..., object] | None = None  # makes the worker inside the actor
        self.elastic = rollout.elastic
        self.max_engines = self.elastic.max_engines if self.elastic else len(slots)
        self.num_joined = self.num_left = 0  # since they were last set to 0
        self._max_tokens = rollout.sampling.max_tokens
        self._lengths = LengthBook(self._max_tokens)
        self._launcher = Launcher(RolloutActor, resources, num_threads)
        self._bundle = bundle_of(resources.num_cpus, resources.num_gpus)
        self._reserved: list[PlacementGroup] = []  # requested, not yet granted
        self.engines = [Engine(self._launcher.launch(slot), slot) for slot in slots]  # engines that are not dead

    @property
    def actors(self) -> list[Any]:
        """Handles of the engines whose model is loaded."""
        return [engine.actor for engine in self.engines if engine.state in _RUNNING]

    def __len__(self) -> int:
        return len(self.actors)

    @property
    def num_serving(self) -> int:
        return len(self._in(EngineState.SERVING))

    def submit_start(self) -> list[ObjectRef]:
        """Load the model in all engines, also in those that served another run."""
        self._lengths = LengthBook(self._max_tokens)
        self.num_joined = self.num_left = 0
        self.engines = [Engine(e.actor, e.slot, e.actor.start.remote(self.build), e.own) for e in self.engines]
        return [engine.started for engine in self.engines if engine.started is not None]

    def submit_sleep(self) -> list[ObjectRef]:
        """Move every engine's memory off its GPU."""
        return [actor.sleep.remote() for actor in self.actors]

    def submit_wake(self, others_asleep: Sequence[ObjectRef]) -> None:
        """Move it back once the others are asleep (see `SleepingActor.wake`)."""
        for actor in self.actors:
            actor.wake.remote(*others_asleep)

    def submit(self, prompts: ObjectRef, rows: LongArray, num_samples: int, step: int, version: int) -> Job:
        """Submit a single part (see `submit_parts`)."""
        return self.submit_parts(prompts, [(rows, step)], num_samples, version)[0]

    def submit_parts(
        self, prompts: ObjectRef, parts: Sequence[tuple[LongArray, int]], num_samples: int, version: int
    ) -> list[Job]:
        """Send each part, (prompt rows, step that seeds them), to the serving engine that will be free for it first.

        All samples of a prompt are made by the same engine, which computes the prompt once.

        Raises:
            StaleEngineError: no engine serves `version`.
        """
        self._note_done()
        serving = [engine for engine in self._in(EngineState.SERVING) if engine.version == version]
        if not serving:
            held = ", ".join(f"{e.state.value} {e.version}" for e in self.engines) or "none"
            raise StaleEngineError(f"rollout: no engine serves policy version {version} (engines: {held}); sync first")
        costs = [num_samples * self._lengths.expect(prompts, rows) for rows, _ in parts]
        jobs = []
        for (rows, step), cost, taken in zip(
            parts, costs, assign(costs, [engine.load for engine in serving]), strict=True
        ):
            engine = serving[taken]
            batch, lengths = engine.actor.generate.options(num_returns=2).remote(
                prompts, rows, num_samples, step, version
            )
            engine.work[lengths] = Work(prompts, rows, cost)
            jobs.append(Job(batch, engine.id))
        return jobs

    def sync(
        self, version: int, load: Callable[[Any], ObjectRef], waiter: Waiter, *, timeout: float, waiting_for: str
    ) -> None:
        """Bring every engine that has started to `version`; returns when each has acknowledged it.

        An elastic fleet drops engines that die meanwhile or miss the deadline.

        Args:
            load: submits the call that loads the weights into an engine's actor; the call returns their version.
        Raises:
            ActorLost, DeadlineError: an engine of a fleet that is not elastic failed, or the weights were lost; all other
                engines are synced.
        """
        self._note_started()
        due = [e for e in self._in(EngineState.SYNCING, EngineState.SERVING) if e.version != version]
        for engine in due:
            engine.sync()
        failed: list[ActorLost | DeadlineError] = []
        acknowledged = waiter.settle([load(e.actor) for e in due], timeout=timeout, waiting_for=waiting_for)
        for engine, found in zip(due, acknowledged, strict=True):
            if isinstance(found, ActorLost | DeadlineError):
                # If the weights died with their learner, the engine is still alive.
                if self.elastic and (isinstance(found, DeadlineError) or engine.id in found.actor_ids):
                    self._drop(engine)
                else:
                    failed.append(found)
                continue
            assert found == version, f"an engine acknowledged version {found}, not {version}"
            engine.acknowledge(version)
            if engine.is_new:
                engine.is_new = False
                self.num_joined += 1
        if failed:
            raise failed[0]

    def reconcile(self) -> None:
        """Let engines join and leave, without waiting for either; only an elastic fleet does this."""
        if self.elastic is None:
            return
        for group in [group for group in self._reserved if group.wait(0)]:
            self._reserved.remove(group)
            self._start(PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0), group)
        self._note_started()
        self._note_done()
        for engine in self._in(EngineState.DRAINING):
            if not engine.work:
                self._remove(engine)
                self._release(engine)
        staying = self._in(EngineState.STARTING, EngineState.SYNCING, EngineState.SERVING)
        for engine in staying[self.max_engines :]:
            self.drain(engine)
        # A pending request also makes an autoscaler add a node.
        for _ in range(self.max_engines - len(staying) - len(self._reserved)):
            self._reserved.append(placement_group([self._bundle]))

    def drain(self, engine: Engine) -> None:
        """Let an engine finish its work; then `reconcile` ends it."""
        engine.become(EngineState.DRAINING)

    def replace_dead(self, actor_ids: Collection[str]) -> list[ObjectRef]:
        """Replace the engines of these ids, which are dead; returns the starts of their successors.

        If an engine's node is gone, its successor starts when Ray finds the place another node.
        """
        lost = [engine for engine in self.engines if engine.id in actor_ids]
        return [started for engine in lost if (started := self._drop(engine)) is not None]

    def describe(self) -> str:
        """Return how many engines are in which state, as text."""
        counts = {state: len(self._in(state)) for state in EngineState}
        shown = [f"{number} {state.value}" for state, number in counts.items() if number]
        return ", ".join([*shown, *([f"{len(self._reserved)} without a place"] if self._reserved else [])]) or "none"

    def kill(self) -> None:
        """End all engines at once, and give back the places that were reserved for them alone."""
        for engine in self.engines:
            ray.kill(engine.actor)
        own = [engine.own for engine in self.engines if engine.own is not None]
        for group in [*own, *self._reserved]:
            remove_placement_group(group)
        self.engines, self._reserved = [], []

    def _in(self, *states: EngineState) -> list[Engine]:
        return [engine for engine in self.engines if engine.state in states]

    def _start(self, slot: PlacementGroupSchedulingStrategy, own: PlacementGroup | None) -> ObjectRef:
        actor = self._launcher.launch(slot)
        started = actor.start.remote(self.build)
        self.engines.append(Engine(actor, slot, started, own, is_new=True))
        return started

    def _drop(self, engine: Engine) -> ObjectRef | None:
        """Remove a dead engine; returns the start of its successor, None if it was to leave anyway."""
        stays = engine.state is not EngineState.DRAINING
        self._remove(engine)
        if stays:
            return self._start(engine.slot, engine.own)
        self._release(engine)
        return None

    def _remove(self, engine: Engine) -> None:
        self.num_left += engine.state in _RUNNING and not engine.is_new
        engine.become(EngineState.DEAD)
        self.engines.remove(engine)
        ray.kill(engine.actor)

    def _release(self, engine: Engine) -> None:
        if engine.own is not None:
            remove_placement_group(engine.own)

    def _note_started(self) -> None:
        """Make engines whose model is loaded ready to sync; an elastic fleet replaces those that died loading it."""
        for engine in self._in(EngineState.STARTING):
            if engine.started is None or not ray.wait([engine.started], timeout=0)[0]:
                continue
            try:
                ray.get(engine.started)
            except RayError as e:
                error = translate(e, "start of a rollout engine")
                if self.elastic is None or not isinstance(error, ActorLost):
                    raise error from e
                self._drop(engine)
            else:
                engine.become(EngineState.SYNCING)

    def _note_done(self) -> None:
        """Remove finished work from the engines, and record how long its completions are."""
        for engine in self.engines:
            done, _ = ray.wait(list(engine.work), num_returns=len(engine.work), timeout=0) if engine.work else ([], [])
            for ref in done:
                work = engine.work.pop(ref)
                try:
                    self._lengths.note(work.prompts, work.rows, ray.get(ref))
                except RayError:
                    continue  # the wait for the samples raises it
