"""Several server processes on one PostgreSQL database, and what may happen to it under them.

Cluster     the servers, and the database past them: statements, hung-up connections, a held ledger
Postgres    a PostgreSQL of a test's own, to stop and start
Proxy       a wire to the database that can be cut, go dead or go deaf, also just where a commit is on its way
Till        a POS that posts with keys, at whichever process answers, until every order is answered
Follower    a display that holds what it was told, and resumes at another process when its own goes away
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import WebSocketException

from tests import engines
from tests.harness import (
    DEADLINE,
    Client,
    Display,
    Dropped,
    EventStream,
    Json,
    Server,
    an_order,
    at_work,
    events,
    free_port,
    until,
)


class Place(Protocol):
    """What is reached at a port: a server, or a proxy in front of some."""

    port: int

    def client(self) -> Client: ...


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


class Postgres:
    """PostgreSQL with nothing in it, on a port of its own. It refuses to be run by root, who runs it as `postgres`."""

    def __init__(self) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        if not programs:
            pytest.skip("needs PostgreSQL's server programs (apt install postgresql)")
        self._programs = programs[-1]
        self._folder = Path(tempfile.mkdtemp(prefix="bistro92-postgres-"))  # tmp_path is closed to other users
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres")
        self._run("initdb", "--no-sync", "--username=postgres", "--auth=trust")
        self._port = free_port()
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), "-D", str(self._folder / "data"), *arguments]
        as_postgres = ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command
        done = subprocess.run(as_postgres, cwd="/", capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self._port} -k {self._folder} -c max_connections=200"
        self._run("pg_ctl", "-w", "-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """`fast` hangs up on everybody and ends in order, `immediate` is a crash."""
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    def database(self) -> str:
        """The URL of a new database."""
        url, name = f"postgresql://postgres@127.0.0.1:{self._port}/", f"bistro92_{uuid.uuid4().hex[:12]}"
        engines.sql(f"CREATE DATABASE {name}", url=f"{url}postgres")
        return url + name

    @staticmethod
    def drop(url: str) -> None:
        """After a crash every file that is there is synced; so nothing is left."""
        parts = urlsplit(url)
        name, elsewhere = parts.path[1:], parts._replace(path="/postgres").geturl()
        engines.sql(f"DROP DATABASE {name} WITH (FORCE)", url=elsewhere)

    def end(self) -> None:
        with suppress(AssertionError):  # it may have been stopped already
            self.stop("immediate")
        shutil.rmtree(self._folder)


class Hold:
    """Keeps the first thing on a wire that says something from going on until it is let go."""

    def __init__(self, words: bytes) -> None:
        self.met, self._let_go, self._words = threading.Event(), threading.Event(), words
        self._free = threading.Lock()

    def meet(self, data: bytes) -> None:
        if self._words in data and self._free.acquire(blocking=False):
            self.met.set()
            self._let_go.wait(DEADLINE)

    def let_go(self) -> None:
        self._let_go.set()


class Proxy:
    """A wire between servers and the database: `url` goes through it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._upstream = (parts.hostname or "", parts.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}").geturl()
        self.dead = False  # nothing comes through, and no connection is closed: half open
        self.deaf = False  # nothing comes back to who listens: notifications are lost, and its connection is half open
        self.hold: Hold | None = None  # what waits on its way to the database
        self.refusing = False  # no new connection is made
        self.lost = 0  # connections that were cut at a COMMIT
        self.at_commit: Callable[[], None] | None = None  # is done at a cut, while the COMMIT is on its way
        self._cut_at_commit: list[tuple[bool, bool]] = []  # for each of the next: whether it arrives, and all dies
        self._wires: list[tuple[socket.socket, socket.socket]] = []
        self._listening: set[socket.socket] = set()  # the database's ends of the wires that said LISTEN
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_at_commit(self, arrives: bool, dies: bool = False) -> None:
        """Cut the connection of the next COMMIT, after it reached the database or before; then all may be dead."""
        self._cut_at_commit.append((arrives, dies))

    def cut(self) -> None:
        """Cut every connection there is."""
        while self._wires:
            self._hang_up(self._wires.pop())

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
                if self.refusing:
                    client.close()
                    continue
                try:
                    wire = (client, socket.create_connection(self._upstream, timeout=DEADLINE))
                except OSError:  # there is no database now
                    client.close()
                    continue
                for end in wire:
                    end.settimeout(None)
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._wires.append(wire)
                for source, sink in (wire, wire[::-1]):
                    threading.Thread(target=self._pump, args=(wire, source, sink), daemon=True).start()

    def _pump(self, wire: tuple[socket.socket, socket.socket], source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if source is wire[0] and b"LISTEN " in data:
                    self._listening.add(wire[1])
                if self.hold and source is wire[0]:
                    self.hold.meet(data)
                if self.dead or (self.deaf and source in self._listening):
                    continue
                if source is wire[0] and data.startswith(b"Q") and data[5:] == b"COMMIT\0" and self._cut_at_commit:
                    arrives, self.dead = self._cut_at_commit.pop(0)
                    if self.at_commit:
                        self.at_commit()
                    if arrives:
                        with suppress(OSError):
                            wire[0].shutdown(socket.SHUT_RDWR)  # its answer finds nobody
                        sink.sendall(data)
                        sink.recv(1)
                    self.lost += 1
                    break
                sink.sendall(data)
        self._hang_up(wire)
        with suppress(ValueError):
            self._wires.remove(wire)


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


def tills(servers: Sequence[Server], count: int = 4) -> AbstractContextManager[list[Till]]:
    """Some that post at the same time, each beginning at another server; they have stopped at the end."""
    turns = [[*servers[at:], *servers[:at]] for at in (number % len(servers) for number in range(count))]
    return at_work([Till(turn, f"till-{number}") for number, turn in enumerate(turns)])


class Follower(threading.Thread):
    """A display that never gives up: it resumes with its cursor, at the next server if its own has gone away."""

    def __init__(self, servers: Sequence[Place], screen: type[Display | EventStream] = Display) -> None:
        super().__init__(daemon=True)
        self.told: list[Json] = []  # every event, in the order in which it came
        self.cursor = ""
        self.resumed = 0
        self._servers, self._screen = itertools.cycle(servers), screen
        self._stopping = threading.Event()
        self._fault: BaseException | None = None
        self._display = self._connect()

    def _connect(self) -> Display | EventStream:
        display = self._screen(next(self._servers).port, after=self.cursor or None)
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
                with suppress(Dropped, OSError, HTTPException), closing(self._display):
                    for event in events(self._display):
                        self.told.append(event)
                        self.cursor = event["cursor"]
                while not self._stopping.is_set():
                    with suppress(OSError, Dropped, HTTPException, WebSocketException):
                        self._display = self._connect()
                        break
        except BaseException as error:
            self._fault = error

    def reach(self, cursor: str) -> list[Json]:
        """What it was told, once it has been told the event of a cursor."""
        until(lambda: self._fault or self.cursor == cursor, f"the display has caught up with {cursor}")
        if self._fault:
            raise self._fault
        return self.told

    def stop(self) -> None:
        """It doesn't come again when its connection ends."""
        self._stopping.set()

    def finish(self, cursor: str) -> list[Json]:
        """What it was told up to a cursor; then it leaves."""
        self.reach(cursor)
        self.stop()
        self._display.close()
        self.join(DEADLINE)
        if self._fault:
            raise self._fault
        return self.told
