import hashlib

import numpy as np
import pytest

from service.codec.tables import ALPHABET, OFFSETS, SCALE_COUNT, TOTAL, Counts, counts_from_weights, laplace_counts, logistic_counts


@pytest.mark.parametrize("counts", [laplace_counts(), logistic_counts()], ids=["laplace", "logistic"])
def test_every_table_is_complete(counts: Counts) -> None:
    assert counts.shape == (SCALE_COUNT, OFFSETS, ALPHABET)
    assert counts.min() >= 1
    assert (counts.sum(-1) == TOTAL).all()


def test_tables_are_the_same_on_every_machine() -> None:
    """Golden: a change here changes every file ever written."""
    digests = [hashlib.sha256(counts.astype("<i4").tobytes()).hexdigest()[:16] for counts in (laplace_counts(), logistic_counts())]
    assert digests == ["517fcc02554e7276", "9e8980aaf42e0cd7"]


def test_wider_scales_spread_more() -> None:
    symbols = np.arange(ALPHABET - 1) - (ALPHABET - 2) // 2
    spread = (laplace_counts()[:, 0, :-1] * np.abs(symbols)).sum(-1)
    assert (np.diff(spread) > 0).all()


def test_counts_from_weights_keeps_every_letter_possible() -> None:
    counts = counts_from_weights([0, 10**12, 0, 5])
    assert min(counts) >= 1
    assert sum(counts) == TOTAL
