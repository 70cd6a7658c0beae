"""The model in the repository: small enough, useful, and its files stay readable."""

import asyncio
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.bench.rd import ours
from service.codec import container
from service.codec.codec import Codec, Frame
from service.codec.steps import dequantise
from service.comparison.metrics import Plane, Quality, as_array, measure
from service.comparison.rivals import RIVALS, at_least
from service.errors import WrongModel
from service.manifest import read_manifest
from service.options import CompressOptions, RenderOptions
from service.pipeline import open_pipeline
from service.settings import BUNDLED_MODEL, Settings
from tests.conftest import png, psnr

CROP = 288
DATA = Path(__file__).parent / "data"


def test_the_weights_are_25_megabytes_at_most() -> None:
    assert sum(path.stat().st_size for path in BUNDLED_MODEL.rglob("*") if path.is_file()) <= 25_000_000


def test_nothing_is_pickled() -> None:
    assert {path.suffix for path in BUNDLED_MODEL.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".md"}


def crops(photos: dict[str, Plane]) -> list[Plane]:
    found = []
    for picture in photos.values():
        top, left = (picture.shape[0] - CROP) // 2, (picture.shape[1] - CROP) // 2
        found.append(np.ascontiguousarray(picture[top : top + CROP, left : left + CROP]))
    return found


