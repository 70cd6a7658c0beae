"""All stages on a few pictures for a few seconds: what comes out must be a model folder that the service takes."""

import asyncio
import io
import json
import random
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from service.calibration.context import ContextModel
from service.calibration.integers import float_context, integer_passes
from service.engine.autoencoder import ResidualAutoencoder
from service.options import CompressOptions, RenderOptions
from service.pipeline import open_pipeline
from service.settings import BUNDLED_MODEL, Settings
from tests.conftest import Plane, png, psnr
from training import config as configuration
from training import context_stage
from training.__main__ import DEFAULT_CONFIG, app
from training.data import Pictures, is_validation, write_held_out
from training.export import shrinking
from training.graphics import decorate
from training.loop import Progress
from training.losses import structure_distance
from training.networks import build
from training.start import start_from


def small(folder: Path, minutes: float) -> Path:
    """The shipped configuration, shrunk."""
    changes = {
        "latent_channels": "6", "block_out_channels": "[8, 12, 16]", "encoder_layers": "[1, 1, 1]", "decoder_layers": "[1, 1, 1]",
        "group_sizes": "[2, 4]", "windows": "[5, 3]", "hidden": "[8, 6]", "shipped_hidden": "[8, 4]", "coarsest_steps": "[inf, 2.5]",
        "smallest_step": "0.3", "largest_step": "8.0",
        "crops": "32", "graft_crops": "32", "table_crops": "32", "batch": "4",
        "minutes": str(minutes),
        "warmup_steps": "1", "largest_downscale": "1.0", "norm_num_groups": "4",
    }  # fmt: skip
    lines = []
    for line in DEFAULT_CONFIG.read_text().replace("block_out_channels = [96, 128]", "block_out_channels = [8, 12] ").splitlines():
        key = line.split(" =")[0]
        keep = key == "block_out_channels" and line.endswith(" ")
        lines.append(f"{key} = {changes[key]}" if key in changes and not keep else line)
    (folder / "small.toml").write_text("\n".join(lines))
    return folder / "small.toml"


def save_photos(photos: dict[str, Plane], folder: Path) -> Path:
    """Sixty small pictures: names decide which are held out, and of so many some are."""
    folder.mkdir(exist_ok=True)
    for index in range(60):
        pixels = list(photos.values())[index % len(photos)]
        Image.fromarray(pixels[:280, :300]).save(folder / f"{index}.png")
    return folder


def test_held_out_pictures_are_those_that_are_not_trained_on(photos: dict[str, Plane], tmp_path: Path) -> None:
    folder, out = save_photos(photos, tmp_path / "photos"), tmp_path / "kept"
    config = configuration.load(DEFAULT_CONFIG)
    done = CliRunner().invoke(app, ["held-out", "--images", str(folder), "--out", str(out)])
    kept = {path.name for path in out.iterdir()}
    assert done.exit_code == 0 and f"{len(kept)} pictures" in done.output
    trained = Pictures([folder], config.data, validation=False).pictures
    assert 0 < len(kept) == 60 - len(trained)
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in kept)
    again = CliRunner().invoke(app, ["held-out", "--images", str(folder), "--out", str(out)])
    assert again.exit_code != 0 and "is there already" in str(again.exception)


def test_where_no_picture_is_held_out_it_is_said(photos: dict[str, Plane], tmp_path: Path) -> None:
    folder = save_photos(photos, tmp_path / "photos")
    for name in sorted(path.name for path in folder.iterdir()):
        if is_validation(name, 2):
            (folder / name).unlink()
    done = CliRunner().invoke(app, ["held-out", "--images", str(folder), "--out", str(tmp_path / "kept")])
    assert done.exit_code != 0 and "none of" in str(done.exception) and not (tmp_path / "kept").exists()


