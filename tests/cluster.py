"""Several server processes on one PostgreSQL database, and what may happen to it under them.

Cluster     the servers, and the database past them: statements, hung-up connections, a held ledger
Proxy       a wire to the database that can be cut or go dead, also just where a commit is on its way
Till        a POS that posts with keys, at whichever process answers, until every order is answered
Follower    a display that holds what it was told, and resumes at another process when its own goes away
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests import engines
from tests.harness import DEADLINE, Display, Dropped, Json, Server, an_order, events, until

QUIET = ("--log-level", "warning", "--no-access-log")


class Cluster:
    """Servers on one database. `servers[0]` and so on; what they don't share is a port and a folder for the log."""

    def __init__(self, folder: Path, url: str, size: int = 2, **settings: object) -> None:
        self.url = url
        self.servers: list[Server] = []
        for number in range(size):
            own = folder / f"server-{number}"
            own.mkdir()
            self.servers.append(Server(own, *QUIET, database_url=url, **settings))

    def start(self) -> Cluster:
        """Start all at the same time, as a host does."""
        for server in self.servers:
            server.launch()
        for server in self.servers:
            server.wait_until_it_serves()
        return self

    def end(self) -> None:
        for server in self.servers:
            server.end()

    @property
    def log(self) -> str:
        return "\n".join(server.log for server in self.servers)

    def sql(self, statement: str, *values: Any) -> list[Any]:
        """One statement, past the servers; with `$1` for values."""
        return engines.sql(statement, *values, url=self.url)

    def hang_up(self, which: str = "true") -> int:
        """Terminate the servers' connections that a condition on pg_stat_activity holds for; how many there were."""
        others = "datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        return len(self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others} AND ({which})"))

    @contextmanager
    def held(self) -> Iterator[None]:
        """A transaction that is idle and holds the ledger's row, as a stuck process would."""
        with closing(engines.Session(self.url)) as foreign:
            foreign.fetch("BEGIN")
            foreign.fetch("SELECT 1 FROM ledger FOR UPDATE")
            yield

    def settled(self) -> tuple[list[Json], list[Json]]:
        """(orders, oldest first; events), once all processes show the same log; fails where its `seq` has a gap."""
        [(seq,)] = self.sql("SELECT seq FROM ledger")

        def heads() -> set[int]:
            found = set()
            for server in self.servers:
                with closing(server.client()) as client:
                    found.add(int(client.cursor().rpartition("-")[2]))
            return found

        until(lambda: heads() == {seq}, "every process has heard of every event")
        [(epoch,)] = self.sql("SELECT epoch FROM ledger")
        seen = []
        for server in self.servers:
            with closing(server.client()) as client:
                seen.append((client.orders()[::-1], client.history(f"{epoch}-0")))
        assert all(each == seen[0] for each in seen)
        orders, log = seen[0]
        assert [event["cursor"] for event in log] == [f"{epoch}-{number}" for number in range(1, seq + 1)]
        return orders, log


