"""The databases that the suites run over: `pytest --engine sqlite` (the default), `pytest --engine postgresql`.

PostgreSQL is the server at TEST_POSTGRESQL_URL, whose user may create databases; every test server gets one of its own.
`python -m tests.engines` says whether it answers.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import sqlite3
import sys
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

ADMIN_URL: Final = os.environ.get("TEST_POSTGRESQL_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
ANSWER_SECONDS: Final = 20.0

Fetch = Callable[..., list[Any]]


class Engine(Protocol):
    """Makes throw-away databases. The same folder is the same database."""

    name: str

    def url(self, folder: Path) -> str: ...

    def drop(self, folder: Path) -> None: ...

    def session(self, folder: Path) -> AbstractContextManager[Fetch]:
        """Run statements of its own, with `?` for values, each a transaction."""

    def held(self, folder: Path) -> AbstractContextManager[Callable[[], None]]:
        """While this lasts nobody else can commit; what it gives lets go early."""


class Sqlite:
    """A file in the folder, which is the test's to remove."""

    name = "sqlite"

    def url(self, folder: Path) -> str:
        return f"sqlite:///{folder / 'orders.db'}"

    def drop(self, folder: Path) -> None:
        pass

    @contextmanager
    def session(self, folder: Path) -> Iterator[Fetch]:
        with closing(sqlite3.connect(folder / "orders.db", isolation_level=None)) as database:
            yield lambda statement, *values: database.execute(statement, values).fetchall()

    @contextmanager
    def held(self, folder: Path) -> Iterator[Callable[[], None]]:
        with closing(sqlite3.connect(folder / "orders.db", isolation_level=None)) as foreign:
            foreign.execute("BEGIN IMMEDIATE")
            yield foreign.rollback


class Postgresql:
    """A database for each folder."""

    name = "postgresql"

    def __init__(self) -> None:
        self._made: dict[Path, str] = {}

    def url(self, folder: Path) -> str:
        if folder not in self._made:
            self._made[folder] = f"bistro92_test_{uuid.uuid4().hex[:12]}"
            sql(f"CREATE DATABASE {self._made[folder]}")
        return urlsplit(ADMIN_URL)._replace(path=f"/{self._made[folder]}").geturl()

    def drop(self, folder: Path) -> None:
        if name := self._made.pop(folder, None):
            sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @contextmanager
    def session(self, folder: Path) -> Iterator[Fetch]:
        with closing(Session(self.url(folder))) as session:
            yield session.fetch

    @contextmanager
    def held(self, folder: Path) -> Iterator[Callable[[], None]]:
        with closing(Session(self.url(folder))) as foreign:
            foreign.fetch("BEGIN")
            foreign.fetch("SELECT 1 FROM ledger FOR UPDATE")

            def let_go() -> None:
                foreign.fetch("ROLLBACK")

            yield let_go

    def drop_all(self) -> None:
        for folder in [*self._made]:
            self.drop(folder)


def sql(statement: str, *values: Any, url: str = ADMIN_URL) -> list[Any]:
    """Run one statement on a connection of its own. May be called where a loop is running."""
    import asyncpg  # type: ignore[import-untyped]

    async def run() -> list[Any]:
        async with asyncio.timeout(ANSWER_SECONDS):
            connection = await asyncpg.connect(url, timeout=ANSWER_SECONDS)
            try:
                return [tuple(row) for row in await connection.fetch(statement, *values)]
            finally:
                await connection.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()


class Session:
    """A session of PostgreSQL that lasts, for tests that have no loop: its loop is in a thread of its own."""

    def __init__(self, url: str) -> None:
        import asyncpg

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._connection = self._wait(asyncpg.connect(url, timeout=ANSWER_SECONDS))

    def _wait(self, answer: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(answer, self._loop).result(ANSWER_SECONDS)

    def fetch(self, statement: str, *values: Any) -> list[Any]:
        numbers = itertools.count(1)
        numbered = re.sub(r"\?", lambda _: f"${next(numbers)}", statement)
        return [tuple(row) for row in self._wait(self._connection.fetch(numbered, *values))]

    def close(self) -> None:
        """Hang up, whatever is under way: an open transaction is rolled back."""
        self._loop.call_soon_threadsafe(self._connection.terminate)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_SECONDS)
        self._loop.close()


def unreachable() -> str:
    """Why the suites can't run over PostgreSQL, in a sentence; empty where they can."""
    try:
        sql("SELECT 1")
    except ImportError:
        return "asyncpg is not installed: pip install -r requirements-dev.txt."
    except Exception as error:
        where = urlsplit(ADMIN_URL).netloc.rpartition("@")[2]
        return (
            f"no PostgreSQL answers at {where} ({error}): install it (Debian: postgresql), or name one in "
            "TEST_POSTGRESQL_URL whose user may create databases."
        )
    return ""


if __name__ == "__main__":
    if why := unreachable():
        sys.exit(f"Tests over PostgreSQL: 1 skipped, because {why}")
