"""The manifest that a run writes: one row for each source, JSON Lines or Parquet by its suffix.

While the run lasts its rows are lines of ``<manifest>.partial``, whichever format it will have: each batch is appended by one call, so a
kill leaves whole lines and at most one torn one.  At the end, also at one that came too early, they become the manifest in one step.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from service.bulk.parquet import from_json_lines, require_pyarrow
from service.bulk.rows import Row
from service.bulk.sources import JSON_LINES, PARQUET
from service.errors import BadParameter, StoreUnavailable


class ManifestWriter:
    """Opens the manifest of a run; to be used as a context manager, whose end, whatever its reason, finishes it.

    What a killed run left becomes the manifest first, so that no row is lost.
    Raises BadParameter for a suffix that is neither format's, for a place that cannot be written, and while another run writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f"{path.name}.partial")
        if path.suffix.lower() not in JSON_LINES + PARQUET:
            raise BadParameter(f"{path} is neither {', '.join(JSON_LINES + PARQUET)}: the suffix says what a manifest is written as")
        if path.suffix.lower() in PARQUET:
            require_pyarrow()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            left_over = self._open()
        except OSError as error:
            raise BadParameter(f"{path} cannot be written: {error.strerror}") from error
        self.rescued = left_over > 0
        """whether a killed run had left rows"""
        if left_over:
            self._drop_torn_line(left_over)
            self._finish()
            self._open()

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and not os.fstat(self._file).st_size:
            self._partial.unlink()  # it failed before it began: an older manifest stays
            os.close(self._file)
        else:
            self._finish()

    def _open(self) -> int:
        """Open and lock; returns the length of what was there."""
        self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            raise BadParameter(f"another run writes {self.path} just now: give another --manifest, or wait") from error
        return os.fstat(self._file).st_size

    def _drop_torn_line(self, length: int) -> None:
        with self._partial.open("rb") as lines:
            whole = sum(len(line) for line in lines if line.endswith(b"\n"))
        if whole < length:
            os.truncate(self._file, whole)

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows; once this returns a kill does not lose them.  Raises StoreUnavailable, of a full disk; whole rows are there then."""
        lines = b"".join(json.dumps(dataclasses.asdict(row), ensure_ascii=False).encode() + b"\n" for row in rows)
        done = 0
        try:
            while done < len(lines):
                done += os.write(self._file, lines[done:])
        except OSError as error:
            torn = done - (lines.rfind(b"\n", 0, done) + 1)
            os.truncate(self._file, os.fstat(self._file).st_size - torn)
            raise StoreUnavailable(f"{self._partial} cannot be written: {error.strerror}") from error

    def _finish(self) -> None:
        """Make the rows so far the manifest, in place of an older one.  Raises StoreUnavailable; the rows are then where they were."""
        try:
            os.fsync(self._file)
            if self.path.suffix.lower() in PARQUET:
                converted = self.path.with_name(f"{self.path.name}.converting")
                from_json_lines(self._partial, converted)
                converted.replace(self.path)
                self._partial.unlink()
            else:
                self._partial.replace(self.path)
        except OSError as error:
            raise StoreUnavailable(f"{self.path} cannot be written: {error.strerror}; the rows are in {self._partial}") from error
        finally:
            os.close(self._file)
