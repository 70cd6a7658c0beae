import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from service.bench import code, pictures, rd, scale, show
from service.errors import BadParameter
from service.pipeline import open_pipeline
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


def test_benchmarks_print_both_sides(bundled_settings: Settings, tmp_path: Path, photo: Plane) -> None:
    (tmp_path / "cat.png").write_bytes(png(photo))
    out = Console(file=io.StringIO(), width=200)
    rd.main(bundled_settings, rd.Terms(tmp_path, (5089,), crop=256, handicap=True), tmp_path / "out", out)
    code.main(bundled_settings, tmp_path, 256, None, out)
    printed = out.file.getvalue()  # type: ignore[attr-defined]
    for word in ("sdc", "JPEG", "WebP", "AVIF", "SSIMULACRA2", "n=1", "i.i.d.", "WebP, +36%", "latent / palette"):
        assert word in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.html", "curves.svg", "README.md"}


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
