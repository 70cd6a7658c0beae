"""The benchmarks; each is a module of ``service.bench``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from service.commands.terminal import Images, Model, complain, errors_told, out, settings_of

app = typer.Typer(help="Figures, both sides of a comparison in one run.", no_args_is_help=True)
ReportFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder to write the report into; made if missing.")]


@contextmanager
def _errors_told() -> Iterator[None]:
    """As ``errors_told``, and a word about the extra that benchmarks need."""
    try:
        with errors_told():
            yield
    except ModuleNotFoundError as error:
        complain(f"{error.name} is missing: benchmarks need pip install 'sdc[bench]'")
        raise typer.Exit(1) from error


@app.command("rd")
def bench_rd(
    images: Images,
    max_bytes: Annotated[
        list[int] | None, typer.Option(help="Bytes of a 512x512 picture; several times. Default: five, 1600 to 24000.")
    ] = None,
    crop: Annotated[int, typer.Option(min=0, help="Centre crop of this side; 0 takes pictures whole, at the same bits per pixel.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pictures.")] = None,
    handicap: Annotated[bool, typer.Option(help="Add JPEG with 14 % and WebP with 36 % more bytes than ours.")] = False,
    shrunk: Annotated[bool, typer.Option("--shrunk", help="Add AVIF shrunk and enlarged again, at its best of five sizes.")] = False,
    on_white: Annotated[bool, typer.Option("--on-white", help="Lay each picture on white first, as products are shown.")] = False,
    shown: Annotated[int, typer.Option(min=0, help="So many of the worst and of the best pictures on the page.")] = 10,
    folder: ReportFolder = Path("out/rd"),
    model: Model = None,
) -> None:
    """Rate and distortion against JPEG, WebP and AVIF at the same bytes: tables, and a report as a page, JSON and curves."""
    with _errors_told():
        from service.bench import rd

        sizes = tuple(sorted(set(max_bytes))) if max_bytes else rd.SIZES
        rd.main(settings_of(model), rd.Terms(images, sizes, crop, limit, handicap, shrunk, on_white, shown), folder, out)


@app.command("show")
def bench_show(
    images: Images,
    region: Annotated[list[str], typer.Option(help="NAME:LEFT,TOP,WIDTH,HEIGHT, in pixels of the crop; several times.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write.")],
    max_bytes: Annotated[int, typer.Option(help="Bytes of a 512x512 picture.")] = 5089,
    crop: Annotated[int, typer.Option(min=0, help="Centre crop of this side; 0 takes pictures whole.")] = 512,
    enlarge: Annotated[int, typer.Option(min=1, max=8, help="So many screen pixels for one.")] = 1,
    rival: Annotated[list[str] | None, typer.Option(help="JPEG, WebP or AVIF; several times. Default AVIF.")] = None,
    model: Model = None,
) -> None:
    """A sheet to look at: parts of photographs, ours and a rival's of the same bytes."""
    with _errors_told():
        from service.bench import show

        show.main(settings_of(model), images, region, max_bytes, crop, enlarge, rival or ["AVIF"], output)


@app.command("code")
def bench_code(
    images: Images,
    crop: Annotated[int, typer.Option(min=0, help="Centre crop of this side; 0 takes pictures whole.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pictures.")] = None,
    model: Model = None,
) -> None:
    """Real files against the ideal code length of their own model, coding each channel i.i.d., and the article's palette."""
    with _errors_told():
        from service.bench import code

        code.main(settings_of(model), images, crop, limit, out)


@app.command("scale")
def bench_scale(
    images: Images,
    max_bytes: Annotated[
        list[int] | None, typer.Option(help="Bytes of a 512x512 picture; several times. Default: six, 400 to 4300.")
    ] = None,
    crop: Annotated[int, typer.Option(min=0, help="Centre crop of this side; 0 takes pictures whole.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pictures.")] = None,
    model: Model = None,
) -> None:
    """From which step on a picture is better coded smaller than it is: what `scaling` of a model's sdc.json is set by."""
    with _errors_told():
        from service.bench import scale

        scale.main(settings_of(model), images, sorted(set(max_bytes)) if max_bytes else scale.SIZES, crop, limit, out)


@app.command("speed")
def bench_speed(
    images: Images,
    every: Annotated[int, typer.Option(min=1, help="Of the pictures by name, the first and every so many from there.")] = 1,
    model: Model = None,
) -> None:
    """One picture at a time, 512x512: compress and cold render against one AVIF encode of the same size."""
    with _errors_told():
        from service.bench import speed

        speed.main(settings_of(model), images, every, out)


