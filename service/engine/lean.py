"""Imports diffusers without what it would bring along and nothing here uses: half of what the imports of a process took.

- scipy and transformers, where they are installed, are for pipelines, quantised weights and single-file checkpoints.  diffusers tells what
  is installed by looking for it, once; so nothing is to be found while it looks.
- Nor does it learn which distribution brought which package: it reads all that is installed for that, and asks for three quantisers.
- ``torch._dynamo``, the compiler, with sympy and torch.distributed behind it, is wanted for decorators that say what it shall leave alone,
  in parts of diffusers that are not used here.  They find one that changes nothing.

Measured, the first 9.1 s to 5.9 s, the third, on a slower processor, 10.7 s to 7.4 s and 442 to 301 MB.  Who has imported one of them
before keeps it, and who imports one afterwards gets it: ``SDC_COMPILE=on`` does.

And Python's collector of garbage lets alone what is imported.  With the second, in turn: imported and ended in 4.3, 3.7, 3.9 s instead of
7.8, 6.7, 7.4.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

from service.process import kept

UNUSED = ("scipy", "transformers")
COMPILER = "torch._dynamo"


@contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """In the block, packages that were not imported yet look as if they were not installed."""
    with _in_the_place_of(dict.fromkeys(packages)):  # None: the language's own word for a module that cannot be imported
        yield


@contextmanager
def undecorated(module: str, *decorators: str) -> Iterator[None]:
    """In the block, a module that was not imported yet has these decorators and nothing else, and what they decorate stays as it is."""
    stand_in = ModuleType(module)
    for name in decorators:
        setattr(stand_in, name, _as_it_is)
    with _in_the_place_of({module: stand_in}):
        yield


@contextmanager
def unmapped() -> Iterator[None]:
    """In the block, no package is known to come from any distribution."""
    name = "packages_distributions"
    known = getattr(importlib.metadata, name)
    setattr(importlib.metadata, name, dict)
    try:
        yield
    finally:
        setattr(importlib.metadata, name, known)


def _as_it_is(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """A decorator, with or without brackets."""
    return _as_it_is if function is None else function


@contextmanager
def _in_the_place_of(modules: dict[str, Any]) -> Iterator[None]:
    imported = cast(dict[str, Any], sys.modules)
    absent = {name: module for name, module in modules.items() if name not in imported}
    imported.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del imported[name]


if "diffusers" not in sys.modules:  # it has looked already, otherwise
    with kept(), hidden(*UNUSED), unmapped(), undecorated(COMPILER, "allow_in_graph", "disable"):
        import diffusers.models.autoencoders
        import diffusers.models.modeling_utils
        import diffusers.models.unets  # noqa: F401
