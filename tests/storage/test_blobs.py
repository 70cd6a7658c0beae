import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import obstore
import pytest

from service.errors import NotFound, StoreUnavailable
from service.storage.blobs import SEEN_S, BlobStore
from service.storage.objects import Objects, open_store

ID = "a" * 26
OTHER = "b" * 26


@pytest.fixture
def store(objects: Objects) -> BlobStore:
    """Tried, as at a start."""
    store = BlobStore(objects)
    asyncio.run(store.check())
    return store


def run(call: Callable[[], object]) -> None:
    asyncio.run(call())  # type: ignore[arg-type]


def test_what_is_created_can_be_read(store: BlobStore) -> None:
    async def check() -> None:
        assert await store.create(ID, b"blob", {"color": "#aabbcc"})
        assert await store.read(ID) == b"blob"
        assert await store.facts(ID) == {"color": "#aabbcc"}
        assert await store.size(ID) == 4

    run(check)


def test_missing_is_none(store: BlobStore) -> None:
    async def check() -> None:
        assert await store.read(ID) is None
        assert await store.size(ID) is None
        assert not await store.delete(ID)
        assert not await store.was_deleted(ID)

    run(check)


def test_a_race_has_one_winner(store: BlobStore) -> None:
    async def check() -> None:
        won = await asyncio.gather(*(store.create(ID, f"{n}".encode(), {}) for n in range(20)))
        assert sum(won) == 1 or (not store.first_write_wins and sum(won) > 1)
        stored = await store.read(ID)
        assert stored in {f"{n}".encode() for n in range(20) if won[n]}
        assert not await store.create(ID, b"late", {})
        assert await store.read(ID) == stored

    run(check)


def test_deleted_is_remembered_until_written_again(store: BlobStore) -> None:
    async def check() -> None:
        await store.create(ID, b"blob", {})
        await store.create(OTHER, b"other", {})
        assert await store.delete(ID)
        assert await store.read(ID) is None
        assert await store.facts(ID) == {}
        assert await store.was_deleted(ID)
        assert await store.read(OTHER) == b"other"
        await store.create(ID, b"again", {})
        assert not await store.was_deleted(ID)

    run(check)


