"""What the manifests say that decides on a fleet's size: the rules, how often Prometheus scrapes, and the settings of a replica."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from service.bench.fleet.autoscaler import ScaledObject, read_scaled_object
from service.errors import BadParameter
from service.settings import Settings

FIELDS = ("slots", "max_batch", "max_queued_pixels", "max_delay_ms", "deadline_s")
"""of the settings, those that decide on who waits and who is refused; ``cpu_workers`` is that of the machine that was measured"""


@dataclass(frozen=True)
class Shipped:
    rules: ScaledObject
    scrape_s: float
    settings: Settings
    """the service's own, where the manifests do not say otherwise"""


def read_shipped(folder: Path, kind: str) -> Shipped:
    """Read ``deploy/kubernetes``.

    Args:
        folder: with ``base``, ``keda``, ``monitoring`` and a folder for each kind of machine.
        kind: ``cpu`` or ``gpu``.

    Raises BadParameter where something is missing.
    """
    rules = read_scaled_object(folder / "keda" / "scaledobject.yaml")
    try:
        monitor = _documents(folder / "monitoring" / "servicemonitor.yaml")[0]
        interval = str(monitor["spec"]["endpoints"][0]["interval"])
        literals = [
            literal
            for part in ("base", kind)
            for generator in _documents(folder / part / "kustomization.yaml")[0].get("configMapGenerator", [])
            for literal in generator.get("literals", [])
        ]
    except (OSError, KeyError, IndexError, yaml.YAMLError) as error:
        raise BadParameter(f"{folder} does not hold the manifests of the service: {error}") from error
    if not interval.endswith("s") or not interval[:-1].isdecimal():
        raise BadParameter(f"{folder}: the scrape interval must be whole seconds, and not '{interval}'")
    said = {name.removeprefix("SDC_").lower(): value for name, _, value in (each.partition("=") for each in literals)}
    given = {name: value for name, value in said.items() if name in FIELDS and f"SDC_{name.upper()}" not in os.environ}
    return Shipped(rules, float(interval[:-1]), Settings(**given))


def _documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))
