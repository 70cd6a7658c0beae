import asyncio
import hashlib
import io
import json
import os
import shutil
import signal
import threading
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from PIL import Image
from prometheus_client import REGISTRY

from service.batching.admission import Claim
from service.codec import container
from service.codec.coders import Coders
from service.codec.container import ALPHA, GROUND, Blob, Tiling
from service.engine.engine import Finish
from service.engine.tiling import Mosaic
from service.errors import BadParameter, CorruptBlob
from service.imaging.picture import LARGEST_SIDE, Picture
from service.imaging.resizing import Box
from service.imaging.writing import write_alpha, write_picture
from service.manifest import TilingRule
from service.options import CompressOptions, RenderOptions
from service.pipeline import Pipeline, open_pipeline
from service.settings import BUNDLED_MODEL, Settings
from tests.conftest import Plane, make_picture, png, psnr

Result = TypeVar("Result")


def run(settings: Settings, scenario: Callable[[Pipeline], Awaitable[Result]]) -> Result:
    async def main() -> Result:
        async with open_pipeline(settings, warm=False) as pipeline:
            return await scenario(pipeline)

    return asyncio.run(main())


def test_what_can_be_opened_can_be_written() -> None:
    assert LARGEST_SIDE <= container.LARGEST_SIDE


def test_processes_for_coding_give_the_same_bytes(settings: Settings) -> None:
    """A service that is warmed up has them; a command for a picture or two has not."""
    source = png(make_picture(63, 124))
    options = (CompressOptions(max_bytes=400), CompressOptions(quality=30, dither=True))

    async def scenario(pipeline: Pipeline) -> list[object]:
        found: list[object] = []
        for each in options:
            blob = (await pipeline.compress(source, each)).blob
            found += [blob, (await pipeline.restore(blob, 1)).rgb.tobytes()]
        return found

    async def served() -> list[object]:
        async with open_pipeline(settings.model_copy(update={"coders": None, "cpu_workers": 1})) as pipeline:
            assert isinstance(pipeline._coding, Coders)
            return await scenario(pipeline)

    assert asyncio.run(served()) == run(settings, scenario)


def test_flat_ground_is_told_where_the_model_says_so(settings: Settings) -> None:
    page = np.full((160, 203, 3), (255, 250, 3), np.uint8)
    page[48:100, 60:130] = make_picture(52, 70)
    narrow = np.full((400, 24, 3), 255, np.uint8)

    async def scenario(pipeline: Pipeline) -> None:
        async def made(pixels: Plane, **options: int) -> Blob:
            return (await pipeline.compress(png(pixels), CompressOptions(**options))).blob

        assert GROUND not in (await made(page)).sections
        pipeline.engine.manifest = pipeline.engine.manifest.model_copy(update={"flat_ground": True})
        for blob in (await made(page), await made(page, max_bytes=600)):
            assert GROUND in blob.sections
            shown = (await pipeline.restore(blob, 1)).rgb
            assert (shown[:40] == page[0, 0]).all()
            assert (shown[:, 144:] == page[0, 0]).all()
        assert GROUND not in (await made(page, dither=True)).sections
        assert GROUND not in (await made(narrow)).sections  # what the network sees of it has a border of its own

    run(settings, scenario)


def test_what_has_no_colours_comes_back_without(settings: Settings) -> None:
    grey = make_picture(90, 70)[:, :, :1].repeat(3, 2)
    nearly = grey.copy()
    nearly[0, 0, 2] ^= 1

    async def scenario(pipeline: Pipeline) -> None:
        blobs = [(await pipeline.compress(png(each), CompressOptions(quality=50))).blob for each in (grey, nearly)]
        assert [blob.grey for blob in blobs] == [True, False]
        without, with_colours = [(await pipeline.restore(blob, 1)).rgb for blob in blobs]
        assert (without == without[:, :, :1]).all()
        assert (with_colours != with_colours[:, :, :1]).any()

    run(settings, scenario)


