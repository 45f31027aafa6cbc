"""Put a backup in the place of a Bistro92 database: `python ops/restore.py FILE`, while the server is stopped.

The database that was there is kept beside it. The restored one gets another epoch: whoever followed the old history
is told to start anew (`initial`, 410), and is never fed another one.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from backup import Refused, copy, database_file, open_to_read, sync, verify

BESIDE = ("-wal", "-shm")


@contextmanager
def claimed(file: Path) -> Iterator[None]:
    """Hold the lock that a server holds while it serves the file, so that none does and none starts."""
    with closing(sqlite3.connect(f"{file}-lock", timeout=0, isolation_level=None)) as claim:
        try:
            claim.execute("BEGIN EXCLUSIVE").close()
        except sqlite3.OperationalError as error:
            raise Refused(f"{file} is being served. Stop the server first.") from error
        yield


def settle(file: Path) -> None:
    """Take the WAL into the database, so that it is one file. One that is damaged is left as it is."""
    try:
        with closing(open_to_read(file)) as damaged_or_not:
            verify(damaged_or_not, file)
        with closing(sqlite3.connect(file, timeout=0)) as database:
            database.execute("PRAGMA journal_mode = DELETE").close()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise Refused(f"Another program has {file} open. Close it first.") from error
    except (Refused, sqlite3.DatabaseError) as error:
        print(f"restore: {error} It is kept as it is.", file=sys.stderr)


def set_aside(file: Path) -> Path:
    """Give a database a second name. A WAL that could not be settled moves there with it."""
    aside = file.with_name(f"{file.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    os.link(file, aside)
    left = [suffix for suffix in BESIDE if Path(f"{file}{suffix}").exists()]
    for suffix in left:
        os.link(f"{file}{suffix}", f"{aside}{suffix}")
    if left:  # another database must never meet this WAL, so this one goes first
        sync(file.parent)
        file.unlink()
        for suffix in left:
            Path(f"{file}{suffix}").unlink()
    return aside


def restore(backup: Path, file: Path) -> tuple[int, Path | None]:
    """Put a backup in a database's place. Returns its orders, and where the old database is, if there was one."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    with claimed(file):
        unfinished.unlink(missing_ok=True)
        try:
            orders = copy(backup, unfinished)
            with closing(sqlite3.connect(unfinished)) as database, database:
                database.execute("UPDATE ledger SET epoch = lower(hex(randomblob(6)))")
            aside = None
            if file.exists():
                settle(file)
                aside = set_aside(file)
            unfinished.rename(file)
            sync(file.parent)
        finally:
            unfinished.unlink(missing_ok=True)
    return orders, aside


def main() -> None:
    parser = argparse.ArgumentParser(description="Restore a backup to the database that BISTRO92_DATABASE_URL names.")
    parser.add_argument("backup", type=Path, metavar="FILE")
    try:
        file = database_file()
        orders, aside = restore(parser.parse_args().backup, file)
    except (Refused, OSError, sqlite3.DatabaseError) as error:
        sys.exit(f"restore: {error}")
    print(f"{file}: {orders} orders" + (f"; what was there is {aside}" if aside else ""))


if __name__ == "__main__":
    main()
