"""Replicas that come and go as the rules say, under a trace: who was served when, who was refused, and what was paid for.

Knows neither where the trace nor where the rules come from.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from service.bench.fleet.autoscaler import SYNC_S, Autoscaler, ScaledObject
from service.bench.fleet.events import Events
from service.bench.fleet.measured import Measured, Picture
from service.bench.fleet.promql import Query, Samples
from service.bench.fleet.replica import Limits, Replica, Request

NOBODY = "no-replica"
"""the reason where no replica was ready"""


@dataclass(frozen=True)
class Surroundings:
    """What Kubernetes and Prometheus add, in seconds."""

    start_s: float
    """from the wish for a pod to its first request: node, image, process, readiness"""
    scrape_s: float = 15.0


@dataclass
class Told:
    """What became of every request, in the order of the replies; and the replicas, whenever they changed."""

    arrived: list[float] = field(default_factory=list)
    wait_s: list[float] = field(default_factory=list)
    """from request to reply, beyond what it takes where nobody else asks; NaN of those refused"""
    reasons: dict[str, int] = field(default_factory=dict)
    replicas: list[tuple[float, int, int]] = field(default_factory=list)
    """moment, asked for, ready"""
    replica_s: float = 0.0
    """seconds paid for, from the wish for a pod to its end"""
    inside: int = 0
    """neither served nor refused when the time was over"""
    renders: int = 0
    """served, of all"""

    def waits(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Arrival and wait of all that were answered, by arrival."""
        arrived, waits = np.array(self.arrived), np.array(self.wait_s)
        order = np.argsort(arrived, kind="stable")
        return arrived[order], waits[order]

    def refused_share(self, begins: float, ends: float) -> float:
        """Of those who came in this time; 0 where nobody did."""
        arrived, waits = self.waits()
        inside = (arrived >= begins) & (arrived < ends)
        return float(np.isnan(waits[inside]).mean()) if inside.any() else 0.0


@dataclass(eq=False)
class _Pod:
    name: str
    wished: float
    replica: Replica
    ready: bool = False
    ending: bool = False


