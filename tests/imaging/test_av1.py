import io
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import UndecodablePicture
from service.imaging.av1 import MOST, coded_pixels
from service.imaging.opening import open_picture
from tests.conftest import make_picture, saved

LIMIT = 1 << 26


def avif(image: Image.Image, **options: object) -> bytes:
    return saved(image, "AVIF", speed=10, **options)


def box(kind: bytes, content: bytes, version: int | None = None) -> bytes:
    content = content if version is None else bytes([version, 0, 0, 0]) + content
    return struct.pack(">I", 8 + len(content)) + kind + content


def entry(name: int, kind: bytes = b"av01") -> bytes:
    return box(b"infe", struct.pack(">HH", name, 0) + kind + b"\0", version=2)


def file_of(locations: bytes, entries: list[bytes], more: bytes = b"", data: bytes = b"", version: int = 0) -> bytes:
    """Boxes as they have to be, around these locations of items (``iloc``) and what they are (``iinf``)."""
    infos = box(b"iinf", struct.pack(">H", len(entries)) + b"".join(entries), version=0)
    return box(b"ftyp", b"avif\0\0\0\0") + box(b"meta", infos + box(b"iloc", locations, version) + more, version=0) + box(b"mdat", data)


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (600, 401), (1411, 333)])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_a_pictures_frame_has_its_pixels(size: tuple[int, int], subsampling: str) -> None:
    assert coded_pixels(avif(Image.new("RGB", size, (9, 90, 200)), subsampling=subsampling)) == size[0] * size[1]


def test_transparency_is_a_frame_of_its_own() -> None:
    image = Image.fromarray(make_picture(40, 60))
    image.putalpha(Image.fromarray(np.arange(2400, dtype=np.uint16).astype(np.uint8).reshape(40, 60)))
    content = avif(image)
    assert coded_pixels(content) == 2 * 2400
    assert open_picture(content, LIMIT).alpha is not None


