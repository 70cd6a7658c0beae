"""``sdc bench fleet``: measures or reads what pictures take, and replays a day against the rules that are shipped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from service.bench.fleet.autoscaler import ScaledObject, Trigger
from service.bench.fleet.measured import Measured, read_measured, write_measured
from service.bench.fleet.measuring import OPERATIONS, measure, saturated
from service.bench.fleet.replica import Limits
from service.bench.fleet.report import draw, hours
from service.bench.fleet.shipped import read_shipped
from service.bench.fleet.simulation import Fleet, Surroundings, Told
from service.bench.fleet.traffic import DAY_S, Day, Sale
from service.bench.report import prepare
from service.errors import BadParameter
from service.settings import Settings

MEASURE_S = 15.0
BEFORE_S = 600.0
BEGINNING_S = 300.0


@dataclass(frozen=True)
class Wishes:
    """What the command was asked for."""

    manifests: Path
    kind: str
    measured: Path | None
    """read it; None measures"""
    peak: float
    compress_share: float
    sale: float
    announced: int
    """replicas that a cron trigger asks for around the sale, in a second day; 0: no such day"""
    allowance_s: float
    price: float
    seed: int
    picture: Path | None


def measure_to(settings: Settings, path: Path, out: Console) -> None:
    """Measure this machine and write the file; raises BadParameter where that cannot be written."""
    prepare(path.parent)
    measured = measure(settings, MEASURE_S, lambda what: out.print(f"measuring: {what}", highlight=False))
    write_measured(path, measured)
    out.print(f"{path}: {_described(measured)}", highlight=False, soft_wrap=True)


def main(settings: Settings, wishes: Wishes, out: Console) -> None:
    """Simulate and print; raises BadParameter for files that cannot be read."""
    shipped = read_shipped(wishes.manifests, wishes.kind)
    if wishes.picture and wishes.picture.suffix not in (".svg", ".png"):
        raise BadParameter(f"{wishes.picture} must end in .svg or .png")
    if wishes.picture:
        prepare(wishes.picture.parent)
    measured = (
        read_measured(wishes.measured) if wishes.measured else measure(settings, MEASURE_S, lambda what: out.print(what, highlight=False))
    )
    limits = Limits.of(shipped.settings.model_copy(update={"cpu_workers": measured.cpu_workers, "max_batch": measured.max_batch}))
    surroundings = Surroundings(measured.ready_s + wishes.allowance_s, shipped.scrape_s)
    day = Day(wishes.peak, wishes.compress_share, Sale(factor=wishes.sale) if wishes.sale > 1 else None, wishes.seed)
    capacity = _capacity(measured, limits, wishes.compress_share)
    out.print(_described(measured), highlight=False, soft_wrap=True)
    out.print(
        f"a replica: {capacity:.1f} pictures/s when it never rests; {limits.slots} slots; ready {surroundings.start_s:.0f} s after it was "
        f"wished for ({measured.ready_s:.0f} s measured, {wishes.allowance_s:.0f} s allowed for node, image and readiness); "
        f"scraped every {surroundings.scrape_s:.0f} s",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    days: dict[str, Told] = {}
    for label, rules in scenarios(shipped.rules, day.sale, wishes.announced).items():
        fleet = Fleet(measured, limits, surroundings, rules, seed=wishes.seed)
        days[label] = fleet.run(day.arrivals(measured), DAY_S)
        table = hours(days[label], day, 0.0, DAY_S)
        table.title = (
            f"{label}: evening peak {wishes.peak:g} requests/s, {100 * wishes.compress_share:.0f} % of them compress, seed {wishes.seed}"
        )
        out.print(table)
    out.print(_sums(days, day, wishes.price, capacity, wishes.compress_share))
    if wishes.picture:
        draw(days, wishes.picture, f"{measured.model}; {measured.machine}; {limits.slots} slots a replica")
        out.print(f"drawn: {wishes.picture}", highlight=False, soft_wrap=True)


def scenarios(rules: ScaledObject, sale: Sale | None, announced: int) -> dict[str, ScaledObject]:
    """The shipped rules; and, where a sale is announced, the same with a trigger that knows of it ten minutes before."""
    if not announced or sale is None:
        return {"shipped rules": rules}
    start, end = (f"{round(moment / 60) % 60} {int(moment / 3600)} * * *" for moment in (sale.begins_s - BEFORE_S, sale.ends_s))
    schedule = {"timezone": "UTC", "start": start, "end": end, "desiredReplicas": str(announced)}
    cron = Trigger(name="sale", type="cron", metadata=schedule)
    return {"shipped rules": rules, f"and cron, {announced} replicas": rules.model_copy(update={"triggers": [*rules.triggers, cron]})}


def _capacity(measured: Measured, limits: Limits, compress_share: float) -> float:
    """Pictures a second of one replica that always has enough to do, at this mix."""
    rates = {operation: saturated(measured, limits, operation, limits.slots, 600) for operation in OPERATIONS}
    return 1 / (compress_share / rates["compress"] + (1 - compress_share) / rates["render"])


def _described(measured: Measured) -> str:
    slower = ", ".join(f"{operation} {factor:.2f}" for operation, factor in measured.contention.items())
    return (
        f"{measured.model}; {measured.machine}; {len(measured.pictures)} kinds of pictures; "
        f"under load times {slower}; ready in {measured.ready_s:.0f} s"
    )


def _sums(days: dict[str, Told], day: Day, price: float, capacity: float, compress_share: float) -> Table:
    table = Table("", *days, title="the whole day")
    rows: dict[str, list[str]] = {}
    for told in days.values():
        served = sum(wait == wait for wait in told.wait_s)
        for label, value in {
            "requests": f"{len(told.arrived):,}",
            "refused": f"{len(told.arrived) - served:,} ({_reasons(told)})",
            "refused in the sale; in its first five minutes": _refused(told, day.sale),
            "replica-hours": f"{told.replica_s / 3600:.1f}",
            "replica-hours for a million renders": f"{told.replica_s / 3600 / told.renders * 1e6:.0f}",
            f"cost of a million renders at {price:g} a replica-hour": f"{price * told.replica_s / 3600 / told.renders * 1e6:.2f}",
            "the same if no replica ever rested": f"{price * 1e6 / (1 - compress_share) / capacity / 3600:.2f}",
        }.items():
            rows.setdefault(label, []).append(value)
    for label, values in rows.items():
        table.add_row(label, *values)
    return table


def _refused(told: Told, sale: Sale | None) -> str:
    if sale is None:
        return "no sale"
    return "; ".join(f"{100 * told.refused_share(sale.begins_s, ends):.2f} %" for ends in (sale.ends_s, sale.begins_s + BEGINNING_S))


def _reasons(told: Told) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(told.reasons.items())) or "nobody"
