"""What every stage shares: schedule by the clock, averaged weights, checkpoints that one command resumes."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training import machine
from training.config import Stage
from training.optimiser import Optimisers

NOTES = 100
"""steps that a line of the log has the means of"""


def save_whole(state: dict[str, Any], path: Path) -> None:
    """Write beside ``path``, then rename: a kill leaves what was there before, or all of it."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


class Progress:
    """A stage's optimiser, averaged weights and log, saved together and picked up where they stopped.

    The learning rate rises linearly for ``warmup_steps``, stays, and falls linearly to nothing over the last ``decay`` of the
    ``minutes`` of training time, so that a run ends when its time is up on any machine and more minutes continue it well.

    Args:
        name: of the stage, and of its checkpoint.
        modules: what is trained.
        stage: its constants.
        folder: for checkpoints and the log.
        muon: names of the modules whose kernels are trained with Muon; the others by Adam.
        of: the auto-encoder that this is trained on, by its step; 0 for one that is trained here.

    Raises SystemExit for a checkpoint that was trained on another one: its latents were others.
    """

    def __init__(
        self, name: str, modules: dict[str, nn.Module], stage: Stage, folder: Path, muon: tuple[str, ...] = (), of: int = 0
    ) -> None:
        self.name, self.modules, self.stage, self.folder, self.of = name, modules, stage, folder, of
        folder.mkdir(parents=True, exist_ok=True)
        self.averaged = {key: copy.deepcopy(module).eval().requires_grad_(False) for key, module in modules.items()}
        orthogonal = [modules[key] for key in muon]
        others = [module for key, module in modules.items() if key not in muon]
        self.optimisers = Optimisers(orthogonal, others, stage.learning_rate, stage.gains)
        self.step, self.trained_s, self.saved_at = 0, 0.0, 0.0
        self._noted, self._sums = 0, dict[str, torch.Tensor | float]()
        if self.path.exists():
            self._load()
        self.clock = time.monotonic()

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.pt"

    @property
    def fraction(self) -> float:
        return self.trained_s / (60 * self.stage.minutes)

    def update(self, loss: torch.Tensor) -> None:
        """Gradients of ``loss`` and one optimiser step."""
        self.differentiate([loss])
        self.advance()

    def differentiate(self, losses: Iterable[torch.Tensor]) -> torch.Tensor:
        """Gradients of the sum of ``losses``, which are asked for one by one, of norm 1 at most; returns what it was.

        What is not finite counts as zero; nothing is fetched from the device.
        """
        self.optimisers.zero_grad()
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.optimisers.parameters, 1.0)
        for parameter in self.optimisers.parameters:
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0, 0, 0)
        return norm

    def advance(self) -> None:
        """One optimiser step along the gradients that are there."""
        warm = min(1.0, (self.step + 1) / self.stage.warmup_steps)
        left = min(1.0, max(0.01, 1 - self.fraction) / self.stage.decay)
        self.optimisers.step(self.stage.learning_rate * warm * left)
        self.step += 1
        average = get_ema_multi_avg_fn(min(self.stage.ema, self.step / (self.step + 10)))
        for key, module in self.modules.items():
            average(list(self.averaged[key].parameters()), list(module.parameters()), self.step)
        now = time.monotonic()
        self.trained_s += now - self.clock
        self.clock = now
        if self.trained_s - self.saved_at > 240:
            self.save()

    def note(self, **figures: torch.Tensor | float) -> None:
        """Log the means of ``NOTES`` steps' figures, when there are so many; until then nothing is fetched from the device."""
        self._noted += 1
        for name, figure in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + figure
        if self._noted == NOTES:
            self.log(**{name: round(float(total) / NOTES, 4) for name, total in self._sums.items()})
            self._noted, self._sums = 0, {}

    def log(self, **figures: Any) -> None:
        line = {"stage": self.name, "step": self.step, "minutes": round(self.trained_s / 60, 2), **figures}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def save(self) -> None:
        """Write a checkpoint: a kill leaves this one or the last."""
        self.saved_at = self.trained_s
        state = {
            "modules": {key: module.state_dict() for key, module in self.modules.items()},
            "averaged": {key: module.state_dict() for key, module in self.averaged.items()},
            "optimisers": self.optimisers.state_dict(),
            "step": self.step,
            "of": self.of,
            "trained_s": self.trained_s,
        }
        save_whole(state, self.path)

    def _load(self) -> None:
        state = torch.load(self.path, map_location=machine.device(), weights_only=True)
        if state.get("of", self.of) != self.of:
            raise SystemExit(f"{self.path} was trained on an auto-encoder of {state['of']} steps, which has {self.of} now: move it away")
        for key in self.modules:
            self.modules[key].load_state_dict(state["modules"][key])
            self.averaged[key].load_state_dict(state["averaged"][key])
        self.optimisers.load_state_dict(state["optimisers"])
        self.step, self.trained_s = state["step"], state["trained_s"]
        self.saved_at = self.trained_s
        print(f"resumed {self.name} at step {self.step}, {self.trained_s / 60:.1f} min", flush=True)
