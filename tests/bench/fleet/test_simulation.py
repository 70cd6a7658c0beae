"""The simulated fleet against what queueing theory says, its books, its rules, and the same day twice."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.bench.fleet.autoscaler import ScaledObject, read_scaled_object
from service.bench.fleet.events import Events
from service.bench.fleet.measured import Measured, Picture
from service.bench.fleet.replica import Limits, Replica, Request
from service.bench.fleet.simulation import Fleet, Surroundings, Told
from service.bench.fleet.traffic import Day, Sale

from .made import UNBOUNDED, measured, picture

SHIPPED = Path(__file__).parents[3] / "deploy" / "kubernetes" / "keda" / "scaledobject.yaml"
CPU = Limits(16, 4, 64 << 20, 0.01, 2, 30.0)


def poisson(rate: float, many: int, kinds: list[Picture], seed: int = 1) -> Iterator[tuple[float, Picture]]:
    rng, now = random.Random(seed), 0.0
    for _ in range(many):
        now += rng.expovariate(rate)
        yield now, rng.choice(kinds)


def alone(material: Measured, limits: Limits, arrivals: Iterator[tuple[float, Picture]]) -> Told:
    return Fleet(material, limits, Surroundings(0), None, 1).run(arrivals, float("inf"))


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_fixed_times_wait_as_m_d_1(load: float) -> None:
    """Pollaczek and Khinchine: mean wait = load x service / (2 (1 - load))."""
    one = picture(device_s=0.1)
    told = alone(measured(one, max_batch=1), UNBOUNDED, poisson(load / 0.1, 15_000, [one]))
    assert np.mean(told.wait_s) == pytest.approx(load * 0.1 / (2 * (1 - load)), rel=0.12)


def test_a_full_house_refuses_as_erlang_says() -> None:
    """Two threads, two slots, nothing that waits: M/G/2/2, whose loss depends on the mean alone (Erlang B: 1/5 at one erlang)."""
    one = picture(device_s=1e-9, aside_s=0.05)
    told = alone(measured(one), replace(UNBOUNDED, slots=2, cpu_workers=2), poisson(10, 8_000, [one]))
    assert np.isnan(told.wait_s).mean() == pytest.approx(0.2, rel=0.08)
    assert told.reasons == {"slots": np.isnan(told.wait_s).sum()}


def test_a_replica_that_never_rests_does_full_batches_where_they_are_quicker() -> None:
    for full_s, rate in ((0.2, 20.0), (0.5, 10.0)):
        one = picture(device_s=0.1, full_s=full_s)
        told = alone(measured(one), replace(UNBOUNDED, max_batch=4), iter([(0.0, one)] * 400))
        assert 400 / max(told.wait_s) == pytest.approx(rate, rel=0.05)


def test_whoever_cannot_be_served_in_time_is_refused_at_once_and_the_others_are_served_in_time() -> None:
    one = picture(device_s=0.1)
    told = alone(measured(one, max_batch=1), replace(UNBOUNDED, deadline_s=1.0), poisson(40, 4_000, [one]))
    refused = np.isnan(told.wait_s)
    assert 0.6 < refused.mean() < 0.85
    assert set(told.reasons) <= {"deadline-unreachable", "deadline-passed"}
    assert np.nanmax(told.wait_s) <= 1.0
    assert told.reasons.get("deadline-passed", 0) < 0.02 * refused.sum()


def test_a_device_at_work_takes_the_lane_that_had_less() -> None:
    """Bulk in a flood of interactive gets its fifth, and no more."""
    events, one = Events(), picture(device_s=0.1)
    bulk = one.model_copy(update={"lane": "bulk", "shape": "large"})
    done: list[str] = []
    replica = Replica(events, replace(UNBOUNDED, slots=1000), measured(one, bulk, max_batch=1), random.Random(1))
    for kind in (one, bulk):
        for _ in range(100):
            replica.arrive(Request(kind, 1.0, 0.0, float("inf"), lambda request, _: done.append(request.picture.lane)))
    events.run(10.0)
    assert done.count("bulk") / len(done) == pytest.approx(0.2, abs=0.05)


def rules(**given: object) -> ScaledObject:
    return read_scaled_object(SHIPPED).model_copy(update=given)


def evening(seed: int = 1, sale: float = 3.0) -> Day:
    return Day(5, 0.1, Sale(factor=sale, lasts_s=300, ebb_s=300), seed)


MATERIAL = measured(picture("compress", 0.15), picture("render", 0.22, aside_s=0.02))


def part(fleet: Fleet, day: Day, begins: float, ends: float) -> Told:
    return fleet.run(day.arrivals(MATERIAL, begins, ends), ends)


def test_nobody_is_lost() -> None:
    day, begins = evening(), 17.9 * 3600
    fleet = Fleet(MATERIAL, CPU, Surroundings(40), rules(), 2, begins=begins)
    ends = begins + 600.25  # in the middle of something
    told = part(fleet, day, begins, ends)
    came = sum(1 for _ in day.arrivals(MATERIAL, begins, ends))
    served = sum(wait == wait for wait in told.wait_s)
    assert told.inside > 0
    assert came == served + sum(told.reasons.values()) + told.inside
    assert len(told.arrived) == len(told.wait_s)


def test_the_same_seed_is_the_same_day() -> None:
    begins, ends = 9 * 3600.0, 9.1 * 3600.0

    def run(seed: int) -> Told:
        return part(Fleet(MATERIAL, CPU, Surroundings(40), rules(), 2, seed, begins), evening(seed), begins, ends)

    first, again, other = run(1), run(1), run(2)
    assert (first.arrived, first.wait_s, first.replicas) == (again.arrived, again.wait_s, again.replicas)
    assert first.wait_s != other.wait_s


def test_a_sale_brings_replicas_that_are_ready_later_and_go_slowly() -> None:
    day, begins = evening(), 17.9 * 3600
    told = part(Fleet(MATERIAL, CPU, Surroundings(40), rules(), 2, begins=begins), day, begins, begins + 1800)
    assert day.sale is not None
    before = [ready for moment, _, ready in told.replicas if moment < day.sale.begins_s]
    most = max(ready for _, _, ready in told.replicas)
    assert most > 1.5 * max(before)
    for moment, _, ready in told.replicas:
        assert ready <= max([2, *(wish for at, wish, _ in told.replicas if at <= moment - 40)])
    assert told.replicas[-1][1] < most
    assert told.replica_s > 2 * 1800


def test_without_replicas_everybody_is_refused() -> None:
    told = Fleet(MATERIAL, CPU, Surroundings(40), None, 0).run(iter([(1.0, MATERIAL.pictures[0])]), 10.0)
    assert told.reasons == {"no-replica": 1}


def test_replicas_that_go_finish_what_they_have() -> None:
    """Ten at night: fewer and fewer replicas, nobody refused for it."""
    fleet = Fleet(MATERIAL, CPU, Surroundings(40), rules(), 8, begins=22 * 3600.0)
    told = part(fleet, evening(), 22 * 3600.0, 22.4 * 3600.0)
    assert told.replicas[-1][1] < 8
    # a burst may fill a replica that stays; nobody is told that a replica stops
    assert set(told.reasons) <= {"slots"} and told.reasons.get("slots", 0) < 0.01 * len(told.arrived)


def test_the_day_has_its_shape() -> None:
    day = Day(20)
    rates = {hour: day.rate(3600 * hour) for hour in (4, 9, 11, 12.5, 14, 18.1, 20)}
    assert rates[4] < 0.1 * rates[20] < rates[9] < rates[11]
    assert rates[12.5] < min(rates[11], rates[14])
    assert rates[18.1] > 2 * rates[20]
    came = list(day.arrivals(MATERIAL, 20 * 3600.0, 20 * 3600.0 + 600))
    assert [moment for moment, _ in came] == sorted(moment for moment, _ in came)
    assert len(came) == pytest.approx(12_000, rel=0.05)
    assert np.mean([kind.operation == "compress" for _, kind in came]) == pytest.approx(0.1, abs=0.02)
