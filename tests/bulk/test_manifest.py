import json
import resource
from pathlib import Path

import pytest
from pyarrow import parquet

from service.bulk import manifest as module
from service.bulk.manifest import ManifestWriter
from service.bulk.parquet import row_schema
from service.bulk.rows import ROW_COLUMNS, Row, Source, rows_of, sources_of, to_columns
from service.errors import BadParameter, StoreUnavailable, TooManyPixels

ROWS = [
    Row("a.jpg", "a" * 26, "made", 4000, 640, 480, 200_000, None, None),
    Row("ü [x]\n.jpg", "b" * 26, "known", 1 << 40, 1, 1, 1, None, None),
    Row.of_failure(Source("c.jpg"), None, TooManyPixels('so "many"')),
]


def read(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        return list(rows_of(parquet.read_table(path).to_pydict()))
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()]


@pytest.fixture(params=[".jsonl", ".parquet"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "new" / f"out{request.param}"


def test_there_and_back(path: Path) -> None:
    with ManifestWriter(path) as writer:
        writer.append(ROWS[:1])
        writer.append(ROWS[1:])
        assert not path.exists()
    assert read(path) == ROWS
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_an_empty_one(path: Path) -> None:
    with ManifestWriter(path):
        pass
    assert read(path) == []
    if path.suffix == ".parquet":
        assert parquet.read_schema(path).equals(row_schema())


def test_the_columns_of_both_formats_are_the_fields_of_a_row() -> None:
    assert tuple(row_schema().names) == ROW_COLUMNS


def test_a_failure_leaves_the_rows_so_far(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ManifestWriter(path) as writer:
        writer.append(ROWS)
        raise KeyboardInterrupt
    assert read(path) == ROWS


def test_a_failure_before_the_first_row_leaves_the_older_one(path: Path) -> None:
    with ManifestWriter(path) as writer:
        writer.append(ROWS)
    with pytest.raises(BadParameter), ManifestWriter(path):
        raise BadParameter("no model")
    assert read(path) == ROWS
    with ManifestWriter(path) as writer:
        writer.append(ROWS[:1])
    assert read(path) == ROWS[:1]


def test_what_a_killed_run_left_becomes_the_manifest(path: Path) -> None:
    """But for a line that was torn."""
    killed = ManifestWriter(path)
    killed.append(ROWS)
    module.os.write(killed._file, b'{"source": "tor')
    module.os.close(killed._file)  # as the kernel does
    writer = ManifestWriter(path)
    assert writer.rescued
    assert read(path) == ROWS
    with writer:
        writer.append(ROWS[:2])
        assert read(path) == ROWS
    assert read(path) == ROWS[:2]


def test_a_full_disk_leaves_whole_rows(path: Path) -> None:
    """A limit on the size of files breaks a write off as a full disk does, in the middle of a row."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(StoreUnavailable, match="partial cannot be written: File too large"), ManifestWriter(path) as writer:
        writer.append(ROWS[:1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * writer._partial.stat().st_size + 50, before[1]))
        try:
            writer.append(ROWS)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read(path) == ROWS[:1] * 2


def test_of_two_at_once_the_second_is_refused(path: Path) -> None:
    with ManifestWriter(path), pytest.raises(BadParameter, match="another run"):
        ManifestWriter(path)
    with ManifestWriter(path):
        pass


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, words in (("out.csv", "suffix"), ("out", "suffix"), ("file/out.jsonl", "cannot be written")):
        with pytest.raises(BadParameter, match=words):
            ManifestWriter(tmp_path / place)


def test_columns_come_back_as_records() -> None:
    sources = [Source("a", 3), Source("b"), Source("c", problem="none")]
    assert sources_of(to_columns(Source, sources)) == sources
    assert list(rows_of(to_columns(Row, []))) == []
    assert list(rows_of({**to_columns(Row, ROWS), "number": [1, 2, 3]})) == ROWS
