"""The ``.sdc`` container: a header, a table of sections, their bytes, a checksum.  Documented in docs/FORMAT.md.

    "SDC" version | code identity | model identity | width height | method flags step | tiling? seed? scale? | sections | payload | CRC-32

All numbers little-endian; lengths and sizes are unsigned LEB128.  The parser trusts no length and allocates nothing that a claimed
size asks for.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import Final

from service.codec.methods import LATENT as LATENT_METHOD
from service.errors import CorruptBlob, NotABlob, TooManyPixels, UnknownVersion
from service.manifest import IDENTITY_BYTES

MAGIC: Final = b"SDC"
VERSION: Final = 6
"""the highest that is written; those before it are read"""
GROUND_VERSION: Final = 6
"""of a picture whose flat ground is told apart, or that has no colours"""
BARE_GROUND_VERSION: Final = 5
"""of one whose ground has no colour: read, and no longer written"""
SCALED_VERSION: Final = 4
"""of a picture that was coded smaller than it is"""
METHODS_VERSION: Final = 3
"""of other methods than ``latent``, and of dither"""
PLAIN_VERSION: Final = 2
"""of a file that needs nothing newer"""
LARGEST_SIDE: Final = 65535

LATENT: Final = 0
ALPHA: Final = 1
BARE_GROUND: Final = 2
GROUND: Final = 3
SECTION_NAMES: Final = {LATENT: "latent", ALPHA: "alpha", BARE_GROUND: "bare ground", GROUND: "ground"}

FLAG_TILED: Final = 1
FLAG_DITHERED: Final = 2
FLAG_SCALED: Final = 4
FLAG_GREY: Final = 8
KNOWN_FLAGS: Final = FLAG_TILED | FLAG_DITHERED | FLAG_SCALED | FLAG_GREY

WHOLE_SCALE: Final = 16
"""of a picture that was coded at its own size: a scale counts sixteenths of its sides"""


def scaled(width: int, height: int, scale: int) -> tuple[int, int]:
    """Width and height at ``scale`` sixteenths, rounded up."""
    return -(-width * scale // WHOLE_SCALE), -(-height * scale // WHOLE_SCALE)


@dataclass(frozen=True)
class Tiling:
    """How the picture was cut for the device; chosen by size alone, and part of what the pixels are."""

    side: int
    """pixels of picture a tile advances by"""
    margin: int
    """pixels of overlap on each side of a tile"""


@dataclass(frozen=True)
class Blob:
    """A parsed ``.sdc``."""

    code_identity: bytes
    model_identity: bytes
    width: int
    height: int
    method: int
    step_index: int
    sections: dict[int, bytes] = field(repr=False)
    """LATENT always, ALPHA when the picture is not opaque, GROUND when it has a flat one, which BARE_GROUND was in version 5"""
    tiling: Tiling | None = None
    seed: int | None = None
    """of subtractive dither, 32 bits; None where there is none"""
    scale: int = WHOLE_SCALE
    """1..16 sixteenths of the picture's sides: what it was coded at"""
    grey: bool = False
    """whether the picture has no colours: the network's are taken away again"""
    version: int = 0
    """of the format; 0 means the lowest that can say all this"""

    def __post_init__(self) -> None:
        if not self.version:
            object.__setattr__(self, "version", self.needed_version)

    @property
    def needed_version(self) -> int:
        """The lowest version of the format that can say all this."""
        if GROUND in self.sections or self.grey:
            return GROUND_VERSION
        if BARE_GROUND in self.sections:
            return BARE_GROUND_VERSION
        if self.scale != WHOLE_SCALE:
            return SCALED_VERSION
        return PLAIN_VERSION if self.method == LATENT_METHOD and self.seed is None else METHODS_VERSION

    @property
    def coded_size(self) -> tuple[int, int]:
        """Width and height in pixels of what the latent stands for."""
        return scaled(self.width, self.height, self.scale)


def write(blob: Blob) -> bytes:
    """Serialise.  24 to 30 bytes beside the payload for an opaque, untiled picture; four more with dither, one with a scale."""
    out = bytearray(MAGIC)
    out.append(blob.version)
    out += blob.code_identity + blob.model_identity
    out += _varint(blob.width) + _varint(blob.height)
    flags = (FLAG_TILED if blob.tiling else 0) | (FLAG_DITHERED if blob.seed is not None else 0)
    flags |= (FLAG_SCALED if blob.scale != WHOLE_SCALE else 0) | (FLAG_GREY if blob.grey else 0)
    out += bytes([blob.method, flags, blob.step_index])
    if blob.tiling:
        out += _varint(blob.tiling.side) + _varint(blob.tiling.margin)
    if blob.seed is not None:
        out += blob.seed.to_bytes(4, "little")
    if blob.scale != WHOLE_SCALE:
        out.append(blob.scale)
    out.append(len(blob.sections))
    for kind, content in sorted(blob.sections.items()):
        out.append(kind)
        out += _varint(len(content))
    for _, content in sorted(blob.sections.items()):
        out += content
    out += zlib.crc32(out).to_bytes(4, "little")
    return bytes(out)


