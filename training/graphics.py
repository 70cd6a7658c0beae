"""Lettering, labels and flat colour, drawn onto crops: what shops put on pictures and photographs hardly ever show."""

from __future__ import annotations

import random
import string

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LETTERS = string.ascii_letters * 2 + string.digits + "    .,-%$&"


def decorate(picture: Image.Image, rng: random.Random) -> Image.Image:
    """A picture of the same size: one in three is a flat or graded ground instead, all get a few lines of text or boxes."""
    width, height = picture.size
    if rng.random() < 1 / 3:
        picture = ground(width, height, rng)
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(0, 3)):
        left, top = rng.randint(-20, width), rng.randint(-20, height)
        box = (left, top, left + rng.randint(8, width), top + rng.randint(8, height // 2))
        if rng.random() < 0.5:
            draw.rectangle(box, fill=colour(rng))
        else:
            draw.rounded_rectangle(box, rng.randint(2, 12), outline=colour(rng), width=rng.randint(1, 5))
    for _ in range(rng.randint(0, 4)):
        font = ImageFont.load_default(rng.choice((10, 12, 14, 18, 24, 36, 60)))
        text = "".join(rng.choices(LETTERS, k=rng.randint(2, 24)))
        draw.text((rng.randint(-20, width // 2), rng.randint(-10, height)), text, colour(rng), font)
    return picture


def ground(width: int, height: int, rng: random.Random) -> Image.Image:
    """One colour, or a straight gradient between two."""
    first = np.array(colour(rng), float)
    second = np.array(colour(rng), float) if rng.random() < 0.5 else first
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * np.linspace(-0.5, 0.5, width)[None, :] + np.sin(angle) * np.linspace(-0.5, 0.5, height)[:, None]
    share = np.clip(along + 0.5, 0, 1)[:, :, None]
    return Image.fromarray(np.rint(first + (second - first) * share).astype(np.uint8))


def colour(rng: random.Random) -> tuple[int, int, int]:
    """White and black a third of the time: they are what most lettering and product shots have."""
    if rng.random() < 1 / 3:
        return rng.choice(((255, 255, 255), (0, 0, 0)))
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)
