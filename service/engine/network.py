"""Loads the networks of a model folder, and hides what differs between the diffusers classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from service.engine import article, enlarging, prepared
from service.engine.autoencoder import ResidualAutoencoder
from service.engine.compiled import Buckets
from service.engine.device import Way
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
FAST_DECODER = "decoder"
"""part of a model folder that, where it is there, decodes in the auto-encoder's place (TAESD)"""
EMPTY_PROMPT = "empty_prompt.safetensors"
"""text embedding of the empty prompt, (1, tokens, width), for U-Nets that want one"""


PREDICTIONS = ("epsilon", "v_prediction", "sample")
BETAS = ("beta_start", "beta_end", "beta_schedule")
"""what makes a schedule, unless its ``trained_betas`` are told"""
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
SEED = 0
"""of the article's sample"""


def network_class(folder: Path, classes: dict[str, Any]) -> Any:
    """The class that a part's own configuration names; raises BadModel for any but ``classes``."""
    config = folder / "config.json"
    try:
        return classes[json.loads(config.read_text())["_class_name"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"{config} does not name one of {', '.join(classes)}") from error


def load_weights(cls: Any, folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """``from_pretrained``, safetensors only, with ``options`` of its own; raises BadModel unless every tensor is there and fits."""
    try:
        network, told = cls.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False,
            output_loading_info=True, **options,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise BadModel(f"{folder} cannot be loaded: {error}") from error
    check_complete(folder, told)
    return network


def check_complete(folder: Path, told: dict[str, Any]) -> None:
    """Raise BadModel where ``from_pretrained``, by its loading information, made up tensors."""
    absent = sorted([*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])])
    if absent:
        raise BadModel(f"{folder} is incomplete: {len(absent)} tensors are missing or of another shape, {absent[0]} the first")


