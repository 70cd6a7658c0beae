import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
from prometheus_client import REGISTRY

from service.storage.objects import Objects, open_store
from service.storage.renders import RenderCache

ID, OTHER = "a" * 26, "b" * 26


@pytest.fixture(params=["file", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """The places that this machine's processes tidy up themselves."""
    return open_store(f"file://{tmp_path}/store" if request.param == "file" else "memory:///")


def run(call: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(call())  # type: ignore[arg-type]


async def keep(cache: RenderCache, blob_id: str, variant: str, content: bytes) -> None:
    cache.keep(blob_id, variant, content)
    await cache.close()


def count(result: str) -> float:
    return REGISTRY.get_sample_value("sdc_render_cache_total", {"result": result}) or 0


def test_what_is_kept_can_be_read(objects: Objects) -> None:
    async def check() -> None:
        cache = RenderCache(objects, 1000)
        assert await cache.read(ID, "webp.q80") is None
        await keep(cache, ID, "webp.q80", b"picture")
        assert await cache.read(ID, "webp.q80") == b"picture"
        assert cache.size(ID, "webp.q80") == 7
        assert await cache.read(ID, "webp.q70") is None

    run(check)


def test_the_least_recently_used_goes_first(objects: Objects) -> None:
    async def check() -> None:
        cache = RenderCache(objects, 100)
        for variant in ("one", "two", "three"):
            await keep(cache, ID, variant, bytes(33))
        assert await cache.read(ID, "one")
        await keep(cache, ID, "four", bytes(33))
        assert await cache.read(ID, "two") is None
        assert all([await cache.read(ID, variant) for variant in ("one", "three", "four")])
        assert {path for path, _ in await objects.list("renders/")} == {f"renders/{ID}/{name}" for name in ("one", "three", "four")}
        await keep(cache, ID, "huge", bytes(101))
        assert await cache.read(ID, "huge") is None
        assert await cache.read(ID, "one")

    run(check)


def test_another_process_finds_them_and_keeps_the_bound(objects: Objects) -> None:
    async def check() -> None:
        first = RenderCache(objects, 1000)
        for variant in ("one", "two", "three"):
            await keep(first, ID, variant, bytes(33))
            await asyncio.sleep(0.01)
        second = RenderCache(objects, 70)
        second.open()
        await second.close()
        assert await second.read(ID, "one") is None
        assert await second.read(ID, "three") == bytes(33)
        assert len(await objects.list("renders/")) == 2

    run(check)


def test_taking_stock_keeps_nobody_waiting(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of a million pictures is listed for longer than a call may take; what comes meanwhile is the youngest."""

    async def check() -> None:
        await keep(RenderCache(objects, 1000), ID, "old", bytes(33))
        listed, may = obstore.list, threading.Event()

        def slowly(*args: Any, **kwargs: Any) -> Any:
            assert may.wait(20)
            return listed(*args, **kwargs)

        monkeypatch.setattr(obstore, "list", slowly)
        objects._timeout_s = 0.05
        cache = RenderCache(objects, 70)
        cache.open()
        task = cache.keep(ID, "new", bytes(33))
        assert task is not None
        await task
        await asyncio.sleep(0.1)
        may.set()
        await cache.close()
        objects._timeout_s = 10.0
        assert cache._sizes == {f"renders/{ID}/old": 33, f"renders/{ID}/new": 33}
        await keep(cache, ID, "newer", bytes(33))
        assert [await cache.read(ID, name) is not None for name in ("old", "new", "newer")] == [False, True, True]

    run(check)


def test_folders_in_which_nothing_is_go(tmp_path: Path) -> None:
    """Two for each picture that was ever shown, or the next start would go through all of them."""

    async def check() -> None:
        cache = RenderCache(open_store(f"file://{tmp_path}"), 1000)
        for blob_id in (ID, OTHER):
            await keep(cache, blob_id, "one", b"picture")
        await cache.forget(OTHER)
        (tmp_path / "renders" / "young").mkdir()
        for name in (ID, OTHER):
            os.utime(tmp_path / "renders" / name, (0, 0))
        again = RenderCache(open_store(f"file://{tmp_path}"), 1000)
        again.open()
        await again.close()
        assert {path.name for path in (tmp_path / "renders").iterdir()} == {ID, "young"}
        assert await again.read(ID, "one") == b"picture"

    run(check)


def test_a_deleted_blob_leaves_nothing(objects: Objects) -> None:
    async def check() -> None:
        cache = RenderCache(objects, 1000)
        for blob_id in (ID, OTHER):
            for variant in ("one", "two"):
                cache.keep(blob_id, variant, b"picture")
        await cache.forget(ID)
        assert [await cache.read(ID, variant) for variant in ("one", "two")] == [None, None]
        assert await cache.read(OTHER, "one") == b"picture"
        assert len(await objects.list("renders/")) == 2

    run(check)


def test_whoever_leaves_while_a_blob_is_forgotten_stops_no_write(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        put, may = obstore.put, threading.Event()

        def slowly(*args: Any, **kwargs: Any) -> Any:
            assert may.wait(20)
            return put(*args, **kwargs)

        monkeypatch.setattr(obstore, "put", slowly)
        cache = RenderCache(objects, 1000)
        written = cache.keep(OTHER, "one", bytes(33))
        forgetting = asyncio.create_task(cache.forget(ID))
        await asyncio.sleep(0.05)
        forgetting.cancel()
        await asyncio.wait([forgetting])
        may.set()
        assert written is not None
        await written
        assert await cache.read(OTHER, "one") == bytes(33)

    run(check)


def test_a_blob_is_forgotten_while_stock_is_taken(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would keep its caller waiting, and must not count afterwards what is gone."""

    async def check() -> None:
        before = RenderCache(objects, 1000)
        for blob_id in (ID, OTHER):
            await keep(before, blob_id, "one", bytes(33))
        listed, may = obstore.list, threading.Event()

        def slowly(store: Any, prefix: str) -> Any:
            found = list(listed(store, prefix=prefix))
            assert prefix != "renders/" or may.wait(20)
            return found

        monkeypatch.setattr(obstore, "list", slowly)
        cache = RenderCache(objects, 1000, memory_bytes=1000)
        cache.open()
        await cache.read(ID, "one")
        await asyncio.sleep(0.05)
        await asyncio.wait_for(cache.forget(ID), 10)
        may.set()
        await cache.close()
        assert cache._sizes == {f"renders/{OTHER}/one": 33}
        assert gauges() == (33, 0)
        await cache.forget(OTHER)
        assert gauges() == (0, 0)

    run(check)


def gauges() -> tuple[float | None, float | None]:
    """Bytes kept, and in memory, as the metrics say."""
    return REGISTRY.get_sample_value("sdc_render_cache_bytes"), REGISTRY.get_sample_value("sdc_render_cache_memory_bytes")


def test_what_somebody_deleted_is_a_miss(tmp_path: Path) -> None:
    async def check() -> None:
        cache = RenderCache(open_store(f"file://{tmp_path}"), 1000)
        await keep(cache, ID, "one", b"picture")
        (tmp_path / "renders" / ID / "one").unlink()
        assert await cache.read(ID, "one") is None
        assert cache.size(ID, "one") is None
        await keep(cache, ID, "one", b"picture")
        assert await cache.read(ID, "one") == b"picture"

    run(check)


def test_no_room_at_all(objects: Objects) -> None:
    async def check() -> None:
        cache = RenderCache(objects, 0)
        await keep(cache, ID, "one", b"picture")
        assert await cache.read(ID, "one") is None
        assert await objects.list("renders/") == []

    run(check)


def test_a_full_disk_costs_nothing_but_the_cache(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    async def check() -> None:
        cache = RenderCache(objects, 1000)
        await keep(cache, ID, "one", b"picture")
        monkeypatch.setattr(obstore, "put", full)
        monkeypatch.setattr(obstore, "get", full)
        before = count("failed")
        await keep(cache, ID, "two", b"picture")
        assert await cache.read(ID, "one") is None
        assert count("failed") == before + 2

    run(check)


def test_on_an_object_store_nothing_is_thrown_away(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        monkeypatch.setattr(Objects, "ours", False)
        cache = RenderCache(objects, 100)
        cache.open()
        for variant in ("one", "two", "three", "four"):
            await keep(cache, ID, variant, bytes(33))
        another = RenderCache(objects, 100)
        assert all([await another.read(ID, variant) for variant in ("one", "two", "three", "four")])
        assert another.size(ID, "one") is None
        await another.forget(ID)
        assert await cache.read(ID, "one") is None

    run(check)


def test_the_last_used_are_in_memory_too(objects: Objects) -> None:
    async def check() -> None:
        cache = RenderCache(objects, 1000, memory_bytes=100)
        for variant in ("one", "two", "three"):
            await keep(cache, ID, variant, bytes(33))
        assert cache.in_memory(ID, "one") == bytes(33)
        await keep(cache, OTHER, "four", bytes(33))
        assert cache.in_memory(ID, "two") is None
        assert cache.size(ID, "two") == 33
        assert await cache.read(ID, "two") == bytes(33)
        assert cache.in_memory(ID, "three") is None
        assert cache.in_memory(ID, "two") == bytes(33)
        assert REGISTRY.get_sample_value("sdc_render_cache_memory_bytes") == 99
        await keep(cache, ID, "large", bytes(101))
        assert cache.in_memory(ID, "large") is None
        assert await cache.read(ID, "large") == bytes(101)
        await cache.forget(ID)
        assert cache.in_memory(ID, "two") is None
        assert cache.in_memory(OTHER, "four")

    run(check)


def test_what_is_forgotten_or_kept_again_leaves_its_place_in_memory(objects: Objects) -> None:
    """Or else the sum of bytes only grows, and one day nothing is kept in memory any more."""

    async def check() -> None:
        cache = RenderCache(objects, 1000, memory_bytes=100)
        for _ in range(5):
            await keep(cache, ID, "one", bytes(33))
            await cache.forget(ID)
        for variant in ("one", "one", "one", "one", "two"):
            await keep(cache, OTHER, variant, bytes(33))
        assert [cache.in_memory(OTHER, variant) for variant in ("one", "two")] == [bytes(33)] * 2
        assert cache._bytes_in_memory == 66

    run(check)


def test_a_cache_that_keeps_nothing_remembers_nothing(objects: Objects) -> None:
    async def check() -> None:
        cache = RenderCache(objects, 0, memory_bytes=100)
        await keep(cache, ID, "one", bytes(33))
        assert cache.in_memory(ID, "one") is None

    run(check)
