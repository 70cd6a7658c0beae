import gc
import importlib.metadata
import importlib.util
import subprocess
import sys

import pytest

from service.engine.lean import COMPILER, UNUSED, hidden, undecorated, unmapped
from service.process import kept

LOAD_MODEL = "from service.settings import Settings; from service.loading import load_model; load_model(Settings())"


def ran(script: str) -> "subprocess.CompletedProcess[str]":
    """By a new process."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)


def said(script: str) -> str:
    """What a new process prints."""
    return ran(script).stdout


def loaded_by(module: str) -> set[str]:
    """What a new process has imported with ``module``."""
    return set(said(f"import {module}, sys; print(*sys.modules)").split())


def test_a_service_starts_without_what_it_does_not_use_and_has_it_where_it_asks() -> None:
    assert all(importlib.util.find_spec(package) for package in UNUSED), "they are installed, and still"
    compiled = "torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item()"
    script = f"import service.app, sys, torch; {LOAD_MODEL}; print(*sys.modules); print({compiled})"
    loaded, result = said(script).splitlines()
    assert {*loaded.split()} & {*UNUSED, COMPILER, "sympy", "torch.distributed.tensor", "torch", "diffusers"} == {"torch", "diffusers"}
    assert result == "2.0"


def test_the_collector_does_not_look_through_what_is_imported() -> None:
    looked_at, left_alone = map(int, said("import service.app, gc; print(len(gc.get_objects()), gc.get_freeze_count())").split())
    assert left_alone > 100_000 > 5 * looked_at


@pytest.mark.parametrize("first", ["torch.utils.flop_counter", "service.engine.lean"])
def test_a_process_ends_in_peace(first: str) -> None:
    """triton, which the first imports where it is installed, looks at the end for what was not taken apart."""
    assert ran(f"import {first}, service.bench.gpu").stderr == ""


def test_the_collector_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    collecting: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: collecting.append(gc.isenabled()))
    try:
        with kept():
            assert not gc.isenabled()
        assert gc.isenabled()
        gc.disable()
        with kept():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert collecting == [False, False]


def test_no_package_is_mapped_while_nobody_needs_it() -> None:
    known = importlib.metadata.packages_distributions
    with unmapped():
        assert importlib.metadata.packages_distributions() == {}
    assert importlib.metadata.packages_distributions is known


@pytest.mark.parametrize("module", ["service.cli", "service.api.access", "service.api.variants", "service.checkpoints.installed"])
def test_who_explains_lists_or_signs_loads_no_networks(module: str) -> None:
    """`sdc --help`, `sdc models list` and `sdc sign` in a second, not in the six that torch and diffusers take on a slow processor."""
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


def test_a_stand_in_leaves_functions_as_they_are_and_goes() -> None:
    name = "chunk"
    assert name not in sys.modules
    with undecorated(name, "silent"), undecorated("json", "silent"):
        stand_in = importlib.import_module(name)
        for decorated in (stand_in.silent(len), stand_in.silent()(len), stand_in.silent(reason="why")(len), stand_in.silent(len, True)):
            assert decorated is len
        assert not hasattr(importlib.import_module("json"), "silent"), "imported already"
    assert name not in sys.modules
