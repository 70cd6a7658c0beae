"""What reading a picture would cost beyond its pixels, told from its bytes before anything of it is decoded.

    any bytes -> require_few_pieces -> opened by Pillow, header only -> require_cheap -> decoded

A header that promises few pixels can stand before hours of work or gigabytes of memory, and decoders have no limits of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal

from PIL import ImageFile

from service.errors import UndecodablePicture
from service.imaging.av1 import coded_pixels

MOST_PIECES = 1000
"""segments, chunks, blocks or tags that any file may have.  Pillow walks over them in Python, some microseconds each, and they can be as
short as a byte; so a file may have more of them as it is longer, but no shorter ones than are made for data"""
MOST_SCANS = 100
"""of a JPEG: each passes over all pixels, be it by thirteen bytes.  Cameras and encoders make one to some dozen"""
MOST_CODED, CODED_BESIDE = 4, 1 << 20
"""pixels of the frames of an AVIF, for each of its own (colours, transparency, a gain map), and for what fills up blocks and tiles"""
LARGEST_TILE_SIDE = 2048
"""of a TIFF, where its picture is smaller: a whole tile is decoded, however little of it is shown"""
MOST_STRIPS = 1 << 18
"""of a TIFF, or tiles: one for each row of each of four planes; what is more counts as pieces"""
SMALLEST_TILE = 64
"""pixels, on average, of what a TIFF that Pillow puts together by itself is cut into"""
LARGEST_RUNS = 1 << 20
"""pixels of a run-length coded BMP, which Pillow decodes in Python"""

_STRIP_OFFSETS, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS = 273, 322, 323, 324
"""tags, TIFF 6.0 sections 8 and 15"""
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xff])")
"""of a JPEG, or a byte that fills up before one; and not what stands within a scan: a stuffed zero, restarts"""
_BARE, _START_OF_SCAN, _END, _FILLING = frozenset({0x01, 0xD8}), 0xDA, 0xD9, 0xFF
_EXTENSION, _IMAGE = 0x21, 0x2C
"""of a GIF"""


def require_few_pieces(content: bytes) -> None:
    """Raise UndecodablePicture for a file of too many pieces, if it is of a kind that Pillow walks over in Python."""
    for magic, (pieces, bytes_each) in _WALKS.items():
        if content.startswith(magic):
            most = MOST_PIECES + len(content) // bytes_each
            if next(islice(pieces(content), most, None), None) is not None:
                raise UndecodablePicture(f"the file is cut into more than {most:,} pieces: save it anew")


def require_cheap(image: ImageFile.ImageFile, content: bytes) -> None:
    """Raise UndecodablePicture where decoding would take far more than the picture's pixels do.

    Args:
        image: opened and not loaded.
        content: what it was opened from.
    """
    if image.format in ("JPEG", "MPO") and scans(content) > MOST_SCANS:
        raise UndecodablePicture(f"the JPEG has more than {MOST_SCANS} scans: save it anew")
    if image.format == "AVIF":
        coded, most = coded_pixels(content), MOST_CODED * image.width * image.height + CODED_BESIDE
        if coded is None or coded > most:
            frames = "frames of a size that cannot be told" if coded is None else f"frames of {coded:,} pixels"
            raise UndecodablePicture(f"the AVIF has {frames}, for a picture of {image.width}x{image.height}: save it anew")
    if image.format == "BMP" and any(tile.codec_name == "bmp_rle" for tile in image.tile):
        pixels = image.width * image.height
        if pixels > LARGEST_RUNS or len(content) > 2 * pixels + (1 << 16):  # two bytes a run
            raise UndecodablePicture(f"a run-length coded BMP has at most {LARGEST_RUNS:,} pixels, and two bytes for each: save it anew")
    if image.format == "TIFF":
        tile = max(int(image.tag_v2.get(tag, 0)) for tag in (_TILE_WIDTH, _TILE_LENGTH))  # type: ignore[attr-defined]
        if tile > max(LARGEST_TILE_SIDE, *(side + 15 for side in image.size)):  # tiles are multiples of 16
            raise UndecodablePicture(
                f"the TIFF has tiles of {tile} pixels a side, for a picture of {image.width}x{image.height}: save it anew"
            )
        # Uncompressed ones are put together tile by tile, as many as are named: beyond its end all over again.
        samples = len(image.getbands()) * image.width * image.height
        extents = [tile.extents or (0, 0, *image.size) for tile in image.tile]
        covered = sum((right - left) * (bottom - top) for left, top, right, bottom in extents)
        if covered > samples or len(image.tile) > MOST_PIECES + samples // SMALLEST_TILE:
            raise UndecodablePicture(f"the TIFF is cut into {len(image.tile):,} pieces of {covered:,} pixels: save it anew")


def scans(content: bytes) -> int:
    """Scans of the first picture in a JPEG file; a thumbnail, a profile or a film behind the picture does not count."""
    return sum(kind == _START_OF_SCAN for kind in _segments(content))


def _segments(content: bytes) -> Iterator[int]:
    """Markers of a JPEG's first picture (ITU-T T.81, annex B), and what fills up before them."""
    at = 2
    while (marker := _MARKER.search(content, at)) is not None:
        kind, at = marker[1][0], marker.end()
        yield kind
        if kind == _END:
            return
        if kind == _FILLING:
            at -= 1
        elif kind not in _BARE:
            at += max(2, int.from_bytes(content[at : at + 2], "big"))


