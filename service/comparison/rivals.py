"""JPEG, WebP and AVIF at their best: per picture, the lowest quality whose file is at least as big as ours."""

from __future__ import annotations

import io
from collections.abc import Callable

import mozjpeg_lossless_optimization
import numpy as np
import numpy.typing as npt
from PIL import Image

Plane = npt.NDArray[np.uint8]


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """Pillow ``optimize``, 4:2:0, then mozjpeg's lossless optimisation (progressive scans).  JPEG has no quality 0: it is 1."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=max(quality, 1), optimize=True, subsampling="4:2:0")
    optimised: bytes = mozjpeg_lossless_optimization.optimize(out.getvalue())
    return optimised


def webp(picture: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=quality, method=6)
    return out.getvalue()


def avif(picture: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, "AVIF", quality=quality, speed=4, subsampling="4:2:0")
    return out.getvalue()


RIVALS: dict[str, Callable[[Image.Image, int], bytes]] = {"JPEG": jpeg, "WebP": webp, "AVIF": avif}

HANDICAP: dict[str, float] = {"JPEG": 5796 / 5089, "WebP": 6902 / 5089}
"""how much more than ours the files were that Buehlmann's article of 2022 set against 5,089 bytes"""


def at_least(encode: Callable[[Image.Image, int], bytes], pixels: Plane, size: int) -> tuple[bytes, Plane]:
    """The file of the lowest quality (0..100) with at least ``size`` bytes, or of quality 100, and what it shows."""
    picture = Image.fromarray(pixels)
    low, high = -1, 100
    while high - low > 1:
        middle = (low + high) // 2
        if len(encode(picture, middle)) >= size:
            high = middle
        else:
            low = middle
    content = encode(picture, high)
    return content, np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
