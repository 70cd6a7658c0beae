import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.bulk import compressor as module
from service.bulk.compressor import Cancelled, Compressor
from service.bulk.rows import UNKNOWN, Row, Source, rows_of, to_columns
from service.engine.engine import Engine
from service.errors import BadModel, DeviceFailed, StoreUnavailable
from service.options import CompressOptions
from service.pipeline import Pipeline
from service.settings import Settings
from service.storage.blobs import BlobStore
from service.storage.keeping import MOST_TAGS
from service.storage.objects import Objects, open_store
from tests.bulk.conftest import JobMaker, animated, fill
from tests.conftest import make_picture, png


def rows(compressor: Compressor, *sources: str | Source) -> list[Row]:
    named = [Source(each) if isinstance(each, str) else each for each in sources]
    return list(rows_of(compressor(to_columns(Source, named))))


def test_the_ids_blobs_and_facts_are_those_of_the_service_which_serves_them(job: JobMaker, settings: Settings, photos_folder: Path) -> None:
    options = CompressOptions(quality=30)
    names = sorted(path.name for path in photos_folder.iterdir())
    with Compressor(job(options=options, tag="shoes")) as compressor:
        made = rows(compressor, *names)
    served = settings.model_copy(update={"store_url": settings.store_url + "-of-the-service"})
    with TestClient(create_app(settings)) as given, TestClient(create_app(served)) as posted:
        for row in made:
            source = (photos_folder / row.source).read_bytes()
            ours = given.get(f"/blobs/{row.id}/info").json()
            theirs = posted.post("/compress?quality=30&tag=shoes", content=source).json()
            assert row == Row(row.source, theirs["id"], "made", theirs["bytes"], theirs["width"], theirs["height"], len(source), None, None)
            assert ours == posted.get(f"/blobs/{row.id}/info").json()
            assert ours["tags"] == ["shoes"]
            assert given.get(f"/blobs/{row.id}").content == posted.get(f"/blobs/{row.id}").content
            assert given.get(f"/blobs/{row.id}").headers["etag"] == posted.get(f"/blobs/{row.id}").headers["etag"]
            assert given.get(f"/render/{row.id}.png").content == posted.get(f"/render/{row.id}.png").content
            assert given.post("/compress?quality=30", content=source).status_code == 200


