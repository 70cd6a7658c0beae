"""The reports: a small run's JSON, its page and its tables say the same, and nothing on the page comes from elsewhere."""

from __future__ import annotations

import asyncio
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

import numpy as np
import pytest
import skimage.data
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from service.bench import curves, rd, report, tables
from service.bench.results import METRICS, LoadReport, RateReport, Refusal, Row, Second, Summary, of, summaries
from service.comparison.metrics import psnr
from service.errors import BadParameter, SizeUnreachable
from service.options import CompressOptions, RenderOptions
from service.pipeline import Pipeline, open_pipeline
from service.settings import Settings
from tests.bench.made_up import load_report, rate_report
from tests.conftest import make_picture, png

HOSTILE = "<img src=x onerror=alert(1)> & [red]"
SIZES = (4000, 9000)
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Every element with its attributes, and the text; fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.styles = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.styles += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check(page: Page) -> None:
    """Stands alone, runs nothing, and each id is there once."""
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert value is not None and value.startswith(("data:", "#")), value
            assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", value or "")), value
    assert "url(" not in page.styles and "@import" not in page.styles
    assert not page.all("script") and not page.all("iframe")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby",):
            for target in (attributes.get(name) or "").split():
                assert target in ids
        for target in re.findall(r"#([\w-]+)", attributes.get("xlink:href") or ""):
            assert target in ids


