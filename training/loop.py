"""What every stage shares: schedule by the clock, averaged weights, checkpoints that one command resumes."""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.config import Stage


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Progress:
    """A stage's optimiser, averaged weights and log, saved together and picked up where they stopped.

    The learning rate rises linearly for ``warmup_steps`` and falls by a half cosine over ``minutes`` of training time, so that
    a run ends when its time is up on any machine.
    """

    def __init__(self, name: str, modules: dict[str, nn.Module], stage: Stage, folder: Path) -> None:
        self.name, self.modules, self.stage, self.folder = name, modules, stage, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.averaged = {key: copy.deepcopy(module).eval().requires_grad_(False) for key, module in modules.items()}
        parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, lr=stage.learning_rate, betas=(0.9, 0.98))
        self.parameters = parameters
        self.step, self.trained_s, self.saved_at = 0, 0.0, 0.0
        self.best = math.inf
        if self.path.exists():
            self._load()
        self.clock = time.monotonic()

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.pt"

    @property
    def fraction(self) -> float:
        return self.trained_s / (60 * self.stage.minutes)

    def update(self, loss: torch.Tensor) -> float:
        """One optimiser step; returns the gradient norm.  A step whose gradient is not finite is left out."""
        for group in self.optimizer.param_groups:
            warm = min(1.0, (self.step + 1) / self.stage.warmup_steps)
            group["lr"] = self.stage.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.fraction))))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(self.parameters, 1.0))
        if math.isfinite(norm):
            self.optimizer.step()
        self.step += 1
        decay = min(self.stage.ema, self.step / (self.step + 10))
        with torch.no_grad():
            for key, module in self.modules.items():
                for kept, new in zip(self.averaged[key].parameters(), module.parameters(), strict=True):
                    kept.lerp_(new, 1 - decay)
        now = time.monotonic()
        self.trained_s += now - self.clock
        self.clock = now
        if self.trained_s - self.saved_at > 240:
            self.save()
        return norm

    def log(self, **figures: Any) -> None:
        line = {"stage": self.name, "step": self.step, "minutes": round(self.trained_s / 60, 2), **figures}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def save(self) -> None:
        """Write a checkpoint beside the last one, then rename: a kill leaves one or the other."""
        self.saved_at = self.trained_s
        state = {
            "modules": {key: module.state_dict() for key, module in self.modules.items()},
            "averaged": {key: module.state_dict() for key, module in self.averaged.items()},
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "trained_s": self.trained_s,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        for key in self.modules:
            self.modules[key].load_state_dict(state["modules"][key])
            self.averaged[key].load_state_dict(state["averaged"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.trained_s = state["step"], state["trained_s"]
        self.saved_at = self.trained_s
        print(f"resumed {self.name} at step {self.step}, {self.trained_s / 60:.1f} min", flush=True)
