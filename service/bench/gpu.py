"""Stable Diffusion's networks at full size: how fast, and what share of the device's own arithmetic.

Random weights, because speed does not depend on the values.  On a processor the same, and what a GPU's time would be by operations and
launches: a prediction, and called one.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from service.bench import full_size
from service.bench.pictures import as_png, machine
from service.engine.device import describe, pick_device, pick_dtype
from service.engine.engine import Engine
from service.pipeline import CompressOptions, RenderOptions, open_pipeline
from service.settings import Settings

SIDES = (512, 1024)
BATCHES = (1, 2, 4, 8, 16, 32)
WORTH = 1.03
"""a larger batch is better when it is faster by so much"""
CEILING_SIDE = {"cpu": 3072, "cuda": 8192}
GPU_TFLOPS, GPU_SHARE, LAUNCH_S = 700.0, 0.5, 4e-6
"""of the GPU that is predicted: bf16 matmul as an H200 has been measured, what convolutions reach of it, and the time between launches"""
SERVICE_PICTURES = 256
"""rendered through the whole service on a GPU"""


@dataclass(frozen=True)
class Cost:
    """Of one operation on one picture."""

    flops: float
    launches: int
    """operations that run on the device, views not counted"""


class _Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    VIEWS = ("view", "reshape", "permute", "transpose", "t", "expand", "slice", "unsqueeze", "squeeze", "split", "chunk", "detach", "alias")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.__name__.partition(".")[0].lstrip("_").removesuffix("_unsafe") not in self.VIEWS
        return func(*args, **(kwargs or {}))


def costs(side: int) -> dict[str, Cost]:
    """Of each operation on a picture of this side, counted on tensors without content."""
    with torch.device("meta"):
        vae, unet = full_size.vae(), full_size.unet()
        pixels, latent = torch.zeros(1, 3, side, side), torch.zeros(1, 4, side // 8, side // 8)
        prompt, timestep = torch.zeros(1, full_size.TOKENS, full_size.WIDTH), torch.zeros(1)
    calls: dict[str, Callable[[], object]] = {
        "encode": lambda: vae.encode(pixels),
        "U-Net step": lambda: unet(latent, timestep, encoder_hidden_states=prompt),
        "decode": lambda: vae.decode(latent),
    }
    found = {}
    for name, call in calls.items():
        with torch.no_grad(), FlopCounterMode(display=False) as flops:
            call()
        with torch.no_grad(), _Launches() as launches:
            call()
        found[name] = Cost(float(flops.get_total_flops()), launches.count)
    return found


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call, after one that does not count."""
    call()
    taken = []
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        call()
        synchronise(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of one large matrix product."""
    side = CEILING_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: left @ right, device, 5)


def operations(engine: Engine, side: int, batch: int) -> dict[str, Callable[[], object]]:
    """What the service's device thread calls, copies to and from the device included."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch, side, side, 3)).astype(np.uint8)
    latent = rng.normal(size=(batch, full_size.CHANNELS, side // 8, side // 8)).astype(np.float32)
    steps = np.ones(batch, np.float32)
    return {
        "encode": lambda: engine.encode(pixels),
        "U-Net step": lambda: engine.restore(latent, steps, 1),
        "decode": lambda: engine.decode(latent),
    }


def best_batch(engine: Engine, side: int, name: str, batches: Sequence[int], repeats: int) -> tuple[int, float]:
    """Batch size and pictures a second; larger ones are tried while they pay and fit."""
    best = (1, 0.0)
    for batch in batches:
        try:
            rate = batch / seconds(operations(engine, side, batch)[name], engine.device, repeats)
        except Exception as error:  # memory, in whichever words
            if "memory" not in str(error):
                raise
            break
        if rate < WORTH * best[1]:
            break
        best = (batch, rate)
    return best


def plain_seconds(side: int) -> float:
    """One U-Net step and one decode by diffusers alone: fp32, as ``from_pretrained`` gives them."""
    vae, unet = full_size.vae().eval(), full_size.unet().eval()
    latent, prompt = torch.randn(1, 4, side // 8, side // 8), torch.randn(1, full_size.TOKENS, full_size.WIDTH)

    def render() -> object:
        with torch.no_grad():
            noise = unet(latent, torch.tensor(22), encoder_hidden_states=prompt).sample
            return vae.decode((latent - 0.1 * noise) / vae.config.scaling_factor).sample

    return seconds(render, torch.device("cpu"), 1)


async def _service(settings: Settings, pictures: int) -> dict[str, float]:
    """Pictures of 512x512 a second through the queue, many at once: opening, coding and writing included."""
    source = as_png(np.random.default_rng(0).integers(0, 256, (512, 512, 3)).astype(np.uint8))
    async with open_pipeline(settings) as pipeline:
        blob = (await pipeline.compress(source, CompressOptions())).content
        jobs: dict[str, Callable[[], Any]] = {
            "compress": lambda: pipeline.compress(source, CompressOptions()),
            "render": lambda: pipeline.render(blob, RenderOptions("webp")),
        }
        rates = {}
        for name, job in jobs.items():
            started = time.perf_counter()
            await asyncio.gather(*(job() for _ in range(pictures)))
            rates[name] = pictures / (time.perf_counter() - started)
        return rates


def _table(engine: Engine, side: int, rate: float) -> tuple[Table, dict[str, float]]:
    """All operations on pictures of one side, and how long each takes alone."""
    gpu = engine.device.type == "cuda"
    table = Table(
        "", "TFLOP", "launches", "batch 1, ms", "of the ceiling", "best batch", "pictures/s", "of the ceiling", "predicted ms",
        title=f"{side}x{side}",
    )  # fmt: skip
    taken = {}
    for name, cost in costs(side).items():
        taken[name] = seconds(operations(engine, side, 1)[name], engine.device, 20 if gpu else 2)
        batch, best = best_batch(engine, side, name, BATCHES, 5) if gpu else (1, 1 / taken[name])
        predicted = max(cost.flops / (GPU_TFLOPS * 1e12 * GPU_SHARE), cost.launches * LAUNCH_S)
        table.add_row(
            name, f"{cost.flops / 1e12:.2f}", str(cost.launches), f"{taken[name] * 1e3:,.1f}", f"{cost.flops / taken[name] / rate:.2f}",
            str(batch), f"{best:,.2f}", f"{cost.flops * best / rate:.2f}", f"{predicted * 1e3:.1f}",
        )  # fmt: skip
    return table, taken


def main(settings: Settings, out: Console) -> None:
    """Run and print."""
    device = pick_device(settings.device)
    dtype = pick_dtype(device, settings.dtype)
    rate = ceiling(device, dtype)
    out.print(
        f"Stable Diffusion 1.5, full size, random weights; {describe(device)}, {str(dtype).removeprefix('torch.')}; {machine()}; "
        f"one matrix product, the ceiling: {rate / 1e12:.2f} TFLOP/s; predicted: an H200-class GPU, batch 1", highlight=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = full_size.build(Path(name))
        engine = Engine(folder, str(device), str(dtype).removeprefix("torch."))
        with engine.warming():  # every shape here is one that a service would be warmed up with
            for side in SIDES if device.type == "cuda" else SIDES[:1]:
                table, taken = _table(engine, side, rate)
                out.print(table)
        if device.type == "cuda":
            out.print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB", highlight=False)
            del engine
            served = asyncio.run(_service(settings.model_copy(update={"model": folder, "store_url": "memory:///"}), SERVICE_PICTURES))
            out.print("the whole service, 512x512, pictures/s: " + ", ".join(f"{key} {value:.1f}" for key, value in served.items()))
        else:
            ours, plain = taken["U-Net step"] + taken["decode"], plain_seconds(SIDES[0])
            out.print(
                f"one render of 512x512 (a U-Net step and a decode): {ours:.2f} s, by plain diffusers in fp32 {plain:.2f} s, "
                f"{plain / ours:.1f} times that; the GPU's times are predicted and were not measured", highlight=False,
            )  # fmt: skip
