import pytest

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
    rates = measure(settings, 13, 1)
    assert [len(each) for each in (rates.bare, rates.bulk, rates.known)] == [1, 1, 1]
    assert min(rates.bare + rates.bulk + rates.known) > 0
