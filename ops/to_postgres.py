"""Move a Bistro92 database from SQLite to PostgreSQL: `python ops/to_postgres.py URL`, while no server is running.

All of it moves, in one transaction: orders, log, idempotency keys, accounts, tokens, and the ledger with its epoch. So
displays resume with the cursors that they have, keys are known, whoever was logged in stays so, and numbers go on. It
is read back from PostgreSQL and compared before it is committed: what differs leaves PostgreSQL as it was. The SQLite
file is only read.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, NamedTuple

from backup import Refused, database_file, open_to_read, verify
from restore import claimed

PROJECT = Path(__file__).resolve().parents[1]
ROWS = 500  # read at a time: what is held in memory


class Table(NamedTuple):
    """What is moved of a table, and in which order it is compared."""

    name: str
    columns: tuple[str, ...]
    order: str

    def select(self) -> str:
        return f"SELECT {', '.join(self.columns)} FROM {self.name} ORDER BY {self.order}"  # noqa: S608


TABLES = (
    Table("orders", ("id", "body"), "id"),
    Table("order_stations", ("station", "order_id"), "station, order_id"),
    Table("events", ("seq", "at", "type", "order_id", "actor", "changes", "body"), "seq"),
    Table("idempotency_keys", ("credential", "key", "fingerprint", "status", "answer", "at"), "rowid"),
    Table("users", ("username", "password", "role", "created_at"), "created_at, password"),
    Table("tokens", ("id", "hash", "name", "role", "is_session", "created_at", "expires_at"), "id"),
)
"""Everything but the ledger. What PostgreSQL derives of an order's body isn't moved, it is derived again."""

LEDGER = "SELECT epoch, seq, last_order_id, counts FROM ledger"


class Digest:
    """A count and a hash of rows, in their order; the same for the same values, whichever database they are from."""

    def __init__(self) -> None:
        self.rows = 0
        self._hash = hashlib.blake2b()

    def take(self, row: Sequence[Any]) -> None:
        self.rows += 1
        plain = [int(value) if isinstance(value, bool) else value for value in row]
        self._hash.update(json.dumps(plain).encode() + b"\n")

    def result(self) -> tuple[int, str]:
        return self.rows, self._hash.hexdigest()


def rows_of(source: sqlite3.Connection, table: Table, digest: Digest) -> Iterator[Sequence[Any]]:
    """A table's rows as PostgreSQL takes them; counted and hashed as they were."""
    flag = table.columns.index("is_session") if "is_session" in table.columns else None
    cursor = source.execute(table.select())
    while page := cursor.fetchmany(ROWS):
        for row in page:
            digest.take(row)
            yield row if flag is None else (*row[:flag], bool(row[flag]), *row[flag + 1 :])


def check_source(source: sqlite3.Connection, file: Path) -> None:
    """Raises Refused where the file isn't sound, or isn't what this program writes."""
    import app  # not before the project is on the path

    [(version,)] = source.execute("PRAGMA user_version").fetchall()
    newest = len(app.MIGRATIONS)
    if version > newest:
        raise Refused(f"{file} was written by a newer Bistro92. Use that one's tools.")
    if 0 < version < newest:
        raise Refused(f"{file} was written by an older Bistro92. Start and stop this one on it: that migrates it.")
    verify(source, file)


@asynccontextmanager
async def emptied(url: str) -> AsyncIterator[Any]:
    """A connection to an empty database with this program's schema, in a transaction that is committed at the end.

    Raises Refused where the database isn't empty, or can't be used.
    """
    try:
        import asyncpg  # type: ignore[import-untyped]

        from scaleout.postgresql import Address, Shared
    except ModuleNotFoundError as error:
        raise Refused(f"{error.name} is not there: pip install -r requirements-postgres.txt.") from error

    class Target(Shared):
        problem, refused, unavailable = Refused, Refused, staticmethod(lambda error, _="": Refused(str(error)))

    target, address = Target(url), Address.of(url)
    patient = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0", "lock_timeout": "10s"}
    try:
        connection = await asyncpg.connect(address.listen_dsn, timeout=10, server_settings=patient)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Refused(f"The PostgreSQL database cannot be reached: {error}.") from error
    try:
        async with connection.transaction():
            await target._check(connection)
            await target._upgrade(connection)
            await connection.execute("LOCK TABLE ledger IN ACCESS EXCLUSIVE MODE")  # no process writes meanwhile
            held = [table.name for table in TABLES if await connection.fetchval(f"SELECT EXISTS ({table.select()})")]
            if held or await connection.fetchval("SELECT seq FROM ledger"):
                raise Refused(f"The PostgreSQL database is not empty: {', '.join(held) or 'it has had orders'}.")
            yield connection
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Refused(f"PostgreSQL: {error}. It was left as it was.") from error
    finally:
        await connection.close(timeout=10)


