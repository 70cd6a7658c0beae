"""Imports diffusers without packages that it would bring along and that nothing here uses.

diffusers imports scipy and transformers, where they are installed, for pipelines, quantised weights and single-file checkpoints: a third of
the time that a process took to start (measured: 9.1 s to 5.9 s).  It tells what is installed by looking for it, once; so nothing is to be
found while it looks.  Who has imported one of them before keeps it, and who imports one afterwards gets it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

UNUSED = ("scipy", "transformers")


@contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """In the block, packages that were not imported yet look as if they were not installed."""
    modules = cast(dict[str, Any], sys.modules)
    absent = [package for package in packages if package not in modules]
    modules.update(dict.fromkeys(absent))  # None: the language's own word for a module that cannot be imported
    try:
        yield
    finally:
        for package in absent:
            del modules[package]


with hidden(*UNUSED):
    import diffusers.models.modeling_utils  # noqa: F401
