"""Loads the networks of a model folder, and hides what differs between the diffusers classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file

from service.engine.autoencoder import ResidualAutoencoder
from service.errors import BadModel

AUTOENCODERS: dict[str, Any] = {
    "AutoencoderKL": diffusers.AutoencoderKL,
    "AutoencoderTiny": diffusers.AutoencoderTiny,
    "AutoencoderDC": diffusers.AutoencoderDC,
    "ResidualAutoencoder": ResidualAutoencoder,
}
UNETS: dict[str, Any] = {
    "UNet2DModel": diffusers.UNet2DModel,
    "UNet2DConditionModel": diffusers.UNet2DConditionModel,
}
EMPTY_PROMPT = "empty_prompt.safetensors"
"""text embedding of the empty prompt, (1, tokens, width), for U-Nets that want one"""


def _load(folder: Path, part: str, classes: dict[str, Any], dtype: torch.dtype) -> Any:
    """``from_pretrained`` with the class the part's own configuration names; raises BadModel."""
    config = folder / part / "config.json"
    try:
        name = json.loads(config.read_text())["_class_name"]
        cls = classes[name]
    except (OSError, ValueError, KeyError) as error:
        raise BadModel(f"{config} does not name one of {', '.join(classes)}") from error
    try:
        return cls.from_pretrained(folder / part, torch_dtype=dtype, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise BadModel(f"{folder / part} cannot be loaded: {error}") from error


class Networks:
    """Auto-encoder, U-Net and noise schedule of one folder, on one device in one number format."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self._vae = _load(folder, "vae", AUTOENCODERS, dtype)
        self._unet = _load(folder, "unet", UNETS, dtype)
        for network in (self._vae, self._unet):
            network.requires_grad_(False).eval().to(device=device, memory_format=torch.channels_last)
        try:
            scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
        except OSError as error:
            raise BadModel(f"{folder}/scheduler cannot be loaded: {error}") from error
        self.alphas: torch.Tensor = scheduler.alphas_cumprod
        self.prediction_type: str = scheduler.config.prediction_type
        self._prompt: torch.Tensor | None = None
        if isinstance(self._unet, diffusers.UNet2DConditionModel):
            path = folder / EMPTY_PROMPT
            if not path.exists():
                raise BadModel(f"{path} is missing: this U-Net wants the embedding of the empty prompt")
            self._prompt = next(iter(load_file(path).values())).to(device=device, dtype=dtype)
        self.unet_multiple = 2 ** (len(self._unet.config.block_out_channels) - 1)
        """the U-Net takes latents whose sides are multiples of this"""
        self.parameters = sum(p.numel() for network in (self._vae, self._unet) for p in network.parameters())

    def encode(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches to the latent as the auto-encoder returns it; a distribution's mode, not a sample."""
        output = self._vae.encode(patches)
        for name in ("latent", "latents"):
            if hasattr(output, name):
                return getattr(output, name)  # type: ignore[no-any-return]
        return output.latent_dist.mode()  # type: ignore[no-any-return]

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self._vae.decode(latent).sample  # type: ignore[no-any-return]

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The U-Net's output for z_t at t, in whatever its prediction type is."""
        if self._prompt is None:
            return self._unet(noisy, timesteps).sample  # type: ignore[no-any-return]
        prompt = self._prompt.expand(len(noisy), -1, -1)
        return self._unet(noisy, timesteps, encoder_hidden_states=prompt).sample  # type: ignore[no-any-return]