class Fleet:
    """Replicas, those who scale them, and everybody who asks.

    Args:
        measured: what pictures take.
        limits: of each process.
        surroundings: delays of everything else.
        rules: None keeps the first replicas for ever.
        first: replicas that are ready at the beginning; None: the least that the rules allow.
        seed: of routes and of what each part takes.
        begins: seconds after midnight.
    """

    def __init__(
        self,
        measured: Measured,
        limits: Limits,
        surroundings: Surroundings,
        rules: ScaledObject | None,
        first: int | None = None,
        seed: int = 1,
        begins: float = 0.0,
    ) -> None:
        self.events, self.told = Events(), Told()
        self.events.now = begins
        self._measured, self._limits, self._surroundings, self._rng = measured, limits, surroundings, random.Random(seed)
        self._autoscaler = Autoscaler(rules) if rules else None
        self._queries = {each.name: Query(each.query) for each in rules.triggers if each.type == "prometheus"} if rules else {}
        self._cached: dict[str, tuple[float, float | None]] = {}
        self._samples, self._pods, self._made = Samples(), list[_Pod](), 0
        for _ in range(first if first is not None else max(1, rules.min_replica_count if rules else 1)):
            self._wish(0.0)
        self._wished = len(self._pods)
        if rules:  # nobody else asks for samples
            self.events.at(begins + surroundings.scrape_s, self._scrape)
            self.events.at(begins + SYNC_S, self._look)

    def run(self, arrivals: Iterator[tuple[float, Picture]], ends: float, routes: Mapping[int, int] | None = None) -> Told:
        """Until a moment, or for ``inf`` until everybody was answered.

        Args:
            arrivals: moments, rising, and what is asked for.
            routes: the number of the replica that gets the n-th request; or else any that is ready, as likely as the others (what
                kube-proxy does).
        """
        self._arrive_next(arrivals, 0, routes)
        self.events.run(ends)
        self.told.inside = sum(pod.replica.busy for pod in self._pods)
        for pod in self._pods:
            self._paid(pod)
        return self.told

    # -- requests

    def _arrive_next(self, arrivals: Iterator[tuple[float, Picture]], number: int, routes: Mapping[int, int] | None) -> None:
        following = next(arrivals, None)
        if following is not None:
            self.events.at(following[0], self._arrive, following[1], arrivals, number, routes)

    def _arrive(self, picture: Picture, arrivals: Iterator[tuple[float, Picture]], number: int, routes: Mapping[int, int] | None) -> None:
        self._arrive_next(arrivals, number + 1, routes)
        now, factor = self.events.now, self._measured.contention[picture.operation]
        request = Request(picture, factor, now, now + self._limits.deadline_s, self._answered)
        ready = [pod for pod in self._pods if pod.ready and not pod.ending]
        if not ready:
            self._answered(request, NOBODY)
            return
        (self._rng.choice(ready) if routes is None else self._pods[routes[number]]).replica.arrive(request)

    def _answered(self, request: Request, reason: str | None) -> None:
        told, picture = self.told, request.picture
        told.arrived.append(request.arrived)
        if reason is None:
            told.wait_s.append(max(0.0, self.events.now - request.arrived - request.factor * picture.unloaded_s))
            told.renders += picture.operation == "render"
        else:
            told.wait_s.append(float("nan"))
            told.reasons[reason] = told.reasons.get(reason, 0) + 1

    # -- replicas

    def _wish(self, start_s: float) -> None:
        pod = _Pod(f"sdc-{self._made}", self.events.now, Replica(self.events, self._limits, self._measured, self._rng))
        self._made += 1
        self._pods.append(pod)
        self.events.at(self.events.now + start_s, self._is_ready, pod)

    def _is_ready(self, pod: _Pod) -> None:
        pod.ready = not pod.ending
        self._note()

    def _end_one(self) -> None:
        """As Kubernetes chooses: one that is not ready before one that is, and of these the youngest."""
        pod = min((pod for pod in self._pods if not pod.ending), key=lambda pod: (pod.ready, -pod.wished))
        pod.ending = True
        self._end_when_empty(pod)

    def _end_when_empty(self, pod: _Pod) -> None:
        if pod.replica.busy:
            self.events.at(self.events.now + 1.0, self._end_when_empty, pod)
            return
        self._paid(pod)
        self._pods.remove(pod)
        self._samples.gone(self.events.now, ("pod", pod.name))

    def _paid(self, pod: _Pod) -> None:
        self.told.replica_s += self.events.now - pod.wished

    def _note(self) -> None:
        self.told.replicas.append((self.events.now, self._wished, sum(pod.ready and not pod.ending for pod in self._pods)))

    # -- Prometheus and the autoscaler

    def _scrape(self) -> None:
        for pod in self._pods:
            if pod.ready:
                self._samples.scrape(self.events.now, pod.replica.samples(pod.name))
        self.events.at(self.events.now + self._surroundings.scrape_s, self._scrape)

    def _look(self) -> None:
        assert self._autoscaler is not None
        rules, ready = self._autoscaler.rules, sum(pod.ready and not pod.ending for pod in self._pods)
        values = {each.name: self._value(each.name) for each in rules.triggers}
        wished = self._autoscaler.replicas(self.events.now, self._wished, ready, values)
        for _ in range(self._wished, wished):
            self._wish(self._surroundings.start_s)
        for _ in range(wished, self._wished):
            self._end_one()
        self._wished = wished
        self._note()
        self.events.at(self.events.now + SYNC_S, self._look)

    def _value(self, name: str) -> float | None:
        """Of a trigger, now; or as old as a polling interval, where KEDA is told to keep it."""
        assert self._autoscaler is not None
        trigger = next(each for each in self._autoscaler.rules.triggers if each.name == name)
        if trigger.type == "cron":
            return trigger.scheduled(self.events.now)
        kept = self._cached.get(name)
        if trigger.use_cached_metrics and kept is not None and self.events.now - kept[0] < self._autoscaler.rules.polling_interval:
            return kept[1]
        query = self._queries[name]
        value = query.one(self._samples, self.events.now)
        if value is None and trigger.nothing_is_zero and not query.at(self._samples, self.events.now):
            value = 0.0
        self._cached[name] = (self.events.now, value)
        return value
