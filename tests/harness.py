"""What the deep tests share: a real server in a process of its own, clients for it, and the backend without HTTP.

Nothing here waits without a deadline, and nothing sleeps for a length of time: `until` polls a condition.

    Server        uvicorn app:app on a free port, over a throw-away database; killed, restarted, stopped by its pid
    Client        HTTP over one kept connection
    Screen        one who follows the feed: a Display over WebSocket, or an EventStream
    Peer          a raw socket, for clients that misbehave
    Backstage     storage, feed and order book in this process, for faults that no client can cause
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar, cast
from urllib.parse import urlencode

import websockets.sync.client
from websockets.exceptions import ConnectionClosed

import app
from tests.engines import Engine, Fetch, Sqlite

ROOT: Final = Path(__file__).resolve().parents[1]
DEADLINE: Final = 20.0
"""Seconds that anything may take before the test that waits for it fails. Generous: it measures no speed."""

engine: Engine = Sqlite()
"""What databases are made of; conftest.py sets it from `--engine`."""

Json = dict[str, Any]
Found = TypeVar("Found")


def until(condition: Callable[[], Found], what: str, deadline: float = DEADLINE) -> Found:
    """Poll a condition until it holds, and return what it found. Fails with `what` where it doesn't in time."""
    end = time.monotonic() + deadline
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {deadline:.0f} s: {what}"
        time.sleep(0.005)
    return found


def an_order(name: str = "Burger", **more: Any) -> Json:
    """An order as a POS posts it."""
    return {"table": "Table 1", "items": [{"name": name, "quantity": 1}], **more}


def now(seconds: float = 0) -> str:
    """The time in so many seconds, as orders have it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def a_large_order(name: str = "Banquet") -> Json:
    """An order of about 36 kB, to fill queues with."""
    note = "no nuts, please; " * 16
    return {"table": "Hall", "items": [{"name": f"{name} {line}", "quantity": 1, "note": note} for line in range(100)]}


# ---------------------------------------------------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def environment(**settings: object) -> dict[str, str]:
    """The environment of this process, with just these `BISTRO92_*` settings, given without their prefix."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("BISTRO92_")}
    return {**plain, **{f"BISTRO92_{name.upper()}": str(value) for name, value in settings.items()}}


class Server:
    """A server process. It keeps its database, port and settings over `stop`, `kill` and `start`."""

    def __init__(self, folder: Path, *options: str, **settings: object) -> None:
        self.file = folder / "orders.db"
        self.port = free_port()
        own = {} if "database_url" in settings else {"database_url": engine.url(folder)}
        self.settings: dict[str, object] = {**own, **settings}
        self.process: subprocess.Popen[bytes] | None = None
        """The process while it runs, or after it ended by itself; None before `start`."""
        self._program, self._variables = "app:app", dict[str, str]()
        self._options = options
        self._log_file = folder / "server.log"

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, "the server was not started"
        return self.process

    @property
    def log(self) -> str:
        return self._log_file.read_text()

    @property
    def lines(self) -> list[Json]:
        """What the backend itself has logged."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def alter(self, **changed: object) -> Server:
        """Change constants of the backend, from the next start on; tests/altered.py does it."""
        self._program, self._variables = "tests.altered:app", {"TESTS_ALTER": json.dumps(changed)}
        return self

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting until it serves."""
        command = [sys.executable, "-m", "uvicorn", self._program, "--host", "127.0.0.1", "--port", str(self.port)]
        variables = {**environment(**self.settings), **self._variables}
        with self._log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self._options], cwd=ROOT, env=variables, stdout=log, stderr=log
            )
        return self.process

    def start(self, **settings: object) -> Server:
        """Start, with settings changed, and wait until it serves."""
        self.settings.update(settings)
        self.launch()
        self.wait_until_it_serves()
        return self

    def wait_until_it_serves(self) -> None:
        process = self.running

        def serves() -> bool:
            assert process.poll() is None, f"the server ended with {process.returncode}:\n{self.log}"
            with contextlib.suppress(OSError), contextlib.closing(self.client()) as client:
                return client.get("/healthz").status == HTTPStatus.OK
            return False

        until(serves, "the server serves", 3 * DEADLINE)

    def stop(self) -> int:
        """SIGTERM; returns the exit code. What is still there at the deadline is killed, and the test fails."""
        self.running.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, deadline: float = DEADLINE) -> int:
        try:
            return self.running.wait(deadline)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL: nothing in the process gets a chance to tidy up."""
        self.running.kill()
        self.running.wait(DEADLINE)

    def end(self) -> None:
        """Leave no process behind, whatever happened."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def client(self) -> Client:
        return Client(self.port)

    def session(self) -> contextlib.AbstractContextManager[Fetch]:
        """Statements of the test's own, past the server."""
        return engine.session(self.file.parent)

    def held(self) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """A foreign process keeps the server's commits waiting; what this gives lets go early."""
        return engine.held(self.file.parent)

    def metric(self, name: str) -> float:
        """The value of a metric, named as Prometheus reads it, with its labels."""
        with contextlib.closing(self.client()) as client:
            lines = client.get("/metrics").body.decode().splitlines()
        [value] = [line.split()[1] for line in lines if line.split()[0] == name]
        return float(value)

    def resident_bytes(self) -> int:
        """The memory that the process holds."""
        [line] = [
            line
            for line in Path(f"/proc/{self.running.pid}/status").read_text().splitlines()
            if line.startswith("VmRSS:")
        ]
        return int(line.split()[1]) * 1024


