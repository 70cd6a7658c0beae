import asyncio
import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from service.bulk import sources
from service.bulk.rows import UNKNOWN, Source
from service.bulk.sources import Reader, listed, refuse_overlap, understand
from service.errors import BadParameter, NotFound, StoreUnavailable
from service.storage.objects import address_of


def names(place: object, match: list[str] | None = None, column: str = "source") -> list[str]:
    return sorted(each.source for each in listed(understand(str(place)), match or [], column))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "a.jpg",
        "deep/er/b.PNG",
        "deep/c",
        ".hidden.jpg",
        ".git/d.jpg",
        "with space and [brackets] #1 100% ü.jpg",
        "two\nlines.jpg",
    ):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "tree"


def test_a_folder_is_everything_in_it_but_what_is_hidden(tree: Path) -> None:
    found = list(listed(understand(str(tree)), []))
    assert sorted(each.source for each in found) == [
        "a.jpg", "deep/c", "deep/er/b.PNG", "two\nlines.jpg", "with space and [brackets] #1 100% ü.jpg",
    ]  # fmt: skip
    reader = Reader(str(tree), 1.0)
    for each in found:
        assert asyncio.run(reader.read(each.source)).decode() == each.source
        assert each.source_bytes == len(each.source.encode())


def test_a_folder_by_its_address(tree: Path) -> None:
    assert names(address_of(str(tree / "deep"))) == names(tree / "deep") == ["c", "er/b.PNG"]


def test_names_can_be_picked(tree: Path) -> None:
    assert names(tree, ["*.png", "A.*"]) == ["a.jpg", "deep/er/b.PNG"]


