"""The command around the simulator: files, manifests, tables, the picture; and the shipped rules in the flash sale."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from service.bench.fleet.autoscaler import proposal
from service.bench.fleet.main import scenarios
from service.bench.fleet.measured import read_measured, write_measured
from service.bench.fleet.replica import Limits
from service.bench.fleet.report import draw, hours, sliced
from service.bench.fleet.shipped import read_shipped
from service.bench.fleet.simulation import Fleet, Surroundings, Told
from service.bench.fleet.traffic import DAY_S, Day, Sale
from service.cli import app
from service.errors import BadParameter

from .made import measured, picture

MANIFESTS = Path(__file__).parents[3] / "deploy" / "kubernetes"
MATERIAL = measured(picture("compress", 0.15), picture("render", 0.22, aside_s=0.02))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_measured(tmp_path / "measured.json", MATERIAL)
    return tmp_path / "measured.json"


def test_what_was_measured_is_read_as_it_was_written(written: Path) -> None:
    found = read_measured(written)
    assert found.pictures[1].alone_s == MATERIAL.pictures[1].alone_s
    assert found.ready_s == MATERIAL.ready_s


@pytest.mark.parametrize("change", [{"ready_s": 0}, {"pictures": []}, {"max_batch": "x"}, {"more": 1}])
def test_another_file_is_refused(written: Path, change: dict[str, object]) -> None:
    written.write_text(json.dumps(json.loads(written.read_text()) | change))
    with pytest.raises(BadParameter, match=next(iter(change))):
        read_measured(written)


def test_the_manifests_say_what_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = read_shipped(MANIFESTS, "cpu"), read_shipped(MANIFESTS, "gpu")
    said = (MANIFESTS / "cpu" / "kustomization.yaml").read_text()
    assert f"SDC_SLOTS={cpu.settings.slots}" in said
    assert cpu.settings.slots < gpu.settings.slots
    assert f"interval: {cpu.scrape_s:.0f}s" in (MANIFESTS / "monitoring" / "servicemonitor.yaml").read_text()
    monkeypatch.setenv("SDC_SLOTS", "7")  # whoever tries another value
    assert read_shipped(MANIFESTS, "cpu").settings.slots == 7


def test_a_folder_without_manifests_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="scaledobject"):
        read_shipped(tmp_path, "cpu")


def sale_of(rules_from: Path = MANIFESTS, announced: int = 0, start_s: float = 50) -> tuple[Told, Day]:
    """An hour around the flash sale, at traffic that needs two or three replicas before."""
    shipped = read_shipped(rules_from, "cpu")
    day, begins = Day(9, sale=Sale(lasts_s=300, ebb_s=300)), 17.75 * 3600
    rules = list(scenarios(shipped.rules, day.sale, announced).values())[-1]
    limits = replace(Limits.of(shipped.settings), cpu_workers=2)
    fleet = Fleet(MATERIAL, limits, Surroundings(start_s, shipped.scrape_s), rules, 3, begins=begins)
    return fleet.run(day.arrivals(MATERIAL, begins, begins + 1800), begins + 1800), day


def test_an_announced_sale_refuses_nobody() -> None:
    told, day = sale_of(announced=9)
    assert day.sale is not None
    before = [ready for moment, _, ready in told.replicas if day.sale.begins_s - 60 < moment < day.sale.begins_s]
    assert min(before) >= 9
    assert told.refused_share(day.sale.begins_s, day.sale.ends_s) < 0.001


def test_a_sale_that_nobody_announced_refuses_few() -> None:
    told, day = sale_of()
    assert day.sale is not None
    assert told.refused_share(day.sale.begins_s, day.sale.begins_s + 1800) < 0.05
    most = max(ready for _, _, ready in told.replicas)
    steady = [wished for moment, wished, _ in told.replicas if moment < day.sale.begins_s]
    assert max(steady) - min(steady) <= 3  # the rules do not swing
    assert most > max(steady)


def test_the_schedule_covers_the_sale() -> None:
    rules = read_shipped(MANIFESTS, "cpu").rules
    with_cron = list(scenarios(rules, Sale(), 6).values())[-1]
    cron = with_cron.triggers[-1]
    assert [cron.scheduled(moment) for moment in (64800 - 601, 64800 - 600, 64800 + 2699, 64800 + 2700)] == [1, 6, 6, 1]
    assert proposal(cron, 6, 2, 2) == 6
    assert list(scenarios(rules, None, 6)) == ["shipped rules"]


def test_slices_count_what_came_and_what_was_refused() -> None:
    told = Told(arrived=[1.0, 2.0, 11.0, 12.0], wait_s=[0.1, 0.3, float("nan"), 0.5], replicas=[(0.0, 1, 1), (10.5, 3, 2)])
    found = sliced(told, 0, 20, 10)
    assert found.arrived.tolist() == [0.2, 0.2]
    assert found.refused.tolist() == [0.0, 0.5]
    assert found.p50.tolist() == pytest.approx([0.2, 0.5])
    assert found.ready.tolist() == [1, 2]
    assert found.wished.tolist() == [1, 3]
    assert told.refused_share(10, 20) == 0.5


def test_a_day_is_drawn_small_and_always_alike(tmp_path: Path) -> None:
    moments = np.linspace(0, DAY_S - 1, 20_000)
    told = Told(moments.tolist(), np.abs(np.sin(moments)).tolist(), replicas=[(900.0 * number, 1 + number % 3, 1) for number in range(96)])
    for name in ("a.svg", "b.svg", "c.png"):
        draw({"shipped rules": told, "and cron": told}, tmp_path / name, "made up")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.svg").stat().st_size < 200_000
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    table = hours(told, Day(1), 0, DAY_S)
    assert table.row_count == 25


def test_the_command_tells_a_day(written: Path, tmp_path: Path) -> None:
    given = ["bench", "fleet", "--manifests", str(MANIFESTS), "--measured", str(written), "--peak", "0.2", "--sale", "2", "--price", "0.5"]
    result = CliRunner().invoke(app, [*given, "-o", str(tmp_path / "day.svg")], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "cost of a million renders at 0.5 a replica-hour" in result.output
    assert "refused in the sale" in result.output
    assert (tmp_path / "day.svg").exists()
    for wrong in (["-o", "day.gif"], ["--measured", str(tmp_path / "none.json")], ["--manifests", str(tmp_path)]):
        refused = CliRunner().invoke(app, [*given, *wrong])
        assert refused.exit_code == 1, refused.output


@pytest.mark.parametrize(("announced", "most"), [(0, 0.01), (12, 0.0)])
def test_the_sale_of_the_document_refuses_under_one_in_a_hundred(announced: int, most: float) -> None:
    """What was measured for docs/DEPLOY.md, the shipped rules, the sale of its day."""
    material, shipped = read_measured(MANIFESTS.parents[1] / "docs" / "measured" / "fleet.json"), read_shipped(MANIFESTS, "cpu")
    day, begins = Day(3), 17.5 * 3600
    assert day.sale is not None
    rules = list(scenarios(shipped.rules, day.sale, announced).values())[-1]
    limits = replace(Limits.of(shipped.settings), cpu_workers=material.cpu_workers, max_batch=material.max_batch)
    fleet = Fleet(material, limits, Surroundings(material.ready_s + 30, shipped.scrape_s), rules, 4, begins=begins)
    told = fleet.run(day.arrivals(material, begins, day.sale.ends_s), day.sale.ends_s)
    assert told.refused_share(day.sale.begins_s, day.sale.ends_s) <= most
