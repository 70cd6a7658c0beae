"""Files of a few kilobytes that would take hours or gigabytes, and honest ones that look like them."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from service.errors import AnimatedPicture, UndecodablePicture
from service.imaging.costs import LARGEST_TILE_SIDE, MOST_SCANS, require_few_pieces, scans
from service.imaging.opening import open_picture, picture_size
from tests.conftest import chunk, make_picture, saved

LIMIT = 1 << 26


def jpeg(**options: object) -> bytes:
    return saved(Image.fromarray(make_picture(64, 96)), "JPEG", **options)


def refined(scans: int) -> bytes:
    """A progressive JPEG, grey, 16x16: the DC scan, the AC scan, and then refinements that refine nothing, of some dozen bytes each."""

    def segment(kind: int, body: bytes) -> bytes:
        return bytes([0xFF, kind]) + struct.pack(">H", 2 + len(body)) + body

    def scan(first: int, last: int, high_low: int, data: bytes) -> bytes:
        return segment(0xDA, bytes([1, 1, 0, first, last, high_low])) + data

    head = b"\xff\xd8" + segment(0xDB, bytes([0]) + bytes([16] * 64))
    head += segment(0xC2, struct.pack(">BHHB", 8, 16, 16, 1) + bytes([1, 0x11, 0]))
    head += segment(0xC4, bytes([0, 1, *[0] * 15, 0])) + segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))
    run = (int("0" + "0" * 12 + "100", 2)).to_bytes(2, "big")  # of four blocks without coefficients, by a run that could be 2**14
    return head + scan(0, 0, 0, b"\0") + scan(1, 63, 0x01, run) + scan(1, 63, 0x10, run) * (scans - 2) + b"\xff\xd9"


def tiff(width: int, height: int, tile: int) -> bytes:
    """Grey, one deflated tile."""
    packed = zlib.compress(bytes([128]) * tile * tile)

    def entry(tag: int, kind: int, value: int) -> bytes:
        return struct.pack("<HHIHH", tag, 3, 1, value, 0) if kind == 3 else struct.pack("<HHII", tag, 4, 1, value)

    tags = [(256, 3, width), (257, 3, height), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1), (322, 4, tile), (323, 4, tile)]
    at = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries = b"".join(entry(*each) for each in [*tags, (324, 4, at), (325, 4, len(packed))])
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 2) + entries + bytes(4) + packed


def plain_tiff(samples: npt.NDArray[np.uint8 | np.uint16], side: int, count: int, photometric: int = 1) -> bytes:
    """Grey, not compressed, of ``count`` tiles of ``side`` pixels; as many as there are, and then the last one again and again."""
    height, width = samples.shape
    padded = np.pad(samples, ((0, -height % side), (0, -width % side)))
    rows, columns = padded.shape[0] // side, padded.shape[1] // side
    tiles = padded.reshape(rows, side, columns, side).swapaxes(1, 2).tobytes()
    size = samples.itemsize * side * side
    tags = [(256, width), (257, height), (258, 8 * samples.itemsize), (259, 1), (262, photometric), (277, 1), (322, side), (323, side)]
    at = 8 + 2 + 12 * (len(tags) + 2) + 4
    offsets = [at + 8 * count + size * min(index, rows * columns - 1) for index in range(count)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    places = (at, at + 4 * count) if count > 1 else (offsets[0], size)  # one stands where the place of more would
    entries += struct.pack("<HHII", 324, 4, count, places[0]) + struct.pack("<HHII", 325, 4, count, places[1])
    lists = struct.pack(f"<{2 * count}I", *offsets, *[size] * count)
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 2) + entries + bytes(4) + lists + tiles


def bmp(width: int, height: int, runs: bytes) -> bytes:
    """Run-length coded, of grey."""
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    at = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", at + len(runs), 0, 0, at) + header + palette + runs


def pages(count: int) -> bytes:
    """A TIFF of so many pages of one pixel."""
    fields = [(256, 1), (257, 1), (258, 8), (262, 1), (273, 8), (277, 1), (279, 1)]
    size = 2 + 12 * len(fields) + 4
    out = bytearray(b"II*\0" + struct.pack("<I", 16) + bytes([128]) * 8)
    for page in range(count):
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
        out += struct.pack("<H", len(fields)) + entries + struct.pack("<I", 16 + size * (page + 1) if page < count - 1 else 0)
    return bytes(out)


@pytest.mark.parametrize(("options", "expected"), [({}, {1}), ({"progressive": True}, {10}), ({"progressive": True, "quality": 98}, {10})])
def test_scans_of_ordinary_jpegs(options: dict[str, object], expected: set[int]) -> None:
    assert {scans(jpeg(**options))} == expected


def test_what_stands_in_a_segment_or_behind_the_picture_is_no_scan() -> None:
    thumbnails = b"\xff\xda\x00\x08" * 1000
    content = jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnails, comment=thumbnails) + thumbnails
    assert scans(content) == 1
    assert open_picture(content, LIMIT).width == 96


def test_a_jpeg_of_as_many_scans_as_may_be() -> None:
    content = refined(MOST_SCANS)
    assert scans(content) == MOST_SCANS
    assert open_picture(content, LIMIT).rgb.shape == (16, 16, 3)


@pytest.mark.parametrize("read", [open_picture, picture_size])
def test_a_jpeg_of_ever_more_scans_is_refused_unread(read: object) -> None:
    with pytest.raises(UndecodablePicture, match="more than 100 scans"):
        read(refined(500), LIMIT)  # type: ignore[operator]
    with pytest.raises(UndecodablePicture, match="cut into more than"):
        read(refined(20_000), LIMIT)  # type: ignore[operator]


@pytest.mark.parametrize("damaged", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xda", b"\xff\xd8\xff\xda\xff\xff", b"\xff" * 100])
def test_scans_of_what_is_no_jpeg(damaged: bytes) -> None:
    assert scans(damaged) <= 1


def test_a_tile_that_is_larger_than_its_picture() -> None:
    assert open_picture(tiff(30, 40, 512), LIMIT).rgb.shape == (40, 30, 3)
    content = tiff(16, 16, 2 * LARGEST_TILE_SIDE)
    tracemalloc.start()
    with pytest.raises(UndecodablePicture, match=r"tiles of 4096 pixels a side, for a picture of 16x16"):
        open_picture(content, LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_picture_of_one_large_tile() -> None:
    side = LARGEST_TILE_SIDE + 100
    assert open_picture(tiff(side, side, -(-side // 16) * 16), LIMIT).rgb.shape == (side, side, 3)


def test_a_tiff_of_plain_tiles() -> None:
    picture = make_picture(100, 70)[:, :, 0]
    assert (open_picture(plain_tiff(picture, 16, 7 * 5), LIMIT).rgb[:, :, 0] == picture).all()


def test_a_tiff_that_is_put_together_over_and_over_again() -> None:
    """As often as its tiles are named, which takes four bytes each."""
    for count in (36, 100_000):
        with pytest.raises(UndecodablePicture, match=f"cut into {count:,} pieces"):
            picture_size(plain_tiff(make_picture(100, 70)[:, :, 0], 16, count), LIMIT)
    endless = plain_tiff(make_picture(100, 70)[:, :, 0], 16, 400_000)
    tracemalloc.start()
    with pytest.raises(UndecodablePicture, match="cut into more than"):
        picture_size(endless, LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_tiff_in_tiles_of_a_pixel() -> None:
    with pytest.raises(UndecodablePicture, match="cut into 10,000 pieces of 10,000 pixels"):
        picture_size(plain_tiff(make_picture(100, 100)[:, :, 0], 1, 10_000), LIMIT)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_white_may_be_zero(dtype: type, photometric: int) -> None:
    largest = np.iinfo(dtype).max
    samples = np.array([[0, largest], [largest // 2, largest]], dtype)
    shown = open_picture(plain_tiff(samples, 16, 1, photometric), LIMIT).rgb[:, :, 0]
    assert shown.tolist() == ([[255, 0], [128, 0]] if photometric == 0 else [[0, 255], [127, 255]])


def test_a_bmp_in_runs() -> None:
    """Pillow goes through them in Python."""
    runs = b"".join(bytes([100, level]) + b"\0\0" for level in range(80)) + b"\0\1"
    shown = open_picture(bmp(100, 80, runs), LIMIT).rgb
    assert (shown[:, :, 0] == np.arange(80)[::-1, None]).all()
    for content in (bmp(65_535, 760, b"\1\7\0\0" * 760), bmp(100, 80, b"\xff\7" * 100_000)):
        with pytest.raises(UndecodablePicture, match="run-length coded BMP"):
            picture_size(content, LIMIT)


def test_more_pages_than_one_are_not_counted() -> None:
    """Counting them takes time in proportion to their square: minutes for what can be sent in a second."""
    with pytest.raises(AnimatedPicture):
        picture_size(pages(100_000), LIMIT)
    assert picture_size(pages(1), LIMIT) == (1, 1)


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.int32), ("TIFF", np.float32)])
def test_grey_of_many_bits_takes_no_planes_of_floats(kind: str, dtype: type) -> None:
    samples = (np.arange(1 << 20) % (1 << 16)).astype(dtype).reshape(1024, 1024)
    out = io.BytesIO()
    Image.fromarray(samples).save(out, kind)
    tracemalloc.start()
    rgb = open_picture(out.getvalue(), LIMIT).rgb
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (rgb[:, :, 0] == np.rint(samples / 257)).all()
    assert peak < 16 * samples.size, "a plane of floats alone would take 8 for each"


def in_pieces() -> dict[str, tuple[bytes, bytes, bytes]]:
    """For each kind of piece: what stands before such pieces in a file, a piece, and what stands behind."""
    photo, png, gif = (saved(Image.new("RGB", (16, 16), (9, 90, 200)), kind) for kind in ("JPEG", "PNG", "GIF"))
    data, table = png.index(b"IDAT") - 4, 13 + (3 << (gif[10] & 7) + 1)
    return {
        "JPEG comments": (photo[:2], b"\xff\xfe\0\2", photo[2:]),
        "JPEG filling": (photo[:2], b"\xff", photo[2:]),
        "PNG chunks": (png[:data], chunk(b"prVt", b""), png[data:]),
        "PNG chunks at its end": (png[:-12], chunk(b"prVt", b""), png[-12:]),
        "PNG data": (png[:data], chunk(b"IDAT", b""), png[data:]),
        "GIF comments": (gif[:table], b"\x21\xfe\0", gif[table:]),
        "GIF blocks": (gif[:table] + b"\x21\xfe", b"\1a", b"\0" + gif[table:]),
        "GIF comments at its end": (gif[:-1], b"\x21\xfe\0", gif[-1:]),
    }


@pytest.mark.parametrize("kind", in_pieces())
def test_a_file_in_ever_more_pieces_is_refused_unopened(kind: str) -> None:
    """Each takes microseconds of the interpreter, and a body may bring millions."""
    before, piece, behind = in_pieces()[kind]
    assert open_picture(before + 500 * piece + behind, LIMIT).width == 16
    with pytest.raises(UndecodablePicture, match="cut into more than"):
        picture_size(before + 50_000 * piece + behind, LIMIT)


@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
def test_a_directory_of_ever_more_tags(big: bool) -> None:
    head, entry = (b"II+\0\x08\0\0\0" + struct.pack("<Q", 16), bytes(20)) if big else (b"II*\0" + struct.pack("<I", 8), bytes(12))
    with pytest.raises(UndecodablePicture, match="cut into more than"):
        picture_size(head + struct.pack("<Q" if big else "<H", 50_000) + entry * 50_000, LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "AVIF", "BMP"])
def test_an_ordinary_file_has_few_pieces(kind: str) -> None:
    out = io.BytesIO()
    Image.fromarray(make_picture(700, 900)).save(out, kind, progressive=True, icc_profile=bytes(300_000) if kind == "JPEG" else None)
    content = out.getvalue()
    require_few_pieces(content)
    for length in range(0, 200):
        require_few_pieces(content[:length])  # cut short anywhere