def test_names_of_a_manifest_can_be_picked(tmp_path: Path) -> None:
    """Entries without a name are told all the same."""
    (tmp_path / "list.jsonl").write_text('{"source": "a.jpg"}\n{"source": "b.png"}\n{}\n')
    assert names(tmp_path / "list.jsonl", ["*.JPG"]) == ["a.jpg", "list.jsonl:3"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(tree: Path) -> None:
    (tree / "deep" / "loop").symlink_to(tree)
    (tree / "deep" / "link").symlink_to(tree / "a.jpg")
    (tree / "deep" / "broken").symlink_to(tree / "nowhere")
    assert names(tree / "deep") == ["c", "er/b.PNG", "link"]


def test_a_file_that_cannot_be_looked_at_is_an_entry_of_its_own(tree: Path) -> None:
    (tree / "deep" / "circle.jpg").symlink_to("circle.jpg")
    found = {each.source: each.problem for each in listed(understand(str(tree / "deep")), [])}
    problem = "this file cannot be read: Too many levels of symbolic links"
    assert found == {"c": "", "er/b.PNG": "", "circle.jpg": problem}
    assert names(tree / "deep", ["*.png"]) == ["er/b.PNG"]


def test_a_file_that_goes_while_its_folder_is_listed_hides_no_other(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").touch()
    found = listed(understand(str(tmp_path)), [])
    first = next(found)
    for path in tmp_path.iterdir():
        path.unlink()
    rest = list(found)
    assert sorted(each.source for each in (first, *rest)) == [f"{number}.jpg" for number in range(5)]
    assert {each.problem for each in rest} == {"this file cannot be read: No such file or directory"}


def test_a_name_that_is_not_utf8_is_listed_and_not_found(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    (found,) = names(tmp_path)
    assert found == "caf\\udce9.jpg"
    with pytest.raises(NotFound):
        asyncio.run(Reader(str(tmp_path), 1.0).read(found))


def test_a_huge_folder_is_not_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many are looked at as are asked for."""
    for number in range(200):
        (tmp_path / f"{number}.jpg").touch()
    looked_at = 0
    scandir = os.scandir

    class Counted:
        def __init__(self, folder: Path) -> None:
            self._entries = scandir(folder)

        def __enter__(self) -> Iterator["os.DirEntry[str]"]:
            return self._count()

        def __exit__(self, *_: object) -> None:
            self._entries.close()

        def _count(self) -> Iterator["os.DirEntry[str]"]:
            nonlocal looked_at
            for entry in self._entries:
                looked_at += 1
                yield entry

    monkeypatch.setattr(sources.os, "scandir", Counted)
    assert len(list(islice(listed(understand(str(tmp_path)), []), 5))) == 5
    assert looked_at == 5


def json_lines(path: Path, entries: list[object], column: str) -> None:
    path.write_text("".join(json.dumps({column: each, "more": 1}) + "\n" for each in entries))


def parquet_file(path: Path, entries: list[object], column: str) -> None:
    parquet.write_table(pyarrow.table({column: entries, "more": [1] * len(entries)}), path)


@pytest.mark.parametrize(("suffix", "write"), [(".jsonl", json_lines), (".NDJSON", json_lines), (".parquet", parquet_file)])
def test_a_manifest_names_what_is_below_its_folder(tmp_path: Path, tree: Path, suffix: str, write: Callable[..., None]) -> None:
    path = tmp_path / f"list{suffix}"
    write(path, ["tree/a.jpg", str(tree / "deep/c"), (tree / "deep/c").as_uri(), None], "photo")
    origin = understand(str(path))
    *found, last = listed(origin, [], "photo")
    reader = Reader(origin.base, 1.0)
    assert [asyncio.run(reader.read(each.source)) for each in found] == [b"a.jpg", b"deep/c", b"deep/c"]
    assert asyncio.run(reader.size("tree/a.jpg")) == 5
    assert last == Source(f"{path.name}:4", UNKNOWN, f"entry 4 of {path.name} has no name of a source in 'photo'")
    elsewhere = understand(str(path), str(tree))
    assert asyncio.run(Reader(elsewhere.base, 1.0).read("a.jpg")) == b"a.jpg"
    with pytest.raises(BadParameter, match="--column"):
        next(listed(origin, [], "other"))


def test_a_line_that_is_none(tmp_path: Path) -> None:
    """Named by its number in the file; a blank one is nothing."""
    bad = ('{"sou', '["source"]', '{"source": 3}', "[" * 200_000)
    (tmp_path / "list.jsonl").write_text("\n".join(["", '{"source": "a"}', *bad, " ", '{"source": "b"}', ""]))
    found = [each.source for each in listed(understand(str(tmp_path / "list.jsonl")), [])]
    assert found == ["a", *(f"list.jsonl:{number}" for number in (3, 4, 5, 6)), "b"]


def test_a_name_that_no_file_of_rows_can_hold_is_told(tmp_path: Path) -> None:
    """Half of a surrogate pair: JSON can write it, UTF-8 cannot."""
    (tmp_path / "list.jsonl").write_text('{"source": "caf\\udce9.jpg"}\n{"source": "a.jpg"}\n')
    found = list(listed(understand(str(tmp_path / "list.jsonl")), []))
    assert found == [
        Source("caf\\udce9.jpg", UNKNOWN, "entry 1 of list.jsonl has a name that is not UTF-8: rename its file"),
        Source("a.jpg"),
    ]


def test_a_name_may_have_what_ends_the_path_of_a_page(tmp_path: Path) -> None:
    for name in ("a#1.jpg", "b?2.jpg"):
        (tmp_path / name).write_text(name)
        assert asyncio.run(Reader("/", 1.0).read(f"file://{tmp_path}/{name}")).decode() == name


def test_what_is_no_source_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for place, words in (
        ("nowhere", "is no folder"),
        ("notes.txt", "is no folder"),
        ("nowhere.jsonl", "no file"),
        ("s3://bucket/list.jsonl", "on this machine"),
    ):
        with pytest.raises(BadParameter, match=words):
            understand(place if "://" in place else str(tmp_path / place))
    with pytest.raises(BadParameter, match="--base"):
        understand(str(tmp_path), "s3://bucket")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadParameter, match="as Parquet"):
        names(tmp_path / "broken.parquet")
    with pytest.raises(StoreUnavailable, match="cannot be listed"):
        names("s3://[x")


def test_a_parquet_file_with_a_damaged_page_is_told(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    parquet_file(path, [f"{number}.jpg" for number in range(5000)], "source")
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)
    path.write_bytes(content)
    with pytest.raises(BadParameter, match="as Parquet"):
        names(path)


def test_a_destination_within_the_source_is_refused(tmp_path: Path) -> None:
    origin = understand(str(tmp_path))
    for inside in (str(tmp_path), f"{tmp_path}/out", f"file://{tmp_path}/out"):
        with pytest.raises(BadParameter, match="DEST lies in SOURCE"):
            refuse_overlap(origin, inside)
    refuse_overlap(origin, f"{tmp_path}-out", Path(f"{tmp_path}-list.jsonl"))
    with pytest.raises(BadParameter, match="--manifest lies in SOURCE"):
        refuse_overlap(origin, f"{tmp_path}-out", tmp_path / "list.jsonl")
    (tmp_path / "list.jsonl").touch()
    with pytest.raises(BadParameter, match="SOURCE itself"):
        refuse_overlap(understand(str(tmp_path / "list.jsonl")), "s3://bucket", tmp_path / "list.jsonl")
    with pytest.raises(BadParameter):
        refuse_overlap(understand("s3://bucket/a"), "s3://bucket/a/b")
    refuse_overlap(understand("s3://bucket/a"), "s3://bucket/ab")


def test_a_destination_within_the_source_is_refused_by_whatever_way_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    (tmp_path / "list.jsonl").touch()
    (tmp_path / "other.jsonl").symlink_to("list.jsonl")
    for source, destination in (("photos", "link/out"), ("link", "photos/out"), ("photos", "x/../photos/out")):
        with pytest.raises(BadParameter, match="DEST lies in SOURCE"):
            refuse_overlap(understand(str(tmp_path / source)), str(tmp_path / destination))
    with pytest.raises(BadParameter, match="SOURCE itself"):
        refuse_overlap(understand(str(tmp_path / "list.jsonl")), "s3://bucket", tmp_path / "other.jsonl")


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    reader = Reader(str(tmp_path), 1.0)
    (tmp_path / "folder").mkdir()
    for name, error in (
        ("nowhere", NotFound),
        ("folder", NotFound),
        ("nul\0", NotFound),
        ("nonsense://x/y", StoreUnavailable),
        ("file://x/y", BadParameter),
        ("s3://[x/y", StoreUnavailable),
    ):
        with pytest.raises(error):
            asyncio.run(reader.read(name))


def test_a_folder_that_cannot_be_listed_is_an_entry_of_its_own(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def guarded(folder: Path) -> object:
        if folder.name == "er":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(sources.os, "scandir", guarded)
    found = list(listed(understand(str(tree)), []))
    assert [each for each in found if each.problem] == [Source("deep/er", UNKNOWN, "this folder cannot be listed: Permission denied")]
    assert "a.jpg" in [each.source for each in found]
