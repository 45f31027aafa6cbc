"""What differs from SQLite, as a mixin for app.Storage: connections, transactions, the tail of the log.

Shared.open     connect, refuse what can't be kept a promise on, migrate
Shared.guard    one transaction around a group commit; its outcome is found out, whatever becomes of the connection
Shared.follow   the log as other processes write it: notifications wake, a poll finds what they missed
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import asyncpg  # type: ignore[import-untyped]
from databases import Database

from scaleout.schema import CHANNEL, IN_LOG, MIGRATIONS, NEWS, OUTCOME, RECALL

logger = logging.getLogger("bistro92")

POLL_SECONDS: Final = 0.25  # between two looks into the log where no notification comes
REFRESH_SECONDS: Final = 0.5  # between two readings of who may come in
CONNECT_SECONDS: Final = 5.0
OUTCOME_SECONDS: Final = 5.0  # for finding out whether a commit whose connection was lost is stored
CHECK_SECONDS: Final = 5.0  # between two signs of life that the listener's connection has to give
MIGRATE_SECONDS: Final = 60.0  # for another process that migrates
LONGEST_PAUSE: Final = 5.0  # between two attempts to connect the listener
NEWS_ROWS: Final = 500  # read of the log at a time
OLDEST_SERVER: Final = 130_000
MIGRATION_LOCK: Final = 92_1120  # any number that nobody else locks

SESSION: Final = {
    "statement_timeout": "8s",
    "lock_timeout": "4s",  # for the ledger's row: another process holds it while it commits
    "idle_in_transaction_session_timeout": "8s",  # a process that is stuck in a transaction doesn't hold up the others
}
"""Bounds that the database itself keeps; the URL may set others."""

TUNED: Final = {"jit": "off", "application_name": "bistro92"}
OWN: Final = {"min_size": 1, "max_size": 8, "command_timeout": 10}
"""What the URL may say to us and not to the driver: the pool's bounds, and seconds for an answer from the database."""

FAILURES: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
BUGS: Final = ("0A", "21", "22", "23", "42")
"""Classes of SQLSTATE that are ours, not the database's: violated constraints, wrong statements, wrong values."""

NOTHING_STORED: Final = "The database cannot take this now. Nothing of this request was stored; try again."
NOT_KNOWN: Final = (
    "The connection to the database was lost while it committed: this may be stored or not. Try again; "
    "with the same Idempotency-Key that is safe."
)


POOLER: Final = (
    "A pooler such as PgBouncer stands in between. Name the database's own address besides, percent-encoded, for "
    "notifications: ...&listen_url=postgresql%3A%2F%2FHOST%2FNAME"
)
LOST: Final = (
    OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError, asyncpg.CannotConnectNowError, asyncpg.IdleInTransactionSessionTimeoutError,
)  # fmt: skip
"""Failures of the connection, or of the server behind it, not of the statement."""


async def keep_as_it_is(connection: Any) -> None:
    """What is done to a connection that goes back to its pool: nothing is kept in a session, so nothing is undone."""


def cut(connection: Any) -> None:
    """Give a connection up without a word to the database; it may be gone already."""
    with contextlib.suppress(asyncpg.InterfaceError):
        connection.terminate()


class Feed(Protocol):
    """What is known here of the log."""

    epoch: str
    head: int


class Address(NamedTuple):
    """What a URL says."""

    dsn: str  # what is the driver's to read
    listen_dsn: str  # where LISTEN goes; the same unless a pooler stands in between
    pooled: bool  # a pooler hands out another session for every transaction
    options: dict[str, int]  # OWN
    session: dict[str, str]  # SESSION

    @classmethod
    def of(cls, url: str) -> Address:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        listen = query.pop("listen_url", "")
        options = {name: int(query.pop(name, default)) for name, default in OWN.items()}
        session = {name: query.pop(name, default) for name, default in SESSION.items()}
        dsn = urlunsplit(parts._replace(query=urlencode(query, quote_via=quote)))
        return cls(dsn, listen or dsn, bool(listen), options, session)


