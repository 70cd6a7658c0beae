"""``sdc.json``: what differs between model folders, as data.  Used by the engine and the codec; knows neither.

A model folder is in diffusers layout (``vae/``, ``unet/``, ``scheduler/``) plus this file.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from service.errors import BadModel

IDENTITY_BYTES = 4
VERSION = r"^[A-Za-z0-9._-]{1,32}$"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
Steps = int | Literal["article"]
"""of the U-Net; ``article``: as ``service.engine.article`` does"""


class EntropyProfile(BaseModel):
    """Which entropy-coder profile reads this model's integers."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["laplace", "context"] = "laplace"
    file: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_-]+\.safetensors$", description="Integer weights and tables of a `context` profile."
    )
    coarsest: list[Annotated[int, Field(ge=0, le=255)]] = Field(
        [],
        description="Of each group of channels the last step index that it is sent at: it is 0 at coarser ones. None given: always sent.",
    )

    @model_validator(mode="after")
    def _context_has_a_file(self) -> EntropyProfile:
        if (self.kind == "context") != (self.file is not None):
            raise ValueError("a `context` profile names its file, a `laplace` profile has none")
        if self.coarsest and self.file is None:
            raise ValueError("a `laplace` profile has one group, which is always sent: no `coarsest`")
        return self


class RatePoints(BaseModel):
    """Step indices of the ends of the quality scale; between them it is linear, that is, logarithmic in the step."""

    model_config = ConfigDict(extra="forbid")

    quality_0: int = Field(ge=0, le=255)
    quality_100: int = Field(ge=0, le=255)

    def step_index(self, quality: int) -> int:
        """Quality 0..100 to a step index."""
        return round(self.quality_0 + (self.quality_100 - self.quality_0) * quality / 100)


class TilingRule(BaseModel):
    """Which pictures are cut for the device, and how: by size alone, because a tiled result differs from an untiled one by a little.

    A blob records how its picture was cut, so another rule reads it as long as its windows are no larger than ``untiled_pixels``.
    """

    model_config = ConfigDict(extra="forbid")

    untiled_pixels: int = Field(1 << 21, ge=1 << 16, description="Pictures up to this many pixels go through the networks whole.")
    side: int = Field(1024, ge=256, description="Pixels of picture a tile advances by.")
    margin: int = Field(128, ge=0, description="Pixels of overlap on each side, covering what the networks see beyond a tile, nearly.")

    @model_validator(mode="after")
    def _windows_fit(self) -> TilingRule:
        if (self.side + 2 * self.margin) ** 2 > self.untiled_pixels or self.margin > self.side // 2:
            raise ValueError("a window, side + 2 * margin squared, may have untiled_pixels at most, and a margin half a side")
        return self


class RateGuess(BaseModel):
    """Where the search for a size begins: bits a latent number = rate * shape ** slope, ``shape`` being that of ``codec.rate_shape``.

    A wrong guess costs an estimate or two, never a wrong file.
    """

    model_config = ConfigDict(extra="forbid")

    rate: float = Field(0.6, gt=0, lt=100)
    slope: float = Field(1.5, ge=0.5, le=3)


class ScaleRule(BaseModel):
    """When a picture that must fit into few bytes is coded smaller than it is: from these step indices on, by the next scale or by the one
    after it, which are about three quarters and a half of the sides.

    Both are where the measures turn, in the mean over pictures, and so the model's own: docs/measured/scaling.md says how they are found.
    """

    model_config = ConfigDict(extra="forbid")

    three_quarters: int = Field(ge=0, le=255)
    half: int = Field(ge=0, le=255)

    @model_validator(mode="after")
    def _in_order(self) -> ScaleRule:
        if self.half < self.three_quarters:
            raise ValueError("half the sides is for coarser steps than three quarters")
        return self


class Earlier(BaseModel):
    """A model that this one was made from by adding latent channels: all else that its files depend on is as it was."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(pattern=VERSION)
    latent_channels: int = Field(ge=1, le=512)


class Source(BaseModel):
    """Where a fetched model is from."""

    model_config = ConfigDict(extra="forbid")

    repository: str
    revision: str
    licence: str


class Manifest(BaseModel):
    """The contents of ``sdc.json``."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=f"^{NAME.pattern}$")
    version: str = Field(pattern=VERSION)
    patch_factor: int = Field(ge=1, le=16, description="Pixel-unshuffle in front of the auto-encoder.")
    downscale: Literal[1, 2, 4, 8, 16, 32, 64] = Field(description="Pixels per latent position, in each direction.")
    latent_channels: int = Field(ge=1, le=512)
    latent_mean: list[FiniteFloat]
    latent_std: list[FiniteFloat] = Field(
        description="(latent - mean) / std has about unit variance; the auto-encoder's own scaling factor is not applied."
    )
    entropy: EntropyProfile = EntropyProfile(kind="laplace", file=None, coarsest=[])
    rate_points: RatePoints
    rate_guess: RateGuess = RateGuess.model_validate({})
    scaling: ScaleRule | None = Field(None, description="None given: every picture is coded at its own size.")
    flat_ground: bool = Field(
        False,
        description="Whether flat ground is sent once: for auto-encoders that make of a place what lies near it, and of nothing else.",
    )
    tiling: TilingRule = TilingRule.model_validate({})
    decoder_revision: int = Field(1, ge=1, description="Raised when the decoder alone was made anew: the same files, other pixels.")
    default_steps: int = Field(1, ge=0, le=50, description="U-Net steps of a render that does not say.")
    widens: Earlier | None = Field(
        None, description="The version whose files are read too: their latents are the first channels of this one's."
    )
    source: Source | None = None

    @model_validator(mode="after")
    def _statistics_fit(self) -> Manifest:
        if len(self.latent_mean) != self.latent_channels or len(self.latent_std) != self.latent_channels:
            raise ValueError("latent_mean and latent_std need one value for each latent channel")
        if min(self.latent_std) <= 0:
            raise ValueError("latent_std must be positive")
        if self.widens and (
            self.widens.latent_channels >= self.latent_channels or self.widens.version == self.version or self.entropy.file is None
        ):
            raise ValueError("widens names an earlier version with fewer latent channels, and both have a `context` profile")
        if self.tiling.side % self.downscale or self.tiling.margin % self.downscale:
            raise ValueError("tiles and their margins must be multiples of the downscale")
        return self

    @property
    def full_name(self) -> str:
        """Name and version, as replies and metrics have it."""
        return f"{self.name}-{self.version}"

    @property
    def model_identity(self) -> bytes:
        """Four bytes of SHA-256 over name and version: not tensor bytes, so that fp16 and fp32 copies agree."""
        return hashlib.sha256(f"sdc model {self.name} {self.version}".encode()).digest()[:IDENTITY_BYTES]

    @property
    def earlier(self) -> Manifest | None:
        """The manifest that the version which this one widens had, as far as its files depend on it."""
        if self.widens is None:
            return None
        kept = self.widens.latent_channels
        changes = {
            "version": self.widens.version, "latent_channels": kept, "latent_mean": self.latent_mean[:kept],
            "latent_std": self.latent_std[:kept], "entropy": self.entropy.model_copy(update={"coarsest": []}), "widens": None,
        }  # fmt: skip
        return self.model_copy(update=changes)


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``folder/sdc.json``; raises BadModel."""
    path = folder / "sdc.json"
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise BadModel(f"{folder} is no model folder: it has no sdc.json (`sdc models list` says what is installed)") from error
    except OSError as error:
        raise BadModel(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise BadModel(f"{path}: {error}") from error
