"""The arithmetic of Kubernetes and KEDA, computed by hand."""

from pathlib import Path

import pytest

from service.bench.fleet.autoscaler import Autoscaler, ScaledObject, Trigger, proposal, read_scaled_object
from service.errors import BadParameter

SHIPPED = Path(__file__).parents[3] / "deploy" / "kubernetes" / "keda" / "scaledobject.yaml"


def trigger(name: str = "busy", threshold: float = 0.5, kind: str = "Value") -> dict[str, object]:
    return {"name": name, "type": "prometheus", "metricType": kind, "metadata": {"query": "vector(1)", "threshold": str(threshold)}}


def rules(**given: object) -> ScaledObject:
    return ScaledObject.model_validate({"minReplicaCount": 1, "maxReplicaCount": 50, "triggers": [trigger()], **given})


def one_way(direction: str, **given: object) -> ScaledObject:
    return rules(behavior={direction: given})


@pytest.mark.parametrize(
    ("value", "current", "ready", "wanted"),
    [
        (0.5, 3, 3, 3),
        (0.549, 3, 3, 3),  # within the tolerance
        (0.45, 3, 3, 3),
        (0.551, 3, 3, 4),  # ceil(1.102 x 3)
        (1.0, 3, 3, 6),
        (1.0, 6, 3, 6),  # three of them are still starting: asked for already
        (0.2, 10, 10, 4),
        (0.0, 10, 10, 0),
        (0.9, 10, 10, 18),  # in thousandths: 0.9 / 0.3 in floating point is over 3
    ],
)
def test_value_multiplies_the_ready_replicas(value: float, current: int, ready: int, wanted: int) -> None:
    assert proposal(Trigger.model_validate(trigger()), value, current, ready) == wanted


def test_thousandths_do_not_round_up_by_dust() -> None:
    assert proposal(Trigger.model_validate(trigger(threshold=0.3)), 0.9, 1, 1) == 3


@pytest.mark.parametrize(("value", "current", "wanted"), [(20, 3, 4), (15, 3, 3), (16.4, 3, 3), (16.6, 3, 4), (3, 3, 1)])
def test_average_value_is_divided_by_the_replicas(value: float, current: int, wanted: int) -> None:
    assert proposal(Trigger.model_validate(trigger(threshold=5, kind="AverageValue")), value, current, current) == wanted


def test_the_largest_proposal_wins() -> None:
    scaler = Autoscaler(rules(triggers=[trigger("a"), trigger("b", 10)]))
    assert scaler.replicas(0, 2, 2, {"a": 0.5, "b": 15}) == 3


def test_default_policies_add_four_or_double_in_a_quarter_of_a_minute() -> None:
    scaler, seen, current = Autoscaler(rules()), [], 1
    for step in range(4):
        current = scaler.replicas(15.0 * step, current, current, {"busy": 500.0})
        seen.append(current)
    assert seen == [5, 10, 20, 40]


def test_a_policy_counts_what_was_added_in_its_period() -> None:
    scaler = Autoscaler(one_way("scaleUp", policies=[{"type": "Pods", "value": 4, "periodSeconds": 60}]))
    seen, current = [], 1
    for step in range(6):
        current = scaler.replicas(15.0 * step, current, current, {"busy": 500.0})
        seen.append(current)
    assert seen == [5, 5, 5, 5, 9, 9]