def _chunks(content: bytes) -> Iterator[int]:
    """Lengths of a PNG's chunks (section 5.3)."""
    at = 8
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        yield length
        at += 12 + length


def _blocks(content: bytes) -> Iterator[int]:
    """Lengths of a GIF's blocks (GIF89a, sections 15 and 20 to 26) as far as its second image: then it is a film."""
    at, images = 13 + _colours(content, 10), 0
    while at < len(content) and images < 2 and content[at] in (_EXTENSION, _IMAGE):
        if content[at] == _IMAGE:
            images += 1
            at += 11 + _colours(content, at + 9)
        else:
            at += 2
        while at < len(content):
            length = content[at]
            yield length
            at += 1 + length
            if not length:
                break


def _colours(content: bytes, at: int) -> int:
    """Bytes of the table of colours whose flags stand there."""
    flags = int.from_bytes(content[at : at + 1], "big")
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _tags(content: bytes) -> Iterator[int]:
    """One for each entry of the first directory of a TIFF (TIFF 6.0 section 2) or BigTIFF, found as Pillow finds it, and for each strip or
    tile beyond ``MOST_STRIPS``."""
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"
    place, counted, entry, count_ends = (slice(8, 16), 8, 20, 12) if content[2] == ord("+") else (slice(4, 8), 2, 12, 8)
    at = int.from_bytes(content[place], order)
    if at < 8:
        return
    for index in range(int.from_bytes(content[at : at + counted], order)):
        yield index
        begin = at + counted + entry * index
        if int.from_bytes(content[begin : begin + 2], order) in (_STRIP_OFFSETS, _TILE_OFFSETS):
            yield from range(int.from_bytes(content[begin + 4 : begin + count_ends], order) - MOST_STRIPS)


_WALKS: dict[bytes, tuple[Callable[[bytes], Iterator[int]], int]] = {
    b"\xff\xd8\xff": (_segments, 1000),
    b"\x89PNG\r\n\x1a\n": (_chunks, 200),
    b"GIF8": (_blocks, 60),
    **dict.fromkeys((b"II*\0", b"II\0*", b"MM*\0", b"MM\0*", b"II+\0", b"MM\0+"), (_tags, 1000)),
}
"""by what a file of the kind begins with: its pieces, and the bytes that one has at least on average, which is half of what the most
thrifty encoders make (blocks of 126 in a GIF)"""
