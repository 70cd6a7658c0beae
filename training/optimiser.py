"""Muon: momentum whose update of every weight matrix is made orthogonal, so that rare directions learn as fast as common ones.

Knows nothing of models but their parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from training import machine

DECAYS = 0.9, 0.98
"""of Adam's two moments"""


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Nearest semi-orthogonal matrices, roughly: (..., rows, columns) -> same shape, singular values within about 0.7..1.2.

    Five Newton-Schulz iterations with the quintic of Jordan et al. 2024 (Muon), in bf16 where that is fast.
    """
    wide = matrices.to(machine.fast_dtype())
    transposed = wide.shape[-2] > wide.shape[-1]
    if transposed:
        wide = wide.mT
    wide = wide / (wide.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(wide.dtype)
    for _ in range(5):
        gram = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return (wide.mT if transposed else wide).float()


class Muon(torch.optim.Optimizer):
    """Muon for convolution kernels (flattened to out x rest), with Nesterov momentum.

    The update is scaled by ``0.2 * sqrt(max(rows, columns))`` so that its root mean square is about Adam's (Liu et al. 2025) and one
    learning rate serves both.

    An orthogonal update changes all directions alike and says little about how loud a channel should be.  With ``gains``, every output
    and every input channel of a kernel is also multiplied by a factor of its own, which Adam moves at ``gains * lr``.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, gains: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "gains": gains})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Checkpoints from before there were gains have none."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("gains", 0.0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            if group["gains"]:
                for parameter in parameters:
                    self._stretch(parameter, group["gains"] * group["lr"])
            gradients, kept = [p.grad for p in parameters], [self.state[p]["momentum"] for p in parameters]
            # all at once: on a GPU a few kernels, not a few hundred
            torch._foreach_lerp_(kept, gradients, 1 - group["momentum"])
            alike: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for parameter, ahead in zip(parameters, torch._foreach_lerp(gradients, kept, group["momentum"]), strict=True):
                flat = ahead.flatten(1)
                alike.setdefault(flat.shape, []).append((parameter, flat))
            for shape, pairs in alike.items():
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                updates = orthogonalise(torch.stack([flat for _, flat in pairs]))
                ours = [parameter for parameter, _ in pairs]
                torch._foreach_sub_(ours, [update.view_as(p) for p, update in zip(ours, updates, strict=True)], alpha=size)

    def _stretch(self, kernel: nn.Parameter, rate: float) -> None:
        """One step of Adam (Kingma and Ba 2015) on the logarithms of the gains of a kernel's channels, each now 0."""
        state, slopes = self.state[kernel], kernel.grad * kernel
        state["stretched"] = state.get("stretched", 0) + 1
        for axis in (0, 1):
            slope = slopes.sum([other for other in range(kernel.ndim) if other != axis], keepdim=True)
            moments = state.setdefault(f"gain_{axis}", torch.zeros_like(slope).repeat(2, *[1] * kernel.ndim))
            for moment, power, decay in zip(moments, (1, 2), DECAYS, strict=True):
                moment.lerp_(slope**power, 1 - decay)
            mean, square = (moment / (1 - decay ** state["stretched"]) for moment, decay in zip(moments, DECAYS, strict=True))
            kernel.mul_(torch.exp(-rate * mean / (square.sqrt() + 1e-8)))


class Optimisers:
    """Several optimisers as one: ``muon``, with ``gains``, for the kernels of some modules, Adam for everything else."""

    def __init__(self, muon: list[nn.Module], adam: list[nn.Module], learning_rate: float, gains: float = 0.0) -> None:
        kernels = [p for module in muon for p in module.parameters() if p.requires_grad and p.ndim == 4]
        others = [p for module in muon for p in module.parameters() if p.requires_grad and p.ndim != 4]
        others += [p for module in adam for p in module.parameters() if p.requires_grad]
        self.parameters = kernels + others
        self.members: list[torch.optim.Optimizer] = []
        if kernels:
            self.members.append(Muon(kernels, learning_rate, gains=gains))
        self.members.append(torch.optim.Adam(others, learning_rate, betas=DECAYS))

    def step(self, learning_rate: float) -> None:
        for member in self.members:
            for group in member.param_groups:
                group["lr"] = learning_rate
            member.step()

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {str(index): member.state_dict() for index, member in enumerate(self.members)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for index, member in enumerate(self.members):
            member.load_state_dict(state[str(index)])
