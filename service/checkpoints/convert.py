"""A checkpoint in diffusers layout to a model folder: only what the codec needs.

    vae (decoder swapped in) | unet | scheduler | text encoder -> embedding of the empty prompt, and then no text encoder

Weights are kept in fp16, whatever they came in.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

from service.checkpoints import hub
from service.engine.network import (
    AUTOENCODERS,
    EMPTY_PROMPT,
    FAST_DECODER,
    UNETS,
    check_complete,
    load_schedule,
    load_weights,
    network_class,
)
from service.errors import BadModel
from service.manifest import Source, read_manifest

DECODING = ("decoder.", "post_quant_conv.")
"""beginnings of the names of tensors that decode"""
QUALITY_0, QUALITY_100 = 192, 64
"""step indices: 4 and a quarter of the latent's deviation; 50 is 1, about 4 kB of 512x512 before any context model"""
TILING = {"untiled_pixels": 1 << 20, "side": 512, "margin": 128}
"""attention is quadratic, and the U-Net was trained on 512 or 768 pixels a side"""


def check(checkpoint: Path) -> None:
    """See by its configurations alone whether a checkpoint in diffusers layout can be used; raises BadModel with the reason."""
    load_schedule(checkpoint)
    vae, unet = _configuration(checkpoint / "vae", AUTOENCODERS), _configuration(checkpoint / "unet", UNETS)
    channels = vae["latent_channels"]
    if {vae["in_channels"], vae.get("out_channels", 3)} != {3}:
        raise BadModel("the auto-encoder is not one of pictures in three colours: it cannot be used")
    if unet["in_channels"] != channels:
        raise BadModel(f"the U-Net takes {unet['in_channels']} channels and the latent has {channels}: an inpainting model cannot be used")
    if unet["out_channels"] != channels:
        raise BadModel(f"the U-Net gives {unet['out_channels']} channels and the latent has {channels}: it cannot be used")
    if unet.get("addition_embed_type") is not None:
        raise BadModel("this U-Net wants more than an embedded prompt (SDXL): it cannot be used")
    if unet["class_embed_type"] is not None or unet["num_class_embeds"] is not None:
        raise BadModel("this U-Net wants to be told a class: it cannot be used")


def convert(
    checkpoint: Path, out: Path, name: str, *, decoder: Path | None = None, fast: Path | None = None, source: Source | None = None
) -> None:
    """Write a model folder; raises BadModel for what is no such checkpoint, SafetensorError and OSError where it cannot be written.

    Args:
        checkpoint: folder in diffusers layout.
        out: made; must not exist.
        name: of the model.
        decoder: folder of an ``AutoencoderKL`` of the same latents, whose decoder is taken instead.
        fast: folder of a small auto-encoder that decodes instead (TAESD).
        source: where it is from; its revision becomes part of the version.
    """
    check(checkpoint)
    out.mkdir(parents=True)
    vae = _network(checkpoint / "vae", AUTOENCODERS)
    if decoder is not None:
        _swap_decoder(vae, _network(decoder, AUTOENCODERS))
    unet = _network(checkpoint / "unet", UNETS)
    vae.save_pretrained(out / "vae")
    unet.save_pretrained(out / "unet")
    if fast is not None:
        _network(fast, AUTOENCODERS).save_pretrained(out / FAST_DECODER)
    (out / "scheduler").mkdir()
    shutil.copyfile(checkpoint / "scheduler" / "scheduler_config.json", out / "scheduler" / "scheduler_config.json")
    if isinstance(unet, diffusers.UNet2DConditionModel):
        save_file({"embedding": empty_prompt(checkpoint)}, out / EMPTY_PROMPT)
    mean, deviation = _statistics(vae)
    manifest = {
        "name": name,
        "version": _version(source, out, decoder is not None, fast is not None),
        "patch_factor": 1,
        "downscale": 2 ** (len(_widths(vae)) - 1),
        "latent_channels": int(vae.config.latent_channels),
        "latent_mean": mean,
        "latent_std": deviation,
        "rate_points": {"quality_0": QUALITY_0, "quality_100": QUALITY_100},
        "tiling": TILING,
        "source": None if source is None else source.model_dump(),
    }
    (out / "sdc.json").write_text(json.dumps(manifest, indent=2) + "\n")
    read_manifest(out)