def parse(content: bytes, max_pixels: int) -> Blob:
    """Read a blob and check it as far as that can be done without its model.

    Raises:
        NotABlob: no magic number.
        UnknownVersion: written by a later release.
        CorruptBlob: truncated, damaged, or fields that no writer produces.
        TooManyPixels: larger than ``max_pixels``.
    """
    if content[:3] != MAGIC:
        raise NotABlob("this is not an .sdc file: it does not begin with 'SDC'")
    if len(content) < 5:
        raise CorruptBlob("the file ends inside its header")
    version = content[3]
    if not 1 <= version <= VERSION:
        raise UnknownVersion(f"this file has format version {version}; this release reads versions 1 to {VERSION}: upgrade sdc")
    body, checksum = content[:-4], content[-4:]
    if zlib.crc32(body).to_bytes(4, "little") != checksum:
        raise CorruptBlob("the checksum does not match: the file is damaged or incomplete")
    reader = _Reader(body, 4)
    code_identity, model_identity = reader.take(IDENTITY_BYTES), reader.take(IDENTITY_BYTES)
    width, height = reader.varint(), reader.varint()
    if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        raise CorruptBlob(f"impossible picture size {width}x{height}")
    if width * height > max_pixels:
        raise TooManyPixels(f"the picture has {width * height:,} pixels; at most {max_pixels:,} are accepted")
    method, flags, step_index = reader.take(3)
    if flags & ~KNOWN_FLAGS:
        raise CorruptBlob(f"unknown flags {flags:#04x}")
    tiling = _read_tiling(reader) if flags & FLAG_TILED else None
    seed = int.from_bytes(reader.take(4), "little") if flags & FLAG_DITHERED else None
    scale = _read_scale(reader) if flags & FLAG_SCALED else WHOLE_SCALE
    kinds: list[tuple[int, int]] = []
    for _ in range(reader.take(1)[0]):
        kind, length = reader.take(1)[0], reader.varint()
        if kind not in SECTION_NAMES or (kinds and kind <= kinds[-1][0]):
            raise CorruptBlob("the section table is out of order or names an unknown section")
        kinds.append((kind, length))
    sections = {kind: reader.take(length) for kind, length in kinds}
    if reader.left or LATENT not in sections:
        raise CorruptBlob("the sections do not fill the file")
    if {GROUND, BARE_GROUND} <= sections.keys():
        raise CorruptBlob("the file has two grounds")
    grey = bool(flags & FLAG_GREY)
    blob = Blob(code_identity, model_identity, width, height, method, step_index, sections, tiling, seed, scale, grey)
    if PLAIN_VERSION < blob.needed_version > version:
        raise CorruptBlob(f"a file of version {version} cannot have what this one has: that came with version {blob.needed_version}")
    return replace(blob, version=version)


def _read_tiling(reader: _Reader) -> Tiling:
    side, margin = reader.varint(), reader.varint()
    if not (256 <= side <= LARGEST_SIDE and margin <= side // 2):
        raise CorruptBlob(f"impossible tiling: side {side}, margin {margin}")
    return Tiling(side, margin)


def _read_scale(reader: _Reader) -> int:
    scale = reader.take(1)[0]
    if not 1 <= scale < WHOLE_SCALE:
        raise CorruptBlob(f"impossible scale {scale}")
    return scale


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Reader:
    """Takes bytes from the front and never past the end."""

    def __init__(self, content: bytes, position: int) -> None:
        self._content, self._position = content, position

    @property
    def left(self) -> int:
        return len(self._content) - self._position

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise CorruptBlob("a length points past the end of the file")
        taken = self._content[self._position : self._position + count]
        self._position += count
        return taken

    def varint(self) -> int:
        """Unsigned LEB128 of at most 32 bits, in its shortest form."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= 1 << 32 or (shift and not byte):
                    break
                return value
        raise CorruptBlob("a number is not in its shortest form or too large")
