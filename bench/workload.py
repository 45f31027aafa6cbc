"""The fixed workload whose instructions are counted: `python -m bench.workload [LIBRARY]`, under callgrind.

The whole server side of a request runs in this process (uvicorn's protocols, the app, SQLite on a file), with the wires
cut off: a transport counts what is written to it. So nothing depends on sockets, on a generator, or on who gets the
processor. Posts come in waves that are one commit each, and what real time would trigger is silent.

Each line of the output is a name and how many units of it were done; callgrind's dumps carry the same names.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from bench.generators import NEEDLE, ORDER, http_request

CLIENTS: Final = 50
WAVES: Final = 8
SINGLE: Final = 50
SCREENS: Final = 200
ARRIVALS: Final = 50
OPEN: Final = 300
SILENT_SECONDS: Final = 3600.0
HANDSHAKE: Final = http_request(
    "GET", "/ws/orders", Upgrade="websocket", Connection="Upgrade",
    Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==", Sec_WebSocket_Version="13",
)  # fmt: skip


class Count:
    """Waits for a number of things."""

    def __init__(self) -> None:
        self.number = 0
        self._goal = 0
        self._reached = asyncio.Event()

    def add(self, more: int) -> None:
        self.number += more
        if self.number >= self._goal:
            self._reached.set()

    async def until(self, goal: int) -> None:
        self._goal = goal
        self._reached.clear()
        if self.number < goal:
            await self._reached.wait()


class Wire(asyncio.Transport):
    """A client's end: one connection, which nobody but this process is at."""

    def __init__(self, server: Server):
        super().__init__({"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 8000)})
        self.server = server
        self.answer = b""
        """The start of the last answer."""
        self.protocol: Any = Protocol(server.config, server.state, {})
        self.protocol.wire = self
        self.protocol.connection_made(self)

    def send(self, request: bytes) -> None:
        self.protocol.data_received(request)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        start = data[:20]
        if start.startswith(b"HTTP/1.1"):
            self.answer = data
        elif b'"type":"initial"' in data[:40]:
            self.server.greeted.add(1)
        elif events := data.count(NEEDLE):
            self.server.events.add(events)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


class Protocol(HttpToolsProtocol):
    """uvicorn's, that says when an answer is whole."""

    wire: Wire

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.wire.server.answered.add(1)


class Server:
    """An app, served without a socket."""

    def __init__(self, app: Any):
        self.config = Config(app, access_log=False, log_level="warning", lifespan="off", ws_ping_interval=None)
        self.config.load()
        self.state = ServerState()
        self.answered, self.greeted, self.events = Count(), Count(), Count()
        self.wires = [Wire(self) for _ in range(CLIENTS)]
        self.keys = 0

    def orders(self, count: int, **headers: str) -> list[bytes]:
        """POSTs, each with a key of its own."""
        first, self.keys = self.keys, self.keys + count
        return [
            http_request("POST", "/api/order", ORDER, Idempotency_Key=f"count-{number:08}", **headers)
            for number in range(first, first + count)
        ]

    async def ask(self, requests: list[bytes], status: int, at_once: int) -> int:
        """So many requests at a time, each on a wire of its own, until all are answered."""
        for start in range(0, len(requests), at_once):
            wires, wave = self.wires[:at_once], requests[start : start + at_once]
            goal = self.answered.number + at_once
            for wire, request in zip(wires, wave, strict=True):
                wire.send(request)
            await self.answered.until(goal)
            for wire in wires:
                assert wire.answer.startswith(b"HTTP/1.1 %d" % status), wire.answer
        return len(requests)

    async def connect(self, wires: list[Wire]) -> int:
        """Displays connect, all at once, until each has its `initial`."""
        goal = self.greeted.number + len(wires)
        for wire in wires:
            wire.send(HANDSHAKE)
        await self.greeted.until(goal)
        return len(wires)

    async def deliver(self, orders: list[bytes], screens: int) -> int:
        """One order at a time, until each display has it."""
        for order in orders:
            goal = self.events.number + screens
            await self.ask([order], 201, 1)
            await self.events.until(goal)
        return len(orders) * screens


class Marks:
    """Says to callgrind where counting begins and ends."""

    def __init__(self, library: str | None):
        self._library = ctypes.CDLL(library) if library else None

    async def count(self, name: str, work: Callable[[], Awaitable[int]]) -> None:
        gc.collect()
        for _ in range(20):  # what is left over from before has its turn
            await asyncio.sleep(0)
        if self._library:
            self._library.begin()
        units = await work()
        if self._library:
            self._library.end(name.encode())
        print(units, name, flush=True)


async def silence() -> None:
    await asyncio.sleep(SILENT_SECONDS)


async def work(folder: Path, marks: Marks) -> None:
    os.environ["BISTRO92_DATABASE_URL"] = f"sqlite:///{folder / 'instructions.db'}"
    import app as bistro92
    from bench import echo

    for period in ("FIRE_PERIOD", "REVOKE_PERIOD", "HOUSEKEEPING_PERIOD", "HEARTBEAT_SECONDS"):
        setattr(bistro92, period, SILENT_SECONDS)
    bistro92.cut_off_slow_peers = silence

    peer, many = Server(echo.app), CLIENTS * WAVES
    async with bistro92.lifespan(bistro92.app):
        server = Server(bistro92.app)
        await peer.ask(peer.orders(100), 201, CLIENTS)
        await server.ask(server.orders(OPEN), 201, CLIENTS)

        await marks.count("echo", partial(peer.ask, peer.orders(many), 201, CLIENTS))
        await marks.count("order, 50 in a commit", partial(server.ask, server.orders(many), 201, CLIENTS))
        await marks.count("order, one in a commit", partial(server.ask, server.orders(SINGLE), 201, 1))

        page = http_request("GET", "/api/orders?limit=50")
        await server.ask([page], 200, 1)
        etag = server.wires[0].answer.partition(b"etag: ")[2].partition(b"\r\n")[0].decode()
        poll = http_request("GET", "/api/orders?limit=50", If_None_Match=etag)
        older = [http_request("GET", f"/api/orders?limit=50&before={60 + place}") for place in range(SINGLE)]
        await marks.count("poll answered 304", partial(server.ask, [poll] * many, 304, CLIENTS))
        await marks.count("list of 50, unchanged", partial(server.ask, [page] * many, 200, CLIENTS))
        await marks.count("list of 50, read anew", partial(server.ask, older, 200, 1))

        await server.connect([Wire(server) for _ in range(5)])
        arriving = [Wire(server) for _ in range(ARRIVALS)]
        await marks.count("a display connects", partial(server.connect, arriving))
        await server.connect([Wire(server) for _ in range(SCREENS - ARRIVALS - 5)])
        await server.deliver(server.orders(2), SCREENS)
        await marks.count("delivery, its order included", partial(server.deliver, server.orders(10), SCREENS))

        await bistro92.accounts.register("127.0.0.1", bistro92.LOCAL, "chef", "correct horse", "manager")
        _, secret = await bistro92.accounts.issue("till", "pos", None)
        bearer = {"Authorization": f"Bearer {secret}"}
        await server.ask(server.orders(CLIENTS, **bearer), 201, CLIENTS)
        protected = partial(server.ask, server.orders(many, **bearer), 201, CLIENTS)
        await marks.count("order with a token, 50 in a commit", protected)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="bistro92-instructions-") as temporary:
        uvloop.run(work(Path(temporary), Marks(sys.argv[1] if len(sys.argv) > 1 else None)))
