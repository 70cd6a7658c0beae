"""What the two autoscalers are told, and how many replicas that makes by the documented arithmetic of the HPA."""

import math
import re

import pytest

from tests.deploy.manifests import KUBERNETES, hpa, hpa_triggers, keda_triggers, read, scaled_object

TOLERANCE = 0.1
"""of kube-controller-manager (--horizontal-pod-autoscaler-tolerance)"""


def wanted(ready: int, values: dict[str, float]) -> int:
    """Replicas by the HPA's algorithm: the most that any metric asks for, between the bounds; before it is paced."""
    asked = []
    for trigger in keda_triggers():
        ratio = values[trigger.name] / trigger.threshold
        asked.append(ready if abs(ratio - 1) <= TOLERANCE else math.ceil(ratio * ready))
    bounds = scaled_object()
    return min(max(*asked, bounds["minReplicaCount"]), bounds["maxReplicaCount"])


def next_replicas(ready: int, values: dict[str, float]) -> int:
    """What there will be after one period of the pace, from rest: the HPA's `behavior`, `selectPolicy: Max`."""
    behavior = scaled_object()["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    target = wanted(ready, values)
    changes = {
        rule: [
            math.ceil(ready * each["value"] / 100) if each["type"] == "Percent" else each["value"] for each in behavior[rule]["policies"]
        ]
        for rule in ("scaleUp", "scaleDown")
    }
    assert all(behavior[rule]["selectPolicy"] == "Max" for rule in changes)
    return min(max(target, ready - max(changes["scaleDown"])), ready + max(changes["scaleUp"]))


def refusing(share: float) -> float:
    """What the query of `rejections` gives when a share of what comes is refused."""
    return min(1 / (1 - share), 4) if share > 0.01 else 0.0


IDLE = {"utilisation": 0.0, "queue-wait": 0.0, "rejections": 0.0}
FROM = (1, 3, 10)


@pytest.mark.parametrize(
    ("what", "values", "there_will_be", "soon"),
    [
        ("nothing to do", {}, (1, 1, 1), (1, 2, 9)),
        ("half as many inside as meant", {"utilisation": 0.6 / 16}, (1, 2, 5), (1, 2, 9)),
        ("as meant", {"utilisation": 0.08, "queue-wait": 0.3}, (1, 3, 10), (1, 3, 10)),
        ("nearly as meant", {"utilisation": 0.086}, (1, 3, 10), (1, 3, 10)),
        ("twice the queue that is meant", {"utilisation": 0.16}, (2, 6, 20), (2, 6, 20)),
        ("full, nobody refused yet", {"utilisation": 1.0, "queue-wait": 1.2}, (13, 20, 20), (5, 7, 20)),
        ("few large pictures, which wait", {"utilisation": 0.05, "queue-wait": 2.0}, (4, 12, 20), (4, 7, 20)),
        ("few that are refused before they wait", {"utilisation": 0.05, "rejections": refusing(0.02)}, (2, 4, 13), (2, 4, 13)),
        ("half of them refused", {"utilisation": 0.05, "rejections": refusing(0.5)}, (3, 8, 20), (3, 7, 20)),
        ("one in two hundred refused", {"utilisation": 0.08, "rejections": refusing(0.005)}, (1, 3, 10), (1, 3, 10)),
        ("a hundred times too many", {"utilisation": 1.0, "queue-wait": 20, "rejections": refusing(0.99)}, (20, 20, 20), (5, 7, 20)),
    ],
)
def test_replicas_from_one_three_and_ten(
    what: str, values: dict[str, float], there_will_be: tuple[int, ...], soon: tuple[int, ...]
) -> None:
    assert tuple(wanted(ready, IDLE | values) for ready in FROM) == there_will_be, what
    assert tuple(next_replicas(ready, IDLE | values) for ready in FROM) == soon, what


def test_a_fleet_that_refuses_is_given_what_its_demand_needs() -> None:
    """Demand / capacity of one replica, and a fifth of room, in one step where the bound lets it."""
    for ready in FROM:
        for demand in (1.1 * ready, 1.5 * ready):  # in replicas' worth
            assert wanted(ready, IDLE | {"rejections": refusing(1 - ready / demand)}) == min(math.ceil(round(demand / 0.8, 9)), 20)


def test_one_replica_stays_and_a_full_one_is_helped() -> None:
    spec = scaled_object()
    assert spec["minReplicaCount"] == 1
    assert all(wanted(1, IDLE | {trigger.name: 1.2 * trigger.threshold}) == 2 for trigger in keda_triggers())


def test_down_is_slower_than_up() -> None:
    behavior = scaled_object()["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    up, down = behavior["scaleUp"], behavior["scaleDown"]
    assert up["stabilizationWindowSeconds"] == 0
    assert down["stabilizationWindowSeconds"] >= 300
    for ready in range(1, 21):
        assert next_replicas(ready, IDLE) >= ready - max(1, math.ceil(ready / 10))


def test_triggers_are_the_three_and_each_fails_loudly() -> None:
    spec = scaled_object()
    assert [each["name"] for each in spec["triggers"]] == ["utilisation", "queue-wait", "rejections"]
    for each in spec["triggers"]:
        assert (each["type"], each["metricType"]) == ("prometheus", "Value")
        assert each["metadata"]["ignoreNullValues"] == "false"  # a string: metadata knows no others
        known = {"serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues"}
        assert set(each["metadata"]) <= known  # of the scaler's parameters; the schema lets any word pass here
    assert spec["fallback"]["failureThreshold"] * spec["pollingInterval"] < 60
    assert spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]


def test_both_autoscalers_are_told_the_same() -> None:
    keda, plain = scaled_object(), hpa()
    assert [(each.query, each.threshold) for each in keda_triggers()] == [(each.query, each.threshold) for each in hpa_triggers()]
    assert plain["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert (plain["minReplicas"], plain["maxReplicas"]) == (keda["minReplicaCount"], keda["maxReplicaCount"])
    assert plain["scaleTargetRef"]["name"] == keda["scaleTargetRef"]["name"]
    assert all(each["external"]["target"]["type"] == "Value" for each in plain["metrics"])


def test_queries_ask_for_this_installation_alone() -> None:
    namespace = read(KUBERNETES / "base" / "kustomization.yaml")["namespace"]
    for trigger in keda_triggers():
        selectors = re.findall(r"sdc_\w+\{([^}]*)\}", trigger.query)
        assert selectors and len(selectors) == len(re.findall(r"\bsdc_\w+", trigger.query))
        assert all(f'job="sdc",namespace="{namespace}"' in selector for selector in selectors), trigger.name
