"""SSIMULACRA2 as a loss: the same measure as the benchmark's, in torch, for batches and with gradients.

Sneyers 2022, https://github.com/cloudinary/ssimulacra2.  Per scale, in the XYB colours of JPEG XL: a map of structural difference,
one of edges that were not there and one of edges that are lost; mean and 4-norm of each, a weighted sum, and a curve to 0..100.
Terms whose weight is next to nothing are left out, and with them the costly ones: at full resolution only brightness counts.
"""

from __future__ import annotations

from functools import cache

import torch
from ssimulacra2 import ssimulacra2 as reference
from torch.nn import functional as F

SCALES = 6
SMALLEST_SIDE = 8 * 2 ** (SCALES - 1)
SIGMA, RADIUS = 1.5, 5
LEAST_WEIGHT = 0.1
STABILITY = float(reference.kC2)

WEIGHTS = torch.tensor(reference.weights, dtype=torch.float32).view(3, SCALES, 2, 3)
"""[channel X, Y, B-Y][scale][mean, 4-norm][structure, new edges, lost edges]"""
WEIGHTS = torch.where(WEIGHTS < LEAST_WEIGHT, 0.0, WEIGHTS)

USED = [[channel for channel in range(3) if WEIGHTS[channel, scale].any()] for scale in range(SCALES)]
"""channels that count, at each scale"""

ABSORBANCE = torch.tensor(reference.kOpsinAbsorbanceMatrix, dtype=torch.float32).view(3, 3)
BIAS = float(reference.kB0)


def gaussian(radius: int, sigma: float) -> torch.Tensor:
    """Taps of a blur, (2 * radius + 1,), that sum to one."""
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float32) / sigma) ** 2)
    return taps / taps.sum()


@cache
def constants(device: torch.device) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """On the device, so that no step has to bring them: ABSORBANCE (3, 3), WEIGHTS of each scale's USED channels, taps of the blur."""
    used = [WEIGHTS[channels, scale].to(device) for scale, channels in enumerate(USED)]
    return ABSORBANCE.to(device), used, gaussian(RADIUS, SIGMA).to(device)


def linear_light(pictures: torch.Tensor) -> torch.Tensor:
    """sRGB 0..1 to linear 0..1."""
    return torch.where(pictures <= 0.04045, pictures / 12.92, ((pictures.clamp_min(0.04) + 0.055) / 1.055) ** 2.4)


def positive_xyb(linear: torch.Tensor) -> list[torch.Tensor]:
    """Linear RGB (N, 3, H, W) to X, Y and B-Y, (N, H, W) each, shifted above 0."""
    absorbance, _, _ = constants(linear.device)
    mixed = F.conv2d(linear, absorbance[:, :, None, None]) + BIAS
    long, middle, short = (mixed ** (1 / 3) - BIAS ** (1 / 3)).unbind(1)
    y = (long + middle) / 2
    return [7 * (long - middle) + 0.42, y + 0.01, short - y + 0.55]


def blur(planes: torch.Tensor) -> torch.Tensor:
    """Gaussian of 11 taps, each way; (N, C, H, W), edges mirrored."""
    n, c, h, w = planes.shape
    _, _, taps = constants(planes.device)
    padded = F.pad(planes.reshape(n * c, 1, h, w), (RADIUS,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1)).view(n, c, h, w)


def _norms(values: torch.Tensor) -> torch.Tensor:
    """Mean and 4-norm over each plane: (N, C, H, W) to (N, C, 2)."""
    return torch.stack([values.mean((2, 3)), ((values**4).mean((2, 3)) + 1e-16) ** 0.25], -1)


def _differences(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The three measures of two sets of planes (N, C, H, W), ``left`` the original: (N, C, 2, 3)."""
    mean_left, square_left = blur(torch.cat([left, left * left], 1)).chunk(2, 1)
    mean_right, square_right, product = blur(torch.cat([right, right * right, left * right], 1)).chunk(3, 1)
    spread = square_left + square_right - mean_left.square() - mean_right.square() + STABILITY
    shared = 2 * (product - mean_left * mean_right) + STABILITY
    structure = (1 - (1 - (mean_left - mean_right).square()) * shared / spread).clamp_min(0)
    edges = (1 + (right - mean_right).abs()) / (1 + (left - mean_left).abs()) - 1
    return torch.stack([_norms(structure), _norms(edges.clamp_min(0)), _norms((-edges).clamp_min(0))], -1)


def ssimulacra2(original: torch.Tensor, other: torch.Tensor, finest: int = 0) -> torch.Tensor:
    """Score of each pair; 100 is perfect.

    Args:
        original, other: (N, 3, H, W) in -1..1, sides multiples of 32 and at least 256.
        finest: 1 leaves the full resolution out, which costs three quarters of the time and counts for little.

    Returns:
        (N,).
    """
    pair = [((pictures.float() + 1) / 2).clamp(0, 1) for pictures in (original, other)]
    pair = [linear_light(F.avg_pool2d(pictures, 2**finest)) for pictures in pair]
    total, (_, weights, _) = torch.zeros(len(original), device=original.device), constants(original.device)
    for scale in range(finest, SCALES):
        if scale > finest:
            pair = [F.avg_pool2d(linear, 2) for linear in pair]
        if USED[scale]:
            colours = (positive_xyb(linear) for linear in pair)
            left, right = (torch.stack([planes[channel] for channel in USED[scale]], 1) for planes in colours)
            total = total + (weights[scale] * _differences(left, right)).sum((1, 2, 3))
    total = total * 0.9562382616834844
    curved = 2.326765642916932 * total - 0.020884521182843837 * total**2 + 6.248496625763138e-05 * total**3
    return 100 - 10 * curved.clamp_min(1e-3) ** 0.6276336467831387
