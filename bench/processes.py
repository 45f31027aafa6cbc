"""Several processes of Bistro92 on one database: what rows 9 and 10 run, and what scaleout/measure.py counts."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import generators
from bench.harness import BenchFailed, Generator, Server, cpu_seconds, load
from tests.engines import Engine, sql

NUMBERS: Final = itertools.count(1)


@dataclass(frozen=True)
class Processes:
    """Servers that are up, and the database that all of them serve."""

    servers: list[Server]
    url: str
    engine: Engine
    folder: Path

    def cpu(self) -> float:
        return sum(server.cpu() for server in self.servers)

    def database_cpu(self) -> float | None:
        """PostgreSQL's part; None on SQLite, which has none of its own, and where PostgreSQL isn't on this machine."""
        if self.engine.name == "sqlite":
            return None
        with contextlib.suppress(BenchFailed):
            return backends(self.url)
        return None

    def check(self, taken: int) -> None:
        """Every process shows each order that was answered, once, and their events are numbered without a gap."""
        shown = [server.stored() for server in self.servers]
        with self.engine.session(self.folder) as fetch:
            [(events, first, last)] = fetch("SELECT count(*), min(seq), max(seq) FROM events")
        if shown != [taken] * len(shown) or (events, first, last) != (taken, 1, taken):
            raise BenchFailed(
                f"{taken} orders were answered, {shown} are shown, and {events} events are numbered {first} to {last}"
            )


@contextlib.contextmanager
def processes(engine: Engine, count: int, parent: Path) -> Iterator[Processes]:
    """So many processes on a fresh database, which is dropped when they have stopped."""
    folder = parent / f"{engine.name}-{next(NUMBERS)}"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(engine.drop, folder)
        url = engine.url(folder)
        servers = [stack.enter_context(Server("bistro92", folder, database=url)) for _ in range(count)]
        yield Processes(servers, url, engine, folder)


def backends(url: str) -> float:
    """CPU seconds of the database's backends, but for the one that is asked. They must be on this machine."""
    pids = sql(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()", url=url
    )
    try:
        if any(Path(f"/proc/{pid}/comm").read_text() != "postgres\n" for (pid,) in pids):
            raise BenchFailed("the backends' process ids are those of other programs: is PostgreSQL on this machine?")
        return sum(cpu_seconds(pid) for (pid,) in pids)
    except OSError as error:
        raise BenchFailed("a backend has no process here: is PostgreSQL on this machine?") from error


def follower(first: Server, second: Server, displays: int, seconds: float) -> tuple[float, float]:
    """CPU milliseconds for an order: of the process that takes it; of one that takes none, but tells its displays."""
    with Generator(generators.displays, second.port, max(displays, 1), "/ws/orders", True) as group:
        if displays:
            group.ask("connect")
        took, followed = first.cpu(), second.cpu()
        posted = load(first, "/api/order", 10, seconds)
        if displays:
            group.ask("wait", posted.answers)
        return 1e3 * (first.cpu() - took) / posted.answers, 1e3 * (second.cpu() - followed) / posted.answers