@lru_cache(maxsize=256)
def translated(statement: str) -> tuple[str, tuple[str, ...]]:
    """A statement of app.py as PostgreSQL has it, and the names of its values in the order of their numbers.

    Hints are dropped: `INDEXED BY`, the unary plus that keeps SQLite off an index, the order of a CROSS JOIN.
    """
    for hint, plain in ((r" INDEXED BY \w+", ""), (r"\+(?=\w+ [=<>])", ""), (r"CROSS (?=JOIN \w+ ON)", "")):
        statement = re.sub(hint, plain, statement)
    names: list[str] = []

    def number(value: re.Match[str]) -> str:
        name = value[1] or f"?{len(names)}"
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    return re.sub(r"(?<!:):([a-z]\w*)|\?", number, statement), tuple(names)


class Shared:
    """Orders, log and keys in PostgreSQL; comes before app.Storage, whose verbs it carries out in its own way."""

    shared = True
    problem: type[Any]  # app.Problem
    refused: type[Exception]  # app.StartRefused
    unavailable: Callable[..., Exception]  # app.unavailable: what a failure of the driver is to those who asked

    def __init__(self, url: str) -> None:
        self._place = re.sub(r"//[^@/]*@|\?.*", lambda found: "//" * (found[0][0] == "/"), url)  # without secrets
        try:
            self._address = Address.of(url)
        except ValueError as error:
            raise self.refused(f"{self._place}: a number in the URL is none ({error}).") from error
        self._news = asyncio.Event()  # the log may have grown
        self._transaction: dict[str, Any] = {}  # what to ask for the outcome of the open one by; empty: not known
        self._has_events = False  # whether it saved some

        options = self._address.options
        self._seconds = options["command_timeout"]
        common: dict[str, Any] = dict.fromkeys(("host", "port", "user", "password", "database"))
        common |= {"dsn": self._address.dsn, "timeout": min(CONNECT_SECONDS, self._seconds), "reset": keep_as_it_is}
        if self._address.pooled:  # no session is ours: nothing may be kept in one
            common |= {"statement_cache_size": 0}
            begin = "".join(f" SET LOCAL {name} = '{value}';" for name, value in self._address.session.items())
        else:
            given = dict(parse_qsl(urlsplit(self._address.dsn).query))
            tuned = {name: value for name, value in TUNED.items() if name not in given}
            common |= {"server_settings": {**tuned, **self._address.session}}
            begin = ""
        self._begin = f"BEGIN ISOLATION LEVEL READ COMMITTED;{begin}"
        self._writer_pool = Database("postgresql://", min_size=1, max_size=1, **common)
        self._reader_pool = Database(
            "postgresql://", min_size=options["min_size"], max_size=options["max_size"], **common
        )

    # -- opening ------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, check, migrate. Raises the refusal of a start with a sentence where that can't be."""
        try:
            await self._writer_pool.connect()
            async with self._connection(self._writer_pool) as connection:
                await self._check(connection)
                await self._upgrade(connection)
            await self._reader_pool.connect()
        except (*FAILURES, ValueError) as error:
            await self.close()
            more = ""
            if "unsupported startup parameter" in str(error) and not self._address.pooled:
                more = f" {POOLER}"
            why = str(error).rstrip(".") or type(error).__name__
            where = f"BISTRO92_DATABASE_URL: {self._place}"
            raise self.refused(f"{where} cannot be used as a database: {why}.{more}") from error
        except self.refused:
            await self.close()
            raise

    async def close(self) -> None:
        for pool in (self._reader_pool, self._writer_pool):
            with contextlib.suppress(*FAILURES):
                async with asyncio.timeout(CONNECT_SECONDS):
                    await pool.disconnect()

    async def _check(self, connection: Any) -> None:
        """Refuse a database on which the promises can't be kept."""
        row = await connection.fetchrow(
            "SELECT pg_backend_pid(), current_setting('server_version_num')::int, current_setting('server_version'), "
            "current_setting('synchronous_commit'), current_setting('fsync')"
        )
        pid, number, version, synchronous, fsync = row
        if pid != connection.get_server_pid() and not self._address.pooled:
            raise self.refused(f"BISTRO92_DATABASE_URL: {self._place} cannot be used as a database: {POOLER}")
        if number < OLDEST_SERVER:
            raise self.refused(f"{self._place} is PostgreSQL {version}; Bistro92 needs 13 or newer.")
        if synchronous == "off":
            raise self.refused(
                f"{self._place} has synchronous_commit = off: an order that was answered with 201 could be lost. Turn "
                "it on there, or add synchronous_commit=on to the URL."
            )
        if fsync == "off":
            logger.warning("%s has fsync = off: orders that were answered do not survive a power cut", self._place)

    async def _upgrade(self, connection: Any) -> None:
        """Bring the schema up to date; processes that start at the same time take turns."""
        newest = len(MIGRATIONS)
        async with connection.transaction():
            await connection.execute(
                f"SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '{MIGRATE_SECONDS:.0f}s';"
                f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK});"
                "CREATE TABLE IF NOT EXISTS schema_version (version integer NOT NULL)"
            )
            version = await connection.fetchval("SELECT version FROM schema_version")
            if version is None:
                await connection.execute("INSERT INTO schema_version VALUES (0)")
            elif version > newest:
                raise self.refused(
                    f"{self._place} was written by a newer Bistro92: its schema has version {version}, "
                    f"this program knows {newest}. Upgrade the program, or restore a backup."
                )
            for migration in MIGRATIONS[version or 0 :]:
                await connection.execute(migration)
            await connection.execute(f"UPDATE schema_version SET version = {newest}")

    # -- statements ---------------------------------------------------------------------------------------------------

    async def recall_rows(self, named: dict[str, str]) -> list[Any]:
        """What app.RECALL finds on SQLite."""
        ledger, *rows = sorted(await self._run(self._writer_pool, RECALL, named), key=lambda row: row[0] != "ledger")
        kind, epoch, seq, last_order_id, transaction, counts = ledger
        number, began = transaction.split(",")
        self._transaction = {"number": int(number), "began": began, "seq": int(seq) + 1}
        found: list[Any] = [(kind, epoch, int(seq), int(last_order_id), counts, None)]
        for kind, first, second, third, fourth, body in rows:
            is_key = kind == "key"
            found.append((kind, first if is_key else int(first), second, third, int(fourth) if is_key else None, body))
        return found

    async def write(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run one statement: in the transaction of guard() where there is one, else as a transaction of its own."""
        return await self._run(self._writer_pool, statement, values)

    async def commit(self, transaction: Any) -> None:
        """Save what an app.Transaction decided, in the transaction of guard()."""
        self._has_events = bool(transaction.events)
        ledger, records = transaction.recalled.ledger, b"[%b]" % b",".join(transaction.records)
        values = (records.decode(), ledger.seq, ledger.last_order_id, json.dumps(ledger.counts), transaction.now)
        await self.write("INSERT INTO batch VALUES (?, ?, ?, ?, ?)", values)

    def wal_bytes(self) -> int:
        """None that would be Bistro92's to watch: PostgreSQL keeps its own."""
        return 0

    async def read(self, query: str, **values: Any) -> list[Any]:
        """Run a query, on any connection."""
        try:
            return await self._run(self._reader_pool, query, values)
        except self.problem as problem:
            if not isinstance(problem.__cause__, LOST) or isinstance(problem.__cause__, TimeoutError):
                raise
        return await self._run(self._reader_pool, query, values)  # reading twice harms nobody

    async def user(self, name: str) -> list[Any]:
        """(password, role, name as it was registered) of a user, upper and lower case being one."""
        query = 'SELECT password, role, username FROM users WHERE lower(username) = lower(:name COLLATE "C")'
        return await self.read(query, name=name)

    async def _run(self, pool: Database, statement: str, values: dict[str, Any] | Sequence[Any]) -> list[Any]:
        sql, names = translated(statement)
        arguments = [values[name] for name in names] if isinstance(values, dict) else values
        sent = False
        try:
            async with self._connection(pool) as connection:
                if connection.is_in_transaction() or not self._address.pooled:
                    sent = pool is self._writer_pool and not connection.is_in_transaction()
                    return list(await self._answer(connection, connection.fetch(sql, *arguments)))
                await self._answer(connection, connection.execute(self._begin))
                rows = list(await self._answer(connection, connection.fetch(sql, *arguments)))
                sent = pool is self._writer_pool
                await self._answer(connection, connection.execute("COMMIT"))
                return rows
        except FAILURES as error:
            raise self._translated(error, NOT_KNOWN if sent and isinstance(error, LOST) else NOTHING_STORED) from error

    @contextlib.asynccontextmanager
    async def _connection(self, pool: Database) -> AsyncIterator[Any]:
        """A connection of a pool; the one that this task holds already, if it does."""
        held = pool.connection()
        async with asyncio.timeout(self._seconds):
            await held.__aenter__()
        connection = held.raw_connection
        nested = connection.is_in_transaction()
        try:
            yield connection
        except BaseException:
            if not nested:
                await self._roll_back(connection)
            raise
        finally:
            await held.__aexit__()

    async def _answer(self, connection: Any, answer: Awaitable[Any]) -> Any:
        """What the database answers, in time. A connection that is left while it is busy is cut."""
        try:
            async with asyncio.timeout(self._seconds):
                return await answer
        except (TimeoutError, asyncio.CancelledError) as error:
            cut(connection)
            if isinstance(error, TimeoutError):  # others to the same host may be half open, too
                for pool in (self._writer_pool, self._reader_pool):
                    if pool.is_connected:
                        await pool._backend._pool.expire_connections()
            raise

    async def _roll_back(self, connection: Any) -> None:
        try:
            if connection.is_in_transaction():
                await self._answer(connection, connection.execute("ROLLBACK"))
        except FAILURES:
            cut(connection)

    def _translated(self, error: Exception, detail: str) -> Exception:
        """A failure of the database as what the caller is answered; a bug as it is."""
        is_bug = isinstance(error, ValueError) or (getattr(error, "sqlstate", None) or "").startswith(BUGS)
        return error if is_bug else self.unavailable(error, detail)

    # -- the write guard ----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """One transaction. It holds the ledger's row until it ends: what is read in it is what is true when it commits.

        Raises Problem where it was not committed. That is found out even where the connection was lost meanwhile.
        """
        self._transaction, self._has_events = {}, False
        try:
            async with self._connection(self._writer_pool) as connection:
                begin = f"{self._begin} SELECT 1 FROM ledger FOR UPDATE"
                await self._answer(connection, connection.execute(begin))
                yield
                try:
                    tag = await self._answer(connection, connection.execute("COMMIT"))
                except FAILURES as error:
                    await self._find_out(error)
                else:
                    if tag != "COMMIT":
                        raise asyncpg.InterfaceError(f"COMMIT was answered with {tag}")
        except FAILURES as error:
            raise self._translated(error, NOTHING_STORED) from error

    async def _find_out(self, error: Exception) -> None:
        """Return if it is stored, though its COMMIT failed. Raises Problem where it isn't, or nobody knows."""
        logger.warning("storage: the connection was lost at COMMIT (%s); asking for the outcome", error)
        status = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OUTCOME_SECONDS):
                while self._transaction and status not in {"committed", "aborted"}:
                    try:
                        [(said,)] = await self._run(self._reader_pool, OUTCOME, self._transaction)
                        if said == "committed" and self._has_events:
                            in_log = await self._run(self._reader_pool, IN_LOG, self._transaction)
                            said = "committed" if in_log else "aborted"
                        status = said
                    except asyncpg.InvalidParameterValueError:  # a number that has not been given, or not again
                        status = "aborted"
                    except self.problem:
                        pass
                    await asyncio.sleep(0.05)
        if status != "committed":
            raise self.unavailable(error, NOTHING_STORED if status == "aborted" else NOT_KNOWN) from error

    # -- the tail of the log ------------------------------------------------------------------------------------------

    def follow(
        self,
        feed: Feed,
        publish: Callable[[Sequence[Any]], None],
        load: Callable[[], Awaitable[None]],
        begin_anew: Callable[[], None],
        refresh: Callable[[], Awaitable[None]],
    ) -> Sequence[Callable[[], Coroutine[Any, Any, None]]]:
        """What has to run, for as long as the server does, so that the feed has what other processes commit.

        `publish` takes (seq, type, order) rows that follow the feed's head; `load` lets the feed begin where the
        database stands; `begin_anew` tells subscribers that the history they know has been replaced; `refresh`
        reads anew what else this process holds in memory.
        """

        async def keep_up() -> None:
            while True:
                self._news.clear()
                with contextlib.suppress(self.problem):  # logged where it was raised; the next round tries again
                    while await self._catch_up(feed, publish, load, begin_anew):
                        pass
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._news.wait()

        async def keep_fresh() -> None:
            while True:
                await asyncio.sleep(REFRESH_SECONDS)
                await refresh()

        return keep_up, keep_fresh, self._listen

    async def _catch_up(
        self,
        feed: Feed,
        publish: Callable[[Sequence[Any]], None],
        load: Callable[[], Awaitable[None]],
        begin_anew: Callable[[], None],
    ) -> bool:
        """Publish the next events of the log. Returns whether there may be more."""
        asked = feed.epoch, feed.head
        rows = await self._run(self._reader_pool, NEWS, {"after": feed.head, "rows": NEWS_ROWS})
        epoch, seq = rows[0][:2]
        if feed.epoch == epoch == asked[0] and seq < asked[1]:
            # The log was cut: a standby took over that hadn't got its end. What follows is another history.
            logger.critical("the log ends at %d, %d events were lost: a new history begins", seq, asked[1] - seq)
            statement = "UPDATE ledger SET epoch = ? WHERE epoch = ? AND seq < ?"
            await self._run(self._reader_pool, statement, (secrets.token_hex(6), epoch, asked[1]))
            return True
        if feed.epoch != epoch:
            await load()
            begin_anew()
            return False
        # Nothing is awaited from here on: what this process has published itself meanwhile is left out.
        news = [row[2:] for row in rows if row[2] is not None and row[2] > feed.head]
        if news and news[0][0] == feed.head + 1:
            publish(news)
        elif news or seq > feed.head:  # what comes next is forgotten already
            await load()
        return len(rows) == NEWS_ROWS

    async def _listen(self) -> None:
        """Hear notifications, on a connection of its own; it is made anew whenever it gives no sign of life."""
        pause = POLL_SECONDS
        while True:
            connection, lost = None, asyncio.Event()
            try:
                connection = await asyncpg.connect(
                    self._address.listen_dsn, timeout=CONNECT_SECONDS, statement_cache_size=0
                )
                connection.add_termination_listener(lambda _, lost=lost: lost.set())
                async with asyncio.timeout(CHECK_SECONDS):
                    await connection.add_listener(CHANNEL, lambda *_: self._news.set())
                self._news.set()
                pause = POLL_SECONDS
                while not lost.is_set():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(CHECK_SECONDS):
                            await lost.wait()
                            raise ConnectionResetError("the connection was lost")
                    async with asyncio.timeout(CHECK_SECONDS):
                        await connection.execute("SELECT 1")
            except FAILURES as error:
                logger.warning("no notifications, polling: %s", str(error) or type(error).__name__)
            finally:
                if connection is not None:
                    connection.terminate()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
