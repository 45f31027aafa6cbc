"""The clients, each function made to run in a process of its own (see harness.Generator).

They are raw sockets and one epoll: a display counts the events that it gets without parsing them, so that hundreds of
displays cost less than the server's side of them. Times are `time.monotonic()`, the same clock in all processes.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import select
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

NEEDLE: Final = b'"type":"new_order"'
"""Stands once in every event, batched or not, of every server that is compared."""
CARRY: Final = len(NEEDLE) - 1
PING: Final = b"\x89\x04"
"""The start of uvicorn's ping frames; no JSON contains it."""
BUFFER_BYTES: Final = 1 << 18
WAIT_SECONDS: Final = 60.0

ORDER: Final[dict[str, Any]] = {
    "table": "Table 7",
    "items": [{"name": "Burger", "quantity": 3}, {"name": "Ice Cream", "quantity": 1}],
}
LATER: Final[dict[str, Any]] = {**ORDER, "fire_at": "2099-01-01T00:00:00Z"}
"""An order that is stored and told, but doesn't enter the board."""


def http_request(method: str, path: str, body: Any = None, **headers: str) -> bytes:
    """An HTTP/1.1 request as bytes."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(data)}"]
    lines += ["Content-Type: application/json"] * bool(data)
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


class Client:
    """A keep-alive HTTP connection that waits for each answer."""

    def __init__(self, port: int):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self._socket.sendall(request)
        answer = b""
        while (size := whole(answer)) is None:
            answer += self._receive()
        return int(answer[9:12]), answer[-size:] if size else b""

    def _receive(self) -> bytes:
        data = self._socket.recv(BUFFER_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data


def whole(answer: bytes) -> int | None:
    """The size of the body where an answer is whole, else None."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return None
    found = head.lower().find(b"content-length:")
    size = int(head[found + 15 :].split(b"\r\n", 1)[0]) if found > 0 else 0
    return size if len(body) >= size else None


# Displays


class Display:
    """One WebSocket."""

    __slots__ = ("carry", "counted", "due", "head", "socket")

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self.counted = 0
        """Events that came after `initial`."""
        self.head = b""
        """What has come while it isn't clear how long `initial` is."""
        self.due: int | None = None
        """Bytes of `initial` that are still to come; None before its length is known, 0 when it is live."""
        self.carry = b""
        """The last bytes, as the needle may be cut in two."""


