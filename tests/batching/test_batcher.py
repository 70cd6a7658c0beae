import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pytest
from prometheus_client import REGISTRY

from service.batching.batcher import Batcher, Ticket
from service.batching.device import Ending
from service.batching.waiting import Lane
from service.errors import DeadlineMissed, DeviceFailed, DeviceLost, OutOfMemory, Overloaded


class Device:
    """Real arithmetic, scripted pauses and failures: squares numbers and remembers what it was given."""

    by_itself = False
    """whether it computes while its caller goes on, or in the call"""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fail_on: set[Any] = set()
        self.lose_on: set[Any] = set()
        self.short = False
        self.memory = 1000
        self.die_on: set[Any] = set()
        self.die_at_once: set[Any] = set()
        self.calling = threading.Lock()
        self.call_s = 0.0
        self.threads: set[int] = set()
        self.now = 0.0
        """a clock for tests that want each batch to take a second"""

    def square(self, items: Sequence[Any]) -> Sequence[Any] | Ending:
        assert self.calling.acquire(blocking=False), "a model is called from one thread at a time"
        try:
            self.batches.append(list(items))
            self.threads.add(threading.get_ident())
            time.sleep(self.call_s)
            if self.die_at_once & set(items):
                raise SystemExit("the driver is gone")
            return partial(self._squares, items) if self.by_itself else self._squares(items)
        finally:
            self.calling.release()

    def _squares(self, items: Sequence[Any]) -> Sequence[Any]:
        self.now += 1.0
        assert self.gate.wait(20)
        if self.die_on & set(items):
            raise SystemExit("the driver is gone")
        if len(items) > self.memory:
            raise OutOfMemory("too little memory")
        if self.lose_on & set(items):
            raise DeviceLost("an illegal access")
        if self.fail_on & set(items):
            raise ValueError("poison")
        return [item * item for item in items][: -1 if self.short else None]


@pytest.fixture(params=[False, True], ids=["in the call", "by itself"], autouse=True)
def either_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "by_itself", request.param)


by_itself = pytest.mark.parametrize("either_device", [True], ids=["by itself"], indirect=True)


def run(scenario: Callable[[Batcher, Device], Awaitable[None]], max_batch: int = 4, limit: int = 1000, **options: Any) -> None:
    async def main() -> None:
        device = Device()
        if options.pop("a_second_each", False):
            options["clock"] = lambda: device.now
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

    run(scenario, limit=11)


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
        bulk = [submit(batcher, n, lane="bulk") for n in range(2)]
        await settle()
        soon = submit(batcher, 7, "other")
        await settle()
        device.gate.set()
        await asyncio.gather(first, soon, *bulk)
        assert device.batches[1:] == [[7], [0], [1]]

    run(scenario, max_delay_s=30)


@pytest.mark.parametrize(("flood", "other"), [("bulk", "interactive"), ("interactive", "bulk")])
def test_neither_lane_starves_in_a_flood_of_the_other(flood: str, other: str) -> None:
    """However deep the flood, the few others are done before a fifth of it is (bulk) or almost at once (interactive)."""

    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        many = [submit(batcher, n, lane=flood) for n in range(200)]
        await settle()
        few = [submit(batcher, 1000 + n, "rare", lane=other) for n in range(5)]
        await settle()
        device.gate.set()
        await asyncio.gather(first, *many, *few)
        order = [item for batch in device.batches for item in batch if item < 1000 or item > 1000]
        position = max(order.index(1000 + n) for n in range(1, 5))
        assert position < (20 if other == "interactive" else 40)

    run(scenario, max_batch=1, limit=10_000, a_second_each=True)


def test_places_that_would_be_padding_go_to_the_other_lane() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        tasks = [submit(batcher, n) for n in range(3)] + [submit(batcher, 9, lane="bulk")]
        await settle()
        device.gate.set()
        await asyncio.gather(first, *tasks)
        assert device.batches[1:] == [[0, 1, 2, 9]]

    run(scenario, max_delay_s=30)


