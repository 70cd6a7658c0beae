"""The part of PromQL that the rules need, against values computed by hand."""

import math

import pytest

from service.bench.fleet.promql import Labels, Query, Samples
from service.errors import BadParameter


def labels(**given: str) -> Labels:
    return frozenset(given.items())


@pytest.fixture
def samples() -> Samples:
    """Two pods, scraped every 15 s from 0 to 120: a gauge at 2 and 6, a counter that grows by 1 and 3 a second."""
    made = Samples()
    for now in range(0, 121, 15):
        for pod, gauge, slope in (("a", 2.0, 1.0), ("b", 6.0, 3.0)):
            found = [
                ("busy", labels(pod=pod, op="render"), gauge),
                ("slots", labels(pod=pod), 16.0),
                ("done", labels(pod=pod), slope * now),
            ]
            made.scrape(float(now), found)
    return made


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("sum(busy) / sum(slots)", 8 / 32),
        ('sum(busy{pod="a"})', 2),
        ('sum(busy{pod!="a"})', 6),
        ('sum(busy{pod=~"a|b",op!~"comp.*"})', 8),
        ("max(busy) - min(busy) * avg(slots)", 6 - 2 * 16),
        ("count(busy)", 2),
        ("sum(rate(done[1m]))", 4),
        ("sum(increase(done[1m]))", 240),
        ("sum(avg_over_time(busy[30s]))", 8),
        ("max(max_over_time(busy[30s]))", 6),
        ("clamp_max(sum(busy), 5) + clamp_min(sum(slots), 40)", 45),
        ("sum(missing) or vector(3)", 3),
        ("sum(busy) or vector(3)", 8),
        ("sum(busy) > 7", 8),
        ("sum(busy) > bool 7", 1),
        ("sum(busy) < bool 7", 0),
        ("sum(busy > 4)", 6),
        ("2 * (1 + sum(busy))", 18),
    ],
)
def test_values(samples: Samples, query: str, value: float) -> None:
    assert Query(query).one(samples, 120.0) == pytest.approx(value)


@pytest.mark.parametrize("query", ["sum(missing)", "busy", "sum(busy) > 8", "sum(missing) / sum(slots)", "sum(busy) / (sum(slots) - 32)"])
def test_nothing_several_and_no_number_are_no_value(samples: Samples, query: str) -> None:
    assert Query(query).one(samples, 120.0) is None


def test_labels_are_kept_by_by(samples: Samples) -> None:
    assert Query("sum by (pod) (busy)").at(samples, 120.0) == {labels(pod="a"): 2, labels(pod="b"): 6}


def test_a_rate_needs_two_samples_and_survives_a_restart() -> None:
    samples = Samples()
    samples.scrape(0, [("done", labels(pod="a"), 100.0)])
    assert Query("sum(rate(done[1m]))").one(samples, 1) is None
    for now, value in ((15, 130.0), (30, 10.0), (45, 40.0)):
        samples.scrape(now, [("done", labels(pod="a"), value)])
    # 30, then 10 since the restart, then 30, in 45 s of samples; each end within 1.1 of a distance is stretched to
    assert Query("sum(increase(done[1m]))").one(samples, 46) == pytest.approx(70 * (45 + 14 + 1) / 45)


def test_a_counter_is_not_stretched_back_beyond_its_birth() -> None:
    samples = Samples()
    for now in (30, 45, 60):
        samples.scrape(now, [("done", labels(pod="a"), float(now - 30))])
    assert Query("sum(increase(done[1m]))").one(samples, 60) == pytest.approx(30)


def test_a_pod_that_is_gone_counts_no_more_but_what_it_did_does(samples: Samples) -> None:
    samples.gone(120.0, ("pod", "b"))
    assert Query("sum(busy)").one(samples, 120.0) == 2
    assert Query("sum(rate(done[1m]))").one(samples, 120.0) == pytest.approx(4)
    samples.scrape(2000.0, [("busy", labels(pod="a"), 1.0)])
    samples.gone(2000.0, ("pod", "c"))
    assert [dict(each)["pod"] for each in samples.series["done"]] == []


def test_quantiles_lie_inside_the_bucket() -> None:
    samples = Samples()
    counts = {"0.1": 50.0, "0.5": 90.0, "1.0": 100.0, "+Inf": 100.0}
    samples.scrape(0, [("wait_bucket", labels(le=bound, pod="a"), count) for bound, count in counts.items()])
    assert Query("histogram_quantile(0.5, sum by (le) (wait_bucket))").one(samples, 0) == pytest.approx(0.1)
    assert Query("histogram_quantile(0.95, sum by (le) (wait_bucket))").one(samples, 0) == pytest.approx(0.75)
    none = Samples()
    none.scrape(0, [("wait_bucket", labels(le=bound), 0.0) for bound in counts])
    assert math.isnan(next(iter(Query("histogram_quantile(0.5, wait_bucket)").at(none, 0).values())))


@pytest.mark.parametrize(
    "query", ["topk(3, busy)", "sum without (pod) (busy)", "deriv(busy[1m])", "sum(busy offset 1m)", "busy * on (pod) slots", "sum(("]
)
def test_what_is_not_known_is_said_before_anything_runs(query: str) -> None:
    with pytest.raises(BadParameter, match="PromQL"):
        Query(query)
