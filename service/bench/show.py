"""Pictures to look at: a part of a photograph beside what we and the rivals make of it, at 1:1 or enlarged."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from service.bench import pictures as source
from service.bench.pictures import Plane
from service.bench.rd import in_proportion, ours
from service.bench.report import prepare
from service.comparison.rivals import RIVALS, at_least
from service.errors import BadParameter
from service.imaging.opening import SUFFIXES
from service.pipeline import open_pipeline
from service.settings import Settings


@dataclass(frozen=True)
class Region:
    """A rectangle of a picture, pixels."""

    picture: str
    left: int
    top: int
    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Region:
        """``kodim15:100,60,200,150``: left, top, width, height.  Raises BadParameter."""
        found = re.fullmatch(r"(.+):(\d+),(\d+),([1-9]\d*),([1-9]\d*)", text)
        if not found:
            raise BadParameter(f"{text!r} is not NAME:LEFT,TOP,WIDTH,HEIGHT")
        name, *numbers = found.groups()
        return cls(name, *map(int, numbers))

    def cut(self, pixels: Plane) -> Plane:
        """Raises BadParameter where the rectangle leaves the picture."""
        if self.left + self.width > pixels.shape[1] or self.top + self.height > pixels.shape[0]:
            raise BadParameter(f"{self.picture} has {pixels.shape[1]}x{pixels.shape[0]} pixels: the region leaves it")
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


def side_by_side(pictures: dict[str, tuple[int, Plane]]) -> Image.Image:
    """Pictures in a row, each under its name and size in bytes."""
    height, width = next(iter(pictures.values()))[1].shape[:2]
    sheet = Image.new("RGB", (len(pictures) * (width + 8) - 8, height + 22), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, (size, pixels)) in enumerate(pictures.items()):
        left = index * (width + 8)
        sheet.paste(Image.fromarray(pixels), (left, 22))
        draw.text((left + 4, 3), f"{name}, {size:,} bytes", fill="black", font_size=14)
    return sheet


def main(
    settings: Settings, images: Path, regions: list[str], max_bytes: int, crop: int, enlarge: int, rivals: list[str], out: Path
) -> None:
    """Write one sheet with a row for each region; ``max_bytes`` are those of a 512x512 picture, others in proportion."""
    wanted = [Region.parse(text) for text in regions]
    if unknown := set(rivals) - RIVALS.keys():
        raise BadParameter(f"{min(unknown)} is none of {', '.join(RIVALS)}")
    if out.suffix.lower() not in SUFFIXES:
        raise BadParameter(f"{out} is no name of a picture: give one that ends in .png, .webp or .jpg")
    prepare(out.parent)
    pictures = source.load(images, crop, None)
    rows: list[Image.Image] = []

    async def run() -> None:
        async with open_pipeline(settings, warm=False) as pipeline:
            for region in wanted:
                if region.picture not in pictures:
                    raise BadParameter(f"{images} holds no picture {region.picture!r}")
                pixels = pictures[region.picture]
                region.cut(pixels)
                allowed = in_proportion(max_bytes, pixels)
                size, shown = await ours(pipeline, pixels, allowed, None)
                row = {"original": (pixels.nbytes, pixels), "sdc": (size, shown)}
                for name in rivals:
                    content, decoded = await asyncio.to_thread(at_least, RIVALS[name], pixels, size)
                    row[name] = (len(content), decoded)
                rows.append(side_by_side({name: (size, _enlarged(region.cut(plane), enlarge)) for name, (size, plane) in row.items()}))

    asyncio.run(run())
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height + 8 for row in rows) - 8), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + 8
    sheet.save(out)


def _enlarged(pixels: Plane, times: int) -> Plane:
    return np.repeat(np.repeat(pixels, times, 0), times, 1)