def test_a_process_for_coding_that_hangs_keeps_nobody_from_closing(settings: Settings) -> None:
    async def scenario() -> None:
        pipeline_of = open_pipeline(settings.model_copy(update={"coders": 1, "cpu_workers": 1}))
        pipeline = await pipeline_of.__aenter__()
        coding = pipeline._coding
        assert isinstance(coding, Coders)
        coder = coding._idle[0]
        os.kill(coder.pid, signal.SIGSTOP)
        try:
            compressing = asyncio.create_task(pipeline.compress(png(make_picture(63, 124)), CompressOptions()))
            while coder not in coding._busy:
                await asyncio.sleep(0.01)
            compressing.cancel()
            await asyncio.wait_for(pipeline_of.__aexit__(None, None, None), 20)
        finally:
            coder.kill()

    asyncio.run(scenario())


SIZES = [(1, 1), (1, 300), (300, 1), (15, 17), (16, 16), (63, 124), (65, 257), (3, 5)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_size_comes_back_at_its_size(bundled_settings: Settings, height: int, width: int) -> None:
    pixels = make_picture(height, width)

    async def scenario(pipeline: Pipeline) -> None:
        compressed = await pipeline.compress(png(pixels), CompressOptions(quality=80))
        picture = await pipeline.restore(compressed.blob, 1)
        assert picture.rgb.shape == pixels.shape
        assert picture.alpha is None
        assert (compressed.blob.width, compressed.blob.height) == (width, height)

    run(bundled_settings, scenario)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 200), (20, 20), (31, 64), (64, 64)])
def test_small_flat_pictures_keep_their_colour(bundled_settings: Settings, height: int, width: int) -> None:
    """A picture that is all border must not turn grey."""
    colours = [(9, 200, 30), (250, 250, 250), (180, 20, 40), (20, 30, 160)]
    most = 16 if height * width == 1 else 12  # a single pixel is the corner of its own border

    async def scenario(pipeline: Pipeline) -> None:
        for colour in colours:
            pixels = np.full((height, width, 3), colour, np.uint8)
            compressed = await pipeline.compress(png(pixels), CompressOptions(quality=60))
            shown = (await pipeline.restore(compressed.blob, 1)).rgb
            assert np.abs(shown.mean((0, 1)) - colour).max() < most, (colour, shown.mean((0, 1)))

    run(bundled_settings, scenario)


def test_a_thin_picture_that_is_tiled(bundled_settings: Settings, tmp_path: Path) -> None:
    """It has no border: that is for pictures that are seen whole."""
    folder = Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "model"))
    told = json.loads((folder / "sdc.json").read_text())
    (folder / "sdc.json").write_text(json.dumps(told | {"tiling": {"untiled_pixels": 400 * 400, "side": 256, "margin": 64}}))
    pixels = np.ascontiguousarray(np.tile(make_picture(60, 31), (100, 1, 1)))

    async def scenario(pipeline: Pipeline) -> None:
        for height in (5000, 6000):
            compressed = await pipeline.compress(png(pixels[:height]), CompressOptions(quality=60))
            assert (compressed.blob.tiling is not None) == (height == 6000)
            assert psnr((await pipeline.restore(compressed.blob, 0)).rgb, pixels[:height]) > 20

    run(bundled_settings.model_copy(update={"model": folder}), scenario)


def test_what_more_steps_take_is_learned_apart(settings: Settings) -> None:
    async def scenario(pipeline: Pipeline) -> None:
        compressed = await pipeline.compress(png(make_picture(64, 64)), CompressOptions())
        for steps in (1, 2):
            await pipeline.render(compressed.content, RenderOptions("png", steps))
        assert set(pipeline.batcher.rows.durations._lines["render"]) == {1, 2}

    run(settings, scenario)


