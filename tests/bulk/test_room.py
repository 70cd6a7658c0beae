import asyncio
from collections.abc import Callable

import pytest

from service.bulk.room import Room


class Visitor:
    """Comes to a room, and stays until it is sent away."""

    def __init__(self, room: Room, amount: int) -> None:
        self.inside, self._leave = False, asyncio.Event()
        self.task = asyncio.create_task(self._visit(room, amount))

    async def _visit(self, room: Room, amount: int) -> None:
        async with room.taken(amount):
            self.inside = True
            await self._leave.wait()
        self.inside = False

    async def leave(self) -> None:
        self._leave.set()
        await settled()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def run(scenario: Callable[[Room], object], most: int = 10) -> None:
    async def main() -> None:
        await scenario(Room(most))  # type: ignore[misc]

    asyncio.run(main())


def test_no_more_than_fit_are_inside() -> None:
    async def scenario(room: Room) -> None:
        visitors = [Visitor(room, 4) for _ in range(4)]
        await settled()
        assert [each.inside for each in visitors] == [True, True, False, False]
        await visitors[0].leave()
        assert [each.inside for each in visitors] == [False, True, True, False]
        for each in visitors:
            await each.leave()
        assert all(each.task.done() for each in visitors)

    run(scenario)


def test_one_alone_is_let_in_however_large() -> None:
    async def scenario(room: Room) -> None:
        large, small = Visitor(room, 99), Visitor(room, 1)
        await settled()
        assert (large.inside, small.inside) == (True, False)
        await large.leave()
        assert small.inside
        await small.leave()

    run(scenario)


def test_a_large_one_is_not_passed_by_small_ones() -> None:
    async def scenario(room: Room) -> None:
        first, large, small = Visitor(room, 3), Visitor(room, 10), Visitor(room, 1)
        await settled()
        assert (first.inside, large.inside, small.inside) == (True, False, False)
        await first.leave()
        assert (large.inside, small.inside) == (True, False)
        await large.leave()
        assert small.inside
        await small.leave()

    run(scenario)


def test_who_gives_up_or_fails_leaves_no_trace() -> None:
    async def scenario(room: Room) -> None:
        first, waiting = Visitor(room, 10), Visitor(room, 10)
        await settled()
        waiting.task.cancel()
        await first.leave()
        with pytest.raises(ZeroDivisionError):
            async with room.taken(10):
                raise ZeroDivisionError
        last = Visitor(room, 10)
        await settled()
        assert last.inside
        await last.leave()

    run(scenario)
