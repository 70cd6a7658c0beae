"""Where photographs come from: a folder, a prefix of an object store, or a manifest that names them.

Names are listed one after the other and never held all at once; what they name is read by ``Reader``, perhaps by another process.
Whether a file is a photograph is decided by its bytes, so everything is listed but hidden files.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from service.bulk.parquet import column_of
from service.bulk.rows import UNKNOWN, Source
from service.errors import BadParameter, NotFound, StoreUnavailable, first_line
from service.storage.objects import Objects, open_store, remote

JSON_LINES, PARQUET = (".jsonl", ".ndjson"), (".parquet",)
FILE = "file://"
LISTING_S = 60.0
"""for a page of a listing"""
LISTED_AT_ONCE = 1000
"""names in one answer of an object store"""

Found = TypeVar("Found")
Wanted = Callable[[str], bool]
"""whether a source of this name is to be taken"""


@dataclass(frozen=True)
class Origin:
    """What was given as SOURCE, understood."""

    base: str
    """absolute folder, or address of a prefix: names are below it"""
    manifest: Path | None = None
    """names the sources; None: they are listed"""

    @property
    def remote(self) -> bool:
        return "://" in self.base


def understand(given: str, base: str | None = None) -> Origin:
    """A folder, ``file://`` or other address of a prefix, or a local manifest, by its suffix.

    Args:
        given: as a person wrote it.
        base: what the names in a manifest are below, instead of its folder.

    Raises BadParameter for what is none of these.
    """
    suffix = PurePosixPath(_split(given)[1] if "://" in given else given).suffix.lower()
    if suffix in JSON_LINES + PARQUET:
        path = Path(_local(given))
        if not path.is_file():
            raise BadParameter(f"there is no file {given}: a manifest must be a file on this machine")
        return Origin(_local(base) if base else str(path.absolute().parent), path)
    if base:
        raise BadParameter("--base is for a manifest: what is listed lies below SOURCE")
    place = _local(given)
    if "://" in place:
        return Origin(place.rstrip("/"))
    if not Path(place).is_dir():
        wanted = "a folder, an address such as s3://bucket/prefix, or a manifest (.jsonl, .parquet)"
        raise BadParameter(f"{given} is no folder: SOURCE is {wanted}")
    return Origin(place)


def _local(place: str) -> str:
    """A path or ``file://`` address as an absolute path; any other address as it is."""
    if "://" not in place:
        return str(Path(place).absolute())
    root, path = _split(place)
    return str(Path("/", path)) if root == FILE else place


def _split(address: str) -> tuple[str, str]:
    """An address up to its host, and the path below, which may have ``#`` and ``?`` in it: a photograph's name is no page's."""
    scheme, _, rest = address.partition("://")
    host, _, path = rest.partition("/")
    if scheme.lower() != "file":
        return f"{scheme}://{host}", unquote(path)
    if host not in ("", "localhost"):
        raise BadParameter(f"{address} names a machine, '{host}': a file's address has three slashes, file:///folder/name")
    return FILE, unquote(path)


def _resolved(place: str) -> str:
    """As ``_local``, without links and steps up, and with a slash at its end."""
    place = _local(place)
    return (place if "://" in place else os.path.realpath(place)).rstrip("/") + "/"


def refuse_overlap(origin: Origin, destination: str, manifest: Path | None = None) -> None:
    """Raise BadParameter where what is written would be listed, or takes the place of what is read."""
    rows = None if manifest is None else _resolved(str(manifest))
    if origin.manifest is not None:
        if rows == _resolved(str(origin.manifest)):
            raise BadParameter("--manifest is SOURCE itself, and a run that is cut short would shorten it: give another path")
        return
    base = _resolved(origin.base)
    for name, written in (("DEST", _resolved(destination)), ("--manifest", rows)):
        if written is not None and written.startswith(base):
            raise BadParameter(f"{name} lies in SOURCE, so what is written would be read again: give another place")


def listed(origin: Origin, match: list[str], column: str = "source") -> Iterator[Source]:
    """All sources, one after the other, in no particular order.

    Args:
        origin: of ``understand``.
        match: patterns as of a shell, of which a name, below SOURCE or as in the manifest, has one, whatever its case; none: every name.
        column: of a manifest, that has the names.

    What hides names, a folder that cannot be listed or an entry without one, is told whatever is matched.
    Raises BadParameter for a manifest without that column or a damaged one, StoreUnavailable when an object store does not list.
    """
    patterns = [pattern.lower() for pattern in match]

    def wanted(name: str) -> bool:
        return not patterns or any(fnmatchcase(name.lower(), pattern) for pattern in patterns)

    if origin.manifest is not None:
        return _in_manifest(origin.manifest, column, wanted)
    return _in_store(origin.base, wanted) if origin.remote else _in_folder(Path(origin.base), wanted)


