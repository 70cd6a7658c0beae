"""The article's coding of a 4-channel latent: an image of 256 colours.  Kept as the reference that ``latent`` is measured against.

    latent (4, h, w) --step 0.0332--> RGBA bytes --256 colours, dithered--> palette and indices --zlib--> payload

Bühlmann, "Stable Diffusion based Image Compression", 2022.  Its palette is libimagequant's, which is GPL; here k-means finds the
colours, and Floyd and Steinberg spread the error.  Knows nothing of the container, and of no network but that its latent has four channels.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from service.codec.steps import Latent
from service.errors import CorruptBlob

CHANNELS = 4
COLOURS = 256
PALETTE_BYTES = COLOURS * CHANNELS
SCALING = 0.18215
"""Stable Diffusion's; the article divides the auto-encoder's own latent, which is the normalised one over this, by it once more"""
STEP = SCALING**2
"""of the normalised latent, 0.0332, between one byte and the next"""
MIDDLE = 127.5
"""of the bytes: zero"""

SAMPLE = 1 << 14
"""k-means looks at so many positions of a larger latent"""
ROUNDS = 24
"""of k-means, at most"""
TOGETHER = 1 << 16
"""positions whose distances to all colours are held at once"""

Bytes = npt.NDArray[np.uint8]
Colours = npt.NDArray[np.float64]


def to_bytes(latent: Latent) -> Bytes:
    """Normalised latent (4, h, w) to an RGBA image (h, w, 4): ``round(z / 0.18215 + 127.5)``, halves up, z being the auto-encoder's."""
    levels = np.floor(latent.astype(np.float64) / STEP + MIDDLE + 0.5)
    return np.clip(levels, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def from_bytes(image: Bytes) -> Latent:
    """The way back, (h, w, 4) to (4, h, w)."""
    return np.ascontiguousarray(((image.astype(np.float64) - MIDDLE) * STEP).astype(np.float32).transpose(2, 0, 1))


def encode(latent: Latent, dithered: bool = True) -> bytes:
    """Normalised latent (4, h, w) to a payload.  Without dithering each position takes the nearest colour."""
    image = to_bytes(latent)
    colours = find_colours(image.reshape(-1, CHANNELS))
    indices = dither(image, colours) if dithered else nearest(image.reshape(-1, CHANNELS).astype(np.float64), colours.astype(np.float64))
    return zlib.compress(colours.tobytes() + indices.astype(np.uint8).tobytes(), 9)


def decode(payload: bytes, height: int, width: int) -> Latent:
    """Payload to the latent (4, height, width); raises CorruptBlob.  Nothing larger than that latent is ever allocated."""
    wanted = PALETTE_BYTES + height * width
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(payload, wanted + 1)
    except zlib.error as error:
        raise CorruptBlob("the palette is damaged") from error
    if len(content) != wanted or not unpacker.eof or unpacker.unused_data:
        raise CorruptBlob(f"a palette and {height}x{width} indices are {wanted} bytes, and this is not")
    colours = np.frombuffer(content, np.uint8, PALETTE_BYTES).reshape(COLOURS, CHANNELS)
    return from_bytes(colours[np.frombuffer(content, np.uint8, offset=PALETTE_BYTES)].reshape(height, width, CHANNELS))


def nearest(points: Colours, colours: Colours) -> npt.NDArray[np.int64]:
    """Index of the nearest colour for each point; (n, 4) and (k, 4) to (n,)."""
    found = np.empty(len(points), np.int64)
    squares = (colours**2).sum(1)
    for start in range(0, len(points), TOGETHER):
        part = slice(start, start + TOGETHER)
        found[part] = (squares - 2 * points[part] @ colours.T).argmin(1)
    return found


def find_colours(points: Bytes) -> Bytes:
    """256 colours for the points (n, 4), by k-means (Lloyd 1982) from k-means++ (Arthur and Vassilvitskii 2007) with a fixed seed."""
    rng = np.random.default_rng(0)
    if len(points) > SAMPLE:
        points = points[rng.choice(len(points), SAMPLE, replace=False)]
    different, weights = np.unique(points, axis=0, return_counts=True)
    if len(different) <= COLOURS:
        return np.concatenate([different, np.zeros((COLOURS - len(different), CHANNELS), np.uint8)])
    values = different.astype(np.float64)
    colours = _first_colours(values, weights, rng)
    owner = nearest(values, colours)
    for _ in range(ROUNDS):
        members = np.bincount(owner, weights, COLOURS)
        sums = np.stack([np.bincount(owner, weights * values[:, channel], COLOURS) for channel in range(CHANNELS)], 1)
        used = members > 0
        colours[used] = sums[used] / members[used, None]
        before, owner = owner, nearest(values, colours)
        if (owner == before).all():
            break
    return np.clip(np.rint(colours), 0, 255).astype(np.uint8)


def _first_colours(values: Colours, weights: npt.NDArray[np.int64], rng: np.random.Generator) -> Colours:
    """256 of the values, each chosen with a chance in proportion to its squared distance from those before."""
    chosen = [int(rng.choice(len(values), p=weights / weights.sum()))]
    distance = ((values - values[chosen[0]]) ** 2).sum(1)
    while len(chosen) < COLOURS:
        chance = np.cumsum(weights * distance)
        chosen.append(int(np.searchsorted(chance, rng.random() * chance[-1], side="right")))
        distance = np.minimum(distance, ((values - values[chosen[-1]]) ** 2).sum(1))
    return values[chosen].copy()


def dither(image: Bytes, colours: Bytes) -> npt.NDArray[np.int64]:
    """Index of a colour for each position, (h, w): the error goes on to neighbours not yet visited (Floyd and Steinberg 1976).

    What lies on a line x + 2 y = t depends on earlier lines alone, so a line is done at once.
    """
    height, width, _ = image.shape
    palette = colours.astype(np.float64)
    wanted = np.zeros((height + 1, width + 2, CHANNELS))  # a border takes the error that leaves the image
    wanted[:height, 1 : width + 1] = image
    indices = np.empty((height, width), np.int64)
    for line in range(width + 2 * (height - 1)):
        y = np.arange(max(0, -(-(line - width + 1) // 2)), min(height - 1, line // 2) + 1)
        x = line - 2 * y
        here = np.clip(wanted[y, x + 1], 0, 255)
        found = nearest(here, palette)
        indices[y, x] = found
        error = here - palette[found]
        for right, down, share in ((1, 0, 7), (-1, 1, 3), (0, 1, 5), (1, 1, 1)):
            wanted[y + down, x + 1 + right] += error * (share / 16)
    return indices