def empty_prompt(checkpoint: Path) -> torch.Tensor:
    """What the U-Net is told when nobody says anything: (1, tokens, width) float32, by the checkpoint's own text encoder."""
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
        from transformers.utils import logging as chatter
    except ModuleNotFoundError as error:
        raise BadModel("the empty prompt takes a text encoder, once: pip install 'sdc[models]'") from error
    chatter.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer", local_files_only=True)
        folder = checkpoint / "text_encoder"
        loaded: Any = CLIPTextModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **_variant(folder)
        )
    except Exception as error:  # the tokenizer's Rust has no class of its own for a damaged file
        raise BadModel(f"{checkpoint}: tokenizer or text encoder cannot be loaded: {error}") from error
    encoder, told = loaded
    check_complete(folder, told)
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)  # a tokenizer need not know
    words = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        embedding: torch.Tensor = encoder.eval()(words.input_ids)[0]
    return embedding.clone()


def _configuration(folder: Path, classes: dict[str, Any]) -> dict[str, Any]:
    """What a network is made with, its class's defaults included; raises BadModel."""
    defaults = {name: each.default for name, each in inspect.signature(network_class(folder, classes)).parameters.items()}
    return {**defaults, **json.loads((folder / "config.json").read_text())}


def _network(folder: Path, classes: dict[str, Any]) -> Any:
    return load_weights(network_class(folder, classes), folder, torch.float16, **_variant(folder))


def _variant(folder: Path) -> dict[str, Any]:
    """What ``from_pretrained`` must be told to find the weights; raises BadModel for pickled ones and for none."""
    found = hub.weights([path.name for path in folder.iterdir()], "")
    return {"variant": "fp16"} if any(".fp16." in name or ".fp16-" in name for name in found) else {}


def _swap_decoder(vae: Any, other: Any) -> None:
    state, better = vae.state_dict(), other.state_dict()
    names = [key for key in state if key.startswith(DECODING)]
    if any(key not in better or better[key].shape != state[key].shape for key in names) or not names:
        raise BadModel("the other decoder is not of these latents: its tensors have other names or shapes")
    if _statistics(vae) != _statistics(other):
        raise BadModel("the other decoder is not of these latents: they are scaled otherwise")
    vae.load_state_dict({**state, **{key: better[key] for key in names}})


def _widths(vae: Any) -> list[int]:
    return list(getattr(vae.config, "block_out_channels", None) or vae.config.encoder_block_out_channels)


def _statistics(vae: Any) -> tuple[list[float], list[float]]:
    """Mean and deviation, of each channel, that make of the auto-encoder's latent the one the U-Net knows.

    That is (z - shift) * scaling, or (z - mean) * scaling / deviation where those are told.
    """
    told, channels = vae.config, int(vae.config.latent_channels)
    mean, deviation = getattr(told, "latents_mean", None), getattr(told, "latents_std", None)
    if mean is None or deviation is None:  # diffusers' pipelines too want both
        mean, deviation = [getattr(told, "shift_factor", None) or 0.0] * channels, [1.0] * channels
    scaling = float(getattr(told, "scaling_factor", None) or 1.0)
    return [float(each) for each in mean], [float(each) / scaling for each in deviation]


def _version(source: Source | None, out: Path, swapped: bool, fast: bool) -> str:
    """Of the revision, or of the weights where there is none; with a mark for each part that is of elsewhere."""
    if source is not None:
        revision = source.revision[:12]
    else:
        digest = hashlib.sha256()
        for path in sorted(out.rglob("*.safetensors")):
            with path.open("rb") as content:
                hashlib.file_digest(content, lambda: digest)
        revision = digest.hexdigest()[:12]
    return revision + ("-d" if swapped else "") + ("-fast" if fast else "")


logging.getLogger("diffusers").setLevel(logging.ERROR)
