"""One model's codec: latents to blobs and back, at a step or within a size.

latent (C, h, w) float32, normalised --encode--> Blob --decode--> latent (C, h, w) float32, on the lattice
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.codec import container
from service.codec.container import Blob, Tiling
from service.codec.entropy import EntropyCoder
from service.codec.methods import METHODS, method_number
from service.codec.profile import load_profile
from service.codec.steps import STEP_COUNT, Latent, Symbols, dequantise, quantise
from service.errors import CorruptBlob, SizeUnreachable, WrongModel
from service.manifest import Manifest


@dataclass(frozen=True)
class Frame:
    """Everything of a blob but the latent's code."""

    width: int
    height: int
    alpha: bytes | None = None
    tiling: Tiling | None = None
    method: str = "latent"


class Codec:
    """The codec of one model folder."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        profile = load_profile(folder, manifest)
        self.manifest = manifest
        self.code_identity = profile.code_identity
        self.model_identity = manifest.model_identity
        self.entropy = EntropyCoder(profile.predictor)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture: its size in latent positions, rounded up."""
        factor = self.manifest.downscale
        return self.manifest.latent_channels, -(-height // factor), -(-width // factor)

    def encode(self, latent: Latent, frame: Frame, step_index: int) -> Blob:
        """Quantise with this step and code."""
        payload = self.entropy.encode(quantise(latent, step_index), step_index)
        return self._blob(frame, step_index, payload)

    def encode_within(self, latent: Latent, frame: Frame, max_bytes: int) -> Blob:
        """A step whose whole file, header included, has at most ``max_bytes``: the finest, where size falls with the step.

        It does on photographs; on nearly flat pictures, whose files are tiny, a finer step may have fitted too.

        The network has already run; a bisection over code length estimates finds the step, and one or two codings settle it.
        Raises SizeUnreachable with the best size when even the coarsest step is too large.
        """
        budget = max_bytes - len(container.write(self._blob(frame, 0, b"")))
        low, high = -1, STEP_COUNT - 1  # low is too large, high is believed to fit
        while high - low > 1:
            middle = (low + high) // 2
            if self.estimate(latent, middle) <= budget:
                high = middle
            else:
                low = middle
        for step_index in range(high, STEP_COUNT):
            blob = self.encode(latent, frame, step_index)
            if len(container.write(blob)) <= max_bytes:
                return blob
        best = len(container.write(blob))
        raise SizeUnreachable(f"max_bytes={max_bytes} cannot be met: the smallest file of this picture has {best} bytes", best_bytes=best)

    def estimate(self, latent: Latent, step_index: int) -> float:
        """Bytes the latent's code will take, without coding it."""
        return self.entropy.ideal_bits(quantise(latent, step_index), step_index) / 8

    def decode(self, blob: Blob) -> Latent:
        """Blob to dequantised latent; raises WrongModel or CorruptBlob."""
        return dequantise(self.decode_symbols(blob), blob.step_index)

    def decode_symbols(self, blob: Blob) -> Symbols:
        """Blob to the integers that were coded, (C, h, w): exactly the same on every machine."""
        self.check(blob)
        return self.entropy.decode(blob.sections[container.LATENT], self.latent_shape(blob.width, blob.height), blob.step_index)

    def check(self, blob: Blob) -> None:
        """Raise unless this codec can read the blob."""
        if blob.method not in METHODS:
            raise CorruptBlob(f"unknown method {blob.method}")
        if blob.code_identity != self.code_identity:
            raise WrongModel(
                f"this file needs the entropy profile {blob.code_identity.hex()}; model '{self.manifest.name}' has "
                f"{self.code_identity.hex()}: install the model the file was made with"
            )

    def _blob(self, frame: Frame, step_index: int, payload: bytes) -> Blob:
        sections = {container.LATENT: payload}
        if frame.alpha is not None:
            sections[container.ALPHA] = frame.alpha
        return Blob(
            self.code_identity, self.model_identity, frame.width, frame.height,
            method_number(frame.method), step_index, sections, frame.tiling,
        )  # fmt: skip
