import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from service.bench.serving import free_port, serving
from service.cli import _try_address, app
from service.commands import terminal
from service.pipeline import Pipeline
from service.settings import BUNDLED_MODEL
from tests.conftest import Plane, make_picture, png

runner = CliRunner()


def sdc(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def photo_file(tmp_path: Path, photo: Plane) -> Path:
    path = tmp_path / "cat.png"
    path.write_bytes(png(photo))
    return path


def test_there_and_back_without_a_server(tmp_path: Path, photo_file: Path, photo: Plane) -> None:
    sdc("compress", photo_file, "-o", tmp_path / "out", "--max-bytes", 3000)
    blob = tmp_path / "out" / "cat.sdc"
    assert blob.stat().st_size <= 3000
    sdc("render", blob, "-o", tmp_path / "out")
    shown = np.asarray(Image.open(tmp_path / "out" / "cat.png")).astype(float)
    assert 10 * np.log10(255**2 / ((shown - photo) ** 2).mean()) > 24
    sdc("render", blob, "-o", tmp_path / "small", "--to", "webp", "--width", 100, "--height", 100, "--fit", "cover")
    with Image.open(tmp_path / "small" / "cat.webp") as small:
        assert small.size == (100, 100)
    assert "needs a width or a height" in sdc("render", blob, "-o", tmp_path / "small", "--fit", "cover", code=1)
    assert "between 1 and 4096" in sdc("render", blob, "-o", tmp_path / "small", "--width", 0, code=1)
    described = json.loads(sdc("inspect", blob))
    assert (described["width"], described["height"], described["bytes"]) == (451, 300, blob.stat().st_size)
    assert (described["coded_width"], described["coded_height"]) == (451, 300)


def test_the_articles_methods(tmp_path: Path, photo_file: Path, model_of: Callable[[str], Path]) -> None:
    model, out = model_of("kl"), tmp_path / "out"
    sdc("compress", photo_file, "-o", out, "--method", "palette", "--model", model)
    told = json.loads(sdc("inspect", out / "cat.sdc"))
    assert (told["method"], told["dither_seed"]) == ("palette", None)
    sdc("render", out / "cat.sdc", "-o", out, "--steps", "article", "--model", model)
    for steps in ("9", "x"):
        assert "from 0 to 8, or 'article'" in sdc("render", out / "cat.sdc", "--steps", steps, "--model", model, code=1)
    assert "leave the parameter out" in sdc("compress", photo_file, "-o", out, "--method", "palette", code=1)
    sdc("compress", photo_file, "-o", out, "--dither")
    assert json.loads(sdc("inspect", out / "cat.sdc"))["dither_seed"] is not None


def test_signing_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/render/" + "a" * 26
    assert "SDC_SIGNING_KEYS" in sdc("sign", path, code=1)
    monkeypatch.setenv("SDC_SIGNING_KEYS", '{"k1": "a signing key of some length"}')
    for spelled in (f"{path}.webp?h=20&w=30&q=80", f"{path}?format=webp&w=15&h=10&dpr=2"):
        signed = sdc("sign", spelled, "--lifetime", 60).strip()
        assert signed.startswith(f"{path}.webp?w=30&h=20&expires=")
        assert "&key=k1&sig=" in signed
    monkeypatch.setenv("SDC_LINK_S", "7200")
    until = int(re.findall(r"expires=(\d+)", sdc("sign", path))[0])
    assert 7200 <= until - time.time() <= 7200 + 3600
    for wrong in ("/blobs/x", "/render/x", f"{path}.tiff", f"{path}?w=0", f"{path}?w=1&w=2", f"{path}?x=1"):
        assert "error" in sdc("sign", wrong, code=1)


def test_many_files_and_a_bad_one(tmp_path: Path, photo_file: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    files = [photo_file, tmp_path / "bad.jpg"]
    for index in range(3):
        files.append(tmp_path / f"more{index}.png")
        files[-1].write_bytes(png(make_picture(40, 50, index)))
    output = sdc("compress", *files, "-o", tmp_path / "out", code=1)
    assert "bad.jpg" in output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cat.sdc", "more0.sdc", "more1.sdc", "more2.sdc"}


def test_every_file_is_made_when_nobody_reads_what_is_said_of_them(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(png(make_picture(40, 50, index)))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody:
        monkeypatch.setattr("service.commands.files.out", type(terminal.out)(file=nobody))
        sdc("compress", *tmp_path.glob("*.png"), "-o", tmp_path / "out", "--model", small_model)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0.sdc", "1.sdc", "2.sdc"}


def test_photos_beyond_what_may_be_inside_at_once_wait(tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service refuses them; nobody would ask a command again."""
    monkeypatch.setenv("SDC_MAX_QUEUED_PIXELS", "3000")
    files = [tmp_path / f"{index}.png" for index in range(6)]
    for index, path in enumerate(files):
        path.write_bytes(png(make_picture(40, 50, index)))
    sdc("compress", *files, "-o", tmp_path / "out", "--model", small_model)
    sdc("render", *(tmp_path / "out").iterdir(), "-o", tmp_path / "back", "--model", small_model)
    assert len(list((tmp_path / "back").iterdir())) == 6


def test_an_error_of_our_own_is_told_of_its_file_and_the_rest_go_on(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that a file may hold is known to cause one, so one is caused."""
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(png(make_picture(40, 50, index)))
    open_, odd = Pipeline._open, (tmp_path / "1.png").read_bytes()

    def broken(self: Pipeline, source: bytes, scale: int) -> object:
        if source == odd:
            raise ZeroDivisionError("over\ntwo lines")
        return open_(self, source, scale)

    monkeypatch.setattr(Pipeline, "_open", broken)
    told = sdc("compress", *sorted(tmp_path.glob("*.png")), "-o", tmp_path / "out", "--model", small_model, code=1)
    assert "1.png: ZeroDivisionError: over two lines\n" in told
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0.sdc", "2.sdc"}


@pytest.mark.parametrize("name", [b"caf\xe9", b"x" * 251], ids=["not UTF-8", "as long as names can be"])
def test_any_name_that_a_file_can_have(tmp_path: Path, small_model: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name + b".png")
    path.write_bytes(png(make_picture(40, 50)))
    sdc("compress", path, "-o", tmp_path / "out", "--model", small_model)
    assert [os.fsencode(made.name) for made in (tmp_path / "out").iterdir()] == [name + b".sdc"]


def test_an_option_is_called_by_its_name(photo_file: Path) -> None:
    for command in (["compress", photo_file], ["bulk", photo_file.parent, photo_file.parent / "out"]):
        assert "--max-bytes must be at least 32" in sdc(*command, "--max-bytes", 20, code=1)
        assert "give --max-bytes or --quality, not both" in sdc(*command, "--max-bytes", 2000, "--quality", 5, code=1)


def test_two_inputs_of_one_name_are_refused(tmp_path: Path, photo_file: Path) -> None:
    other = tmp_path / "sub" / "cat.jpg"
    other.parent.mkdir()
    other.write_bytes(photo_file.read_bytes())
    sdc("compress", photo_file, other, "-o", tmp_path / "out", code=2)


def test_an_output_that_is_no_folder(tmp_path: Path, photo_file: Path) -> None:
    assert "cannot write into" in sdc("compress", photo_file, "-o", photo_file, code=2)
    (tmp_path / "out" / "cat.sdc").mkdir(parents=True)
    output = sdc("compress", photo_file, "-o", tmp_path / "out", code=1)
    assert "cannot write" in output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cat.sdc"]


def test_a_name_with_brackets_is_said_word_for_word(tmp_path: Path) -> None:
    bad = tmp_path / "[red]x.jpg"
    bad.write_bytes(b"no picture")
    assert "[red]x.jpg" in sdc("compress", bad, "-o", tmp_path / "out", code=1)


def test_inspect_refuses_what_is_no_blob(photo_file: Path) -> None:
    assert "not an .sdc" in sdc("inspect", photo_file, code=1)


def test_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SDC_STORE_URL", f"file://{tmp_path}/store")
    monkeypatch.setenv("SDC_API_KEY", "one that nobody asks for")
    told = sdc("doctor")
    assert "answers" in told
    assert "SDC_API_KEY is no setting: is SDC_API_KEYS meant?" in told and "nobody asks" not in told
    monkeypatch.setenv("SDC_STORE_URL", "file:///proc/nowhere")
    sdc("doctor", code=1)


def test_doctor_sees_a_broken_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDC_STORE_URL", "memory:///")
    shutil.copytree(BUNDLED_MODEL, tmp_path / "model")
    (tmp_path / "model" / "entropy.safetensors").write_bytes(b"broken")
    sdc("doctor", "--model", tmp_path / "model", code=1)


def test_models(small_model: Path, tmp_path: Path) -> None:
    assert "bundled" in sdc("models", "list")
    assert "code identity" in sdc("models", "check", small_model)
    assert "no sdc.json" in sdc("models", "check", tmp_path, code=1)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SDC_PORT", "many", "Input should be a valid integer"),
        ("SDC_SIZES", "320,640", "must be JSON: Extra data: line 1 column 4"),
        ("SDC_API_KEYS", '{"shop": {"secret": "short", "scopes": []}}', "shop.secret: "),
        ("SDC_SIGNING_KEYS", '{"k 1": "a signing key of some length"}', "k 1: String should match"),
        ("SDC_PRESETS", '{"card": "w=320"}', "card: Input should be a valid dictionary"),
        ("SDC_PRESETS", '{"thumb": {"width": 320}}', "preset 'thumb': "),
        ("SDC_PRESETS", '{"thumb": {"w": "x"}}', "preset 'thumb': w: must be a whole number"),
    ],
)
def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    """As its variable is called, in one line, and all end alike."""
    monkeypatch.setenv(name, value)
    told = sdc("serve", code=2)
    assert told.startswith(f"error: {name}: {words}")
    assert told.count("\n") == 1
    if name == "SDC_PRESETS":
        assert sdc("sign", "/render/" + "a" * 26, code=2) == told


@pytest.mark.parametrize("command", [[], ["serve"], ["compress"], ["render"], ["inspect"], ["bench", "rd"], ["models", "check"]])
def test_help(command: list[str]) -> None:
    assert "Usage" in sdc(*command, "--help")


def test_a_real_server_gives_the_blob_the_command_line_gives(tmp_path: Path, photo_file: Path) -> None:
    """The bundled model, a real process: ready, compress, render, SIGTERM, exit."""
    with serving(tmp_path, tmp_path / "server.log") as server:
        request = urllib.request.Request(
            f"{server.base}/compress?max_bytes=4000", photo_file.read_bytes(), {"Accept": "application/vnd.sdc"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            over_http, location = reply.read(), reply.headers["Location"]
        with urllib.request.urlopen(f"{server.base}{location}.png", timeout=60) as reply:
            rendered = np.asarray(Image.open(io.BytesIO(reply.read())))
    log = (tmp_path / "server.log").read_text()
    assert server.process.returncode in (0, -signal.SIGTERM), log
    for words in ('"event": "ready"', '"event": "stopped"', "loopback only"):
        assert words in log
    sdc("compress", photo_file, "-o", tmp_path / "out", "--max-bytes", 4000)
    assert (tmp_path / "out" / "cat.sdc").read_bytes() == over_http
    sdc("render", tmp_path / "out" / "cat.sdc", "-o", tmp_path / "back")
    assert (np.asarray(Image.open(tmp_path / "back" / "cat.png")) == rendered).all()


def test_a_port_that_is_taken_stops_the_start_before_a_model_is_looked_for(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--model", str(tmp_path)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3
    (told,) = done.stderr.splitlines()
    assert json.loads(told)["detail"] == f"cannot listen on SDC_HOST=127.0.0.1, SDC_PORT={port}: Address already in use"


def test_an_address_that_is_none_is_named_and_one_that_can_be_had_is_given_back() -> None:
    with pytest.raises(OSError, match=r"cannot listen on SDC_HOST=256\.1\.1\.1, SDC_PORT=8080: "):
        _try_address("256.1.1.1", 8080)
    for host in ("127.0.0.1", "0.0.0.0", "localhost"):
        port = free_port()
        _try_address(host, port)
        with socket.socket() as mine:
            mine.bind(("127.0.0.1", port))
            mine.listen()
            with pytest.raises(OSError, match=f"SDC_PORT={port}: Address already in use"):
                _try_address(host, port)


def test_a_bad_model_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDC_STORE_URL", f"file://{tmp_path}/store")
    arguments = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--model", str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "no sdc.json" in done.stderr
    assert "Traceback" not in done.stderr