class Proxy:
    """A wire between servers and the database: `url` goes through it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._upstream = (parts.hostname or "", parts.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}").geturl()
        self.dead = False  # nothing comes through, and no connection is closed: half open
        self.lost = 0  # connections that were cut at a COMMIT
        self._cut_at_commit: list[tuple[bool, bool]] = []  # for each of the next: whether it arrives, and all dies
        self._wires: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_at_commit(self, arrives: bool, dies: bool = False) -> None:
        """Cut the connection of the next COMMIT, after it reached the database or before; then all may be dead."""
        self._cut_at_commit.append((arrives, dies))

    def cut(self) -> None:
        """Cut every connection there is."""
        for wire in self._wires:
            self._hang_up(wire)
        self._wires.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    @staticmethod
    def _hang_up(wire: tuple[socket.socket, socket.socket]) -> None:
        for end in wire:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                wire = (client, socket.create_connection(self._upstream, timeout=DEADLINE))
                for end in wire:
                    end.settimeout(None)
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._wires.append(wire)
                for source, sink in (wire, wire[::-1]):
                    threading.Thread(target=self._pump, args=(wire, source, sink), daemon=True).start()

    def _pump(self, wire: tuple[socket.socket, socket.socket], source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if self.dead:
                    continue
                if source is wire[0] and data.startswith(b"Q") and data[5:] == b"COMMIT\0" and self._cut_at_commit:
                    arrives, self.dead = self._cut_at_commit.pop(0)
                    if arrives:
                        wire[0].shutdown(socket.SHUT_RDWR)  # its answer finds nobody
                        sink.sendall(data)
                        sink.recv(1)
                    self.lost += 1
                    break
                sink.sendall(data)
        self._hang_up(wire)


class Till(threading.Thread):
    """Posts orders one after the other; each with its key, at one server after the other, until it is answered.

    Where an answer says that nothing was stored, it takes that at its word and comes again with another key.
    """

    def __init__(self, servers: Sequence[Server], name: str) -> None:
        super().__init__(daemon=True)
        self.answered: dict[str, Json] = {}  # name of its line → the order that came back with 201
        self.refused = 0  # answers 503 that say that nothing was stored
        self.stopping = False
        self._servers, self._prefix = itertools.cycle(servers), name
        self._fault: BaseException | None = None

    def run(self) -> None:
        try:
            client = next(self._servers).client()
            for number in itertools.count():
                if self.stopping:
                    return
                name, end = f"{self._prefix}-{number}", time.monotonic() + DEADLINE
                while name not in self.answered:
                    assert time.monotonic() < end, f"{name} is not answered"
                    with suppress(OSError):
                        reply = client.post(an_order(name), idempotency_key=f"{name}.{self.refused}")
                        assert reply.status in {HTTPStatus.CREATED, HTTPStatus.SERVICE_UNAVAILABLE}, reply.body
                        if reply.status == HTTPStatus.CREATED:
                            self.answered[name] = reply.json
                            break
                        self.refused += "Nothing of this request was stored" in reply.json["detail"]
                    client.close()
                    client = next(self._servers).client()
        except BaseException as error:
            self._fault = error

    def finish(self) -> None:
        self.stopping = True
        self.join(2 * DEADLINE)
        assert not self.is_alive()
        if self._fault:
            raise self._fault


@contextmanager
def tills(servers: Sequence[Server], count: int = 4) -> Iterator[list[Till]]:
    """Some that post at the same time, each beginning at another server; they have stopped at the end."""
    posting = [
        Till([*servers[number % len(servers) :], *servers[: number % len(servers)]], f"till-{number}")
        for number in range(count)
    ]
    for till in posting:
        till.start()
    try:
        yield posting
    finally:
        for till in posting:
            till.stopping = True
    for till in posting:
        till.finish()


class Follower(threading.Thread):
    """A display that never gives up: it resumes with its cursor, at the next server if its own has gone away."""

    def __init__(self, servers: Sequence[Server]) -> None:
        super().__init__(daemon=True)
        self.told: list[Json] = []  # every event, in the order in which it came
        self.cursor = ""
        self.resumed = 0
        self._servers = itertools.cycle(servers)
        self._stopping = threading.Event()
        self._fault: BaseException | None = None
        self._display = self._connect()

    def _connect(self) -> Display:
        display = Display(next(self._servers).port, after=self.cursor or None)
        first = display.message()
        if self.cursor:
            assert (first["type"], first["cursor"]) == ("resumed", self.cursor)
            self.resumed += 1
        else:
            assert (first["type"], first["orders"]) == ("initial", [])
        self.cursor = first["cursor"]
        return display

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                with suppress(Dropped, OSError), closing(self._display):
                    for event in events(self._display):
                        self.told.append(event)
                        self.cursor = event["cursor"]
                while not self._stopping.is_set():
                    with suppress(OSError, Dropped):
                        self._display = self._connect()
                        break
        except BaseException as error:
            self._fault = error

    def finish(self, cursor: str) -> list[Json]:
        """What it was told, once it has been told the event of a cursor."""
        until(lambda: self._fault or self.cursor == cursor, f"the display has caught up with {cursor}")
        self._stopping.set()
        self._display.close()
        self.join(DEADLINE)
        if self._fault:
            raise self._fault
        return self.told