def _in_folder(folder: Path, wanted: Wanted) -> Iterator[Source]:
    """Files at any depth; links to files are followed, links to folders are not: they may lead in circles."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    elif wanted(name := _escaped(str(Path(entry.path).relative_to(folder)))):
                        yield from _file(name, entry)
        except OSError as error:
            yield Source(_escaped(str(here.relative_to(folder))), UNKNOWN, f"this folder cannot be listed: {error.strerror}")


def _file(name: str, entry: os.DirEntry[str]) -> Iterator[Source]:
    """An entry of a folder, if it is a file; one that cannot be looked at (a link in circles, or just gone) hides no other."""
    try:
        if entry.is_file():
            yield Source(name, entry.stat().st_size)
    except OSError as error:
        yield Source(name, UNKNOWN, f"this file cannot be read: {error.strerror}")


def _escaped(name: str) -> str:
    """One that is not UTF-8 cannot stand in a manifest: it is written with escapes, and will not be found."""
    return name.encode(errors="backslashreplace").decode()


def _in_store(address: str, wanted: Wanted) -> Iterator[Source]:
    try:
        store = remote(address, LISTING_S)
        for part in obstore.list(store, chunk_size=LISTED_AT_ONCE):
            for each in part:
                name, size = each["path"], int(each["size"])
                if wanted(name) and not any(step.startswith(".") for step in name.split("/")) and (size or _is_object(store, name)):
                    yield Source(name, size)
    except (OSError, ValueError, BaseError) as error:
        words, hint = first_line(error), ""
        if "invalid path" in words:
            hint = "; objects behind it cannot be listed either: rename it, or give a manifest of the others' names (docs/BULK.md)"
        raise StoreUnavailable(f"{address} cannot be listed: {words}{hint}") from error


def _is_object(store: ObjectStore, name: str) -> bool:
    """Whether what is listed as empty is there under that name; not so the marks of folders, whose names end in a slash that is lost."""
    try:
        return bool(name) and obstore.head(store, name) is not None
    except FileNotFoundError:
        return False


def _in_manifest(path: Path, column: str, wanted: Wanted) -> Iterator[Source]:
    shown = _escaped(path.name)
    values = _json_lines(path, column) if path.suffix.lower() in JSON_LINES else enumerate(column_of(path, column), 1)
    for number, value in values:
        if not isinstance(value, str) or not value:
            yield Source(f"{shown}:{number}", UNKNOWN, f"entry {number} of {shown} has no name of a source in '{column}'")
        elif (name := _escaped(value)) != value:
            yield Source(name, UNKNOWN, f"entry {number} of {shown} has a name that is not UTF-8: rename its file")
        elif wanted(value):
            yield Source(value)


def _json_lines(path: Path, column: str) -> Iterator[tuple[int, Any]]:
    """Number of each line that is not blank, and the column's value, None where there is none.

    The first of them tells a wrong kind of file.
    """
    first = True
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            entry = _object(line)
            if first and column not in entry:
                raise BadParameter(f"the first line of {path.name} is no JSON object with '{column}': --column names the column of sources")
            first = False
            yield number, entry.get(column)


def _object(line: bytes) -> dict[str, Any]:
    """A JSON object; an empty one for what is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


class Reader:
    """The bytes that names stand for.  Used on one event loop.

    Args:
        base: of the ``Origin``; names that are addresses or absolute paths need none.
        timeout_s: of each call of an object store.
    """

    def __init__(self, base: str, timeout_s: float) -> None:
        self._base, self._timeout_s = base, timeout_s
        self._stores: dict[str, Objects] = {}

    async def size(self, name: str) -> int:
        """Length of a source; raises NotFound and StoreUnavailable."""
        objects, path = self._place(name)
        if objects is None:
            return await asyncio.to_thread(_told, name, lambda: Path(path).stat().st_size)
        with _askable(name):
            return _found(name, await objects.size(path))

    async def read(self, name: str) -> bytes:
        """A source's bytes; raises NotFound and StoreUnavailable."""
        objects, path = self._place(name)
        if objects is None:
            return await asyncio.to_thread(_told, name, Path(path).read_bytes)
        with _askable(name):
            return _found(name, await objects.read(path))

    def _place(self, name: str) -> tuple[Objects | None, str]:
        """The store, None for this machine's files, and the path in it."""
        if "://" in name:
            root, path = _split(name)
            return (None, f"/{path}") if root == FILE else (self._store(root), path.lstrip("/"))
        if "://" in self._base:
            return self._store(self._base), name
        return None, str(Path(self._base, name))

    def _store(self, address: str) -> Objects:
        if address not in self._stores:
            self._stores[address] = open_store(address, self._timeout_s)
        return self._stores[address]


@contextmanager
def _askable(name: str) -> Iterator[None]:
    """Say in our words that a name is none that an object store can be asked for by this program: with a step ``..``, or none at all."""
    try:
        yield
    except ValueError as error:
        raise NotFound(f"{name} is no name that can be asked for here: {first_line(error)}") from error


def _found(name: str, value: Found | None) -> Found:
    if value is None:
        raise NotFound(f"there is no {name}")
    return value


def _told(name: str, call: Callable[[], Found]) -> Found:
    """Call, and say in our words why a file of this machine cannot be read."""
    try:
        return call()
    except FileNotFoundError as error:
        raise NotFound(f"there is no {name}") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError, ValueError) as error:
        raise NotFound(f"there is no {name} that can be read: {getattr(error, 'strerror', error)}") from error
    except OSError as error:
        raise StoreUnavailable(f"{name} cannot be read: {error.strerror}") from error
