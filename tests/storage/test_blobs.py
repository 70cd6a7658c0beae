import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import obstore
import pytest

from service.errors import NotFound, StoreUnavailable
from service.storage.blobs import SEEN_S, BlobStore
from service.storage.objects import open_store

ID = "a" * 26
OTHER = "b" * 26


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return BlobStore(open_store(f"file://{tmp_path}/deep/store" if request.param == "file" else "memory:///"))


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
        assert sum(won) == 1
        assert await store.read(ID) == f"{won.index(True)}".encode()

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
import asyncio, os, sys
from service.storage.blobs import SEEN_S, BlobStore
from service.storage.objects import open_store
store = BlobStore(open_store(sys.argv[1]))
async def main():
    print("ready", flush=True)
    for n in range(100000):
        name = "".join("abcdefghijklmnopqrstuvwxyz234567"[(n >> (5 * k)) & 31] for k in range(4)) + "a" * 22
        await store.create(name, os.urandom(64) * 20000, {})
asyncio.run(main())
"""


def test_kill_leaves_no_half_blob(tmp_path: Path) -> None:
    """kill -9 in the middle of writing: whatever can be read is whole."""
    url = f"file://{tmp_path}/store"
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        while len(list(tmp_path.glob("store/blobs/*.sdc"))) < 3:
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = BlobStore(open_store(url))
        whole = list(tmp_path.glob("store/blobs/*.sdc"))
        assert whole
        for path in whole:
            content = asyncio.run(store.read(path.stem))
            assert content is not None
            assert len(content) == 64 * 20000
            assert content == content[:64] * 20000
            path.unlink()


def test_short_lived_commands_exit_cleanly(tmp_path: Path) -> None:
    """obstore's runtime must not keep a process from ending."""
    code = (
        "import asyncio, sys; from service.storage.blobs import BlobStore; from service.storage.objects import open_store;"
        "asyncio.run(BlobStore(open_store(sys.argv[1])).create('c' * 26, b'x', {}))"
    )
    for _ in range(50):
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