def test_pictures_of_equal_name_are_all_read_and_held_out_together(photos: dict[str, Plane], tmp_path: Path) -> None:
    shops, config = [tmp_path / shop for shop in ("shoes", "bags")], configuration.load(DEFAULT_CONFIG).data
    for shop, photo in zip(shops, photos.values(), strict=False):
        save_photos({shop.name: photo}, shop)
    with tarfile.open(tmp_path / "hats.tar", "w") as tar:
        for shop in shops:
            tar.add(shop, shop.name)
    sources = [*shops, tmp_path / "hats.tar"]
    trained = Pictures(sources, config, validation=False).pictures
    assert len(trained) == 4 * len(Pictures(shops[:1], config, validation=False).pictures)
    assert write_held_out(sources, config.validation_percent, tmp_path / "kept") == 240 - len(trained)
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    names = [f"{index}" for index in range(60) if is_validation(f"{index}.png", config.validation_percent)]
    assert kept == sorted(f"{name}{number}.png" for name in names for number in ("", "-2", "-3", "-4"))
    assert len({(tmp_path / "kept" / name).read_bytes() for name in kept}) == 2


def test_pictures_are_read_as_the_service_reads_them(tmp_path: Path, photo: Plane) -> None:
    config, turned = configuration.load(DEFAULT_CONFIG).data, Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photo[:300, :400]).save(tmp_path / "turned.jpg", exif=turned, quality=95)
    hidden = np.dstack([np.full((300, 400, 3), (255, 0, 255), np.uint8), np.zeros((300, 400), np.uint8)])
    hidden[:, 200:] = (10, 200, 10, 255)
    Image.fromarray(hidden).save(tmp_path / "cut-out.png")
    Image.fromarray((np.arange(300 * 400).reshape(300, 400) % 65536).astype(np.uint16)).save(tmp_path / "grey.tif")
    (tmp_path / "._turned.jpg").write_bytes(b"what macOS leaves")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "album.jpg").mkdir()
    with tarfile.open(tmp_path / "more.tar", "w") as tar:
        for name in ("turned.jpg", "._turned.jpg", "broken.jpg", "album.jpg"):
            tar.add(tmp_path / name, name)
    for sources, count in (([tmp_path], 3), ([tmp_path / "more.tar"], 1)):
        pictures = Pictures(sources, config, validation=False).pictures
        assert len(pictures) == count
        assert sorted(picture.size for picture in pictures)[0] == (300, 400)
        assert all((np.asarray(picture) != (255, 0, 255)).any(-1).all() for picture in pictures)


def test_too_few_pictures_are_told(photos: dict[str, Plane], tmp_path: Path) -> None:
    config = configuration.load(DEFAULT_CONFIG).data
    Image.fromarray(next(iter(photos.values()))[:280, :300]).save(tmp_path / "1.png")
    assert not is_validation("1.png", config.validation_percent)
    with pytest.raises(SystemExit, match=r"none of 0 pictures held out .* has 256 pixels"):
        Pictures([tmp_path], config, validation=True)
    Image.new("RGB", (200, 300)).save(tmp_path / "1.png")
    with pytest.raises(SystemExit, match="none of 1 pictures to train on has 256 pixels"):
        Pictures([tmp_path], config, validation=False)


@pytest.fixture
def images(photos: dict[str, Plane], tmp_path: Path) -> Path:
    return save_photos(photos, tmp_path / "photos")


def test_what_is_behind_an_auto_encoder_that_was_trained_on_is_not_taken_for_its_own(images: Path, tmp_path: Path) -> None:
    run, short = tmp_path / "run", small(tmp_path, 0.002)
    common = ["--images", str(images), "--out", str(run), "--config"]
    for stage in ("vae", "context"):
        assert CliRunner().invoke(app, [stage, *common, str(short)]).exit_code == 0
    scale = (run / "scale.pt").read_bytes()
    more = torch.load(run / "vae.pt", weights_only=True)["trained_s"] / 60 + 0.001  # one step at least, however slow the first was
    assert CliRunner().invoke(app, ["vae", *common, str(small(tmp_path, more))]).exit_code == 0
    done = CliRunner().invoke(app, ["context", *common, str(short)])
    assert done.exit_code != 0 and "context.pt was trained on an auto-encoder of" in str(done.exception)
    assert (run / "scale.pt").read_bytes() == scale


