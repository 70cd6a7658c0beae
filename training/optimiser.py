"""Muon: momentum whose update of every weight matrix is made orthogonal, so that rare directions learn as fast as common ones.

Knows nothing of models but their parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from training import machine


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
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
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


class Optimisers:
    """Several optimisers as one: ``muon`` for the kernels of some modules, Adam for everything else."""

    def __init__(self, muon: list[nn.Module], adam: list[nn.Module], learning_rate: float) -> None:
        kernels = [p for module in muon for p in module.parameters() if p.requires_grad and p.ndim == 4]
        others = [p for module in muon for p in module.parameters() if p.requires_grad and p.ndim != 4]
        others += [p for module in adam for p in module.parameters() if p.requires_grad]
        self.parameters = kernels + others
        self.members: list[torch.optim.Optimizer] = []
        if kernels:
            self.members.append(Muon(kernels, learning_rate))
        self.members.append(torch.optim.Adam(others, learning_rate, betas=(0.9, 0.98)))

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
