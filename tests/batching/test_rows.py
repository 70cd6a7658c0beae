import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.admission import Claim
from service.batching.rows import MOST_IN_HAND, Rows
from service.batching.waiting import LANES, Batch, Lane


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rows(clock: Clock) -> Rows:
    """Full batches are four; one waits a tenth of a second for company."""
    return Rows(4, 0.1, 1, clock)


def claim(deadline: float = math.inf, lane: Lane = "interactive", device_s: float = 0.0, processor_s: float = 0.0) -> Claim:
    return Claim("render", 10, 10, lane, deadline, device_s, processor_s, 0.0, 0.0)


def submit(rows: Rows, name: str, of: Claim | None = None, shape: str = "s") -> Any:
    return rows.submit(of or claim(), shape, None, 10, name)


def hand_over(rows: Rows) -> list[str]:
    """The names in the next batch, which the device is given, if there is one."""
    batch = rows.next_batch()
    if batch is None:
        return []
    rows.hand_over(batch)
    return [item.reply for item in batch.items]


def test_an_idle_device_is_given_what_there_is(rows: Rows) -> None:
    assert hand_over(rows) == []
    submit(rows, "a")
    assert hand_over(rows) == ["a"]


def test_beside_a_busy_device_a_batch_waits_for_company_or_a_while(rows: Rows, clock: Clock) -> None:
    submit(rows, "a")
    assert hand_over(rows) == ["a"]
    clock.now = 1.0
    for name in "bcd":
        submit(rows, name)
    assert hand_over(rows) == []
    assert rows.next_moment() == pytest.approx(1.1)
    submit(rows, "e")
    assert hand_over(rows) == ["b", "c", "d", "e"], "full"
    submit(rows, "f")
    clock.now = 5.0
    assert hand_over(rows) == [], f"{MOST_IN_HAND} are in hand"
    assert rows.next_moment() == math.inf, "a batch that is done changes it, and no clock"
    rows.done(rows.in_hand[0], None)
    assert hand_over(rows) == ["f"], "it has waited long enough"


def test_the_device_is_busy_since_the_batch_before_was_done(rows: Rows, clock: Clock) -> None:
    first, second = (Batch(("render", "s"), [submit(rows, "x")], 1) for _ in range(2))
    rows.hand_over(first)
    clock.now = 1.0
    rows.hand_over(second)
    assert rows.busy_since == 0.0
    clock.now = 3.0
    rows.done(first, 3.0)
    assert rows.busy_since == 3.0
    assert rows.durations.predict("render", "s", 1, 10) == 3.0
    rows.done(second, None)
    assert rows.busy_since is None
    assert rows.durations.predict("render", "s", 1, 10) == 3.0, "what teaches nothing is not learned"


def test_who_would_be_late_is_taken_out_at_the_moment_that_was_named(rows: Rows, clock: Clock) -> None:
    rows.durations.learn("render", "s", 1, 10, 2.0)
    item = submit(rows, "item", claim(deadline=10.0, processor_s=1.0))  # 2 s of the device, 1 s to be written: by 7
    waiter = rows.begin(claim(deadline=10.0, device_s=2.0, processor_s=4.0), "beginner")  # by 4
    assert rows.next_moment() == pytest.approx(4.0)
    clock.now = 4.0
    assert rows.expired() == []
    clock.now = math.nextafter(4.0, 5.0)
    assert rows.expired() == [waiter]
    assert rows.next_moment() == pytest.approx(7.0)
    clock.now = 7.0
    assert rows.expired() == []
    clock.now = 7.001
    assert rows.expired() == [item]
    assert list(rows) == []
    assert rows.next_moment() == math.inf


def test_what_the_device_is_busy_with_is_ahead_of_an_item(rows: Rows, clock: Clock) -> None:
    rows.durations.learn("render", "s", 1, 10, 2.0)
    submit(rows, "a")
    hand_over(rows)
    late = submit(rows, "late", claim(deadline=3.9))
    submit(rows, "in time", claim(deadline=4.1))
    assert rows.expired() == [late]
    assert rows.wait_s("interactive") == pytest.approx(4.0)
    assert rows.wait_s("bulk") == pytest.approx(2.0), "as long as nothing of its own lane waits it takes its turn next"


