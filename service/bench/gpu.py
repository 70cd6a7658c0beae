"""Stable Diffusion's networks at full size: how fast, and what share of the device's own arithmetic.

Random weights, because speed does not depend on the values.  On a processor the same, and what a GPU's time would be by operations and
launches: a prediction, and called one.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from uvicorn.loops.auto import auto_loop_factory

from service.bench import full_size
from service.bench.pictures import as_png, machine
from service.engine.device import describe, pick_device, pick_dtype
from service.engine.engine import Engine, Finish
from service.options import CompressOptions, RenderOptions
from service.pipeline import open_pipeline
from service.process import VARIABLES
from service.settings import Settings

SIDES = (512, 1024)
BATCHES = (1, 4, 8, 16, 32)
MOST_PIXELS = 32 * 512**2
"""of a batch that is tried"""
WORTH = 1.03
"""a larger batch is better when it is faster by so much"""
RENDER = "render"
"""one step and the decode, as the service's device thread does them"""
COMPILING_S = {"encode": 30, "U-Net step": 70, "decode": 35}
"""what compiling one shape may take, as far as is known: one is not begun with less time left"""
REPEATS = 20
PAIRS = 5
"""renders on a processor, ours and a plain one, in turn: other tenants of its cores take from both"""
SERVICE_S = 40
"""what the service needs to start, warm up and be measured"""
CEILING_SIDE = {"cpu": 3072, "cuda": 8192}
GPU_TFLOPS, GPU_SHARE, LAUNCH_S = 700.0, 0.5, 4e-6
"""of the GPU that is predicted: bf16 matmul as an H200 has been measured, what convolutions reach of it, and the time between launches"""
SERVICE_PICTURES, SERVICE_AT_ONCE = 768, 192
"""through the whole service on a GPU"""
PROCESSES = (1, 2, 3)
"""so many of the service beside each other"""


@dataclass(frozen=True)
class Terms:
    """What is measured, and for how long."""

    sides: tuple[int, ...] = ()
    """of the pictures; none: those of ``SIDES`` on a GPU, the first of them on a processor"""
    seconds: float = 900
    """nothing is begun after so long"""
    compiled: bool = True
    """whether compiled networks are measured too, on a GPU"""
    folder: Path | None = None
    """where gpu.json is written, anew after each figure"""


@dataclass(frozen=True)
class Cost:
    """Of one operation on one picture."""

    flops: float
    launches: int
    """operations that run on the device, views not counted"""

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.launches + other.launches)


class _Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    VIEWS = ("view", "reshape", "permute", "transpose", "t", "expand", "slice", "unsqueeze", "squeeze", "split", "chunk", "detach", "alias")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.__name__.partition(".")[0].lstrip("_").removesuffix("_unsafe") not in self.VIEWS
        return func(*args, **(kwargs or {}))


@cache
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
    return found | {RENDER: found["U-Net step"] + found["decode"]}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device, repeats: int, warm: bool = True) -> float:
    """Median time of a call, where ``warm`` after one that does not count."""
    if warm:
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


