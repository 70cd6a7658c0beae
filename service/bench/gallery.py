"""The best and the worst of many pictures, each a part at 1:1 beside what the codecs made of it, as data URIs for a page.

Knows nothing of how they were made.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from service.comparison.metrics import Plane

SIDE = 384
"""pixels: three beside each other fit a screen"""
QUALITY = 90


@dataclass(frozen=True)
class Example:
    """One picture's row of the page."""

    picture: str
    lead: float
    """sdc's over the rival, in the units of the metric that ranks"""
    left: int
    top: int
    width: int
    height: int
    sources: dict[str, str]
    """data URIs, by the codec's name; the original first"""


class Gallery:
    """Keeps so many at each end, whatever the number of pictures."""

    def __init__(self, each: int) -> None:
        self.each = each
        self.kept: list[Example] = []

    def add(self, picture: str, lead: float, shown: dict[str, Plane], judged: str) -> None:
        """Consider a picture: equally large uint8 (H, W, 3), the original first.  The part shown is that where ``judged`` differs most."""
        if not self.each:
            return
        original = next(iter(shown.values()))
        left, top, width, height = where_most_differs(original, shown[judged])
        sources = {name: _data_uri(plane[top : top + height, left : left + width]) for name, plane in shown.items()}
        self.kept.append(Example(picture, lead, left, top, width, height, sources))
        self.kept.sort(key=lambda example: (example.lead, example.picture))
        if len(self.kept) > 2 * self.each:
            del self.kept[self.each]

    @property
    def worst(self) -> list[Example]:
        """The worst first; of few pictures the worse half."""
        return self.kept[: -(-len(self.kept) // 2)]

    @property
    def best(self) -> list[Example]:
        """The best first; none that is among the worst."""
        return self.kept[-(-len(self.kept) // 2) :][::-1]


def where_most_differs(original: Plane, other: Plane) -> tuple[int, int, int, int]:
    """Left, top, width, height of the part with the greatest squared error, at most ``SIDE`` a side."""
    error = np.square(original.astype(np.int32) - other).sum(2)
    height, width = (min(SIDE, side) for side in error.shape)
    table = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = table[height:, width:] - table[:-height, width:] - table[height:, :-width] + table[:-height, :-width]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(left), int(top), width, height


def _data_uri(pixels: Plane) -> str:
    """AVIF without subsampled colour, so fine that nobody sees the difference, and a fraction of a lossless file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "AVIF", quality=QUALITY, speed=8, subsampling="4:4:4")
    return f"data:image/avif;base64,{base64.b64encode(out.getvalue()).decode()}"
