"""Back up a Bistro92 database while it is in use: `python ops/backup.py [--to FOLDER] [--keep N]`.

The copy is one moment of the database, verified, a single file with the time in its name. It appears under that name
when it is whole and on the disk, or not at all. The server goes on meanwhile: this program only reads, and never
checkpoints (SQLite before 3.51.3 can damage a WAL when two connections do).
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

DEFAULT_URL = "sqlite:///bistro92.db"
PATTERN = "bistro92-[0-9]*T[0-9]*Z.db"  # the names of backups, which sort by time


class Refused(Exception):
    """It can't be done. The message is the sentence that the operator reads."""


def database_file() -> Path:
    """The file that BISTRO92_DATABASE_URL names."""
    url = os.environ.get("BISTRO92_DATABASE_URL") or DEFAULT_URL
    name = url.removeprefix("sqlite:///")
    if name == url:
        raise Refused(f"BISTRO92_DATABASE_URL is {url!r}, which is not an SQLite file.")
    return Path(name)


def open_to_read(file: Path) -> sqlite3.Connection:
    """A connection that can't write, and so can't checkpoint either."""
    if not file.is_file():
        raise Refused(f"There is no database {file}.")
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=10)


def verify(database: sqlite3.Connection, file: Path) -> int:
    """Returns how many orders there are. Raises Refused where the database is damaged, or is none of Bistro92's."""
    try:
        faults = [row[0] for row in database.execute("PRAGMA integrity_check") if row[0] != "ok"]
        if not faults and database.execute("PRAGMA foreign_key_check").fetchone():
            faults = ["an event or a station without its order"]
        query = "SELECT last_order_id, (SELECT count(*) FROM orders), seq, (SELECT max(seq) FROM events) FROM ledger"
        [(last_order_id, orders, seq, last_event)] = database.execute(query).fetchall()
    except (sqlite3.DatabaseError, ValueError) as error:
        raise Refused(f"{file} is not a sound database of Bistro92: {error}.") from error
    if not faults and (orders != last_order_id or last_event not in (None, seq)):
        faults = ["its ledger does not agree with its orders and events"]
    if faults:
        raise Refused(f"{file} is damaged: {faults[0]}.")
    return int(orders)


def copy(source: Path, target: Path) -> int:
    """Copy a database, as it is at one moment, to a new file that is whole and on the disk. Returns its orders."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # it has password hashes
    with closing(open_to_read(source)) as read, closing(sqlite3.connect(target)) as written:
        read.backup(written)  # in one step: one read transaction, which holds no writer up
        written.execute("PRAGMA journal_mode = DELETE").close()  # one file, without a WAL beside it
        orders = verify(written, target)
    sync(target)
    return orders


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def back_up(source: Path, folder: Path, keep: int) -> tuple[Path, int]:
    """Make a backup; delete the oldest ones where there are more than `keep`. Returns its file and its orders."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = folder / f"bistro92-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.db"
    unfinished = target.with_suffix(".unfinished")
    if target.exists():
        raise Refused(f"{target} exists already.")
    try:
        orders = copy(source, unfinished)
        unfinished.rename(target)
        sync(folder)
    finally:
        unfinished.unlink(missing_ok=True)
    for old in sorted(folder.glob(PATTERN))[: -keep or None] if keep else []:
        old.unlink()
    return target, orders


def main() -> None:
    parser = argparse.ArgumentParser(description="Back up the database that BISTRO92_DATABASE_URL names.")
    parser.add_argument("--to", type=Path, default=Path("backups"), metavar="FOLDER", help="default: backups")
    parser.add_argument("--keep", type=int, default=0, metavar="N", help="delete all but the newest N; default: none")
    options = parser.parse_args()
    try:
        target, orders = back_up(database_file(), options.to, options.keep)
    except (Refused, OSError, sqlite3.DatabaseError) as error:
        sys.exit(f"backup: {error}")
    print(f"{target}: {orders} orders, verified")


if __name__ == "__main__":
    main()
