"""Every constant of a training run, read from one TOML file.  See ``bundled.toml`` for what each value was chosen by."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Data:
    crop: int
    """side of a training crop, pixels"""
    largest_downscale: float
    """a crop is taken from a window up to this many times its side and shrunk, so that compression artefacts of the source vanish"""
    graphics_percent: float
    """share of the crops that get lettering, boxes or a flat ground"""
    validation_percent: int
    """share of the pictures kept for choosing models, by hash of the file name"""


@dataclass(frozen=True)
class Autoencoder:
    latent_channels: int
    block_out_channels: list[int]
    encoder_layers: list[int]
    decoder_layers: list[int]
    linear: bool
    """whether a linear way lies beside the network"""
    graft_crops: int
    """crops that the linear way of new channels is found on"""
    graft_mse: float
    """weight of the squared error (levels 0..255) against bits per pixel at step 1 that the scale of new channels is chosen for"""


@dataclass(frozen=True)
class Context:
    group_sizes: list[int]
    """latent channels are coded in these groups, in order"""
    windows: list[int]
    """side of each group's window: 5, 3 or 1"""
    hidden: list[int]
    """width of the two hidden layers of each group's passes while the auto-encoder trains"""
    shipped_hidden: list[int]
    """what stage 2 keeps of that, and trains: at most as much"""
    coarsest_steps: list[float]
    """of each group the last step that it is sent at, inf for any: a group that is hardly ever used there need not cost its time"""
    crops: int
    """crops whose latents stage 2 trains on"""
    table_crops: int
    """crops that the frequency tables are fitted to"""


@dataclass(frozen=True)
class Stage:
    minutes: float
    batch: int
    learning_rate: float
    warmup_steps: int
    decay: float
    """share of the minutes, at the end, over which the learning rate falls to nothing"""
    ema: float
    """decay of the averaged weights"""
    pieces: int = 1
    """a batch is differentiated in so many pieces, one after another: memory for one, and fewer updates of weights for as many crops"""
    gains: float = 0.0
    """learning rate of a gain of every channel of a kernel, over ``learning_rate``; 0 for none"""


@dataclass(frozen=True)
class Loss:
    smallest_step: float
    largest_step: float
    """the quantiser step is drawn between these, log-uniformly, once per crop"""
    mse: float
    """weight of the squared error (levels 0..255) against bits per pixel at step 1"""
    log_mse: float
    """weight of the logarithm of the squared error at coarse steps: a smooth picture's decibels count like a busy one's; 0 for not"""
    fine_log_mse: float
    """the same at fine steps, where the perceptual terms have faded out"""
    mse_exponent: float
    """the weight falls with step ** -exponent; 2 is what a uniform quantiser asks for at high rates"""
    balance: float
    """a crop's whole loss but for the logarithms is multiplied by step ** balance, so that coarse steps are not drowned by fine ones"""
    structure: float
    """weight of 1 - MS-SSIM at step 1; falls with step ** -perceptual_exponent"""
    ssimulacra: float
    """weight of 1 - SSIMULACRA2 / 100 at step 1; falls with step ** -perceptual_exponent"""
    feature: float
    """weight of the feature distance at step 1; falls with step ** -perceptual_exponent"""
    perceptual_exponent: float
    perceptual_onset: float
    """below this step these three fade out, with its fourth power: fine steps are asked for the pixels and nothing else; 0 for not"""
    perceptual_crops: int
    """structure, SSIMULACRA2 and feature distance are taken on this many crops of a batch, or of each of its pieces"""


@dataclass(frozen=True)
class Unet:
    block_out_channels: list[int]
    layers_per_block: int
    norm_num_groups: int
    with_decoder: bool
    """whether stage 3 trains the decoder too"""


@dataclass(frozen=True)
class Refit:
    crops: int
    """that the layers are fitted to"""
    masking: float
    """variance of a 4x4 patch (levels 0..255 squared, summed over colours) that halves what an error weighs"""
    least: float
    """what it weighs in the busiest texture, against 1 + least on flat ground"""
    share: float = 1.0
    """of the way from the layers as they were to the solution, which knows squared error alone"""


@dataclass(frozen=True)
class Export:
    unet: float
    """share of what the U-Net says that is shipped"""
    shrink_steps: list[float]
    """of the quantiser: from which on a picture for few bytes is better coded at three quarters of its sides, and at half of them"""


@dataclass(frozen=True)
class Widen:
    crops: int
    """that the passes of the new channels are trained on"""
    finest: float
    coarsest: float
    """the passes are trained between these steps of the quantiser, and the new channels sent up to the second"""


@dataclass(frozen=True)
class Config:
    name: str
    version: str
    patch_factor: int
    seed: int
    data: Data
    autoencoder: Autoencoder
    context: Context
    loss: Loss
    unet: Unet
    vae_stage: Stage
    unet_stage: Stage
    context_stage: Stage
    export: Export
    refit: Refit
    widen: Widen
    widen_stage: Stage


def load(path: Path) -> Config:
    """Read a configuration; a missing or surplus key is an error that names it."""
    raw: dict[str, Any] = tomllib.loads(path.read_text())
    parts = {
        "data": Data, "autoencoder": Autoencoder, "context": Context, "loss": Loss, "unet": Unet,
        "vae_stage": Stage, "unet_stage": Stage, "context_stage": Stage, "export": Export, "refit": Refit,
        "widen": Widen, "widen_stage": Stage,
    }  # fmt: skip
    try:
        return Config(**{key: parts[key](**value) if key in parts else value for key, value in raw.items()})
    except TypeError as error:
        raise SystemExit(f"{path}: {error}") from error
