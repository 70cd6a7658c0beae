"""What lies in deploy/, read for tests."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("cpu", "gpu", "cpu-keda", "cpu-hpa", "gpu-keda", "gpu-hpa")
Document = dict[str, Any]


@dataclass(frozen=True)
class Trigger:
    """One metric an autoscaler looks at."""

    name: str
    query: str
    threshold: float


def read(path: Path) -> Document:
    """A YAML file of one document."""
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict), path
    return found


@cache
def rendered(overlay: str | Path) -> tuple[Document, ...]:
    """What `kubectl apply -k` would send, of a folder of ours or another."""
    done = subprocess.run(["kubectl", "kustomize", KUBERNETES / overlay], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def the(kind: str, documents: tuple[Document, ...]) -> Document:
    """The one document of a kind."""
    (found,) = [each for each in documents if each["kind"] == kind]
    return found


def scaled_object() -> Document:
    return read(KUBERNETES / "keda" / "scaledobject.yaml")["spec"]


def keda_triggers() -> list[Trigger]:
    return [Trigger(each["name"], each["metadata"]["query"], float(each["metadata"]["threshold"])) for each in scaled_object()["triggers"]]


def hpa() -> Document:
    return read(KUBERNETES / "hpa" / "horizontalpodautoscaler.yaml")["spec"]


def hpa_triggers(namespace: str = "sdc") -> list[Trigger]:
    """The HPA's metrics, with the queries that prometheus-adapter makes of them for a namespace."""
    rules = read(KUBERNETES / "hpa" / "prometheus-adapter.yaml")["rules"]["external"]
    queries = {rule["name"]["as"]: rule["metricsQuery"].replace("<<.LabelMatchers>>", f'namespace="{namespace}"') for rule in rules}
    found = []
    for each in hpa()["metrics"]:
        name, target = each["external"]["metric"]["name"], each["external"]["target"]["value"]
        assert target.endswith("m"), "a quantity in thousandths, or it is read wrongly here"
        found.append(Trigger(name, queries[name], int(target[:-1]) / 1000))
    return found


def rules() -> list[Document]:
    return [rule for group in read(DEPLOY / "prometheus" / "rules.yml")["groups"] for rule in group["rules"]]
