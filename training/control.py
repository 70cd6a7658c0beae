"""Does the U-Net pay its way?  It, and one more residual block of the decoder, which costs about as much, trained alike and compared.

Everything else is finished and stays as it is; both begin as what changes nothing, see the same crops, and are trained equally long.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from service.comparison.features import FeatureDistance
from service.engine.autoencoder import ResidualAutoencoder, ResidualBlock
from training import machine, unet
from training.config import Config
from training.data import Pictures
from training.latents import finished_vae
from training.loop import Progress
from training.losses import Distortion
from training.networks import as_input, psnr
from training.ssimulacra import ssimulacra2

Render = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
"""the module that is trained, quantised latents (N, C, h, w) and indices of their steps (N,) to pictures"""


def block_of(vae: ResidualAutoencoder) -> ResidualBlock:
    """A residual block for the decoder's coarsest scale that passes on what it gets."""
    torch.manual_seed(0)
    block = ResidualBlock(vae.config.block_out_channels[-1])
    nn.init.zeros_(block.conv2.weight)
    return block.to(machine.device(), memory_format=torch.channels_last)


def with_block(vae: ResidualAutoencoder, renderer: unet.Renderer) -> Render:
    """A decoder with one more block behind those of the coarsest scale."""
    layers = list(vae.decoder)
    behind = 1 + vae.config.decoder_layers[-1]

    def render(block: nn.Module, sent: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        vae.decoder = nn.Sequential(*layers[:behind], block, *layers[behind:])
        try:
            return renderer.decode(vae, sent)
        finally:
            vae.decoder = nn.Sequential(*layers)

    return render


def with_unet(vae: ResidualAutoencoder, renderer: unet.Renderer) -> Render:
    """What the service does with ``steps=1``."""
    return lambda network, sent, which: renderer.decode(vae, renderer.restore(network, sent, which))


def compare(config: Config, images: list[Path], folder: Path) -> None:
    """Train both for the minutes of the U-Net's stage, each, and log figures of held-out crops with neither, and with each."""
    first = finished_vae(config, folder)
    vae = first.averaged["vae"]
    assert isinstance(vae, ResidualAutoencoder)
    renderer = unet.Renderer.of(config, folder)
    pictures = Pictures(images, config.data, validation=False)
    held_out = Pictures(images, config.data, validation=True).centre_crops(48)
    judge = FeatureDistance("lite2").to(machine.device(), memory_format=torch.channels_last)
    distortion = Distortion(config.loss)
    ways = {"control_unet": (unet.build(config), with_unet(vae, renderer)), "control_block": (block_of(vae), with_block(vae, renderer))}
    for name, (module, render) in ways.items():
        progress = Progress(name, {name: module}, config.unet_stage, folder, muon=(name,), of=first.step)
        progress.log(
            parameters=sum(p.numel() for p in module.parameters()),
            validation=evaluate(progress.averaged[name], render, vae, renderer, judge, held_out),
        )
        batches = pictures.batches(config.unet_stage.batch, config.seed + 200 + progress.step)
        torch.manual_seed(config.seed + progress.step)
        while progress.fraction < 1:
            pixels = as_input(next(batches))
            which = torch.randint(len(renderer.steps), (len(pixels),), device=machine.device())
            with machine.mixed():
                decoded = render(progress.modules[name], renderer.send(vae, pixels, which), which)
            loss, parts = distortion(decoded, pixels, renderer.steps[which] * renderer.scale)
            progress.update(loss)
            progress.note(**parts, loss=loss.detach())
        progress.save()
        progress.log(validation=evaluate(progress.averaged[name], render, vae, renderer, judge, held_out))


@torch.no_grad()
def evaluate(
    module: nn.Module,
    render: Render,
    vae: ResidualAutoencoder,
    renderer: unet.Renderer,
    judge: FeatureDistance,
    crops: torch.Tensor,
) -> list[dict[str, float]]:
    """Means at four raw steps: PSNR (dB), SSIMULACRA2 as in the loss, feature distance of the network that judges."""
    figures = []
    for raw in unet.EVALUATED_STEPS:
        totals = torch.zeros(3)
        for part in crops.split(8):
            pixels, which = as_input(part), renderer.nearest(raw, len(part))
            sent = renderer.send(vae, pixels, which)
            with machine.mixed():
                decoded = render(module, sent, which).float().clamp(-1, 1)
                feature = judge(decoded, pixels)
            totals += torch.stack([psnr(decoded, pixels), ssimulacra2(pixels, decoded, finest=1), feature]).sum(1).cpu()
        means = [round(value, 4) for value in (totals / len(crops)).tolist()]
        figures.append({"step": raw, **dict(zip(("psnr", "ssimulacra2", "feature"), means, strict=True))})
    return figures
