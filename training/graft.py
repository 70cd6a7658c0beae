"""Give new latent channels a linear code of what a finished auto-encoder leaves out, so that training need not find it."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch.nn import functional as F

from service.engine.autoencoder import ResidualAutoencoder
from training import machine
from training.config import Config
from training.data import Pictures
from training.networks import as_input, decode, encode


@torch.no_grad()
def graft(vae: ResidualAutoencoder, count: int, pictures: Pictures, config: Config) -> None:
    """Set the linear way of the last ``count`` channels of ``vae``.

    Reduced-rank regression (Izenman 1975) of the residual on the block of pixels: the ``count`` directions of the residual that a
    linear map of the block predicts best.  A crop counts by how much its residual is reduced in proportion, as in decibels: what
    smooth pictures lack is not drowned by what busy ones do.  Scaled so that the step they are quantised with is the one that pays at
    high rates, where a halved step costs a bit: ``d rate / d log step = d (mse weight * error) / d log step`` for noise of variance
    step**2 / 12.
    """
    assert vae.linear_encoder is not None
    assert vae.linear_decoder is not None
    block = vae.linear_decoder.out_channels
    both, own = torch.zeros(2, block, block, dtype=torch.float64, device=machine.device())
    rng = random.Random(config.seed + 2)
    channels = vae.config.latent_channels
    for _ in range(0, config.autoencoder.graft_crops, 8):
        pixels = as_input(pictures.random_crops(rng, 8))
        latent = encode(vae, pixels, config)
        latent[:, channels - count :] = 0
        residual = pixels - decode(vae, latent, config).float()
        patches = (F.pixel_unshuffle(each, config.patch_factor) for each in (pixels, residual))
        blocks, left = (F.pixel_unshuffle(each, vae.side).permute(0, 2, 3, 1).reshape(-1, block).double() for each in patches)
        weight = 1 / left.unflatten(0, (len(pixels), -1)).square().mean((1, 2)).repeat_interleave(len(left) // len(pixels))
        weighted = blocks * weight[:, None]
        own += weighted.T @ blocks
        both += left.T @ weighted
    # residual ~ map @ block; its best directions are those of the covariance of what it predicts
    ridge = 1e-6 * own.diagonal().mean() * torch.eye(block, dtype=torch.float64, device=own.device)
    regression = both @ torch.linalg.inv(own + ridge)
    _, directions = torch.linalg.eigh(regression @ own @ regression.T)
    best = directions.flip(1)[:, :count]
    # bits per pixel lost per unit of log step, and squared error (levels) per squared latent error, of one coefficient
    pixels_per_block = block / 3
    bits = 1 / (np.log(2) * pixels_per_block)
    per_square = config.autoencoder.graft_mse * 127.5**2 / block
    scale = float(np.sqrt(per_square * 2 / 12 / bits))
    vae.linear_encoder.weight[channels - count :, :, 0, 0] = (scale * best.T @ regression).float()
    vae.linear_decoder.weight[:, channels - count :, 0, 0] = (best / scale).float()
    # the network's own weights for these channels keep out of the way at first
    last, first = vae.encoder[-1], vae.decoder[0]
    last.weight[channels - count :] *= 0.1
    first.weight[:, channels - count :] *= 0.1