def test_a_rare_shape_is_not_starved_by_a_common_one() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        tasks = [submit(batcher, n, "common") for n in range(3)]
        await settle()
        device.now += 0.001
        tasks.append(submit(batcher, 50, "rare"))
        await settle()
        device.now += 0.001
        tasks += [submit(batcher, n, "common") for n in range(10, 40)]
        await settle()
        device.gate.set()
        await asyncio.gather(first, *tasks)
        assert device.batches.index([50]) <= 3

    run(scenario, a_second_each=True)


def test_a_batch_is_laid_out_when_it_is_full_or_has_waited() -> None:
    now = 0.0

    async def scenario(batcher: Batcher, device: Device) -> None:
        nonlocal now
        first = await held(batcher, device)
        tasks = [submit(batcher, 1)]
        await settle()
        assert len(batcher.rows.in_hand) == 1
        now += 5.1
        tasks.append(submit(batcher, 2))  # anything that wakes it
        await settle()
        assert len(batcher.rows.in_hand) == 2
        device.gate.set()
        await asyncio.gather(first, *tasks)

    run(scenario, max_delay_s=5, clock=lambda: now)


def test_out_of_memory_halves_the_batch_and_remembers() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        device.memory = 2
        first = await held(batcher, device)
        tasks = [submit(batcher, n) for n in range(4)]
        await settle()
        device.gate.set()
        assert await asyncio.gather(*tasks) == [0, 1, 4, 9]
        assert device.batches[1:] == [[0, 1, 2, 3], [0, 1], [2, 3]]
        await first
        device.batches.clear()
        again = await held(batcher, device)
        tasks = [submit(batcher, n) for n in range(4)]
        await settle()
        device.gate.set()
        assert await asyncio.gather(*tasks) == [0, 1, 4, 9]
        assert device.batches[1:] == [[0, 1], [2, 3]]
        device.memory = 0
        with pytest.raises(OutOfMemory):
            await submit(batcher, 3)
        device.memory = 2
        assert await submit(batcher, 3) == 9
        await again

    run(scenario)


def test_a_poison_item_is_found_and_its_neighbours_succeed() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        device.fail_on = {2}
        first = await held(batcher, device)
        tasks = [submit(batcher, n) for n in range(4)]
        await settle()
        device.gate.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [done[n] for n in (0, 1, 3)] == [0, 1, 9]
        assert isinstance(done[2], DeviceFailed)
        assert batcher.alive
        await first

    run(scenario)


@by_itself
def test_a_device_that_works_by_itself_is_given_the_next_batch_meanwhile() -> None:
    """One in hand, one behind it, and the rest waits: it may yet be overtaken, or left."""

    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        tasks = [submit(batcher, n) for n in range(8)]
        while len(device.batches) < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert device.batches == [[1000], [0, 1, 2, 3]]
        device.gate.set()
        assert await asyncio.gather(*tasks) == [n * n for n in range(8)]
        assert device.batches[2:] == [[4, 5, 6, 7]]
        assert await first == 1_000_000

    run(scenario, max_delay_s=0)


@by_itself
def test_a_batch_that_was_begun_early_is_timed_from_the_end_of_the_one_before() -> None:
    """Each takes a second, whenever it was begun: what the second waited for the first is not its own."""

    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        second = submit(batcher, 1)
        while len(device.batches) < 2:
            await asyncio.sleep(0.001)
        device.now += 5
        device.gate.set()
        await asyncio.gather(first, second)
        assert batcher.rows.durations.predict("square", "held", 1, 1) == 6
        assert batcher.rows.durations.predict("square", "s", 1, 1) == 1

    run(scenario, max_delay_s=0, a_second_each=True)


@by_itself
def test_what_failed_is_tried_again_in_turn_with_what_is_begun() -> None:
    """By the thread that saw it fail; a model is called from one at a time, and so it says here."""

    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        device.fail_on, device.call_s = {4 * n for n in range(30)}, 0.0005
        tasks = [submit(batcher, n) for n in range(120)]
        device.gate.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [n for n, found in enumerate(done) if isinstance(found, DeviceFailed)] == sorted(device.fail_on)
        assert all("ValueError" in str(done[n]) for n in device.fail_on)
        assert [found for n, found in enumerate(done) if n not in device.fail_on] == [n * n for n in range(120) if n % 4]
        await first

    run(scenario)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@by_itself
