import random

import pytest

from service.batching.durations import OF_LATE, REMEMBERED, Durations, Margin


def test_nothing_known_is_no_time() -> None:
    assert Durations().predict("encode", "s", 1, 100) == 0.0


def test_kinds_are_told_apart() -> None:
    """Eight steps of the U-Net take longer than one, for as many pixels: neither may be taken for the other."""
    known = Durations()
    for side in (100, 200, 300):
        known.learn("render", (side, 1), 1, side, 0.1 + 0.001 * side, kind=1)
        assert known.predict("render", None, 1, side, kind=8) == known.predict("render", None, 1, side, kind=1)
    for side in (100, 200, 300):
        known.learn("render", (side, 8), 1, side, 0.4 + 0.004 * side, kind=8)
    assert known.predict("render", None, 1, 400, kind=1) == pytest.approx(0.5, rel=0.01)
    assert known.predict("render", None, 1, 400, kind=8) == pytest.approx(2.0, rel=0.01)


def test_a_bucket_remembers_its_own_time() -> None:
    known = Durations()
    for _ in range(40):
        known.learn("encode", "a", 1, 100, 2.0)
        known.learn("encode", "b", 1, 100, 4.0)
    assert known.predict("encode", "a", 1, 100) == pytest.approx(2.0)
    assert known.predict("encode", "b", 1, 100) == pytest.approx(4.0)


def test_a_new_shape_is_predicted_from_the_operation() -> None:
    """Times of 0.5 s + 0.01 s a pixel, seen at two sizes, say what a third takes."""
    known = Durations()
    for pixels in (100, 200, 100, 200, 400):
        known.learn("encode", pixels, 1, pixels, 0.5 + 0.01 * pixels)
    assert known.predict("encode", "new", 1, 300) == pytest.approx(3.5, rel=0.01)
    assert known.predict("encode", "new", 2, 300) == pytest.approx(6.5, rel=0.01)
    assert known.predict("render", "new", 1, 300) == 0.0


def test_one_size_seen_is_taken_in_proportion() -> None:
    known = Durations()
    known.learn("encode", "a", 1, 100, 2.0)
    assert known.predict("encode", "b", 1, 300) == pytest.approx(6.0)


@pytest.mark.parametrize("sizes", [(100,), (100, 110)], ids=["one size", "nearly one"])
@pytest.mark.parametrize("before", [(), (20_000,)], ids=["icons alone", "a photo long ago"])
def test_of_what_is_far_larger_than_all_that_was_seen_nothing_is_guessed(sizes: tuple[int, ...], before: tuple[int, ...]) -> None:
    """Half a second whatever the size, give or take a tenth: no line through that may say minutes of a photo."""
    rng, known = random.Random(1), Durations()
    for pixels in (*before, *(rng.choice(sizes) for _ in range(400))):
        known.learn("aside", None, 1, pixels, 0.5 + rng.uniform(-0.1, 0.1))
        assert known.predict_seen("aside", 20_000) < 1.0
    assert known.predict_seen("aside", 100) == pytest.approx(0.5, rel=0.2)


def test_what_was_seen_to_grow_is_followed_as_far_as_that_goes() -> None:
    known = Durations()
    assert known.predict_seen("aside", 100) == 0.0
    for pixels in (100, 200, 400, 100, 200, 400):
        known.learn("aside", None, 1, pixels, 0.5 + 0.01 * pixels)
    assert known.predict_seen("aside", 300) == pytest.approx(3.5, rel=0.01)
    assert known.predict_seen("aside", 600) == pytest.approx(6.5, rel=0.01)
    assert known.predict_seen("aside", 10_000) < 10.0


def test_it_follows_a_machine_that_slows_down() -> None:
    known = Durations()
    known.learn("encode", "a", 1, 100, 1.0)
    for _ in range(30):
        known.learn("encode", "a", 1, 100, 3.0)
    assert known.predict("encode", "a", 1, 100) == pytest.approx(3.0, rel=0.01)


def test_batches_are_worth_it_where_they_were_seen_to_be() -> None:
    known = Durations()
    assert [known.best_size("encode", "a", waiting, 10, 4) for waiting in (1, 2, 3, 4, 9)] == [1, 1, 4, 4, 4]
    known.learn("encode", "a", 1, 10, 1.0)
    known.learn("encode", "a", 4, 10, 1.5)
    assert [known.best_size("encode", "a", waiting, 10, 4) for waiting in (1, 2, 3)] == [1, 4, 4]
    for _ in range(40):
        known.learn("encode", "a", 4, 10, 5.0)
    assert known.best_size("encode", "a", 4, 10, 4) == 1


def test_it_does_not_grow_for_ever() -> None:
    known = Durations()
    for shape in range(3 * REMEMBERED):
        known.learn("encode", shape, 1, 10, 1.0)
    assert len(known._seen) == REMEMBERED


def test_a_margin_finds_what_nearly_all_take() -> None:
    rng, margin = random.Random(4), Margin()
    for _ in range(300):
        margin.learn(0.2, 0.2 + rng.uniform(-0.1, 0.4))
    assert 0.33 < margin.seconds < 0.4


def test_a_margin_is_never_negative_and_forgets() -> None:
    margin = Margin()
    margin.learn(1.0, 0.1)
    assert margin.seconds == 0
    for _ in range(OF_LATE):
        margin.learn(1.0, 3.0)
    assert margin.seconds == 2.0
    for _ in range(OF_LATE):
        margin.learn(1.0, 0.9)
    assert margin.seconds == 0
