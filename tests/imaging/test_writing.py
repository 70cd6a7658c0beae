import io
import os
import threading
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from service.errors import CorruptBlob
from service.imaging.opening import open_picture
from service.imaging.picture import Picture
from service.imaging.writing import FORMATS, read_alpha, write_alpha, write_picture
from tests.conftest import chunk, make_picture, png, saved

ALPHA = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))
OPAQUE, CUT_OUT = Picture(make_picture(40, 60)), Picture(make_picture(40, 60), ALPHA)


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("picture", [OPAQUE, CUT_OUT], ids=["opaque", "alpha"])
def test_every_format_says_what_it_is(extension: str, picture: Picture) -> None:
    image = Image.open(io.BytesIO(write_picture(picture, extension)))
    assert Image.MIME[image.format or ""] == FORMATS[extension].content_type
    assert image.size == (60, 40)
    assert ("A" in image.mode) == (picture.alpha is not None and extension != "jpg")


def test_png_is_lossless() -> None:
    image = Image.open(io.BytesIO(write_picture(CUT_OUT, "png")))
    assert (np.asarray(image) == np.dstack([CUT_OUT.rgb, ALPHA])).all()


def test_jpeg_lies_on_white() -> None:
    image = np.asarray(Image.open(io.BytesIO(write_picture(CUT_OUT, "jpg", 95))))
    assert image[:, :3].mean() > 240


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="takes a file in memory that has a descriptor")
def test_a_jpeg_is_written_without_the_interpreter() -> None:
    """Others go on meanwhile; one try of five is enough, for on a busy machine they stand still for other reasons too."""
    picture = Picture(np.asarray(Image.fromarray(make_picture(500, 800)).resize((2400, 1500))))
    assert any(standstill(lambda: write_picture(picture, "jpg")) < 0.4 for _ in range(5))


def standstill(call: Callable[[], object]) -> float:
    """The longest time for which another thread stood still during a call, as a share of the call."""
    began, moments = time.perf_counter(), []
    thread = threading.Thread(target=call)
    thread.start()
    while thread.is_alive():
        moments.append(time.perf_counter())
        time.sleep(0.001)
    moments = [began, *moments, time.perf_counter()]
    return float(max(np.diff(moments))) / (moments[-1] - began)


@pytest.mark.parametrize("quality", [1, 80, 100])
def test_a_jpeg_has_the_same_bytes_without_a_descriptor(monkeypatch: pytest.MonkeyPatch, quality: int) -> None:
    written = write_picture(CUT_OUT, "jpg", quality)
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert write_picture(CUT_OUT, "jpg", quality) == written


def test_quality_is_used() -> None:
    assert len(write_picture(OPAQUE, "webp", 10)) < len(write_picture(OPAQUE, "webp", 95))


@pytest.mark.parametrize("shape", [(1, 1), (40, 60), (3, 17_000)])
def test_alpha_comes_back_exactly(shape: tuple[int, int]) -> None:
    alpha = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert (read_alpha(write_alpha(alpha), shape[1], shape[0]) == alpha).all()


def test_a_mask_is_small() -> None:
    y, x = np.mgrid[:512, :512]
    mask = np.where((y - 256) ** 2 + (x - 256) ** 2 < 200**2, 255, 0).astype(np.uint8)
    assert len(write_alpha(mask)) < 1000


@pytest.mark.parametrize("content", [b"", b"nonsense", png(make_picture(39, 60)), write_alpha(ALPHA)[:30]])
def test_a_damaged_alpha_section_is_named(content: bytes) -> None:
    with pytest.raises(CorruptBlob):
        read_alpha(content, 60, 40)


def test_an_alpha_section_with_an_empty_chunk_behind_its_pixels_is_named() -> None:
    """Pillow has an IndexError for it."""
    content = png(ALPHA)
    with pytest.raises(CorruptBlob, match="damaged"):
        read_alpha(content[:-12] + bytes(4) + b"iCCP" + zlib.crc32(b"iCCP").to_bytes(4) + content[-12:], 60, 40)


def test_an_alpha_section_in_ever_more_pieces_is_refused_unopened() -> None:
    content = saved(Image.new("L", (8, 8), 9), "PNG")
    data = content.index(b"IDAT") - 4
    with pytest.raises(CorruptBlob, match="damaged") as told:
        read_alpha(content[:data] + 50_000 * chunk(b"prVt", b"") + content[data:], 8, 8)
    assert "cut into more than" in str(told.value.__cause__)


def test_what_avif_holds_can_be_opened_again() -> None:
    for extension in ("avif", "webp"):
        side = FORMATS[extension].largest_side
        picture = open_picture(write_picture(Picture(np.zeros((1, side, 3), np.uint8)), extension), 1 << 26)
        assert picture.width == side


def test_an_alpha_section_that_moves_is_refused() -> None:
    out, frame = io.BytesIO(), Image.fromarray(ALPHA)
    frame.save(out, "PNG", save_all=True, append_images=[Image.fromarray(255 - ALPHA)])
    with pytest.raises(CorruptBlob, match="size"):
        read_alpha(out.getvalue(), 60, 40)
