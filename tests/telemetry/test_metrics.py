"""The names that dashboards and autoscalers hold on to."""

import re
from pathlib import Path

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from service.batching.waiting import LANES
from service.storage.objects import ACCESS
from service.telemetry import metrics

GOLDEN = Path(__file__).parents[1] / "data" / "metrics.txt"
HANDBOOK = Path(__file__).parents[2] / "docs" / "OPERATIONS.md"


def described(metric: MetricWrapperBase) -> str:
    family = next(iter(metric.describe()))
    name = family.name + ("_total" if family.type == "counter" else "")
    return " ".join([name, family.type, *metric._labelnames])


def ours() -> list[str]:
    return sorted(described(value) for value in vars(metrics).values() if isinstance(value, MetricWrapperBase))


def test_names_types_and_labels_are_pinned() -> None:
    """A change here breaks somebody's dashboard: say so in the commit, and change docs/OPERATIONS.md too."""
    assert ours() == GOLDEN.read_text().splitlines()


def test_buckets_reach_a_minute() -> None:
    for metric in (metrics.REQUEST_SECONDS, metrics.QUEUE_WAIT, metrics.STAGE_SECONDS):
        assert max(bound for bound in metric._upper_bounds if bound != float("inf")) >= 60


def test_every_documented_metric_exists_and_every_metric_is_documented() -> None:
    documented = set(re.findall(r"^\| `(sdc_[a-z_]+)", HANDBOOK.read_text(), re.MULTILINE))
    assert documented == {line.split()[0] for line in ours()}


def test_lanes_and_reasons_are_those_of_the_handbook() -> None:
    text = HANDBOOK.read_text()
    assert set(metrics.REASONS) == set(re.findall(r"^- `([a-z-]+)`: ", text.split("## Reasons")[1].split("## ")[0], re.MULTILINE))
    assert all(f"`{lane}`" in text for lane in LANES)
    assert all(REGISTRY.get_sample_value("sdc_rejected_total", {"reason": reason}) is not None for reason in metrics.REASONS)


def test_what_fails_for_the_first_time_is_a_rise() -> None:
    """Prometheus sees none where a series begins with its first failure."""
    assert all(REGISTRY.get_sample_value("sdc_store_errors_total", {"op": each}) is not None for each in ACCESS)


def test_only_the_reasons_listed_are_used() -> None:
    used = set()
    for path in (Path(metrics.__file__).parents[1]).rglob("*.py"):
        source = path.read_text()
        used |= set(re.findall(r'REJECTED\.labels\(reason="([a-z-]+)"\)', source)) | set(re.findall(r'_refuse\("([a-z-]+)"', source))
    assert used == set(metrics.REASONS)
