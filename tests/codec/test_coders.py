import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from service.codec import coders
from service.codec.codec import Codec, Frame
from service.codec.coders import Coders
from service.errors import SizeUnreachable, WrongModel
from service.manifest import read_manifest
from tests.conftest import until


@pytest.fixture(scope="module")
def codec(small_model: Path) -> Codec:
    return Codec(small_model, read_manifest(small_model))


@pytest.fixture(scope="module")
def latent() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 13, 7)).astype(np.float32)


@pytest.fixture(scope="module")
def frame(latent: np.ndarray) -> Frame:
    return Frame(latent.shape[2] * 8, latent.shape[1] * 8)


@pytest.fixture
def two() -> Iterator[Coders]:
    made = Coders(2)
    yield made
    made.close()


def ended() -> float:
    return REGISTRY.get_sample_value("sdc_coders_ended_total") or 0


def running(pid: int) -> bool:
    """Whether there is such a process, and it is not one that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_process_codes_as_its_caller_would(two: Coders, codec: Codec, latent: np.ndarray, frame: Frame) -> None:
    frame = replace(frame, alpha=b"alpha", seed=7)
    blob = two(codec, "encode", latent, frame, 100)
    assert blob == coders.here(codec, "encode", latent, frame, 100) == codec.encode(latent, frame, 100)
    read = two(codec, "decode", blob)
    assert read.dtype == np.float32 and (read == codec.decode(blob)).all()
    read += 1  # the caller's own
    assert two(codec, "encode_within", latent, frame, 150) == codec.encode_within(latent, frame, 150)


def test_several_codecs_and_several_callers(two: Coders, codec: Codec, latent: np.ndarray, frame: Frame, small_model: Path) -> None:
    """More calls at once than there are processes, and each gets its own answer, by the codec it named."""
    other = Codec(small_model, read_manifest(small_model).model_copy(update={"version": "2"}))
    wrong = []

    def work(first: int) -> None:
        for index in range(first, first + 40, 4):
            each = (codec, other)[index % 2]
            if two(each, "encode", latent, frame, 90 + index) != each.encode(latent, frame, 90 + index):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert codec.model_identity != other.model_identity


def test_errors_travel_whole(two: Coders, codec: Codec, latent: np.ndarray, frame: Frame, small_model: Path) -> None:
    with pytest.raises(SizeUnreachable) as there:
        two(codec, "encode_within", latent, frame, 20)
    with pytest.raises(SizeUnreachable) as own:
        codec.encode_within(latent, frame, 20)
    assert (there.value.detail, there.value.best_bytes) == (own.value.detail, own.value.best_bytes)
    blob = codec.encode(latent, frame, 100)
    foreign = Codec(small_model, codec.manifest.model_copy(update={"latent_mean": [1.0] * 4}))
    with pytest.raises(WrongModel):
        two(foreign, "decode", blob)
    with pytest.raises(AttributeError) as failure:
        two(codec, "no such method")
    assert "_serve" in "".join(failure.value.__notes__), "where it happened"
    assert two(codec, "encode", latent, frame, 100) == blob, "and the process goes on"


def test_a_process_that_is_killed_is_replaced(two: Coders, codec: Codec, latent: np.ndarray, frame: Frame) -> None:
    before = ended()
    blob = two(codec, "encode", latent, frame, 100)
    for coder in two._idle:
        os.kill(coder.pid, signal.SIGKILL)
    with capture_logs() as logs:
        assert two(codec, "encode", latent, frame, 100) == blob
    assert [(log["event"], log["status"]) for log in logs] == [("a coder ended", -signal.SIGKILL)]
    assert ended() == before + 1
    assert two(codec, "encode", latent, frame, 100) == blob


def test_a_process_that_hangs_is_replaced(
    two: Coders, monkeypatch: pytest.MonkeyPatch, codec: Codec, latent: np.ndarray, frame: Frame
) -> None:
    """Whether it was asked, or could not be because it takes nothing."""
    monkeypatch.setattr(coders, "CLOSED_S", 0.1)
    large = np.zeros((4, 512, 256), np.float32)
    blob, before = two(codec, "encode", latent, frame, 100), ended()
    stop(two._idle[-1])
    assert two(codec, "encode", latent, frame, 100) == blob
    assert ended() == before + 1
    stop(two._idle[-1])
    assert two(codec, "quantise", large, 100).shape == large.shape
    assert ended() == before + 2
    assert two(codec, "encode", latent, frame, 100) == blob


def stop(coder: coders._Coder) -> None:
    """Have it do nothing any more, and its silence last a third of a second instead of what it may."""
    with socket.socket(fileno=os.dup(coder._connection.fileno())) as ours:
        for way, limit in ((socket.SO_RCVTIMEO, coders.HUNG_S), (socket.SO_SNDTIMEO, coders.HUNG_S // 2)):
            assert struct.unpack("ll", ours.getsockopt(socket.SOL_SOCKET, way, 16)) == (limit, 0)
            ours.setsockopt(socket.SOL_SOCKET, way, struct.pack("ll", 0, 333_000))
    os.kill(coder.pid, signal.SIGSTOP)


def test_where_no_process_can_be_started_the_caller_does_it(
    two: Coders, monkeypatch: pytest.MonkeyPatch, codec: Codec, latent: np.ndarray, frame: Frame
) -> None:

    def no_more(*args: object, **kwargs: object) -> None:
        raise BlockingIOError("too many processes")

    monkeypatch.setattr(subprocess, "Popen", no_more)
    with capture_logs() as logs:
        none = Coders(1)
        assert none(codec, "encode", latent, frame, 100) == codec.encode(latent, frame, 100)
    assert [(log["event"], log["error"]) for log in logs] == [("no coder could be started", "too many processes")] * 2
    none.close()
    for coder in two._idle:
        os.kill(coder.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="status -9, and no other could be started"):  # it might end the service, too
        two(codec, "encode", latent, frame, 100)


def test_what_ends_two_processes_is_not_tried_a_third_time(two: Coders, codec: Codec, small_model: Path) -> None:
    before = ended()
    deadly = Codec(small_model, codec.manifest)
    deadly.manifest = Deadly()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="two coders ended over one encode"):
        two(deadly, "encode")
    assert ended() == before + 2


class Deadly:
    """Ends whoever reads it."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (3,)