@pytest.fixture(scope="module")
def made(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a report of two photographs, and what the terminal was told."""
    folder = tmp_path_factory.mktemp("rd")
    images = folder / "two <photographs>"
    images.mkdir()
    (images / f"{HOSTILE}.png").write_bytes(png(np.ascontiguousarray(skimage.data.chelsea())))
    (images / "coffee.png").write_bytes(png(np.ascontiguousarray(skimage.data.coffee())))
    out = Console(file=io.StringIO(), width=200)
    settings = Settings(model=small_model, store_url=f"file://{folder}/store", dtype="float32")
    rd.main(settings, rd.Terms(images, SIZES, crop=176, shown=1), folder / "out", out)
    return folder / "out", out.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def found(made: tuple[Path, str]) -> RateReport:
    return RateReport.model_validate_json((made[0] / report.JSON).read_bytes())


def test_every_picture_codec_and_size_has_its_row(found: RateReport) -> None:
    assert found.images == "two <photographs>"
    assert [picture.name for picture in found.pictures] == [HOSTILE, "coffee"]
    assert {(row.picture, row.codec, row.max_bytes) for row in found.rows} == {
        (picture.name, codec, size) for picture in found.pictures for codec in found.codecs for size in SIZES
    }
    assert len(found.rows) == 2 * len(found.codecs) * len(SIZES)
    for size in SIZES:
        for mine, rival in zip(of(found, "sdc", size), of(found, "AVIF", size), strict=True):
            assert mine.bytes <= round(size * 176 * 176 / rd.REFERENCE_PIXELS) <= 2 * rival.bytes
            assert rival.bytes >= mine.bytes
            assert mine.encode_ms > 0 and mine.decode_ms > 0 and rival.encode_ms > 0 and rival.decode_ms > 0


def test_what_a_browser_gets_is_measured_as_it_is_delivered(small_model: Path, tmp_path: Path) -> None:
    """The same blob as the default render; the file that a browser gets is lossy, and its loss is counted."""
    pixels = np.ascontiguousarray(skimage.data.chelsea()[:176, :176])
    settings = Settings(model=small_model, store_url=f"file://{tmp_path}/store", dtype="float32")

    async def main() -> tuple[list[Row], float]:
        async with open_pipeline(settings, warm=False) as pipeline:
            bench = rd.Bench(pipeline, rd.Terms(Path("x"), (9000,)))
            await bench.picture("a", pixels, lambda: None)
            blob = await pipeline.compress(png(pixels), CompressOptions(max_bytes=rd.in_proportion(9000, pixels)))
            delivered = await pipeline.render(blob.content, RenderOptions())
            assert Image.open(io.BytesIO(delivered.content)).format == "WEBP"
            return bench.rows, psnr(pixels, np.asarray(Image.open(io.BytesIO(delivered.content))))

    rows, expected = asyncio.run(main())
    (lossless,), (webp,) = ([row for row in rows if row.codec == codec] for codec in ("sdc", "sdc, as WebP"))
    assert webp.psnr == pytest.approx(expected, abs=1e-3)
    assert webp.psnr != lossless.psnr
    assert webp.bytes == lossless.bytes


class Stubborn:
    """A pipeline that makes nothing smaller than 900 bytes, and fails if it is asked to render."""

    async def compress(self, content: bytes, options: CompressOptions) -> None:
        raise SizeUnreachable(f"{options.max_bytes} bytes cannot be reached", 900)


def test_a_picture_that_cannot_be_made_so_small_is_noted() -> None:
    bench, steps = rd.Bench(cast(Pipeline, Stubborn()), rd.Terms(Path("x"), (500, 800))), []
    asyncio.run(bench.picture("a", make_picture(176, 176), lambda: steps.append(1)))
    assert bench.rows == [] and len(steps) == 2
    assert [(each.picture, each.max_bytes, each.best_bytes) for each in bench.refused] == [("a", 500, 900), ("a", 800, 900)]


def test_a_refusal_is_said_and_its_size_has_no_point_on_the_curves() -> None:
    whole = rate_report({"sdc": 1.0, "AVIF": 1.1}, fewer="")
    rows = [row for row in whole.rows if (row.picture, row.max_bytes) != ("b", 1000)]
    found = whole.model_copy(update={"rows": rows, "refused": [Refusal(picture="b", max_bytes=1000, best_bytes=1200)]})
    assert curves.whole_sizes(found) == [2000, 4000, 8000]
    assert all(len(points) == 3 for metric in METRICS for points in curves.points(found)[metric].values())
    assert tables.rate_title(found, 1000) == "1000 B at 512x512, n=2; 1 cannot be made so small"
    page = Page(report.rates_page(found, rd.Gallery(0)))
    assert "b at 1,000 B: 1,200 B at the coarsest step" in page.text
    assert tables.rate_title(found, 1000) in page.text
    nothing = found.model_copy(update={"rows": [row for row in rows if row.max_bytes != 1000]})
    check(Page(report.rates_page(nothing, rd.Gallery(0))))


def test_the_page_stands_alone_and_escapes_names(made: tuple[Path, str]) -> None:
    text = (made[0] / report.HTML).read_text()
    page = Page(text)
    check(page)
    assert HOSTILE in page.text
    assert HOSTILE not in text
    images = page.all("img")
    assert len(images) == 6
    assert {image["alt"] for image in images} >= {f"{HOSTILE}, sdc", "coffee, original", "coffee, AVIF"}
    assert all(image["src"].startswith("data:image/avif;base64,") for image in images if image["src"])


def test_the_tables_are_those_of_the_json(found: RateReport, made: tuple[Path, str]) -> None:
    page = Page((made[0] / report.HTML).read_text())
    squeezed = re.sub(r"\s+", " ", page.text)
    for size in SIZES:
        for summary in summaries(found, size):
            rows = of(found, summary.codec, size)
            assert summary.qualities["mean"] == pytest.approx([np.mean([getattr(row, metric) for row in rows]) for metric in METRICS])
            assert summary.qualities["worst"][3] == max(row.feature for row in rows)
            assert summary.qualities["worst"][0] == min(row.psnr for row in rows)
            assert summary.bpp == pytest.approx(np.mean([8 * row.bytes / 176**2 for row in rows]))
        for line in tables.rate_lines(found, size):
            for cell in line.figures:
                assert cell in made[1] and cell in squeezed
        mine, rivals = of(found, "sdc", size), of(found, "JPEG", size)
        (jpeg,) = [summary for summary in summaries(found, size) if summary.codec == "JPEG"]
        assert jpeg.wins is not None
        assert jpeg.wins[0] == sum(left.psnr > right.psnr for left, right in zip(mine, rivals, strict=True))
        assert jpeg.wins[3] == sum(left.feature < right.feature for left, right in zip(mine, rivals, strict=True))


def test_the_summary_has_the_means_of_the_json(found: RateReport, made: tuple[Path, str]) -> None:
    lines = (made[0] / report.MARKDOWN).read_text().splitlines()
    for size in SIZES:
        for summary in summaries(found, size):
            (line,) = [line for line in lines if line.startswith(f"| {summary.codec} | {size:,} | ") and line.count("|") == 9]
            cells = [float(cell.replace(",", "")) for cell in line.split("|")[3:-1]]
            assert cells == pytest.approx([summary.bytes["mean"], summary.bpp, *summary.qualities["mean"]], rel=1e-3, abs=0.5)
            assert cells[2:] == [round(value, digits) for value, digits in zip(summary.qualities["mean"], tables.DIGITS, strict=True)]
            if summary.wins is not None:
                assert f"| {summary.codec} | {size:,} | {', '.join(map(str, summary.wins))} of 2 |" in lines


DOCUMENTED = Path(__file__).parents[2] / "docs" / "bench"


@pytest.mark.parametrize("folder", sorted(path.name for path in DOCUMENTED.iterdir()))
def test_the_reports_in_the_documents_are_of_this_schema_and_say_what_their_json_says(folder: str) -> None:
    content = (DOCUMENTED / folder / report.JSON).read_bytes()
    summary = (DOCUMENTED / folder / report.MARKDOWN).read_text()
    if json.loads(content)["kind"] == "load":
        assert report.load_markdown(LoadReport.model_validate_json(content)) == summary
    else:
        documented = RateReport.model_validate_json(content)
        assert report.rates_markdown(documented) == summary
        assert len(documented.rows) + len(documented.refused) * len(documented.codecs) == (
            len(documented.pictures) * len(documented.sizes) * len(documented.codecs)
        )
    page = Page((DOCUMENTED / folder / report.HTML).read_text())
    check(page)
    assert sum(path.stat().st_size for path in (DOCUMENTED / folder).iterdir()) < 2_000_000


ROOT = DOCUMENTED.parents[1]


def _rounded(written: str) -> tuple[str, int]:
    """A figure as the documents write it, `.9386` or `0.9386` or `5,021`, and its digits behind the point."""
    digits = len(written.partition(".")[2])
    return f"{float(written.replace(',', '')):.{digits}f}", digits


@pytest.mark.parametrize("document", ["README.md", "service/models/bundled/MODEL_CARD.md"])
def test_the_tables_of_kodak_say_what_the_report_says(document: str) -> None:
    """Tables whose head begins with a size in bytes; each has the means, or `mean (median; worst)`, and on how many sdc is better."""
    documented = RateReport.model_validate_json((DOCUMENTED / "rd" / report.JSON).read_bytes())
    at: dict[str, Summary] = {}
    checked = 0
    for line in (ROOT / document).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if head := re.match(r"\| ([\d,]+) B \| bytes \|", line):
            at = {each.codec: each for each in summaries(documented, int(head[1].replace(",", "")))}
        elif not line.startswith("|"):
            at = {}
        elif at and not line.startswith("|---"):
            found = at[re.sub("[*`]", "", cells[0])]
            figures = [[found.bytes["mean"]], *zip(*found.qualities.values(), strict=True)]
            for cell, expected in zip(cells[1:6], figures, strict=True):
                numbers = [_rounded(number) for number in re.findall(r"-?[\d,]*\.?\d+", cell)]
                right = [f"{value:.{digits}f}" for value, (_, digits) in zip(expected, numbers, strict=False)]
                assert len(numbers) in (1, len(expected))
                assert [number for number, _ in numbers] == right, f"{document}: {line}: {cell} should be {right}"
            wins = [int(count) for count in re.findall(r"\d+", cells[6].partition(" of ")[0])]
            assert wins == (found.wins or []), f"{document}: {line}: better on {found.wins}"
            checked += 1
    assert checked >= 5


def test_the_curves_are_those_of_the_json(found: RateReport) -> None:
    for metric in METRICS:
        (axes,) = curves.figure(found, metric).axes
        drawn = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}
        assert list(drawn) == ["sdc", "sdc, steps=0", "JPEG", "WebP", "AVIF"], "as WebP is in the tables only"
        for codec, points in drawn.items():
            expected = [
                (np.mean([8 * row.bytes / 176**2 for row in rows]), np.mean([getattr(row, metric) for row in rows]))
                for rows in (of(found, str(codec), size) for size in SIZES)
            ]
            assert points == pytest.approx(np.array(sorted(expected)))


def test_the_curves_are_a_picture_of_their_own_too(made: tuple[Path, str]) -> None:
    root = ElementTree.fromstring((made[0] / report.SVG).read_text())
    space = "{http://www.w3.org/2000/svg}"
    assert [child.tag for child in root][:2] == [f"{space}title", f"{space}desc"]
    words = " ".join(element.text or "" for element in root.iter(f"{space}text"))
    for word in ("PSNR", "MS-SSIM", "SSIMULACRA2", "feature distance", "AVIF", "bits per pixel"):
        assert word in words


def test_pictures_are_ranked_by_the_lead_over_avif(found: RateReport, made: tuple[Path, str]) -> None:
    page = Page((made[0] / report.HTML).read_text())
    theirs = {row.picture: row.ssimulacra2 for row in of(found, "AVIF", found.shown_size)}
    leads = {row.picture: row.ssimulacra2 - theirs[row.picture] for row in of(found, "sdc", found.shown_size)}
    worst, best = sorted(leads, key=lambda name: leads[name])
    assert found.shown_size == 4000
    assert [image["alt"] for image in page.all("img")] == [
        f"{name}, {codec}" for name in (worst, best) for codec in ("original", "sdc", "AVIF")
    ]
    assert f"{leads[worst]:+.1f} SSIMULACRA2" in page.text


def test_the_bd_rate_of_known_curves() -> None:
    """sdc needs half of AVIF's bytes, and twice those of WebP, for the same quality; JPEG has one size too few."""
    found = rate_report({"sdc": 1.0, "AVIF": 2.0, "WebP": 0.5, "JPEG": 1.0}, fewer="JPEG")
    rates = curves.bd_rates(found)
    for metric in METRICS:
        assert rates["AVIF"][metric] == pytest.approx([-0.5] * 3)
        assert rates["WebP"][metric] == pytest.approx([1.0] * 3)
        assert rates["JPEG"][metric] == []
    page = Page(report.rates_page(found, rd.Gallery(0)))
    check(page)
    assert "-50.0 % (3)" in page.text and "+100.0 % (3)" in page.text and "- (0)" in page.text
    assert not page.all("img")


def test_a_report_that_says_more_or_less_than_the_schema_is_refused(made: tuple[Path, str]) -> None:
    written = json.loads((made[0] / report.JSON).read_text())
    for broken in (written | {"more": 1}, {key: value for key, value in written.items() if key != "rows"}):
        with pytest.raises(ValidationError):
            RateReport.model_validate(broken)


def test_nothing_is_measured_that_could_not_be_written(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadParameter, match="cannot make the folder"):
        rd.main(settings, rd.Terms(tmp_path), tmp_path / "file" / "out", Console(file=io.StringIO()))


def test_pictures_too_small_for_the_metrics_are_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(make_picture(100, 300)))
    with pytest.raises(BadParameter, match="161 pixels a side"):
        rd.main(settings, rd.Terms(tmp_path, crop=0), tmp_path / "out", Console(file=io.StringIO()))


