"""The container files, as far as they can be checked without an engine."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run([BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file_fits_its_schema() -> None:
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_torch_everywhere() -> None:
    pinned = {re.search(r"torch==([\d.]+)", (ROOT / name).read_text()).group(1) for name in ("Makefile", "Dockerfile")}  # type: ignore[union-attr]
    assert len(pinned) == 1
    version = pinned.pop().rpartition(".")[0]
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert any(line.startswith(f"torch>={version},") for line in requirements)


def test_every_dependency_has_both_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for line in (line for group in groups for line in group if not line.startswith("sdc[")):
        assert ("==" in line) or (">=" in line and "<" in line.replace("<=", "")), line
