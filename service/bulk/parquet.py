"""Manifests as Parquet, by pyarrow, of the extra ``bulk``.  JSON Lines need none of this."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.errors import BadParameter

if TYPE_CHECKING:
    import pyarrow

GROUP_ROWS = 65_536
"""rows that are held at once"""


def require_pyarrow() -> None:
    """Raise BadParameter where Parquet cannot be read or written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError as error:
        raise BadParameter(f"{error.name} is missing: Parquet needs pip install 'sdc[bulk]'") from error


def column_of(path: Path, column: str) -> Iterator[Any]:
    """The values of a column, a few at a time; raises BadParameter for a file that has it not, or is damaged."""
    require_pyarrow()
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise BadParameter(f"{path.name} has no column '{column}': --column names the column of sources")
            for batch in file.iter_batches(GROUP_ROWS, columns=[column]):
                yield from batch.column(0).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: also of text that is not UTF-8
        raise BadParameter(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def row_schema() -> pyarrow.Schema:
    """The columns of ``service.bulk.rows.Row``."""
    import pyarrow

    text, number = pyarrow.string(), pyarrow.int64()
    kinds = {"source": text, "id": text, "status": text, "bytes": number, "width": number, "height": number, "source_bytes": number}
    return pyarrow.schema([*kinds.items(), ("error", text), ("detail", text)])


def from_json_lines(lines: Path, target: Path) -> None:
    """Rows as JSON Lines to Parquet, in constant memory."""
    import pyarrow
    from pyarrow import parquet

    schema = row_schema()
    with lines.open("rb") as source, parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        while group := [json.loads(line) for line in islice(source, GROUP_ROWS)]:
            writer.write_table(pyarrow.Table.from_pylist(group, schema))
