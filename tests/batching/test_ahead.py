from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from service.batching.ahead import AHEAD_S, AT_ONCE, Ahead, Beginner
from service.batching.waiting import LANES, Lane


def beginner(name: str, lane: Lane = "interactive") -> Beginner:
    return Beginner("render", lane, 0.0, 1.0, name)


def names(ahead: Ahead) -> list[str]:
    """Who may be begun now."""
    given = []
    while (each := ahead.next()) is not None:
        given.append(each.reply)
    return given


def test_two_for_each_thread_at_once_in_the_order_they_came() -> None:
    ahead = Ahead(1, lambda lane: 0.0)
    for name in "abcd":
        ahead.add(beginner(name))
    assert names(ahead) == ["a", "b"]
    assert names(ahead) == []
    ahead.arrived("interactive")
    assert names(ahead) == ["c"]
    assert [each.reply for each in ahead] == ["d"]


def test_nobody_while_a_second_of_the_devices_time_waits_in_the_lane() -> None:
    waiting_s: dict[Lane, float] = {"interactive": AHEAD_S, "bulk": 0.0}
    ahead = Ahead(9, waiting_s.__getitem__)
    ahead.add(beginner("quick"))
    ahead.add(beginner("slow", "bulk"))
    assert names(ahead) == ["slow"], "one lane's work does not hold up the other's"
    waiting_s["interactive"] = 0.99 * AHEAD_S
    assert names(ahead) == ["quick"]


def test_whoever_leaves_the_row_is_passed_over() -> None:
    ahead = Ahead(9, lambda lane: 0.0)
    row = [beginner(name) for name in "abc"]
    for each in row:
        ahead.add(each)
    assert ahead.remove(row[1])
    assert not ahead.remove(row[1])
    assert names(ahead) == ["a", "c"]
    assert not ahead.remove(row[0])


@given(st.lists(st.sampled_from(["interactive", "bulk", "give", "arrive interactive", "arrive bulk"])), st.integers(1, 3))
def test_never_more_than_so_many_and_nobody_is_forgotten(events: list[str], threads: int) -> None:
    ahead, came, begun, on_their_way = Ahead(threads, lambda lane: 0.0), 0, [], Counter[Lane]()
    for event in events:
        if event == "give":
            while (each := ahead.next()) is not None:
                begun.append(each.reply)
                on_their_way[each.lane] += 1
        for lane in LANES:
            if event == lane:
                ahead.add(beginner(f"{came}", lane))
                came += 1
            if event == f"arrive {lane}" and on_their_way[lane]:
                on_their_way[lane] -= 1
                ahead.arrived(lane)
        assert max(on_their_way.values(), default=0) <= AT_ONCE * threads
    assert sorted(begun + [each.reply for each in ahead], key=int) == [f"{number}" for number in range(came)]
