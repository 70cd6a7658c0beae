"""The container files, as far as they can be checked without an engine."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

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


SECRETS = {"S3_ACCESS_KEY": "sdc", "S3_SECRET_KEY": "not one that is used", "GRAFANA_PASSWORD": "not one either"}


def compose(profile: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`docker-compose config` of Debian."""
    without = {name: value for name, value in os.environ.items() if name not in SECRETS}
    given = {**without, "COMPOSE_PROFILES": profile, **environment}
    return subprocess.run(["docker-compose", "config"], cwd=ROOT, env=given, capture_output=True, text=True, check=False)


def resolved(profile: str) -> dict[str, Any]:
    done = compose(profile, **SECRETS)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)["services"]  # type: ignore[no-any-return]


@pytest.mark.system
@pytest.mark.parametrize(("profile", "own"), [("cpu", {"sdc-cpu"}), ("gpu", {"sdc-gpu", "models"})])
def test_a_profile_is_whole(profile: str, own: set[str]) -> None:
    every = resolved(profile)
    services = {name: each for name, each in every.items() if profile in each.get("profiles", [profile])}
    assert set(services) == {"s3", "nginx", "prometheus", "grafana"} | own
    for name, each in services.items():
        assert set(each.get("depends_on", {})) <= set(services), name
        assert "build" in each or re.search(r":v?\d+\.\d+(\.\d+)?(-alpine)?$", each["image"]), f"{name} is not pinned"
        assert "build" in each or "healthcheck" in each, name
        assert all(port.startswith("127.0.0.1:") for port in each.get("ports", [])), name
        assert each.get("restart") == (None if name == "models" else "unless-stopped")
    (service,) = [services[name] for name in own if name != "models"]
    assert service["networks"]["default"]["aliases"] == ["sdc"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["environment"]["SDC_STORE_URL"] == "s3://sdc-blobs"
    assert "-bucket=sdc-blobs" in services["s3"]["command"]
    assert service["environment"]["AWS_SECRET_ACCESS_KEY"] == services["s3"]["environment"]["AWS_SECRET_ACCESS_KEY"]


@pytest.mark.system
@pytest.mark.parametrize("missing", SECRETS)
def test_a_secret_that_is_missing_is_named(missing: str) -> None:
    done = compose("cpu", **{name: value for name, value in SECRETS.items() if name != missing})
    assert done.returncode != 0
    assert f"set {missing}" in done.stderr


@pytest.mark.system
def test_what_is_mounted_exists_and_what_is_asked_for_is_there() -> None:
    services = resolved("cpu")
    for each in services.values():
        for volume in each.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("/") or Path(source).exists(), source
    prometheus = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
    nginx = (ROOT / "deploy" / "nginx" / "nginx.conf").read_text()
    assert "names: [sdc]" in prometheus and "server sdc:8080;" in nginx
    (port,) = re.findall(r"listen (\d+);", nginx)
    assert services["nginx"]["ports"] == [f"127.0.0.1:8080:{port}/tcp"]
    assert not re.search(r"^\s*proxy_read_timeout", nginx, re.MULTILINE)  # nginx waits 60 s, then
    assert int(services["sdc-cpu"]["environment"]["SDC_DEADLINE_S"]) < 60
    source = (ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    assert "url: http://prometheus:9090" in source


def test_the_images_of_compose_are_of_this_version_and_of_targets_that_exist() -> None:
    from service import __version__

    text = (ROOT / "docker-compose.yml").read_text()
    assert set(re.findall(r"image: sdc:(\S+)", text)) == {__version__, f"{__version__}-cuda"}
    stages = re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert set(re.findall(r"target: (\w+)", text)) <= set(stages)
    assert stages[-1] == "cpu"  # what is built when nobody says
