"""Samples as Prometheus scrapes them, and the part of its language that autoscaling queries need; whatever else is an error that names it.

Parsed by Prometheus' own grammar (``promql-parser``); ``rate`` and ``increase`` extrapolate as Prometheus does.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import promql_parser as syntax

from service.errors import BadParameter

LOOKBACK_S = 300.0
"""how old a sample an instant selector still takes"""
KEPT_S = 900.0

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Value = Vector | float

_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right if right else (math.nan if not left else math.copysign(math.inf, left)),
}
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": lambda left, right: left > right,
    "<": lambda left, right: left < right,
    ">=": lambda left, right: left >= right,
    "<=": lambda left, right: left <= right,
}
_AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "sum": sum, "max": max, "min": min, "avg": lambda values: sum(values) / len(values), "count": len,
}  # fmt: skip


@dataclass
class Samples:
    """Time series by name and labels; times in seconds, rising."""

    series: dict[str, dict[Labels, deque[tuple[float, float]]]] = field(default_factory=lambda: defaultdict(dict))

    def scrape(self, now: float, found: Iterable[tuple[str, Labels, float]]) -> None:
        """Keep what a target said."""
        for name, labels, value in found:
            row = self.series[name].setdefault(labels, deque())
            row.append((now, value))
            while row[0][0] < now - KEPT_S:
                row.popleft()

    def gone(self, now: float, label: tuple[str, str]) -> None:
        """A target is no more: its series end here, and those that ended long ago are forgotten."""
        for family in self.series.values():
            for labels in [each for each in family if label in each]:
                family[labels].append((now, math.nan))
            for labels in [each for each, row in family.items() if row[-1][0] < now - KEPT_S]:
                del family[labels]


class Query:
    """An expression, checked; raises BadParameter for one that cannot be evaluated here."""

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        try:
            self._tree = syntax.parse(text)
        except ValueError as error:
            raise BadParameter(f"no PromQL: {self.text}: {error}") from error
        self.at(Samples(), 0.0)  # whatever is not known here is met now and not in the middle of a day

    def at(self, samples: Samples, now: float) -> Vector:
        """The instant vector at a moment; a scalar is an element without labels."""
        found = _Evaluation(samples, now, self.text).value(self._tree)
        return {frozenset(): found} if isinstance(found, float) else found

    def one(self, samples: Samples, now: float) -> float | None:
        """The only element, finite; None where there is none, or more, or no number."""
        found = list(self.at(samples, now).values())
        return found[0] if len(found) == 1 and math.isfinite(found[0]) else None


@dataclass(frozen=True)
class _Evaluation:
    samples: Samples
    now: float
    text: str

    def value(self, node: Any) -> Value:
        match node:
            case syntax.NumberLiteral():
                return float(node.val)
            case syntax.ParenExpr():
                return self.value(node.expr)
            case syntax.VectorSelector():
                return self._instant(node)
            case syntax.AggregateExpr():
                return self._aggregate(node)
            case syntax.BinaryExpr():
                return self._binary(node)
            case syntax.Call():
                return self._call(node)
        raise self._unknown(type(node).__name__)

    def _unknown(self, what: str) -> BadParameter:
        return BadParameter(f"the simulator does not know {what} of PromQL: {self.text}")

    def _vector(self, node: Any) -> Vector:
        found = self.value(node)
        if isinstance(found, float):
            raise self._unknown("a scalar in this place")
        return found

    # -- selectors

    def _rows(self, selector: Any) -> Iterable[tuple[Labels, deque[tuple[float, float]]]]:
        if selector.offset or selector.at or selector.matchers.or_matchers:
            raise self._unknown("offset, @ and or between matchers")
        tests = [(each.name, str(each.op), each.value) for each in selector.matchers.matchers]
        for labels, row in self.samples.series.get(selector.name, {}).items():
            if all(_matches(dict(labels).get(name, ""), op, value) for name, op, value in tests):
                yield labels, row

    def _instant(self, selector: Any) -> Vector:
        return {
            labels: row[-1][1]
            for labels, row in self._rows(selector)
            if row[-1][0] > self.now - LOOKBACK_S and not math.isnan(row[-1][1])  # NaN marks the end of a series
        }

    def _windows(self, node: Any) -> tuple[float, dict[Labels, list[tuple[float, float]]]]:
        """Of a range: its seconds, and the samples of each series in it."""
        if not isinstance(node, syntax.MatrixSelector):
            raise self._unknown(type(node).__name__)
        seconds = _seconds(node.range)
        found: dict[Labels, list[tuple[float, float]]] = {}
        for labels, row in self._rows(node.vector_selector):
            inside = []
            for sample in reversed(row):
                if sample[0] <= self.now - seconds:
                    break
                if not math.isnan(sample[1]):
                    inside.append(sample)
            if inside:
                found[labels] = inside[::-1]
        return seconds, found

    # -- operators

    def _aggregate(self, node: Any) -> Vector:
        how = _AGGREGATES.get(str(node.op))
        if how is None:
            raise self._unknown(str(node.op))
        by = set(node.modifier.labels) if node.modifier else set()
        if node.modifier and node.modifier.type != syntax.AggModifierType.By:
            raise self._unknown("without")
        groups: dict[Labels, list[float]] = defaultdict(list)
        for labels, number in self._vector(node.expr).items():
            groups[frozenset(each for each in labels if each[0] in by)].append(number)
        return {labels: float(how(numbers)) for labels, numbers in groups.items()}

    def _binary(self, node: Any) -> Value:
        op, left, right = str(node.op).strip(), self.value(node.lhs), self.value(node.rhs)
        if node.modifier and node.modifier.matching:
            raise self._unknown("on and ignoring")
        if op == "or" and isinstance(left, dict) and isinstance(right, dict):
            return {**right, **left}
        if op in _COMPARISONS and isinstance(left, dict):
            held = [(labels, a, _COMPARISONS[op](a, b)) for labels, a, b in _pairs(left, right)]
            if node.modifier and node.modifier.return_bool:
                return {labels: float(true) for labels, _, true in held}
            return {labels: a for labels, a, true in held if true}
        if op not in _ARITHMETIC:
            raise self._unknown(op)
        if isinstance(left, float) and isinstance(right, float):
            return _ARITHMETIC[op](left, right)
        return {labels: _ARITHMETIC[op](a, b) for labels, a, b in _pairs(left, right)}

    def _call(self, node: Any) -> Value:
        name, arguments = node.func.name, node.args
        match name:
            case "rate" | "increase":
                seconds, windows = self._windows(arguments[0])
                grown = {labels: _increase(rows, self.now - seconds, self.now) for labels, rows in windows.items() if len(rows) > 1}
                return {labels: each / (seconds if name == "rate" else 1.0) for labels, each in grown.items()}
            case "avg_over_time" | "max_over_time" | "min_over_time":
                how = _AGGREGATES[name.partition("_")[0]]
                return {labels: float(how([each for _, each in rows])) for labels, rows in self._windows(arguments[0])[1].items()}
            case "histogram_quantile":
                return _quantiles(self.value(arguments[0]), self._vector(arguments[1]))
            case "clamp_min" | "clamp_max":
                bound, choose = self.value(arguments[1]), max if name == "clamp_min" else min
                if isinstance(bound, float):
                    return {labels: choose(each, bound) for labels, each in self._vector(arguments[0]).items()}
            case "vector":
                number = self.value(arguments[0])
                if isinstance(number, float):
                    return {frozenset(): number}
        raise self._unknown(name)


def _seconds(duration: timedelta) -> float:
    return duration.total_seconds()


def _matches(value: str, op: str, wanted: str) -> bool:
    negative = op in ("MatchOp.NotEqual", "MatchOp.NotRe")
    same = value == wanted if op in ("MatchOp.Equal", "MatchOp.NotEqual") else re.fullmatch(wanted, value) is not None
    return same != negative


def _pairs(left: Value, right: Value) -> Iterable[tuple[Labels, float, float]]:
    """Elements with equal labels; a scalar goes with every element."""
    if isinstance(left, dict) and isinstance(right, dict):
        return [(labels, number, right[labels]) for labels, number in left.items() if labels in right]
    if isinstance(left, dict):
        assert isinstance(right, float)
        return [(labels, number, right) for labels, number in left.items()]
    assert isinstance(right, dict)
    return [(labels, left, number) for labels, number in right.items()]


def _increase(rows: list[tuple[float, float]], start: float, end: float) -> float:
    """By how much a counter grew from start to end, beyond its first and last sample by at most half the distance between two, and not
    back beyond where it was 0."""
    grown, last = 0.0, rows[0][1]
    for _, value in rows[1:]:
        grown += value - last if value >= last else value  # a restart begins at 0
        last = value
    sampled = rows[-1][0] - rows[0][0]
    apart = sampled / (len(rows) - 1)
    before, after = rows[0][0] - start, end - rows[-1][0]
    before = before if before < 1.1 * apart else apart / 2
    after = after if after < 1.1 * apart else apart / 2
    if grown > 0:
        before = min(before, sampled * rows[0][1] / grown)
    return grown * (sampled + before + after) / sampled


def _quantiles(share: Value, buckets: Mapping[Labels, float]) -> Vector:
    """Quantile of each histogram, linear inside the bucket it falls into; NaN for one without observations."""
    assert isinstance(share, float)
    histograms: dict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for labels, count in buckets.items():
        bound = float(dict(labels)["le"])
        histograms[frozenset(each for each in labels if each[0] != "le")].append((bound, count))
    return {labels: quantile(share, sorted(rows)) for labels, rows in histograms.items()}


def quantile(share: float, rows: list[tuple[float, float]]) -> float:
    """As Prometheus' histogram_quantile: linear inside a bucket, the greatest finite bound for what lies beyond it, NaN of nothing.

    ``rows`` are upper bounds, rising, and how many were no greater.
    """
    total = rows[-1][1]
    if not total:
        return math.nan
    below, lower = 0.0, 0.0
    for bound, count in rows:
        if count >= share * total:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (share * total - below) / (count - below) if count > below else bound
        below, lower = count, bound
    return lower
