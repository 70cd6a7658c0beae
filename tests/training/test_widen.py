"""More latent channels for a finished model: as a user runs it, and that the finished model's files are read as before."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

from service.calibration.context import ContextModel
from service.calibration.integers import integer_passes
from service.codec import container
from service.codec.codec import Codec, Frame
from service.codec.steps import nearest_step
from service.codec.tables import logistic_counts
from service.engine.autoencoder import ResidualAutoencoder
from service.engine.engine import Engine
from service.manifest import read_manifest
from tests.conftest import Plane, build_model, psnr
from tests.training.test_stages import save_photos, small
from training import config as configuration
from training.__main__ import DEFAULT_CONFIG, app

SIDE = 256
CONFIG, SCALE = configuration.load(DEFAULT_CONFIG), 2.72384
COARSEST = nearest_step(CONFIG.widen.coarsest / SCALE)


def finished(folder: Path) -> Path:
    """A model of random weights with a context profile, whose latents are large beside the steps of the training."""
    build_model(folder, name="mine")
    torch.manual_seed(1)
    vae = ResidualAutoencoder(48, 4, (8, 12, 16), (1, 1, 1), (1, 1, 1), linear=True)
    with torch.no_grad():
        for parameter in vae.encoder[-1].parameters():
            parameter.mul_(100)
    vae.half().save_pretrained(folder / "vae")
    save_file(integer_passes(ContextModel([2, 2], [8, 8], [5, 3])) | {"counts": logistic_counts()}, folder / "entropy.safetensors")
    changes = {"downscale": 16, "latent_std": [SCALE] * 4, "entropy": {"kind": "context", "file": "entropy.safetensors"}}
    (folder / "sdc.json").write_text(json.dumps(json.loads((folder / "sdc.json").read_text()) | changes))
    return folder


def run(start: Path, folder: Path, photos: dict[str, Plane], groups: str = "[2, 2, 6]") -> tuple[int, str]:
    images, config = save_photos(photos, folder / "photos"), small(folder, 0.02)
    text = (
        config.read_text().replace("latent_channels = 6", "latent_channels = 10").replace("group_sizes = [2, 4]", f"group_sizes = {groups}")
    )
    config.write_text(text.replace("[5, 3]", "[5, 3, 1]").replace("[8, 6]", "[8, 8, 8]").replace("[8, 4]", "[8, 8, 8]"))
    given = ["--images", str(images), "--config", str(config), "--out", str(folder / "run")]
    result = CliRunner().invoke(app, ["widen", *given, "--start", str(start), "--model", str(folder / "wide")])
    return result.exit_code, f"{result.output}{result.exception or ''}"


@pytest.fixture(scope="module")
def models(photos: dict[str, Plane], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("widen")
    start = finished(folder / "start")
    code, output = run(start, folder, photos)
    assert code == 0, output
    return start, folder / "wide"


def shown(folder: Path, pixels: Plane, index: int) -> tuple[int, Plane]:
    """Bytes of a picture at a step, and what is seen of it."""
    engine, codec = Engine(folder, dtype="float32"), Codec(folder, read_manifest(folder))
    blob = codec.encode(engine.encode(pixels[None])[0], Frame(SIDE, SIDE), index)
    return len(container.write(blob)), engine.decode(codec.decode(blob)[None])[0]


def test_fine_steps_show_more(models: tuple[Path, Path], photos: dict[str, Plane]) -> None:
    crop = photos["astronaut"][:SIDE, :SIDE]
    (_, before), (_, after) = (shown(folder, crop, 72) for folder in models)
    assert psnr(crop, after) > psnr(crop, before) + 1


def test_coarse_steps_cost_what_they_did(models: tuple[Path, Path], photos: dict[str, Plane]) -> None:
    crop = photos["astronaut"][:SIDE, :SIDE]
    (few, _), (same, _) = (shown(folder, crop, COARSEST + 1) for folder in models)
    (before, _), (more, _) = (shown(folder, crop, COARSEST) for folder in models)
    assert same == few and more > before


def test_files_of_the_finished_model_are_read(models: tuple[Path, Path], photos: dict[str, Plane]) -> None:
    start, wide = (Codec(folder, read_manifest(folder)) for folder in models)
    latent = Engine(models[0], dtype="float32").encode(photos["astronaut"][None, :SIDE, :SIDE])[0]
    for seed in (None, 7):
        blob = start.encode(latent, Frame(SIDE, SIDE, seed=seed), 90)
        kept, again = start.decode(blob), wide.decode(blob)
        assert (again[:4] == kept).all() and not again[4:].any()
        assert wide.encode(np.pad(latent, ((0, 6), (0, 0), (0, 0))), Frame(SIDE, SIDE, seed=seed), 90).code_identity != blob.code_identity
    assert wide.reads == {start.model_identity: "mine-1", wide.model_identity: f"mine-{CONFIG.version}"}


def test_nothing_says_where_the_finished_model_lay(models: tuple[Path, Path]) -> None:
    assert not [path for path in models[1].rglob("*.json") if str(models[0]) in path.read_text()]


def test_the_unet_leaves_the_new_channels_alone(models: tuple[Path, Path]) -> None:
    old, new = (Engine(folder, dtype="float32") for folder in models)
    latent = np.random.default_rng(0).normal(size=(1, 10, 16, 16)).astype(np.float32)
    step = np.array([0.9], np.float32)
    cleaned = new.restore(latent, step, 1)
    assert cleaned[:, :4] == pytest.approx(old.restore(latent[:, :4], step, 1), abs=2e-3)
    assert cleaned[:, 4:] == pytest.approx(latent[:, 4:], abs=1e-5)
    assert np.abs(cleaned[:, :4] - latent[:, :4]).max() > 0.01


def test_who_cannot_be_widened(models: tuple[Path, Path], photos: dict[str, Plane], tmp_path: Path) -> None:
    code, output = run(models[1], tmp_path, photos)
    assert code == 1 and "cannot be widened" in output
    code, output = run(models[0], tmp_path, photos, "[2, 3, 5]")
    assert code == 1 and "the groups of" in output and "and one more of 6" in output
    assert not (tmp_path / "wide").exists()
    code, output = run(models[0], models[1].parent, photos)
    assert code == 1 and "is there already" in output