# ---------------------------------------------------------------------------------------------------------------------
# HTTP
# ---------------------------------------------------------------------------------------------------------------------


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """HTTP over one kept connection, which is made anew after an error. Raises OSError where there is no answer."""

    def __init__(self, port: int, deadline: float = DEADLINE) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=deadline)

    def close(self) -> None:
        self._connection.close()

    def request(self, method: str, path: str, body: Json | bytes | None = None, **headers: str) -> Reply:
        """Headers are given as `idempotency_key="k"`."""
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            self._connection.request(method, path, content, named)
            response = self._connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        except http.client.HTTPException as error:
            self._connection.close()
            raise ConnectionError("the connection broke") from error
        except OSError:
            self._connection.close()
            raise

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, None, **headers)

    def post(self, order: Json, **headers: str) -> Reply:
        return self.request("POST", "/api/order", order, **headers)

    def place(self, order: Json, **headers: str) -> Json:
        """Post an order that has to be taken; returns it."""
        reply = self.post(order, **headers)
        assert reply.status == HTTPStatus.CREATED, reply.body
        placed: Json = reply.json
        return placed

    def orders(self) -> list[Json]:
        """All of them, newest first."""
        listed: list[Json] = self.get("/api/orders").json
        return listed

    def changes(self, **query: object) -> Reply:
        return self.get(f"/api/changes?{urlencode(query)}")

    def cursor(self) -> str:
        """Where the log stands."""
        now: str = self.changes().json["cursor"]
        return now

    def history(self, after: str, limit: int = 500) -> list[Json]:
        """Every event after a cursor, by polling."""
        events: list[Json] = []
        while page := self.changes(after=after, limit=limit).json["events"]:
            events += page
            after = page[-1]["cursor"]
        return events


def parse_problem(reply: Reply) -> tuple[int, str]:
    """(status, code) of an answer that has to be a problem document."""
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json
    assert problem["status"] == reply.status
    return reply.status, problem["code"]


class Worker(Protocol):
    """A thread that works until it is told to stop."""

    stopping: bool

    def start(self) -> None: ...
    def finish(self) -> None: ...


Working = TypeVar("Working", bound=Worker)


