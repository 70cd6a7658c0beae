"""Four families of picture quality: PSNR, MS-SSIM, SSIMULACRA2 and a deep-feature distance.  Never one of them alone."""

from __future__ import annotations

import io
from dataclasses import astuple, dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pytorch_msssim import ms_ssim
from ssimulacra2 import compute_ssimulacra2

from service.comparison.features import FeatureDistance

Plane = npt.NDArray[np.uint8]
SMALLEST_SIDE = 161
"""MS-SSIM halves the picture four times under an 11-pixel window"""


@dataclass(frozen=True)
class Quality:
    """How near a picture is to its original."""

    psnr: float
    """dB over all channels; higher is better"""
    ms_ssim: float
    """0..1; higher is better (Wang et al. 2003)"""
    ssimulacra2: float
    """100 is perfect, may be far below 0; higher is better"""
    feature: float
    """distance, see ``service.comparison.features``; lower is better"""


NAMES = ("PSNR dB", "MS-SSIM", "SSIMULACRA2", "feature")
HIGHER_IS_BETTER = (True, True, True, False)


@cache
def _judge() -> FeatureDistance:
    return FeatureDistance("lite2")


def measure(original: Plane, other: Plane) -> Quality:
    """All four, of two uint8 (H, W, 3) pictures with sides of at least 161 pixels."""
    left, right = (torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() for picture in (original, other))
    mse = float((left - right).square().mean())
    with torch.inference_mode():
        structure = float(ms_ssim(left, right, data_range=255))
        feature = float(_judge()(left / 127.5 - 1, right / 127.5 - 1))
    psnr = 10 * np.log10(255**2 / mse) if mse else 99.0
    return Quality(float(psnr), structure, float(compute_ssimulacra2(_file(original), _file(other))), feature)


def _file(picture: Plane) -> io.BytesIO:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "BMP")
    return out


def as_array(qualities: list[Quality]) -> npt.NDArray[np.float64]:
    """(n, 4), in the order of ``NAMES``."""
    return np.array([astuple(quality) for quality in qualities])
