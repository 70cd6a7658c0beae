"""More latent channels for a finished model, for the detail that its own cannot say.  All else stays, so its files are read too.

    pixels --> finished encoder --> its latent ----> finished decoder --+--> pixels
       |                                                                |
       +--linear way--> new channels, sent at fine steps --linear way --+

The new channels are a solution, not a search: those directions of what the finished model leaves out that a linear map of the pixels
predicts best (``training.graft``), and back by least squares (``training.refit``).  Only the passes that code them are trained.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import diffusers
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from service.calibration.context import ContextModel, rescale
from service.calibration.integers import float_context, integer_passes
from service.calibration.tables import fit_rate_guess
from service.codec.entropy import EntropyCoder
from service.codec.lattice import PHASES
from service.codec.profile import Tensors, context_predictor
from service.codec.steps import STEP_COUNT, nearest_step
from service.engine.autoencoder import ResidualAutoencoder
from service.folders import written_whole
from service.manifest import Manifest
from training import machine
from training.config import Config
from training.data import Pictures
from training.export import GUESS_CROPS
from training.graft import graft
from training.latents import random_latents, shipped_steps
from training.loop import Progress, save_whole
from training.networks import as_input, build, decode, encode, psnr
from training.refit import coarsest_steps, refit_last_layers, samples
from training.start import copy_into, read_model, start_from
from training.vae import log_uniform, round_to_step

AT_ONCE = 16
"""held-out crops that are judged together"""
HELD_OUT = 48
OLD, NEW = slice(-1), slice(-1, None)
"""groups of the context model"""


def begin(config: Config, pictures: Pictures, start: Path, finished: Tensors, folder: Path) -> tuple[ResidualAutoencoder, ContextModel]:
    """The wide auto-encoder, its new channels linear and nothing else, and the context model, whose last group is to be trained.

    ``finished`` is the profile of ``start``.  The auto-encoder is kept in ``folder``, and taken from there when a run is resumed.
    """
    wide, context = build(config)
    count, profile = start_from(start, wide, context), float_context(finished)
    ours, theirs = context.state_dict(), profile.state_dict()
    if config.context.group_sizes != [*profile.group_sizes, count] or any(ours[name].shape != theirs[name].shape for name in theirs):
        raise SystemExit(
            f"the context model must have the groups of {start}, {profile.group_sizes}, as it has them, and one more of {count}"
        )
    for index, item in enumerate(context.in_order):
        item.requires_grad_(index >= (len(context.group_sizes) - 1) * len(PHASES))
    kept = folder / "grafted.pt"
    if kept.exists():
        wide.load_state_dict(torch.load(kept, map_location=machine.device(), weights_only=True))
        return wide, context
    graft(wide, count, pictures, config)
    last, first = wide.encoder[-1], wide.decoder[0]
    assert isinstance(last, nn.Conv2d) and last.bias is not None and isinstance(first, nn.Conv2d)
    with torch.no_grad():  # what the networks themselves say of the new channels, and hear of them: nothing
        last.weight[-count:], last.bias[-count:], first.weight[:, -count:] = 0, 0, 0
    folder.mkdir(parents=True, exist_ok=True)
    save_whole(wide.state_dict(), kept)
    return wide, context


def train(
    config: Config, images: list[Path], pictures: Pictures, start: Path, finished: Tensors, folder: Path
) -> tuple[ResidualAutoencoder, ContextModel]:
    """Train the passes of the new channels for the configured minutes.

    Returns the wide auto-encoder and the averaged context model, both of raw latents.
    """
    wide, context = begin(config, pictures, start, finished, folder)
    latents = random_latents(wide, pictures, config.widen.crops, config.seed + 4, config)
    progress = Progress("widen", {"context": context}, config.widen_stage, folder)
    torch.manual_seed(config.seed + progress.step)
    pixels = config.data.crop**2
    while progress.fraction < 1:
        latent = latents[torch.randint(len(latents), (config.widen_stage.batch,))].to(machine.device())
        step = log_uniform(len(latent), config.widen.finest, config.widen.coarsest)
        known = round_to_step(latent, step)
        bpp = context(known, known, step, NEW) / pixels
        # in proportion: a coarse picture's bits count as much as a fine one's
        loss = (bpp / (bpp.detach() + 0.01)).mean()
        progress.update(loss)
        progress.note(bpp=bpp.detach().mean())
    progress.save()
    trained = progress.averaged["context"]
    assert isinstance(trained, ContextModel)
    progress.log(validation=evaluate(wide, trained, Pictures(images, config.data, validation=True).centre_crops(HELD_OUT), config))
    return wide, trained


@torch.no_grad()
def evaluate(wide: ResidualAutoencoder, context: ContextModel, crops: torch.Tensor, config: Config) -> list[dict[str, float]]:
    """Held-out crops at five steps: bits per pixel and PSNR (dB), with the new channels and without."""
    old = sum(context.group_sizes[:-1])
    figures = []
    for size in torch.logspace(math.log2(config.widen.finest), math.log2(config.widen.coarsest), 5, base=2).tolist():
        totals = torch.zeros(4)
        for part in crops.split(AT_ONCE):
            pixels, step = as_input(part), torch.full((len(part),), size, device=machine.device())
            known = round_to_step(encode(wide, pixels, config), step)
            bits = [context(known, known, step, groups) for groups in (OLD, NEW)]
            with_new = psnr(decode(wide, known, config).clamp(-1, 1), pixels)
            known[:, old:] = 0
            without = psnr(decode(wide, known, config).clamp(-1, 1), pixels)
            area = pixels[0, 0].numel()
            totals += torch.stack([bits[0] / area, sum(bits) / area, without, with_new]).sum(1).cpu()
        means = [round(value, 4) for value in (totals / len(crops)).tolist()]
        figures.append({"step": round(size, 3), **dict(zip(("bpp_old", "bpp", "psnr_old", "psnr"), means, strict=True))})
    return figures


def widen_unet(start: Path, channels: int) -> diffusers.UNet2DModel:
    """The U-Net of ``start`` for a latent of so many channels: it does not look at the new ones and says they have no noise."""
    old = diffusers.UNet2DModel.from_pretrained(start / "unet", torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False)
    shape = {name: value for name, value in old.config.items() if not name.startswith("_")}  # which would say where ``start`` lies
    wide = diffusers.UNet2DModel.from_config(shape | {"in_channels": channels, "out_channels": channels})
    with torch.no_grad():
        for tensor in (wide.conv_in.weight, wide.conv_out.weight, wide.conv_out.bias):
            tensor.zero_()
    copy_into(wide, old.state_dict())
    return wide


def widened(start: Manifest, config: Config) -> dict[str, object]:
    """What ``sdc.json`` says of the wide model that it did not say of the finished one."""
    assert start.entropy.file is not None
    channels, scale = config.autoencoder.latent_channels, start.latent_std[0]
    fresh = channels - start.latent_channels
    last = nearest_step(config.widen.coarsest / scale)
    return {
        "version": config.version,
        "latent_channels": channels,
        "latent_mean": start.latent_mean + [0.0] * fresh,
        "latent_std": start.latent_std + [scale] * fresh,
        "entropy": {
            "kind": "context",
            "file": start.entropy.file,
            "coarsest": [*(start.entropy.coarsest or [STEP_COUNT - 1] * (len(config.context.group_sizes) - 1)), last],
        },
        "decoder_revision": 1,
        "widens": {"version": start.version, "latent_channels": start.latent_channels},
    }


def widen(config: Config, images: list[Path], start: Path, folder: Path, out: Path) -> None:
    """Write the model folder ``out``: that of ``start`` with more latent channels.  It reads the files of both."""
    manifest, _ = read_model(start)
    if manifest.widens is not None or manifest.entropy.file is None:
        raise SystemExit(f"{start} cannot be widened: it has been already, or has no context model")
    if out.exists():
        raise SystemExit(f"{out} is there already")
    pictures = Pictures(images, config.data, validation=False)
    finished = load_file(start / manifest.entropy.file)
    wide, context = train(config, images, pictures, start, finished, folder)
    rescale(context.cpu(), manifest.latent_std[0])
    # the finished passes and the tables as they are, not rounded a second time: files depend on every bit
    tensors = integer_passes(context) | {name: tensor for name, tensor in finished.items() if name != "group_sizes"}
    told = json.loads((start / "sdc.json").read_text()) | widened(manifest, config)
    new = Manifest.model_validate(told)
    refit_last_layers(wide, samples(wide, pictures, coarsest_steps(new, tensors), config), config.refit.share)

    crops = min(GUESS_CROPS, config.widen.crops)
    latents = random_latents(wide, pictures, crops, config.seed + 4, config) / manifest.latent_std[0]
    coder = EntropyCoder(context_predictor(tensors, new.latent_channels, tuple(new.entropy.coarsest)))
    told["rate_guess"] = fit_rate_guess(coder, latents.numpy(), config.data.crop**2, shipped_steps(config, manifest.latent_std[0]))
    with written_whole(out) as staged:
        shutil.copytree(start, staged, ignore=shutil.ignore_patterns("*.md"))
        wide.cpu().half().save_pretrained(staged / "vae")
        if (start / "unet").is_dir():
            widen_unet(start, new.latent_channels).half().save_pretrained(staged / "unet")
        save_file(tensors, staged / manifest.entropy.file)
        (staged / "sdc.json").write_text(json.dumps(told, indent=2) + "\n")