def test_what_was_begun_before_the_device_died_is_still_finished() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        device.die_at_once = {1}
        second = submit(batcher, 1)
        await asyncio.sleep(0.05)
        device.gate.set()
        assert await first == 1_000_000
        with pytest.raises(DeviceFailed, match="restarted"):
            await second
        assert not batcher.alive

    run(scenario, max_delay_s=0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_device_thread_dies_everyone_is_told_at_once() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        device.die_on = {1000}
        first = await held(batcher, device)
        queued = [submit(batcher, n, f"{n}") for n in range(3)]
        await settle()
        device.gate.set()
        with pytest.raises(DeviceFailed, match="restarted"):
            await first
        done = await asyncio.gather(*queued, return_exceptions=True)
        assert all(isinstance(error, (Overloaded, DeviceFailed)) for error in done)
        for thread in batcher._device._threads:
            await asyncio.to_thread(thread.join)
        assert not batcher.alive
        assert isinstance(batcher.death, SystemExit)
        with pytest.raises(Overloaded):
            await submit(batcher, 1)

    run(scenario)


@pytest.mark.parametrize(("known_s", "longest"), [(0.1, 60), (10.0, 200), (None, 900)])
def test_a_stuck_device_is_not_alive(known_s: float | None, longest: float) -> None:
    """A minute, or twenty times as long as it should take; the first of a kind may take a quarter of an hour."""
    now = 0.0

    async def scenario(batcher: Batcher, device: Device) -> None:
        nonlocal now
        if known_s is not None:
            batcher.rows.durations.learn("square", "held", 1, 1, known_s)
        first = await held(batcher, device)
        now += longest - 1
        assert batcher.alive
        now += 2
        assert not batcher.alive
        device.gate.set()
        await first
        assert batcher.alive

    run(scenario, clock=lambda: now)


def test_a_picture_that_turns_out_damaged_gives_its_turn_away() -> None:
    """It has had its turn and submits nothing: a few such uploads, and nobody would be begun any more."""

    async def scenario(batcher: Batcher, device: Device) -> None:
        for _ in range(20):
            with pytest.raises(ValueError, match="damaged"), batcher.admit("square", 1) as ticket:
                await asyncio.wait_for(ticket.turn(), 5)
                raise ValueError("damaged")
        with batcher.admit("square", 1) as ticket:
            await asyncio.wait_for(ticket.turn(), 5)
            assert await ticket.submit("s", 3, 1) == 9

    run(scenario)


@pytest.mark.parametrize("either_device", [False], ids=["in the call"], indirect=True)
def test_a_batch_that_was_laid_out_and_is_wanted_by_nobody_is_not_computed() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        tasks = [submit(batcher, n) for n in range(1, 5)]
        await settle()
        assert len(batcher.rows.in_hand) == 2
        for task in tasks:
            task.cancel()
        await settle()
        device.gate.set()
        await first
        assert await submit(batcher, 7) == 49
        assert not [batch for batch in device.batches if set(batch) & {1, 2, 3, 4}]

    run(scenario, max_delay_s=0)


def test_a_lost_device_ends_the_process() -> None:
    """Every further call would fail, and nobody would restart a process that says it lives."""

    async def scenario(batcher: Batcher, device: Device) -> None:
        device.lose_on = {2}
        first = await held(batcher, device)
        tasks = [submit(batcher, n) for n in range(4)]
        await settle()
        device.gate.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, DeviceFailed) for error in done)
        assert device.batches[1:] == [[0, 1, 2, 3]], "not tried again"
        for thread in batcher._device._threads:
            await asyncio.to_thread(thread.join)
        await settle()
        assert isinstance(batcher.death, DeviceLost)
        assert not batcher.alive
        await first

    run(scenario)


def test_what_expires_in_the_queue_is_never_computed() -> None:
    now = 0.0

    async def scenario(batcher: Batcher, device: Device) -> None:
        nonlocal now
        first = await held(batcher, device)
        late = [submit(batcher, n, deadline=5.0) for n in range(2)]
        patient = submit(batcher, 7)
        await settle()
        now = 6.0
        device.gate.set()
        done = await asyncio.gather(*late, return_exceptions=True)
        assert all(isinstance(error, DeadlineMissed) and error.retry_after_s >= 1 for error in done)
        assert await patient == 49
        assert await first == 1_000_000
        assert all(n not in batch for batch in device.batches for n in range(2))

    run(scenario, max_delay_s=30, clock=lambda: now)


