"""Shared material: real photographs, and small model folders of the same classes as the real ones."""

from __future__ import annotations

import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
import httpx
import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import torch
from PIL import Image

from service.bench.serving import Server
from service.engine.autoencoder import ResidualAutoencoder
from service.settings import BUNDLED_MODEL, Settings

Plane = npt.NDArray[np.uint8]


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


def png(pixels: Plane) -> bytes:
    return saved(Image.fromarray(pixels), "PNG", compress_level=1)


def chunk(kind: bytes, content: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def psnr(left: np.ndarray, right: np.ndarray) -> float:
    """dB; 99 for equal pictures."""
    mse = float(((left.astype(float) - right.astype(float)) ** 2).mean())
    return 99.0 if mse == 0 else 10 * float(np.log10(255**2 / mse))


def make_picture(height: int, width: int, seed: int = 0) -> Plane:
    """Smooth colours with some texture: something a codec can do something with."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 24 + 2), max(2, width // 24 + 2), 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image).astype(int) + rng.integers(-6, 7, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photo() -> Plane:
    """A real photograph, 300x451."""
    return np.ascontiguousarray(skimage.data.chelsea())


@pytest.fixture(scope="session")
def photos() -> dict[str, Plane]:
    return {name: np.ascontiguousarray(getattr(skimage.data, name)()) for name in ("astronaut", "coffee", "chelsea", "rocket")}


def _vae(kind: str) -> tuple[object, int, int]:
    """A small auto-encoder, its patch factor and its pixels per latent position."""
    if kind == "residual":
        return ResidualAutoencoder(48, 4, (8, 8), (1, 1), (1, 1)), 4, 8
    if kind == "kl":
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        return diffusers.AutoencoderKL(3, 3, block_out_channels=(8,) * 4, latent_channels=4, norm_num_groups=4, **blocks), 1, 8
    if kind == "tiny":
        return (
            diffusers.AutoencoderTiny(
                encoder_block_out_channels=(8, 8),
                decoder_block_out_channels=(8, 8),
                num_encoder_blocks=(1, 1),
                num_decoder_blocks=(1, 1),
            ),
            1,
            2,
        )
    return (
        diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types=("ResBlock", "ResBlock"),
            decoder_block_types=("ResBlock", "ResBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
        ),
        1,
        2,
    )


def build_model(folder: Path, kind: str = "residual", name: str | None = None) -> Path:
    """A model folder of random weights: everything real but the training."""
    torch.manual_seed(0)
    vae, patch_factor, downscale = _vae(kind)
    vae.save_pretrained(folder / "vae")  # type: ignore[attr-defined]
    unet = diffusers.UNet2DModel(
        in_channels=4, out_channels=4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, add_attention=False,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    manifest = {
        "name": name or f"small-{kind}",
        "version": "1",
        "patch_factor": patch_factor,
        "downscale": downscale,
        "latent_channels": 4,
        "latent_mean": [0.0] * 4,
        "latent_std": [0.3] * 4,
        "entropy": {"kind": "laplace"},
        "rate_points": {"quality_0": 224, "quality_100": 64},
    }
    (folder / "sdc.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a small model of a kind: residual, kl, tiny, dc."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = build_model(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def small_model(model_of: Callable[[str], Path]) -> Path:
    return model_of("residual")


@pytest.fixture
def settings(small_model: Path, tmp_path: Path) -> Settings:
    """Without processes for coding: a second of both cores at every start, and what they do is tested by itself."""
    return Settings(model=small_model, store_url=f"file://{tmp_path}/store", dtype="float32", coders=0)


@pytest.fixture
def bundled_settings(tmp_path: Path) -> Settings:
    return Settings(model=BUNDLED_MODEL, store_url=f"file://{tmp_path}/store", coders=0)


def until(condition: Callable[[], bool]) -> None:
    """What happens after the reply does not take long."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def filled(server: Server) -> Iterator[None]:
    """A service of one slot, which an upload holds that does not end."""

    def refused() -> bool:
        return httpx.get(f"{server.base}/render/{'a' * 26}", timeout=60).status_code == 503

    with socket.create_connection(("127.0.0.1", server.port)) as upload:
        upload.sendall(b"POST /compress HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + bytes(10))
        until(refused)
        yield
