import asyncio
import hashlib
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from service.calibration.calibrate import HELD_OUT, SIDE, _encoded, calibrate
from service.calibration.context import ContextModel, bias_of
from service.calibration.fitting import _start_at, fit, mean_bytes, shape_for
from service.calibration.integers import integer_passes
from service.checkpoints.pulling import pull
from service.codec.context import LaplacePredictor
from service.codec.entropy import EntropyCoder
from service.codec.profile import load_profile
from service.codec.steps import quantise
from service.codec.tables import laplace_counts, logistic_counts
from service.engine.engine import Engine
from service.errors import BadModel, BadParameter
from service.folders import LOCK
from service.manifest import read_manifest
from service.options import CompressOptions, RenderOptions
from service.pipeline import open_pipeline
from service.settings import Settings
from tests.checkpoints.conftest import make_checkpoint
from tests.conftest import Plane, make_picture, png


def quiet(what: str, share: float) -> None:
    pass


@pytest.mark.parametrize("channels", [1, 3, 4, 8, 9, 16, 32, 100, 128, 192])
def test_groups_cover_the_channels(channels: int) -> None:
    sizes, hidden, windows = shape_for(channels)
    assert sum(sizes) == channels and min(sizes) >= 1
    assert len(sizes) == len(hidden) == len(windows)


def ticking(seconds: float) -> object:
    """A clock that moves by so much each time somebody looks."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += seconds
        return now

    return clock


def correlated(count: int) -> np.ndarray:
    """Latents whose channels say nearly the same, smoothly: much for a context to know."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(size=(count, 1, 9, 9)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").repeat(1, 4, 1, 1).numpy()
    return (smooth * np.array([1, -1, 1, -1], np.float32)[:, None, None] + 0.1 * rng.normal(size=smooth.shape)).astype(np.float32)


def test_what_is_fitted_is_smaller_and_lossless() -> None:
    """119 steps of training, by a clock that is counted."""
    latents = correlated(40)
    shares: list[float] = []
    fitted = fit(latents[:32], list(range(96, 161)), 256**2, 1.0, shares.append, ticking(0.5))  # type: ignore[arg-type]
    assert len(shares) == 120 and shares[-1] == 1.0
    generic = EntropyCoder(LaplacePredictor(4, laplace_counts()))
    for index in (96, 128, 160):
        assert mean_bytes(fitted.coder, latents[32:], index) < 0.7 * mean_bytes(generic, latents[32:], index)
        symbols = quantise(latents[33], index)
        assert (fitted.coder.decode(fitted.coder.encode(symbols, index), symbols.shape, index) == symbols).all()


@pytest.fixture
def images(tmp_path: Path, photos: dict[str, Plane]) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, pixels in photos.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture either")
    Image.fromarray(photos["coffee"][:100, :100]).save(folder / "small.png")
    return folder


def test_a_calibrated_model_is_another_one(tmp_path: Path, images: Path) -> None:
    """Same networks, linked and not copied; other tables, another identity; the first one is as it was."""
    models = tmp_path / "models"
    folder = pull(models, str(make_checkpoint(tmp_path / "sd")), name="small", told=lambda words: None)
    before = (folder / "sdc.json").read_bytes()
    shown: dict[str, float] = {}
    gains = calibrate(Engine(folder, dtype="float32"), images, models / "mine", 0.05, 24, shown.__setitem__)
    assert shown == {"encoding": 1.0, "fitting": 1.0, "judging": 1.0}
    assert [gain.index for gain in gains] == [179, 154, 128, 102, 77]
    assert all(gain.before > 0 and gain.after > 0 for gain in gains)
    assert (folder / "sdc.json").read_bytes() == before
    assert {path.name for path in models.iterdir()} == {"small", "mine", LOCK}
    old, new = read_manifest(folder), read_manifest(models / "mine")
    assert (new.name, new.entropy.kind, new.latent_std) == ("mine", "context", old.latent_std)
    assert load_profile(folder, old).code_identity != load_profile(models / "mine", new).code_identity
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (models / "mine" / weights).stat().st_ino == (folder / weights).stat().st_ino

    async def journey() -> None:
        async with open_pipeline(Settings(model=models / "mine", store_url="memory:///", dtype="float32")) as pipeline:
            made = await pipeline.compress(png(np.asarray(Image.open(images / "chelsea.png"))), CompressOptions(max_bytes=3000))
            assert len(made.content) <= 3000
            assert (await pipeline.render(made.content, RenderOptions("png"))).content

    asyncio.run(journey())


