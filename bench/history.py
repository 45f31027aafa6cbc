"""A database file with a past: `python -m bench.history FILE ORDERS [--open N]`.

Writes completed orders, spread evenly over the past year, straight through the schema in `app.MIGRATIONS`, as a server
that took them would have left them: the events of the last days (older ones are forgotten), and the ledger with its
`seq`, last id and counts. A few orders are open. A million orders take about a minute.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

YEAR: Final = 365 * 86_400
EVENT_SECONDS: Final = 6 * 86_400
"""How far back events reach; the server keeps them for seven days."""
LATEST: Final = 7200
"""The newest completed order was posted this many seconds ago."""
STAGES: Final = (("received", "", 0), ("preparing", "started_at", 120), ("ready", "ready_at", 660),
                 ("completed", "completed_at", 900))  # fmt: skip
"""(status, its stamp, seconds after the order was posted)"""
DISHES: Final = (
    ("Burger", "grill"), ("Ice Cream", "cold"), ("Lemonade", "bar"), ("Steak", "grill"), ("Salad", "cold"),
    ("Espresso", "bar"), ("Fries", "fryer"), ("Soup of the day", None), ("Cheesecake", "cold"), ("Red wine", "bar"),
)  # fmt: skip


def lines(number: int) -> list[dict[str, Any]]:
    """The lines of the order with this number: two to four dishes, some with a note."""
    found = []
    for place in range(2 + number % 3):
        name, station = DISHES[(number * 3 + place * 7) % len(DISHES)]
        line: dict[str, Any] = {"name": name, "quantity": 1 + (number + place) % 3}
        if (number + place) % 5 == 0:
            line["note"] = "no onions, sauce on the side"
        if station:
            line["station"] = station
        found.append(line)
    return found


VARIANTS: Final = 30
READY_LINES: Final = [json.dumps([{**line, "status": "ready"} for line in lines(number)], separators=(",", ":"))
                      for number in range(VARIANTS)]  # fmt: skip
PENDING_LINES: Final = [json.dumps(lines(number), separators=(",", ":")) for number in range(VARIANTS)]
STATIONS: Final = [
    sorted({line["station"] for line in lines(number) if "station" in line}) for number in range(VARIANTS)
]


def rfc3339(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def order(number: int, posted: int, stages: int) -> str:
    """An order as JSON, after it has been through so many stages."""
    stamps = "".join(f',"{stamp}":"{rfc3339(posted + after)}"' for _, stamp, after in STAGES[1:stages])
    status, _, last = STAGES[stages - 1]
    items = (READY_LINES if stages > 2 else PENDING_LINES)[number % VARIANTS]
    known = f'"source":"pos-{number % 4}","external_id":"{number:08}",' if number % 4 == 0 else ""
    return (
        f'{{"id":{number},"table":"Table {number % 40 + 1}","items":{items},{known}"created_at":"{rfc3339(posted)}",'
        f'"status":"{status}","version":{stages},"updated_at":"{rfc3339(posted + last)}"{stamps}}}'
    )


def events(number: int, posted: int, stages: int) -> Iterator[tuple[int, int, str, int, str, str]]:
    """What the log says of an order: (time, order, type, order, changes, body)."""
    for stage in range(1, stages + 1):
        status, stamp, after = STAGES[stage - 1]
        changes: dict[str, list[str | None]] = {}
        if stage > 1:
            at = rfc3339(posted + after)
            changes = {"/status": [STAGES[stage - 2][0], status], f"/{stamp}": [None, at]}
        kind = "order_updated" if changes else "new_order"
        yield posted + after, number, kind, number, json.dumps(changes), order(number, posted, stage)


def plan(completed: int, still_open: int, now: int) -> Iterator[tuple[int, int, int]]:
    """(number, when it was posted, stages that it has been through) of every order."""
    for place in range(completed):
        yield place + 1, now - YEAR + place * (YEAR - LATEST) // completed, len(STAGES)
    for place in range(still_open):
        stages = place % 3 + 1
        yield completed + place + 1, now - 1200 + place * 300 // max(still_open, 1), stages


def write(file: Path, completed: int, still_open: int = 30, now: int | None = None) -> None:
    """Make the file. Raises FileExistsError."""
    from app import MIGRATIONS

    if file.exists():
        raise FileExistsError(file)
    moment = int(time.time()) if now is None else now
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -400000;")
        for migration in MIGRATIONS:
            connection.executescript(migration)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        indexes = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        ).fetchall()
        for name, _ in indexes:  # built at the end, from all rows at once
            connection.execute(f"DROP INDEX {name}")
        connection.execute("BEGIN")
        counts: Counter[str] = Counter()
        log: list[tuple[int, int, str, int, str, str]] = []
        by_station: dict[str, list[int]] = {}
        seq = 0

        def rows() -> Iterator[tuple[int, str]]:
            nonlocal seq
            for number, posted, stages in plan(completed, still_open, moment):
                seq += stages
                counts[STAGES[stages - 1][0]] += 1
                for station in STATIONS[number % VARIANTS]:
                    by_station.setdefault(station, []).append(number)
                if posted > moment - EVENT_SECONDS:
                    log.extend(events(number, posted, stages))
                yield number, order(number, posted, stages)

        connection.executemany("INSERT INTO orders (id, body) VALUES (?, ?)", rows())
        for station in sorted(by_station):
            connection.executemany(
                "INSERT INTO order_stations (station, order_id) VALUES (?, ?)",
                ((station, number) for number in by_station[station]),
            )
        log.sort(key=lambda entry: entry[:2])
        connection.executemany(
            "INSERT INTO events (seq, at, type, order_id, changes, body) VALUES (?, ?, ?, ?, ?, ?)",
            ((seq - len(log) + place, rfc3339(at), *entry) for place, (at, _, *entry) in enumerate(log, 1)),
        )
        connection.execute(
            "UPDATE ledger SET seq = ?, last_order_id = ?, counts = ?",
            (seq, completed + still_open, json.dumps(counts, separators=(",", ":"))),
        )
        for _, sql in indexes:
            connection.execute(sql)
        connection.execute("COMMIT")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="write a Bistro92 database with many completed orders")
    parser.add_argument("file", type=Path)
    parser.add_argument("orders", type=int)
    parser.add_argument("--open", type=int, default=30, dest="still_open")
    options = parser.parse_args()
    write(options.file, options.orders, options.still_open)


if __name__ == "__main__":
    main()
