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


class Gains(torch.optim.Adam):
    """A gain of every output and every input channel of convolution kernels, trained beside them and multiplied into them at every step.

    An orthogonal update changes all directions alike and says little about how loud a channel should be.  What Adam moves is the
    logarithm, which is 0 before every step.

    Args:
        kernels: (out, in, height, width), with gradients.
    """

    def __init__(self, kernels: list[nn.Parameter], lr: float) -> None:
        self._kernels = kernels
        self._logs = [(torch.zeros_like(kernel[:, :1, :1, :1]), torch.zeros_like(kernel[:1, :, :1, :1])) for kernel in kernels]
        super().__init__([log for pair in self._logs for log in pair], lr, betas=DECAYS)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for kernel, (outputs, inputs) in zip(self._kernels, self._logs, strict=True):
            if kernel.grad is not None:
                slopes = (kernel.grad * kernel).sum((2, 3), keepdim=True)
                outputs.grad, inputs.grad = slopes.sum(1, keepdim=True), slopes.sum(0, keepdim=True)
        super().step()
        for logs in zip(*self._logs, strict=True):
            torch._foreach_mul_(self._kernels, torch._foreach_exp(logs))
            torch._foreach_zero_(logs)


class Optimisers:
    """Several optimisers as one: Muon for the kernels of some modules, Adam for everything else.

    Args:
        muon: modules whose kernels are Muon's.
        adam: the others.
        learning_rate: of both.
        gains: learning rate of the gains of Muon's kernels, over that; 0 for none.
    """

    def __init__(self, muon: list[nn.Module], adam: list[nn.Module], learning_rate: float, gains: float = 0.0) -> None:
        kernels = [p for module in muon for p in module.parameters() if p.requires_grad and p.ndim == 4]
        others = [p for module in muon for p in module.parameters() if p.requires_grad and p.ndim != 4]
        others += [p for module in adam for p in module.parameters() if p.requires_grad]
        self.parameters = kernels + others
        self.members: list[torch.optim.Optimizer] = []
        self._paces: list[float] = []
        if kernels and gains:  # before Muon: its update is of the kernel that the gradient was taken at
            self._add(Gains(kernels, learning_rate), gains)
        if kernels:
            self._add(Muon(kernels, learning_rate))
        self._add(torch.optim.Adam(others, learning_rate, betas=DECAYS))

    def _add(self, member: torch.optim.Optimizer, pace: float = 1.0) -> None:
        self.members.append(member)
        self._paces.append(pace)

    def step(self, learning_rate: float) -> None:
        for member, pace in zip(self.members, self._paces, strict=True):
            for group in member.param_groups:
                group["lr"] = pace * learning_rate
            member.step()

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {str(index): member.state_dict() for index, member in enumerate(self.members)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for index, member in enumerate(self.members):
            member.load_state_dict(state[str(index)])
