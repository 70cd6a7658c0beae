"""What KEDA and Kubernetes' HorizontalPodAutoscaler make of a ScaledObject: read from its manifest, computed as they document it.

    triggers' values -> a proposal each -> the largest -> stabilisation -> policies -> replicas

Knows nothing of where the values come from, and of time only what it is told.
Sources: Kubernetes, "Horizontal Pod Autoscaling" (algorithm details, configurable scaling behaviour); KEDA, "ScaledObject specification".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from service.errors import BadParameter

TOLERANCE = 0.1
"""a ratio this close to 1 changes nothing (``--horizontal-pod-autoscaler-tolerance``)"""
SYNC_S = 15.0
"""between two looks of the HorizontalPodAutoscaler (``--horizontal-pod-autoscaler-sync-period``)"""


class _Read(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Policy(_Read):
    """So many pods, or so many percent of them, in so many seconds at most."""

    type: Literal["Pods", "Percent"]
    value: int = Field(gt=0)
    period_seconds: int = Field(gt=0, le=1800)


class Direction(_Read):
    """How fast to go one way."""

    stabilization_window_seconds: int = Field(default=0, ge=0, le=3600)
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"
    policies: list[Policy]


class Up(Direction):
    """With Kubernetes' defaults."""

    policies: list[Policy] = [Policy(type="Pods", value=4, period_seconds=15), Policy(type="Percent", value=100, period_seconds=15)]


class Down(Direction):
    """With Kubernetes' defaults."""

    stabilization_window_seconds: int = Field(default=300, ge=0, le=3600)
    policies: list[Policy] = [Policy(type="Percent", value=100, period_seconds=15)]


class Behavior(_Read):
    scale_up: Up = Up()
    scale_down: Down = Down()


class Fallback(_Read):
    """So many replicas once a trigger could not be read more often than that."""

    failure_threshold: int = Field(ge=0)
    replicas: int = Field(ge=0)
    behavior: Literal["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"] = "static"

    def of(self, current: int) -> int:
        """How many, where there are ``current``."""
        chosen = {
            "static": self.replicas,
            "currentReplicas": current,
            "currentReplicasIfHigher": max(current, self.replicas),
            "currentReplicasIfLower": min(current, self.replicas),
        }
        return chosen[self.behavior]


class Trigger(_Read):
    """A number and its target."""

    name: str
    type: Literal["prometheus", "cron"]
    metric_type: Literal["Value", "AverageValue"] = "AverageValue"
    use_cached_metrics: bool = False
    metadata: dict[str, Any]

    @property
    def target(self) -> float:
        return 1.0 if self.type == "cron" else float(self.metadata["threshold"])

    @property
    def query(self) -> str:
        """PromQL; of a ``prometheus`` trigger."""
        return str(self.metadata["query"])

    @property
    def nothing_is_zero(self) -> bool:
        """Whether an empty answer counts as 0; or else as a failure."""
        return str(self.metadata.get("ignoreNullValues", "true")).lower() == "true"

    def scheduled(self, day_s: float) -> float:
        """What a ``cron`` trigger says at so many seconds after midnight, on a day that its schedule names."""
        start, end = (_time_of_day(str(self.metadata[key])) for key in ("start", "end"))
        inside = start <= day_s < end if start < end else not end <= day_s < start
        return float(self.metadata["desiredReplicas"]) if inside else 1.0


class ScaledObject(_Read):
    """The part of KEDA's ScaledObject that decides on replicas."""

    polling_interval: float = Field(30, gt=0)
    min_replica_count: int = Field(0, ge=0)
    max_replica_count: int = Field(100, ge=1)
    fallback: Fallback | None = None
    behavior: Behavior = Field(default_factory=Behavior)
    triggers: list[Trigger] = Field(min_length=1)


def read_scaled_object(path: Path) -> ScaledObject:
    """The first ScaledObject of a YAML file; raises BadParameter for what is none, or has what is not modelled here."""
    try:
        documents = [each for each in yaml.safe_load_all(path.read_text()) if isinstance(each, dict)]
        spec = next(each["spec"] for each in documents if each.get("kind") == "ScaledObject")
        behavior = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
        found = ScaledObject.model_validate({**spec, "behavior": behavior})
        for trigger in found.triggers:
            _ = trigger.scheduled(0) if trigger.type == "cron" else (trigger.target, trigger.query)
    except OSError as error:
        raise BadParameter(f"cannot read {path}: {error.strerror}; name the rules with --rules") from error
    except (StopIteration, yaml.YAMLError) as error:
        raise BadParameter(f"{path} holds no ScaledObject") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise BadParameter(f"{path}: {problems}") from error
    except (KeyError, ValueError) as error:
        raise BadParameter(f"{path}: a trigger's metadata cannot be read: {error}") from error
    return found


