import itertools
from types import SimpleNamespace

import pytest

from service.bench import bulk
from service.bench.bulk import Prices, Rates, costs, measure
from service.settings import Settings


def test_what_a_catalogue_costs() -> None:
    found = costs(50_000_000, 20.0, 2, Prices(0.04, 5.0, 0.4))
    assert found == {
        "core-hours": pytest.approx(50e6 / 10 / 3600),
        "cores": pytest.approx(50e6 / 10 / 3600 * 0.04),
        "writes": pytest.approx(500),
        "reads": pytest.approx(60),
    }
    assert Rates([10.0, 8.0], [7.0, 9.0], [1.0]).ratio == 0.9


def test_both_sides_do_all_pictures(settings: Settings) -> None:
    """What they take is not for a test to judge."""
    rates = measure(settings, 13, 1, known_s=0)
    assert [len(each) for each in (rates.bare, rates.bulk, rates.known)] == [1, 1, 1]
    assert min(rates.bare + rates.bulk + rates.known) > 0


def test_what_is_known_is_gone_through_until_it_can_be_timed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is a second later whenever it is looked at: twice for each run over the pictures."""
    clock = itertools.count()
    monkeypatch.setattr(bulk, "time", SimpleNamespace(monotonic=clock.__next__))
    assert measure(settings, 13, 1, known_s=3.5) == Rates([13], [13], [13])
    bare_made_and_known = 1 + 1 + 4
    assert next(clock) == 2 * bare_made_and_known
