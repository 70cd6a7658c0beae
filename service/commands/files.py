"""Photographs and ``.sdc`` files, without a server."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service.commands.terminal import Files, Model, complain, err, errors_told, in_words, out, settings_of, write_whole
from service.errors import BadParameter, SdcError

if TYPE_CHECKING:
    from service.codec.methods import Method
    from service.options import CompressOptions
    from service.pipeline import Pipeline
    from service.settings import Settings

FEW = 32
"""so many files are done before a full warm-up would be"""

OutputFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder to write into; made if missing.")]


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
    from service.imaging.opening import picture_size

    settings = settings_of(model)
    with errors_told():
        options = _compress_options(method, max_bytes, quality, dither)

    def pixels(content: bytes) -> int:
        return math.prod(picture_size(content, settings.max_pixels))

    async def one(pipeline: Pipeline, content: bytes) -> bytes:
        return (await pipeline.compress(content, options)).content

    _each(files, output, ".sdc", settings, pixels, one)


def _compress_options(method: Method, max_bytes: int | None, quality: int | None, dither: bool) -> CompressOptions:
    """Raises BadParameter, of the options by their names here."""
    from service.options import CompressOptions

    try:
        return CompressOptions(method, max_bytes, quality, dither)
    except BadParameter as error:
        detail = re.sub(r"\b(max_bytes|quality|dither)\b", r"--\1", error.detail)
        raise BadParameter(detail.replace("max_bytes", "max-bytes")) from error


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

    settings = settings_of(model)
    with errors_told():
        box = None if width is None and height is None and fit == "inside" else Box(width, height, fit)
        options = RenderOptions(to, None if steps is None else parse_steps(steps), quality, box)

    def pixels(content: bytes) -> int:
        blob = container.parse(content, settings.max_pixels)
        return blob.width * blob.height

    async def one(pipeline: Pipeline, content: bytes) -> bytes:
        return (await pipeline.render(content, options)).content

    _each(files, output, f".{to}", settings, pixels, one)


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

    What is stored already costs no device time, so a run that was cut short is simply started again.  Exit 3 when some failed, 1 when
    the run could not go on.
    """
    from service.bulk import command
    from service.bulk.sources import understand

    settings = settings_of(model)
    with errors_told():
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
        complain(f"cannot write into {output}: {error.strerror}")
        raise typer.Exit(2) from error
    names = [path.with_suffix(suffix).name for path in files]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        complain(f"several inputs would be written to {', '.join(doubled)}")
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
                            write_whole(target, made)
                            out.print(f"{path} {len(given)} -> {target} {len(made)}", highlight=False, markup=False, soft_wrap=True)
                        except Exception as error:
                            failed += 1
                            complain(f"{path}: {in_words(error)}")
                        progress.advance(task)

                await asyncio.gather(*(work(path) for path in files))

    with errors_told():
        asyncio.run(run())
    if failed:
        raise typer.Exit(1)


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
            complain(f"{path}: {error.detail}")
            continue
        out.print_json(
            json.dumps(
                {
                    "file": str(path),
                    "bytes": len(content),
                    "width": blob.width,
                    "height": blob.height,
                    "bpp": round(8 * len(content) / (blob.width * blob.height), 4),
                    "coded_width": blob.coded_size[0],
                    "coded_height": blob.coded_size[1],
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