@contextlib.contextmanager
def at_work(workers: list[Working]) -> Iterator[list[Working]]:
    """Some that work at the same time; they have stopped at the end."""
    for worker in workers:
        worker.start()
    try:
        yield workers
    finally:
        for worker in workers:
            worker.stopping = True
        for worker in workers:
            worker.finish()


# ---------------------------------------------------------------------------------------------------------------------
# The feed
# ---------------------------------------------------------------------------------------------------------------------


class Dropped(Exception):
    """The server ended the stream; `code` is the close code, None for an event stream."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"the server ended the stream: {code}")
        self.code = code


class Screen(Protocol):
    """One who follows the feed."""

    def message(self) -> Json:
        """The next message, whatever it is. Raises Dropped at the end of the stream."""

    def close(self) -> None: ...


def query_of(**values: object) -> str:
    given = {name: value for name, value in values.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


class Display:
    """A screen over WebSocket."""

    def __init__(
        self,
        port: int,
        after: str | None = None,
        station: str | None = None,
        batch: bool | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        query = query_of(after=after, station=station, batch="true" if batch else None)
        self._open = contextlib.ExitStack()
        self.socket = self._open.enter_context(
            websockets.sync.client.connect(
                f"ws://127.0.0.1:{port}/ws/orders{query}",
                additional_headers=headers,
                max_size=None,
                max_queue=None,  # it always reads; Peer is the one who doesn't
                proxy=None,
                open_timeout=DEADLINE,
            )
        )

    def message(self, deadline: float = DEADLINE) -> Json:
        try:
            message: Json = json.loads(self.socket.recv(deadline))
        except ConnectionClosed as error:
            raise Dropped(error.rcvd.code if error.rcvd else None) from error
        return message

    def close(self) -> None:
        self._open.close()


class EventStream:
    """A screen over server-sent events."""

    def __init__(
        self,
        port: int,
        after: str | None = None,
        station: str | None = None,
        last_event_id: str | None = None,
        deadline: float = DEADLINE,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=deadline)
        resumed = {"last-event-id": last_event_id} if last_event_id is not None else {}
        path = f"/api/events{query_of(after=after, station=station)}"
        self._connection.request("GET", path, headers={**(headers or {}), **resumed})
        self.response = self._connection.getresponse()

    def message(self) -> Json:
        """The next event; its `event` and `id` have to say the same as its data."""
        fields: dict[str, str] = {}
        while True:
            try:
                line = self.response.readline()
            except (http.client.IncompleteRead, ConnectionError) as error:
                raise Dropped(None) from error
            if not line:
                raise Dropped(None)
            text = line.decode().rstrip("\n")
            if text:
                name, _, value = text.partition(": ")
                fields[name] = value
            elif "data" in fields:
                message: Json = json.loads(fields["data"])
                assert (fields["event"], fields["id"]) == (message["type"], message["cursor"])
                return message

    def close(self) -> None:
        self.response.close()
        self._connection.close()


SCREENS: Final = (Display, EventStream)


def events(screen: Screen) -> Iterator[Json]:
    """What a screen is told, one by one: batches taken apart, heartbeats left out."""
    while True:
        message = screen.message()
        if message["type"] == "batch":
            assert message["cursor"] == message["events"][-1]["cursor"]
            yield from message["events"]
        elif message["type"] != "heartbeat":
            yield message


def events_up_to(screen: Screen, cursor: str) -> list[Json]:
    """What a screen is told until it is told the event of a cursor."""
    told: list[Json] = []
    for event in events(screen):
        told.append(event)
        if event["cursor"] == cursor:
            return told
    raise AssertionError("unreachable")


# ---------------------------------------------------------------------------------------------------------------------
# Clients that misbehave
# ---------------------------------------------------------------------------------------------------------------------


class Peer:
    """A raw socket. `receive_buffer` makes the kernel take little of what it doesn't read."""

    def __init__(self, port: int, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(DEADLINE)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", port))

    def send(self, text: str | bytes) -> None:
        self.socket.sendall(text.encode() if isinstance(text, str) else text)

    def get(self, path: str, *headers: str) -> None:
        self.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]))

    def upgrade(self, path: str = "/ws/orders") -> None:
        """Ask for a WebSocket by hand; nothing of the answer is read."""
        key = base64.b64encode(os.urandom(16)).decode()
        self.get(
            path,
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        )

    def head_of_post(self, length: int, *headers: str) -> None:
        self.send(
            "\r\n".join(["POST /api/order HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {length}", *headers, "", ""])
        )

    def read_all(self) -> bytes:
        """Everything until the server closes. Raises ConnectionResetError where it aborts."""
        parts: list[bytes] = []
        while part := self.socket.recv(65_536):
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close with a RST, as a host that lost power would answer later."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(opcode, payload) of every whole WebSocket frame that a server sent."""
    at = 0
    while at + 2 <= len(data):
        opcode, size, at = data[at] & 0x0F, data[at + 1], at + 2
        if size in {126, 127}:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
        if at + size > len(data):
            return
        yield opcode, data[at : at + size]
        at += size


