"""Stage 2: the context model alone, in fp32, on the finished auto-encoder's latents and at the shipped steps."""

from __future__ import annotations

from pathlib import Path

import torch

from service.calibration.context import ContextModel, keep_most_used, rescale
from service.codec.steps import step_size
from service.engine.autoencoder import ResidualAutoencoder
from training import machine
from training.config import Config
from training.data import Pictures
from training.latents import finished_vae, random_latents, shipped_steps
from training.loop import Progress


def _shipped(config: Config) -> ContextModel:
    shape = config.context
    return ContextModel(shape.group_sizes, shape.shipped_hidden, shape.windows).to(machine.device())


def load(config: Config, folder: Path) -> tuple[ContextModel, float]:
    """The finished context model and the latent's scale."""
    state = torch.load(folder / "scale.pt", weights_only=True)
    progress = Progress("context", {"context": _shipped(config)}, config.context_stage, folder, of=finished_vae(config, folder).step)
    if progress.step == 0:
        raise SystemExit(f"{folder} holds no context model: run `python -m training context` first")
    averaged = progress.averaged["context"]
    assert isinstance(averaged, ContextModel)
    return averaged, float(state["scale"])


def train(config: Config, images: list[Path], folder: Path) -> None:
    """Make the context model as narrow as it ships and train it for the configured minutes.

    The bits are those of rounded latents, not of noisy ones.
    """
    first = finished_vae(config, folder)
    vae, finished = first.averaged["vae"], first.averaged["context"]
    assert isinstance(vae, ResidualAutoencoder)
    assert isinstance(finished, ContextModel)
    raw = random_latents(vae, Pictures(images, config.data, validation=False), config.context.crops, config.seed + 1, config)
    # of all latents together: divides them in the shipped model, so that one step fits all channels
    scale = float(raw.std())
    latents = raw / scale
    context = _shipped(config)
    keep_most_used(context, finished)
    rescale(context, scale)
    progress = Progress("context", {"context": context}, config.context_stage, folder, of=first.step)
    torch.save({"scale": torch.tensor(scale)}, folder / "scale.pt")
    steps = torch.tensor([step_size(index) for index in shipped_steps(config, scale)])
    pixels = config.data.crop**2
    generator = torch.Generator().manual_seed(config.seed + progress.step)
    while progress.fraction < 1:
        chosen = torch.randint(len(latents), (config.context_stage.batch,), generator=generator)
        step = steps[torch.randint(len(steps), (len(chosen),), generator=generator)].to(machine.device())
        width = step.view(-1, 1, 1, 1)
        known = torch.round(latents[chosen].to(machine.device()) / width) * width
        bpp = context(known, known, step) / pixels
        # in proportion: a coarse picture's bits count as much as a fine one's
        loss = (bpp / (bpp.detach() + 0.02)).mean()
        progress.update(loss)
        progress.note(bpp=bpp.detach().mean())
    progress.save()