def test_the_stages_end_in_a_model_the_service_takes(images: Path, tmp_path: Path, photo: Plane) -> None:
    config, run, model = small(tmp_path, 0.02), tmp_path / "run", tmp_path / "model"
    common = ["--images", str(images), "--out", str(run), "--config", str(config)]
    for stage in ("vae", "context", "control", "unet"):
        result = CliRunner().invoke(app, [stage, *common])
        assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["export", *common, "--model", str(model)])
    assert result.exit_code == 0, result.output
    validation = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if "validation" in line]
    assert {line["stage"] for line in validation} == {"vae", "control_unet", "control_block", "unet"}
    before, after = ([line["validation"] for line in validation if line["stage"].startswith("control")][half::2] for half in (0, 1))
    assert before[0] == before[1], "both begin as what changes nothing"
    assert after[0] != before[0] != after[1]

    async def journey() -> tuple[int, np.ndarray]:
        async with open_pipeline(Settings(model=model, dtype="float32")) as pipeline:
            blob = (await pipeline.compress(png(photo), CompressOptions(quality=50))).content
            rendered = await pipeline.render(blob, RenderOptions("png"))
            return len(blob), np.asarray(Image.open(io.BytesIO(rendered.content)))

    size, shown = asyncio.run(journey())
    assert shown.shape == photo.shape
    assert size > 100
    assert psnr(photo, shown) > 8  # seconds of training: a picture of about the right brightness

    # and on from there: the finished folder is where fine-tuning begins
    result = CliRunner().invoke(app, ["vae", *common[:2], "--out", str(tmp_path / "more"), *common[4:], "--start", str(model)])
    assert result.exit_code == 0, result.output


