import math
from collections.abc import Callable

import pytest
from prometheus_client import REGISTRY

from service.batching.admission import VAIN, Admission
from service.batching.durations import Durations
from service.errors import DeadlineMissed, Overloaded
from service.telemetry import metrics


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def admission(now: list[float]) -> Admission:
    """A render takes a hundredth of a second for each pixel on the device, and a tenth of that on each of two processors."""
    durations = Durations()
    for pixels in (10, 1000):
        durations.learn("render", None, 1, pixels, pixels / 100)
        durations.learn("render aside", None, 1, pixels, pixels / 1000)
    return Admission(["render"], 10_000, 2, durations, lambda lane: 0.0, lambda: now[0])


def grown(action: Callable[[], object]) -> set[str]:
    """Reasons of refusals that an action counts."""

    def counts() -> dict[str, float]:
        return {reason: REGISTRY.get_sample_value("sdc_rejected_total", {"reason": reason}) or 0.0 for reason in metrics.REASONS}

    before = counts()
    action()
    return {reason for reason, count in counts().items() if count > before[reason]}


@pytest.mark.parametrize("tiles", [1, 4, 48])
def test_a_picture_claims_nothing_of_the_device_when_all_its_tiles_are_there(admission: Admission, tiles: int) -> None:
    claim = admission.claim("render", 480, "bulk", math.inf)
    admission.enter(claim)
    assert admission.wait_s("bulk") == pytest.approx(4.8)
    for handed_over in range(1, tiles + 1):
        admission.submitted(claim, 480 // tiles)
        assert claim.device_s == pytest.approx(4.8 * (1 - handed_over / tiles))
    assert claim.latest == math.inf
    assert admission.wait_s("bulk") == pytest.approx(0.48 / 2), "the processor's part alone"


def test_overlaps_are_computed_too(admission: Admission, now: list[float]) -> None:
    claim = admission.claim("render", 400, "bulk", 100.0, submitted=624)
    assert claim.device_s == pytest.approx(6.24)
    assert claim.processor_s == pytest.approx(0.4)
    assert claim.latest == pytest.approx(100 - 6.24 - 0.4)
    admission.enter(claim)
    for _ in range(4):
        admission.submitted(claim, 156)
    assert (claim.to_come, claim.device_s) == (0, pytest.approx(0.0))
    now[0] = claim.promised_s
    admission.processed(claim, 0.4)
    admission.leave(claim, None)
    with_company = admission.claim("render", 10, "interactive", math.inf)
    admission.enter(with_company)
    admission.claim("render", 10, "interactive", now[0] + 0.23)  # a promise that was kept leaves no margin behind


def test_what_takes_longer_by_itself_is_no_load(admission: Admission) -> None:
    """More replicas could not answer in time either."""

    def ask() -> None:
        with pytest.raises(DeadlineMissed, match=r"100 ms are left and this needs 1100 ms by itself"):
            admission.claim("render", 100, "interactive", 0.1)

    assert grown(ask) == {"deadline-too-short"}


def test_what_others_leave_no_time_for_is(admission: Admission) -> None:
    admission.enter(admission.claim("render", 100, "interactive", math.inf))

    def ask() -> None:
        with pytest.raises(Overloaded, match=r"about 1000 ms of other work are ahead and this needs 1100 ms") as refused:
            admission.claim("render", 100, "interactive", 1.5)
        assert not isinstance(refused.value, DeadlineMissed)

    assert grown(ask) == {"deadline-unreachable"}


def test_a_deadline_in_the_past(admission: Admission, now: list[float]) -> None:
    now[0] = 5.0
    with pytest.raises(DeadlineMissed, match="no time is left"):
        admission.refuse_hopeless("render", 4.9, "interactive")


def test_what_failed_teaches_nothing_of_how_long_pictures_take(admission: Admission, now: list[float]) -> None:
    """Damaged uploads end early: a stream of them would make every promise too short."""
    before = admission.claim("render", 500, "interactive", math.inf).processor_s
    for _ in range(30):
        claim = admission.claim("render", 500, "interactive", math.inf)
        admission.enter(claim)
        admission.processed(claim, 0.001)
        admission.leave(claim, ValueError)
    assert admission.claim("render", 500, "interactive", math.inf).processor_s == pytest.approx(before)


def test_who_came_too_late_teaches_what_was_still_to_do(admission: Admission, now: list[float]) -> None:
    for _ in range(5):
        claim = admission.claim("render", 100, "interactive", now[0] + 50)
        admission.enter(claim)
        now[0] += claim.promised_s  # just as long as was promised, and nothing of it done
        admission.leave(claim, DeadlineMissed)
    assert admission._margins["render"].seconds == pytest.approx(100 / 100 + 100 / 1000)


def test_an_idle_service_lets_one_in_where_its_predictions_let_nobody_in_and_then_believes_them_again(
    admission: Admission, now: list[float]
) -> None:
    for _ in range(VAIN):
        with pytest.raises(DeadlineMissed):
            admission.claim("render", 1000, "interactive", now[0] + 1)
    claim = admission.claim("render", 1000, "interactive", now[0] + 1)
    assert claim.deadline == math.inf
    admission.enter(claim)
    admission.leave(claim, None)
    with pytest.raises(DeadlineMissed):
        admission.claim("render", 1000, "interactive", now[0] + 1)


@pytest.mark.parametrize("idle", [True, False], ids=["idle", "beside others"])
def test_icons_say_nothing_of_a_photo(idle: bool) -> None:
    """What the processor does takes 60 ms for the smallest of pictures, and not 11 s for 183 times their pixels."""
    admission = Admission(["encode"], 10_000_000, 2, Durations(), lambda lane: 0.0, lambda: 0.0)
    for _ in range(40):
        icon = admission.claim("encode", 16_384, "interactive", 30.0)
        admission.enter(icon)
        admission.processed(icon, 0.06)
        admission.leave(icon, None)
    if not idle:
        admission.enter(admission.claim("encode", 16_384, "interactive", 30.0))
    assert admission.claim("encode", 3_000_000, "bulk", 5.0).processor_s < 1.0
