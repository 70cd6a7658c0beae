"""Codecs in processes of their own: coding keeps the interpreter, so that two threads that code do no more than one.

    caller's thread --codec, method, arguments--> socket --> process --result or error--> socket --> caller's thread

Whoever calls waits without the interpreter.  A process that ends, whatever ended it, or hangs, is replaced, and what it was at is tried
once more.  Where none can be started the caller's thread does the work.
Knows nothing of queues: as many calls run at once as threads make them.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import structlog

from service.codec.codec import Codec
from service.process import tune
from service.telemetry import metrics

HUNG_S = 900
"""a process that has not answered for so long never will: the largest picture takes twenty seconds of a core, which others may want too"""
CLOSED_S = 5.0
"""a process that has nothing to wait for any more has so long to end"""

Coding = Callable[..., Any]
"""calls a method of a codec: ``coding(codec, method, *arguments)``"""


def here(codec: Codec, method: str, *arguments: Any) -> Any:
    """In the caller's own thread."""
    return getattr(codec, method)(*arguments)


class Coders:
    """Calls methods of codecs in processes, one for each call that is under way.

    Args:
        count: processes that are started at once; each is ready half a second later.
    """

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._busy: set[_Coder] = set()
        self._idle = [coder for _ in range(count) if (coder := _start())]

    def __call__(self, codec: Codec, method: str, *arguments: Any) -> Any:
        """What the method returns; raises what it raises, and RuntimeError where two processes ended over it, or one and no other began, or
        when the coders are closed."""
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{method} was asked for when the coders were closed")
            idle = self._idle.pop() if self._idle else None
        coder = idle or _start()
        if coder is None:
            return here(codec, method, *arguments)
        try:
            answer = self._ask(coder, codec, method, arguments)
        except (EOFError, OSError):
            status = self._ended(coder)
            if self._closed:
                raise RuntimeError(f"{method} was given up when the coders were closed") from None
            coder = _start()  # none of the others: what ended one may have ended all
            if coder is None:
                raise RuntimeError(f"a coder ended over {method} with status {status}, and no other could be started") from None
            try:
                answer = self._ask(coder, codec, method, arguments)
            except (EOFError, OSError) as error:
                raise RuntimeError(f"two coders ended over one {method}, the last with status {self._ended(coder)}") from error
        with self._lock:
            kept = not self._closed
            if kept:
                self._idle.append(coder)
        if not kept:
            coder.end()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ask(self, coder: _Coder, codec: Codec, method: str, arguments: tuple[Any, ...]) -> Any:
        with self._lock:
            self._busy.add(coder)
            if self._closed:
                coder.kill()
        try:
            return coder.ask(codec, method, arguments)
        finally:
            with self._lock:
                self._busy.discard(coder)

    def _ended(self, coder: _Coder) -> int:
        status = coder.end()
        metrics.CODERS_ENDED.inc()
        structlog.get_logger().warning("a coder ended", pid=coder.pid, status=status)
        return status

    def close(self) -> None:
        """End the processes.  One that is at work is killed: nobody waits for its result any more, and it may hang."""
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
            for coder in self._busy:
                coder.kill()
        for coder in idle:
            coder.hang_up()
        for coder in idle:
            coder.end()


def _start() -> _Coder | None:
    """A process, or None where there can be no more: too many of them, or no memory for one."""
    try:
        return _Coder()
    except OSError as error:
        structlog.get_logger().warning("no coder could be started", error=str(error))
        return None


class _Coder:
    """One process; raises OSError where it cannot be started."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        for way, limit in ((socket.SO_RCVTIMEO, HUNG_S), (socket.SO_SNDTIMEO, HUNG_S // 2)):  # half: what was sent in part goes on once
            ours.setsockopt(socket.SOL_SOCKET, way, struct.pack("ll", limit, 0))
        self._connection = Connection(ours.detach())
        with theirs:
            # what is imported here is found there, and -P: nothing else
            command = [sys.executable, "-P", "-m", "service.codec.coders", str(theirs.fileno())]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
            self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._sent: dict[int, Codec] = {}
        """what the process has, by its ``id`` here, under which it is asked for"""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, codec: Codec, method: str, arguments: tuple[Any, ...]) -> Any:
        """The answer, which may be an exception; raises EOFError or OSError where the process is gone or hangs."""
        number = id(codec)
        _send(self._connection, (None if number in self._sent else codec, number, method, arguments))
        self._sent[number] = codec
        return _receive(self._connection)

    def hang_up(self) -> None:
        """Let the process end when it has done what it was asked."""
        self._connection.close()

    def kill(self) -> None:
        """End the process at once; whoever waits for its answer hears of it."""
        self._process.kill()

    def end(self) -> int:
        """Have the process end; returns its exit status."""
        self.hang_up()
        try:
            return self._process.wait(CLOSED_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _send(connection: Connection, thing: object) -> None:
    """Arrays as they lie in memory, after all else."""
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(thing, 5, buffer_callback=buffers.append)
    connection.send((rest, len(buffers)))
    for buffer in buffers:
        connection.send_bytes(buffer.raw())


def _receive(connection: Connection) -> Any:
    rest, count = connection.recv()
    buffers = [bytearray(connection.recv_bytes()) for _ in range(count)]
    return pickle.loads(rest, buffers=buffers)  # noqa: S301 - both ends are ours


def _serve(connection: Connection) -> None:
    """Answer until the other side is gone."""
    codecs: dict[int, Codec] = {}
    while True:
        try:
            new, number, method, arguments = _receive(connection)
        except (EOFError, OSError):
            return
        codecs[number] = new or codecs[number]
        try:
            answer = getattr(codecs[number], method)(*arguments)
        except Exception as error:
            error.add_note(traceback.format_exc())  # a traceback does not travel
            answer = error
        try:
            _send(connection, answer)
        except OSError:
            return


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM):  # they come to the whole group: it is for whoever asks to decide
        signal.signal(each, signal.SIG_IGN)
    tune()
    _serve(Connection(int(sys.argv[1])))