def test_terminal_signals_are_for_whoever_asks(two: Coders, codec: Codec, latent: np.ndarray, frame: Frame) -> None:
    before = ended()
    two(codec, "encode", latent, frame, 100)
    coder = two._idle[-1]
    for each in (signal.SIGINT, signal.SIGTERM):
        os.kill(coder.pid, each)
    two(codec, "encode", latent, frame, 100)
    assert two._idle[-1] is coder and ended() == before


def test_closing_ends_them(codec: Codec) -> None:
    made = Coders(3)
    pids = [coder.pid for coder in made._idle]
    made.close()
    assert not any(running(pid) for pid in pids)
    made.close()


def test_closing_ends_one_that_hangs(codec: Codec, latent: np.ndarray, frame: Frame) -> None:
    """Its caller hears of it, and no other is started."""
    made, failures = Coders(1), []
    coder = made._idle[0]

    def ask() -> None:
        try:
            made(codec, "encode", latent, frame, 100)
        except RuntimeError as failure:
            failures.append(str(failure))

    os.kill(coder.pid, signal.SIGSTOP)
    caller = threading.Thread(target=ask, daemon=True)
    caller.start()
    until(lambda: coder in made._busy)
    made.close()
    caller.join(20)
    assert not running(coder.pid)
    assert failures == ["encode was given up when the coders were closed"]
    with pytest.raises(RuntimeError, match="when the coders were closed"):
        made(codec, "encode", latent, frame, 100)


def test_none_outlives_its_service() -> None:
    """Not even one that was killed."""
    script = (
        "import time; from service.codec.coders import Coders; made = Coders(2)\n"
        "print(*(each.pid for each in made._idle), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        pids = [int(each) for each in service.stdout.readline().split()]
        assert len(pids) == 2 and all(running(pid) for pid in pids)
        time.sleep(1)
        service.kill()
    until(lambda: not any(running(pid) for pid in pids))
