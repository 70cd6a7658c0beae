import asyncio

import pytest

from service.errors import StoreUnavailable
from service.storage.breaker import FAILURES, JITTER, PAUSE_S, Breaker


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(StoreUnavailable, match="down"), breaker.trying():
            raise StoreUnavailable("down")


def refuses(breaker: Breaker) -> bool:
    try:
        with breaker.trying():
            return False
    except StoreUnavailable as error:
        assert "left alone" in error.detail
        return True


def test_it_opens_after_failures_in_a_row() -> None:
    breaker = Breaker(clock=Clock())
    for _ in range(3):
        fail(breaker, FAILURES - 1)
        assert not refuses(breaker), "and the answer begins the count anew"
    fail(breaker, FAILURES)
    assert breaker.open and refuses(breaker)


def test_an_answer_that_is_an_error_is_an_answer() -> None:
    breaker = Breaker(clock=Clock())
    for _ in range(3 * FAILURES):
        with pytest.raises(FileNotFoundError), breaker.trying():
            raise FileNotFoundError
    assert not breaker.open


def test_who_leaves_says_nothing_about_the_store() -> None:
    breaker = Breaker(clock=Clock())
    fail(breaker, FAILURES - 1)
    with pytest.raises(asyncio.CancelledError), breaker.trying():
        raise asyncio.CancelledError
    fail(breaker)
    assert breaker.open


def test_one_call_is_let_through_when_the_pause_is_over() -> None:
    clock = Clock()
    told: list[bool] = []
    breaker = Breaker(told.append, clock)
    fail(breaker, FAILURES)
    assert refuses(breaker)
    clock.now += PAUSE_S * (1 - JITTER) - 0.01
    assert refuses(breaker)
    clock.now += PAUSE_S * 2 * JITTER + 0.02
    with breaker.trying():
        assert refuses(breaker), "one at a time"
    assert not refuses(breaker)
    assert told == [False, True, False]


def test_a_trial_that_fails_begins_another_pause() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    fail(breaker, FAILURES)
    clock.now += 2 * PAUSE_S
    fail(breaker)
    assert refuses(breaker)
    clock.now += 2 * PAUSE_S
    with pytest.raises(asyncio.CancelledError), breaker.trying():
        raise asyncio.CancelledError
    assert not refuses(breaker), "a trial that was left makes room for the next"
