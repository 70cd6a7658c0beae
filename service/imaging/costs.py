"""What reading a picture would cost beyond its pixels, told from its bytes before anything of it is decoded.

A header that promises few pixels can stand before hours of work or gigabytes of memory, and decoders have no limits of their own.
"""

from __future__ import annotations

import re
from typing import Literal

from PIL import Image

from service.imaging.av1 import coded_pixels

MOST_SCANS = 100
"""of a JPEG: each passes over all pixels, be it by thirteen bytes.  Cameras and encoders make one to some dozen"""
MOST_CODED, CODED_BESIDE = 4, 1 << 20
"""pixels of the frames of an AVIF, for each of its own (colours, transparency, a gain map), and for what fills up blocks and tiles"""
LARGEST_TILE_SIDE = 2048
"""of a TIFF, where its picture is smaller: a whole tile is decoded, however little of it is shown"""

MOST_TAGS = 1000
"""of a TIFF: each takes time, and in a BigTIFF there may be as many as there is room for"""

_TILE_WIDTH, _TILE_LENGTH = 322, 323
"""tags, TIFF 6.0 section 15"""
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
"""not those within a scan: a stuffed zero, restarts"""
_BARE, _START_OF_SCAN, _END = frozenset({0x01, 0xD8}), 0xDA, 0xD9


def too_much(image: Image.Image, content: bytes) -> str | None:
    """Why a picture is not to be decoded; None where nothing speaks against it.

    Args:
        image: opened and not loaded.
        content: what it was opened from.
    """
    if image.format in ("JPEG", "MPO") and (found := scans(content)) > MOST_SCANS:
        return f"the JPEG has {found} scans or more; at most {MOST_SCANS} are accepted: save it anew"
    if image.format == "AVIF":
        coded, most = coded_pixels(content), MOST_CODED * image.width * image.height + CODED_BESIDE
        if coded is None or coded > most:
            frames = "frames of a size that cannot be told" if coded is None else f"frames of {coded:,} pixels"
            return f"the AVIF has {frames}, for a picture of {image.width}x{image.height}: save it anew"
    if image.format == "TIFF":
        tile = max(int(image.tag_v2.get(tag, 0)) for tag in (_TILE_WIDTH, _TILE_LENGTH))  # type: ignore[attr-defined]
        if tile > max(LARGEST_TILE_SIDE, *(side + 15 for side in image.size)):  # tiles are multiples of 16
            return f"the TIFF has tiles of {tile} pixels a side, for a picture of {image.width}x{image.height}: save it anew"
    return None


def tags(content: bytes) -> int:
    """Entries of the first directory of a TIFF (TIFF 6.0 section 2) or BigTIFF, found as Pillow finds it; 0 for what is none."""
    if content[:2] not in (b"II", b"MM") or content[2:4] not in (b"*\0", b"\0*", b"+\0", b"\0+"):
        return 0
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"
    place, counted = (slice(8, 16), 8) if content[2] == ord("+") else (slice(4, 8), 2)
    at = int.from_bytes(content[place], order)
    return int.from_bytes(content[at : at + counted], order)


def scans(content: bytes) -> int:
    """Scans of the first picture in a JPEG file, counted to one more than ``MOST_SCANS``.

    Walks its segments (ITU-T T.81, annex B), so that a thumbnail, a profile or a film behind the picture does not count.
    """
    at, found = 2, 0
    while found <= MOST_SCANS and (marker := _MARKER.search(content, at)) is not None:
        kind, at = marker[1][0], marker.end()
        if kind == _END:
            break
        found += kind == _START_OF_SCAN
        if kind not in _BARE:
            at += max(2, int.from_bytes(content[at : at + 2], "big"))
    return found