def load_schedule(folder: Path) -> tuple[diffusers.DDPMScheduler, diffusers.PNDMScheduler]:
    """The noise schedule of a folder in diffusers layout, and the article's way down it.

    Raises BadModel for one that is not of betas (flow matching, EDM), where diffusers would take its own defaults.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    try:
        told = json.loads(path.read_text())
        if told.get("trained_betas") is None and any(told.get(each) is None for each in BETAS):
            raise BadModel(f"{path} has no betas: this is no noise schedule as Stable Diffusion has one")
        scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
        walked = article.load_scheduler(folder)
    except (OSError, ValueError, AttributeError, TypeError, NotImplementedError) as error:
        raise BadModel(f"{path} cannot be loaded: {error}") from error
    prediction = scheduler.config.prediction_type
    if prediction not in PREDICTIONS:
        raise BadModel(f"{path}: prediction_type '{prediction}' is none of {', '.join(PREDICTIONS)}")
    return scheduler, walked


def _class_of(folder: Path, classes: dict[str, Any]) -> Any:
    """The class of one part of a model folder, whose weights are safetensors; raises BadModel."""
    cls = network_class(folder, classes)
    if not any(folder.glob("*.safetensors")):
        if any(path.suffix in PICKLED for path in folder.iterdir()):
            raise BadModel(f"{folder} holds pickled weights only, which can run code when they are loaded: bring them as safetensors")
        raise BadModel(f"{folder} has no weights")
    return cls


def _load(folder: Path, classes: dict[str, Any], dtype: torch.dtype) -> Any:
    """One part of a model folder; raises BadModel."""
    return load_weights(_class_of(folder, classes), folder, dtype)


def check_parts(folder: Path) -> None:
    """See that a model folder has its parts and that no file of weights is cut short, in milliseconds; raises BadModel."""
    parts = {"vae": AUTOENCODERS, "unet": UNETS} | ({FAST_DECODER: AUTOENCODERS} if (folder / FAST_DECODER).is_dir() else {})
    for part, classes in parts.items():
        _class_of(folder / part, classes)
        for path in (folder / part).glob("*.safetensors"):
            try:
                safe_open(path, "pt")  # reads the header, and compares it with the length of the file
            except (OSError, SafetensorError) as error:
                raise BadModel(f"{path} cannot be loaded: {error}") from error


class Networks:
    """Auto-encoder, U-Net and noise schedule of one folder, on one device in one number format."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, way: Way = "plain") -> None:
        self.dtype = dtype
        # fp16 ends at 65,504, and activations of Stable Diffusion's auto-encoders go beyond: bf16 has the range, fp16 has not
        self.vae_dtype = torch.float32 if dtype is torch.float16 else dtype
        self._vae = _load(folder / "vae", AUTOENCODERS, self.vae_dtype)
        self._unet = _load(folder / "unet", UNETS, dtype)
        self.fast = (folder / FAST_DECODER).is_dir()
        """whether another, smaller auto-encoder decodes"""
        self._decoder = _load(folder / FAST_DECODER, AUTOENCODERS, self.vae_dtype) if self.fast else self._vae
        self.fast_scaling = float(getattr(self._decoder.config, "scaling_factor", None) or 1)
        """divides a normalised latent for the smaller one"""
        networks = {id(network): network for network in (self._vae, self._unet, self._decoder)}.values()
        self.parameters = sum(p.numel() for network in networks for p in network.parameters())
        self.unet_multiple = 2 ** (len(self._unet.config.block_out_channels) - 1)
        """the U-Net takes latents whose sides are multiples of this"""
        for network in networks:
            network.requires_grad_(False).eval().to(device=device, memory_format=torch.channels_last)
            if way == "fused":
                from service.engine import fused  # needs triton, which is there where it can run

                fused.install(network)
                continue
            if device.type == "cpu" and isinstance(network, diffusers.AutoencoderKL):
                enlarging.install(network.decoder)
            if way == "prepared":
                prepared.install(network)  # last: it takes the weights away
            elif way == "winograd" and isinstance(network, ResidualAutoencoder):
                from service.engine import winograd  # needs ncnn's library, which may not load everywhere

                winograd.install(network)
        self.alone = way == "winograd" and all(isinstance(network, ResidualAutoencoder) for network in (self._vae, self._decoder))
        """whether pictures of a batch are encoded and decoded one after the other"""
        scheduler, self.article_scheduler = load_schedule(folder)
        self.alphas: torch.Tensor = scheduler.alphas_cumprod
        self.prediction_type: str = scheduler.config.prediction_type
        self._prompt: torch.Tensor | None = None
        if isinstance(self._unet, diffusers.UNet2DConditionModel):
            self._prompt = self._load_prompt(folder).to(device=device, dtype=dtype)

    def prepare(self, buckets: Buckets) -> None:
        """Make fast what takes the time, in the shapes that ``buckets`` is warmed up with."""
        for network in (self._vae.encoder, self._unet, self._decoder.decoder):
            buckets.prepare(network)

    def _load_prompt(self, folder: Path) -> torch.Tensor:
        path, width = folder / EMPTY_PROMPT, self._unet.config.cross_attention_dim
        try:
            prompt = next(iter(load_file(path).values()))
        except (OSError, SafetensorError, StopIteration) as error:
            raise BadModel(f"{path} is missing or damaged: this U-Net wants the embedding of the empty prompt") from error
        if prompt.ndim != 3 or len(prompt) != 1 or prompt.shape[2] != width:
            raise BadModel(f"{path} is of shape {tuple(prompt.shape)}: this U-Net wants (1, tokens, {width})")
        return prompt

    def encode(self, patches: torch.Tensor, sampled: bool = False) -> torch.Tensor:
        """Patches to the latent as the auto-encoder returns it; of a distribution the mode, or the article's sample."""
        output = self._vae.encode(patches)
        for name in ("latent", "latents"):
            if hasattr(output, name):
                return getattr(output, name)  # type: ignore[no-any-return]
        distribution = output.latent_dist
        if not sampled:
            return distribution.mode()  # type: ignore[no-any-return]
        noise = torch.randn((1, *distribution.mean.shape[1:]), generator=torch.Generator("cpu").manual_seed(SEED))
        return distribution.mean + distribution.std * noise.to(distribution.mean)  # type: ignore[no-any-return]

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self._decoder.decode(latent).sample  # type: ignore[no-any-return]

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The U-Net's output for z_t at t, in whatever its prediction type is."""
        if self._prompt is None:
            return self._unet(noisy, timesteps).sample  # type: ignore[no-any-return]
        prompt = self._prompt.expand(len(noisy), -1, -1)
        return self._unet(noisy, timesteps, encoder_hidden_states=prompt).sample  # type: ignore[no-any-return]
