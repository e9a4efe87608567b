"""The rollout engines of a run: who serves, what goes to whom, and who comes and goes.

An engine serves only the version that it has acknowledged. The first engines have bundles in the run's placement group;
an elastic fleet reserves a group of its own for each further one, without waiting for it. Nothing here decides what a
sample is (see `routing`), so the same run comes out whatever the fleet does.
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

from raylign.actors.engine import Engine, EngineState, Work
from raylign.actors.group import Launcher
from raylign.actors.layout import bundle_of
from raylign.actors.routing import LengthBook, assign
from raylign.actors.shells import RolloutShell
from raylign.actors.waiting import ActorLost, Waiter, translate
from raylign.config import RoleResources, RolloutConfig
from raylign.errors import DeadlineError, StaleEngineError
from raylign.types import LongArray

_RUNNING = (EngineState.SYNCING, EngineState.SERVING, EngineState.DRAINING)


@dataclass(frozen=True)
class Job:
    """A part of a step: the RolloutBatch it becomes, and the id of the engine that makes it."""

    batch: ObjectRef
    engine: str


class RolloutFleet:
    """Launches `len(slots)` engines; nothing is loaded until `submit_start`, which needs `build`.

    Args: see `ActorGroup`; `rollout` says how many engines there may be.
    """

    def __init__(
        self,
        role: str,
        shell: type[RolloutShell],
        resources: RoleResources,
        slots: list[PlacementGroupSchedulingStrategy],
        num_threads: int,
        rollout: RolloutConfig,
    ) -> None:
        self.role, self.shell = role, shell
        self.build: Callable[[], Any] | None = None  # makes the worker inside the actor
        self.elastic = rollout.elastic
        self.max_engines = self.elastic.max_engines if self.elastic else len(slots)
        self.num_joined = self.num_left = 0  # since they were last set to 0
        self._max_tokens = rollout.sampling.max_tokens
        self._lengths = LengthBook(self._max_tokens)
        self._launcher = Launcher(shell, resources, num_threads)
        self._bundle = bundle_of(resources.num_cpus, resources.num_gpus)
        self._reserved: list[PlacementGroup] = []  # asked for, not yet there
        self.engines = [Engine(self._launcher.launch(slot), slot) for slot in slots]  # those that are not dead

    @property
    def actors(self) -> list[Any]:
        """Those whose model is loaded."""
        return [engine.actor for engine in self.engines if engine.state in _RUNNING]

    def __len__(self) -> int:
        return len(self.actors)

    @property
    def num_serving(self) -> int:
        return len(self._in(EngineState.SERVING))

    def submit_start(self) -> list[ObjectRef]:
        """Load the model in all engines there are, also in those that served another run."""
        self._lengths = LengthBook(self._max_tokens)
        self.num_joined = self.num_left = 0
        self.engines = [Engine(e.actor, e.slot, e.actor.start.remote(self.build), e.own) for e in self.engines]
        return [engine.started for engine in self.engines if engine.started is not None]

    def submit(self, prompts: ObjectRef, rows: LongArray, num_samples: int, step: int, version: int) -> Job:
        """`submit_parts` of one part."""
        return self.submit_parts(prompts, [(rows, step)], num_samples, version)[0]

    def submit_parts(
        self, prompts: ObjectRef, parts: Sequence[tuple[LongArray, int]], num_samples: int, version: int
    ) -> list[Job]:
        """Each part, (prompt rows, step that seeds them), to the serving engine that will be free for it first.

        All samples of a prompt are one engine's, which computes the prompt once.

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

        An elastic fleet drops those that die on the way or are not there in time.

        Args:
            load: submits the call by which an engine's actor takes the weights; it returns their version.
        Raises:
            ActorLost, DeadlineError: of an engine where the fleet is not elastic, or of the weights; all that could be
                synced are.
        """
        self._note_started()
        due = [e for e in self._in(EngineState.SYNCING, EngineState.SERVING) if e.version != version]
        for engine in due:
            engine.sync()
        failed: list[ActorLost | DeadlineError] = []
        acknowledged = waiter.settle([load(e.actor) for e in due], timeout=timeout, waiting_for=waiting_for)
        for engine, found in zip(due, acknowledged, strict=True):
            if isinstance(found, ActorLost | DeadlineError):
                # Weights that went with their learner are not the engine's death.
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

    def tend(self) -> None:
        """Let engines join and leave, without waiting for any of it; only an elastic fleet does."""
        if self.elastic is None:
            return
        for group in [group for group in self._reserved if group.wait(0)]:
            self._reserved.remove(group)
            self._start(PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0), group)
        self._note_started()
        self._note_done()
        for engine in self._in(EngineState.DRAINING):
            if not engine.work:
                self._bury(engine)
                self._release(engine)
        staying = self._in(EngineState.STARTING, EngineState.SYNCING, EngineState.SERVING)
        for engine in staying[self.max_engines :]:
            self.drain(engine)
        # A request that waits is also what tells an autoscaler that a node is wanted.
        for _ in range(self.max_engines - len(staying) - len(self._reserved)):
            self._reserved.append(placement_group([self._bundle]))

    def drain(self, engine: Engine) -> None:
        """Let it finish what it has and then end it: `tend` does."""
        engine.become(EngineState.DRAINING)

    def lose(self, actor_ids: Collection[str]) -> list[ObjectRef]:
        """The engines of these ids are dead; each gets a successor in its place, whose start this returns.

        The place of an engine whose node is gone comes back when Ray finds another, and so does the successor.
        """
        lost = [engine for engine in self.engines if engine.id in actor_ids]
        return [started for engine in lost if (started := self._drop(engine)) is not None]

    def describe(self) -> str:
        """How many engines are in which state."""
        counts = {state: len(self._in(state)) for state in EngineState}
        shown = [f"{number} {state.value}" for state, number in counts.items() if number]
        return ", ".join([*shown, *([f"{len(self._reserved)} without a place"] if self._reserved else [])]) or "none"

    def kill(self) -> None:
        """End all engines at once, and give back the places that were reserved for them."""
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
        """It is dead; returns the start of its successor."""
        stays = engine.state is not EngineState.DRAINING
        self._bury(engine)
        if stays:
            return self._start(engine.slot, engine.own)
        self._release(engine)
        return None

    def _bury(self, engine: Engine) -> None:
        self.num_left += engine.state in _RUNNING and not engine.is_new
        engine.become(EngineState.DEAD)
        self.engines.remove(engine)
        ray.kill(engine.actor)

    def _release(self, engine: Engine) -> None:
        if engine.own is not None:
            remove_placement_group(engine.own)

    def _note_started(self) -> None:
        """Engines whose model is loaded may be synced; an elastic fleet tries again with those that died of it."""
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
        """Take finished work off the engines, and learn from it how long completions are."""
        for engine in self.engines:
            done, _ = ray.wait(list(engine.work), num_returns=len(engine.work), timeout=0) if engine.work else ([], [])
            for ref in done:
                work = engine.work.pop(ref)
                try:
                    self._lengths.note(work.prompts, work.rows, ray.get(ref))
                except RayError:
                    continue  # whoever waits for the samples hears of it