def test_an_item_counts_for_its_part_of_a_full_batch_where_that_pays(rows: Rows) -> None:
    rows.durations.learn("render", "s", 1, 10, 1.0)
    assert submit(rows, "alone").seconds == 1.0
    rows.durations.learn("render", "s", 4, 10, 2.0)
    assert submit(rows, "in company").seconds == pytest.approx(0.5)
    rows.waiting.largest["render", "s"] = 2  # a full one did not fit into memory
    assert submit(rows, "in less").seconds == pytest.approx(2 / 3), "between what one and four take"


def test_the_wait_for_a_turn_counts_once(rows: Rows) -> None:
    tiled = claim()
    tiled.waited_s = 0.7
    assert [submit(rows, name, tiled).waited_s for name in "ab"] == [0.7, 0.0]


def test_how_long_the_oldest_has_waited(rows: Rows, clock: Clock) -> None:
    assert rows.oldest_s() == 0.0
    clock.now = 1.0
    submit(rows, "a")
    clock.now = 2.0
    rows.begin(claim(), "b")
    clock.now = 5.0
    assert rows.oldest_s() == 4.0
    hand_over(rows)
    assert rows.oldest_s() == 3.0


@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("clients", [2, 16])
@pytest.mark.parametrize("pictures", [1, 4])
def test_lanes_that_always_have_work_share_the_device_four_to_one(pictures: int, clients: int, max_batch: int) -> None:
    """Tiles of a bulk picture come one after the other, a client's next picture when it has had its last: rows are often empty."""
    clock = Clock()
    rows, had = Rows(max_batch, 0.0, 2, clock), dict.fromkeys(LANES, 0.0)
    takes: dict[str, float] = {"interactive": 1.0, "bulk": 4.0}
    for lane in LANES:
        for size in {1, max_batch}:
            rows.durations.learn("render", lane, size, 10, takes[lane] * size)

    def come(lane: Lane) -> None:
        submit(rows, lane, claim(lane=lane), shape=lane)

    for _ in range(clients):
        come("interactive")
    for _ in range(pictures):
        come("bulk")
    for _ in range(400):
        while (batch := rows.next_batch()) is not None:
            rows.hand_over(batch)
        done = rows.in_hand[0]
        seconds = takes[done.bucket[1]] * done.size  # type: ignore[index]
        clock.now += seconds
        rows.done(done, seconds)
        for item in done.items:
            had[item.lane] += seconds / len(done.items)
            come(item.lane)
    share = had["bulk"] / sum(had.values())
    assert share > 0.15
    if clients > MOST_IN_HAND * max_batch:  # else all their pictures are with the device at times, and what they leave is bulk's
        assert share < 0.3


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("submit"), st.sampled_from(LANES), st.sampled_from(["s", "t"]), st.floats(0, 20)),
            st.tuples(st.just("begin"), st.sampled_from(LANES), st.floats(0, 20)),
            st.tuples(st.just("wait"), st.floats(0, 3)),
            st.sampled_from([("batch",), ("done",), ("expire",), ("turn",)]),
        ),
        max_size=60,
    )
)
def test_whatever_happens_everyone_is_in_one_place(events: list[Any]) -> None:
    clock = Clock()
    rows, came, ended = Rows(4, 0.1, 2, clock), 0, []
    for event, *how in events:
        if event == "submit":
            submit(rows, str(came), claim(how[2], how[0]), how[1])
            came += 1
        if event == "begin":
            rows.begin(claim(how[1], how[0]), str(came))
            came += 1
        if event == "wait":
            clock.now += how[0]
        if event == "batch" and (batch := rows.next_batch()):
            rows.hand_over(batch)
        if event == "done" and rows.in_hand:
            done = rows.in_hand[0]
            rows.done(done, 1.0)
            ended += [item.reply for item in done.items]
        if event == "expire":
            ended += [waiter.reply for waiter in rows.expired()]
            if len(rows.in_hand) != 1:  # else a batch may be closed, as soon as somebody looks
                assert rows.next_moment() > clock.now - 1e-9, "nobody waits who would be late"
        if event == "turn" and (beginner := rows.next_turn()):
            ended.append(beginner.reply)
        assert (rows.busy_since is not None) == bool(rows.in_hand)
        assert len(rows.in_hand) <= MOST_IN_HAND
        in_hand = [item.reply for batch in rows.in_hand for item in batch.items]
        assert sorted([*ended, *in_hand, *(waiter.reply for waiter in rows)], key=int) == [str(number) for number in range(came)]
