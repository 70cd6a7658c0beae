"""The coding methods a blob may name.  A number, once released, is never given to another method."""

from __future__ import annotations

from typing import Final, Literal, get_args

from service.errors import BadParameter

Method = Literal["latent", "palette"]
LATENT: Final = 0
PALETTE: Final = 1
METHODS: Final = dict(enumerate(get_args(Method)))


def method_number(name: str) -> int:
    """Number of a method in the container; raises BadParameter."""
    for number, known in METHODS.items():
        if known == name:
            return number
    raise BadParameter(f"unknown method '{name}': use one of {', '.join(METHODS.values())}")