def operations(engine: Engine, side: int, batch: int) -> dict[str, Callable[[], Finish]]:
    """What the service's device thread begins, copies to and from the device included."""
    rng = np.random.default_rng(0)
    pixels = list(rng.integers(0, 256, (batch, side, side, 3)).astype(np.uint8))
    latents = list(rng.normal(size=(batch, full_size.CHANNELS, side // 8, side // 8)).astype(np.float32))
    steps = np.ones(batch, np.float32)
    return {
        "encode": lambda: engine.begin_encode(pixels),
        "U-Net step": lambda: engine.begin_restore(latents, steps, 1),
        "decode": lambda: engine.begin_render(latents, steps, 0),
        RENDER: lambda: engine.begin_render(latents, steps, 1),
    }


def whole(begin: Callable[[], Finish]) -> npt.NDArray[Any]:
    """The result of what is begun and waited for at once."""
    result, _ = begin()()
    return result


def one_by_one(engine: Engine, side: int) -> dict[str, Callable[[], npt.NDArray[Any]]]:
    """``operations`` on single pictures, each waited for."""
    return {name: partial(whole, begin) for name, begin in operations(engine, side, 1).items()}


def in_a_row(begin: Callable[[], Finish], repeats: int) -> float:
    """Seconds of one of many, each begun before the one ahead of it is waited for, as the service does."""
    whole(begin)
    started, ahead = time.perf_counter(), begin()
    for _ in range(repeats):
        behind = begin()
        ahead()
        ahead = behind
    ahead()
    return (time.perf_counter() - started) / (repeats + 1)


def best_batch(engine: Engine, side: int, name: str, batches: Sequence[int], repeats: int) -> tuple[int, float]:
    """Batch size and pictures a second; larger ones are tried while they pay and fit."""
    best = (1, 0.0)
    for batch in batches:
        try:
            rate = batch / in_a_row(operations(engine, side, batch)[name], repeats)
        except Exception as error:  # memory, in whichever words
            if "memory" not in str(error):
                raise
            break
        if rate < WORTH * best[1]:
            break
        best = (batch, rate)
    return best


@contextmanager
def apart(expression: str) -> Iterator[Callable[[], float]]:
    """Calls what an expression gives, this module being ``gpu``, in a process in which nothing is as ``service.process`` sets it.

    Raises RuntimeError where the expression fails.
    """
    script = (
        f"import sys; from service.bench import gpu; call = {expression}\nprint(flush=True)\nfor _ in sys.stdin: print(call(), flush=True)"
    )
    untuned = os.environ | {name: default for name, (_, default) in VARIABLES.items()}
    with subprocess.Popen([sys.executable, "-c", script], env=untuned, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        asked, told = process.stdin, process.stdout
        assert asked is not None and told is not None  # as they were asked for

        def call() -> float:
            print(file=asked, flush=True)
            return float(told.readline())

        try:
            if not told.readline():  # else it is ready, and takes no time from what is measured here
                raise RuntimeError("the process beside this one failed")
            yield call
        finally:
            asked.close()


def plain_render(side: int) -> Callable[[], float]:
    """Seconds of one U-Net step and one decode by diffusers alone: fp32, as ``from_pretrained`` gives them."""
    vae, unet = full_size.vae().eval(), full_size.unet().eval()
    latent, prompt = torch.randn(1, 4, side // 8, side // 8), torch.randn(1, full_size.TOKENS, full_size.WIDTH)

    def render() -> object:
        with torch.no_grad():
            noise = unet(latent, torch.tensor(22), encoder_hidden_states=prompt).sample
            return vae.decode((latent - 0.1 * noise) / vae.config.scaling_factor).sample

    render()
    return partial(seconds, render, torch.device("cpu"), 1, warm=False)


@dataclass(frozen=True)
class Service:
    """What the whole service does with one operation."""

    alone_s: float
    """of a picture with no other beside it in its process"""
    started: float
    ended: float
    """of many at once, monotonic seconds, which all processes of a machine share"""
    pictures: int


async def service_rates(settings: Settings, side: int, pictures: int, together: Callable[[], object]) -> dict[str, Service]:
    """Through the whole queue, opening, coding and writing included; ``together`` returns when others that are measured have got as far."""
    places = asyncio.Semaphore(max(1, min(SERVICE_AT_ONCE, settings.max_queued_pixels // side**2)))

    async def one(job: Callable[[], Any]) -> float:
        async with places:
            started = time.perf_counter()
            await job()
            return time.perf_counter() - started

    source = as_png(np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8))
    async with open_pipeline(settings) as pipeline:
        blob = (await pipeline.compress(source, CompressOptions())).content
        jobs: dict[str, Callable[[], Any]] = {
            "compress": lambda: pipeline.compress(source, CompressOptions()),
            RENDER: lambda: pipeline.render(blob, RenderOptions("webp")),
        }
        found = {}
        for name, job in jobs.items():
            alone = statistics.median([await one(job) for _ in range(REPEATS)])
            await asyncio.to_thread(together)
            started = time.monotonic()
            await asyncio.gather(*(one(job) for _ in range(pictures)))
            found[name] = Service(alone, started, time.monotonic(), pictures)
            await asyncio.to_thread(together)
        return found


def _one_of_several(settings: Settings, side: int, pictures: int, barrier: Barrier, told: SimpleQueue[dict[str, Service]]) -> None:
    """In a process of its own: ``service_rates``, in step with the others."""
    try:
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:  # the server's
            told.put(runner.run(service_rates(settings, side, pictures, partial(barrier.wait, SERVICE_S))))
    except BaseException:
        barrier.abort()  # the others need not wait
        raise


def several(settings: Settings, side: int, pictures: int, processes: int) -> dict[str, tuple[float, float]]:
    """Services that share a device, each with an interpreter of its own: seconds of a picture alone in one, and pictures a second of all.

    Raises RuntimeError where one of them fails.
    """
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(processes), context.SimpleQueue()
    arguments = (settings, side, pictures // processes, barrier, told)
    running = [context.Process(target=_one_of_several, args=arguments, daemon=True) for _ in range(processes)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if any(process.exitcode for process in running):
        raise RuntimeError(f"{processes} services beside each other failed: {[process.exitcode for process in running]}")
    parts = [told.get() for _ in running]
    found = {}
    for name in parts[0]:
        each = [part[name] for part in parts]
        taken = max(part.ended for part in each) - min(part.started for part in each)
        found[name] = statistics.median(part.alone_s for part in each), sum(part.pictures for part in each) / taken
    return found


class Report:
    """Figures as they come: a line each, and gpu.json anew, so that who is cut short keeps what was measured."""

    def __init__(self, out: Console, terms: Terms) -> None:
        self._out, self._terms, self._started = out, terms, time.perf_counter()
        self.figures: list[dict[str, Any]] = []

    @property
    def left_s(self) -> float:
        return self._terms.seconds - (time.perf_counter() - self._started)

    def say(self, line: str) -> None:
        self._out.print(line, highlight=False, markup=False, soft_wrap=True)

    def add(self, line: str, **figure: Any) -> None:
        self.say(line)
        self.figures.append(figure)
        if self._terms.folder is not None:
            self._terms.folder.mkdir(parents=True, exist_ok=True)
            (self._terms.folder / "gpu.json").write_text(json.dumps(self.figures, indent=1) + "\n")

    def speed(self, side: int, name: str, way: str, batch: int, taken: float, cost: Cost, rate: float) -> None:
        """Of one operation; ``taken`` by the batch, ``rate`` is the ceiling."""
        share = cost.flops * batch / taken / rate
        self.add(
            f"{side}x{side} {name}, {way}, batch {batch}: {taken * 1e3:,.2f} ms, {batch / taken:,.1f} pictures/s, "
            f"{share:.2f} of the ceiling",
            side=side, operation=name, way=way, batch=batch, ms=taken * 1e3, pictures_s=batch / taken, share=share,
        )  # fmt: skip


def first_run(engine: Engine, call: Callable[[], object]) -> float:
    """Seconds of a run in which the shape is made fast."""
    started = time.perf_counter()
    with engine.warming():
        call()
    return time.perf_counter() - started


def on_gpu(engine: Engine, side: int, rate: float, report: Report) -> dict[str, tuple[int, float]]:
    """All operations on pictures of one side, as launched and as replayed; the best batch and its pictures a second."""
    best: dict[str, tuple[int, float]] = {}
    batches = [batch for batch in BATCHES if batch * side**2 <= MOST_PIXELS]
    found = costs(side)
    _reset_peak(engine.device)
    alone, plain = one_by_one(engine, side), {}
    for name, cost in found.items():  # before anything is recorded
        report.speed(side, name, "as launched", 1, seconds(alone[name], engine.device, REPEATS), cost, rate)
        plain[name] = alone[name]()
    for name, cost in found.items():
        first, taken = first_run(engine, alone[name]), seconds(alone[name], engine.device, REPEATS)
        apart = np.abs(np.subtract(alone[name](), plain[name], dtype=np.float32)).max()
        report.speed(side, name, f"replayed ({first:.1f} s to record, results {apart:.2g} apart)", 1, taken, cost, rate)
    for name, cost in found.items():
        if report.left_s < 0:
            report.say(f"{side}x{side} {name}: no time left for larger batches")
            break
        with engine.warming():
            best[name] = best_batch(engine, side, name, batches, REPEATS // 4)
        batch, pictures_s = best[name]
        report.speed(side, name, "replayed, the best batch", batch, batch / pictures_s, cost, rate)
    if engine.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(engine.device) / 2**30
        report.add(f"{side}x{side}: peak memory {peak:.1f} GiB", side=side, peak_gib=peak)
    return best


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def compiled(
    folder: Path, device: torch.device, dtype: str, side: int, best: dict[str, tuple[int, float]], rate: float, report: Report
) -> None:
    """The same by ``torch.compile``, replayed too: as many of the shapes as there is time for, what gains most first."""
    engine, found = Engine(folder, str(device), dtype, compiled=True), costs(side)
    names = [name for name in ("decode", "encode", "U-Net step") if name in best]
    jobs = [(name, best[name][0]) for name in names] + [(name, 1) for name in names if best[name][0] > 1]
    for name, batch in jobs:
        if report.left_s < COMPILING_S[name]:
            report.say(f"{side}x{side} {name}, compiled, batch {batch}: no time left")
            continue
        begin = operations(engine, side, batch)[name]
        first = first_run(engine, partial(whole, begin))
        taken = in_a_row(begin, REPEATS // 2) if batch > 1 else seconds(partial(whole, begin), device, REPEATS // 2)
        report.speed(side, name, f"compiled ({first:.0f} s) and replayed", batch, taken, found[name], rate)


def served(settings: Settings, folder: Path, side: int, best: dict[str, tuple[int, float]], report: Report) -> None:
    """The whole service, and its share of the bare loop: by one process, and by several that share the device and the cores."""
    batch, cores = max(best["encode"][0], best[RENDER][0]), os.cpu_count() or 1
    for processes in PROCESSES:
        if report.left_s < SERVICE_S:
            report.say(f"{side}x{side} {processes} services: no time left")
            break
        changed = {"model": folder, "store_url": "memory:///", "compile": "off", "max_batch": batch, "cpu_workers": -(-cores // processes)}
        rates = several(settings.model_copy(update=changed), side, SERVICE_PICTURES, processes)
        for name, bare in {"compress": best["encode"][1], RENDER: best[RENDER][1]}.items():
            alone, pictures_s = rates[name]
            report.add(
                f"{side}x{side} {name} by the whole service, {processes} of it: one picture in each {alone * 1e3:,.1f} ms, batch {batch} "
                f"{pictures_s:,.1f} pictures/s, {pictures_s / bare:.2f} of the bare loop",
                side=side, operation=f"service {name}", processes=processes, batch=batch, ms_alone=alone * 1e3, pictures_s=pictures_s,
                of_bare=pictures_s / bare,
            )  # fmt: skip


def _gpu(settings: Settings, device: torch.device, dtype: str, rate: float, report: Report, terms: Terms) -> None:
    """Everything that a GPU is asked, what matters most first."""
    searched, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True  # plain and replayed run the same kernels
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = full_size.build(Path(name), device=device)
            first, *others = terms.sides or SIDES
            engine = Engine(folder, str(device), dtype, compiled=False)
            best = on_gpu(engine, first, rate, report)
            del engine
            _release(device)
            if RENDER in best and report.left_s > SERVICE_S:
                served(settings, folder, first, best, report)
                _release(device)
            for side in others:
                if report.left_s > SERVICE_S:
                    on_gpu(Engine(folder, str(device), dtype, compiled=False), side, rate, report)
                    _release(device)
            if terms.compiled and report.left_s > min(COMPILING_S.values()):
                compiled(folder, device, dtype, first, best, rate, report)
    finally:
        torch.backends.cudnn.benchmark = searched


def _release(device: torch.device) -> None:
    """Give back what an engine that is gone held; its networks are in a circle with what was made of them."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _cpu(device: torch.device, dtype: str, rate: float, report: Report, terms: Terms, out: Console) -> None:
    """A processor's own times, and a GPU's as predicted."""
    with tempfile.TemporaryDirectory() as name:
        engine = Engine(full_size.build(Path(name)), str(device), dtype)
        for side in terms.sides or SIDES[:1]:
            table = Table("", "TFLOP", "launches", "batch 1, ms", "of the ceiling", "pictures/s", "predicted ms", title=f"{side}x{side}")
            calls = one_by_one(engine, side)
            for name, cost in costs(side).items():
                taken = seconds(calls[name], engine.device, 2)
                predicted = max(cost.flops / (GPU_TFLOPS * 1e12 * GPU_SHARE), cost.launches * LAUNCH_S)
                table.add_row(
                    name, f"{cost.flops / 1e12:.2f}", str(cost.launches), f"{taken * 1e3:,.1f}", f"{cost.flops / taken / rate:.2f}",
                    f"{1 / taken:,.2f}", f"{predicted * 1e3:.1f}",
                )  # fmt: skip
            out.print(table)
            with apart(f"gpu.plain_render({side})") as plain:
                pairs = [(seconds(calls[RENDER], engine.device, 1, warm=False), plain()) for _ in range(PAIRS)]
            report.say(
                f"one render of {side}x{side} (a U-Net step and a decode) and one by plain diffusers in fp32, in turn: "
                + ", ".join(f"{mine:.2f} and {theirs:.2f} s" for mine, theirs in pairs)
                + f": {statistics.median(theirs / mine for mine, theirs in pairs):.1f} times as long, the median; "
                "the GPU's times are predicted and were not measured"
            )


def main(settings: Settings, terms: Terms, out: Console) -> None:
    """Run and print."""
    report = Report(out, terms)
    device = pick_device(settings.device)
    dtype = pick_dtype(device, settings.dtype)
    rate, name = ceiling(device, dtype), str(dtype).removeprefix("torch.")
    gpu = measured_as_gpu(device)
    report.add(
        f"Stable Diffusion 1.5, full size, random weights; {describe(device)}, {name}; {machine()}; "
        f"one matrix product, the ceiling: {rate / 1e12:.2f} TFLOP/s{'' if gpu else '; predicted: an H200-class GPU, batch 1'}",
        device=describe(device), dtype=name, torch=torch.__version__, ceiling_tflops=rate / 1e12,
    )  # fmt: skip
    if gpu:
        _gpu(settings, device, name, rate, report, terms)
    else:
        _cpu(device, name, rate, report, terms, out)


def measured_as_gpu(device: torch.device) -> bool:
    return device.type == "cuda"
