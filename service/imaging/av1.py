"""How many pixels the frames of an AVIF file have, whatever it says of the picture: so many are decoded and kept in memory.

    file: boxes (ISO/IEC 14496-12) -> meta: items and where their bytes lie -> units of AV1 -> sequence headers: width x height
                                                                                            -> frames' headers: a size of their own?

A file of two kilobytes may call itself 64x64 and hold a frame of 16,384x16,384.  Reads no pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

MOST = 1000
"""boxes of one box, items, units of AV1 in a file: a picture has a dozen, and what is looked at must have an end"""
LONGEST_HEADER = 512
"""bytes of a header that are looked at; a sequence's has a dozen, and four hundred at most"""
_SEQUENCE_HEADER, _FRAMES = 1, (3, 6, 7)
"""kinds of units, AV1 specification 6.2.2; of those that begin with a frame's header, the last repeats one"""
_KEY_FRAME, _SWITCH_FRAME = 0, 3
_EACH_FRAME_SAYS = 2
"""of what a sequence header may say for all frames: SELECT_SCREEN_CONTENT_TOOLS and SELECT_INTEGER_MV, section 3"""


class _Bits:
    """Whole numbers from bits, the first bit the highest; raises ValueError at the end."""

    def __init__(self, content: bytes) -> None:
        self._bits, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ValueError("the bits have come to their end")
        self._left -= count
        return self._bits >> self._left & ((1 << count) - 1)

    def take_variable(self) -> int:
        """``uvlc``, section 4.10.3."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return self.take(zeros) + (1 << zeros) - 1 if zeros < 32 else (1 << 32) - 1


@dataclass
class _Bytes:
    """Whole numbers from bytes, in a row; raises ValueError at the end."""

    content: bytes
    at: int = 0

    def take(self, count: int) -> int:
        return int.from_bytes(self.raw(count), "big")

    def raw(self, count: int) -> bytes:
        self.at += count
        if self.at > len(self.content):
            raise ValueError("the bytes have come to their end")
        return self.content[self.at - count : self.at]


def coded_pixels(content: bytes) -> int | None:
    """Pixels of all frames of an AVIF file together; None for one that cannot be told, or is a film.

    They are those that sequence headers announce, and those of frames that bring a size of their own; of some it takes too long to find,
    and the largest that it could be counts.
    """
    try:
        boxes = _boxes_once(content, b"meta", b"moov")
        if b"moov" in boxes:
            return None
        meta = _boxes_once(boxes[b"meta"][4:], b"iinf", b"iloc", b"idat")
        room = MOST
        pixels = 0
        for item in _items(meta, content):
            units = list(islice(_units(item), room + 1))
            room -= len(units)
            if room < 0:
                return None
            pixels += _pixels(units)
        return pixels
    except (ValueError, KeyError, IndexError):
        return None


def _pixels(units: list[tuple[int, bytes]]) -> int:
    """Of the frames of one item; raises ValueError for one that stands before the sequence header, which each item must have."""
    pixels, sequence = 0, None
    for kind, unit in units:
        bits = _Bits(unit[:LONGEST_HEADER])
        if kind == _SEQUENCE_HEADER:
            sequence = _read_sequence(bits)
            pixels += sequence.pixels
        elif kind in _FRAMES:
            if sequence is None:
                raise ValueError("a frame of an unknown sequence")
            pixels += _own_pixels(sequence, bits)
    return pixels


def _boxes_once(content: bytes, *kinds: bytes) -> dict[bytes, bytes]:
    """Boxes of these kinds; raises ValueError where there are two of a kind, and nobody could say which is meant."""
    found: dict[bytes, bytes] = {}
    for kind, box in _boxes(content):
        if kind in kinds and found.setdefault(kind, box) is not box:
            raise ValueError(f"two boxes {kind!r}")
    return found


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each; raises ValueError where there are too many."""
    at = 0
    for _ in range(MOST):
        if at + 8 > len(content):
            return
        size, head = int.from_bytes(content[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(content[at + 8 : at + 16], "big"), 16
        end = at + size if size else len(content)
        if end < at + head:
            raise ValueError("a box is shorter than its head")
        yield content[at + 4 : at + 8], content[at + head : end]
        at = end
    raise ValueError("too many boxes")


def _items(meta: dict[bytes, bytes], content: bytes) -> Iterator[bytes]:
    """The bytes of each item of AV1; of ``iinf`` and ``iloc``, sections 8.11.6 and 8.11.3."""
    coded = _coded(meta[b"iinf"])
    rest = _Bytes(meta[b"iloc"])
    version = rest.take(4) >> 24
    sizes = rest.take(2)
    of_offset, of_length, of_base, of_index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    room = len(content)  # more than all of the file the items cannot be, unless they share bytes
    for _ in range(_few(rest.take(2 if version < 2 else 4))):
        name = rest.take(2 if version < 2 else 4)
        within = meta.get(b"idat", b"") if version and rest.take(2) & 15 == 1 else content
        rest.take(2)
        base, parts = rest.take(of_base), []
        for _ in range(_few(rest.take(2))):
            rest.take(of_index if version else 0)
            begin = base + rest.take(of_offset)
            parts.append(within[begin : begin + (rest.take(of_length) or len(within))])
            room -= len(parts[-1])
            if room < 0:
                raise ValueError("items share bytes")
        if name in coded:
            yield b"".join(parts)


def _few(count: int) -> int:
    if count > MOST:
        raise ValueError(f"{count} of what a picture has a dozen of")
    return count


def _coded(iinf: bytes) -> set[int]:
    """Items that are AV1."""
    version, found = iinf[0], set()
    for _, entry in _boxes(iinf[6 if version == 0 else 8 :]):
        rest = _Bytes(entry, 4)
        name = rest.take(2 if entry[0] < 3 else 4)
        rest.take(2)
        if rest.raw(4) == b"av01":
            found.add(name)
    return found


def _units(item: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each unit (OBU), section 5.3."""
    at = 0
    while at < len(item):
        head = item[at]
        at += 2 if head & 4 else 1
        size, shift = len(item) - at, 0
        if head & 2:
            size = 0
            while True:  # leb128, section 4.10.5
                byte = item[at]
                at, size, shift = at + 1, size | (byte & 127) << shift, shift + 7
                if byte < 128 or shift > 56:
                    break
        yield head >> 3 & 15, item[at : at + size]
        at += size


@dataclass
class _Sequence:
    """What a sequence header (section 5.5.1) says of its frames, as far as it takes to know how large they are."""

    pixels: int = 0
    width_bits: int = 0
    height_bits: int = 0
    """of a frame's own size"""
    frames_are_told: bool = False
    """whether frames' headers are whole; those of a still picture have no size of their own"""
    modelled: bool = False
    """whether there is a model of the decoder, of which frames have a word too"""
    time_bits: int = 0
    id_bits: int = 0
    order_bits: int = 0
    screen_tools: int = 0
    whole_vectors: int = 0


def _read_sequence(bits: _Bits) -> _Sequence:
    bits.take(4)
    found = _Sequence(frames_are_told=not bits.take(1))
    if found.frames_are_told:
        _read_to_size(bits, found)
    else:
        bits.take(5)
    found.width_bits, found.height_bits = bits.take(4) + 1, bits.take(4) + 1
    found.pixels = _size(found, bits)
    if not found.frames_are_told:
        return found
    found.id_bits = bits.take(4) + bits.take(3) + 3 if bits.take(1) else 0
    bits.take(7)
    ordered = bits.take(1)
    bits.take(2 * ordered)
    found.screen_tools = _EACH_FRAME_SAYS if bits.take(1) else bits.take(1)
    found.whole_vectors = _EACH_FRAME_SAYS if not found.screen_tools or bits.take(1) else bits.take(1)
    found.order_bits = bits.take(3) + 1 if ordered else 0
    return found


def _size(sequence: _Sequence, bits: _Bits) -> int:
    return (bits.take(sequence.width_bits) + 1) * (bits.take(sequence.height_bits) + 1)


def _read_to_size(bits: _Bits, sequence: _Sequence) -> None:
    """What only films need: clocks, operating points, buffers."""
    delay_bits = 0
    if bits.take(1):
        bits.take(64)
        even = bits.take(1)
        if even:
            bits.take_variable()
        sequence.modelled = bool(bits.take(1))
        if sequence.modelled:
            delay_bits = bits.take(5) + 1
            bits.take(37)
            time_bits = bits.take(5) + 1
            sequence.time_bits = 0 if even else time_bits
    delayed = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if sequence.modelled and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if delayed and bits.take(1):
            bits.take(4)


def _own_pixels(sequence: _Sequence, bits: _Bits) -> int:
    """Of a frame whose header (section 5.9.2) overrides the size that the sequence header says; else 0.

    Read where nothing but an order stands before the size; of other frames the largest that it could be.
    """
    largest = 1 << (sequence.width_bits + sequence.height_bits)
    if not sequence.frames_are_told or bits.take(1):  # the latter shows a frame that was there
        return 0
    kind, shown = bits.take(2), bits.take(1)
    bits.take(sequence.time_bits if shown else 1)
    if kind == _SWITCH_FRAME:
        return largest
    first = kind == _KEY_FRAME and shown
    if not first:
        bits.take(1)
    bits.take(1)
    tools = bits.take(1) if sequence.screen_tools == _EACH_FRAME_SAYS else sequence.screen_tools
    if tools and sequence.whole_vectors == _EACH_FRAME_SAYS:
        bits.take(1)
    bits.take(sequence.id_bits)
    if not bits.take(1):
        return 0
    if not first or sequence.modelled:
        return largest
    bits.take(sequence.order_bits)
    return _size(sequence, bits)
