"""JPEG, WebP and AVIF at their best: per picture, the lowest quality whose file is at least as big as ours.

JPEG needs the extra ``page``; whoever can do without asks ``JPEG_AT_ITS_BEST`` first.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Generator
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
from PIL import Image

Plane = npt.NDArray[np.uint8]
Encode = Callable[[Image.Image, int], bytes]
"""a picture and a quality 0..100 to a file"""
JPEG_AT_ITS_BEST = find_spec("mozjpeg_lossless_optimization") is not None
"""whether ``jpeg`` can be called"""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """``plain_jpeg``, then mozjpeg's lossless optimisation (progressive scans)."""
    import mozjpeg_lossless_optimization

    optimised: bytes = mozjpeg_lossless_optimization.optimize(plain_jpeg(picture, quality))
    return optimised


def plain_jpeg(picture: Image.Image, quality: int) -> bytes:
    """Pillow ``optimize``, 4:2:0.  JPEG has no quality 0: it is 1."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=max(quality, 1), optimize=True, subsampling="4:2:0")
    return out.getvalue()


def webp(picture: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=quality, method=6)
    return out.getvalue()


def avif(picture: Image.Image, quality: int, speed: int = 4) -> bytes:
    """4:2:0, in one tile: Pillow's ``autotiling`` would cost pictures beyond 512x512 up to a twentieth of their bytes.

    On one core with two threads: they give the same bytes as more do, and one thread gives others.
    """
    out = io.BytesIO()
    picture.save(out, "AVIF", quality=quality, speed=speed, subsampling="4:2:0", autotiling=False, max_threads=max(CORES, 2))
    return out.getvalue()


def rough_avif(picture: Image.Image, quality: int) -> bytes:
    """Much sooner, and about as big: says near which quality to look."""
    return avif(picture, quality, speed=8)


RIVALS: dict[str, Encode] = {"JPEG": jpeg, "WebP": webp, "AVIF": avif}

HANDICAP: dict[str, float] = {"JPEG": 5796 / 5089, "WebP": 6902 / 5089}
"""how much more than ours the files were that Buehlmann's article of 2022 set against 5,089 bytes"""


def search(size: int, likely: int | None = None) -> Generator[int, int, int]:
    """Find the lowest quality (0..100) whose file has at least ``size`` bytes; 100 where none has.

    Yields a quality to try, is sent the bytes that it gives, and returns the one found.  By halves; with a ``likely`` quality, from there
    in growing strides until it is between two that were tried.  Both find the same wherever more quality means more bytes.
    """
    low, high, stride = -1, 100, 1
    while high - low > 1:
        middle = (low + high) // 2
        if likely is not None and (low == -1 or high == 100):
            middle = min(max(likely, low + 1), high - 1)
        if (yield middle) >= size:
            high = middle
            likely = None if likely is None else middle - stride
        else:
            low = middle
            likely = None if likely is None else middle + stride
        stride *= 2
    return high


def at_least(encode: Encode, pixels: Plane, size: int) -> tuple[bytes, Plane]:
    """The file of the lowest quality (0..100) with at least ``size`` bytes, or of quality 100, and what it shows."""
    picture = Image.fromarray(pixels)
    steps = search(size)
    quality = next(steps)
    try:
        while True:
            quality = steps.send(len(encode(picture, quality)))
    except StopIteration as found:
        content = encode(picture, found.value)
    return content, np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