async def copy_all(source: sqlite3.Connection, target: Any) -> dict[str, tuple[int, str]]:
    """Copy every table, and then the ledger. Returns each table's count and hash, as SQLite has them."""
    moved = {}
    for table in TABLES:
        digest = Digest()
        records = rows_of(source, table, digest)
        await target.copy_records_to_table(table.name, records=records, columns=table.columns)
        moved[table.name] = digest.result()
    [ledger] = source.execute(LEDGER).fetchall()
    await target.execute("UPDATE ledger SET epoch = $1, seq = $2, last_order_id = $3, counts = $4", *ledger)
    # No token's id is given again, not that of a revoked one either: idempotency keys belong to ids.
    for (last,) in source.execute("SELECT seq FROM sqlite_sequence WHERE name = 'tokens'").fetchall():
        await target.execute("SELECT setval(pg_get_serial_sequence('tokens', 'id'), $1)", last)
    await target.execute("ANALYZE")
    return moved


async def compare(source: sqlite3.Connection, target: Any, moved: dict[str, tuple[int, str]]) -> None:
    """Read everything back. Raises Refused where PostgreSQL has not, byte for byte, what SQLite has."""
    for table in TABLES:
        digest = Digest()
        async for row in target.cursor(table.select(), prefetch=ROWS):
            digest.take(row)
        if digest.result() != moved[table.name]:
            raise Refused(f"{table.name} did not arrive as they are: {digest.rows} of {moved[table.name][0]}.")
    [ledger] = source.execute(LEDGER).fetchall()
    arrived = await target.fetchrow(LEDGER)
    if tuple(arrived) != tuple(ledger):
        raise Refused("The ledger did not arrive as it is.")
    _, seq, last_order_id, counts = ledger
    count, first, last = await target.fetchrow("SELECT count(*), min(seq), max(seq) FROM events")
    if count and (last != seq or last - first + 1 != count):
        raise Refused(f"The log has gaps: {count} events from {first} to {last}, of {seq}.")
    by_status = dict(await target.fetch("SELECT status, count(*) FROM orders GROUP BY status"))
    if by_status != {status: number for status, number in json.loads(counts).items() if number}:
        raise Refused("The ledger's counts are not those of the orders.")
    if sum(by_status.values()) != last_order_id:
        raise Refused("Numbers of orders are missing.")


async def move(file: Path, url: str) -> dict[str, int]:
    """Move a file's database to a URL. Returns how many rows of each table. Raises Refused: then nothing was moved."""
    with claimed(file), closing(open_to_read(file)) as source:
        source.execute("BEGIN").close()  # one moment of it, whoever else may write
        check_source(source, file)
        async with emptied(url) as target:
            moved = await copy_all(source, target)
            await compare(source, target, moved)
    return {name: rows for name, (rows, _) in moved.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Move the orders from SQLite to an empty PostgreSQL database.")
    parser.add_argument("url", metavar="URL", help="postgresql://USER@HOST/DATABASE")
    parser.add_argument("--from", dest="file", type=Path, metavar="FILE", help="default: BISTRO92_DATABASE_URL's")
    options = parser.parse_args()
    sys.path.insert(0, str(PROJECT))
    started = time.monotonic()
    try:
        file = options.file or database_file()
        if not file.is_file():
            raise Refused(f"There is no database {file}.")
        moved = asyncio.run(move(file, options.url))
    except (Refused, OSError, sqlite3.DatabaseError) as error:
        sys.exit(f"to-postgres: {error}")
    told = ", ".join(f"{rows} {name.replace('_', ' ')}" for name, rows in moved.items())
    print(f"Moved and compared in {time.monotonic() - started:.1f} s: {told}.")
    print(f"{file} is as it was. It is history now: give it another name, so that nobody serves it again.")


if __name__ == "__main__":
    main()