def test_what_the_batch_in_hand_will_make_late_is_not_laid_out_behind_it() -> None:
    """Half of what a full queue computes would come too late otherwise: it is always as long as the deadline."""
    now = 0.0

    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        for _ in range(50):
            batcher.rows.durations.learn("square", "held", 1, 1, 4.0)
            batcher.rows.durations.learn("square", "s", 1, 1, 2.0)
        with batcher.admit("square", 1, deadline=7.0) as ticket:
            batcher.rows.durations.learn("square", "s", 1, 1, 10.0)  # slower than it seemed when this one was let in: 3.6 s
            with pytest.raises(DeadlineMissed):
                await ticket.submit("s", 3, 1)
        with batcher.admit("square", 1, deadline=8.5) as ticket:
            in_time = asyncio.create_task(ticket.submit("s", 4, 1))
            await settle()
            device.gate.set()
            assert await in_time == 16
        assert await first == 1_000_000
        assert device.batches == [[1000], [4]]

    run(scenario, max_delay_s=0, clock=lambda: now)


def test_the_expired_are_told_when_it_happens_not_when_the_device_is_free() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        first = await held(batcher, device)
        with pytest.raises(DeadlineMissed):
            await submit(batcher, 3, deadline=time.monotonic() + 0.05)
        assert not first.done()
        device.gate.set()
        await first

    run(scenario, max_delay_s=30)


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    now = 0.0

    def slow(items: Sequence[Any]) -> Sequence[Any]:
        nonlocal now
        now += 2.0 * len(items)
        return items

    async def main() -> None:
        batcher = Batcher({"square": slow}, 1, 1000, clock=lambda: now)
        await batcher.submit("square", "s", 1, 10)
        with pytest.raises(Overloaded, match="this needs 2000 ms"):
            await batcher.submit("square", "s", 1, 10, deadline=now + 1.9)
        # another shape, twice the pixels: what is known of the operation says twice the time
        with pytest.raises(Overloaded):
            await batcher.submit("square", "larger", 1, 20, deadline=now + 3.5)
        assert await batcher.submit("square", "s", 5, 10, deadline=now + 2.1) == 5
        await batcher.close()

    asyncio.run(main())


def test_the_hopeless_are_refused_before_anything_is_read() -> None:
    """By what a picture usually needs, and by nothing as long as none has been seen."""

    async def main() -> None:
        batcher = Batcher({"square": lambda items: items}, 1, 1000, clock=lambda: 100.0)
        batcher.refuse_hopeless("square", 100.0)
        batcher.rows.durations.learn("square", None, 1, 10, 2.0)
        with batcher.admit("square", 10):
            with pytest.raises(Overloaded, match="about 2000 ms of other work are ahead and this needs 2000 ms") as refused:
                batcher.refuse_hopeless("square", 103.9)
            assert refused.value.retry_after_s == 2
            batcher.refuse_hopeless("square", 104.1)
            batcher.admit("square", 5)
            batcher.refuse_hopeless("square", 103.1)  # the smallest of late
            for _ in range(100):
                batcher.admit("square", 20)
            with pytest.raises(Overloaded):
                batcher.refuse_hopeless("square", 104.1)
        await batcher.close()

    asyncio.run(main())


def test_what_was_learned_in_a_busy_hour_is_doubted_when_idle() -> None:
    """Ten times too much was learned, and all deadlines are short: without doubt nobody would ever be let in again."""
    now = 0.0

    def quick(items: Sequence[Any]) -> Sequence[Any]:
        nonlocal now
        now += 0.1
        return items

    async def main() -> None:
        batcher = Batcher({"square": quick}, 1, 1000, clock=lambda: now)
        batcher.rows.durations.learn("square", "s", 1, 10, 1.0)
        refused = served = 0
        for _ in range(200):
            try:
                await batcher.submit("square", "s", 1, 10, deadline=now + 0.5)
                served += 1
            except Overloaded:
                refused += 1
        assert 0 < refused < 100
        assert served > 100
        with pytest.raises(Overloaded):
            batcher.admit("square", 10, deadline=now - 0.01)
        await batcher.close()

    asyncio.run(main())


