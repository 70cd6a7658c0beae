import os
import threading
from pathlib import Path

import pytest

from service.folders import LOCK, alone, make_readable, written_whole


@pytest.fixture
def mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_was_kept_to_its_owner_is_readable_as_new_files_are(tmp_path: Path, mask: int) -> None:
    with written_whole(tmp_path / "model") as staged:
        (staged / "vae").mkdir(parents=True)
        weights = staged / "vae" / "weights"
        weights.touch(0o600)
    mode = (tmp_path / "model" / "vae" / "weights").stat().st_mode & 0o777
    assert mode == 0o600 | (0o444 & ~mask)


def test_nobody_gains_what_the_mask_withholds(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o600)
    before = os.umask(0o077)
    try:
        make_readable(tmp_path)
        assert os.umask(0o077) == 0o077, "the mask is as it was"
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "model") as staged:
        staged.mkdir()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_one_at_a_time(tmp_path: Path) -> None:
    waiting, order = threading.Event(), []

    def other() -> None:
        with alone(tmp_path, waiting.set):
            order.append("other")

    thread = threading.Thread(target=other)
    with alone(tmp_path, order.clear):
        thread.start()
        assert waiting.wait(20)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_what_was_left_half_made_is_deleted_by_the_next(tmp_path: Path) -> None:
    with alone(tmp_path, lambda: None), written_whole(tmp_path / "whole") as staged:
        staged.mkdir()
    (tmp_path / ".partial-x" / "model").mkdir(parents=True)
    with alone(tmp_path, lambda: None):
        assert {path.name for path in tmp_path.iterdir()} == {"whole", LOCK}
