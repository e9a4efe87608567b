"""An engine serves only what it has acknowledged, and the dead stay dead."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from raylign.actors.engine import Engine, EngineState, Work

STARTING, SYNCING, SERVING, DRAINING, DEAD = EngineState
LEGAL = {
    (STARTING, SYNCING),
    (SYNCING, SERVING),
    (SERVING, SYNCING),
    (STARTING, DRAINING),
    (SYNCING, DRAINING),
    (SERVING, DRAINING),
    *((state, DEAD) for state in (STARTING, SYNCING, SERVING, DRAINING)),
}
ACTOR: Any = SimpleNamespace(_actor_id=b"\x0a\x0b")  # only its id is asked for
NOTHING: Any = None


def engine(state: EngineState) -> Engine:
    return Engine(ACTOR, NOTHING, state=state)


@pytest.mark.parametrize(("before", "after"), list(product(EngineState, EngineState)))
def test_every_way_that_is_not_in_the_diagram_is_refused(before, after):
    one = engine(before)
    if (before, after) in LEGAL:
        one.become(after)
        assert one.state is after
    else:
        with pytest.raises(ValueError, match=f"^engine 0a0b: a {before.value} engine cannot become {after.value}$"):
            one.become(after)
        assert one.state is before


def test_an_engine_has_no_version_while_it_takes_another():
    one = engine(STARTING)
    assert one.version is None
    with pytest.raises(ValueError, match="a starting engine cannot become serving"):
        one.acknowledge(0)
    one.sync()
    assert (one.state, one.version) == (SYNCING, None)
    one.acknowledge(3)
    assert (one.state, one.version) == (SERVING, 3)
    one.sync()
    one.sync()  # again, where the one before was lost
    assert (one.state, one.version) == (SYNCING, None)


def test_what_it_has_left_is_what_it_was_given():
    one = engine(SERVING)
    first, second = (Work(NOTHING, NOTHING, cost) for cost in (3.0, 4.5))
    refs: list[Any] = ["a", "b"]
    one.work = dict(zip(refs, (first, second), strict=True))
    assert one.load == 7.5
    del one.work[refs[0]]
    assert one.load == 4.5
