"""One model on one device: the three operations, one implementation for every model folder.

    pixels uint8 (N, H, W, 3) --encode--> latent float32 (N, C, h, w), normalised
    latent on the lattice --restore--> latent with the quantisation noise cleaned --decode--> pixels

Each can be begun, and waited for later: a GPU computes meanwhile, and the next batch can be begun behind it.  What begins work is called
from one thread at a time; another may wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from service.engine import article
from service.engine.compiled import Buckets
from service.engine.device import Way, describe, pick_device, pick_dtype, pick_way
from service.engine.graphs import Recorder
from service.engine.network import Networks
from service.engine.schedule import clean_latent, descending, noise_of_step, timestep_of_noise
from service.engine.transfer import Array, Arrays, Laps, Transfer
from service.errors import BadModel, DeviceFailed, DeviceLost, OutOfMemory, first_line
from service.manifest import Manifest, Steps, read_manifest
from service.telemetry import metrics

Pixels = npt.NDArray[np.uint8]
Latents = npt.NDArray[np.float32]
DECODER_VERSION = 2
"""raised when the same latent comes to give other pixels; part of every render's validator"""

NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")
"""of ncnn, of torch on a processor, of CUDA and of its libraries: what says so, of errors that have no class of their own"""

LARGE = 100_000_000
"""parameters from which compiling is worth the minutes it adds to the start"""

Finish = Callable[[], tuple[Array, dict[str, float]]]
"""waits for a batch: its result, and the seconds that the device spent on each stage; raises DeviceFailed, OutOfMemory, DeviceLost"""

Result = TypeVar("Result")


