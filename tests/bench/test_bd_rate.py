import math

import pytest

from service.bench.bd_rate import bd_rate

RATES = (1000.0, 2000.0, 4000.0, 8000.0, 16000.0)


def curve(factor: float, shift: float = 0.0) -> list[tuple[float, float]]:
    """Quality that rises by 3 with every doubling of the bytes; the same quality for ``factor`` times the bytes."""
    return [(factor * rate, shift + 3 * math.log2(rate)) for rate in RATES]


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.25, 2.0])
def test_a_known_saving_is_found(factor: float) -> None:
    assert bd_rate(curve(factor), curve(1.0)) == pytest.approx(factor - 1, abs=1e-9)


def test_it_turns_round() -> None:
    there, back = bd_rate(curve(0.8), curve(1.0)), bd_rate(curve(1.0), curve(0.8))
    assert there is not None and back is not None
    assert (1 + there) * (1 + back) == pytest.approx(1)


def test_order_and_doubles_do_not_matter() -> None:
    assert bd_rate([*reversed(curve(0.8)), curve(0.8)[0]], curve(1.0)) == pytest.approx(-0.2)


def test_where_it_is_not_well_defined_there_is_none() -> None:
    whole = curve(1.0)
    assert bd_rate(whole[:3], whole) is None, "three sizes"
    falling = [*whole[:2], (whole[2][0], whole[1][1] - 1), *whole[3:]]
    assert bd_rate(whole, falling) is None, "more bytes, less quality"
    assert bd_rate(curve(1.0, shift=100), whole) is None, "nothing in common"
    assert bd_rate(curve(1.0, shift=7), whole) is None, "5 of 12 in common"
    assert bd_rate(curve(1.0, shift=5), whole) is not None, "7 of 12 in common"
    saturated = [whole[0], whole[0], *whole[1:3]]
    assert bd_rate(whole, saturated) is None, "a file that is there twice is one size"
