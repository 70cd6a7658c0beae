"""Stage 3: the U-Net, on quantised latents at every step, and with it the decoder if asked for; encoder and context model are finished."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch

from service.codec.steps import step_size
from service.engine.autoencoder import ResidualAutoencoder
from service.engine.schedule import clean_latent, noise_of_step, timestep_of_noise
from training import machine
from training.config import Config
from training.data import Pictures
from training.latents import finished_vae, shipped_steps
from training.loop import Progress
from training.losses import Distortion
from training.networks import as_input, decode, encode, psnr

EVALUATED_STEPS = (1.0, 2.0, 4.0, 8.0)
"""raw, of the held-out figures"""


def scheduler() -> diffusers.DDPMScheduler:
    """Stable Diffusion's noise schedule, with epsilon prediction: a network that says 0 leaves the latent as it is."""
    return diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="epsilon")


def build(config: Config) -> diffusers.UNet2DModel:
    torch.manual_seed(config.seed + 2)
    shape = config.unet
    depth = len(shape.block_out_channels)
    network = diffusers.UNet2DModel(
        in_channels=config.autoencoder.latent_channels,
        out_channels=config.autoencoder.latent_channels,
        block_out_channels=tuple(shape.block_out_channels),
        layers_per_block=shape.layers_per_block,
        down_block_types=("DownBlock2D",) * depth,
        up_block_types=("UpBlock2D",) * depth,
        norm_num_groups=shape.norm_num_groups,
        add_attention=False,
    )
    torch.nn.init.zeros_(network.conv_out.weight)
    torch.nn.init.zeros_(network.conv_out.bias)
    return network.to(machine.device(), memory_format=torch.channels_last)


def finished(config: Config, folder: Path) -> Progress:
    """The averaged U-Net and auto-encoder of this stage, or what they begin as."""
    first = finished_vae(config, folder)
    vae = first.averaged["vae"].requires_grad_(False)
    assert isinstance(vae, ResidualAutoencoder)
    vae.decoder.requires_grad_(config.unet.with_decoder)
    if vae.linear_decoder is not None:
        vae.linear_decoder.requires_grad_(config.unet.with_decoder)
    return Progress("unet", {"unet": build(config), "vae": vae}, config.unet_stage, folder, muon=("unet", "vae"), of=first.step)


class Renderer:
    """What the engine does with a latent, differentiable: quantise, restore, decode."""

    def __init__(self, config: Config, scale: float) -> None:
        self.scale, self.config = scale, config
        steps, alphas = [step_size(index) for index in shipped_steps(config, scale)], scheduler().alphas_cumprod
        self.steps, self.alphas = torch.tensor(steps, device=machine.device()), alphas.to(machine.device())
        self.timesteps = torch.tensor([timestep_of_noise(alphas, noise_of_step(step)) for step in steps], device=machine.device())

    @classmethod
    def of(cls, config: Config, folder: Path) -> Renderer:
        """For the latents of the run in ``folder``."""
        return cls(config, float(torch.load(folder / "scale.pt", weights_only=True)["scale"]))

    def nearest(self, raw: float, count: int) -> torch.Tensor:
        """(count,) times the index of the step nearest to one of the raw latent."""
        index = int((self.steps - raw / self.scale).abs().argmin())
        return torch.full((count,), index, device=machine.device())

    @torch.no_grad()
    def send(self, vae: ResidualAutoencoder, pixels: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """The quantised latent of pictures (N, 3, S, S) in -1..1."""
        return self.quantise(encode(vae, pixels, self.config) / self.scale, which)

    def quantise(self, latent: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        width = self.steps[which].view(-1, 1, 1, 1)
        return torch.round(latent / width) * width

    def restore(self, unet: torch.nn.Module, sent: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Clean a quantised latent, within its cells."""
        half = self.steps[which].view(-1, 1, 1, 1) / 2
        alpha = self.alphas[self.timesteps[which]].view(-1, 1, 1, 1)
        noisy = sent * alpha.sqrt()
        clean = clean_latent("epsilon", noisy, unet(noisy, self.timesteps[which]).sample.float(), alpha)
        return torch.clamp(clean, sent - half, sent + half)

    def decode(self, vae: ResidualAutoencoder, latent: torch.Tensor) -> torch.Tensor:
        return decode(vae, latent * self.scale, self.config)


def train(config: Config, images: list[Path], folder: Path) -> None:
    """Train for the configured minutes.  Where the decoder learns too, every fourth crop goes past the U-Net: ``steps=0`` stays good."""
    pictures = Pictures(images, config.data, validation=False)
    held_out = Pictures(images, config.data, validation=True).centre_crops(48)
    progress = finished(config, folder)
    network, vae = progress.modules["unet"], progress.modules["vae"]
    assert isinstance(vae, ResidualAutoencoder)
    renderer = Renderer.of(config, folder)
    distortion, batch = Distortion(config.loss), config.unet_stage.batch
    through = (torch.arange(batch, device=machine.device()) % 4 != 1) | (not config.unet.with_decoder)
    batches = pictures.batches(batch, config.seed + 100 + progress.step)
    while progress.fraction < 1:
        pixels = as_input(next(batches))
        which = torch.randint(len(renderer.steps), (batch,), device=machine.device())
        sent = renderer.send(vae, pixels, which)
        with machine.mixed():
            cleaned = sent.clone()
            cleaned[through] = renderer.restore(network, sent[through], which[through])
            decoded = renderer.decode(vae, cleaned)
        loss, parts = distortion(decoded, pixels, renderer.steps[which] * renderer.scale)
        progress.update(loss)
        progress.note(**parts, loss=loss.detach())
        if progress.step % 500 == 0 or progress.fraction >= 1:
            progress.log(validation=evaluate(progress, renderer, held_out, distortion))
    progress.save()


@torch.no_grad()
def evaluate(progress: Progress, renderer: Renderer, crops: torch.Tensor, distortion: Distortion) -> list[dict[str, float]]:
    """Averaged weights on held-out crops, with and without the U-Net: PSNR (dB) and feature distance."""
    network, vae = progress.averaged["unet"], progress.averaged["vae"]
    assert isinstance(vae, ResidualAutoencoder)
    figures = []
    for raw in EVALUATED_STEPS:
        totals = torch.zeros(2, 2)
        for part in crops.split(8):
            pixels, which = as_input(part), renderer.nearest(raw, len(part))
            sent = renderer.send(vae, pixels, which)
            with machine.mixed():
                for row, latent in enumerate((sent, renderer.restore(network, sent, which))):
                    decoded = renderer.decode(vae, latent).float().clamp(-1, 1)
                    totals[row] += torch.stack([psnr(decoded, pixels), distortion.features(decoded, pixels)]).sum(1).cpu()
        (psnr_0, feature_0), (psnr_1, feature_1) = (totals / len(crops)).tolist()
        line = {"step": raw, "psnr_steps0": psnr_0, "psnr_steps1": psnr_1, "feature_steps0": feature_0, "feature_steps1": feature_1}
        figures.append({key: round(value, 4) for key, value in line.items()})
    return figures