def test_the_load_report_says_what_its_json_says(tmp_path: Path) -> None:
    found = load_report("<b>pictures</b>")
    report.write_load(tmp_path, found)
    assert LoadReport.model_validate_json((tmp_path / report.JSON).read_bytes()) == found
    text = (tmp_path / report.HTML).read_text()
    page = Page(text)
    check(page)
    assert "<b>pictures</b>" in page.text and "<b>pictures" not in text
    out = Console(file=io.StringIO(), width=200)
    out.print(tables.load(found))
    printed = out.file.getvalue()  # type: ignore[attr-defined]
    for _, cells in tables.load_lines(found):
        for cell in cells:
            assert cell in page.text and cell in printed
    for stage in found.operations["compress"].stages:
        assert f"{stage.mean_ms:.1f}" in page.text
    assert (tmp_path / report.MARKDOWN).read_text() == report.load_markdown(found)
    assert tables.hung_up(found) in page.text and tables.idle(found) in page.text


def test_goodput_is_what_came_out_while_the_overload_lasted() -> None:
    """In pictures and in megapixels: what is let in need not be as large as what was sent."""
    found = load_report("pictures").operations["compress"]
    late = Second(at=60, accepted=50, pixels=50_000_000, refused=0, median_ms=1.0, p95_ms=1.0)
    operation = found.model_copy(update={"timeline": [*found.timeline, late]})
    assert operation.goodput == pytest.approx(5 / 60)
    assert operation.goodput_megapixels == pytest.approx(1.1 / 60)
    assert operation.accepted_megapixels == pytest.approx(0.22)
    uncounted = [second.model_copy(update={"pixels": None}) for second in found.timeline]
    before = found.model_copy(update={"timeline": uncounted})
    assert before.goodput_megapixels is None and before.accepted_megapixels is None
    nothing = found.model_copy(update={"timeline": []})
    assert nothing.goodput == 0 and nothing.accepted_megapixels is None


def test_the_timeline_is_that_of_the_json() -> None:
    found = load_report("pictures")
    above, below = curves.timeline(found, "compress").axes
    seconds = found.operations["compress"].timeline
    assert above.lines[0].get_ydata() == pytest.approx(np.array([12.0, np.nan, 14.0]), nan_ok=True)
    assert list(below.lines[0].get_ydata()) == [second.accepted for second in seconds]
    assert list(below.lines[1].get_ydata()) == [second.refused for second in seconds]
