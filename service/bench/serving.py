"""A real `sdc serve` process on a free loopback port: for benchmarks, the demo and tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 60


@dataclass
class Server:
    base: str
    """URL without a slash at its end"""
    port: int
    process: subprocess.Popen[bytes]
    log: Path | None

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, each metric summed over its labels, and by ``name{label=value,...}`` too."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(httpx.get(f"{self.base}/metrics", timeout=30).text):
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                for name in dict.fromkeys((sample.name, f"{sample.name}{{{labels}}}")):
                    found[name] = found.get(name, 0.0) + sample.value
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(folder: Path, log: Path | None = None, program: str = "service.cli", **settings: str) -> Iterator[Server]:
    """Start, wait until ready, yield, SIGTERM.

    Args:
        folder: for the store.
        log: where the server's own words go; None leaves them on the terminal.
        program: module whose command `serve` is run.
        settings: environment of the server.

    Raises RuntimeError, with the log where there is one, when it does not get ready; kills it when it does not stop.
    """
    port = free_port()
    environment = {**os.environ, "SDC_STORE_URL": f"file://{folder}/store", **settings}
    arguments = [sys.executable, "-m", program, "serve", "--port", str(port)]
    with (log or Path(os.devnull)).open("wb") as file:
        words = file if log else None
        process = subprocess.Popen(arguments, env=environment, stdout=words, stderr=words)
    server = Server(f"http://127.0.0.1:{port}", port, process, log)
    try:
        _wait(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _wait(server: Server) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.get(f"{server.base}/readyz", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"the service did not start: {server.log.read_text() if server.log else 'its own words are above'}")