def test_promises_that_are_broken_make_the_queue_shorter() -> None:
    """What a picture needs is known, the picture takes twice as long all the same: soon no more are let in than can be done in time."""
    now = 0.0

    async def main() -> None:
        nonlocal now
        batcher = Batcher({"square": lambda items: items}, 1, 1000, clock=lambda: now)
        batcher.rows.durations.learn("square", None, 1, 10, 1.0)
        for _ in range(40):
            with batcher.admit("square", 10, deadline=now + 100):
                now += 2.0
        with batcher.admit("square", 10):
            with pytest.raises(Overloaded, match="the deadline cannot be met"):
                batcher.admit("square", 10, deadline=now + 2.9)
            batcher.admit("square", 10, deadline=now + 3.1)
        await batcher.close()

    asyncio.run(main())


def test_a_picture_of_many_tiles_is_admitted_once() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        batcher.rows.durations.learn("square", "s", 1, 10, 1.0)
        first = await held(batcher, device)
        with batcher.admit("square", 90) as ticket:
            with pytest.raises(Overloaded):
                batcher.admit("square", 20)
            # not in the queue yet, and ahead of the next all the same
            assert batcher.predicted_wait_s() == pytest.approx(9.0 + 0.1)
            device.gate.set()
            assert [await ticket.submit("s", n, 30) for n in range(3)] == [0, 1, 4]
            with pytest.raises(Overloaded):
                batcher.admit("square", 20)
        with batcher.admit("square", 20):
            pass
        await first

    run(scenario, limit=100)


def test_the_processors_work_counts_as_work_ahead() -> None:
    now = 0.0

    def four_seconds() -> str:
        nonlocal now
        now += 4.0
        return "done"

    async def scenario(batcher: Batcher, device: Device) -> None:
        with batcher.admit("square", 10) as ticket:  # nothing is known yet
            assert await ticket.aside(four_seconds) == "done"
        assert batcher.predicted_wait_s() == 0
        batcher.rows.durations.learn("square aside", None, 1, 30, 12.0)
        with batcher.admit("square", 30) as ticket:
            assert batcher.predicted_wait_s() == pytest.approx(12.0)
            with pytest.raises(Overloaded, match="12000 ms of other work are ahead and this needs 4000 ms"):
                batcher.admit("square", 10, deadline=now + 15.9)
            await ticket.aside(four_seconds, finishing=True)
            assert batcher.predicted_wait_s() == pytest.approx(8.0)
        assert batcher.predicted_wait_s() == 0

    run(scenario, clock=lambda: now)


def test_what_could_not_be_finished_in_time_is_not_begun() -> None:
    now = 0.0

    def four_seconds() -> None:
        nonlocal now
        now += 4.0

    async def scenario(batcher: Batcher, device: Device) -> None:
        nonlocal now
        with batcher.admit("square", 10) as ticket:
            await ticket.aside(four_seconds)
        began = len(device.batches)
        with pytest.raises(DeadlineMissed), batcher.admit("square", 10, deadline=now + 5) as ticket:
            now += 2.0  # three seconds are left, and it needs four
            await ticket.submit("s", 3, 10)
        with pytest.raises(DeadlineMissed), batcher.admit("square", 10, deadline=now + 5) as ticket:
            now += 2.0
            await ticket.aside(four_seconds)
        assert len(device.batches) == began

    run(scenario, clock=lambda: now)


def test_an_interactive_picture_does_not_wait_for_bulk_on_the_processor() -> None:
    now = 0.0

    def second() -> None:
        nonlocal now
        now += 1.0

    async def scenario(batcher: Batcher, device: Device) -> None:
        with batcher.admit("square", 10) as ticket:
            await ticket.aside(second)
        with batcher.admit("square", 10, "bulk"):
            assert batcher.predicted_wait_s("interactive") == 0
            assert batcher.predicted_wait_s("bulk") == pytest.approx(1.0)

    run(scenario, clock=lambda: now)


