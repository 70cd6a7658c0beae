import numpy as np
import pytest

from service.codec.lattice import PHASES, Lattice, known_in_window


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (3, 2), (5, 7), (8, 6)])
def test_windows_read_in_place_are_those_of_the_picture(side: int, height: int, width: int) -> None:
    """Channels 0-1 are known throughout, 2-4 in the phases before: every window equals the one cut from a padded picture."""
    rng, earlier, own = np.random.default_rng(0), slice(0, 2), slice(2, 5)
    picture = rng.integers(1, 100, (height, width, 5)).astype(np.float64)
    lattice = Lattice(5, height, width, np.float64)
    seen_so_far = np.zeros_like(picture)
    seen_so_far[..., earlier] = picture[..., earlier]
    for phase, (row, column) in enumerate(PHASES):
        lattice.put(phase, earlier, picture[row::2, column::2, earlier])
    for phase, (row, column) in enumerate(PHASES):
        radius = side // 2
        padded = np.pad(seen_so_far, ((radius, radius), (radius, radius), (0, 0)))
        rows, columns = lattice.shape(phase)
        assert (rows, columns) == picture[row::2, column::2].shape[:2]
        for first in range(rows):
            seen = lattice.around(phase, slice(first, rows), earlier, own, side)
            for place, (other, down, right, known) in zip(seen.places, known_in_window(side, phase), strict=True):
                assert place.shape == (seen.size, 5 if known else 2)
                y, x = PHASES[other][0] + 2 * (first + down) + radius, PHASES[other][1] + 2 * right + radius
                expected = padded[y::2, x::2][: rows - first, :columns, : place.shape[1]]
                assert (seen.trim(place).reshape(expected.shape) == expected).all()
        lattice.put(phase, own, picture[row::2, column::2, own])
        seen_so_far[row::2, column::2, own] = picture[row::2, column::2, own]