def _time_of_day(schedule: str) -> float:
    """Seconds after midnight of a cron schedule; raises ValueError where minute or hour is more than a number."""
    minute, hour, *days = schedule.split()
    if len(days) != 3 or not (minute.isdecimal() and hour.isdecimal()):
        raise ValueError(f"'{schedule}' is no schedule of five fields whose minute and hour are numbers")
    return 3600.0 * int(hour) + 60.0 * int(minute)


def proposal(trigger: Trigger, value: float, current: int, ready: int) -> int:
    """Replicas that one trigger asks for.

    Args:
        trigger: with its target; ``Value`` is compared with the target as it is, ``AverageValue`` after division by the replicas.
        value: of its query, at least 0.
        current: replicas asked for.
        ready: replicas that are ready, which ``Value`` multiplies.
    """
    milli, target = int(1000 * value), round(1000 * trigger.target)  # both sides are quantities in thousandths
    ratio = milli / target if trigger.metric_type == "Value" else milli / (target * max(1, current))
    if abs(1 - ratio) <= TOLERANCE:
        return current
    return math.ceil(ratio * ready) if trigger.metric_type == "Value" else math.ceil(milli / target)


class Autoscaler:
    """Remembers what stabilisation and policies look back on."""

    def __init__(self, rules: ScaledObject) -> None:
        self.rules = rules
        self._recommended: list[tuple[float, int]] = []
        self._changes: list[tuple[float, int]] = []
        """pods added, or taken away where negative"""
        self._failures: Counter[str] = Counter()

    def replicas(self, now: float, current: int, ready: int, values: Mapping[str, float | None]) -> int:
        """How many there shall be.

        Args:
            now: seconds, rising from call to call.
            current: asked for until now.
            ready: of them.
            values: by trigger name; None where it could not be read.
        """
        rules = self.rules
        least, most = max(1, rules.min_replica_count), rules.max_replica_count
        if not least <= current <= most:
            return min(max(current, least), most)
        wanted = self._largest(current, ready, values)
        stable = self._stabilised(now, current, wanted)
        result = min(max(self._allowed(now, current, stable), least), most)
        if result != current:
            self._changes.append((now, result - current))
        return result

    def _largest(self, current: int, ready: int, values: Mapping[str, float | None]) -> int:
        """The largest proposal; where one is missing, nothing that would take replicas away."""
        proposals, missing = [], False
        for trigger in self.rules.triggers:
            value = values[trigger.name]
            self._failures[trigger.name] = 0 if value is not None else self._failures[trigger.name] + 1
            if value is not None:
                proposals.append(proposal(trigger, value, current, ready))
            elif self.rules.fallback and self._failures[trigger.name] > self.rules.fallback.failure_threshold:
                proposals.append(self.rules.fallback.of(current))
            else:
                missing = True
        return max([*proposals, current] if missing else proposals)

    def _stabilised(self, now: float, current: int, wanted: int) -> int:
        """No more than the least wanted in the window for going up, no less than the most wanted in the one for going down."""
        up, down = self.rules.behavior.scale_up, self.rules.behavior.scale_down
        longest = max(up.stabilization_window_seconds, down.stabilization_window_seconds)
        self._recommended = [each for each in self._recommended if each[0] > now - longest]
        floor = min([wanted, *(many for at, many in self._recommended if at > now - up.stabilization_window_seconds)])
        ceiling = max([wanted, *(many for at, many in self._recommended if at > now - down.stabilization_window_seconds)])
        self._recommended.append((now, wanted))
        return min(max(current, floor), ceiling)

    def _allowed(self, now: float, current: int, stable: int) -> int:
        """As far towards ``stable`` as the policies let go by now."""
        behavior = self.rules.behavior
        if stable > current:
            limits = [self._limit(now, current, each, +1) for each in behavior.scale_up.policies]
            return min(stable, max(current, _selected(behavior.scale_up, limits, max, min, current)))
        if stable < current:
            limits = [self._limit(now, current, each, -1) for each in behavior.scale_down.policies]
            return max(stable, min(current, _selected(behavior.scale_down, limits, min, max, current)))
        return current

    def _limit(self, now: float, current: int, policy: Policy, sign: int) -> int:
        """How far one policy lets go, from where its period began."""
        began = current - sum(change for at, change in self._changes if at > now - policy.period_seconds)
        if policy.type == "Pods":
            return began + sign * policy.value
        exact = began * (100 + sign * policy.value) / 100
        return math.ceil(exact) if sign > 0 else int(exact)


def _selected(
    direction: Direction, limits: list[int], boldest: Callable[[list[int]], int], mildest: Callable[[list[int]], int], current: int
) -> int:
    if direction.select_policy == "Disabled":
        return current
    return boldest(limits) if direction.select_policy == "Max" else mildest(limits)
