"""Debian's nginx with a configuration that is shipped, on ports and in a folder of the test's."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import until

DEPLOY = Path(__file__).parents[2] / "deploy" / "nginx"


@contextmanager
def nginx(configuration: str, folder: Path, port: int, changes: dict[str, str]) -> Iterator[None]:
    """Run one of ``deploy/nginx``, each of ``changes`` made in its one place, until the end of the block.

    Args:
        configuration: its file's name.
        folder: for what it writes.
        port: one that it listens on after the changes; waited for.
        changes: words of the file, and what stands there instead.
    """
    binary = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert binary, "make test-system installs it"
    user = "user root; " if os.geteuid() == 0 else ""  # pytest's folder is its user's
    everywhere = {"/run/nginx.pid": f"{folder}/nginx.pid", "worker_processes auto": f"{user}worker_processes 1"}
    written = (DEPLOY / configuration).read_text()
    for old, new in {**changes, **everywhere}.items():
        assert written.count(old) == 1, old
        written = written.replace(old, new)
    (folder / "nginx.conf").write_text(written)
    process = subprocess.Popen([binary, "-c", f"{folder}/nginx.conf", "-p", str(folder), "-g", "daemon off;"])
    try:
        until(lambda: answers(port))
        yield
    finally:
        process.terminate()
        process.wait(20)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