def test_what_cannot_be_calibrated_is_said(tmp_path: Path, small_model: Path, images: Path) -> None:
    engine = Engine(small_model, dtype="float32")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BadParameter, match="at least two photographs"):
        calibrate(engine, empty, tmp_path / "mine", 0.01, 8, quiet)
    for target in (tmp_path / "Mine!", empty):
        with pytest.raises(BadModel, match="give another one"):
            calibrate(engine, images, target, 0.01, 8, quiet)
    assert not (tmp_path / "mine").exists()
    assert json.loads((small_model / "sdc.json").read_text())["entropy"] == {"kind": "laplace"}


@pytest.mark.parametrize("held", [True, False])
def test_names_that_all_fall_to_one_side(tmp_path: Path, small_model: Path, held: bool) -> None:
    """Of two pictures there is always one to judge by and one to train on."""
    numbered = (f"{number}.png" for number in itertools.count())
    names = itertools.islice((name for name in numbered if (int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT == 0) == held), 2)
    for seed, name in enumerate(names):
        Image.fromarray(make_picture(SIDE, SIDE, seed)).save(tmp_path / name)
    judged, trained = _encoded(Engine(small_model, dtype="float32"), tmp_path, 2, quiet)
    assert (len(judged), len(trained)) == (1, 1)


def test_what_is_sent_at_each_step_stays_what_it_was(tmp_path: Path, small_model: Path, images: Path) -> None:
    """Channels that only fine steps send, as of a widened model, are not sent at coarse ones by the calibrated one either."""
    old = tmp_path / "old"
    shutil.copytree(small_model, old)
    channels = read_manifest(old).latent_channels
    save_file(integer_passes(ContextModel([channels - 1, 1], [8, 4], [5, 3])) | {"counts": logistic_counts()}, old / "e.safetensors")
    told = json.loads((old / "sdc.json").read_text())
    told["entropy"] = {"kind": "context", "file": "e.safetensors", "coarsest": [255, 120]}
    (old / "sdc.json").write_text(json.dumps(told))
    calibrate(Engine(old, dtype="float32"), images, tmp_path / "mine", 0.02, 8, quiet)
    before, after = (EntropyCoder(load_profile(folder, read_manifest(folder)).predictor) for folder in (old, tmp_path / "mine"))
    for index in (120, 121):
        assert (after.sent(index) == before.sent(index)).all() and after.sent(index)[-1] == (index == 120)


def test_what_gains_nothing_is_not_installed(tmp_path: Path, small_model: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100.0, 101.0] * 5)  # before and after, step by step
    monkeypatch.setattr("service.calibration.calibrate.mean_bytes", lambda *_: next(sizes))
    with pytest.raises(BadParameter, match="nothing was gained"):
        calibrate(Engine(small_model, dtype="float32"), images, tmp_path / "mine", 0.01, 8, quiet)
    assert not (tmp_path / "mine").exists()


def test_it_begins_as_the_latents_are_spread() -> None:
    """Before any step: the mean of each channel, and a logistic of its deviation."""
    latents = correlated(4) * np.array([1, 2, 3, 4], np.float32)[:, None, None] + 5
    context = ContextModel(*shape_for(4))
    _start_at(context, latents)
    for index, item in enumerate(context.in_order):
        mean, log_scale = bias_of(item.out).tolist()
        assert mean == pytest.approx(latents[:, index // 4].mean(), rel=1e-4)
        assert math.exp(log_scale) * math.pi / math.sqrt(3) == pytest.approx(latents[:, index // 4].std(), rel=0.01)
