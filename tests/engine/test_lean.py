import importlib.util
import subprocess
import sys

import pytest

from service.engine.lean import UNUSED, hidden


def loaded_by(module: str) -> set[str]:
    """The packages that a new process has imported with ``module``."""
    script = f"import {module}, sys; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300).stdout
    return {name.partition(".")[0] for name in said.split()}


def test_a_service_starts_without_what_it_does_not_use() -> None:
    assert all(importlib.util.find_spec(package) for package in UNUSED), "they are installed, and still"
    assert loaded_by("service.app") & {*UNUSED, "torch", "diffusers"} == {"torch", "diffusers"}


@pytest.mark.parametrize("module", ["service.cli", "service.api.access", "service.api.variants", "service.checkpoints.installed"])
def test_who_explains_lists_or_signs_loads_no_networks(module: str) -> None:
    """`sdc --help`, `sdc models list` and `sdc sign` in a second, not in the ten that torch and diffusers take on a slow processor."""
    assert not loaded_by(module) & {"torch", "diffusers"}


def test_hidden_is_not_found_and_back_afterwards() -> None:
    name = "wave"  # of the standard library, and imported by nobody
    assert name not in sys.modules
    with hidden(name, "json"):
        assert importlib.util.find_spec("json"), "imported already"
        with pytest.raises(ImportError):
            importlib.import_module(name)
    assert importlib.import_module(name)
    sys.modules.pop(name)
