import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from prometheus_client import REGISTRY

from service.batching.batcher import Batcher
from service.errors import DeviceFailed, Overloaded


class Device:
    """Real arithmetic, scripted pauses and failures: squares numbers and remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fail_on: set[Any] = set()
        self.short = False
        self.threads: set[int] = set()

    def square(self, items: Sequence[Any]) -> Sequence[Any]:
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        assert self.gate.wait(20)
        if self.fail_on & set(items):
            raise ValueError("poison")
        return [item * item for item in items][: -1 if self.short else None]


def run(scenario: Callable[[Batcher, Device], Awaitable[None]], max_batch: int = 4, limit: int = 1000, **options: Any) -> None:
    async def main() -> None:
        device = Device()
        batcher = Batcher({"square": device.square}, max_batch, limit, **options)
        try:
            await asyncio.wait_for(scenario(batcher, device), 30)
        finally:
            device.gate.set()
            await batcher.close()
        assert depth() == 0, "the depth gauge must be back at 0"

    asyncio.run(main())


def depth() -> float:
    lanes = ("interactive", "bulk")
    return sum(REGISTRY.get_sample_value("sdc_queue_depth", {"op": "square", "lane": lane}) or 0 for lane in lanes)


async def held(batcher: Batcher, device: Device) -> "asyncio.Task[Any]":
    """Keep the device busy with one item until the gate is opened."""
    device.gate.clear()
    task = asyncio.create_task(batcher.submit("square", "held", 1000, 1))
    while not device.batches:
        await asyncio.sleep(0.001)
    return task


def submit(batcher: Batcher, item: int, shape: str = "s", **options: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(batcher.submit("square", shape, item, options.pop("cost", 1), **options))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_each_gets_its_own_result() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        tasks = [submit(batcher, n, shape=f"{n % 3}") for n in range(200)]
        assert await asyncio.gather(*tasks) == [n * n for n in range(200)]
        assert len(device.threads) == 1
        assert {len(batch) for batch in device.batches} <= {1, 4}

    run(scenario)


def test_waiting_requests_of_one_shape_become_a_batch() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        tasks = [submit(batcher, n, shape="ab"[n % 2]) for n in range(8)]
        await settle()
        device.gate.set()
        assert await asyncio.gather(*tasks) == [n * n for n in range(8)]
        assert device.batches[1:] == [[0, 2, 4, 6], [1, 3, 5, 7]]
        await first

    run(scenario)


def test_a_batch_runs_full_or_alone() -> None:
    """Three are padded to four; two of four would cost more padded than alone."""

    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        tasks = [submit(batcher, n, "three") for n in range(3)] + [submit(batcher, n, "two") for n in range(2)]
        await settle()
        device.gate.set()
        assert await asyncio.gather(*tasks) == [0, 1, 4, 0, 1]
        assert device.batches[1:] == [[0, 1, 2, 2], [0], [1]]
        await first

    run(scenario)


def test_a_cancelled_caller_never_reaches_the_device() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        tasks = [submit(batcher, n) for n in range(3)]
        await settle()
        tasks[0].cancel()
        await settle()
        device.gate.set()
        assert await asyncio.gather(*tasks[1:]) == [1, 4]
        assert all(0 not in batch for batch in device.batches)
        await first

    run(scenario)


def test_a_cancelled_caller_gives_its_place_back_at_once() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        large = submit(batcher, 1, cost=10)
        await settle()
        with pytest.raises(Overloaded):
            await submit(batcher, 2, cost=5)
        large.cancel()
        await settle()
        taken = submit(batcher, 2, cost=5)
        await settle()
        device.gate.set()
        assert await taken == 4
        await first

    run(scenario, limit=10)


def test_a_caller_cancelled_in_its_batch_leaves_the_neighbours() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        tasks = [submit(batcher, n) for n in range(4)]
        await settle()
        device.batches.clear()
        first.cancel()
        tasks[2].cancel()
        device.gate.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [done[n] for n in (0, 1, 3)] == [0, 1, 9]
        assert isinstance(done[2], asyncio.CancelledError)

    run(scenario)


def test_a_failing_batch_fails_alone() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        device.fail_on = {13}
        with pytest.raises(DeviceFailed, match="ValueError"):
            await submit(batcher, 13)
        assert await submit(batcher, 5) == 25
        assert batcher.alive

    run(scenario)


def test_results_are_never_shifted() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        device.short = True
        with pytest.raises(DeviceFailed, match="0 results for 1"):
            await submit(batcher, 5)

    run(scenario)


def test_a_full_queue_refuses_with_a_whole_number_of_seconds() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        tasks = [submit(batcher, n, cost=4) for n in range(2)]
        await settle()
        refused = await asyncio.gather(*(submit(batcher, 9, cost=4) for _ in range(50)), return_exceptions=True)
        assert all(isinstance(error, Overloaded) and error.retry_after_s >= 1 for error in refused)
        device.gate.set()
        assert await asyncio.gather(*tasks) == [0, 1]
        await first

    run(scenario, limit=10)


def test_one_large_item_is_always_taken() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        assert await submit(batcher, 3, cost=10_000) == 9

    run(scenario, limit=10)


def test_bulk_yields_to_interactive() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        bulk = [submit(batcher, n, lane="bulk") for n in range(4)]
        await settle()
        soon = submit(batcher, 7, "other")
        await settle()
        device.gate.set()
        await asyncio.gather(first, soon, *bulk)
        assert device.batches[1:] == [[7], [0, 1, 2, 3]]

    run(scenario)


def test_bulk_does_not_starve() -> None:
    """A bulk request older than the handicap goes before fresh interactive ones: a clock that is set, not waited for."""
    now = 0.0

    async def scenario(batcher: Batcher, device: Device) -> None:
        nonlocal now
        first = await held(batcher, device)
        bulk = submit(batcher, 2, lane="bulk")
        await settle()
        now += 2.5
        soon = [submit(batcher, n, "other") for n in range(10, 14)]
        await settle()
        device.gate.set()
        await asyncio.gather(first, bulk, *soon)
        assert device.batches[1] == [2]

    run(scenario, clock=lambda: now)


def test_closing_finishes_what_is_queued_and_refuses_the_rest() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        queued = [submit(batcher, n) for n in range(6)]
        await settle()
        closing = asyncio.create_task(batcher.close())
        await settle()
        with pytest.raises(Overloaded):
            await submit(batcher, 1)
        device.gate.set()
        await closing
        assert await asyncio.gather(*queued) == [n * n for n in range(6)]
        await first
        await batcher.close()

    run(scenario)
