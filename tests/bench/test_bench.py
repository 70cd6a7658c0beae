import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from service.bench import code, pictures, rd, scale, show, speed
from service.comparison.rivals import RIVALS
from service.engine.device import DTYPES
from service.errors import BadParameter
from service.pipeline import Pipeline, open_pipeline
from service.settings import Settings
from tests.conftest import Plane, make_picture, png


def test_crops_are_centred_and_small_pictures_left_out(tmp_path: Path, photo: Plane) -> None:
    (tmp_path / "a.png").write_bytes(png(photo))
    (tmp_path / "b.png").write_bytes(png(make_picture(100, 100)))
    found = pictures.load(tmp_path, 200, None)
    assert list(found) == ["a"]
    assert (found["a"] == photo[50:250, 125:325]).all()
    assert len(pictures.load(tmp_path, 0, None)) == 2
    Image.fromarray(photo).save(tmp_path / "a.webp")
    assert list(pictures.load(tmp_path, 0, None)) == ["a", "a.webp", "b"]
    with pytest.raises(BadParameter):
        pictures.load(tmp_path, 900, None)
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves")
    (tmp_path / "album.jpg").mkdir()
    assert len(pictures.load(tmp_path, 0, None)) == 3
    (tmp_path / "c.jpg").write_bytes(b"no picture")
    with pytest.raises(BadParameter, match=r"c\.jpg: these bytes are no picture"):
        pictures.load(tmp_path, 0, None)


@pytest.mark.parametrize("output", ["sheet.foo", "file/sheet.png"])
def test_where_nothing_can_be_written_nothing_is_computed(settings: Settings, tmp_path: Path, output: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadParameter, match=r"sheet\.foo is no name|cannot make the folder"):
        show.main(settings, tmp_path / "no-such-folder", ["a:0,0,1,1"], 5089, 0, 1, ["AVIF"], tmp_path / output)


