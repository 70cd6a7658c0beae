from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from service.batching.ahead import AHEAD_S, AT_ONCE, Ahead, Beginner
from service.batching.waiting import LANES, Lane


def beginner(name: str, lane: Lane = "interactive") -> Beginner:
    return Beginner("render", lane, 0.0, 1.0, name)


def begun(ahead: Ahead) -> list[Beginner]:
    """Who may be begun now."""
    given = []
    while (each := ahead.next()) is not None:
        given.append(each)
    return given


def names(row: Iterable[Beginner]) -> str:
    return "".join(each.reply for each in row)


def test_two_for_each_thread_at_once_in_the_order_they_came() -> None:
    ahead = Ahead(1, lambda lane: 0.0)
    for name in "abcd":
        ahead.add(beginner(name))
    first, second = begun(ahead)
    assert names([first, second]) == "ab"
    assert begun(ahead) == []
    assert not ahead.leave(first), "it did not stand in the row any more"
    assert not ahead.leave(first), "told twice, it makes room once"
    assert names(begun(ahead)) == "c"
    assert names(ahead) == "d"


def test_nobody_while_a_second_of_the_devices_time_waits_in_the_lane() -> None:
    waiting_s: dict[Lane, float] = {"interactive": AHEAD_S, "bulk": 0.0}
    ahead = Ahead(9, waiting_s.__getitem__)
    ahead.add(beginner("q"))
    ahead.add(beginner("s", "bulk"))
    assert names(begun(ahead)) == "s", "one lane's work does not hold up the other's"
    waiting_s["interactive"] = 0.99 * AHEAD_S
    assert names(begun(ahead)) == "q"


def test_whoever_leaves_the_row_is_passed_over() -> None:
    ahead = Ahead(9, lambda lane: 0.0)
    row = [beginner(name) for name in "abc"]
    for each in row:
        ahead.add(each)
    assert ahead.leave(row[1])
    assert not ahead.leave(row[1])
    assert names(begun(ahead)) == "ac"


@given(st.lists(st.sampled_from(["interactive", "bulk", "give", "interactive leaves", "bulk leaves"])), st.integers(1, 3))
def test_never_more_than_so_many_and_nobody_is_forgotten(events: list[str], threads: int) -> None:
    ahead, came, gone = Ahead(threads, lambda lane: 0.0), 0, []
    on_their_way: dict[Lane, list[Beginner]] = {lane: [] for lane in LANES}
    for event in events:
        if event == "give":
            for each in begun(ahead):
                on_their_way[each.lane].append(each)
        for lane in LANES:
            if event == lane:
                ahead.add(beginner(f"{came}", lane))
                came += 1
            if event == f"{lane} leaves" and on_their_way[lane]:
                gone.append(on_their_way[lane].pop())
                assert not ahead.leave(gone[-1])
        assert max(map(len, on_their_way.values())) <= AT_ONCE * threads
    everybody = [*gone, *ahead, *(each for row in on_their_way.values() for each in row)]
    assert sorted(int(each.reply) for each in everybody) == list(range(came))
