import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import obstore
import pytest
from prometheus_client import REGISTRY

from service.errors import StoreUnavailable
from service.storage.leases import SKEW_S, Lease, Leases
from service.storage.objects import Objects, open_store

NAME = f"{'a' * 26}.webp.q80"


class Time:
    """A clock that goes on when somebody pauses, and what happens at certain moments."""

    def __init__(self) -> None:
        self.now = 100.0
        self.events: list[tuple[float, Callable[[], Awaitable[None]]]] = []

    def clock(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        self.now += seconds
        for event in [event for event in self.events if event[0] <= self.now]:
            self.events.remove(event)
            await event[1]()


def leases(objects: Objects, time: Time, lease_s: float = 10.0) -> Leases:
    return Leases(objects, lease_s, time.clock, time.pause)


def run(call: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(call())  # type: ignore[arg-type]


def count(result: str) -> float:
    return REGISTRY.get_sample_value("sdc_lease_total", {"result": result}) or 0


async def taken(leases: Leases, deadline: float = 1e9) -> Lease:
    lease = await leases.take(NAME, deadline)
    assert lease is not None
    return lease


def test_one_has_it_the_other_waits_until_it_is_given_back(objects: Objects) -> None:
    async def check() -> None:
        await objects.probe()
        time = Time()
        first = await taken(leases(objects, time))
        time.events.append((103.0, first.release))
        assert await leases(objects, time).take(NAME, 1e9) is None
        assert 103 <= time.now < 104
        assert await objects.list("leases/") == []
        assert await leases(objects, time).take(NAME, 1e9) is not None

    run(check)


def test_no_folders_are_left(tmp_path: Path) -> None:
    async def check() -> None:
        lease = await taken(leases(open_store(f"file://{tmp_path}"), Time()))
        await lease.release()
        assert list((tmp_path / "leases").iterdir()) == []

    run(check)


def test_other_pictures_have_leases_of_their_own() -> None:
    async def check() -> None:
        objects = open_store("memory:///")
        await taken(leases(objects, Time()))
        assert await leases(objects, Time()).take("another.png", 1e9) is not None

    run(check)


def test_a_lease_of_a_dead_process_ends(objects: Objects) -> None:
    """Of those who wait for it one takes it over, and cleans up after both."""

    async def check() -> None:
        await objects.probe()
        time, expired = Time(), count("expired")
        await taken(leases(objects, time))
        second = await taken(leases(objects, time))
        assert 110 <= time.now < 111
        assert count("expired") == expired + 1
        time.events.append((time.now + 1, second.release))
        assert await leases(objects, Time()).take("another.png", 1e9) is not None  # another picture, to see that it stays
        third = asyncio.ensure_future(leases(objects, time).take(NAME, 1e9))
        await third
        assert [path for path, _ in await objects.list("leases/")] == ["leases/another.png.0"]

    run(check)


def test_a_lease_of_long_ago_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        objects, time = open_store("memory:///"), Time()
        await taken(leases(objects, time))

        for beyond_s, waits in ((1, False), (-1, True)):  # clocks may differ so far
            began = time.now
            monkeypatch.setattr(objects, "age_s", AsyncMock(return_value=10 + SKEW_S + beyond_s))
            await taken(leases(objects, time))
            assert (time.now > began) == waits

    run(check)


def test_each_waits_no_longer_than_its_own_deadline() -> None:
    async def check() -> None:
        objects, time = open_store("memory:///"), Time()
        await taken(leases(objects, time))
        with pytest.raises(TimeoutError):
            await leases(objects, time).take(NAME, deadline=time.now + 2)
        assert 101 < time.now <= 102.2

    run(check)


def test_a_store_that_fails_keeps_nobody_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        objects = open_store("memory:///")

        async def down(*_: object) -> None:
            raise StoreUnavailable("down")

        monkeypatch.setattr(objects, "create", down)
        monkeypatch.setattr(objects, "delete", down)
        before = count("failed")
        lease = await taken(leases(objects, Time()))
        await lease.release()
        assert count("failed") == before + 1
        await Lease(objects, ["x"]).release()
        assert count("failed") == before + 2

    run(check)


def test_no_leases_at_all() -> None:
    async def check() -> None:
        objects = open_store("memory:///")
        for _ in range(2):
            await (await taken(leases(objects, Time(), lease_s=0))).release()
        assert await objects.list("") == []

    run(check)


def test_given_back_when_the_picture_can_be_found() -> None:
    async def check() -> None:
        objects, written = open_store("memory:///"), asyncio.Event()
        keeper = leases(objects, Time())
        lease = await taken(keeper)

        async def write() -> None:
            await written.wait()

        keeper.release_after(lease, write())
        await asyncio.sleep(0)
        assert await objects.list("leases/")
        written.set()
        await keeper.close()
        assert await objects.list("leases/") == []

    run(check)


@pytest.mark.parametrize("won", [True, False])
def test_whoever_is_cancelled_leaves_no_lease(monkeypatch: pytest.MonkeyPatch, won: bool) -> None:
    """A write goes on when nobody waits for it any more.  Another's lease stays."""

    async def check() -> None:
        objects, put = open_store("memory:///"), obstore.put
        asked, may, done = threading.Event(), threading.Event(), threading.Event()
        if not won:
            await taken(leases(objects, Time()))

        def slowly(*args: Any, **kwargs: Any) -> Any:
            asked.set()
            assert may.wait(20)
            try:
                return put(*args, **kwargs)
            finally:
                done.set()

        monkeypatch.setattr(obstore, "put", slowly)
        keeper = leases(objects, Time())
        task = asyncio.create_task(taken(keeper))
        await asyncio.to_thread(asked.wait, 20)
        task.cancel()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
        may.set()
        await asyncio.to_thread(done.wait, 20)
        await keeper.close()
        assert len(await objects.list("leases/")) == (0 if won else 1)

    run(check)


def test_given_back_whatever_became_of_the_picture() -> None:
    async def check() -> None:
        objects = open_store("memory:///")
        keeper = leases(objects, Time())
        written = asyncio.create_task(asyncio.sleep(60))
        keeper.release_after(await taken(keeper), written)
        await asyncio.sleep(0)
        written.cancel()
        await keeper.close()
        assert await objects.list("leases/") == []

    run(check)
