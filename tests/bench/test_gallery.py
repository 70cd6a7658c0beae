import base64
import io

import numpy as np
from PIL import Image

from service.bench.gallery import SIDE, Gallery, where_most_differs
from tests.conftest import Plane, make_picture


def test_the_part_is_where_most_differs() -> None:
    original = make_picture(700, 900)
    other = original.copy()
    other[500:520, 30:60] ^= 128
    left, top, width, height = where_most_differs(original, other)
    assert (width, height) == (SIDE, SIDE)
    assert left <= 30 and left + width >= 60
    assert top <= 500 and top + height >= 520


def test_a_small_picture_is_shown_whole() -> None:
    pixels = make_picture(170, 400)
    assert where_most_differs(pixels, pixels ^ 1) in [(left, 0, SIDE, 170) for left in range(400 - SIDE + 1)]


def shown(pixels: Plane) -> dict[str, Plane]:
    return {"original": pixels, "sdc": pixels ^ 3}


def names(gallery: Gallery) -> tuple[list[str], list[str]]:
    return [each.picture for each in gallery.worst], [each.picture for each in gallery.best]


def test_both_ends_are_kept_in_order() -> None:
    gallery = Gallery(2)
    for name, lead in {"e": 5.0, "a": -9.0, "c": 0.0, "d": 1.0, "b": -3.0, "f": 5.5}.items():
        gallery.add(name, lead, shown(make_picture(16, 16)), "sdc")
    assert names(gallery) == (["a", "b"], ["f", "e"])


def test_no_picture_of_few_is_shown_twice() -> None:
    gallery = Gallery(10)
    for name, lead in {"b": 0.5, "c": 2.0, "a": -1.0}.items():
        gallery.add(name, lead, shown(make_picture(16, 16)), "sdc")
    assert names(gallery) == (["a", "b"], ["c"])


def test_none_when_none_are_asked_for() -> None:
    gallery = Gallery(0)
    gallery.add("a", 1.0, shown(make_picture(16, 16)), "sdc")
    assert names(gallery) == ([], [])


def test_what_is_shown_is_what_was_given_but_for_what_nobody_sees(photo: Plane) -> None:
    gallery = Gallery(1)
    gallery.add("cat", 0.0, {"original": photo, "sdc": photo[::-1].copy()}, "sdc")
    (example,) = gallery.worst
    kind, _, text = example.sources["original"].partition(";base64,")
    assert kind == "data:image/avif"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    part = photo[example.top : example.top + example.height, example.left : example.left + example.width]
    assert pixels.shape == part.shape
    assert np.square(pixels.astype(float) - part).mean() < 10
