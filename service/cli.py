"""The ``sdc`` command.  Everything heavy is imported inside a command, so that ``--help`` answers at once."""

from __future__ import annotations

import asyncio
import io
import json
import math
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from service import __version__
from service.errors import BadParameter, SdcError

if TYPE_CHECKING:
    from service.codec.methods import Method
    from service.options import CompressOptions
    from service.pipeline import Pipeline
    from service.settings import Settings

app = typer.Typer(help="Photographs as a few kilobytes of latent.", no_args_is_help=True, pretty_exceptions_enable=False)
models_app = typer.Typer(help="Model folders.", no_args_is_help=True)
bench_app = typer.Typer(help="Figures, both sides of a comparison in one run.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(bench_app, name="bench")
out, err = Console(), Console(stderr=True)

FEW = 32
"""so many files are done before a full warm-up would be"""

Model = Annotated[Path | None, typer.Option(help="Model folder, or name of an installed model; default SDC_MODEL or the bundled one.")]
Files = Annotated[list[Path], typer.Argument(help="Files to work on.", exists=True, dir_okay=False)]
OutputFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder to write into; made if missing.")]
ReportFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder to write the report into; made if missing.")]
Images = Annotated[Path, typer.Option(help="Folder of photographs.", exists=True, file_okay=False)]


@app.callback()
def _begin() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be UTF-8, and is printed all the same


def _complain(words: str) -> None:
    """One line on stderr, word for word: a name may hold brackets."""
    err.print(f"[red]error[/]: {escape(words)}", highlight=False, soft_wrap=True)


def _in_words(error: Exception) -> str:
    """What went wrong with one file, in a line."""
    if isinstance(error, SdcError):
        return error.detail
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _show(table: Table) -> None:
    """Print a table and cut nothing off: long cells are folded at the terminal's width, and elsewhere a line is as long as it must be."""
    for column in table.columns:
        column.overflow = "fold"
    if not out.is_terminal:
        table.width = out.measure(table, options=out.options.update(max_width=1 << 20)).maximum
    out.print(table, crop=False)


@contextmanager
def _told() -> Iterator[None]:
    """Print an error of ours as one line and exit 1."""
    try:
        yield
    except SdcError as error:
        _complain(error.detail)
        raise typer.Exit(1) from error


@contextmanager
def _bench_told() -> Iterator[None]:
    """As ``_told``, and a word about the extra that benchmarks need."""
    try:
        with _told():
            yield
    except ModuleNotFoundError as error:
        _complain(f"{error.name} is missing: benchmarks need pip install 'sdc[bench]'")
        raise typer.Exit(1) from error


def _settings(model: Path | None = None, **overrides: object) -> Settings:
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from service.settings import Settings

    given = {key: value for key, value in {"model": model, **overrides}.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        for problem in error.errors():
            _complain(f"SDC_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}")
        raise typer.Exit(2) from error
    except SettingsError as error:  # of a list or a mapping
        _complain(f"{error}: it must be JSON; each is named SDC_ and the field in capitals")
        raise typer.Exit(2) from error


@app.command()
def version() -> None:
    """Print the version."""
    out.print(f"sdc {__version__}", highlight=False)


@app.command("settings")
def show_settings(
    into: Annotated[
        Path | None,
        typer.Option(help="Document whose table of the settings is to be made anew.", exists=True, dir_okay=False),
    ] = None,
) -> None:
    """Every setting, the value in force and where it comes from; secrets are masked."""
    from service.settings_table import in_force, written_into

    if into is not None:
        with _told():
            try:
                before = into.read_text()
            except UnicodeDecodeError as error:
                raise BadParameter(f"{into} is no text: --into is for a document") from error
            after = written_into(before)
        if after != before:
            _write_whole(into, after.encode())
        out.print(f"{into}: {'as it was' if after == before else 'written'}", highlight=False, markup=False, soft_wrap=True)
        return
    table = Table("name", "value", "from", "takes")
    for row, value, source in in_force(_settings()):
        table.add_row(row.name, escape(value), source if source == "default" else f"[bold]{source}[/]", escape(row.takes.replace("`", "")))
    _show(table)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default SDC_HOST or 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; default SDC_PORT or 8080.")] = None,
    model: Model = None,
) -> None:
    """Serve HTTP until told to stop."""
    import structlog
    import uvicorn

    from service.api.protocol import BoundedProtocol
    from service.app import create_app
    from service.telemetry import logs

    settings = _settings(model, host=host, port=port)
    with _told():
        app_ = create_app(settings)
    logs.configure(settings.log_level)
    if settings.host in ("127.0.0.1", "::1", "localhost"):
        note = "listening on loopback only: --host 0.0.0.0 opens it to the network" + (
            "" if settings.api_keys else ", where nobody needs a key"
        )
    elif settings.api_keys:
        note = "listening on the network: SDC_API_KEYS says who may compress"
    else:
        note = "listening on the network: anyone who reaches this port can use it"
    structlog.get_logger().info("starting", version=__version__, address=f"http://{settings.host}:{settings.port}", note=note)
    server = uvicorn.Server(
        uvicorn.Config(
            app_,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            http=BoundedProtocol,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=settings.shutdown_s,
        )
    )
    app_.state.stop = partial(setattr, server, "should_exit", True)
    server.run()
    if not server.started:
        raise typer.Exit(3)
    if app_.state.failed:
        raise typer.Exit(4)


@app.command()
def sign(
    path: Annotated[str, typer.Argument(help="/render/ID, with an extension and parameters as you like.")],
    lifetime: Annotated[int | None, typer.Option(help="Seconds, rounded up to the hour; default SDC_LINK_S or a week.", min=1)] = None,
    model: Model = None,
) -> None:
    """Sign an address with the first of SDC_SIGNING_KEYS; prints it in its canonical spelling."""
    from service.api.access import Signer
    from service.api.variants import Variants
    from service.manifest import read_manifest

    settings = _settings(model)
    with _told():
        if not settings.signing_keys:
            raise BadParameter("SDC_SIGNING_KEYS is not set: there is nothing to sign with")
        variants = Variants(settings.sizes, settings.presets, settings.presets_only)
        canonical = variants.address(path, read_manifest(settings.model).default_steps).canonical
        lasts = settings.link_s if lifetime is None else lifetime
        out.print(Signer(settings.signing_keys).sign(canonical, lasts), highlight=False, markup=False, soft_wrap=True)


@app.command()
def compress(
    files: Files,
    output: OutputFolder = Path(),
    max_bytes: Annotated[int | None, typer.Option(help="Each file has at most this many bytes.")] = None,
    quality: Annotated[int | None, typer.Option(help="0 to 100, instead of --max-bytes; default 50.")] = None,
    method: Annotated[
        Literal["latent", "palette"], typer.Option(help="palette: as Bühlmann's article, for latents of four channels.")
    ] = "latent",
    dither: Annotated[bool, typer.Option("--dither", help="Subtractive dither: noise for the U-Net, at the price of some rate.")] = False,
    model: Model = None,
) -> None:
    """Photos to .sdc files, without a server.  The bytes are those that POST /compress makes on the same machine."""
    from service.codec.container import LARGEST_SIDE
    from service.imaging.opening import picture_size

    settings = _settings(model)
    with _told():
        options = _compress_options(method, max_bytes, quality, dither)

    def pixels(content: bytes) -> int:
        return math.prod(picture_size(content, settings.max_pixels, LARGEST_SIDE))

    async def one(pipeline: Pipeline, content: bytes) -> bytes:
        return (await pipeline.compress(content, options)).content

    _each(files, output, ".sdc", settings, pixels, one)


def _compress_options(method: Method, max_bytes: int | None, quality: int | None, dither: bool) -> CompressOptions:
    """Raises BadParameter, of the option by its name here."""
    from service.options import CompressOptions

    try:
        return CompressOptions(method, max_bytes, quality, dither)
    except BadParameter as error:
        raise BadParameter(error.detail.replace("max_bytes", "--max-bytes")) from error


@app.command()
def render(
    files: Files,
    output: OutputFolder = Path(),
    to: Annotated[Literal["png", "webp", "jpg", "avif"], typer.Option(help="Format to write.")] = "png",
    steps: Annotated[str | None, typer.Option(help="U-Net steps, 0 to 8; 0 is the auto-encoder alone; `article` as Bühlmann's.")] = None,
    quality: Annotated[int, typer.Option(help="Of a lossy format.", min=1, max=100)] = 80,
    width: Annotated[int | None, typer.Option(help="Pixels; never enlarged.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; never enlarged.")] = None,
    fit: Annotated[Literal["inside", "cover", "contain", "fill"], typer.Option(help="How it fits width and height.")] = "inside",
    model: Model = None,
) -> None:
    """.sdc files to pictures, without a server."""
    from service.codec import container
    from service.imaging.resizing import Box
    from service.options import RenderOptions, parse_steps

    settings = _settings(model)
    with _told():
        box = None if width is None and height is None and fit == "inside" else Box(width, height, fit)
        options = RenderOptions(to, None if steps is None else parse_steps(steps), quality, box)

    def pixels(content: bytes) -> int:
        blob = container.parse(content, settings.max_pixels)
        return blob.width * blob.height

    async def one(pipeline: Pipeline, content: bytes) -> bytes:
        return (await pipeline.render(content, options)).content

    _each(files, output, f".{to}", settings, pixels, one)


@app.command()
def bulk(
    source: Annotated[str, typer.Argument(help="Folder, s3://bucket/prefix or the like, or a manifest of names (.jsonl, .parquet).")],
    dest: Annotated[str, typer.Argument(help="Folder or address of a store; SDC_STORE_URL of a service that shall serve it.")],
    manifest: Annotated[Path | None, typer.Option(help="Write a row for each source: .jsonl or .parquet.")] = None,
    match: Annotated[list[str] | None, typer.Option(help="Only names like this one, as in a shell; several times.")] = None,
    column: Annotated[str, typer.Option(help="Of a manifest given as SOURCE: names the sources.")] = "source",
    base: Annotated[str | None, typer.Option(help="What the names in a manifest are below; default its folder.")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Each file has at most this many bytes.")] = None,
    quality: Annotated[int | None, typer.Option(help="0 to 100, instead of --max-bytes; default 50.")] = None,
    method: Annotated[Literal["latent", "palette"], typer.Option(help="As of `sdc compress`.")] = "latent",
    dither: Annotated[bool, typer.Option("--dither", help="As of `sdc compress`.")] = False,
    tag: Annotated[str | None, typer.Option(help="Purge tag beside each picture.")] = None,
    revive: Annotated[bool, typer.Option("--revive", help="Make again what was deleted from DEST.")] = False,
    on_ray: Annotated[bool, typer.Option("--ray", help="On a Ray cluster; needs the extra `ray`.")] = False,
    ray_address: Annotated[str | None, typer.Option(help="Of the cluster; default RAY_ADDRESS, else one of this machine.")] = None,
    workers: Annotated[int | None, typer.Option(help="On Ray: at most so many; default all there is room for.", min=1)] = None,
    worker_cpus: Annotated[float, typer.Option(help="On Ray: processors of each.", min=0.1)] = 2,
    model: Model = None,
) -> None:
    """A back-catalogue to a store, without a server: the ids, files and sidecars that POST /compress would make.

    What is stored already costs no device time, so a run that was cut short is simply started again.  Exit 1 when some failed.
    """
    from service.bulk import command
    from service.bulk.sources import understand

    settings = _settings(model)
    with _told():
        options = _compress_options(method, max_bytes, quality, dither)
        cluster = command.Cluster(ray_address, workers, worker_cpus) if on_ray or ray_address else None
        asked = command.Asked(understand(source, base), dest, options, tag, revive, manifest, match or [], column, cluster)
        code = command.main(settings, asked, err)
    if code:
        raise typer.Exit(code)


def _each(
    files: list[Path],
    output: Path,
    suffix: str,
    settings: Settings,
    pixels: Callable[[bytes], int],
    one: Callable[[Pipeline, bytes], Awaitable[bytes]],
) -> None:
    """Run ``one`` on every file, a few at a time, with a progress bar; a bad file is reported and the rest go on.

    What is inside at once is bounded by ``max_queued_pixels``, as in the service; but here whoever finds no room waits.
    """
    from service.bulk.room import Room
    from service.pipeline import open_pipeline

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _complain(f"cannot write into {output}: {error.strerror}")
        raise typer.Exit(2) from error
    names = [path.with_suffix(suffix).name for path in files]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        _complain(f"several inputs would be written to {', '.join(doubled)}")
        raise typer.Exit(2)
    failed = 0

    async def run() -> None:
        nonlocal failed
        gate, room = asyncio.Semaphore(2 * settings.cpu_workers), Room(settings.max_queued_pixels)
        # the room is what bounds the pipeline: it would refuse instead of waiting
        patient = settings.model_copy(update={"max_queued_pixels": 1 << 62})
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        async with open_pipeline(patient, warm=len(files) > FEW) as pipeline:
            with Progress(*columns, console=err, transient=True, disable=len(files) < 2) as progress:
                task = progress.add_task("files", total=len(files))

                async def work(path: Path) -> None:
                    nonlocal failed
                    async with gate:
                        try:
                            given = path.read_bytes()
                            async with room.taken(await asyncio.to_thread(pixels, given)):
                                made = await one(pipeline, given)
                            target = output / path.with_suffix(suffix).name
                            _write_whole(target, made)
                            out.print(f"{path} {len(given)} -> {target} {len(made)}", highlight=False, markup=False, soft_wrap=True)
                        except Exception as error:
                            failed += 1
                            _complain(f"{path}: {_in_words(error)}")
                        progress.advance(task)

                await asyncio.gather(*(work(path) for path in files))

    with _told():
        asyncio.run(run())
    if failed:
        raise typer.Exit(1)


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside, then rename: a kill leaves the old file or the new one."""
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")  # short: the name itself may be as long as names can be
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


@app.command()
def inspect(files: Files) -> None:
    """What .sdc files say of themselves; no model is loaded."""
    from service.codec import container
    from service.codec.methods import METHODS
    from service.codec.steps import step_size

    failed = False
    for path in files:
        content = path.read_bytes()
        try:
            blob = container.parse(content, sys.maxsize)
        except SdcError as error:
            failed = True
            _complain(f"{path}: {error.detail}")
            continue
        out.print_json(
            json.dumps(
                {
                    "file": str(path),
                    "bytes": len(content),
                    "width": blob.width,
                    "height": blob.height,
                    "bpp": round(8 * len(content) / (blob.width * blob.height), 4),
                    "method": METHODS.get(blob.method, blob.method),
                    "step": round(step_size(blob.step_index), 5),
                    "dither_seed": blob.seed,
                    "code_identity": blob.code_identity.hex(),
                    "model_identity": blob.model_identity.hex(),
                    "tiling": None if blob.tiling is None else {"side": blob.tiling.side, "margin": blob.tiling.margin},
                    "sections": {container.SECTION_NAMES[kind]: len(part) for kind, part in blob.sections.items()},
                }
            )
        )
    if failed:
        raise typer.Exit(1)


@app.command()
def doctor(model: Model = None) -> None:
    """Check this machine: device, number format, model, store.  Exit 1 when the service would not start."""
    from service.storage.blobs import BlobStore
    from service.storage.objects import open_store

    settings = _settings(model)
    table = Table("check", "result", show_lines=False)
    ok = True

    def check(name: str, probe: Callable[[], str]) -> None:
        nonlocal ok
        try:
            table.add_row(name, probe())
        except Exception as error:
            ok = False
            table.add_row(name, f"[red]{escape(str(getattr(error, 'detail', error)))}[/]")

    def load(folder: Path) -> str:
        from service.loading import load_model

        return load_model(settings.model_copy(update={"model": folder}))[0].description

    def store() -> str:
        asyncio.run(BlobStore(open_store(settings.store_url)).check())
        return f"{settings.store_url.partition('?')[0]} answers"

    check("python", lambda: sys.version.split()[0])
    check("sdc", lambda: __version__)
    check("model", partial(load, settings.model))
    for folder in settings.other_models:
        check("other model", partial(load, folder))
    check("store", store)
    check("listens on", lambda: f"{settings.host}:{settings.port}")
    check("admin key", lambda: "set" if settings.admin_key else "not set: DELETE is refused")
    _show(table)
    if not ok:
        raise typer.Exit(1)


@models_app.command("list")
def list_models() -> None:
    """The models of this machine: those of the release, and those in SDC_MODELS_DIR."""
    from service.checkpoints.installed import installed

    table = Table("name", "version", "latent", "MB", "licence", "identity", "folder")
    for each in installed(_settings().models_dir):
        manifest = each.manifest
        latent = f"{manifest.latent_channels} channels at 1/{manifest.downscale}"
        licence = "of the release" if manifest.source is None and each.ours else manifest.source.licence if manifest.source else "not told"
        table.add_row(
            each.folder.name, manifest.version, latent, f"{each.size / 1e6:,.0f}", licence, manifest.model_identity.hex(), str(each.folder)
        )
    _show(table)


@models_app.command("pull")
def pull_model(
    wanted: Annotated[str, typer.Argument(help="sd14, sd15, sd21, OWNER/NAME on the hub, or a folder in diffusers layout.")],
    name: Annotated[str | None, typer.Option(help="Name to install it under.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of the repository; the known models have one that is tested against.")] = None,
    decoder: Annotated[
        str | None, typer.Option(help="OWNER/NAME or folder of an auto-encoder whose decoder is taken; sd14 and sd15: sd-vae-ft-mse; none.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Decode with TAESD: many times faster, and less well.")] = False,
) -> None:
    """Fetch a Stable Diffusion checkpoint (HF_ENDPOINT, HF_TOKEN) and keep what the codec needs of it."""
    from service.checkpoints.pulling import pull

    def told(words: str) -> None:
        err.print(words, highlight=False, markup=False, soft_wrap=True)

    settings = _settings()
    with _told():
        folder = pull(settings.models_dir, wanted, name=name, revision=revision, decoder=decoder, fast=fast, told=told)
    out.print(f"{folder.name} is installed: sdc serve --model {folder.name}", highlight=False, markup=False, soft_wrap=True)


@models_app.command("calibrate")
def calibrate_model(
    images: Images,
    name: Annotated[str, typer.Option(help="Name to install the result under, in SDC_MODELS_DIR.")],
    model: Model = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="For fitting; encoding the pictures comes before.")] = 3,
    crops: Annotated[int, typer.Option(min=8, help="Of 256x256 pixels, to fit to.")] = 192,
) -> None:
    """Fit an entropy profile to a model's latents: the same pictures from smaller files.  The result is another model."""
    from service.calibration.calibrate import calibrate
    from service.codec.steps import step_size
    from service.engine.engine import Engine

    settings = _settings(model)
    with _told(), Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err) as progress:
        tasks: dict[str, TaskID] = {}

        def told(what: str, share: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=1.0)
            progress.update(tasks[what], completed=share)

        engine = Engine(settings.model, settings.device, settings.dtype)
        gains = calibrate(engine, images, settings.models_dir / name, minutes, crops, told)
    table = Table("step", "bytes before", "bytes now", "gain", title="a 256x256 crop of pictures that were held out")
    for gain in gains:
        table.add_row(
            f"{step_size(gain.index):.2f}", f"{gain.before:.0f}", f"{gain.after:.0f}", f"{100 * (1 - gain.after / gain.before):.1f} %"
        )
    out.print(table)
    out.print(f"{name} is installed: sdc serve --model {name}", highlight=False, markup=False, soft_wrap=True)


@models_app.command("rm")
def remove_model(name: Annotated[str, typer.Argument(help="Of an installed model.")]) -> None:
    """Delete a fetched model.  Its .sdc files cannot be rendered without it."""
    from service.checkpoints.installed import remove

    with _told():
        freed = remove(_settings().models_dir, name)
    out.print(f"{name} is gone, {freed / 1e6:,.1f} MB freed", highlight=False, markup=False)


@models_app.command("check")
def check_model(folder: Annotated[Path, typer.Argument(help="Model folder, or name of an installed model.")]) -> None:
    """Load a model folder as `serve` would, and print its identities."""
    from service.loading import load_model

    with _told():
        engine, codec = load_model(_settings(folder))
    out.print(engine.description, highlight=False)
    out.print(f"model identity {codec.model_identity.hex()}, code identity {codec.code_identity.hex()}", highlight=False)
    for other in list(codec.reads.values())[1:]:
        out.print(f"reads the files of {other} too", highlight=False)


@bench_app.command("rd")
def bench_rd(
    images: Images,
    max_bytes: Annotated[
        list[int] | None, typer.Option(help="Bytes of a 512x512 picture; several times. Default: five, 1600 to 24000.")
    ] = None,
    crop: Annotated[int, typer.Option(help="Centre crop of this side; 0 takes pictures whole, at the same bits per pixel.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pictures.")] = None,
    handicap: Annotated[bool, typer.Option(help="Add JPEG with 14 % and WebP with 36 % more bytes than ours.")] = False,
    shown: Annotated[int, typer.Option(min=0, help="So many of the worst and of the best pictures on the page.")] = 10,
    folder: ReportFolder = Path("out/rd"),
    model: Model = None,
) -> None:
    """Rate and distortion against JPEG, WebP and AVIF at the same bytes: tables, and a report as a page, JSON and curves."""
    with _bench_told():
        from service.bench import rd

        sizes = tuple(sorted(set(max_bytes))) if max_bytes else rd.SIZES
        rd.main(_settings(model), rd.Terms(images, sizes, crop, limit, handicap, shown), folder, out)


@bench_app.command("show")
def bench_show(
    images: Images,
    region: Annotated[list[str], typer.Option(help="NAME:LEFT,TOP,WIDTH,HEIGHT, in pixels of the crop; several times.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write.")],
    max_bytes: Annotated[int, typer.Option(help="Bytes of a 512x512 picture.")] = 5089,
    crop: Annotated[int, typer.Option(help="Centre crop of this side; 0 takes pictures whole.")] = 512,
    enlarge: Annotated[int, typer.Option(min=1, max=8, help="So many screen pixels for one.")] = 1,
    rival: Annotated[list[str] | None, typer.Option(help="JPEG, WebP or AVIF; several times. Default AVIF.")] = None,
    model: Model = None,
) -> None:
    """A sheet to look at: parts of photographs, ours and a rival's of the same bytes."""
    with _bench_told():
        from service.bench import show

        show.main(_settings(model), images, region, max_bytes, crop, enlarge, rival or ["AVIF"], output)


@bench_app.command("code")
def bench_code(
    images: Images,
    crop: Annotated[int, typer.Option(help="Centre crop of this side; 0 takes pictures whole.")] = 512,
    limit: Annotated[int | None, typer.Option(help="Only the first so many pictures.")] = None,
    model: Model = None,
) -> None:
    """Real files against the ideal code length of their own model, coding each channel i.i.d., and the article's palette."""
    with _bench_told():
        from service.bench import code

        code.main(_settings(model), images, crop, limit, out)


@bench_app.command("speed")
def bench_speed(images: Images, model: Model = None) -> None:
    """One picture at a time, 512x512: compress and cold render against one AVIF encode of the same size."""
    with _bench_told():
        from service.bench import speed

        speed.main(_settings(model), images, out)


@bench_app.command("load")
def bench_load(
    seconds: Annotated[float, typer.Option(min=8, help="Length of the overload; the other parts are in proportion.")] = 60,
    folder: ReportFolder = Path("out/load"),
    model: Model = None,
) -> None:
    """A server under more load than it can bear, its bare loop, clients that hang up, an idle minute: table, page and JSON."""
    with _bench_told():
        from service.bench import load

        load.main(_settings(model), seconds, folder, out)


@bench_app.command("origin")
def bench_origin(
    seconds: Annotated[float, typer.Option(min=1, help="Of each measurement; there are twelve.")] = 8, model: Model = None
) -> None:
    """304 and kept renders a second, against a bare Starlette route with the same headers and bytes."""
    with _bench_told():
        from service.bench import origin

        origin.main(_settings(model), seconds, out)


@bench_app.command("bulk")
def bench_bulk(
    pictures: Annotated[int, typer.Option(min=16, help="Of each measurement; there are nine.")] = 240,
    catalogue: Annotated[int, typer.Option(min=1, help="Pictures whose cost is reckoned.")] = 50_000_000,
    core_hour: Annotated[float, typer.Option(min=0, help="Price of one core for an hour.")] = 0.04,
    million_writes: Annotated[float, typer.Option(min=0, help="Price of a million writes of an object store.")] = 5.0,
    million_reads: Annotated[float, typer.Option(min=0, help="Price of a million reads.")] = 0.4,
    model: Model = None,
) -> None:
    """A back-catalogue against its own bare loop, and what a large one costs."""
    with _bench_told():
        from service.bench import bulk

        bulk.main(_settings(model), pictures, catalogue, bulk.Prices(core_hour, million_writes, million_reads), out)


@bench_app.command("fleet")
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
    with _bench_told():
        from service.bench.fleet import main as fleet
        from service.bench.fleet import verify as real

        if verify:
            if not real.main(_settings(model, slots=16), seconds, out):
                raise typer.Exit(1)
        elif measure:
            fleet.measure_to(_settings(model), measure, out)
        else:
            wishes = fleet.Wishes(manifests, kind, measured, peak, compress_share, sale, announced, allowance, price, seed, picture)
            fleet.main(_settings(model), wishes, out)


@bench_app.command("gpu")
def bench_gpu(
    size: Annotated[
        list[int] | None, typer.Option(min=64, help="Side of the pictures; several times. Default: 512 and 1024, on a processor 512.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Nothing is begun after so long.")] = 900,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="On a GPU: measure compiled networks too, last.")] = True,
    folder: ReportFolder = Path("out/gpu"),
) -> None:
    """Stable Diffusion's networks at full size, random weights: pictures a second, and what share of the device's own arithmetic."""
    with _bench_told():
        from service.bench import gpu

        gpu.main(_settings(), gpu.Terms(tuple(size or ()), seconds, compiled, folder), out)


if __name__ == "__main__":
    app()
