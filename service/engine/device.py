"""Picks the device and the number format by what the machine has."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import structlog
import torch

from service.errors import NoDevice

Way = Literal["plain", "fused", "prepared", "winograd"]
"""of running networks; see ``pick_way``"""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(wanted: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU; raises NoDevice for one that is not there."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(("cuda" if gpus else "cpu") if wanted == "auto" else wanted)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        seen = f"{gpus or 'no'} GPU{'s' * (gpus > 1)}"
        raise NoDevice(f"SDC_DEVICE={wanted}: torch {torch.__version__} sees {seen} here; auto takes what there is")
    return device


def pick_dtype(device: torch.device, wanted: str = "auto") -> torch.dtype:
    """bf16 where the hardware multiplies it (CUDA from Ampere on, CPUs with AMX or AVX512-BF16), fp16 on older GPUs, else fp32."""
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Emulated bf16 is slower than fp32, so ask for the instructions themselves.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def pick_way(device: torch.device, dtype: torch.dtype) -> Way:
    """How networks are best run: ``fused`` (``service.engine.fused``) on a GPU in 16 bits where triton finds what it compiles with,
    ``prepared`` (``service.engine.prepared``) on a processor that multiplies bf16, ``winograd`` (``service.engine.winograd``) on one in
    fp32 where ncnn is installed, else ``plain``.

    What could not be tried out is logged.
    """
    way: Way = "plain"
    try:
        if device.type == "cuda" and dtype is not torch.float32 and find_spec("triton") is not None:
            from service.engine import fused

            fused.try_out(device)
            way = "fused"
        elif device.type == "cpu" and dtype is torch.bfloat16:
            from service.engine import prepared

            prepared.try_out(dtype)
            way = "prepared"
        elif device.type == "cpu" and dtype is torch.float32 and find_spec("ncnn") is not None:
            from service.engine import winograd

            winograd.try_out()
            way = "winograd"
    except Exception:  # no C compiler, a driver or a GPU too old, a torch without oneDNN
        structlog.get_logger().exception("networks run plainly", device=str(device))
    return way


def describe(device: torch.device) -> str:
    """One line that names the device, for logs and benchmarks."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
