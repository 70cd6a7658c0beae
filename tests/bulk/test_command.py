import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from service.bulk import run
from service.bulk.compressor import Compressor
from service.bulk.rows import Columns, Row, Source
from service.cli import app
from service.errors import StoreUnavailable
from tests.bulk.conftest import fill


@pytest.fixture
def model(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDC_MODEL", str(small_model))
    monkeypatch.setenv("SDC_DTYPE", "float32")
    return small_model


def bulk(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["bulk", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def read(manifest: Path) -> list[Row]:
    if manifest.suffix == ".parquet":
        return [Row(**each) for each in parquet.read_table(manifest).to_pylist()]
    return [Row(**json.loads(line)) for line in manifest.read_text().splitlines()]


def stored(store: Path) -> set[str]:
    return {path.stem for path in (store / "blobs").glob("*.sdc")}


def test_all_good_then_all_known_then_one_bad(model: Path, photos_folder: Path, tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "out.jsonl"
    assert "5 made" in bulk(photos_folder, store, "--manifest", out)
    made = read(out)
    assert {each.status for each in made} == {"made"}
    assert stored(store) == {each.id for each in made}
    assert {path.stem for path in (store / "blobs").glob("*.json")} == stored(store)
    (photos_folder / "[red]bad.jpg").write_bytes(b"no picture")
    told = bulk(photos_folder, store, "--manifest", tmp_path / "out.parquet", code=3)
    assert "5 known, 1 failed" in told
    assert "error: [red]bad.jpg: these bytes are no picture" in told
    again = read(tmp_path / "out.parquet")
    assert {each.id for each in again if each.id} == stored(store)
    assert Counter(each.status for each in again) == {"known": 5, "failed": 1}


def test_a_manifest_of_sources_and_without_one_of_rows(model: Path, photos_folder: Path, tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"photo": ["p0.png", "p1.png", "p0.png"]}), tmp_path / "in.parquet")
    told = bulk(tmp_path / "in.parquet", tmp_path / "store", "--column", "photo", "--base", photos_folder, "--quality", 20, "--tag", "old")
    assert "2 made, 1 known" in told
    assert len(stored(tmp_path / "store")) == 2


def test_nothing_to_do(model: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert "nothing to do" in bulk(tmp_path / "none", tmp_path / "store", "--manifest", tmp_path / "out.parquet")
    assert read(tmp_path / "out.parquet") == []


def test_what_cannot_be_is_told_before_anything_is_loaded(photos_folder: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ([tmp_path / "nowhere", tmp_path / "store"], "is no folder"),
        ([photos_folder, photos_folder / "out"], "DEST lies in SOURCE"),
        ([photos_folder, tmp_path / "store", "--manifest", photos_folder / "out.jsonl"], "--manifest lies in SOURCE"),
        ([photos_folder, "s3://[x"], "the store s3:// cannot be opened"),
        ([photos_folder, tmp_path / "store", "--manifest", "out.csv"], "suffix"),
        ([photos_folder, tmp_path / "store", "--tag", "a b"], "a tag is"),
        ([photos_folder, tmp_path / "store", "--quality", 5, "--max-bytes", 5000], "give --max-bytes or --quality, not both"),
        ([photos_folder, tmp_path / "store", "--method", "palette", "--dither"], "leave --quality and --dither out"),
    ):
        assert words in bulk(*arguments, code=1)
    assert not (tmp_path / "store").exists()


def test_a_store_that_stays_away_ends_the_run() -> None:
    failed = [Row.of_failure(Source(f"{number}"), None, StoreUnavailable("no")) for number in range(run.STORE_FAILURES)]
    good = Row("good", "a" * 26, "made", 1, 1, 1, 1, None, None)
    seen: list[Row] = []

    def batches(*each: list[Row]) -> run.Batches:
        yield from each

    run.record(batches(failed[1:], [good], failed[1:]), None, seen.append)
    with pytest.raises(StoreUnavailable, match="in turn"):
        run.record(batches([good], failed, [good]), None, seen.append)
    assert seen[-1] == failed[-1]


@contextmanager
def hanging(photos_folder: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A run that has written a batch down and cannot go on: each of the next four waits for a pipe.  Then come 40 more."""
    os.mkfifo(photos_folder / "pipe")
    names = fill(photos_folder, 116)
    listed = names[:16]
    for part in range(4):
        listed += [*names[16 + 15 * part : 31 + 15 * part], "pipe"]
    listed += names[76:]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"source": each}) + "\n" for each in listed))
    command = ["bulk", tmp_path / "in.jsonl", tmp_path / "store", "--base", photos_folder, "--manifest", tmp_path / "out.jsonl"]
    process = subprocess.Popen([sys.executable, "-m", "service.cli", *map(str, command)], stderr=subprocess.PIPE, text=True)
    try:
        partial = tmp_path / "out.jsonl.partial"
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline and not (partial.exists() and partial.stat().st_size):
            time.sleep(0.05)
        assert process.poll() is None, process.stderr and process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate()


def release(pipe: Path, process: "subprocess.Popen[str]") -> None:
    """Let everybody who waits for the pipe read nothing, until the run has ended."""
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        try:
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            pass  # nobody waits just now
        time.sleep(0.05)


def test_ctrl_c_finishes_what_is_in_hand_and_leaves_a_manifest(model: Path, photos_folder: Path, tmp_path: Path) -> None:
    with hanging(photos_folder, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        release(photos_folder / "pipe", process)
        assert process.wait(60) == 130
        assert process.stderr is not None
        told = process.stderr.read()
    assert "stopping" in told
    assert "the same command goes on" in told
    rows = read(tmp_path / "out.jsonl")
    counts = Counter(each.status for each in rows)
    # the first batch, and those that were in hand: on a busy machine the signal comes before the fourth of them is
    assert counts["failed"] in (3, 4)
    assert counts == {"made": 16 + 15 * counts["failed"], "failed": counts["failed"]}
    assert {each.id for each in rows if each.id} == stored(tmp_path / "store")
    assert not (tmp_path / "out.jsonl.partial").exists()
    (photos_folder / "pipe").unlink()
    bulk(tmp_path / "in.jsonl", tmp_path / "store", "--base", photos_folder, "--manifest", tmp_path / "out.jsonl", code=3)
    again = Counter(each.status for each in read(tmp_path / "out.jsonl"))
    assert again == {"known": counts["made"], "made": 116 - counts["made"], "failed": 4}


def test_ctrl_c_when_all_is_in_hand_stops_nothing(
    model: Path, photos_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Compressor.__call__

    def interrupted(self: Compressor, batch: Columns) -> Columns:
        os.kill(os.getpid(), signal.SIGINT)
        return work(self, batch)

    monkeypatch.setattr(Compressor, "__call__", interrupted)
    told = bulk(photos_folder, tmp_path / "store")
    assert "stopping" in told
    assert "5 made" in told
    assert "goes on" not in told


def test_kill_loses_nothing_that_was_written_down_and_the_next_run_completes(model: Path, photos_folder: Path, tmp_path: Path) -> None:
    with hanging(photos_folder, tmp_path) as process:
        process.kill()
        process.wait(60)
    written = read(tmp_path / "out.jsonl.partial")
    assert [each.status for each in written] == ["made"] * 16
    kept = {each.id for each in written}
    assert kept <= stored(tmp_path / "store")
    before = {path.name: path.read_bytes() for path in (tmp_path / "store" / "blobs").glob("*.sdc")}
    (photos_folder / "pipe").unlink()
    out = bulk(tmp_path / "in.jsonl", tmp_path / "store", "--base", photos_folder, "--manifest", tmp_path / "out.jsonl", code=3)
    assert "a run that was killed" in out
    rows = read(tmp_path / "out.jsonl")
    assert len(rows) == 120
    assert len({each.id for each in rows if each.id}) == 116
    assert {each.id for each in rows if each.id} == stored(tmp_path / "store")
    assert {each.id for each in rows if each.status == "known"} == {name.removesuffix(".sdc") for name in before}
    assert all((tmp_path / "store" / "blobs" / name).read_bytes() == content for name, content in before.items())
