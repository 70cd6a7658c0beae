"""The article's pipeline, its constants against values worked out by hand."""

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from service.engine import article
from service.engine.engine import Engine
from service.errors import MethodUnavailable
from service.options import CompressOptions, RenderOptions
from service.pipeline import open_pipeline
from service.settings import Settings
from tests.conftest import build_model, make_picture, png


@pytest.fixture
def scheduler(tmp_path: Path) -> diffusers.PNDMScheduler:
    """Of the folder that Stable Diffusion 1.5 has."""
    made = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    made.save_pretrained(tmp_path / "scheduler")
    return article.load_scheduler(tmp_path)


def kept(timestep: int) -> float:
    """Cumulative product of 1 - beta up to a timestep, the square roots of beta being evenly spaced: Stable Diffusion's schedule."""
    product = 1.0
    for index in range(max(timestep, 0) + 1):
        product *= 1 - (math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * index / 999) ** 2
    return product


def moved(sample: float, noise: float, here: int, there: int) -> float:
    """Liu et al. 2022, equation 9."""
    a, b = kept(here), kept(there)
    return math.sqrt(b / a) * sample - (b - a) * noise / (a * math.sqrt(1 - b) + math.sqrt(a * (1 - a) * b))


def test_three_steps_are_walked(scheduler: diffusers.PNDMScheduler) -> None:
    """1000 // 15 = 66 steps; int(66 * 0.04) + 1 = 3 of them; the schedule has one twice, hence 67 timesteps."""
    assert article.enter(scheduler).tolist() == [31, 16, 1]
    assert len(scheduler.timesteps) == 67


@pytest.mark.parametrize("change", [{"prediction_type": "sample"}, {"num_train_timesteps": 10}])
def test_a_model_that_cannot_be_walked_so_says_it(tmp_path: Path, change: dict[str, object]) -> None:
    """At the request, which is for something else then; whatever else the model does it does."""
    folder = build_model(tmp_path / "model", "kl")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    async def journey() -> None:
        settings = Settings(model=folder, store_url="memory:///", dtype="float32", coders=0)
        async with open_pipeline(settings, warm=False) as pipeline:
            made = await pipeline.compress(png(make_picture(32, 48)), CompressOptions())
            assert (await pipeline.render(made.content, RenderOptions("png", 1))).content
            with pytest.raises(MethodUnavailable, match="article's steps are for U-Nets that predict"):
                await pipeline.render(made.content, RenderOptions("png", "article"))

    asyncio.run(journey())


def test_a_latent_by_hand(scheduler: diffusers.PNDMScheduler) -> None:
    asked = []

    def predict(latent: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        asked.append(int(timesteps[0]))
        return 0.5 * latent + timesteps.view(-1, 1, 1, 1) / 100

    for start in (1.0, -0.3):
        first = 0.5 * start + 0.31
        once = moved(start, first, 31, 16)
        second = 0.5 * once + 0.16
        again = moved(start, (first + second) / 2, 31, 16)  # the second call repeats the first step
        third = 0.5 * again + 0.01
        expected = moved(again, (3 * third - first) / 2, 1, -14)  # beyond the end stands the first timestep
        restored = article.restore(scheduler, predict, torch.full((2, 4, 1, 1), start))
        assert restored.flatten().tolist() == pytest.approx([expected] * 8, abs=1e-5)
    assert asked == [31, 16, 1] * 2


def test_nothing_is_scaled_or_clamped_on_the_way(model_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model_of("kl"), dtype="float32")
    seen = []
    real = engine._networks.predict
    monkeypatch.setattr(engine._networks, "predict", lambda noisy, t: (seen.append(noisy.clone()), real(noisy, t))[1])
    sent = np.random.default_rng(0).normal(size=(2, 4, 6, 5)).astype(np.float32)
    restored = engine.restore(sent, np.full(2, 0.01, np.float32), "article")
    assert restored.shape == sent.shape
    assert (seen[0][:, :, :, :5].numpy() == sent).all()
    assert np.abs(restored - sent).max() > 0.006  # further than the cell of that step


def test_the_sample_is_that_of_seed_0_for_each_item(model_of: Callable[[str], Path]) -> None:
    """As ``latent_dist.sample`` gives it to a batch of one with the processor's generator."""
    engine = Engine(model_of("kl"), dtype="float32")
    pixels = np.stack([make_picture(32, 48, seed) for seed in range(3)])
    sampled, mode = engine.encode(pixels, sampled=True), engine.encode(pixels)
    vae = engine._networks._vae
    for index in range(3):
        alone = torch.from_numpy(pixels[index : index + 1]).permute(0, 3, 1, 2) / 127.5 - 1
        distribution = vae.encode(alone).latent_dist
        expected = distribution.sample(torch.Generator("cpu").manual_seed(0)) / 0.3
        assert sampled[index] == pytest.approx(expected[0].numpy(), abs=1e-4)
    assert np.abs(sampled - mode).max() > 0.1


def test_without_a_distribution_the_sample_is_the_latent(model_of: Callable[[str], Path]) -> None:
    engine = Engine(model_of("tiny"), dtype="float32")
    pixels = make_picture(32, 48)[None]
    assert (engine.encode(pixels, sampled=True) == engine.encode(pixels)).all()