class Displays:
    """Many displays on one epoll. A server that greets sends `initial` first; a display is live when it has that."""

    def __init__(self, port: int, count: int, path: str, greets: bool, headers: dict[str, str] | None = None):
        self.count = count
        self.lost = 0
        """Displays whose connection ended."""
        self.last_event = 0.0
        """When one of them last got an event."""
        self.on_event: Callable[[Display, int], None] = lambda display, before: None
        self.epoll = select.epoll()
        self.displays: dict[int, Display] = {}
        self._port = port
        self._greets = greets
        self._live = 0
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._handshake = http_request(
            "GET", path, Upgrade="websocket", Connection="Upgrade",
            Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==", Sec_WebSocket_Version="13", **headers or {},
        )  # fmt: skip

    def connect(self) -> float:
        """Connect all at once; return how long it took until the last one was live."""
        started = time.monotonic()
        for _ in range(self.count):
            connection = socket.socket()
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                connection.connect(("127.0.0.1", self._port))
            self.displays[connection.fileno()] = Display(connection)
            try:
                connection.send(self._handshake)  # on loopback it is connected by now, and a display doesn't wait
                self.epoll.register(connection, select.EPOLLIN)
            except BlockingIOError:
                self.epoll.register(connection, select.EPOLLOUT)
        while self._live < self.count:
            if time.monotonic() - started > WAIT_SECONDS or self.lost:
                raise ConnectionError(f"{self._live} of {self.count} displays connected, {self.lost} were closed")
            self.turn(1)
        return time.monotonic() - started

    def close(self) -> None:
        for display in self.displays.values():
            display.socket.close()
        self.displays.clear()
        self._live = 0

    def turn(self, timeout: float) -> list[int]:
        """Handle what has come, waiting for it at most `timeout`. Returns file descriptors that aren't displays."""
        others = []
        for descriptor, event in self.epoll.poll(timeout):
            display = self.displays.get(descriptor)
            if display is None:
                others.append(descriptor)
            elif event & select.EPOLLOUT:
                problem = display.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if problem:
                    raise ConnectionError(errno.errorcode[problem])
                display.socket.send(self._handshake)
                self.epoll.modify(descriptor, select.EPOLLIN)
            else:
                self._receive(descriptor, display)
        return others

    def _receive(self, descriptor: int, display: Display) -> None:
        buffer, carried = self._buffer, len(display.carry)
        buffer[:carried] = display.carry
        try:
            size = display.socket.recv_into(self._view[carried:])
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self.lost += 1
            self.epoll.unregister(descriptor)
            del self.displays[descriptor]
            display.socket.close()
            return
        size += carried
        start = 0
        if display.due != 0:
            start = self._greet(display, size)
            if display.due != 0:
                return
        if buffer.find(PING, carried, size) >= 0:
            place = buffer.find(PING, carried, size)
            display.socket.send(b"\x8a\x84\0\0\0\0" + buffer[place + 2 : place + 6])
        if found := buffer.count(NEEDLE, start, size):
            before = display.counted
            display.counted += found
            self.last_event = time.monotonic()
            self.on_event(display, before)
        display.carry = bytes(buffer[max(size - CARRY, start) : size])

    def _greet(self, display: Display, size: int) -> int:
        """Take what belongs to handshake and `initial`; return where the rest of the buffer starts."""
        if display.due is None:
            display.head += self._buffer[:size]
            answer, separator, rest = display.head.partition(b"\r\n\r\n")
            if not separator:
                return size
            if not answer.startswith(b"HTTP/1.1 101"):
                raise ConnectionError(answer.decode("latin-1"))
            length = frame_bytes(rest) if self._greets else 0
            if length is None:
                return size
            over = len(rest) - length
            display.head = b""
        else:
            over = size - display.due
        if over < 0:
            display.due = -over
            return size
        display.due = 0
        self._live += 1
        return size - over


def frame_bytes(start: bytes) -> int | None:
    """How long an unmasked frame is in all; None where its header isn't there yet."""
    if len(start) < 10:
        return None
    short = start[1] & 127
    if short < 126:
        return 2 + short
    return 4 + int.from_bytes(start[2:4], "big") if short == 126 else 10 + int.from_bytes(start[2:10], "big")


def displays(
    pipe: Connection, port: int, count: int, path: str, greets: bool, headers: dict[str, str] | None = None
) -> None:
    """Displays that wait for commands:

    ("connect",)    connect all at once → seconds
    ("leave",)      drop all → None
    ("return",)     connect all at once → (start, end)
    ("reconnect",)  drop all, then connect all at once → (start, end)
    ("zero",)       count from 0 → None
    ("wait", n)     until each has counted n → (when the last one had, events in all)
    """
    gc.disable()
    group = Displays(port, count, path, greets, headers)
    group.epoll.register(pipe, select.EPOLLIN)
    goal = 0
    behind: set[Display] = set()
    while True:
        try:
            if pipe.fileno() in group.turn(1):
                command, *arguments = pipe.recv()
                if command == "connect":
                    pipe.send(group.connect())
                elif command == "leave":
                    group.close()
                    pipe.send(None)
                elif command in {"return", "reconnect"}:
                    started = time.monotonic()
                    group.close()
                    group.connect()
                    pipe.send((started, time.monotonic()))
                elif command == "zero":
                    for display in group.displays.values():
                        display.counted = 0
                    pipe.send(None)
                else:
                    [goal] = arguments
                    behind = {display for display in group.displays.values() if display.counted < goal}
            if goal:
                behind = {display for display in behind if display.counted < goal}
                if group.lost:
                    raise ConnectionError(f"{group.lost} displays were dropped")
                if not behind:
                    pipe.send((group.last_event, sum(display.counted for display in group.displays.values())))
                    goal = 0
        except EOFError:
            return
        except OSError as error:
            with contextlib.suppress(OSError):
                pipe.send(ConnectionError(f"displays: {error}"))
            return


