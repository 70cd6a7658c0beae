"""Networks of one folder, run in two ways."""

from pathlib import Path

import torch

from service.engine.device import Way
from service.engine.network import Networks


def plain_and(way: Way, folder: Path, device: torch.device) -> tuple[Networks, Networks]:
    """The networks plain, and in another way, which decode the same picture."""
    plain, quick = Networks(folder, device, torch.float32), Networks(folder, device, torch.float32, way)
    patches = torch.randn(1, plain._vae.config.in_channels, 32, 32) + 0.5
    latent = plain.encode(patches.to(device=device, memory_format=torch.channels_last))
    shown = plain.decode(latent)
    assert shown.std() > 0.01
    torch.testing.assert_close(quick.decode(latent), shown, rtol=1e-4, atol=1e-4)
    return plain, quick
