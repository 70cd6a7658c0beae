"""Folders that are there whole or not at all, made by one process at a time.  Knows nothing of what is in them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"
"""begins the name of a folder that is being made"""
LOCK = ".lock"
"""held by whoever makes folders beside it; it stays, for a file that goes is locked by two"""


@contextmanager
def alone(parent: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Nobody else who asks for it makes folders in ``parent`` during the block, on machines that share it neither.

    What somebody had half made there when it was killed is deleted.

    Args:
        parent: made where it is missing.
        waiting: called where somebody else has to end first.

    Raises OSError where nothing can be written, or locked, there.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in parent.glob(f"{PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


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
    staged = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=target.parent)) / target.name
    try:
        yield staged
        make_readable(staged)
        staged.rename(target)
    finally:
        shutil.rmtree(staged.parent, ignore_errors=True)