# ---------------------------------------------------------------------------------------------------------------------
# The backend without HTTP
# ---------------------------------------------------------------------------------------------------------------------


class Backstage:
    """Storage, feed, manager and order book, wired as the app wires them."""

    def __init__(self, storage: app.Storage, settings: app.Settings) -> None:
        self.storage = storage
        self.feed = app.Feed(kept_bytes=2 * settings.subscriber_queue_bytes)
        self.manager = app.ConnectionManager(self.feed, storage, settings)
        self.book = app.OrderBook(storage, self.manager, settings)

    async def open(self) -> None:
        await self.storage.open()
        await self.book.load_feed()

    def cursor(self, seq: int | None = None) -> str:
        return app.make_cursor(self.feed.epoch, self.feed.head if seq is None else seq)

    def write(self, order: Json, key: str | None = None, fingerprint: str = "") -> app.Write:
        """A write that places an order."""
        return app.Write(
            partial(app.place, new=cast("app.NewOrder", order)),
            asyncio.get_running_loop().create_future(),
            status=201,
            key=app.Key("", key, fingerprint) if key is not None else None,
            external=(order["source"], order["external_id"]) if "external_id" in order else None,
        )

    async def place(self, order: Json | None = None, key: str | None = None, fingerprint: str = "") -> app.Outcome:
        return await self.book.submit(self.write(order or an_order(), key, fingerprint))

    async def listed(self) -> list[Json]:
        """All orders, oldest first."""
        rows = await self.storage.orders(app.ListQuery(), rows=10**6)
        return [json.loads(body) for _, body in reversed(rows)]


async def nobody_leaves() -> Any:
    """What a server hears of a client that waits for its answer."""
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def backstage(storage: app.Storage | None = None, **settings: Any) -> AsyncIterator[Backstage]:
    """The backend, open and broadcasting; throw-away unless a storage is given."""
    place = Path(uuid.uuid4().hex)
    if storage is None:
        storage = app.Storage("sqlite://") if engine.name == "sqlite" else app.storage_at(engine.url(place))
    behind = Backstage(storage, app.Settings(**settings))
    broadcast = asyncio.create_task(behind.manager.broadcast())
    try:
        async with asyncio.timeout(DEADLINE):
            await behind.open()
            yield behind
            await behind.book.drain()
    finally:
        broadcast.cancel()
        await asyncio.gather(broadcast, return_exceptions=True)
        await behind.storage.close()
        engine.drop(place)


async def eventually(condition: Callable[[], Found], what: str) -> Found:
    """`until`, for conditions that other tasks of this loop bring about."""
    end = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {DEADLINE:.0f} s: {what}"
        await asyncio.sleep(0)
    return found


def without_duplicates(values: Iterable[Any]) -> list[Any]:
    """The values as a list; fails where one comes twice."""
    listed = list(values)
    assert len(set(listed)) == len(listed), "something is there twice"
    return listed