def test_a_resumed_context_stage_logs_the_bits_of_the_steps_it_has_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, last = configuration.load(small(tmp_path, 1)), [0]
    vae, context = build(config)
    latents = torch.randn(8, config.autoencoder.latent_channels, 16, 16)
    monkeypatch.setattr(context_stage, "Pictures", lambda *_, **__: None)
    monkeypatch.setattr(context_stage, "finished_vae", lambda *_: SimpleNamespace(step=1, averaged={"vae": vae, "context": context}))
    monkeypatch.setattr(context_stage, "random_latents", lambda *_: latents)
    monkeypatch.setattr(Progress, "fraction", property(lambda progress: float(progress.step >= last[0])))
    for stop in (150, 350):
        last[0] = stop
        context_stage.train(config, [], tmp_path)
    first, *others = [json.loads(line)["bpp"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert others and others == pytest.approx([first] * len(others), rel=0.15)


def test_fine_tuning_begins_with_the_finished_model() -> None:
    config = configuration.load(DEFAULT_CONFIG)
    manifest = json.loads((BUNDLED_MODEL / "sdc.json").read_text())
    assert shrinking(config, manifest["latent_std"][0]) == manifest["scaling"]
    vae = ResidualAutoencoder.from_pretrained(BUNDLED_MODEL / "vae", torch_dtype=torch.float32, low_cpu_mem_usage=False)
    mine, context = build(config)
    start_from(BUNDLED_MODEL, mine, context)
    patches = torch.rand(1, 48, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(mine.encode(patches).latent, vae.encode(patches).latent)
    profile = load_file(BUNDLED_MODEL / "entropy.safetensors")
    scale = manifest["latent_std"][0]
    known = torch.from_numpy(np.random.default_rng(0).laplace(size=(1, manifest["latent_channels"], 8, 8)).astype(np.float32))
    with torch.no_grad():
        normalised = float_context(profile)(known, known, torch.tensor([0.5]))
        raw = context(known * scale, known * scale, torch.tensor([0.5 * scale]))
    torch.testing.assert_close(normalised, raw, rtol=1e-2, atol=0.1)  # the clamps of the logistic are not rescaled


def test_more_channels_begin_beside_the_old_ones(small_model: Path) -> None:
    old = ResidualAutoencoder.from_pretrained(small_model / "vae", torch_dtype=torch.float32, low_cpu_mem_usage=False)
    channels = old.config.latent_channels
    wide = ResidualAutoencoder(**{**old.config, "latent_channels": channels + 3})
    context = ContextModel([channels + 3], [4], [5])
    start_from(small_model, wide, context)
    patches = torch.rand(1, 48, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(wide.encode(patches).latent[:, :channels], old.encode(patches).latent)
        assert wide.encode(patches).latent[:, channels:].std() > 0


def test_more_blocks_begin_as_what_was_there(small_model: Path) -> None:
    finished = ResidualAutoencoder.from_pretrained(small_model / "vae")
    deeper = ResidualAutoencoder(48, 4, (8, 8), (2, 1), (1, 3))
    context = ContextModel([4], [8], [5])
    assert start_from(small_model, deeper, context) == 0
    patches = torch.randn(1, 48, 8, 8)
    with torch.inference_mode():
        latent = finished.encode(patches).latent
        assert deeper.encode(patches).latent == pytest.approx(latent, abs=1e-5)
        assert deeper.decode(latent).sample == pytest.approx(finished.decode(latent).sample, abs=1e-5)
    assert sum(p.numel() for p in deeper.parameters()) > sum(p.numel() for p in finished.parameters())


def test_fewer_blocks_are_refused(small_model: Path) -> None:
    shallow = ResidualAutoencoder(48, 4, (8, 8), (1, 1), (0, 1))
    with pytest.raises(SystemExit, match="no place for"):
        start_from(small_model, shallow, ContextModel([4], [8], [5]))


def test_a_folder_that_is_no_model_is_refused_by_name(tmp_path: Path, small_model: Path) -> None:
    vae, context = ResidualAutoencoder(), ContextModel([128], [4], [3])
    with pytest.raises(SystemExit, match=str(tmp_path)):
        start_from(tmp_path, vae, context)
    shutil.copytree(small_model, tmp_path / "other")
    with pytest.raises(SystemExit, match="cannot start"):
        start_from(tmp_path / "other", vae, context)


def test_the_profile_goes_both_ways() -> None:
    torch.manual_seed(3)
    integers = integer_passes(ContextModel([2, 3], [6, 4], [3, 5]))
    again = integer_passes(float_context(integers))
    assert integers.keys() == again.keys()
    for name, values in integers.items():
        assert np.abs(values.astype(np.int64) - again[name]).max() <= 1, name


@pytest.mark.parametrize("path", sorted(DEFAULT_CONFIG.parent.glob("*.toml")), ids=lambda path: path.stem)
def test_configurations_in_the_repository_can_be_built(path: Path) -> None:
    config = configuration.load(path)
    _, context = build(config)
    assert sum(context.group_sizes) == config.autoencoder.latent_channels


def test_structure_distance(photos: dict[str, Plane]) -> None:
    rng = np.random.default_rng(0)
    pair = torch.stack([torch.from_numpy(photos[name][:256, :256].copy()).permute(2, 0, 1) for name in ("coffee", "rocket")]) / 127.5 - 1
    noisy = pair + torch.from_numpy(rng.normal(0, 0.1, pair.shape).astype(np.float32))
    noisier = pair + torch.from_numpy(rng.normal(0, 0.4, pair.shape).astype(np.float32))
    assert structure_distance(pair, pair).abs().max() < 1e-5
    assert (structure_distance(noisy, pair) < structure_distance(noisier, pair)).all()
    assert structure_distance(noisier, pair).shape == (2,)


def test_lettering_is_drawn_the_same_for_the_same_seed(photo: Plane) -> None:
    picture = Image.fromarray(photo[:256, :256])
    drawn = [[np.asarray(decorate(picture, random.Random(seed))) for seed in range(8)] for _ in range(2)]
    assert all((one == other).all() for one, other in zip(*drawn, strict=True))
    assert all(one.shape == (256, 256, 3) for one in drawn[0])
    assert sum((one != photo[:256, :256]).any() for one in drawn[0]) >= 6
