"""What the pool of actors keeps and what it ends."""

from raylign.controllers.pool import ActorPool, actor_pool


class Kept:
    def __init__(self) -> None:
        self.ended = False

    def kill(self) -> None:
        self.ended = True


def test_an_equal_key_gets_what_was_given_once():
    pool, kept = ActorPool(), Kept()
    assert pool.take("ppo") is None
    pool.give("ppo", kept)
    assert pool.take("ppo") is kept
    assert pool.take("ppo") is None
    assert not kept.ended


def test_another_key_ends_what_was_kept():
    pool, kept = ActorPool(), Kept()
    pool.give("ppo", kept)
    assert pool.take("rloo") is None
    assert kept.ended


def test_what_is_given_takes_the_place_of_what_was_kept():
    pool, first, second = ActorPool(), Kept(), Kept()
    pool.give("ppo", first)
    pool.give("ppo", second)
    assert first.ended
    assert pool.take("ppo") is second


def test_nothing_is_left_when_the_pool_is_left_even_by_an_error():
    kept = Kept()
    try:
        with actor_pool() as pool:
            pool.give("ppo", kept)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert kept.ended