def test_what_is_stored_costs_no_device_time(job: JobMaker, photos_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Compressor(job()) as compressor:
        first = rows(compressor, "p0.png", "p1.png")
    fill(photos_folder / "copies", 2)
    compressed = Counter[int]()
    compress = Pipeline.compress

    async def counted(self: Pipeline, source: bytes, *rest: Any) -> Any:
        compressed[len(source)] += 1
        return await compress(self, source, *rest)

    monkeypatch.setattr(Pipeline, "compress", counted)
    with Compressor(job()) as compressor:
        again = rows(compressor, "p0.png", "copies/p1.png")
        assert not compressed
        assert [(each.id, each.bytes, each.width, each.status) for each in again] == [(e.id, e.bytes, e.width, "known") for e in first]
        rows(compressor, "p2.png")
        assert compressed.total() == 1


def test_two_names_of_the_same_bytes_are_two_rows_and_one_object(job: JobMaker, photos_folder: Path, tmp_path: Path) -> None:
    for name in ("again.png", "and-again.png"):
        (photos_folder / name).write_bytes((photos_folder / "p0.png").read_bytes())
    with Compressor(job()) as compressor:
        made = rows(compressor, "p0.png", "again.png", "and-again.png", "p0.png")
    assert [each.source for each in made] == ["p0.png", "again.png", "and-again.png", "p0.png"]
    assert len({each.id for each in made}) == 1
    assert sorted(each.status for each in made) == ["known", "known", "known", "made"]
    assert len(list((tmp_path / "store" / "blobs").glob("*.sdc"))) == 1


def test_what_is_wrong_with_a_picture_is_a_row_beside_its_neighbours(job: JobMaker, photos_folder: Path, settings: Settings) -> None:
    good = (photos_folder / "p0.png").read_bytes()
    bad = {
        "cut.png": (good[:900], "undecodable-picture"),
        "words.jpg": (b"no picture", "unsupported-input"),
        "empty.jpg": (b"", "unsupported-input"),
        "moving.webp": (animated(), "animated-picture"),
        "wide.png": (png(make_picture(10, 120)), "too-many-pixels"),
        "heavy.png": (good + bytes(1 << 16), "too-many-bytes"),
    }
    for name, (content, _) in bad.items():
        (photos_folder / name).write_bytes(content)
    small = settings.model_copy(update={"max_pixels": 1199 * 2, "max_body_bytes": 1 << 16})
    (photos_folder / "wide.png").write_bytes(png(make_picture(50, 120)))
    with Compressor(job(settings=small)) as compressor:
        told = rows(compressor, "p0.png", *bad, "nowhere.png", Source("list:3", UNKNOWN, "entry 3 has no name"), "p1.png")
    assert (told[0].status, told[-1].status) == ("made", "made")
    failed = {each.source: each.error for each in told[1:-1]}
    assert failed == {**{name: kind for name, (_, kind) in bad.items()}, "nowhere.png": "not-found", "list:3": "bad-parameter"}
    assert all(each.status == "failed" and each.id is None and each.bytes is None and each.detail for each in told[1:-1])


def test_a_size_that_cannot_be_kept_is_a_row(job: JobMaker, photos_folder: Path) -> None:
    alpha = np.random.default_rng(0).integers(0, 256, (60, 60, 1)).astype(np.uint8)
    (photos_folder / "p0.png").write_bytes(png(np.dstack((make_picture(60, 60), alpha))))
    with Compressor(job(options=CompressOptions(max_bytes=40))) as compressor:
        (row,) = rows(compressor, "p0.png")
    assert row.error == "size-unreachable"


def test_an_error_of_our_own_is_a_row_and_in_the_log(job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with Compressor(job()) as compressor:
        monkeypatch.setattr(module, "picture_size", broken)
        (row,) = rows(compressor, "p0.png")
    assert (row.error, row.status) == ("internal", "failed")
    assert "ZeroDivisionError" in str(row.detail)


def test_what_was_deleted_stays_deleted_unless_it_is_revived(job: JobMaker, settings: Settings) -> None:
    with Compressor(job()) as compressor:
        (made,) = rows(compressor, "p0.png")
    asyncio.run(BlobStore(open_store(settings.store_url)).delete(str(made.id)))
    with Compressor(job()) as compressor:
        (row,) = rows(compressor, "p0.png")
    assert (row.id, row.status, row.error) == (made.id, "failed", "gone")
    with Compressor(job(revive=True)) as compressor:
        assert rows(compressor, "p0.png") == [made]


@pytest.mark.parametrize("left", [0, 20], ids=["empty", "cut"])
def test_what_is_damaged_in_dest_is_named_and_made_again_once_it_is_gone(job: JobMaker, tmp_path: Path, left: int) -> None:
    """Not written over unasked: it may be another service's, and its sidecar has others' tags."""
    with Compressor(job()) as compressor:
        (made,) = rows(compressor, "p0.png")
        path = tmp_path / "store" / "blobs" / f"{made.id}.sdc"
        path.write_bytes(path.read_bytes()[:left])
        (row,) = rows(compressor, "p0.png")
        assert (row.id, row.error) == (made.id, "corrupt-blob")
        assert row.detail == f"what DEST holds as {made.id} is damaged: delete blobs/{made.id}.sdc and run again"
        path.unlink()
        assert rows(compressor, "p0.png") == [made]


def test_a_tag_is_added_to_what_was_known(job: JobMaker, settings: Settings) -> None:
    blobs = BlobStore(open_store(settings.store_url))
    with Compressor(job(tag="first")) as compressor:
        (row,) = rows(compressor, "p0.png")
    with Compressor(job(tag="second")) as compressor:
        rows(compressor, "p0.png")
        facts = asyncio.run(blobs.facts(str(row.id)))
        assert facts["tags"] == ["first", "second"]
        asyncio.run(blobs.note(str(row.id), {**facts, "tags": [f"t{number}" for number in range(MOST_TAGS)]}))
        assert rows(compressor, "p0.png")[0].error == "bad-parameter"


def test_other_columns_are_passed_on_and_arrays_are_taken(job: JobMaker) -> None:
    batch = {name: np.array(values) for name, values in to_columns(Source, [Source("p1.png"), Source("p0.png")]).items()}
    with Compressor(job()) as compressor:
        columns = compressor({"number": np.array([7, 8]), **batch})
    assert columns["number"] == [7, 8]
    assert "problem" not in columns
    assert [each.source for each in rows_of(columns)] == ["p1.png", "p0.png"]


def test_pixels_at_work_are_bounded_and_nobody_is_refused(job: JobMaker, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = 0, 0
    compress = Pipeline.compress

    async def watched(self: Pipeline, *given: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return await compress(self, *given)
        finally:
            inside -= 1

    monkeypatch.setattr(Pipeline, "compress", watched)
    narrow = settings.model_copy(update={"max_queued_pixels": 2 * 42 * 50})
    with Compressor(job(settings=narrow)) as compressor:
        told = rows(compressor, *(f"p{number}.png" for number in range(5)))
    assert [each.status for each in told] == ["made"] * 5
    assert most == 2


def test_bytes_at_work_are_bounded(job: JobMaker, settings: Settings, photos_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [path.stat().st_size for path in photos_folder.iterdir()]
    inside, most = 0, 0
    stored = Compressor._stored

    async def watched(self: Compressor, source: Source, content: bytes) -> Row:
        nonlocal inside, most
        inside += len(content)
        most = max(most, inside)
        try:
            return await stored(self, source, content)
        finally:
            inside -= len(content)

    monkeypatch.setattr(Compressor, "_stored", watched)
    narrow = settings.model_copy(update={"max_bodies_bytes": 2 * max(sizes)})
    with Compressor(job(settings=narrow)) as compressor:
        assert {each.status for each in rows(compressor, *(f"p{number}.png" for number in range(5)))} == {"made"}
    assert max(sizes) < most <= 2 * max(sizes)


def test_calls_overlap(job: JobMaker) -> None:
    with Compressor(job()) as compressor, ThreadPoolExecutor(5) as threads:
        told = list(threads.map(lambda number: rows(compressor, f"p{number}.png"), range(5)))
    assert [row.source for (row,) in told] == [f"p{number}.png" for number in range(5)]
    assert {row.status for (row,) in told} == {"made"}


def test_cancelling_ends_the_calls_and_no_more(job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    async def endless(*_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    with Compressor(job()) as compressor, ThreadPoolExecutor(1) as threads:
        with monkeypatch.context() as patched:
            patched.setattr(Pipeline, "compress", endless)
            call = threads.submit(rows, compressor, "p0.png", "p1.png")
            assert begun.wait(20)
            compressor.cancel()
            with pytest.raises(Cancelled):
                call.result(20)
        assert rows(compressor, "p0.png")[0].status == "made"


def test_a_store_that_is_away_for_a_moment_costs_no_picture(job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STORE_PAUSE_S", 0.01)
    real, away = Objects.read, 3

    async def read(self: Objects, path: str) -> bytes | None:
        nonlocal away
        if away:
            away -= 1
            raise StoreUnavailable("the store did not answer lately and is left alone for some seconds")
        return await real(self, path)

    with Compressor(job()) as compressor:
        monkeypatch.setattr(Objects, "read", read)
        assert rows(compressor, "p0.png")[0].status == "made"
        away = 10**9
        monkeypatch.setattr(module, "STORE_PATIENCE_S", 0.1)
        failed = rows(compressor, "p1.png")[0]
        assert (failed.status, failed.error) == ("failed", "store-unavailable")


def test_the_stores_own_words_are_in_the_row() -> None:
    error = StoreUnavailable("the store failed")
    error.__cause__ = OSError("507: the bucket is over its quota\nDebug source: ...")
    assert Row.of_failure(Source("p0.png"), None, error).detail == "the store failed: 507: the bucket is over its quota"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_device_ends_the_run(job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object, **__: object) -> None:
        raise SystemExit

    with Compressor(job()) as compressor:
        monkeypatch.setattr(Engine, "begin_encode", dies)
        with pytest.raises(DeviceFailed, match="died"):
            rows(compressor, "p0.png")


def test_what_cannot_start_says_why(job: JobMaker, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadModel):
        Compressor(job(settings=settings.model_copy(update={"model": tmp_path})))
    with pytest.raises(StoreUnavailable):
        Compressor(job(destination="file:///proc/nowhere"))


def test_what_a_picture_costs_the_store(job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures that ``sdc bench bulk`` reckons with."""
    calls = Counter[str]()
    for name in ("create", "write", "read", "size", "delete"):

        def counted(self: Objects, *given: Any, _name: str = name, _call: Any = getattr(Objects, name)) -> Any:
            calls[_name] += 1
            return _call(self, *given)

        monkeypatch.setattr(Objects, name, counted)
    with Compressor(job()) as compressor:
        calls.clear()
        rows(compressor, Source("p0.png", 1))
        assert calls == {"read": 2, "create": 2, "delete": 1}
        calls.clear()
        rows(compressor, Source("p0.png", 1))
        assert calls == {"read": 1}