# Readers and posters


def one_client(pipe: Connection, port: int) -> None:
    """One client that posts an order after the other. (n,) → the seconds of each."""
    with contextlib.suppress(EOFError):
        while True:
            [count] = pipe.recv()
            client = Client(port)
            taken = []
            for _ in range(count):
                request = http_request("POST", "/api/order", ORDER, Idempotency_Key=f"one-{time.monotonic_ns()}")
                started = time.perf_counter()
                status, _body = client.ask(request)
                taken.append(time.perf_counter() - started)
                assert status == 201, status
            pipe.send(taken)


def paced_posts(pipe: Connection, port: int, body: Any, tills: int = 0) -> None:
    """Orders at a steady rate, whatever the server does: each has a connection of its own while it is under way.

    So many tills are connected beforehand; where all of them wait for an answer, another one connects.
    (rate, seconds) → [(when it was due, seconds from then until it was answered)]
    """
    with contextlib.suppress(EOFError):
        poster = Poster(port, body)
        while True:
            rate, seconds = pipe.recv()
            poster.fresh(tills)
            started = time.monotonic() + 0.01
            for number in range(round(rate * seconds)):
                due = started + number / rate
                while (left := due - time.monotonic()) > 0:
                    poster.turn(poster.epoll.poll(max(left - 0.001, 0)))
                poster.send(due)
            while poster.under_way:
                poster.turn(poster.epoll.poll(WAIT_SECONDS))
            pipe.send(sorted(poster.done))


class Poster:
    """Posts orders without waiting for the answers to earlier ones."""

    def __init__(self, port: int, body: Any, epoll: select.epoll | None = None):
        self.epoll = epoll or select.epoll()
        self.done: list[tuple[float, float]] = []
        """(when it was due, seconds until it was answered)"""
        self.under_way: dict[int, tuple[socket.socket, float, bytes]] = {}
        self._port = port
        self._body = body
        self._idle: list[socket.socket] = []

    def send(self, due: float) -> None:
        connection = self._idle.pop() if self._idle else self._connect()
        request = http_request("POST", "/api/order", self._body, Idempotency_Key=f"paced-{time.monotonic_ns()}")
        self.under_way[connection.fileno()] = (connection, due, b"")
        connection.send(request)

    def fresh(self, connected: int = 0) -> None:
        """Begin anew: a server closes what was idle for some seconds."""
        self.done.clear()
        for connection in self._idle:
            connection.close()
        self._idle = [self._connect() for _ in range(connected)]

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=WAIT_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.epoll.register(connection, select.EPOLLIN)
        return connection

    def turn(self, ready: list[tuple[int, int]]) -> None:
        for descriptor, _ in ready:
            if descriptor not in self.under_way:  # the server closed it, as it was idle for some seconds
                self._close(descriptor)
                continue
            connection, due, answer = self.under_way[descriptor]
            data = connection.recv(BUFFER_BYTES)
            assert data, "the server closed the connection"
            answer += data
            if whole(answer) is None:
                self.under_way[descriptor] = (connection, due, answer)
                continue
            assert answer.startswith(b"HTTP/1.1 201"), answer
            del self.under_way[descriptor]
            self.done.append((due, time.monotonic() - due))
            self._idle.append(connection)

    def _close(self, descriptor: int) -> None:
        for connection in self._idle:
            if connection.fileno() == descriptor:
                self._idle.remove(connection)
                connection.close()
                return


