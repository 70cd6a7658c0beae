"""Stage 3: the U-Net, on quantised latents at every step, judged by what the finished decoder makes of its output."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
from torch.nn import functional as F

from service.bench.features import FeatureDistance
from service.codec.steps import step_size
from service.engine.schedule import clean_latent, noise_of_step, timestep_of_noise
from training.config import Config
from training.data import Pictures
from training.latents import encode, finished_vae, shipped_steps
from training.loop import Progress


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
    return network.to(memory_format=torch.channels_last)


def train(config: Config, images: list[Path], folder: Path) -> None:
    """Train for the configured minutes, the decoder frozen."""
    pictures = Pictures(images, config.data, validation=False)
    held_out = Pictures(images, config.data, validation=True).centre_crops(48)
    vae = finished_vae(config, folder).averaged["vae"]
    scale = float(torch.load(folder / "scale.pt", weights_only=True)["scale"])
    indices = shipped_steps(config, scale)
    alphas = scheduler().alphas_cumprod
    network = build(config)
    distance = FeatureDistance("lite0").to(memory_format=torch.channels_last)
    progress = Progress("unet", {"unet": network}, config.unet_stage, folder)
    steps = torch.tensor([step_size(index) for index in indices])
    timesteps = torch.tensor([timestep_of_noise(alphas, noise_of_step(float(step))) for step in steps])
    loss_of, batch = config.loss, config.unet_stage.batch

    def restored(unet: torch.nn.Module, latent: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Quantise a normalised latent and clean it, as the engine does."""
        width = steps[which].view(-1, 1, 1, 1)
        sent = torch.round(latent / width) * width
        alpha = alphas[timesteps[which]].view(-1, 1, 1, 1)
        noisy = sent * alpha.sqrt()
        clean = clean_latent("epsilon", noisy, unet(noisy, timesteps[which]).sample.float(), alpha)
        return torch.clamp(clean, sent - width / 2, sent + width / 2)

    def losses(latent: torch.Tensor, pixels: torch.Tensor, few: int) -> tuple[torch.Tensor, torch.Tensor]:
        decoded = F.pixel_shuffle(vae.decode(latent * scale).sample, config.patch_factor)
        mse = (decoded.float() - pixels).square().mean((1, 2, 3)) * 127.5**2
        return mse, distance(decoded[:few], pixels[:few])

    sums = torch.zeros(2)
    batches = pictures.batches(batch, config.seed + 100 + progress.step)
    while progress.fraction < 1:
        crops = next(batches)
        latent = encode(vae, crops, config) / scale
        pixels = crops.float() / 127.5 - 1
        which = torch.randint(len(steps), (batch,))
        raw_step = steps[which] * scale
        with torch.autocast("cpu", torch.bfloat16):
            mse, feature = losses(restored(network, latent, which), pixels, loss_of.feature_crops)
        weight = raw_step**loss_of.balance
        squared = loss_of.mse * raw_step**-loss_of.mse_exponent * mse
        few = loss_of.feature_crops
        perceptual = loss_of.feature * raw_step[:few] ** -loss_of.feature_exponent * feature
        progress.update((weight * squared).mean() + (weight[:few] * perceptual).mean())
        sums += torch.stack([mse.detach().mean(), feature.detach().mean()])
        if progress.step % 100 == 0:
            progress.log(mse=round(float(sums[0]) / 100, 3), feature=round(float(sums[1]) / 100, 4))
            sums = torch.zeros(2)
        if progress.step % 500 == 0 or progress.fraction >= 1:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                report = {}
                target = held_out.float() / 127.5 - 1
                clean = encode(vae, held_out, config) / scale
                for raw in (0.5, 1.0, 2.0):
                    nearest = int((steps - raw / scale).abs().argmin())
                    which = torch.full((len(held_out),), nearest)
                    width = steps[nearest]
                    before = losses(torch.round(clean / width) * width, target, len(target))
                    after = losses(restored(progress.averaged["unet"], clean, which), target, len(target))
                    report[raw] = {
                        "psnr_steps0": round(float((10 * torch.log10(65025 / before[0])).mean()), 3),
                        "psnr_steps1": round(float((10 * torch.log10(65025 / after[0])).mean()), 3),
                        "feature_steps0": round(float(before[1].mean()), 4),
                        "feature_steps1": round(float(after[1].mean()), 4),
                    }
            progress.log(validation=report)
    progress.save()