@app.command("load")
def bench_load(
    seconds: Annotated[float, typer.Option(min=8, help="Length of the overload; the other parts are in proportion.")] = 60,
    folder: ReportFolder = Path("out/load"),
    model: Model = None,
) -> None:
    """A server under more load than it can bear, its bare loop, clients that hang up, an idle minute: table, page and JSON."""
    with _errors_told():
        from service.bench import load

        load.main(settings_of(model), seconds, folder, out)


@app.command("origin")
def bench_origin(
    seconds: Annotated[float, typer.Option(min=1, help="Of each measurement; there are twelve.")] = 8, model: Model = None
) -> None:
    """304 and kept renders a second, against a bare Starlette route with the same headers and bytes."""
    with _errors_told():
        from service.bench import origin

        origin.main(settings_of(model), seconds, out)


@app.command("bulk")
def bench_bulk(
    pictures: Annotated[int, typer.Option(min=16, help="Of each measurement; there are nine.")] = 240,
    catalogue: Annotated[int, typer.Option(min=1, help="Pictures whose cost is reckoned.")] = 50_000_000,
    core_hour: Annotated[float, typer.Option(min=0, help="Price of one core for an hour.")] = 0.04,
    million_writes: Annotated[float, typer.Option(min=0, help="Price of a million writes of an object store.")] = 5.0,
    million_reads: Annotated[float, typer.Option(min=0, help="Price of a million reads.")] = 0.4,
    model: Model = None,
) -> None:
    """A back-catalogue against its own bare loop, and what a large one costs."""
    with _errors_told():
        from service.bench import bulk

        bulk.main(settings_of(model), pictures, catalogue, bulk.Prices(core_hour, million_writes, million_reads), out)


@app.command("fleet")
def bench_fleet(
    manifests: Annotated[
        Path, typer.Option(help="Folder of the Kubernetes manifests whose rules are tried.", exists=True, file_okay=False)
    ] = Path("deploy/kubernetes"),
    kind: Annotated[Literal["cpu", "gpu"], typer.Option(help="Whose settings are taken.")] = "cpu",
    measured: Annotated[Path | None, typer.Option(help="File of --measure; without it this machine is measured first.")] = None,
    measure: Annotated[Path | None, typer.Option(help="Only measure this machine, and write that file.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only compare the simulator with three real processes; exit 1 beyond 25 %.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=5, help="Of each comparison of --verify.")] = 90,
    peak: Annotated[float, typer.Option(min=0.1, help="Requests a second of the evening.")] = 20,
    compress_share: Annotated[float, typer.Option(min=0, max=0.99, help="Of the requests; the rest are renders.")] = 0.1,
    sale: Annotated[float, typer.Option(min=1, help="A flash sale at 18:00 brings so many times the requests; 1: none.")] = 3,
    announced: Annotated[int, typer.Option(min=0, help="Replicas that a cron trigger asks for around the sale, in a second day.")] = 0,
    allowance: Annotated[float, typer.Option(min=0, help="Seconds for node, image and readiness beside the measured start.")] = 30,
    price: Annotated[float, typer.Option(min=0, help="Of a replica-hour, in any currency.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Another one is another day of the same kind.")] = 1,
    picture: Annotated[Path | None, typer.Option("--output", "-o", help="SVG or PNG to draw.")] = None,
    model: Model = None,
) -> None:
    """A day of traffic with a flash sale against the shipped autoscaling rules: replicas, waits, refusals, cost."""
    with _errors_told():
        from service.bench.fleet import main as fleet
        from service.bench.fleet import verify as real

        if verify:
            if not real.main(settings_of(model, slots=16), seconds, out):
                raise typer.Exit(1)
        elif measure:
            fleet.measure_to(settings_of(model), measure, out)
        else:
            wishes = fleet.Wishes(manifests, kind, measured, peak, compress_share, sale, announced, allowance, price, seed, picture)
            fleet.main(settings_of(model), wishes, out)


@app.command("gpu")
def bench_gpu(
    size: Annotated[
        list[int] | None, typer.Option(min=64, help="Side of the pictures; several times. Default: 512 and 1024, on a processor 512.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Nothing is begun after so long.")] = 900,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="On a GPU: measure compiled networks too, last.")] = True,
    folder: ReportFolder = Path("out/gpu"),
) -> None:
    """Stable Diffusion's networks at full size, random weights: pictures a second, and what share of the device's own arithmetic."""
    with _errors_told():
        from service.bench import gpu

        gpu.main(settings_of(), gpu.Terms(tuple(size or ()), seconds, compiled, folder), out)