def test_a_write_that_revives_an_id_during_its_delete_keeps_its_facts(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        await store.create(ID, b"blob", {"color": "#aabbcc"})
        delete = store._objects.delete

        async def revived_after(path: str) -> None:
            await delete(path)
            if path == f"blobs/{ID}.sdc":
                assert await store.create(ID, b"again", {"color": "#ddeeff"})

        monkeypatch.setattr(store._objects, "delete", revived_after)
        assert await store.delete(ID)
        assert (await store.read(ID), await store.facts(ID)) == (b"again", {"color": "#ddeeff"})

    run(check)


@pytest.mark.parametrize("key", ["../x", "", "a" * 25, "A" * 26, "a" * 25 + "/", "a" * 26 + "\n", "..%2f" + "a" * 21])
def test_keys_that_are_no_ids(store: BlobStore, key: str) -> None:
    async def check() -> None:
        for call in (store.read(key), store.size(key), store.delete(key), store.was_deleted(key), store.create(key, b"", {})):
            with pytest.raises(NotFound):
                await call

    run(check)


def test_a_store_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for url in (f"file://{tmp_path}/file/below", "nonsense://x", "file:///proc/nowhere"):
        with pytest.raises(StoreUnavailable):
            open_store(url)


def test_a_failing_store_is_unavailable(tmp_path: Path) -> None:
    store = BlobStore(open_store(f"file://{tmp_path}/store"))
    (tmp_path / "store" / "blobs").write_text("a file where a folder belongs")

    async def check() -> None:
        with pytest.raises(StoreUnavailable):
            await store.create(ID, b"blob", {})

    run(check)


def test_a_store_that_fails_half_way_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes the sidecar and is full for the blob."""
    store = BlobStore(open_store(f"file://{tmp_path}/store"))
    real = obstore.put

    def full(where: object, path: str, content: bytes, **options: object) -> object:
        if path.endswith(".sdc"):
            raise OSError(28, "No space left on device")
        return real(where, path, content, **options)  # type: ignore[arg-type, call-overload]

    monkeypatch.setattr("service.storage.objects.obstore.put", full)

    async def check() -> None:
        with pytest.raises(StoreUnavailable):
            await store.create(ID, b"blob", {})

    run(check)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_slow_store_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr("service.storage.objects.obstore.get", lambda *_: release.wait(30))
    store = BlobStore(open_store("memory:///", timeout_s=0.01))

    async def check() -> None:
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await store.read(ID)
        release.set()

    run(check)


WRITER = """
import asyncio, base64, sys
from service.storage.blobs import BlobStore
from service.storage.objects import open_store

store, many, begin = BlobStore(open_store(sys.argv[1])), asyncio.Semaphore(8), int(sys.argv[2])

async def write(n):
    name = base64.b32encode(n.to_bytes(16, "big")).decode().lower()[:26]
    async with many:
        await store.create(name, n.to_bytes(4, "big") * 50_000, {"n": n})
        print(name, n, flush=True)

async def main():
    await asyncio.gather(*(write(n) for n in range(begin, begin + 1000)))

asyncio.run(main())
"""


@pytest.mark.parametrize("store_url", ["file", "s3"], indirect=True)
def test_kill_in_the_middle_of_a_thousand_writes(store_url: str) -> None:
    """Every id that was acknowledged is readable afterwards, and whatever can be read is whole."""
    for begin in (0, 1000, 2000):
        process = subprocess.Popen([sys.executable, "-c", WRITER, store_url, str(begin)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        acknowledged = dict(process.stdout.readline().split() for _ in range(100))
        process.kill()
        acknowledged |= dict(line.split() for line in process.stdout if line.endswith("\n"))
        process.wait()
        process.stdout.close()
        assert 100 <= len(acknowledged) < 1000

        async def check(acknowledged: dict[str, str] = acknowledged, begin: int = begin) -> None:
            objects = open_store(store_url)
            store = BlobStore(objects)
            seen = {path.removeprefix("blobs/").removesuffix(".sdc") for path, _ in await objects.list("blobs/") if path.endswith(".sdc")}
            assert set(acknowledged) <= seen
            for blob_id in seen:
                content = await store.read(blob_id)
                assert content is not None and len(content) == 200_000 and content == content[:4] * 50_000
                if blob_id in acknowledged:
                    assert int.from_bytes(content[:4], "big") == int(acknowledged[blob_id])
                    assert (await store.facts(blob_id))["n"] == int(acknowledged[blob_id])
                await store.delete(blob_id)

        asyncio.run(check())


def test_short_lived_commands_exit_cleanly(tmp_path: Path) -> None:
    """obstore's runtime must not keep a process from ending."""
    code = (
        "import asyncio, sys; from service.storage.blobs import BlobStore; from service.storage.objects import open_store;"
        "asyncio.run(BlobStore(open_store(sys.argv[1])).create('c' * 26, b'x', {}))"
    )
    for _ in range(20):
        assert subprocess.run([sys.executable, "-c", code, f"file://{tmp_path}/s"], check=False, timeout=60).returncode == 0


def test_the_facts_are_those_of_the_blob_that_won(store: BlobStore) -> None:
    """A sidecar that a write left behind before its blob came does not stay."""

    async def check() -> None:
        await store.note(ID, {"digest": "of a blob that never came"})
        assert await store.look(ID) is None
        assert await store.create(ID, b"blob", {"digest": "right"})
        assert not await store.create(ID, b"other", {"digest": "of the loser"})
        assert await store.facts(ID) == {"digest": "right"}

    run(check)


def test_what_was_seen_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    store = BlobStore(open_store("memory:///"), clock=lambda: now)
    asked = []
    real = obstore.head
    monkeypatch.setattr("service.storage.objects.obstore.head", lambda *args: (asked.append(args), real(*args))[1])

    async def check() -> None:
        nonlocal now
        await store.create(ID, b"blob", {"tags": ["a"]})
        assert store.seen(ID) is None
        assert [await store.look(ID), await store.look(ID), store.seen(ID)] == [{"tags": ["a"]}] * 3
        assert len(asked) == 1
        await store.note(ID, {"tags": ["a", "b"]})
        assert await store.look(ID) == {"tags": ["a", "b"]}
        now += SEEN_S
        assert store.seen(ID) is None

    run(check)


def test_a_look_during_a_delete_is_not_remembered(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        await store.create(ID, b"blob", {})
        looked, deleted = asyncio.Event(), asyncio.Event()
        real = store.size

        async def slow_size(blob_id: str) -> int | None:
            found = await real(blob_id)
            looked.set()
            await deleted.wait()
            return found

        monkeypatch.setattr(store, "size", slow_size)
        looking = asyncio.create_task(store.look(ID))
        await looked.wait()
        monkeypatch.setattr(store, "size", real)
        assert await store.delete(ID)
        deleted.set()
        assert await looking == {}  # it was there when it looked
        assert store.seen(ID) is None and await store.look(ID) is None

    run(check)


@pytest.mark.parametrize("sidecar", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_sidecar_that_cannot_be_read_says_nothing(store: BlobStore, sidecar: bytes) -> None:
    async def check() -> None:
        await store.create(ID, b"blob", {"a": 1})
        await store._objects.write(f"blobs/{ID}.json", sidecar)
        assert await store.facts(ID) == {}

    run(check)


def test_a_blob_once_seen_is_there_while_the_store_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kept pictures can be shown; nobody knows anything of the others."""
    now = 100.0
    store = BlobStore(open_store("memory:///"), clock=lambda: now)

    def down(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    async def check() -> None:
        nonlocal now
        await store.create(ID, b"blob", {"tags": ["a"]})
        assert await store.look(ID) == {"tags": ["a"]}
        monkeypatch.setattr("service.storage.objects.obstore.head", down)
        now += 10 * SEEN_S
        assert store.seen(ID) is None
        assert await store.look(ID) == {"tags": ["a"]}
        with pytest.raises(StoreUnavailable):
            await store.look(OTHER)
        monkeypatch.undo()
        await store.delete(ID)
        monkeypatch.setattr("service.storage.objects.obstore.head", down)
        with pytest.raises(StoreUnavailable):
            await store.look(ID)

    run(check)
