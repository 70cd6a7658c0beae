"""The last layers by least squares: against the definition, and as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

from service.codec.codec import Codec
from service.engine.autoencoder import ResidualAutoencoder
from service.engine.engine import Engine
from service.manifest import read_manifest
from tests.conftest import Plane, build_model
from tests.training.test_stages import small
from training.__main__ import app
from training.refit import LeastSquares, refit_last_layers, visibility


@pytest.mark.parametrize(("shared", "own"), [(3, 2), (0, 2), (3, 0)])
def test_the_solution_is_that_of_weighted_least_squares(shared: int, own: int) -> None:
    """Against one large problem, in which each of the small ones has columns of its own."""
    rng, problems, rows, outputs = np.random.default_rng(0), 2, 50, 3
    inputs, weights = rng.normal(size=(problems, rows, shared + own)), rng.uniform(0.1, 2, (problems, rows, 1))
    targets = rng.normal(size=(problems, rows, outputs))
    sums = LeastSquares(problems, shared, own, outputs)
    for part in (slice(0, 20), slice(20, rows)):
        sums.add(*(torch.from_numpy(block[:, part]).float() for block in (inputs, targets, weights)))
    large = np.zeros((problems * rows, shared + problems * own))
    for problem in range(problems):
        here = slice(problem * rows, (problem + 1) * rows)
        large[here, :shared] = inputs[problem, :, :shared]
        large[here, shared + problem * own : shared + (problem + 1) * own] = inputs[problem, :, shared:]
    root = np.sqrt(weights.reshape(-1, 1))
    expected = np.linalg.lstsq(large * root, targets.reshape(-1, outputs) * root, rcond=None)[0]
    for_all, for_each = sums.solve()
    assert for_all.numpy() == pytest.approx(expected[:shared], abs=1e-4)
    assert for_each.numpy() == pytest.approx(expected[shared:].reshape(problems, own, outputs), abs=1e-4)


def test_an_input_that_never_occurs_gets_no_weight() -> None:
    sums = LeastSquares(1, 2, 2, 1)
    inputs = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0))
    inputs[:, :, [1, 3]] = 0
    sums.add(inputs, inputs[:, :, :1] * 2 - inputs[:, :, 2:3], torch.ones(1, 30, 1))
    shared, own = sums.solve()
    assert torch.cat([shared, own[0]]).flatten().tolist() == pytest.approx([2, 0, -1, 0], abs=1e-4)


def test_an_error_weighs_most_on_flat_ground() -> None:
    flat, busy = torch.zeros(1, 48, 8, 8), torch.rand(1, 48, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert visibility(flat, 30, 0.1) == pytest.approx(torch.full((1, 1, 8, 8), 1.1))
    assert visibility(busy, 30, 0.1).max() < 0.12
    edge = flat.clone()
    edge[..., 4:] = busy[..., 4:]
    assert visibility(edge, 30, 0.1)[0, 0, 4, 2] == pytest.approx(1.1)
    assert visibility(edge, 30, 0.1)[0, 0, 4, 3] < 0.12, "beside texture an error is hidden too"


@torch.no_grad()
def test_weights_that_were_disturbed_are_found_again() -> None:
    """Where the targets are what the network once gave, the least error is none."""
    torch.manual_seed(0)
    vae = ResidualAutoencoder(48, 6, (8, 12, 16), (1, 1, 1), (1, 1, 1), linear=True)
    assert vae.linear_decoder is not None
    vae.linear_decoder.weight.normal_(std=0.1)
    latents = torch.randn(4, 8, 6, 8, 8)
    samples = [(latent, vae.decode(latent).sample, torch.rand(8, 1, 32, 32) + 0.1) for latent in latents]
    for layer in (vae.decoder[-1], vae.linear_decoder):
        layer.weight.add_(0.3 * torch.randn_like(layer.weight))

    def worst() -> float:
        return max(float((vae.decode(latent).sample - patches).abs().max()) for latent, patches, _ in samples)

    before = worst()
    refit_last_layers(vae, iter(samples), share=0.5)
    assert worst() == pytest.approx(before / 2, rel=0.02)
    refit_last_layers(vae, iter(samples))
    assert worst() < 0.01 * before


def model(folder: Path, linear: bool) -> Path:
    """Of random weights, with latents that are large beside the steps of the training: something to decode from."""
    build_model(folder, name="mine")
    torch.manual_seed(1)
    vae = ResidualAutoencoder(48, 4, (8, 8), (1, 1), (1, 1), linear=linear)
    last = vae.encoder[-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(300)
    vae.half().save_pretrained(folder / "vae")
    return folder


def squared_error(folder: Path, pixels: Plane) -> float:
    """Of a picture, its latent quantised with a step of 1 before normalisation."""
    vae = ResidualAutoencoder.from_pretrained(folder / "vae", torch_dtype=torch.float32, low_cpu_mem_usage=False)
    picture = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        decoded = F.pixel_shuffle(vae.decode(vae.encode(F.pixel_unshuffle(picture, 4)).latent.round()).sample, 4)
    return float((decoded - picture).square().mean())


@pytest.mark.parametrize("linear", [True, False])
def test_the_command(photos: dict[str, Plane], tmp_path: Path, linear: bool) -> None:
    start, out, config = model(tmp_path / "start", linear), tmp_path / "out", small(tmp_path, 0.01)
    (tmp_path / "photos").mkdir()
    for name, pixels in photos.items():
        Image.fromarray(pixels[:280, :300]).save(tmp_path / "photos" / f"{name}.png")
    given = ["refit", "--images", str(tmp_path / "photos"), "--config", str(config), "--start", str(start), "--model", str(out)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    crop = photos["astronaut"][:256, :256]
    assert squared_error(out, crop) < 0.8 * squared_error(start, crop)
    before, after = (Engine(folder, dtype="float32") for folder in (start, out))
    assert (before.encode(crop[None]) == after.encode(crop[None])).all()
    assert (before.manifest.decoder_revision, after.manifest.decoder_revision) == (1, 2)
    assert after.decoder_name == f"{before.decoder_name}r2", "renders get new entity tags"
    codecs = [Codec(folder, read_manifest(folder)) for folder in (start, out)]
    assert len({(codec.code_identity, codec.model_identity) for codec in codecs}) == 1, "and files stay as they are"
    assert json.loads((out / "sdc.json").read_text()) == json.loads((start / "sdc.json").read_text()) | {"decoder_revision": 2}
    as_new = (tmp_path / "small.toml").stat().st_mode
    assert {path.stat().st_mode for path in out.rglob("*.safetensors")} == {as_new}, "another user may serve it"
    again = CliRunner().invoke(app, given)
    assert again.exit_code == 1 and "is there already" in str(again.output) + str(again.exception)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["refit", "--images", str(tmp_path), "--start", str(tmp_path), "--model", str(tmp_path / "out")])
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