def test_alpha_travels_losslessly(bundled_settings: Settings) -> None:
    alpha = np.random.default_rng(0).integers(0, 256, (90, 70)).astype(np.uint8)
    source = write_picture(Picture(make_picture(90, 70), alpha), "png")

    async def scenario(pipeline: Pipeline) -> None:
        compressed = await pipeline.compress(source, CompressOptions())
        assert ALPHA in compressed.blob.sections
        picture = await pipeline.restore(compressed.blob, 1)
        assert picture.alpha is not None
        assert (picture.alpha == alpha).all()

    run(bundled_settings, scenario)


def test_large_pictures_are_tiled_by_size_alone(bundled_settings: Settings, photo: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiled picture agrees with the untiled one, and shows no seam."""
    side = int(TilingRule.model_validate({}).untiled_pixels ** 0.5)
    big = np.tile(photo, (6, 4, 1))[: side + 16, : side + 16]
    small = np.ascontiguousarray(big[:side, :side])

    async def scenario(pipeline: Pipeline) -> None:
        untiled = await pipeline.compress(png(small), CompressOptions(quality=60))
        assert untiled.blob.tiling is None
        claims: list[Claim] = []
        leave = pipeline.batcher.admission.leave
        monkeypatch.setattr(pipeline.batcher.admission, "leave", lambda claim, failure: (claims.append(claim), leave(claim, failure)))
        tiled = await pipeline.compress(png(np.ascontiguousarray(big)), CompressOptions(quality=60))
        assert tiled.blob.tiling == Tiling(1024, 128)
        left = (await pipeline.restore(untiled.blob, 1)).rgb
        right = (await pipeline.restore(tiled.blob, 1)).rgb
        assert [claim.to_come for claim in claims] == [0, 0, 0], "what is submitted is what was claimed"
        assert right.shape == big.shape
        assert psnr(left[:1400, :1400], right[:1400, :1400]) > 32
        # across the seam at 1024 the picture jumps no more than it does elsewhere
        steps = np.abs(np.diff(right.astype(int), axis=1)).mean((0, 2))
        original = np.abs(np.diff(big.astype(int), axis=1)).mean((0, 2))
        assert steps[1020:1028].max() < original[1000:1050].max() * 1.5 + 2

    run(bundled_settings, scenario)


@pytest.mark.parametrize("size", [(31, 600), (600, 1), (40, 50)])
def test_what_counts_for_a_strip_is_what_the_networks_see(
    settings: Settings, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A border is computed around it that is several times as large as itself."""
    held: list[int] = []
    seen: list[int] = []

    async def scenario(pipeline: Pipeline) -> None:
        enter, submit = pipeline.batcher.admission.enter, pipeline.batcher.submit_for
        monkeypatch.setattr(pipeline.batcher.admission, "enter", lambda claim: (held.append(claim.held), enter(claim)))

        def seeing(to: Claim, shape: Hashable, payload: object, pixels: int) -> Awaitable[object]:
            seen.append(pixels)
            return submit(to, shape, payload, pixels)

        monkeypatch.setattr(pipeline.batcher, "submit_for", seeing)
        blob = (await pipeline.compress(png(make_picture(*size)), CompressOptions())).blob
        await pipeline.restore(blob, 1)

    run(settings, scenario)
    assert len(seen) == 2
    assert held == seen


def test_what_takes_longer_for_a_larger_picture_is_not_done_on_the_event_loop(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashes of the photo, and copies of latents and pixels."""
    folder = Path(shutil.copytree(settings.model, tmp_path / "model"))
    told = json.loads((folder / "sdc.json").read_text())
    (folder / "sdc.json").write_text(json.dumps(told | {"tiling": {"untiled_pixels": 320 * 320, "side": 256, "margin": 32}}))
    pixels = make_picture(310, 333)
    done: list[tuple[str, bool]] = []

    def noting(owner: object, name: str, large: Callable[..., bool]) -> None:
        call = getattr(owner, name)

        def noted(*arguments: object) -> object:
            if large(*arguments):
                done.append((name, threading.current_thread() is threading.main_thread()))
            return call(*arguments)

        monkeypatch.setattr(owner, name, noted)

    async def scenario(pipeline: Pipeline) -> None:
        source = png(pixels)
        noting(Mosaic, "put", lambda *_: True)
        noting(hashlib, "sha256", lambda content=b"": content == source)
        noting(np, "ascontiguousarray", lambda array, *_: array.shape == pixels.shape)
        compressed = await pipeline.compress(source, CompressOptions(dither=True))
        assert compressed.blob.tiling is not None
        await pipeline.restore(compressed.blob, 1)

    run(settings.model_copy(update={"model": folder}), scenario)
    assert set(done) == {("put", False), ("sha256", False), ("ascontiguousarray", False)}


def test_few_bytes_show_a_picture_that_was_coded_smaller(bundled_settings: Settings, photo: Plane) -> None:
    """And better than they would show it at its own size, which nobody would want to see."""
    alpha = 255 * np.random.default_rng(0).integers(0, 2, (30, 46), np.uint8).repeat(10, 0).repeat(10, 1)[:, : photo.shape[1]]
    picture, room = Picture(photo, alpha), len(write_alpha(alpha))
    source = write_picture(picture, "png")

    async def scenario(pipeline: Pipeline) -> None:
        for options in (CompressOptions(max_bytes=room + 500), CompressOptions(max_bytes=room + 500, dither=True)):
            blob = (await pipeline.compress(source, options)).blob
            assert blob.scale < 16
            assert blob.coded_size[0] < blob.width == picture.width
            assert len(container.write(blob)) <= room + 500
            shown = await pipeline.restore(pipeline.parse(container.write(blob)), 1)
            assert shown.rgb.shape == picture.rgb.shape
            assert (shown.alpha == alpha).all()
        opaque = CompressOptions(max_bytes=450)
        scaled = await pipeline.compress(png(photo), opaque)
        assert scaled.blob.scale < 16
        roomy = await pipeline.compress(png(photo), CompressOptions(max_bytes=5000))
        assert roomy.blob.scale == 16
        pipeline.codec.manifest = pipeline.codec.manifest.model_copy(update={"scaling": None})
        whole = await pipeline.compress(png(photo), opaque)
        assert whole.blob.scale == 16
        better, worse = [(await pipeline.restore(each.blob, 1)).rgb for each in (scaled, whole)]
        assert psnr(better, photo) > psnr(worse, photo) + 1
        small = await pipeline.render(scaled.content, RenderOptions("png", box=Box(100)))
        assert Image.open(io.BytesIO(small.content)).width == 100

    run(bundled_settings, scenario)


def test_a_large_picture_for_few_bytes_is_not_encoded_whole_first(
    bundled_settings: Settings, photo: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = np.ascontiguousarray(np.tile(photo, (8, 6, 1))[:2300, :2300])
    seen: list[int] = []

    async def scenario(pipeline: Pipeline) -> None:
        begin_encode = pipeline.engine.begin_encode

        def noted(planes: list[Plane], sampled: bool) -> Finish:
            seen.extend(plane.shape[0] * plane.shape[1] for plane in planes)
            return begin_encode(planes, sampled)

        monkeypatch.setattr(pipeline.engine, "begin_encode", noted)
        compressed = await pipeline.compress(png(big), CompressOptions(max_bytes=1500))
        assert sum(seen) < big.shape[0] * big.shape[1] / 4
        assert compressed.blob.tiling is None
        shown = (await pipeline.restore(compressed.blob, 1)).rgb
        assert shown.shape == big.shape

    run(bundled_settings, scenario)


def test_a_blob_that_asks_for_too_much_at_once_is_refused(settings: Settings) -> None:
    async def scenario(pipeline: Pipeline) -> None:
        codec = pipeline.codec
        for scale, tiling in ((16, None), (15, None), (16, Tiling(4096, 0)), (16, Tiling(1001, 8)), (4, Tiling(4096, 0))):
            blob = container.Blob(codec.code_identity, codec.model_identity, 8000, 6000, 0, 128, {0: bytes(9)}, tiling, scale=scale)
            with pytest.raises(CorruptBlob):
                await pipeline.render(container.write(blob), RenderOptions("png"))

    run(settings, scenario)


def test_ids_depend_on_source_options_and_model_only(settings: Settings) -> None:
    async def scenario(pipeline: Pipeline) -> None:
        first = pipeline.id_of(b"photo", CompressOptions())
        assert first == pipeline.id_of(b"photo", CompressOptions(quality=50))
        assert len(first) == 26
        others = {
            pipeline.id_of(b"other", CompressOptions()),
            pipeline.id_of(b"photo", CompressOptions(quality=51)),
            pipeline.id_of(b"photo", CompressOptions(max_bytes=5000)),
            pipeline.id_of_blob(b"photo"),
        }
        assert len(others) == 4
        assert first not in others

    run(settings, scenario)


@pytest.mark.parametrize("options", [{"max_bytes": 1000, "quality": 5}, {"quality": 101}, {"max_bytes": 1}, {"method": "magic"}])
def test_contradictory_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(BadParameter):
        CompressOptions(**options)  # type: ignore[arg-type]


def test_quality_moves_size_and_fidelity(bundled_settings: Settings, photo: Plane) -> None:
    async def scenario(pipeline: Pipeline) -> None:
        sizes, fidelities = [], []
        for quality in (0, 25, 50, 75, 100):
            compressed = await pipeline.compress(png(photo), CompressOptions(quality=quality))
            sizes.append(len(compressed.content))
            fidelities.append(psnr((await pipeline.restore(compressed.blob, 1)).rgb, photo))
        assert sizes == sorted(sizes)
        assert fidelities == sorted(fidelities)
        assert sizes[-1] > 5 * sizes[0]

    run(bundled_settings, scenario)


def test_a_neighbour_in_the_batch_does_not_change_integers_or_pixels(settings: Settings) -> None:
    pictures = [make_picture(64, 96, seed) for seed in range(6)]

    async def scenario(pipeline: Pipeline) -> None:
        alone = [await pipeline.compress(png(picture), CompressOptions(quality=70)) for picture in pictures]
        together = await asyncio.gather(*(pipeline.compress(png(picture), CompressOptions(quality=70)) for picture in pictures))
        for index, (left, right) in enumerate(zip(alone, together, strict=True)):
            shown = [(await pipeline.restore(each.blob, 1)).rgb for each in (left, right)]
            assert psnr(shown[0], shown[1]) > 45, index

    run(settings, scenario)


def test_a_processor_is_warmed_up_by_one_run_of_each_size(settings: Settings) -> None:
    """Every run is time that a user waits for the start, and there are no kernels to be made."""
    before = {op: runs(op) for op in ("encode", "render")}

    async def main() -> None:
        async with open_pipeline(settings.model_copy(update={"device": "cpu", "dtype": "bfloat16"})) as pipeline:
            assert pipeline.batcher.rows.durations.predict("encode", (512, 512, False), settings.max_batch, 512**2) > 0

    asyncio.run(main())
    assert {op: runs(op) - count for op, count in before.items()} == {"encode": 4, "render": 4}


def test_where_pictures_are_computed_one_by_one_there_are_no_batches(bundled_settings: Settings) -> None:
    """Nothing would be gained by them, and the first pictures of each would wait for the last."""
    before = runs("encode")

    async def main() -> None:
        async with open_pipeline(bundled_settings.model_copy(update={"device": "cpu", "dtype": "float32", "max_batch": 4})) as pipeline:
            assert runs("encode") - before == 2, "a small and a middling picture, and no full batches of them"
            pictures = [png(make_picture(32, 32, seed)) for seed in range(5)]
            await asyncio.gather(*(pipeline.compress(picture, CompressOptions()) for picture in pictures))

    asyncio.run(main())
    assert runs("encode") - before == 2 + 5


def runs(operation: str) -> float:
    return REGISTRY.get_sample_value("sdc_stage_seconds_count", {"stage": f"device-{operation}"}) or 0
