"""The drill: backups under load are sound, a restored one is served, and who followed the lost history starts anew."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Serve
from tests.harness import (
    DEADLINE,
    ROOT,
    Display,
    EventStream,
    Server,
    an_order,
    environment,
    events_up_to,
    parse_problem,
    until,
)
from tests.preload import named, tills

OPS = ROOT / "ops"


def run(program: str, *arguments: object, file: Path) -> subprocess.CompletedProcess[str]:
    """`ops/backup.py` or `ops/restore.py`, for a database."""
    command = [sys.executable, str(OPS / f"{program}.py"), *map(str, arguments)]
    settings = environment(database_url=f"sqlite:///{file}")
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=DEADLINE, check=False)


def back_up(server: Server, folder: Path, *options: object) -> Path:
    """Make a backup that has to succeed; returns its file."""
    done = run("backup", "--to", folder, *options, file=server.file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" orders, verified\n")
    return Path(done.stdout.partition(": ")[0])


def test_a_backup_and_a_restore_under_load(serve: Serve, tmp_path: Path) -> None:
    """Each backup is one moment with all that was answered before; restored, it is served; screens start anew."""
    server = serve("--log-level", "warning", "--no-access-log").start()
    folder = tmp_path / "backups"
    with closing(server.client()) as client:
        client.place(an_order("first"), idempotency_key="first")
        with tills(server, "load") as posting:
            until(lambda: sum(len(till.answered) for till in posting) > 50, "orders are taken")
            before = {key for till in posting for key in till.answered}
            backup = back_up(server, folder)
            after = {key for till in posting for key in [*till.answered, *till.unanswered]}
            until(lambda: sum(len(till.answered) for till in posting) > len(after) + 50, "orders are taken meanwhile")
        answered = {key: order for till in posting for key, order in till.answered.items()}
        lost_history = client.cursor()
        client.place(an_order("last"))
        moved_on = client.cursor()
        assert len(named(client.orders())) == len(answered) + 2
    assert oct(backup.stat().st_mode & 0o777) == "0o600"
    assert list(folder.iterdir()) == [backup]

    refused = run("restore", backup, file=server.file)
    assert (refused.returncode, refused.stderr) == (
        1, f"restore: {server.file} is being served. Stop the server first.\n"
    )  # fmt: skip
    assert server.stop() == 0
    done = run("restore", backup, file=server.file)
    assert done.returncode == 0, done.stderr
    aside = Path(done.stdout.strip().rpartition(" ")[2])
    with closing(sqlite3.connect(aside)) as old:
        assert old.execute("SELECT count(*) FROM orders").fetchone() == (len(answered) + 2,)
    assert sorted(path.name for path in tmp_path.glob("orders.db*")) == sorted(
        ["orders.db", "orders.db-lock", aside.name]
    )

    server.start()
    with closing(server.client()) as client:
        restored = named(client.orders())
        assert {"first", *before} <= set(restored) <= {"first", *after}
        assert {key: restored[key] for key in restored if key != "first"}.items() <= answered.items()
        for number in range(len(answered) + 2 - len(restored)):  # until its numbers reach as far as the lost ones
            client.place(an_order(f"new {number}"))
        cursor = client.cursor()
        assert cursor.rpartition("-")[2] == moved_on.rpartition("-")[2]
        shown_orders = named(client.orders())
        for old_cursor in (lost_history, moved_on):
            assert parse_problem(client.changes(after=old_cursor)) == (410, "cursor_lost")
            for screen in (Display, EventStream):
                with closing(screen(server.port, after=old_cursor)) as shown:
                    first = shown.message()
                    assert (first["type"], first["cursor"]) == ("initial", cursor)
                    assert named(first["orders"]) == shown_orders
        for key in answered.keys() & restored.keys():  # idempotency keys are a part of it
            asked = {name: answered[key][name] for name in ("table", "items", "note")}
            assert client.post(asked, idempotency_key=key).headers["idempotency-replayed"] == "true"
        order = client.place(an_order("next"))
        assert order["id"] == len(answered) + 3
        with closing(Display(server.port, after=cursor)) as display:
            assert events_up_to(display, client.cursor())[-1]["order"] == order


def test_many_backups_under_load(serve: Serve, tmp_path: Path) -> None:
    """They hold nobody up, no order is refused, and the newest ones are kept."""
    server = serve("--log-level", "warning", "--no-access-log").start()
    folder = tmp_path / "backups"
    folder.mkdir()
    for number in range(5):
        (folder / f"bistro92-2026010{number}T000000Z.db").touch()
    (folder / "menu.db").touch()
    with tills(server, "load", 2) as posting:
        until(lambda: all(till.answered for till in posting), "orders are taken")
        made = back_up(server, folder, "--keep", 3)
        taken = sum(len(till.answered) for till in posting)
        until(lambda: sum(len(till.answered) for till in posting) > taken + 20, "orders are taken afterwards")
    assert not any(till.refused for till in posting)
    kept = ["bistro92-20260103T000000Z.db", "bistro92-20260104T000000Z.db", made.name, "menu.db"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)
    assert server.stop() == 0
    assert not Path(f"{server.file}-wal").exists(), "a stop leaves one file: nobody else had a hand in the WAL"


def test_a_backup_of_a_server_that_was_killed(serve: Serve, tmp_path: Path) -> None:
    """What was answered and is only in the WAL yet is in the backup, and the files that were left are left alone."""
    server = serve().start()
    with closing(server.client()) as client:
        order = client.place(an_order())
    server.kill()
    left = [(path, path.read_bytes()) for path in (server.file, Path(f"{server.file}-wal"))]
    backup = back_up(server, tmp_path / "backups")
    assert [(path, path.read_bytes()) for path, _ in left] == left
    other = serve(folder=backup.parent, database_url=f"sqlite:///{backup}").start()
    with closing(other.client()) as client:
        assert client.orders() == [order]


def damage(file: Path) -> None:
    """Overwrite the middle of a file."""
    with file.open("r+b") as broken:
        broken.seek(file.stat().st_size // 2)
        broken.write(b"no nuts, please! " * 300)


class Closed(NamedTuple):
    """A restaurant that is closed: its database, and a backup of it, both with fifty orders."""

    file: Path
    backup: Path

    def is_as_it_was(self, content: bytes) -> bool:
        """Whether the database has these bytes, and nothing lies beside it."""
        beside = {path.name for path in self.file.parent.glob("orders.db*")}
        return self.file.read_bytes() == content and beside <= {"orders.db", "orders.db-lock"}


@pytest.fixture(scope="module")
def closed_once(tmp_path_factory: pytest.TempPathFactory) -> Closed:
    folder = tmp_path_factory.mktemp("closed")
    server = Server(folder)
    try:
        with closing(server.start().client()) as client:
            for number in range(50):
                client.place(an_order(f"{number}"))
        backup = back_up(server, folder)
        assert server.stop() == 0
    finally:
        server.end()
    return Closed(server.file, backup)


@pytest.fixture
def closed(closed_once: Closed, tmp_path: Path) -> Closed:
    """A copy of it for one test."""
    return Closed(*[Path(shutil.copy(file, tmp_path)) for file in closed_once])


def served(file: Path, serve: Serve) -> int:
    """How many orders a server finds in a database."""
    server = serve(folder=file.parent, database_url=f"sqlite:///{file}").start()
    with closing(server.client()) as client:
        return len(client.orders())


def test_a_backup_of_a_damaged_database(closed: Closed, tmp_path: Path) -> None:
    """It fails with a sentence, and leaves nothing that looks like a backup."""
    damage(closed.file)
    done = run("backup", "--to", tmp_path / "backups", file=closed.file)
    assert done.returncode == 1
    assert done.stderr.startswith("backup: ")
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_restore_while_another_program_has_the_database_open(closed: Closed) -> None:
    """It is refused: that program would go on with a file that is no longer the database."""
    content = closed.file.read_bytes()
    with closing(sqlite3.connect(closed.file)) as foreign:
        assert foreign.execute("SELECT count(*) FROM orders").fetchone() == (50,)
        done = run("restore", closed.backup, file=closed.file)
        said = f"restore: Another program has {closed.file} open. Close it first.\n"
        assert (done.returncode, done.stderr) == (1, said)
    assert closed.is_as_it_was(content)


@pytest.mark.parametrize(
    "kind", ["damaged", "empty", "no database", "of another program", "an order is missing", "not there"]
)
def test_a_restore_of_what_is_no_backup(closed: Closed, kind: str) -> None:
    """It is refused with a sentence, and the database that is there stays, byte for byte."""
    if kind == "damaged":
        damage(closed.backup)
    elif kind == "empty":
        closed.backup.write_bytes(b"")
    elif kind == "no database":
        closed.backup.write_text("table 4: two burgers, no nuts\n" * 200)
    elif kind == "an order is missing":
        with closing(sqlite3.connect(closed.backup)) as changed, changed:
            changed.execute("DELETE FROM orders WHERE id = 25")
    else:
        closed.backup.unlink()
    if kind == "of another program":
        with closing(sqlite3.connect(closed.backup)) as other:
            other.execute("CREATE TABLE menu (dish TEXT)")
    content = closed.file.read_bytes()
    done = run("restore", closed.backup, file=closed.file)
    assert done.returncode == 1
    assert done.stderr.startswith("restore: ")
    assert "Traceback" not in done.stderr
    assert closed.is_as_it_was(content)


def test_a_restore_over_a_damaged_database(closed: Closed, serve: Serve) -> None:
    """What is there is kept as it is, its WAL too, and the new one doesn't meet that WAL."""
    damaged, wal = b"table 4: two burgers, no nuts\n" * 200, b"one without onions\n" * 300
    closed.file.write_bytes(damaged)
    Path(f"{closed.file}-wal").write_bytes(wal)
    done = run("restore", closed.backup, file=closed.file)
    assert done.returncode == 0, done.stderr
    aside = done.stdout.strip().rpartition(" ")[2]
    assert not Path(f"{closed.file}-wal").exists()
    assert Path(aside).read_bytes() == damaged
    assert Path(f"{aside}-wal").read_bytes() == wal
    assert served(closed.file, serve) == 50


def test_a_restore_where_there_is_no_database(closed: Closed, serve: Serve) -> None:
    """A new machine starts with what the old one had."""
    closed.file.unlink()
    done = run("restore", closed.backup, file=closed.file)
    assert done.stdout == f"{closed.file}: 50 orders\n"
    assert served(closed.file, serve) == 50


def test_a_database_that_is_no_file(tmp_path: Path) -> None:
    """There is nothing to back up in memory, or in PostgreSQL: a sentence says so."""
    for url in ("sqlite://", "postgresql://localhost/orders"):
        settings = {**os.environ, "BISTRO92_DATABASE_URL": url}
        command = [sys.executable, str(OPS / "backup.py"), "--to", str(tmp_path)]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert (done.returncode, done.stderr) == (
            1, f"backup: BISTRO92_DATABASE_URL is {url!r}, which is not an SQLite file.\n"
        )  # fmt: skip