def post_to_displays(pipe: Connection, port: int, count: int, post_to: int | None = None) -> None:
    """A poster and displays on one clock. (rate, seconds) → for each order the seconds from POST to the last display.

    Orders go to the port of the displays, or to that of another process on the same database.
    The n-th order has reached a display that has counted n events: events come in the order of their commits.
    """
    gc.disable()
    group = Displays(port, count, "/ws/orders", greets=True)
    group.connect()
    poster = Poster(post_to or port, ORDER, group.epoll)
    reached: list[int] = []
    arrived: list[float] = []

    def on_event(display: Display, before: int) -> None:
        for number in range(before, display.counted):
            reached[number] += 1
            if reached[number] == count:
                arrived[number] = time.monotonic()

    group.on_event = on_event

    def turn(seconds: float) -> None:
        poster.turn([(descriptor, 0) for descriptor in group.turn(seconds)])

    with contextlib.suppress(EOFError):
        while True:
            rate, seconds = pipe.recv()
            poster.fresh()
            orders = round(rate * seconds)
            reached[:], arrived[:] = [0] * orders, [0.0] * orders
            for display in group.displays.values():
                display.counted = 0
            started = time.monotonic() + 0.01
            sent = []
            for number in range(orders):
                due = started + number / rate
                while (left := due - time.monotonic()) > 0:
                    turn(max(left - 0.001, 0))
                poster.send(due)
                sent.append(due)
            while (poster.under_way or not all(arrived)) and time.monotonic() - started < seconds + WAIT_SECONDS:
                turn(1)
            if group.lost or not all(arrived):
                pipe.send(ConnectionError(f"{group.lost} displays lost, {arrived.count(0.0)} orders not delivered"))
                return
            pipe.send([end - begin for begin, end in zip(sent, arrived, strict=True)])


def readers(pipe: Connection, ports: dict[str, int]) -> None:
    """What a restaurant's clients read, asked of several servers in turn.

    ("list", n)     a new order, then `GET /api/orders?limit=50` and, where it is served, `/api/stats`; the order is
                    cancelled, where that is possible, so that the board doesn't grow
    ("page", n)     50 orders of long ago, another place each time
    ("connect", n)  a display connects: from the first packet until `initial` is whole
    → {what: {side: [seconds]}}
    """
    last = {side: newest(Client(port)) for side, port in ports.items()}
    with contextlib.suppress(EOFError):
        while True:
            what, count = pipe.recv()
            clients = {side: Client(port) for side, port in ports.items()}
            taken: dict[str, dict[str, list[float]]] = {}

            for number in range(count):
                for side in sorted(ports, reverse=bool(number % 2)):
                    if what == "connect":
                        taken.setdefault(what, {}).setdefault(side, []).append(connect_once(ports[side]))
                    elif what == "page":
                        before = 100 + (number * 7919 + 13) % max(last[side] - 100, 1)
                        timed(
                            taken,
                            "page",
                            side,
                            clients[side],
                            http_request("GET", f"/api/orders?limit=50&before={before}"),
                        )
                    else:
                        _, body = clients[side].ask(http_request("POST", "/api/order", ORDER))
                        timed(taken, "list", side, clients[side], http_request("GET", "/api/orders?limit=50"))
                        timed(taken, "stats", side, clients[side], http_request("GET", "/api/stats"))
                        clients[side].ask(http_request("DELETE", f"/api/order/{json.loads(body)['id']}"))
            pipe.send(taken)


def timed(taken: dict[str, dict[str, list[float]]], what: str, side: str, client: Client, request: bytes) -> None:
    """Note how long an answer takes; nothing where the path isn't served."""
    started = time.perf_counter()
    status, _ = client.ask(request)
    seconds = time.perf_counter() - started
    if status == 200:
        taken.setdefault(what, {}).setdefault(side, []).append(seconds)


def newest(client: Client) -> int:
    """The id of the newest order."""
    number: int = json.loads(client.ask(http_request("GET", "/api/orders?limit=1"))[1])[0]["id"]
    return number


def connect_once(port: int) -> float:
    """Seconds from opening a connection until a display has its `initial`, whole."""
    group = Displays(port, 1, "/ws/orders", greets=True)
    seconds = group.connect()
    group.close()
    group.epoll.close()
    return seconds
