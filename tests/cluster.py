"""Several server processes on one PostgreSQL database, and what may happen to it under them.

    Cluster     the servers, and the database past them: statements, hung-up connections, a held ledger
    Till        a POS that posts with keys, at whichever process answers, until every order is answered
    Follower    a display that holds what it was told, and resumes at another process when its own goes away
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

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


class Till(threading.Thread):
    """Posts orders one after the other; each with its key, at one server after the other, until it is answered."""

    def __init__(self, servers: Sequence[Server], name: str) -> None:
        super().__init__(daemon=True)
        self.answered: dict[str, Json] = {}  # key → the order that came back with 201
        self.refused = 0  # answers 503
        self.stopping = False
        self._servers, self._prefix = itertools.cycle(servers), name
        self._fault: BaseException | None = None

    def run(self) -> None:
        try:
            client = next(self._servers).client()
            for number in itertools.count():
                if self.stopping:
                    return
                key, end = f"{self._prefix}-{number}", time.monotonic() + DEADLINE
                while key not in self.answered:
                    assert time.monotonic() < end, f"{key} is not answered"
                    with suppress(OSError):
                        reply = client.post(an_order(key), idempotency_key=key)
                        assert reply.status in {HTTPStatus.CREATED, HTTPStatus.SERVICE_UNAVAILABLE}, reply.body
                        if reply.status == HTTPStatus.CREATED:
                            self.answered[key] = reply.json
                            break
                        self.refused += 1
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
