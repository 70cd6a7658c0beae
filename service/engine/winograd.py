"""On a processor that does not multiply bf16: the bundled auto-encoder's layers by ncnn, in fp32 with fewer multiplications.

oneDNN, which torch asks, is at such a processor's peak, so that only fewer multiplications help: minimal filtering (Winograd 1980; for
networks Lavin and Gray 2016, arXiv:1509.09308) takes 36 for 4x4 places of a 3x3 convolution, where 144 were needed.  ncnn does it, with
kernels that were transformed once and parts of the picture that stay in the cache.  That gains from some hundred channels on (measured).

It must not know about latents or files of ours: it gives a sequence of layers another ``forward`` that computes the same, and takes their
weights away.
"""

from __future__ import annotations

import copy
from typing import Any

import ncnn
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from service.engine.autoencoder import ResidualAutoencoder, ResidualBlock
from service.engine.plain import check_alike, is_plain_convolution, taken

MAGIC = 7767517
"""first line of ncnn's text format"""
NOT_PACKED = b"\0\0\0\0"
"""before the weights of a layer: they are fp32"""

POOLS = ncnn.PoolAllocator(), ncnn.PoolAllocator()
"""of all networks, for pictures between layers and for what one layer needs; glibc's heaps of a thread would break in pieces of 16 MB
(after pictures of all sizes 1.5 GB instead of 2.0)"""


def install(network: ResidualAutoencoder) -> None:
    """Make an auto-encoder on the processor, in fp32, compute so.  It cannot be saved, trained or moved any more."""
    network.encoder.forward = _Layers(network.encoder)  # type: ignore[method-assign]
    network.decoder.forward = _Layers(network.decoder)  # type: ignore[method-assign]


def try_out() -> None:
    """Run all kinds of layers and compare; raises whatever hinders that, AssertionError where the result is another."""
    plain = ResidualAutoencoder(12, 8, (16, 16), (1, 1), (1, 1)).requires_grad_(False)
    other = copy.deepcopy(plain)
    install(other)
    pixels = torch.linspace(-1, 1, 12 * 6 * 10).view(1, 12, 6, 10)
    check_alike(other.encoder(pixels), plain.encoder(pixels), within=0.001)
    latent = torch.linspace(-1, 1, 8 * 3 * 5).view(1, 8, 3, 5)
    check_alike(other.decoder(latent), plain.decoder(latent), within=0.001)


class _Layers:
    """The ``forward`` of a sequence of convolutions, residual blocks and pixel shuffles: (N, C, H, W) fp32 to the same, each item alone."""

    def __init__(self, layers: nn.Sequential) -> None:
        graph = _Graph()
        self._last = graph.follow(layers)
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = torch.get_num_threads()
        options.blob_allocator, options.workspace_allocator = POOLS
        options.use_winograd63_convolution = False  # no faster than 4x4 places, and twice the memory (measured)
        # All of 16 bits are off: where a processor has them they are used unless one says so.
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_packed = options.use_bf16_storage = False
        if self._net.load_param_mem(graph.text):
            raise RuntimeError("ncnn did not take the layers")
        self._weights = b"".join(graph.weights)  # ncnn may go on reading there
        self._net.load_model_mem(self._weights)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        items = hidden.contiguous().numpy()
        return torch.from_numpy(np.stack([self._run(item) for item in items]))

    def _run(self, item: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        extractor = self._net.create_extractor()
        extractor.input(_Graph.FIRST, ncnn.Mat(item))
        failed, result = extractor.extract(self._last)
        if failed:  # it says no more than that
            raise RuntimeError("ncnn: not enough memory")
        return np.array(result)


class _Graph:
    """Layers in ncnn's words: a line for each, and their weights one behind the other."""

    FIRST = "0"

    def __init__(self) -> None:
        self._lines = [f"Input input 0 1 {self.FIRST}"]
        self._blobs = 1
        self.weights: list[bytes] = []

    @property
    def text(self) -> str:
        return "\n".join([str(MAGIC), f"{len(self._lines)} {self._blobs}", *self._lines, ""])

    def follow(self, layers: nn.Sequential) -> str:
        """Write a sequence down, and take its weights; the name of its result."""
        last = self.FIRST
        for layer in layers:
            if isinstance(layer, ResidualBlock):
                kept, changed = self._line("Split", [last], 2)
                inner = self._convolution(layer.conv2, self._convolution(layer.conv1, changed, "9=1"))
                (last,) = self._line("BinaryOp", [kept, inner], 1, "0=0")  # their sum
            elif isinstance(layer, nn.PixelShuffle):
                (last,) = self._line("PixelShuffle", [last], 1, f"0={layer.upscale_factor}")
            else:
                last = self._convolution(layer, last)
        return last

    def _convolution(self, conv: Any, source: str, *then: str) -> str:
        assert is_plain_convolution(conv)
        weight = taken(conv)
        self.weights += [NOT_PACKED, weight.contiguous().numpy().tobytes(), conv.bias.detach().numpy().tobytes()]
        shape = f"0={conv.out_channels} 1={conv.kernel_size[0]} 3={conv.stride[0]} 4={conv.padding[0]} 5=1 6={weight.numel()}"
        (result,) = self._line("Convolution", [source], 1, shape, *then)
        return result

    def _line(self, kind: str, sources: list[str], results: int, *parameters: str) -> list[str]:
        names = [str(self._blobs + number) for number in range(results)]
        self._blobs += results
        self._lines.append(" ".join([kind, f"layer{len(self._lines)}", str(len(sources)), str(results), *sources, *names, *parameters]))
        return names