@pytest.fixture(scope="module")
def compared(photos: dict[str, Plane], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Mean quality of each side at 0.155 bpp, the rivals with at least our bytes, on scikit-image's photographs."""
    qualities: dict[str, list[Quality]] = {}
    settings = Settings(model=BUNDLED_MODEL, store_url="memory:///")

    async def main() -> None:
        async with open_pipeline(settings, warm=False) as pipeline:
            for pixels in crops(photos):
                size, shown = await ours(pipeline, pixels, round(0.155 * CROP * CROP / 8), None)
                qualities.setdefault("sdc", []).append(measure(pixels, shown))
                _, plain = await ours(pipeline, pixels, size, 0)
                qualities.setdefault("steps=0", []).append(measure(pixels, plain))
                for name, encode in RIVALS.items():
                    qualities.setdefault(name, []).append(measure(pixels, at_least(encode, pixels, size)[1]))

    asyncio.run(main())
    return {name: as_array(listed).mean(0) for name, listed in qualities.items()}


PSNR, MS_SSIM, SSIMULACRA2, FEATURE = range(4)


def test_it_beats_jpeg_everywhere(compared: dict[str, np.ndarray]) -> None:
    ours_, jpeg = compared["sdc"], compared["JPEG"]
    assert ours_[PSNR] > jpeg[PSNR] + 1.5
    assert ours_[MS_SSIM] > jpeg[MS_SSIM]
    assert ours_[SSIMULACRA2] > jpeg[SSIMULACRA2]
    assert ours_[FEATURE] < jpeg[FEATURE]


def test_it_beats_webp_on_structure(compared: dict[str, np.ndarray]) -> None:
    assert compared["sdc"][MS_SSIM] > compared["WebP"][MS_SSIM]


def test_the_unet_does_no_harm(compared: dict[str, np.ndarray]) -> None:
    with_unet, without = compared["sdc"], compared["steps=0"]
    assert with_unet[PSNR] > without[PSNR] - 0.05
    assert with_unet[FEATURE] < without[FEATURE] + 0.005


@pytest.mark.parametrize(
    ("version", "profile"), [(1, "edf8dee5"), (2, "a326991a"), (3, "d3cbdedc"), (4, "a12c7387"), (5, "68c3c568"), (6, "580d5570")]
)
def test_a_file_of_an_earlier_version_is_refused_by_the_name_of_what_it_needs(version: int, profile: str) -> None:
    """They were replaced, not kept: their files are sound, say which profile they need, and are never decoded as something else."""
    blob = container.parse((DATA / f"bundled-{version}.sdc").read_bytes(), 1 << 20)
    assert (blob.width, blob.height) == (451, 300)
    codec = Codec(BUNDLED_MODEL, read_manifest(BUNDLED_MODEL))
    with pytest.raises(WrongModel, match=profile):
        codec.decode(blob)


def rendered(content: bytes) -> Plane:
    """A file as a PNG shows it."""

    async def main() -> bytes:
        async with open_pipeline(Settings(model=BUNDLED_MODEL, store_url="memory:///"), warm=False) as pipeline:
            return (await pipeline.render(content, RenderOptions("png"))).content

    return np.asarray(Image.open(io.BytesIO(asyncio.run(main()))).convert("RGB"))


@pytest.mark.parametrize(
    ("name", "scale", "fidelity"), [("bundled-7", 16, 30), ("bundled-7-scaled", 8, 25), ("bundled-7-dithered", 16, 18)]
)
def test_a_file_of_this_version_is_rendered(photos: dict[str, Plane], name: str, scale: int, fidelity: float) -> None:
    """The cat of scikit-image, at quality 50; coded at half its sides, in 500 bytes; at quality 10, in part transparent and dithered, which
    costs most at coarse steps."""
    content = (DATA / f"{name}.sdc").read_bytes()
    assert container.parse(content, 1 << 20).scale == scale
    opaque = slice(40, -40), slice(50, -50)
    assert psnr(photos["chelsea"][opaque], rendered(content)[opaque]) > fidelity


def on_white(picture: Plane) -> Plane:
    """A disc of a picture in the middle of twice as much white."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    shown = ((y - height / 2) / (height / 2)) ** 2 + ((x - width / 2) / (width / 2)) ** 2 < 1
    page = np.full((2 * height, 2 * width, 3), 255, np.uint8)
    page[height // 2 :, width // 2 :][:height, :width][shown] = picture[shown]
    return page


def test_a_file_of_version_5_with_flat_ground_is_rendered(photos: dict[str, Plane]) -> None:
    content = (DATA / "bundled-7-ground.sdc").read_bytes()
    assert container.BARE_GROUND in container.parse(content, 1 << 20).sections
    assert psnr(on_white(photos["chelsea"]), rendered(content)) > 30


def test_a_grey_file_on_white_is_rendered(photos: dict[str, Plane]) -> None:
    """The white is white, and there is no colour anywhere."""
    content = (DATA / "bundled-7-grey-on-white.sdc").read_bytes()
    blob = container.parse(content, 1 << 20)
    assert (blob.version, blob.grey, container.GROUND in blob.sections) == (6, True, True)
    page, shown = on_white(without_colours(photos["chelsea"])), rendered(content)
    assert psnr(page, shown) > 35
    assert (shown == shown[:, :, :1]).all()
    assert (shown[:100] == 255).all() and (shown[:, -100:] == 255).all()


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("bundled-7", "7d75a31c8073d613"),
        ("bundled-7-dithered", "83a5dae56504e23a"),
        ("bundled-7-scaled", "4bf4372a621d0e29"),
        ("bundled-7-ground", "08b0d051045fb3c4"),
        ("bundled-7-grey-on-white", "c1ff5493ffd7dd3c"),
    ],
)
def test_the_integers_of_a_file_never_change(name: str, digest: str) -> None:
    codec = Codec(BUNDLED_MODEL, read_manifest(BUNDLED_MODEL))
    symbols = codec.decode_symbols(container.parse((DATA / f"{name}.sdc").read_bytes(), 1 << 20))
    assert hashlib.sha256(symbols.astype("<i4").tobytes()).hexdigest()[:16] == digest


def without_colours(picture: Plane) -> Plane:
    return np.asarray(Image.fromarray(picture).convert("L").convert("RGB"))


def test_a_product_on_white_costs_little_more_than_the_product(photos: dict[str, Plane]) -> None:
    """Three quarters and more of the picture are white, and exactly so again at any quality."""
    page = on_white(photos["chelsea"])
    settings = Settings(model=BUNDLED_MODEL, store_url="memory:///", dtype="float32")

    async def main() -> tuple[int, int]:
        async with open_pipeline(settings, warm=False) as pipeline:
            alone = (await pipeline.compress(png(photos["chelsea"]), CompressOptions(quality=50))).content
            laid = (await pipeline.compress(png(page), CompressOptions(quality=50))).content
            coarse = (await pipeline.compress(png(page), CompressOptions(quality=0))).blob
            shown = (await pipeline.restore(coarse, 1)).rgb
            assert (shown[:100] == 255).all() and (shown[:, -100:] == 255).all()
            assert not coarse.grey
            return len(alone), len(laid)

    alone, laid = asyncio.run(main())
    assert laid < 1.15 * alone


def golden_symbols(codec: Codec) -> np.ndarray:
    channels = codec.manifest.latent_channels
    c, y, x = np.mgrid[0:channels, 0:7, 0:9]
    return ((y * 5 + x * 3 + c * 7) % 9 - 4).astype(np.int32)


def test_golden_file_of_the_bundled_profile() -> None:
    """A change here means that files of released models can no longer be read."""
    codec = Codec(BUNDLED_MODEL, read_manifest(BUNDLED_MODEL))
    symbols = golden_symbols(codec)
    content = codec.entropy.encode(symbols, 110)
    assert f"{codec.code_identity.hex()} {len(content)} {hashlib.sha256(content).hexdigest()[:16]}" == "d1d79cc1 20880 c5bc2a817a9cd800"
    blob = codec.encode(dequantise(symbols, 110), Frame(140, 100), 110)
    assert (codec.decode_symbols(blob) == symbols).all()


def test_real_files_are_within_5_percent_of_their_ideal(photos: dict[str, Plane]) -> None:
    from service.codec.container import LATENT
    from service.codec.steps import quantise
    from service.engine.engine import Engine

    engine = Engine(BUNDLED_MODEL)
    codec = Codec(BUNDLED_MODEL, engine.manifest)
    for pixels in crops(photos):
        latent = engine.encode(pixels[None])[0]
        for quality in (20, 50, 80):
            index = engine.manifest.rate_points.step_index(quality)
            payload = len(codec.encode(latent, Frame(CROP, CROP), index).sections[LATENT])
            assert payload <= 1.05 * codec.entropy.ideal_bits(quantise(latent, index), index) / 8


def gradient(seed: int) -> Plane:
    """From corner to corner, 256x256: as smooth as bytes can be."""
    corners = np.random.default_rng(seed).uniform(40, 215, (2, 2, 3))
    y, x = (axis[..., None] / 255 for axis in np.mgrid[0:256, 0:256])
    top, bottom = (left * (1 - x) + right * x for left, right in corners)
    return np.rint(top * (1 - y) + bottom * y).astype(np.uint8)


def test_smooth_ground_has_no_grid() -> None:
    """The decoder puts out patches of 4x4 pixels.  What differs within them on a gradient is a grid; revision 1 had 1.08 levels of it."""
    from service.codec.steps import quantise
    from service.engine.engine import Engine

    engine = Engine(BUNDLED_MODEL, dtype="float32")
    index, energies = engine.manifest.rate_points.step_index(10), []
    for seed in range(6):
        pixels = gradient(seed)
        sent = dequantise(quantise(engine.encode(pixels[None])[0], index), index)
        error = engine.decode(sent[None])[0].astype(float) - pixels
        patches = error.reshape(64, 4, 64, 4, 3)
        energies.append(((patches - patches.mean((1, 3), keepdims=True)) ** 2).mean())
    assert np.sqrt(np.mean(energies)) < 0.8


def test_the_model_card_is_there() -> None:
    assert "Licence" in (Path(BUNDLED_MODEL) / "MODEL_CARD.md").read_text()