@pytest.mark.parametrize(("select", "wanted"), [("Max", 14), ("Min", 12), ("Disabled", 10)])
def test_policies_are_chosen_between(select: str, wanted: int) -> None:
    policies = [{"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 35, "periodSeconds": 60}]
    scaler = Autoscaler(one_way("scaleUp", selectPolicy=select, policies=policies))
    assert scaler.replicas(0, 10, 10, {"busy": 500.0}) == wanted


def test_going_down_waits_for_the_busiest_of_the_window() -> None:
    scaler, current = Autoscaler(rules()), 10
    values = {0.0: 0.5, 15.0: 0.1, 285.0: 0.1, 300.0: 0.1, 315.0: 0.1}
    seen = []
    for now, value in values.items():
        current = scaler.replicas(now, current, current, {"busy": value})
        seen.append(current)
    assert seen == [10, 10, 10, 2, 2]


def test_going_up_waits_for_the_calmest_of_the_window() -> None:
    scaler = Autoscaler(one_way("scaleUp", stabilizationWindowSeconds=30))
    assert scaler.replicas(0, 2, 2, {"busy": 0.5}) == 2
    assert scaler.replicas(15, 2, 2, {"busy": 1.0}) == 2
    assert scaler.replicas(30, 2, 2, {"busy": 1.5}) == 4
    assert scaler.replicas(45, 4, 4, {"busy": 0.5}) == 4


def test_going_down_in_steps() -> None:
    policies = [{"type": "Percent", "value": 10, "periodSeconds": 60}, {"type": "Pods", "value": 1, "periodSeconds": 60}]
    scaler = Autoscaler(one_way("scaleDown", stabilizationWindowSeconds=0, policies=policies))
    seen, current = [], 25
    for step in range(9):
        current = scaler.replicas(15.0 * step, current, current, {"busy": 0.0})
        seen.append(current)
    assert seen == [22, 22, 22, 22, 19, 19, 19, 19, 17]  # int(25 x 0.9), int(22 x 0.9), int(19 x 0.9)


def test_bounds_hold() -> None:
    scaler = Autoscaler(rules(minReplicaCount=2, maxReplicaCount=6))
    assert scaler.replicas(0, 1, 1, {"busy": 0.5}) == 2
    assert scaler.replicas(15, 5, 5, {"busy": 50.0}) == 6
    assert scaler.replicas(600, 6, 6, {"busy": 0.0}) == 2


def test_what_cannot_be_read_takes_no_replica_away_and_then_falls_back() -> None:
    scaler = Autoscaler(rules(fallback={"failureThreshold": 2, "replicas": 4, "behavior": "currentReplicasIfHigher"}))
    assert [scaler.replicas(15.0 * step, 2, 2, {"busy": None}) for step in range(3)] == [2, 2, 4]
    assert scaler.replicas(60, 9, 9, {"busy": None}) == 9
    mixed = Autoscaler(rules(triggers=[trigger("a"), trigger("b")]))
    assert mixed.replicas(0, 4, 4, {"a": None, "b": 0.0}) == 4
    assert mixed.replicas(15, 4, 4, {"a": None, "b": 1.0}) == 8


def test_a_schedule_says_its_replicas_between_start_and_end() -> None:
    schedule = {"timezone": "UTC", "start": "45 17 * * *", "end": "0 19 * * *", "desiredReplicas": "9"}
    cron = Trigger.model_validate({"name": "sale", "type": "cron", "metadata": schedule})
    at = [cron.scheduled(3600 * hour) for hour in (17.74, 17.75, 18.99, 19)]
    assert at == [1, 9, 9, 1]
    night = Trigger.model_validate({"name": "night", "type": "cron", "metadata": {**schedule, "start": "0 23 * * *", "end": "0 2 * * *"}})
    assert [night.scheduled(3600.0 * hour) for hour in (1, 2, 22, 23)] == [9, 1, 1, 9]
    assert proposal(cron, 9, 2, 2) == 9


def test_the_shipped_rules_are_read() -> None:
    found = read_scaled_object(SHIPPED)
    assert {"utilisation", "queue-wait", "rejections"} <= {each.name for each in found.triggers}
    assert all(each.metric_type == "Value" and not each.nothing_is_zero for each in found.triggers if each.type == "prometheus")
    assert found.fallback is not None
    assert found.behavior.scale_down.stabilization_window_seconds > 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("kind: Deployment", "no ScaledObject"),
        ("minReplicaCount: many", "minReplicaCount"),
        ("periodSeconds: 0", "periodSeconds"),
        ("type: kafka", "type"),
        ("threshold: lots", "metadata"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, change: str, word: str) -> None:
    key = change.partition(":")[0]
    lines, done = [], False
    for line in SHIPPED.read_text().splitlines():
        bare = line.lstrip().removeprefix("- ")
        if not done and (bare.startswith(f"{key}:") and not (key == "type" and "prometheus" not in bare)):
            line, done = f"{line[: len(line) - len(bare)]}{change}", True
        elif not done and key == "periodSeconds" and "periodSeconds" in line:
            line, done = line.replace("periodSeconds: 30", change), True
        lines.append(line)
    assert done
    (tmp_path / "rules.yaml").write_text("\n".join(lines))
    with pytest.raises(BadParameter, match=word):
        read_scaled_object(tmp_path / "rules.yaml")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="cannot read"):
        read_scaled_object(tmp_path / "none.yaml")
