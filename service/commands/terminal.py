"""What all commands share: how they speak, how an error ends them, options of one meaning, the settings."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.errors import SdcError, StoreUnavailable

if TYPE_CHECKING:
    from service.settings import Settings


class Lasting(Console):
    """Goes on when nobody reads what it prints any more (`| head`): lines are lost, and not the files that were still to be made."""

    def on_broken_pipe(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


out, err = Lasting(), Lasting(stderr=True)

Model = Annotated[Path | None, typer.Option(help="Model folder, or name of an installed model; default SDC_MODEL or the bundled one.")]
Files = Annotated[list[Path], typer.Argument(help="Files to work on.", exists=True, dir_okay=False)]
Images = Annotated[Path, typer.Option(help="Folder of photographs.", exists=True, file_okay=False)]


def complain(words: str) -> None:
    """One line on stderr, word for word: a name may hold brackets."""
    err.print(f"[red]error[/]: {escape(words)}", highlight=False, soft_wrap=True)


def in_words(error: Exception) -> str:
    """What went wrong, in a line."""
    if isinstance(error, StoreUnavailable):
        return error.in_full
    if isinstance(error, SdcError):
        return error.detail
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def show(table: Table) -> None:
    """Print a table and cut nothing off: long cells are folded at the terminal's width, and elsewhere a line is as long as it must be."""
    for column in table.columns:
        column.overflow = "fold"
    if not out.is_terminal:
        table.width = out.measure(table, options=out.options.update(max_width=1 << 20)).maximum
    out.print(table, crop=False)


@contextmanager
def errors_told(code: int = 1) -> Iterator[None]:
    """Print an error of ours as one line and exit; 2 is what a setting that does not fit exits with."""
    try:
        yield
    except SdcError as error:
        complain(in_words(error))
        raise typer.Exit(code) from error


def settings_of(model: Path | None = None, **overrides: object) -> Settings:
    """Those of the environment, but for what the command line says; what does not fit is named, and exits 2."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from service.settings import Settings

    given = {key: value for key, value in {"model": model, **overrides}.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        for problem in error.errors():
            field, *inside = (str(part) for part in problem["loc"] if part != "[key]")
            complain(": ".join((f"SDC_{field.upper()}", *([".".join(inside)] if inside else []), problem["msg"])))
        raise typer.Exit(2) from error
    except SettingsError as error:  # of a list or a mapping; its words alone have the field
        field = str(error).partition('"')[2].partition('"')[0]
        complain(f"SDC_{field.upper()}: must be JSON: {error.__cause__}")
        raise typer.Exit(2) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write beside, then rename: a kill leaves the old file or the new one."""
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")  # short: the name itself may be as long as names can be
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
