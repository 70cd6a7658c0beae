"""What a caller may ask of the two journeys, checked.  It must not load the networks: an address is signed without them."""

from __future__ import annotations

from dataclasses import dataclass

from service.codec.methods import Method, method_number
from service.errors import BadParameter
from service.imaging.resizing import Box
from service.imaging.writing import DEFAULT_QUALITY
from service.manifest import Steps

DEFAULT_RATE_QUALITY = 50
SMALLEST_MAX_BYTES = 32
MOST_STEPS = 8


@dataclass(frozen=True)
class CompressOptions:
    """How to compress.  At most one of ``max_bytes`` and ``quality``; neither means quality 50."""

    method: Method = "latent"
    max_bytes: int | None = None
    """the whole file, header included, has at most this many bytes"""
    quality: int | None = None
    """0..100"""
    dither: bool = False
    """subtractive dither: noise for the U-Net instead of structure, at the price of some rate"""

    def __post_init__(self) -> None:
        method_number(self.method)
        if self.method == "palette" and (self.quality is not None or self.dither):
            raise BadParameter("method=palette has one size and dithers by itself: leave quality and dither out")
        if self.max_bytes is not None and self.quality is not None:
            raise BadParameter("give max_bytes or quality, not both")
        if self.max_bytes is not None and self.max_bytes < SMALLEST_MAX_BYTES:
            raise BadParameter(f"max_bytes must be at least {SMALLEST_MAX_BYTES}")
        if self.quality is not None and not 0 <= self.quality <= 100:
            raise BadParameter("quality must be between 0 and 100")

    def canonical(self) -> str:
        """One spelling for one meaning; part of the id."""
        size = f"quality={DEFAULT_RATE_QUALITY if self.quality is None else self.quality}"
        if self.max_bytes is not None:
            size = f"max_bytes={self.max_bytes}"
        return f"method={self.method}&{size}{'&dither' if self.dither else ''}"


def parse_steps(value: str) -> Steps:
    """U-Net steps as they are written in addresses and on the command line; raises BadParameter."""
    if value == "article":
        return "article"
    if value.isascii() and value.isdecimal() and len(value) < 3 and int(value) <= MOST_STEPS:
        return int(value)
    raise BadParameter(f"steps must be a whole number from 0 to {MOST_STEPS}, or 'article'")


@dataclass(frozen=True)
class RenderOptions:
    """How to render."""

    extension: str = "webp"
    """a key of ``service.imaging.writing.FORMATS``"""
    steps: Steps | None = None
    """U-Net steps; None is the model's default"""
    quality: int = DEFAULT_QUALITY
    """of the written format, 1..100; says nothing for a lossless one"""
    box: Box | None = None
    """what it shall fit; None is the size it has"""
