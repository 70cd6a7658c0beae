"""Begin from a finished model folder: to fine-tune it on other pictures, or to go on with more latent channels or residual blocks."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.numpy import load_file

from service.calibration.context import ContextModel, rescale
from service.calibration.integers import float_context
from service.engine.autoencoder import ResidualAutoencoder, ResidualBlock
from service.errors import BadModel
from service.manifest import Manifest, read_manifest


@torch.no_grad()
def copy_into(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy what fits; a tensor with more channels than its source keeps its own values, halved, in the surplus.

    Tensors that the source lacks stay as they are.  Raises KeyError where the source has one that ``module`` lacks.
    """
    own = module.state_dict()
    if surplus := weights.keys() - own.keys():
        raise KeyError(f"no place for {min(surplus)}")
    for name, kept in own.items():
        if name not in weights:
            continue
        source = weights[name].float()
        if source.shape != kept.shape:
            kept.mul_(0.5)
        kept[tuple(slice(size) for size in source.shape)] = source


@torch.no_grad()
def deepen(weights: dict[str, torch.Tensor], finished: ResidualAutoencoder, vae: ResidualAutoencoder) -> dict[str, torch.Tensor]:
    """Name the weights of ``finished`` as ``vae``, with more residual blocks at some scales, has them.

    The surplus blocks of ``vae``, the last of their scale, are made to pass on what they get.
    Raises KeyError where ``vae`` has fewer blocks.
    """
    named = {name: tensor for name, tensor in weights.items() if name.startswith("linear_")}
    for part in ("encoder", "decoder"):
        new, at = getattr(vae, part), 0
        for index, module in enumerate(getattr(finished, part)):
            while not isinstance(module, ResidualBlock) and isinstance(new[at], ResidualBlock):
                new[at].conv2.weight.zero_()
                at += 1
            if type(module) is not type(new[at]):
                raise KeyError(f"no place for {part}.{index}")
            named |= {f"{part}.{at}.{name}": weights[f"{part}.{index}.{name}"] for name in module.state_dict()}
            at += 1
    return named


def read_model(folder: Path) -> tuple[Manifest, ResidualAutoencoder]:
    """The manifest and, in fp32, the auto-encoder of a finished model folder; raises SystemExit where it is none."""
    try:
        manifest = read_manifest(folder)
        vae = ResidualAutoencoder.from_pretrained(folder / "vae", torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False)
    except (BadModel, OSError, KeyError, RuntimeError) as error:
        raise SystemExit(f"training cannot start from {folder}: {error}") from error
    return manifest, vae


def start_from(folder: Path, vae: ResidualAutoencoder, context: ContextModel) -> int:
    """Give ``vae`` the weights of the model in ``folder``, and ``context`` those passes of its profile that have the same shape.

    Returns how many latent channels the folder's model has not.  Raises SystemExit where its auto-encoder has other widths or
    more blocks.
    """
    manifest, finished = read_model(folder)
    try:
        copy_into(vae, deepen(finished.state_dict(), finished, vae))
    except (KeyError, RuntimeError) as error:
        raise SystemExit(f"training cannot start from {folder}: {error}") from error
    missing = int(vae.config.latent_channels) - manifest.latent_channels
    if manifest.entropy.file is None:
        return missing
    profile = float_context(load_file(folder / manifest.entropy.file))
    rescale(profile, 1 / manifest.latent_std[0])
    ours = context.state_dict()
    fitting = {name: value for name, value in profile.state_dict().items() if name in ours and ours[name].shape == value.shape}
    context.load_state_dict(ours | fitting)
    if len(fitting) < len(ours):
        print(f"{len(fitting)} of the {len(ours)} tensors of the context model are in the folder: the others start afresh", flush=True)
    return missing
