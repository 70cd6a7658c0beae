"""Stable Diffusion 1.5 at full size with random weights: speed does not depend on the values, and the real ones are not shipped.

A model folder like any other.  Its latent statistics are measured on photographs, channel by channel, because nobody trained it to the
scaling factor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service.engine.network import EMPTY_PROMPT  # before diffusers, which the engine imports without what is not used of it

# isort: split
import diffusers
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

CHANNELS, DOWNSCALE, TOKENS, WIDTH = 4, 8, 77, 768
SEED = 0


def vae() -> diffusers.AutoencoderKL:
    """As ``vae/config.json`` of Stable Diffusion 1.5 has it, 84 M parameters."""
    torch.manual_seed(SEED)
    return diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=CHANNELS, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, sample_size=512,
    )  # fmt: skip


def unet() -> diffusers.UNet2DConditionModel:
    """As ``unet/config.json`` has it, 860 M parameters."""
    torch.manual_seed(SEED)
    return diffusers.UNet2DConditionModel(
        sample_size=64, in_channels=CHANNELS, out_channels=CHANNELS, cross_attention_dim=WIDTH, attention_head_dim=8,
        block_out_channels=(320, 640, 1280, 1280), layers_per_block=2,
    )  # fmt: skip


def manifest(mean: list[float], deviation: list[float]) -> dict[str, Any]:
    """The contents of ``sdc.json``, for a latent with these statistics, channel by channel."""
    return {
        "name": "random-sd15", "version": "1", "patch_factor": 1, "downscale": DOWNSCALE, "latent_channels": CHANNELS,
        "latent_mean": mean, "latent_std": deviation, "rate_points": {"quality_0": 192, "quality_100": 64},
        "tiling": {"untiled_pixels": 1 << 20, "side": 512, "margin": 128},
    }  # fmt: skip


def build(folder: Path, statistics: tuple[list[float], list[float]] | None = None, device: str | torch.device = "cpu") -> Path:
    """Write a model folder in bf16.

    Args:
        folder: made if missing.
        statistics: mean and standard deviation of the latent, channel by channel.
        device: draws the weights, other ones on another; a GPU does in a moment what takes a processor a quarter of a minute.
    """
    with torch.device(device):
        networks = {"vae": vae(), "unet": unet()}
    for name, network in networks.items():
        network.to(torch.bfloat16).save_pretrained(folder / name)
    save_file({"embedding": torch.randn(1, TOKENS, WIDTH)}, folder / EMPTY_PROMPT)
    diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    (folder / "sdc.json").write_text(json.dumps(manifest(*(statistics or ([0.0] * CHANNELS, [1.0] * CHANNELS)))))
    return folder


@torch.inference_mode()
def latents(network: diffusers.AutoencoderKL, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Pictures uint8 (N, H, W, 3) to (N, 4, H / 8, W / 8), the mode, not normalised; in the network's number format, one by one."""
    found = []
    for picture in pixels:
        patches = (torch.from_numpy(picture[None]).permute(0, 3, 1, 2).float() / 127.5 - 1).to(network.dtype)
        found.append(network.encode(patches.to(memory_format=torch.channels_last)).latent_dist.mode()[0].float().numpy())
    return np.stack(found)