def test_each_number_format_is_measured_once(settings: Settings, tmp_path: Path, photo: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` is fp32 on a processor without bf16, and given so it is fp32 everywhere."""
    large = np.tile(photo, (3, 2, 1))
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(large[number : 513 + number, :513]))
    seen: list[str] = []
    taken: set[bytes] = set()

    async def one(pipeline: Pipeline, pixels: Plane, rows: dict[str, list[float]]) -> None:
        dtype = str(pipeline.engine.dtype).removeprefix("torch.")
        seen.append(dtype)
        taken.add(pixels.tobytes())
        for label, ms in (
            (f"compress, quality=50, {dtype}", 2.0),
            (f"{speed.REFERENCE}, beside {dtype}", 4.0 if dtype == "float32" else 8.0),
        ):
            rows.setdefault(label, []).append(ms)

    monkeypatch.setattr(speed, "_one", one)
    for dtype, expected in (("auto", {"float32"}), ("bfloat16", {"bfloat16", "float32"})):
        seen.clear()
        monkeypatch.setattr("service.engine.engine.pick_dtype", lambda device, wanted: DTYPES.get(wanted, DTYPES["float32"]))
        out = Console(file=io.StringIO(), width=200)
        speed.main(settings.model_copy(update={"dtype": dtype}), tmp_path, 3, out)
        assert {each: seen.count(each) for each in seen} == dict.fromkeys(expected, 2 * speed.ROUNDS)
        assert taken == {large[number : 512 + number, :512].tobytes() for number in (0, 3)}, "every third picture"
        printed = out.file.getvalue()  # type: ignore[attr-defined]
        assert ("0.25" in printed) == (dtype == "bfloat16") and "0.50" in printed


def test_benchmarks_print_both_sides(bundled_settings: Settings, tmp_path: Path, photo: Plane) -> None:
    (tmp_path / "cat.png").write_bytes(png(photo))
    out = Console(file=io.StringIO(), width=200)
    rd.main(bundled_settings, rd.Terms(tmp_path, (5089,), crop=256, handicap=True, shrunk=True), tmp_path / "out", out)
    code.main(bundled_settings, tmp_path, 256, None, out)
    printed = out.file.getvalue()  # type: ignore[attr-defined]
    for word in ("sdc", "JPEG", "WebP", "AVIF", "SSIMULACRA2", "n=1", "i.i.d.", "WebP, +36%", "AVIF, shrunk", "latent / palette"):
        assert word in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.html", "curves.svg", "README.md"}


def test_a_product_on_white(photo: Plane) -> None:
    laid = pictures.on_white(photo)
    height, width = photo.shape[:2]
    assert laid.shape == photo.shape
    assert (laid[: height // 6] == 255).all() and (laid[:, : width // 6] == 255).all()
    (top, left), inner, outer = (height // 2, width // 2), 18, 30
    middle = laid[top - inner : top + inner, left - inner : left + inner]
    shown = photo[top - outer : top + outer, left - outer : left + outer]
    assert np.abs(middle.mean((0, 1)) - shown.mean((0, 1))).max() < 5


def test_who_shrinks_first_has_smaller_files(photo: Plane) -> None:
    """And is held to the same rule: none is smaller than ours."""
    pixels = np.ascontiguousarray(photo[50:250, 125:325])
    taken, shown, _, _ = rd.shrunk(pixels, 560)
    assert shown.shape == pixels.shape
    assert 560 <= taken <= rd.HARDLY_LARGER * 560
    smallest = rd.Rival(RIVALS["AVIF"], pixels).at_least(1)[0]
    assert smallest > rd.HARDLY_LARGER * 560, "at its own size there is none so small"


def test_ours_keeps_its_promise(bundled_settings: Settings, photo: Plane) -> None:
    async def main() -> None:
        async with open_pipeline(bundled_settings, warm=False) as pipeline:
            size, shown = await rd.ours(pipeline, photo, 2500, None)
            assert size <= 2500
            assert shown.shape == photo.shape

    asyncio.run(main())


def test_side_by_side() -> None:
    pixels = make_picture(30, 40)
    assert show.side_by_side({"a": (2, pixels), "b": (1, pixels)}).size == (88, 52)


def test_a_sheet_shows_the_regions_asked_for(bundled_settings: Settings, tmp_path: Path, photo: Plane) -> None:
    (tmp_path / "cat.png").write_bytes(png(photo))
    sheet = tmp_path / "made" / "sheet.png"
    show.main(bundled_settings, tmp_path, ["cat:10,20,30,40", "cat:0,0,50,20"], 5089, 256, 2, ["WebP"], sheet)
    pixels = np.asarray(Image.open(sheet).convert("RGB"))
    assert pixels.shape == (40 * 2 + 22 + 8 + 20 * 2 + 22, 3 * 108 - 8, 3)
    top, left = (photo.shape[0] - 256) // 2 + 20, (photo.shape[1] - 256) // 2 + 10
    assert (pixels[22:102:2, 0:60:2] == photo[top : top + 40, left : left + 30]).all()
    for wrong in ("cat:1,2,3", "dog:0,0,9,9", "cat:250,0,20,20"):
        with pytest.raises(BadParameter, match=wrong.partition(":")[0]):
            show.main(bundled_settings, tmp_path, [wrong], 5089, 256, 1, ["AVIF"], sheet)


def test_where_a_picture_is_better_coded_smaller(bundled_settings: Settings, tmp_path: Path, photo: Plane) -> None:
    (tmp_path / "cat.png").write_bytes(png(photo))
    (tmp_path / "small.png").write_bytes(png(make_picture(100, 100)))
    out = Console(file=io.StringIO(), width=200)
    scale.main(bundled_settings, tmp_path, (100, 800), 0, None, out)
    printed = out.file.getvalue()  # type: ignore[attr-defined]
    assert "1 pictures" in printed and "three_quarters=" in printed
    assert "1 of 2 cannot be made so small" in printed
    row = next(line for line in printed.splitlines() if "3/4" in line)
    assert "(1)" in row, "at 800 bytes of a 512x512 picture it is the better way"
    with pytest.raises(BadParameter, match="pixels a side"):
        (tmp_path / "cat.png").unlink()
        scale.main(bundled_settings, tmp_path, (800,), 0, None, out)
