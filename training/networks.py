"""The auto-encoder and context model of a run, how crops enter them, and how far what comes out is off.  Knows nothing of stages."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from service.calibration.context import ContextModel
from service.engine.autoencoder import ResidualAutoencoder
from training import machine
from training.config import Config


def build(config: Config) -> tuple[ResidualAutoencoder, ContextModel]:
    torch.manual_seed(config.seed)
    shape = config.autoencoder
    vae = ResidualAutoencoder(
        in_channels=3 * config.patch_factor**2,
        latent_channels=shape.latent_channels,
        block_out_channels=tuple(shape.block_out_channels),
        encoder_layers=tuple(shape.encoder_layers),
        decoder_layers=tuple(shape.decoder_layers),
        linear=shape.linear,
    )
    coded = config.context
    context = ContextModel(coded.group_sizes, coded.hidden, coded.windows)
    return vae.to(machine.device(), memory_format=torch.channels_last), context.to(machine.device())


def as_input(crops: torch.Tensor) -> torch.Tensor:
    """uint8 crops to float32 in -1..1, on the device."""
    return crops.to(machine.device()).float() / 127.5 - 1


def encode(vae: ResidualAutoencoder, pixels: torch.Tensor, config: Config) -> torch.Tensor:
    """(N, 3, S, S) in -1..1 to raw latents (N, C, S/16, S/16), float32."""
    with machine.mixed():
        return vae.encode(F.pixel_unshuffle(pixels, config.patch_factor)).latent.float()


def decode(vae: ResidualAutoencoder, latent: torch.Tensor, config: Config) -> torch.Tensor:
    """Raw latents to (N, 3, S, S), nominally in -1..1."""
    with machine.mixed():
        return F.pixel_shuffle(vae.decode(latent).sample, config.patch_factor)


def squared_error(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean over each picture, in levels 0..255 squared, (N,); both in -1..1."""
    return (decoded.float() - pixels).square().mean((1, 2, 3)) * 127.5**2


def psnr(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """dB, (N,)."""
    return 10 * torch.log10(255**2 / squared_error(decoded, pixels))
