import json
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylign.data import Sampler
from raylign.errors import UserError

sizes = st.integers(1, 12)
modes = st.sampled_from([{}, {"drop_last": True}, {"wrap": True}])


def take(sampler: Sampler, num: int) -> list[list[int]]:
    return [sampler.next().tolist() for _ in range(num)]


def test_an_epoch_visits_every_row_once_and_ends_short():
    sampler = Sampler(num_rows=7, batch_size=3, seed=0)
    assert sampler.batches_per_epoch == 3
    first, second = take(sampler, 3), take(sampler, 3)
    assert [len(b) for b in first] == [3, 3, 1]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(7))
    assert first != second


def test_drop_last_leaves_out_the_short_batch():
    sampler = Sampler(num_rows=7, batch_size=3, seed=0, drop_last=True)
    assert sampler.batches_per_epoch == 2
    assert [len(b) for b in take(sampler, 6)] == [3] * 6


def test_wrap_lays_whole_epochs_end_to_end():
    rows = list(chain(*take(Sampler(num_rows=7, batch_size=3, seed=0, wrap=True), 7)))
    assert len(rows) == 21
    assert all(sorted(rows[at : at + 7]) == list(range(7)) for at in (0, 7, 14))


def test_wrap_fills_a_batch_larger_than_the_dataset():
    batch = Sampler(num_rows=2, batch_size=5, seed=0, wrap=True).next()
    assert batch.dtype == np.int64
    assert len(batch) == 5
    assert set(batch.tolist()) == {0, 1}


def test_the_order_follows_from_the_seed():
    draws = [take(Sampler(50, 10, seed), 3) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_a_drawn_batch_may_be_changed_without_changing_the_stream():
    sampler = Sampler(6, 2, 0)
    start = sampler.state()
    batch = sampler.next()
    expected = batch.tolist()
    batch[:] = -1
    sampler.restore(start)
    assert sampler.next().tolist() == expected


@given(sizes, sizes, st.integers(0, 5), modes, st.integers(0, 30))
def test_resume_in_the_middle_gives_exactly_the_remaining_batches(num_rows, batch_size, seed, mode, position):
    if mode.get("drop_last") and num_rows < batch_size:
        batch_size = num_rows
    whole = Sampler(num_rows, batch_size, seed, **mode)
    take(whole, position)
    resumed = Sampler(num_rows, batch_size, seed, **mode)
    resumed.restore(json.loads(json.dumps(whole.state())))
    assert take(resumed, 10) == take(whole, 10)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("num_rows", Sampler(9, 3, 0)),
        ("batch_size", Sampler(8, 2, 0)),
        ("seed", Sampler(8, 3, 1)),
        ("drop_last", Sampler(8, 3, 0, drop_last=True)),
        ("wrap", Sampler(8, 3, 0, wrap=True)),
    ],
)
def test_a_state_of_another_stream_is_refused(name, other):
    with pytest.raises(UserError, match=rf"{name} was \d+ and is now \d+"):
        Sampler(8, 3, 0).restore(other.state())


@pytest.mark.parametrize("arguments", [(0, 1, 0), (1, 0, 0), (2, 3, 0, True)])
def test_a_stream_without_batches_is_refused(arguments):
    with pytest.raises(UserError):
        Sampler(*arguments)


def test_drop_last_and_wrap_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        Sampler(4, 2, 0, drop_last=True, wrap=True)
