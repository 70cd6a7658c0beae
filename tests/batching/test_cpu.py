import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from service.batching.cpu import CpuPool
from service.errors import DeadlineMissed, Overloaded


class Gate:
    """A call that waits until it is let through, and others that say when they ran."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.ran: list[str] = []

    def wait(self) -> str:
        self.entered.set()
        assert self.open.wait(20)
        return "waited"

    def call(self, name: str) -> Callable[[], str]:
        def run() -> str:
            self.ran.append(name)
            return name

        return run


def run(scenario: Callable[[CpuPool, Gate], Awaitable[None]], threads: int = 1, clock: Callable[[], float] | None = None) -> None:
    async def main() -> None:
        pool = CpuPool(threads, clock) if clock else CpuPool(threads)
        gate = Gate()
        try:
            await asyncio.wait_for(scenario(pool, gate), 30)
        finally:
            gate.open.set()
            await pool.close()
        assert pool._free == threads, "every thread must be free again"

    asyncio.run(main())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def held(pool: CpuPool, gate: Gate) -> "asyncio.Task[tuple[str, float]]":
    task = asyncio.create_task(pool.run(gate.wait))
    await asyncio.to_thread(gate.entered.wait, 20)
    return task


def test_results_errors_and_the_seconds_taken() -> None:
    now = 0.0

    def two_seconds() -> int:
        nonlocal now
        now += 2.0
        return 7

    async def scenario(pool: CpuPool, gate: Gate) -> None:
        assert await pool.run(two_seconds) == (7, 2.0)
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda: 1 // 0)
        assert (await pool.run(lambda: 8))[0] == 8

    run(scenario, clock=lambda: now)


def test_what_is_to_be_finished_goes_before_what_is_to_be_begun_but_not_for_ever() -> None:
    now = 0.0

    async def scenario(pool: CpuPool, gate: Gate) -> None:
        nonlocal now
        first = await held(pool, gate)
        tasks = []
        for at, name, patience in ((0.0, "begin", 0.5), (0.2, "finish", 0.0), (0.6, "too late to overtake", 0.0)):
            now = at
            tasks.append(asyncio.create_task(pool.run(gate.call(name), patience)))
            await settle()
        gate.open.set()
        await asyncio.gather(first, *tasks)
        assert gate.ran == ["finish", "begin", "too late to overtake"]

    run(scenario, clock=lambda: now)


def test_a_turn_that_comes_too_late_is_not_taken() -> None:
    now = 0.0

    async def scenario(pool: CpuPool, gate: Gate) -> None:
        nonlocal now
        first = await held(pool, gate)
        late = asyncio.create_task(pool.run(gate.call("late"), deadline=1.0))
        patient = asyncio.create_task(pool.run(gate.call("patient"), deadline=9.0))
        await settle()
        now = 2.0
        gate.open.set()
        with pytest.raises(DeadlineMissed):
            await late
        assert (await patient)[0] == "patient"
        await first
        assert gate.ran == ["patient"]

    run(scenario, clock=lambda: now)


def test_whoever_leaves_the_row_is_not_computed() -> None:
    async def scenario(pool: CpuPool, gate: Gate) -> None:
        first = await held(pool, gate)
        gone = [asyncio.create_task(pool.run(gate.call("gone"))) for _ in range(3)]
        stays = asyncio.create_task(pool.run(gate.call("stays")))
        await settle()
        for task in gone:
            task.cancel()
        gate.open.set()
        assert (await stays)[0] == "stays"
        await first
        assert gate.ran == ["stays"]

    run(scenario)


def test_a_turn_given_to_one_who_leaves_in_that_moment_goes_on_to_the_next() -> None:
    async def scenario(pool: CpuPool, gate: Gate) -> None:
        first = await held(pool, gate)
        leaving = asyncio.create_task(pool.run(gate.call("leaving")))
        await settle()
        release = pool._release

        def release_and_leave() -> None:
            pool._release = release  # type: ignore[method-assign]
            release()
            leaving.cancel()  # the turn is given, and the task has not run again

        pool._release = release_and_leave  # type: ignore[method-assign]
        gate.open.set()
        await first
        await asyncio.gather(leaving, return_exceptions=True)
        assert gate.ran == []

    run(scenario)


def test_a_thread_is_not_free_before_its_call_has_ended() -> None:
    async def scenario(pool: CpuPool, gate: Gate) -> None:
        first = await held(pool, gate)
        second = asyncio.create_task(pool.run(gate.call("second")))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert gate.ran == []
        gate.open.set()
        assert (await second)[0] == "second"

    run(scenario)


def test_a_closed_pool_refuses() -> None:
    async def scenario(pool: CpuPool, gate: Gate) -> None:
        await pool.close()
        with pytest.raises(Overloaded):
            await pool.run(gate.call("after"))

    run(scenario)