def test_a_frame_that_is_far_larger_than_its_picture() -> None:
    """Two kilobytes whose frame takes a hundred megabytes, and sixteen times as many if it is told to be 16,384 a side."""
    side = 4000
    said = b"ispe\0\0\0\0" + struct.pack(">II", side, side)
    content = avif(Image.new("RGB", (side, side), (9, 90, 200)))
    assert said in content
    lie = content.replace(said, b"ispe\0\0\0\0" + struct.pack(">II", 64, 64))
    assert coded_pixels(lie) == side * side
    tracemalloc.start()
    with pytest.raises(UndecodablePicture, match=r"frames of 16,000,000 pixels, for a picture of 64x64"):
        open_picture(lie, LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_film_is_not_told() -> None:
    out = io.BytesIO()
    frames = [Image.fromarray(make_picture(20, 20, seed)) for seed in range(3)]
    frames[0].save(out, "AVIF", save_all=True, append_images=frames[1:])
    assert coded_pixels(out.getvalue()) is None


def packed(fields: list[tuple[int, int]]) -> bytes:
    """Numbers of so many bits, one behind the other."""
    bits = "".join(format(value, f"0{count}b") for value, count in fields if count)
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def header(width: int, height: int, even: int = 1, ids: int = 0, tools: int = 2, model: int = 1) -> bytes:
    """A sequence header (5.5.1) that is not reduced: with clocks, a model of the decoder, and two operating points."""
    fields = [(0, 3), (0, 1), (0, 1)]
    fields += [(1, 1), (1, 32), (30, 32), (even, 1), (0b00110, 5 * even)]  # timing; ticks for each picture: uvlc of 5
    fields += [(model, 1), (9, 5 * model), (1, 32 * model), (3, 5 * model), (4, 5 * model)]  # delays of ten bits, times of five
    fields += [(1, 1), (1, 5)]  # display delays; two operating points
    fields += [(0, 12), (9, 5), (1, 1), (1, model), (7, 10 * model), (7, 10 * model), (0, model), (1, 1), (3, 4)]
    fields += [(0, 12), (3, 5), (0, model), (0, 1)]
    fields += [(15, 4), (14, 4), (width - 1, 16), (height - 1, 15)]
    fields += [(ids, 1), (3, 4 * ids), (2, 3 * ids)]  # numbers of eight bits
    fields += [(0, 7), (1, 1), (0, 2)]  # order hints
    fields += [(1, 1), (1, 1)] if tools == 2 else [(0, 1), (tools, 1), *([(0, 1), (1, 1)] if tools else [])]
    return packed([*fields, (6, 3), (0, 8)])  # orders of seven bits


def item_of(*units: tuple[int, bytes]) -> bytes:
    """An AVIF of one item of these units, each with its kind, in ``idat``."""
    item = b"".join(bytes([kind << 3 | 2, len(unit)]) + unit for kind, unit in units)
    location = struct.pack(">BBHHHHHI", 0x04, 0, 1, 1, 1, 0, 1, len(item))  # a length of four bytes and no offset
    return file_of(location, [entry(1)], box(b"idat", item), version=1)


def test_the_header_of_a_film_in_a_picture() -> None:
    assert coded_pixels(item_of((1, header(4000, 3000)))) == 12_000_000
    assert coded_pixels(item_of((1, header(4000, 3000))).replace(b"av01", b"Exif")) == 0, "what is no AV1 is not decoded"


KEY, INTER, SWITCH = 0, 1, 3


@pytest.mark.parametrize("unit", [3, 6, 7])
@pytest.mark.parametrize(
    ("sequence", "before"),
    [
        ({}, [(KEY, 2), (1, 1), (0, 1), (0, 1)]),
        ({}, [(KEY, 2), (1, 1), (0, 1), (1, 1), (0, 1)]),  # tools for screens, and so a word on vectors
        ({}, [(KEY, 2), (0, 1), (1, 1), (1, 1), (0, 1), (0, 1)]),  # not shown
        ({}, [(INTER, 2), (1, 1), (1, 1), (0, 1), (0, 1)]),
        ({"even": 0}, [(KEY, 2), (1, 1), (31, 5), (0, 1), (0, 1)]),
        ({"even": 0}, [(INTER, 2), (0, 1), (1, 1), (1, 1), (0, 1), (0, 1)]),
        ({"ids": 1}, [(KEY, 2), (1, 1), (0, 1), (0, 1), (255, 8)]),
        ({"tools": 1}, [(KEY, 2), (1, 1), (0, 1)]),
        ({"tools": 0}, [(KEY, 2), (1, 1), (0, 1)]),
    ],
)
def test_a_frame_with_a_size_of_its_own_counts_as_the_largest_it_could_have(
    sequence: dict[str, int], before: list[tuple[int, int]], unit: int
) -> None:
    told = (1, header(40, 30, **sequence))
    for own in (0, 1):
        frame = packed([(0, 1), *before, (own, 1), (1 - own, 1), (own, 1), (0, 30)])
        assert coded_pixels(item_of(told, (unit, frame))) == 1200 + (own << 31)


def test_a_key_frame_with_a_size_of_its_own_has_that() -> None:
    told = (1, header(40, 30, model=0))
    frame = packed([(0, 1), (KEY, 2), (1, 1), (0, 1), (0, 1), (1, 1), (5, 7), (699, 16), (499, 15)])
    assert coded_pixels(item_of(told, (6, frame))) == 1200 + 700 * 500


def test_frames_that_say_nothing_of_their_size() -> None:
    told = (1, header(40, 30))
    assert coded_pixels(item_of(told, (3, packed([(1, 1), (7, 3)])))) == 1200, "one that was there is shown again"
    assert coded_pixels(item_of(told, (3, packed([(0, 1), (SWITCH, 2), (1, 1)])))) == 1200 + (1 << 31), "one that may always be smaller"
    assert coded_pixels(item_of(told, (3, b""))) is None
    assert coded_pixels(item_of((3, b"\x10" * 9), told)) is None, "nobody has said how large frames are"


def test_a_small_picture_in_the_frame_of_a_large_one() -> None:
    """A kilobyte made of Pillow's AVIF of 4000x4000: its sequence header says 64x64 and its frame otherwise, and Pillow takes it."""
    content = (Path(__file__).parents[1] / "data" / "frame-of-4000.avif").read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        assert image.size == (64, 64)
    with pytest.raises(UndecodablePicture, match="frames of 16,004,096 pixels, for a picture of 64x64"):
        open_picture(content, LIMIT)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no boxes at all",
        box(b"ftyp", b"avif"),
        box(b"meta", b"", version=0),
        box(b"free", b"") * (MOST + 1),
        file_of(b"\x44\0\xff\xff", [entry(1)]),
        file_of(struct.pack(">BBH", 0, 0, MOST) + struct.pack(">HHH", 1, 0, 0xFFFF) * MOST, [entry(1)]),
        file_of(struct.pack(">BBI", 0, 0, 0xFFFFFFFF), [entry(1)], version=2),
        file_of(struct.pack(">BBHHHH", 0, 0, 1, 1, 0, MOST), [entry(1)], data=bytes(1000)),
        file_of(b"", []) + box(b"meta", b"", version=0),
        file_of(struct.pack(">BBHHHHH", 0, 0, 1, 1, 1, 0, 1), [entry(1)], box(b"idat", b"\x12\0" * (MOST + 1)), version=1),
    ],
    ids=["empty", "none", "no meta", "empty meta", "boxes", "cut", "extents", "items", "shared bytes", "two of a kind", "units"],
)
def test_what_cannot_be_told_ends_soon(content: bytes) -> None:
    assert coded_pixels(content) is None


SAMPLE = avif(Image.fromarray(make_picture(40, 60)))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=8), st.integers(0, len(SAMPLE)))
def test_damage_is_never_an_error(flips: list[tuple[int, int]], length: int) -> None:
    content = bytearray(SAMPLE)
    for place, value in flips:
        content[place] = value
    assert (coded_pixels(bytes(content[:length])) or 0) >= 0
