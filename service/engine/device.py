"""Picks the device and the number format by what the machine has."""

from __future__ import annotations

from importlib.util import find_spec

import structlog
import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(wanted: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU."""
    if wanted != "auto":
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(device: torch.device, wanted: str = "auto") -> torch.dtype:
    """bf16 where the hardware multiplies it (CUDA from Ampere on, CPUs with AMX or AVX512-BF16), fp16 on older GPUs, else fp32."""
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Emulated bf16 is slower than fp32, so ask for the instructions themselves.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def runs_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels of ``service.engine.fused`` run: on a GPU, in a format of 16 bits, where triton finds what it compiles with.

    What it does not find is logged: networks run plainly then.
    """
    if device.type != "cuda" or dtype is torch.float32 or find_spec("triton") is None:
        return False
    try:
        from service.engine import fused

        fused.try_out(device)
    except Exception:  # no C compiler, a driver too old, a GPU too old
        structlog.get_logger().exception("kernels not compiled")
        return False
    return True


def describe(device: torch.device) -> str:
    """One line that names the device, for logs and benchmarks."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