def begun(batcher: Batcher, number: int, order: list[int], lane: Lane = "interactive") -> "asyncio.Task[Any]":
    """A picture's whole way, noting when it was begun."""

    async def journey() -> Any:
        with batcher.admit("square", 1, lane) as ticket:
            await ticket.turn()
            order.append(number)
            return await ticket.submit("s", number, 1)

    return asyncio.create_task(journey())


async def enough(batcher: Batcher, device: Device, order: list[int]) -> "list[asyncio.Task[Any]]":
    """Have a batch in hand, one laid out and one picture in the row, which is as much as is begun where each takes two seconds."""
    batcher.rows.durations.learn("square", "s", 1, 1, 2.0)
    tasks = [await held(batcher, device)]
    for number in range(2):
        tasks.append(begun(batcher, number, order))
        while len(order) <= number or (number == 0 and batcher.rows.waiting):
            await asyncio.sleep(0)
    return tasks


def test_pictures_are_begun_while_less_than_a_second_of_work_waits() -> None:
    order: list[int] = []

    async def scenario(batcher: Batcher, device: Device) -> None:
        batcher.rows.durations.learn("square", "s", 1, 1, 0.4)
        first = await held(batcher, device)
        tasks = [begun(batcher, number, order) for number in range(9)]
        await settle()
        # nought lies beside the one in hand, and four wait: the last two were begun at once, when it was 0.8 s
        assert order == [0, 1, 2, 3, 4]
        assert depth() == 8, "who waits for a turn waits for the device"
        device.gate.set()
        assert await asyncio.gather(*tasks) == [number * number for number in range(9)]
        assert order == list(range(9))
        await first

    run(scenario, max_batch=1, max_delay_s=0)


def test_one_lanes_pictures_are_begun_whatever_waits_in_the_other() -> None:
    order: list[int] = []

    async def scenario(batcher: Batcher, device: Device) -> None:
        batcher.rows.durations.learn("square", "s", 1, 1, 0.4)
        first = await held(batcher, device)
        tasks = [begun(batcher, number, order, "bulk") for number in range(9)]
        await settle()
        tasks.append(begun(batcher, 100, order))
        await settle()
        assert order[-1] == 100
        assert len(order) < 9
        device.gate.set()
        await asyncio.gather(first, *tasks)

    run(scenario, max_batch=1, max_delay_s=0)


def test_the_wait_for_a_turn_is_a_wait_for_the_device() -> None:
    now = 0.0
    labels = {"op": "square", "lane": "interactive"}
    before = REGISTRY.get_sample_value("sdc_queue_wait_seconds_sum", labels) or 0.0

    async def scenario(batcher: Batcher, device: Device) -> None:
        nonlocal now
        *_, waiting = tasks = await enough(batcher, device, [])
        outside = begun(batcher, 2, [])
        await settle()
        now = 5.0
        assert batcher.rows.oldest_s() == 5.0
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        device.gate.set()
        await asyncio.gather(outside, *tasks[:2])
        assert batcher.rows.oldest_s() == 0.0

    run(scenario, max_batch=1, max_delay_s=0, clock=lambda: now)
    assert (REGISTRY.get_sample_value("sdc_queue_wait_seconds_sum", labels) or 0.0) - before == pytest.approx(5.0)


def test_a_turn_that_would_come_too_late_is_refused_when_that_is_plain() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        tasks = await enough(batcher, device, [])
        late = batcher.admission.claim("square", 1, "interactive", math.inf)
        late.deadline = time.monotonic() + late.device_s + 0.05
        with pytest.raises(DeadlineMissed), Ticket(batcher, late) as ticket:
            await ticket.turn()
        assert not tasks[0].done()
        device.gate.set()
        await asyncio.gather(*tasks)

    run(scenario, max_batch=1, max_delay_s=0)


