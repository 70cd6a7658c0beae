"""Blocks of the documents that need nothing but the repository, run word for word."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from service.loading import other_models
from service.settings import BUNDLED_MODEL, Settings
from tests.conftest import Plane
from tests.docs.blocks import ROOT, block

TIMEOUT_S = 600


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an environment in it, as `make setup` leaves one: its `sdc` is the one under test."""
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\n')
    (binaries / "sdc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m service.cli "$@"\n')
    (binaries / "sdc").chmod(stat.S_IRWXU)
    (tmp_path / ".venv" / ".ready").touch()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SDC_STORE_URL", "memory:///")
    return tmp_path


def sh(script: str, folder: Path) -> str:
    """What a script prints; it stops at the first command that fails."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_a_server(house: Path, photo: Plane) -> None:
    """Of README.md."""
    for name in ("cat", "dog"):
        Image.fromarray(photo[:96, :128]).save(house / f"{name}.jpg", quality=95)
    said = sh(block("README.md", ". .venv/bin/activate"), house)
    for name in ("cat", "dog"):
        assert (house / "out" / f"{name}.sdc").stat().st_size <= 5000
        with Image.open(house / "out" / f"{name}.webp") as image:
            assert image.size == (128, 96)
    assert '"width": 128' in said and "answers" in said


def test_make_docs(house: Path) -> None:
    """Of CONTRIBUTING.md; on a copy, whose table lacks a row."""
    (house / "Makefile").write_text((ROOT / "Makefile").read_text())
    os.utime(house / ".venv" / ".ready", (2e9, 2e9))
    (house / "pyproject.toml").touch()
    os.utime(house / "pyproject.toml", (1e9, 1e9))
    (house / "docs").mkdir()
    whole = (ROOT / "docs" / "OPERATIONS.md").read_text()
    lines = whole.splitlines(keepends=True)
    (house / "docs" / "OPERATIONS.md").write_text("".join(line for line in lines if not line.startswith("| `SDC_SLOTS`")))
    assert "docs/OPERATIONS.md: written" in sh(block("CONTRIBUTING.md", "make docs"), house)
    assert (house / "docs" / "OPERATIONS.md").read_text() == whole


def test_the_keys_of_the_page_are_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of docs/API.md; with a secret where the page has dots."""
    script = block("docs/API.md", "SDC_API_KEYS=").replace("…", "correct horse battery staple")
    printed = sh(f"set -a\n{script}\npython3 -c 'import json, os; print(json.dumps(dict(os.environ)))'", tmp_path)
    environment = json.loads(printed)
    for name in ("SDC_API_KEYS", "SDC_SIGNING_KEYS"):
        monkeypatch.setenv(name, environment[name])
    settings = Settings()
    assert (settings.api_keys["shop"].scopes, settings.api_keys["shop"].per_minute) == (["compress"], 600)
    assert list(settings.signing_keys) == ["k2", "k1"]


def test_backup_and_restore(house: Path) -> None:
    """Of docs/KEEPING.md: what is whole passes, what is not is told."""
    blobs = house / "store" / "blobs"
    blobs.mkdir(parents=True)
    for name in ("bundled-2", "bundled-3"):
        (blobs / f"{name}.sdc").write_bytes((ROOT / "tests" / "data" / f"{name}.sdc").read_bytes())
    check = f'PATH="{house}/.venv/bin:$PATH"\n' + block("docs/KEEPING.md", "mkdir -p restored")
    sh(block("docs/KEEPING.md", "mkdir -p backup"), house)
    sh(check, house)
    assert sorted(path.name for path in (house / "restored" / "blobs").iterdir()) == ["bundled-2.sdc", "bundled-3.sdc"]
    damaged = bytearray((house / "backup" / "blobs" / "bundled-3.sdc").read_bytes())
    damaged[-1] ^= 1
    (house / "backup" / "blobs" / "bundled-3.sdc").write_bytes(damaged)
    with pytest.raises(AssertionError, match="bundled-3"):
        sh(check, house)


def test_an_old_model_is_kept_and_named(house: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of docs/KEEPING.md."""
    monkeypatch.setenv("HOME", str(house))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    shutil.copytree(BUNDLED_MODEL, house / "service" / "models" / "bundled")
    sh(block("docs/KEEPING.md", "mkdir -p ~/.local"), house)
    others = other_models(Settings(model=small_model, other_models=["bundled-7"])).values()
    assert {other.folder for other in others} == {house / ".local/share/sdc/models/bundled-7"}


def test_anybody_can_plot_the_figures_again() -> None:
    """Of docs/BENCH.md."""
    command = [sys.executable, "-c", block("docs/BENCH.md", "import json")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    points = [line.split() for line in said.splitlines()]
    assert {codec for codec, *_ in points} >= {"sdc", "JPEG", "WebP", "AVIF"}
    assert all(len(point) >= 4 for point in points)
