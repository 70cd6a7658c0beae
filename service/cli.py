"""The ``sdc`` command: puts the commands together, and has those of the server.

Everything heavy is imported inside a command, so that ``--help`` answers at once.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from service import __version__
from service.commands import bench, files, models
from service.commands.terminal import Model, errors_told, in_words, out, settings_of, show, write_whole
from service.errors import BadParameter

app = typer.Typer(help="Photographs as a few kilobytes of latent.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _begin() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be UTF-8, and is printed all the same


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
        with errors_told():
            try:
                before = into.read_text()
            except UnicodeDecodeError as error:
                raise BadParameter(f"{into} is no text: --into is for a document") from error
            after = written_into(before)
        if after != before:
            write_whole(into, after.encode())
        out.print(f"{into}: {'as it was' if after == before else 'written'}", highlight=False, markup=False, soft_wrap=True)
        return
    table = Table("name", "value", "from", "takes")
    for row, value, source in in_force(settings_of()):
        table.add_row(row.name, escape(value), source if source == "default" else f"[bold]{source}[/]", escape(row.takes.replace("`", "")))
    show(table)


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
    from service.process import open_many
    from service.settings import misspelt
    from service.telemetry import logs

    settings = settings_of(model, host=host, port=port)
    with errors_told(code=2):
        app_ = create_app(settings)
    logs.configure(settings.log_level)
    try:
        _try_address(settings.host, settings.port)
    except OSError as error:
        structlog.get_logger().error("start failed", detail=error.strerror)
        raise typer.Exit(3) from error
    if settings.host in ("127.0.0.1", "::1", "localhost"):
        note = "listening on loopback only: --host 0.0.0.0 opens it to the network" + (
            "" if settings.api_keys else ", where nobody needs a key"
        )
    elif settings.api_keys:
        note = "listening on the network: SDC_API_KEYS says who may compress"
    else:
        note = "listening on the network: anyone who reaches this port can use it"
    structlog.get_logger().info("starting", version=__version__, address=f"http://{settings.host}:{settings.port}", note=note)
    for line in misspelt(os.environ):
        structlog.get_logger().warning("no such setting", detail=line)
    open_many()
    server = uvicorn.Server(
        uvicorn.Config(
            app_,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # of a proxy on this host they would be taken from anybody
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


def _try_address(host: str, port: int) -> None:
    """Bind every address of a host as the server will, and give them back: that one is taken shall be seen before a model is loaded.

    Kept, they would keep nobody away: a port that nobody listens on can be bound twice.  Of two that start at once the server's own binding
    decides, as ever.

    Raises OSError, with the settings in its words.
    """
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            try:
                tried = socket.socket(family, kind, protocol)
            except OSError:  # a family that this machine does not have: the server does without it
                continue
            with tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                tried.bind(address)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on SDC_HOST={host}, SDC_PORT={port}: {error.strerror}") from error


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

    settings = settings_of(model)
    with errors_told(code=2):
        variants = Variants(settings.sizes, settings.presets, settings.presets_only)
    with errors_told():
        if not settings.signing_keys:
            raise BadParameter("SDC_SIGNING_KEYS is not set: there is nothing to sign with")
        canonical = variants.address(path, read_manifest(settings.model).default_steps).canonical
        lasts = settings.link_s if lifetime is None else lifetime
        out.print(Signer(settings.signing_keys).sign(canonical, lasts), highlight=False, markup=False, soft_wrap=True)


@app.command()
def doctor(model: Model = None) -> None:
    """Check this machine: settings, device, number format, model, store.  Exit 1 when the service would not start."""
    from service.settings import misspelt
    from service.storage.blobs import BlobStore
    from service.storage.objects import address_of, open_store

    settings = settings_of(model)
    table = Table("check", "result", show_lines=False)
    ok = True

    def check(name: str, probe: Callable[[], str]) -> None:
        nonlocal ok
        try:
            table.add_row(name, probe())
        except Exception as error:
            ok = False
            table.add_row(name, f"[red]{escape(in_words(error))}[/]")

    def load(folder: Path) -> str:
        from service.loading import load_model

        return load_model(settings.model_copy(update={"model": folder}))[0].description

    def store() -> str:
        asyncio.run(BlobStore(open_store(settings.store_url, settings.store_timeout_s)).check())
        return f"{address_of(settings.store_url).partition('?')[0]} answers"

    check("python", lambda: sys.version.split()[0])
    check("sdc", lambda: __version__)
    for line in misspelt(os.environ):
        table.add_row("setting", f"[yellow]{escape(line)}[/]")
    check("model", partial(load, settings.model))
    for folder in settings.other_models:
        check("other model", partial(load, folder))
    check("store", store)
    check("listens on", lambda: f"{settings.host}:{settings.port}")
    check("admin key", lambda: "set" if settings.admin_key else "not set: DELETE is refused")
    show(table)
    if not ok:
        raise typer.Exit(1)


for command in (files.compress, files.render, files.bulk, files.inspect):
    app.command()(command)
app.add_typer(models.app, name="models")
app.add_typer(bench.app, name="bench")


if __name__ == "__main__":
    app()