@pytest.mark.parametrize("moment", ["in the row", "when it is given", "before that", "begun"])
def test_whoever_leaves_gives_the_turn_to_the_next(moment: str) -> None:
    order: list[int] = []

    async def scenario(batcher: Batcher, device: Device) -> None:
        tasks = await enough(batcher, device, order)
        for turn in range(10):  # more than may be on their way
            leaving = begun(batcher, 90 + turn, order)
            await settle()
            if moment == "begun":
                tasks[-1].cancel()  # nothing waits any more
                while order[-1] != 90 + turn:
                    await asyncio.sleep(0)
                tasks[-1] = leaving
                continue
            if moment == "in the row":
                leaving.cancel()
            else:
                waits, batcher.rows.ahead._waiting_s = batcher.rows.ahead._waiting_s, lambda lane: 0.0
                if moment == "before that":
                    leaving.cancel()  # its task has not run since, and it stands in the row
                batcher._give_turns()
                if moment == "when it is given":
                    leaving.cancel()
                batcher.rows.ahead._waiting_s = waits
            with pytest.raises(asyncio.CancelledError):
                await leaving
        device.gate.set()
        assert await asyncio.gather(*(begun(batcher, number, order) for number in range(3, 20))) == [n * n for n in range(3, 20)]
        await asyncio.gather(*tasks)
        assert not any(batcher.rows.ahead._begun.values())

    run(scenario, max_batch=1, max_delay_s=0)


def test_closing_refuses_who_waits_for_a_turn_at_once() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        tasks = await enough(batcher, device, [])
        outside = begun(batcher, 2, [])
        await settle()
        closing = asyncio.create_task(batcher.close())
        with pytest.raises(Overloaded, match="stopping"):
            await outside
        with pytest.raises(Overloaded, match="stopping"):
            batcher.begin(batcher.admission.claim("square", 1, "interactive", math.inf))
        device.gate.set()
        await closing
        assert await asyncio.gather(*tasks) == [1_000_000, 0, 1]

    run(scenario, max_batch=1, max_delay_s=0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_waits_for_a_turn_is_told_of_the_devices_death() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        device.die_on = {1000}
        tasks = await enough(batcher, device, [])
        outside = begun(batcher, 2, [])
        await settle()
        device.gate.set()
        with pytest.raises(Overloaded, match="stopping"):
            await outside
        await asyncio.gather(*tasks, return_exceptions=True)

    run(scenario, max_batch=1, max_delay_s=0)


@pytest.mark.parametrize("twice", [True, False])
def test_warming_up_runs_both_sizes_and_learns_their_times(twice: bool) -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        await batcher.warm_up("square", "s", 3, 10, twice)
        assert device.batches == ([[3], [3], [3] * 4, [3] * 4] if twice else [[3], [3] * 4])
        assert batcher.rows.durations.predict("square", "s", 1, 10) == 1.0
        assert batcher.predicted_wait_s() == 0

    run(scenario, a_second_each=True)


def test_a_failing_warm_up_is_an_error_and_too_little_memory_is_not() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        device.memory = 2
        await batcher.warm_up("square", "s", 3, 10)
        tasks = [submit(batcher, n) for n in range(4)]
        assert await asyncio.gather(*tasks) == [0, 1, 4, 9]
        assert max(len(batch) for batch in device.batches[-3:]) <= 2
        device.fail_on = {5}
        with pytest.raises(DeviceFailed):
            await batcher.warm_up("square", "s", 5, 10)

    run(scenario)


def test_a_ticket_is_given_back_whatever_happens() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        for _ in range(50):
            with pytest.raises(ZeroDivisionError), batcher.admit("square", 90):
                raise ZeroDivisionError
        assert batcher.predicted_wait_s() == 0
        assert await submit(batcher, 3, cost=90) == 9

    run(scenario, limit=100)


def test_the_predicted_wait_is_the_work_ahead() -> None:
    async def scenario(batcher: Batcher, device: Device) -> None:
        batcher.rows.durations.learn("square", "s", 1, 1, 3.0)
        first = await held(batcher, device)
        tasks = [submit(batcher, n, lane="bulk") for n in range(5)]
        await settle()
        assert batcher.predicted_wait_s("interactive") == pytest.approx(6.0)  # in hand and laid out
        assert batcher.predicted_wait_s("bulk") == pytest.approx(6.0 + 12.0)
        refused = await asyncio.gather(submit(batcher, 9, cost=1000, lane="bulk"), return_exceptions=True)
        assert isinstance(refused[0], Overloaded)
        assert refused[0].retry_after_s == 18
        device.gate.set()
        await asyncio.gather(first, *tasks)

    run(scenario, max_batch=1, max_delay_s=30)


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
