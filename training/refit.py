"""The decoder's last layers made anew by least squares: no gradients, minutes on a processor, and files stay as they are.

    decoded = last convolution of (features) + linear way of (latent)

Both are linear, so the weights with the least squared error, all others given, are a solution and not a search.  An error weighs what it is
seen: more on smooth ground, where a network that puts out 4x4 pixels at once leaves a grid, than in texture, which hides it.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.numpy import load_file
from torch.nn import functional as F

from service.codec.profile import Tensors
from service.codec.steps import step_size
from service.engine.autoencoder import ResidualAutoencoder
from service.folders import written_whole
from service.manifest import Manifest
from training import machine
from training.config import Config
from training.data import Pictures
from training.networks import as_input, encode
from training.start import read_model
from training.vae import draw_steps, round_to_step

RIDGE = 1e-6
"""of the mean square of the inputs: keeps directions that never occur where they are"""
BATCH = 8

Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""dequantised latents (N, C, h, w), original patches (N, 48, 4h, 4w) in -1..1, what an error there weighs (N, 1, 4h, 4w)"""


class LeastSquares:
    """Weighted least squares of several problems at once that share some of their weights; sums of normal equations, in float64.

    Args:
        problems: how many.
        shared, own: inputs whose weights are the same for all problems, and those with weights of each problem's own, after them.
        outputs: of each.
    """

    def __init__(self, problems: int, shared: int, own: int, outputs: int) -> None:
        self._shared, inputs = shared, shared + own
        self._squares = torch.zeros(problems, inputs, inputs, dtype=torch.float64)
        self._products = torch.zeros(problems, inputs, outputs, dtype=torch.float64)

    def add(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        """Rows of each problem: (problems, n, inputs), (problems, n, outputs), (problems, n, 1)."""
        weighted = (inputs * weights).mT
        self._squares += (weighted @ inputs).double().cpu()
        self._products += (weighted @ targets).double().cpu()

    def solve(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Shared weights (shared, outputs) and own ones (problems, own, outputs), float32: all at once, by the Schur complement."""
        ridge = RIDGE * self._squares.diagonal(dim1=1, dim2=2).mean(0)
        ridge[ridge == 0] = 1  # an input that is always 0 keeps its weight
        squares, k = self._squares + ridge.diag(), self._shared
        across, inner = squares[:, :k, k:], squares[:, k:, k:]
        from_shared, alone = torch.linalg.solve(inner, across.mT), torch.linalg.solve(inner, self._products[:, k:])
        left = squares[:, :k, :k].sum(0) - (across @ from_shared).sum(0)
        shared = torch.linalg.solve(left, self._products[:, :k].sum(0) - (across @ alone).sum(0))
        return shared.float(), (alone - from_shared @ shared).float()


def visibility(patches: torch.Tensor, masking: float, least: float) -> torch.Tensor:
    """What an error weighs in each 4x4 patch, (N, 1, H, W): 1 + ``least`` on flat ground, falling to ``least`` as the patches around vary.

    Args:
        patches: (N, 48, H, W) in -1..1.
        masking: variance (levels 0..255 squared, summed over colours) at which the first term is a half.
        least: weight in the busiest texture.
    """
    levels = (patches * 127.5).unflatten(1, (3, -1))
    variance = F.max_pool2d(levels.var(2).sum(1, keepdim=True), 3, 1, 1)
    return least + 1 / (1 + variance / masking)


@torch.no_grad()
def refit_last_layers(vae: ResidualAutoencoder, samples: Iterator[Sample], share: float = 1.0) -> None:
    """Make the last convolution anew and, where there is one, the linear way, which has weights of its own for each patch of its block.

    ``share`` is how far they go from what they were, 0, to the solution, 1.
    """
    trunk, last, linear, places = vae.decoder[:-1], vae.decoder[-1], vae.linear_decoder, vae.side**2
    assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
    window = last.weight[0].numel()
    sums = LeastSquares(places, window + 1, 0 if linear is None else linear.in_channels, last.out_channels)

    def by_place(planes: torch.Tensor) -> torch.Tensor:
        """(N, k, H, W) to (places, positions, k)."""
        blocks = F.pixel_unshuffle(planes, vae.side).unflatten(1, (-1, places)).flatten(3)
        return blocks.permute(2, 0, 3, 1).flatten(1, 2)

    for latent, patches, weight in samples:
        features = trunk(latent)
        decoded, own = last(features), []
        if linear is not None:
            decoded = decoded + F.pixel_shuffle(linear(latent), vae.side)
            own = [latent.flatten(2).mT.flatten(0, 1).expand(places, -1, -1)]
        seen = F.unfold(features, last.kernel_size, padding=last.padding).unflatten(2, features.shape[2:])
        inputs = torch.cat([F.pad(by_place(seen), (0, 1), value=1.0), *own], 2)
        sums.add(inputs, by_place(patches - decoded), by_place(weight))
    shared, own_weights = sums.solve()
    last.weight.add_(shared[:window].T.reshape(last.weight.shape).to(last.weight), alpha=share)
    last.bias.add_(shared[window].to(last.bias), alpha=share)
    if linear is not None:
        linear.weight.add_(own_weights.permute(2, 0, 1).reshape(linear.weight.shape).to(linear.weight), alpha=share)


@torch.no_grad()
def samples(vae: ResidualAutoencoder, pictures: Pictures, coarsest: torch.Tensor, config: Config) -> Iterator[Sample]:
    """What the layers are fitted to, as the decoder will meet it: ``coarsest`` (C,) are the last steps that channels are sent at."""
    rng, constants = random.Random(config.seed + 2), config.refit
    torch.manual_seed(config.seed + 3)
    last = coarsest.to(machine.device()).view(-1, 1, 1)
    for _ in range(0, constants.crops, BATCH):
        pixels = as_input(pictures.random_crops(rng, BATCH))
        step, patches = draw_steps(BATCH, config), F.pixel_unshuffle(pixels, config.patch_factor)
        weight = visibility(patches, constants.masking, constants.least)
        # as squared error is weighed against bits
        weight = weight * (step ** (config.loss.balance - config.loss.mse_exponent)).view(-1, 1, 1, 1)
        yield round_to_step(encode(vae, pixels, config), step) * (step.view(-1, 1, 1, 1) <= last), patches, weight


def coarsest_steps(manifest: Manifest, profile: Tensors) -> torch.Tensor:
    """(C,) the last step, of the raw latent, that each channel is sent at; infinite where the manifest names none."""
    if not manifest.entropy.coarsest:
        return torch.full((manifest.latent_channels,), math.inf)
    steps = torch.tensor([step_size(index) for index in manifest.entropy.coarsest])
    return steps.repeat_interleave(torch.from_numpy(profile["group_sizes"])) * torch.tensor(manifest.latent_std)


@torch.no_grad()
def refit(config: Config, images: list[Path], start: Path, out: Path) -> None:
    """Write the model folder ``out``: that of ``start`` with its decoder made anew.  It reads and writes the same files."""
    manifest, vae = read_model(start)
    if out.exists():
        raise SystemExit(f"{out} is there already")
    vae = vae.to(machine.device(), memory_format=torch.channels_last)
    pictures = Pictures(images, config.data, validation=False)
    profile = {} if manifest.entropy.file is None else load_file(start / manifest.entropy.file)
    refit_last_layers(vae, samples(vae, pictures, coarsest_steps(manifest, profile), config), config.refit.share)
    told = json.loads((start / "sdc.json").read_text()) | {"decoder_revision": manifest.decoder_revision + 1}
    with written_whole(out) as staged:
        shutil.copytree(start, staged, ignore=shutil.ignore_patterns("*.md"))
        vae.cpu().half().save_pretrained(staged / "vae")
        shutil.copy(start / "vae" / "config.json", staged / "vae")  # which would say where ``start`` lies
        (staged / "sdc.json").write_text(json.dumps(told, indent=2) + "\n")
