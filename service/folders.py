"""Folders that are there whole or not at all.  Knows nothing of what is in them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def make_readable(folder: Path) -> None:
    """Let whoever may read new files here read those of ``folder`` too: safetensors keeps what it writes to its owner."""
    mask = os.umask(0)  # there is no other way to ask
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | (0o444 & ~mask))


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A path beside ``target``, not there yet, to make a folder at; it becomes ``target`` if the block ends well, and else is deleted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent)) / target.name
    try:
        yield staged
        make_readable(staged)
        staged.rename(target)
    finally:
        shutil.rmtree(staged.parent, ignore_errors=True)
