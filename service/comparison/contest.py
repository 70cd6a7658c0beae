"""One picture, one file of ours, and what each rival makes of it in as many bytes: in short steps, so that whoever asked can leave.

    source -> original            on white, as everybody gets it
    original, our bytes -> entry  a rival's file, what it shows, how good that is

Each step is handed to a runner of the caller's, which decides on which thread, when, and whether at all.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from service.comparison.metrics import MEASURES, SMALLEST_SIDE, Plane, unavailable
from service.comparison.rivals import JPEG_AT_ITS_BEST, RIVALS, Encode, plain_jpeg, rough_avif, search
from service.imaging.opening import open_picture
from service.imaging.writing import on_white

Result = TypeVar("Result")
ENOUGH_PIXELS = 1 << 30
"""for pictures that were let in before"""
CONTENDERS: dict[str, Encode] = RIVALS if JPEG_AT_ITS_BEST else {**RIVALS, "JPEG": plain_jpeg}
ROUGHLY: dict[str, Encode] = {"AVIF": rough_avif}
"""where a quick encode says near which quality to look: AVIF's search takes half a minute a megapixel without"""
HOW_TO_INSTALL = "pip install 'sdc[page]'"


class Run(Protocol):
    """Runs a call somewhere, some time; cancelling it means that nobody wants the result."""

    def __call__(self, call: Callable[[], Result], /) -> Awaitable[Result]: ...


@dataclass(frozen=True)
class Figures:
    """As ``service.comparison.metrics.Quality``; None where it cannot be measured, ``notes`` say why."""

    psnr: float
    ms_ssim: float | None = None
    ssimulacra2: float | None = None
    feature: float | None = None


@dataclass(frozen=True)
class Entry:
    """A rival's file."""

    content: bytes
    quality: int
    """0..100, the lowest with at least our bytes"""
    smallest: bool
    """whether it cannot be made smaller, and is larger than ours"""
    encode_s: float
    """of that one file, not of the search for it"""
    decode_s: float
    shown: Plane


def look(content: bytes) -> Plane:
    """The pixels of a picture file, laid on white; raises the errors of ``open_picture``."""
    return np.asarray(on_white(open_picture(content, ENOUGH_PIXELS)))


async def enter(name: str, original: Plane, size: int, run: Run) -> Entry:
    """A rival's file with at least ``size`` bytes and no more than it takes: the same as ``rivals.at_least`` finds, one encode a step."""
    picture, encode = Image.fromarray(original), CONTENDERS[name]
    likely = None
    if name in ROUGHLY:
        likely = (await _search(partial(ROUGHLY[name], picture), size, None, run))[0]
    quality, content, encode_s = await _search(partial(encode, picture), size, likely, run)
    shown, decode_s = await run(partial(_timed, partial(look, content)))
    return Entry(content, quality, quality == 0 and len(content) > size, encode_s, decode_s, shown)


async def _search(encode: Callable[[int], bytes], size: int, likely: int | None, run: Run) -> tuple[int, bytes, float]:
    """The quality found, its file, and the seconds that file took."""
    steps = search(size, likely)
    tried: dict[int, tuple[bytes, float]] = {}
    quality = next(steps)
    try:
        while True:
            tried[quality] = await run(partial(_timed, partial(encode, quality)))
            quality = steps.send(len(tried[quality][0]))
    except StopIteration as found:
        quality = found.value
    if quality not in tried:  # 100, the last resort
        tried[quality] = await run(partial(_timed, partial(encode, quality)))
    return quality, *tried[quality]


async def judge(original: Plane, shown: Plane, run: Run) -> Figures:
    """How near a picture is to its original, by every measure that there is here, one a step."""
    names = [name for name in MEASURES if name == "psnr" or (large_enough(original) and name not in unavailable())]
    return Figures(**{name: await run(partial(_on_a_passing_thread, partial(MEASURES[name], original, shown))) for name in names})


def large_enough(original: Plane) -> bool:
    """For every measure but PSNR."""
    height, width = original.shape[:2]
    return bool(min(height, width) >= SMALLEST_SIDE)


def notes(original: Plane) -> list[str]:
    """What is missing from a comparison and why, for people."""
    said = []
    if not large_enough(original):
        said.append(f"This picture is too small for any figure but PSNR: the others need sides of {SMALLEST_SIDE} pixels.")
    elif unavailable():
        words = {"ms_ssim": "MS-SSIM", "ssimulacra2": "SSIMULACRA2", "feature": "feature distance"}
        missing = ", ".join(words[name] for name in MEASURES if name in unavailable())
        said.append(f"Not measured here: {missing}. On the server, {HOW_TO_INSTALL} adds what that takes.")
    if not JPEG_AT_ITS_BEST:
        said.append(f"JPEG is not at its best here: {HOW_TO_INSTALL} adds mozjpeg's lossless optimisation, which saves it some bytes.")
    return said


def _timed(call: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    return call(), time.perf_counter() - started


def _on_a_passing_thread(call: Callable[[], Result]) -> Result:
    """torch keeps a team of threads for every thread that computed, which slows the device's own from then on; not for one that ends."""
    with ThreadPoolExecutor(1) as passing:
        return passing.submit(call).result()
