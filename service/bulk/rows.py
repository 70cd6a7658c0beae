"""One source in, one row out; and both as columns, which is how batches travel.  Knows nothing of how a row comes about."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from service.errors import SdcError, StoreUnavailable

UNKNOWN = -1
"""a size that nobody has told; not None, which would turn a column of sizes into floats on its way"""

Status = Literal["made", "known", "failed"]
Columns = dict[str, list[Any]]
"""values by column name, all of one length"""
Record = TypeVar("Record", "Source", "Row")


@dataclass(frozen=True)
class Source:
    """A photograph that is to be compressed."""

    source: str
    """its name: below the folder or prefix that was given, or as the manifest has it"""
    source_bytes: int = UNKNOWN
    problem: str = ""
    """why there is nothing to read: what is wrong with its entry in the manifest"""


@dataclass(frozen=True)
class Row:
    """What became of a source.  The fields are the columns of a manifest; those that are not known are None."""

    source: str
    id: str | None
    status: Status
    """``made``: by this run; ``known``: it was stored already; ``failed``: ``error`` and ``detail`` say why"""
    bytes: int | None
    """of the blob"""
    width: int | None
    height: int | None
    source_bytes: int | None
    error: str | None
    """the ``kind`` of an error in ``service.errors``"""
    detail: str | None

    @classmethod
    def of_failure(cls, source: Source, blob_id: str | None, error: SdcError) -> Row:
        """The row of a source that could not be compressed."""
        size = None if source.source_bytes == UNKNOWN else source.source_bytes
        detail = error.in_full if isinstance(error, StoreUnavailable) else error.detail
        return cls(source.source, blob_id, "failed", None, None, None, size, error.kind, detail)


ROW_COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def to_columns(kind: type[Record], records: Sequence[Record]) -> Columns:
    """Records of a kind as columns."""
    return {field.name: [getattr(record, field.name) for record in records] for field in dataclasses.fields(kind)}


def sources_of(columns: Mapping[str, Iterable[Any]]) -> list[Source]:
    """Columns back to sources, whatever kind of strings and integers the columns are made of."""
    names, sizes, problems = (columns[field.name] for field in dataclasses.fields(Source))
    return [Source(str(name), int(size), str(problem)) for name, size, problem in zip(names, sizes, problems, strict=True)]


def rows_of(columns: Mapping[str, Iterable[Any]]) -> Iterator[Row]:
    """Columns of Python values back to rows; further columns are left out."""
    for values in zip(*(columns[name] for name in ROW_COLUMNS), strict=True):
        yield Row(*values)
