import io
from pathlib import Path

import pytest
from rich.console import Console

from service.bench import origin
from service.bench.serving import serving
from service.errors import BadParameter
from service.settings import Settings


def test_both_sides_are_asked(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "ROUNDS", 1)
    said = io.StringIO()
    origin.main(Settings(model=small_model), 1, Console(file=said, width=100))
    rows = [line.split("│") for line in said.getvalue().splitlines() if line.startswith("│")]
    assert [row[1].strip().split(",")[0] for row in rows] == ["304", "kept render"]
    for row in rows:
        ours, bare, ratio = (float(each) for each in row[2:5])
        assert ours > 0 and bare > 0
        assert ratio == pytest.approx(ours / bare, abs=0.02)


def test_an_answer_that_is_not_the_expected_one_is_no_figure(small_model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, tmp_path / "log", SDC_MODEL=str(small_model)) as server, pytest.raises(BadParameter, match="were not 304"):
        origin.rate(f"{server.base}/livez", "", 304, 1, tmp_path)
