"""The door and the watch for hang-ups, around applications made up for the purpose."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.door import PATIENCE_S, Door, EarlyReply, Presence, working_operation


class Connection:
    """One request, its body given piece by piece, and what was sent back."""

    def __init__(
        self, path: str = "/compress", headers: dict[str, str] | None = None, body: list[bytes] | None = None, method: str = "POST"
    ) -> None:
        if headers is None:
            headers = {} if body is None else {"transfer-encoding": "chunked"}
        encoded = [(key.encode(), value.encode()) for key, value in headers.items()]
        self.scope: Scope = {"type": "http", "method": method, "path": path, "headers": encoded, "query_string": b""}
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        pieces = body if body is not None else [b""]
        for index, piece in enumerate(pieces):
            self.incoming.put_nowait({"type": "http.request", "body": piece, "more_body": index + 1 < len(pieces)})
        self.read = 0
        self.read_before_reply: int | None = None
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        message = await self.incoming.get()
        self.read += 1
        return message

    async def send(self, message: Message) -> None:
        if message.get("body") and self.read_before_reply is None:
            self.read_before_reply = self.read
        self.sent.append(message)

    def hang_up(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def through(self, app: ASGIApp) -> None:
        await app(self.scope, self.receive, self.send)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))


class Held:
    """An application that reads its body, or does not, and answers when the gate is opened."""

    def __init__(self, reads: bool = True) -> None:
        self.gate = asyncio.Event()
        self.reads = reads
        self.working = self.cancelled = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.reads:
            await Request(scope, receive).body()
        self.working += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.working -= 1
        await Response("done")(scope, receive, send)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def door(app: ASGIApp, **options: int) -> Door:
    return Door(app, **{"slots": 2, "max_bytes": 1000, "largest_body": 500, **options}, retry_after_s=lambda: 7)


def inflight() -> float:
    return REGISTRY.get_sample_value("sdc_inflight", {"op": "compress"}) or 0.0


def test_what_needs_a_slot() -> None:
    working = {
        "/compress": "compress",
        "/compare": "compare",
        "/decompress": "decompress",
        "/blobs": "blobs",
        "/blobs/x/info": "blobs",
        "/render/x.webp": "render",
    }
    assert {path: working_operation(path) for path in working} == working
    assert not any(working_operation(path) for path in ("/livez", "/readyz", "/metrics", "/docs", "/", "", "*", "/compressor"))


def test_the_one_too_many_is_refused_before_its_body_is_read() -> None:
    async def scenario() -> None:
        held = Held()
        entrance = door(held)
        app = EarlyReply(entrance)
        inside = [Connection() for _ in range(2)]
        tasks = [asyncio.create_task(connection.through(app)) for connection in inside]
        await until(lambda: held.working == 2)
        assert inflight() == 2
        burst = [Connection(headers={"content-length": "400"}, body=[b"x" * 400]) for _ in range(30)]
        await asyncio.gather(*(connection.through(app) for connection in burst))
        for connection in burst:
            headers = dict(connection.sent[0]["headers"])
            assert connection.status == 503
            assert headers[b"retry-after"] == b"7"
            assert headers[b"connection"] == b"close"
            assert headers[b"content-type"] == b"application/problem+json"
            assert json.loads(connection.sent[1]["body"])["type"].endswith("overloaded")
            assert connection.read_before_reply == 0
        health = Connection("/livez")
        held.gate.set()
        await health.through(app)
        assert health.status == 200
        await asyncio.gather(*tasks)
        assert [connection.status for connection in inside] == [200, 200]
        assert entrance.inside == entrance.bytes_inside == inflight() == 0

    run(scenario)


async def refuse(connection: Connection) -> None:
    """Send a request to a door that has no slot left."""
    held = Held()
    app = EarlyReply(door(held, slots=1))
    inside = asyncio.create_task(Connection().through(app))
    await until(lambda: held.working == 1)
    await connection.through(app)
    assert connection.status == 503
    held.gate.set()
    await inside


def test_a_refused_client_may_finish_its_sentence() -> None:
    """Otherwise the connection is reset while it still sends, and it never sees the 503."""

    async def scenario() -> None:
        connection = Connection(headers={"content-length": "300"}, body=[b"x" * 100] * 3)
        await refuse(connection)
        assert connection.read == 3
        assert [message.get("more_body", False) for message in connection.sent[1:]] == [True, False]
        assert connection.sent[2]["body"] == b""

    run(scenario)


def test_even_if_all_that_was_under_way_comes_before_it_looks_up() -> None:
    """It can stop only when it has seen the reply, and two kernels may hold 4 and 6 MiB by then."""

    async def scenario() -> None:
        connection = Connection(headers={"content-length": "20000000"}, body=[b"x" * (1 << 18)] * 40)
        await refuse(connection)
        assert connection.read == 40

    run(scenario)


def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        endless = Connection(headers={"transfer-encoding": "chunked"}, body=[b"x" * (1 << 18)] * 100)
        await refuse(endless)
        assert endless.read == 64
        silent = Connection(headers={"content-length": "300"}, body=[])
        await refuse(silent)
        polite = Connection(headers={"content-length": "300", "expect": "100-continue"})
        await refuse(polite)
        assert polite.read == 0

        async def too_long(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "http.response.start", "status": 413, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        sending = Connection(headers={"transfer-encoding": "chunked", "expect": "100-continue"}, body=[b"x"] * 10)
        await sending.through(EarlyReply(too_long))
        assert sending.read == 10  # it was told to go on when its first bytes were asked for

    monkeypatch.setattr("service.api.door.LINGER_S", 0.02)
    run(scenario)


def test_a_reply_to_the_whole_body_keeps_the_connection() -> None:
    async def scenario() -> None:
        held = Held()
        held.gate.set()
        for headers, body in (({"content-length": "2"}, [b"x", b"y"]), ({"transfer-encoding": "chunked"}, [b"x"]), ({}, [b""])):
            connection = Connection(headers=headers, body=body)
            await connection.through(EarlyReply(held))
            assert b"connection" not in dict(connection.sent[0]["headers"])
            assert [message["type"] for message in connection.sent] == ["http.response.start", "http.response.body"]

    run(scenario)


@pytest.mark.parametrize(
    ("headers", "claimed"),
    [({"content-length": "300"}, 300), ({"transfer-encoding": "chunked"}, 500), ({"content-length": "99999"}, 500), ({}, 0)],
)
def test_bodies_are_counted_before_they_are_read(headers: dict[str, str], claimed: int) -> None:
    async def scenario() -> None:
        held = Held()
        app = door(held, slots=100)
        task = asyncio.create_task(Connection(headers=headers).through(app))
        await until(lambda: held.working == 1)
        assert app.bytes_inside == claimed
        room = Connection(headers={"content-length": str(1000 - claimed)})
        refused = Connection(headers={"content-length": str(min(500, 1001 - claimed))})
        if claimed >= 501 or 1001 - claimed <= 500:
            await refused.through(app)
            assert refused.status == 503
        other = asyncio.create_task(room.through(app))
        held.gate.set()
        await asyncio.gather(task, other)
        assert app.bytes_inside == 0

    run(scenario)


def test_one_body_larger_than_the_bound_is_let_in_alone() -> None:
    async def scenario() -> None:
        held = Held()
        held.gate.set()
        app = door(held, max_bytes=100)
        connection = Connection(headers={"content-length": "400"})
        await connection.through(app)
        assert connection.status == 200

    run(scenario)


def test_a_slot_comes_back_whatever_happens() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        app = door(fails)
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                await Connection(headers={"content-length": "400"}).through(app)
        assert app.inside == app.bytes_inside == inflight() == 0

    run(scenario)


async def hang_up_on(held: Held, connection: Connection) -> None:
    """The client leaves while it is worked for, which ends with that, and without a reply."""
    task = asyncio.create_task(connection.through(Presence(held)))
    await until(lambda: held.working == 1)
    connection.hang_up()
    with pytest.raises(ClientDisconnect):
        await task
    assert held.cancelled == 1
    assert connection.sent == []


def test_a_client_that_hangs_up_is_worked_for_no_longer() -> None:
    run(lambda: hang_up_on(Held(), Connection(body=[b"half ", b"and half"])))


@pytest.mark.parametrize("reads", [False, True])
def test_a_client_that_asks_without_a_body_and_hangs_up_is_worked_for_no_longer(reads: bool) -> None:
    """As every GET does: no route reads a body that is not there, and one that does is told so."""
    run(lambda: hang_up_on(Held(reads), Connection(method="GET")))


def test_a_delete_is_finished_though_its_client_hangs_up() -> None:
    async def scenario() -> None:
        held = Held(reads=False)
        connection = Connection(method="DELETE")
        task = asyncio.create_task(connection.through(Presence(held)))
        await until(lambda: held.working == 1)
        connection.hang_up()
        await asyncio.sleep(5 * PATIENCE_S)
        held.gate.set()
        await task
        assert (connection.status, held.cancelled) == (200, 0)

    run(scenario)


def test_hanging_up_in_the_middle_of_the_body() -> None:
    async def scenario() -> None:
        held = Held()
        connection = Connection(body=[b"half ", b""])
        connection.incoming = asyncio.Queue()
        connection.incoming.put_nowait({"type": "http.request", "body": b"half", "more_body": True})
        connection.hang_up()
        with pytest.raises(ClientDisconnect):
            await connection.through(Presence(held))
        assert held.working == 0

    run(scenario)


def test_a_client_that_waits_gets_its_reply() -> None:
    async def scenario() -> None:
        held, before = Held(), asyncio.all_tasks()
        connection = Connection(body=[b"body"])
        task = asyncio.create_task(connection.through(Presence(held)))
        await until(lambda: held.working == 1)
        held.gate.set()
        await task
        assert connection.status == 200
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before

    run(scenario)


def test_a_reply_that_has_begun_is_not_cut_by_the_watch() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(5):
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"all of it"})

    async def scenario() -> None:
        connection = Connection()
        connection.hang_up()
        await connection.through(Presence(slow))
        assert connection.sent[-1].get("body") == b"all of it"

    run(scenario)


def test_whoever_asks_after_the_body_learns_of_the_disconnect() -> None:
    seen: list[str] = []

    async def asks(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        seen.append((await receive())["type"])

    async def scenario() -> None:
        connection = Connection()
        task = asyncio.create_task(connection.through(Presence(asks)))
        await asyncio.sleep(0)
        connection.hang_up()
        await task
        assert seen == ["http.disconnect"]

    run(scenario)


def test_errors_of_the_application_pass_through() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        with pytest.raises(ZeroDivisionError):
            await Connection().through(Presence(fails))

    run(scenario)
