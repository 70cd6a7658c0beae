"""Folders that are there whole or not at all.  Knows nothing of what is in them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A path beside ``target``, not there yet, to make a folder at; it becomes ``target`` if the block ends well, and else is deleted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent)) / target.name
    try:
        yield staged
        staged.rename(target)
    finally:
        shutil.rmtree(staged.parent, ignore_errors=True)