class Engine:
    """Loads a model folder; raises BadModel when it is not one.

    Args:
        folder: diffusers layout plus ``sdc.json``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        compiled: whether the shapes that are run inside ``warming`` are compiled, instead of what ``pick_way`` says; None: those of a
            large model on a GPU that says ``plain``.
        backend: of the compiler.
        graphs: whether a GPU replays the shapes that are run inside ``warming``.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "auto",
        dtype: str = "auto",
        compiled: bool | None = None,
        backend: str = "inductor",
        graphs: bool = True,
    ) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self.device = pick_device(device)
        self.dtype = pick_dtype(self.device, dtype)
        way: Way = "plain" if compiled else pick_way(self.device, self.dtype)
        self._networks = Networks(folder, self.device, self.dtype, way)
        self._transfer = Transfer(self.device)
        if compiled is None:
            compiled = self.device.type == "cuda" and way == "plain" and self._networks.parameters > LARGE
        recorder = Recorder(self.device) if graphs and self.device.type == "cuda" else None
        self._buckets = Buckets(backend if compiled else None, recorder) if compiled or recorder else None
        if self._buckets is not None:
            self._networks.prepare(self._buckets)
        self._exact: Networks | None = None
        shape = (1, -1, 1, 1)
        self._mean = torch.tensor(self.manifest.latent_mean, device=self.device).view(shape)
        self._std = torch.tensor(self.manifest.latent_std, device=self.device).view(shape)

    def warming(self) -> AbstractContextManager[None]:
        """Shapes that are run in the block are made ready to run fast."""
        return nullcontext() if self._buckets is None else self._buckets.warming()

    @property
    def makes_kernels(self) -> bool:
        """Whether the first run of a shape takes many times as long as those after it.  On a processor, not compiled: about 6 % more."""
        return self.device.type != "cpu" or self._buckets is not None

    def batch_of(self, wanted: int) -> int:
        """How large a batch may be where so many are allowed: 1 where that gains nothing, because its pictures are computed one by one."""
        return 1 if self._networks.alone else wanted

    @property
    def decoder_name(self) -> str:
        """What, beside the model's name and version, decides on the pixels of a latent."""
        revision = self.manifest.decoder_revision
        return f"{DECODER_VERSION}{'f' if self._networks.fast else ''}{f'r{revision}' if revision > 1 else ''}"

    @property
    def description(self) -> str:
        millions = self._networks.parameters / 1e6
        revision = self.manifest.decoder_revision
        name = f"{self.manifest.name} {self.manifest.version}{f' (decoder {revision})' if revision > 1 else ''}"
        return f"{name}, {millions:.1f} M parameters, {str(self.dtype).removeprefix('torch.')} on {describe(self.device)}"

    def check(self, height: int = 128, width: int = 128) -> None:
        """Run each operation once on a small picture.

        Raises DeviceFailed when the model gives no finite result, BadModel for a latent of another shape and for networks that do not run.
        """
        factor, channels = self.manifest.downscale, self.manifest.latent_channels
        try:
            latent = self.encode(np.zeros((1, height, width, 3), np.uint8))
            if latent.shape != (1, channels, height // factor, width // factor):
                raise BadModel(f"sdc.json says {channels} latent channels at 1/{factor}; {height}x{width} gives {latent.shape[1:]}")
            self.decode(self.restore(latent, np.ones(1, np.float32), 1))
        except (RuntimeError, ValueError, TypeError) as error:
            raise BadModel(f"{self.folder} cannot be run: {first_line(error)}") from error

    def encode(self, pixels: Pixels, sampled: bool = False) -> Latents:
        """Pixels uint8 (N, H, W, 3) to normalised latents float32 (N, C, H/f, W/f); H and W multiples of the model's downscale f.

        An auto-encoder that gives a distribution is asked for its mode, or, ``sampled``, for the sample that the article takes: of the
        processor's generator with seed 0, for each item as if it were alone.
        """
        latents, _ = self.begin_encode(pixels, sampled)()
        return latents

    def begin_encode(self, pixels: Arrays, sampled: bool = False) -> Finish:
        """Begin ``encode``; one stage, ``encode``."""

        def run(networks: Networks, laps: Laps, items: Arrays) -> torch.Tensor:
            patches = _patches(self._transfer.onto(items), self.manifest.patch_factor).float() / 127.5 - 1
            raw = networks.encode(_layout(patches, networks.vae_dtype), sampled).float()
            return (raw - self._mean) / self._std

        return self._begin("encode", run, pixels)

    def restore(self, latents: Latents, step_sizes: npt.NDArray[np.float32], steps: Steps, projected: bool = True) -> Latents:
        """Clean the quantisation noise with the U-Net.

        Args:
            latents: (N, C, h, w) dequantised, normalised.
            step_sizes: (N,) quantiser step of each item, in units of the normalised latent.
            steps: U-Net steps; 0 returns the latents as they are.
            projected: whether the latents were quantised with that step.

        Returns:
            (N, C, h, w).  If ``projected``, but not as the article does it, each value is within the quantisation cell that was sent (cell
            projection): the restoration never invents a picture that would have been coded differently.
        """
        if steps == 0:
            return latents

        clean, _ = self.begin_restore(latents, step_sizes, steps, projected)()
        return clean

    def begin_restore(self, latents: Arrays, step_sizes: npt.NDArray[np.float32], steps: Steps, projected: bool = True) -> Finish:
        """Begin ``restore``, of one step at least; one stage, ``unet``."""

        def run(networks: Networks, laps: Laps, items: Arrays, sizes: npt.NDArray[np.float32]) -> torch.Tensor:
            return self._restored(networks, items, sizes, steps, projected)

        return self._begin("unet", run, latents, step_sizes)

    def decode(self, latents: Latents) -> Pixels:
        """Normalised latents (N, C, h, w) to pixels uint8 (N, h*f, w*f, 3)."""
        pixels, _ = self.begin_render(latents, np.zeros(len(latents), np.float32), 0)()
        return pixels

    def begin_render(self, latents: Arrays, step_sizes: npt.NDArray[np.float32], steps: Steps, projected: bool = True) -> Finish:
        """Begin ``restore`` and ``decode`` of what comes of it; two stages, ``unet``, where there are steps, and ``decode``."""

        def run(networks: Networks, laps: Laps, items: Arrays, sizes: npt.NDArray[np.float32]) -> torch.Tensor:
            if steps == 0:
                normalised = self._transfer.onto(items)
            else:
                normalised = self._restored(networks, items, sizes, steps, projected)
                laps("unet")
            raw = normalised / networks.fast_scaling if networks.fast else normalised * self._std + self._mean
            patches = networks.decode(_layout(raw, networks.vae_dtype)).float()
            return F.pixel_shuffle(patches, self.manifest.patch_factor).permute(0, 2, 3, 1)

        return self._begin("decode", run, latents, step_sizes, shown=_as_bytes)

    def _restored(self, networks: Networks, latents: Arrays, sizes: npt.NDArray[np.float32], steps: Steps, projected: bool) -> torch.Tensor:
        sent = self._transfer.onto(latents)
        clean = self._denoise(networks, sent, sizes, steps)
        if not projected or steps == "article":
            return clean
        half = self._transfer.onto(sizes).view(-1, 1, 1, 1) / 2
        inside: torch.Tensor = torch.clamp(clean, sent - half, sent + half)
        # clamp(NaN) is NaN: a failed item is still seen by the caller
        return inside

    def _denoise(self, networks: Networks, sent: torch.Tensor, sizes: npt.NDArray[np.float32], steps: Steps) -> torch.Tensor:
        height, width = sent.shape[2:]
        multiple = networks.unet_multiple
        padded = F.pad(sent, (0, -width % multiple, 0, -height % multiple), mode="replicate")

        def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            return networks.predict(_layout(noisy, networks.dtype), timesteps).float()

        if steps == "article":
            clean = article.restore(networks.article_scheduler, predict, padded)
        else:
            clean = self._ddim(networks, predict, padded, sizes, steps)
        return clean[:, :, :height, :width]

    def _ddim(
        self,
        networks: Networks,
        predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        sent: torch.Tensor,
        sizes: npt.NDArray[np.float32],
        steps: int,
    ) -> torch.Tensor:
        """DDIM without noise (Song et al. 2021, eq. 12, sigma = 0) from each item's own timestep down to the clean latent."""
        first = [timestep_of_noise(networks.alphas, noise_of_step(float(size))) for size in sizes]
        ladder = torch.tensor([descending(start, steps) for start in first]).T.contiguous()
        rungs = self._transfer.onto(ladder.numpy())
        alphas = self._transfer.onto(networks.alphas[ladder].numpy()).view(*ladder.shape, 1, 1, 1)
        current = sent * alphas[0].sqrt()
        for index, (timesteps, alpha) in enumerate(zip(rungs, alphas, strict=True)):
            clean = clean_latent(networks.prediction_type, current, predict(current, timesteps), alpha)
            if index + 1 < steps:
                following = alphas[index + 1]
                noise = (current - alpha.sqrt() * clean) / (1 - alpha).sqrt()
                current = following.sqrt() * clean + (1 - following).sqrt() * noise
        return clean

    def _begin(
        self,
        stage: str,
        run: Callable[..., torch.Tensor],
        items: Arrays,
        *others: Array,
        shown: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous,
    ) -> Finish:
        """Give the device a batch.  Items whose result turns out not to be finite are run again, alone, in fp32.

        Args:
            stage: the last.
            run: called with networks, the clock, and the items.
            items: of the batch; so are ``others``, each (N, ...).
            shown: what is done with the result, on the device, before it is copied.
        """

        def begin() -> Finish:
            laps = self._transfer.laps()
            result = run(self._networks, laps, items, *others)
            sound = self._transfer.back(result.isfinite().flatten(1).all(1))
            whole = shown(result)
            laps(stage)
            arrived = self._transfer.back(whole)

            def finish() -> tuple[Array, dict[str, float]]:
                array = arrived()
                for index in np.flatnonzero(~sound()).tolist():
                    one = slice(index, index + 1)
                    array[one] = self._again(run, shown, items[one], *(other[one] for other in others))
                return array, laps.seconds()

            return finish

        finish = self._told(begin)
        return lambda: self._told(finish)

    @torch.inference_mode()
    def _told(self, call: Callable[[], Result]) -> Result:
        """What a call gives; torch's words for too little memory become OutOfMemory, from which the queue recovers.

        Nothing of the failed call is kept, be it as a traceback or as the error that another came of: its tensors would be kept with it.
        """
        try:
            return call()
        except (torch.OutOfMemoryError, MemoryError):
            pass
        except RuntimeError as error:
            if not any(words in str(error) for words in NO_MEMORY):
                if self._lost():
                    raise DeviceLost("the device does not answer any more") from error
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory("the picture does not fit into the device's memory")

    def _lost(self) -> bool:
        """Whether a device on which something failed does nothing more in this process, as a GPU after an illegal access."""
        try:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except RuntimeError:
            return True
        return False

    def _again(self, run: Callable[..., torch.Tensor], shown: Callable[[torch.Tensor], torch.Tensor], *item: Arrays) -> Array:
        """One item whose result was not finite, in fp32; raises DeviceFailed if that fails too."""
        metrics.NONFINITE.inc()
        if self._exact is None:
            self._exact = Networks(self.folder, self.device, torch.float32)
        result = run(self._exact, self._transfer.laps(), *item)
        if not result.isfinite().all():
            raise DeviceFailed("the model gave no finite result for this picture")
        return self._transfer.back(shown(result))()


def _patches(pictures: torch.Tensor, factor: int) -> torch.Tensor:
    """(N, H, W, 3) to (N, 3 * factor**2, H / factor, W / factor), channels last in memory; pixel_unshuffle's order, on bytes."""
    n, height, width, colours = pictures.shape
    blocks = pictures.view(n, height // factor, factor, width // factor, factor, colours).permute(0, 1, 3, 5, 2, 4)
    return blocks.reshape(n, height // factor, width // factor, colours * factor**2).permute(0, 3, 1, 2)


def _as_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """-1..1 to 0..255: a quarter of the copying."""
    return ((pictures + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).contiguous()


def _layout(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype=dtype, memory_format=torch.channels_last)
