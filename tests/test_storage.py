"""The database: how it is opened, upgraded, refused and searched; and the settings, which are checked before it."""

from __future__ import annotations

import asyncio
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import app
from tests.conftest import Serve
from tests.harness import DEADLINE, ROOT, Backstage, Server, an_order, backstage, environment, until

# ---------------------------------------------------------------------------------------------------------------------
# Opening
# ---------------------------------------------------------------------------------------------------------------------


def test_the_pragmas_of_every_connection(tmp_path: Path) -> None:
    """Every connection that is held waits for locks, writes ahead, syncs every commit and checks references."""

    async def scenario() -> list[dict[str, Any]]:
        async with backstage(app.Storage(f"sqlite:///{tmp_path}/orders.db")) as behind:
            await behind.place()
            found = []
            for connection in behind.storage.connections:
                raw: Any = connection.raw_connection
                names = ("journal_mode", "synchronous", "busy_timeout", "foreign_keys", "query_only")
                found.append({name: (await raw.execute_fetchall(f"PRAGMA {name}"))[0][0] for name in names})
            return found

    writer = {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 5000, "foreign_keys": 1, "query_only": 0}
    assert asyncio.run(scenario()) == [writer] + [{**writer, "query_only": 1}] * app.READERS


def test_a_database_in_memory(serve: Serve) -> None:
    """`sqlite://` is a throw-away database: it takes orders, shows and lists them, and leaves no file."""
    server = serve(database_url="sqlite://").start()
    with closing(server.client()) as client:
        order = client.place(an_order(), idempotency_key="k")
        assert client.post(an_order(), idempotency_key="k").json == order
        assert client.orders() == [order]
        assert client.get("/readyz").status == 200
    assert server.stop() == 0
    assert not (ROOT / ":memory:").exists()
    assert not (ROOT / ":memory:-lock").exists()
    server.start()
    with closing(server.client()) as client:
        assert client.orders() == []


def test_a_database_that_is_opened_again() -> None:
    """What was known of one that is closed says nothing about the next: in memory, it is another one."""

    async def scenario() -> None:
        storage = app.Storage("sqlite://")
        epochs = set()
        for _ in range(2):
            async with backstage(storage) as behind:
                outcome = await behind.place()
                epochs.add(behind.feed.epoch)
                assert (outcome.order_id, behind.feed.recent[-1].cursor) == (1, f"{behind.feed.epoch}-1")
        assert len(epochs) == 2

    asyncio.run(scenario())


def refusal(server: Server) -> str:
    """The log of a start that has to be refused: it ends by itself, not with 0, and without a traceback."""
    assert server.launch().wait(DEADLINE) != 0
    assert "Traceback" not in server.log
    return server.log


def test_a_second_process_for_one_file(serve: Serve, tmp_path: Path) -> None:
    """It is refused with a sentence that names PostgreSQL, and the first one goes on; when that ends, it is let in."""
    first = serve().start()
    (tmp_path / "second").mkdir()
    second = serve(folder=tmp_path / "second", database_url=first.settings["database_url"])
    log = refusal(second)
    assert "One process serves one SQLite file" in log
    assert "PostgreSQL" in log
    with closing(first.client()) as client:
        order = client.place(an_order())
    first.kill()
    second.start()
    with closing(second.client()) as client:
        assert client.orders() == [order]


def test_a_second_process_for_one_file_under_another_name(serve: Serve, tmp_path: Path) -> None:
    """A link leads to the same lock; a second name that the file itself has is refused."""
    first = serve().start()
    (tmp_path / "second").mkdir()
    link, twin = tmp_path / "second" / "link.db", tmp_path / "second" / "twin.db"
    link.symlink_to(first.file)
    second = serve(folder=tmp_path / "second", database_url=f"sqlite:///{link}")
    assert "One process serves one SQLite file" in refusal(second)
    twin.hardlink_to(first.file)
    second.settings["database_url"] = f"sqlite:///{twin}"
    assert "hard link" in refusal(second)


def schema(file: Path) -> tuple[int, list[Any]]:
    with closing(sqlite3.connect(file)) as database:
        [(version,)] = database.execute("PRAGMA user_version")
        return version, list(database.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name"))


@pytest.mark.parametrize("version", range(len(app.MIGRATIONS)))
def test_a_database_of_an_older_version(serve: Serve, version: int) -> None:
    """Each older version is upgraded at the start to the very schema that a new database gets."""
    fresh, old = serve(), serve(database_url="")
    old.file = fresh.file.with_name("old.db")
    with closing(sqlite3.connect(old.file)) as database:
        database.executescript(
            "BEGIN;" + "".join(app.MIGRATIONS[:version]) + f"PRAGMA user_version = {version}; COMMIT;"
        )
    fresh.start()
    assert fresh.stop() == 0
    old.start(database_url=f"sqlite:///{old.file}")
    with closing(old.client()) as client:
        order = client.place(an_order())
        assert client.orders() == [order]
    assert old.stop() == 0
    assert schema(old.file) == schema(fresh.file)
    assert schema(old.file)[0] == len(app.MIGRATIONS)


def test_a_migration_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves the database as it was, all of it, and a server without that migration still serves it."""
    file = tmp_path / "orders.db"

    async def place() -> int:
        async with backstage(app.Storage(f"sqlite:///{file}")) as behind:
            return (await behind.place()).order_id

    assert asyncio.run(place()) == 1
    before = schema(file)
    good = app.MIGRATIONS
    broken = "ALTER TABLE orders ADD COLUMN waiter TEXT; DELETE FROM orders; CREATE TABLE orders (id INTEGER);"
    monkeypatch.setattr(app, "MIGRATIONS", (*good, "CREATE TABLE tips (id INTEGER);", broken))
    with pytest.raises(app.StartRefused, match=re.escape(str(file))):
        asyncio.run(place())
    assert schema(file) == before
    monkeypatch.setattr(app, "MIGRATIONS", good)
    assert asyncio.run(place()) == 2


def test_a_refused_start_holds_nothing(tmp_path: Path) -> None:
    """A storage that couldn't be opened has let go of its file and of its connections, so that the process can end."""
    file = tmp_path / "orders.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA user_version = 999")

    async def scenario() -> None:
        storage = app.Storage(f"sqlite:///{file}")
        try:
            with pytest.raises(app.StartRefused):
                await storage.open()
            assert storage.connections == []
        finally:
            await storage.close()

    asyncio.run(scenario())


def test_a_database_of_a_newer_version(serve: Serve) -> None:
    """It is refused with a sentence, and not one byte of it is changed."""
    server = serve()
    with closing(sqlite3.connect(server.file)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript("".join(app.MIGRATIONS) + f"PRAGMA user_version = {len(app.MIGRATIONS) + 1};")
    content = server.file.read_bytes()
    assert "was written by a newer Bistro92" in refusal(server)
    assert server.file.read_bytes() == content


def test_a_file_that_is_no_database(serve: Serve) -> None:
    """It is refused with a sentence that names it, and not one byte of it is changed."""
    server = serve()
    content = b"table 4: two burgers, no nuts\n" * 200
    server.file.write_bytes(content)
    assert f"{server.file} cannot be used as a database" in refusal(server)
    assert server.file.read_bytes() == content


def test_a_folder_that_is_not_there(serve: Serve, tmp_path: Path) -> None:
    """A database that can't be made is refused with a sentence that names it."""
    server = serve(database_url=f"sqlite:///{tmp_path}/nowhere/orders.db")
    where = f"BISTRO92_DATABASE_URL: {tmp_path}/nowhere/orders.db"
    assert f"{where} cannot be used as a database" in refusal(server)


# ---------------------------------------------------------------------------------------------------------------------
# Searching
# ---------------------------------------------------------------------------------------------------------------------


def list_by(**query: Any) -> Callable[[Backstage], Awaitable[Any]]:
    return lambda behind: behind.storage.orders(app.ListQuery(**query), 51)


async def fire_what_is_due(behind: Backstage) -> None:
    timing = asyncio.create_task(behind.book.keep_time())
    await asyncio.sleep(0)
    await behind.storage.read("SELECT 1")
    timing.cancel()
    await asyncio.gather(timing, return_exceptions=True)


def orders_last_hour(behind: Backstage) -> Awaitable[Any]:
    query = "SELECT counts, (SELECT count(*) FROM orders WHERE created_at >= :hour_ago) FROM ledger"
    return behind.storage.read(query, hour_ago=app.clock(hours=1))


SEARCHES: list[tuple[str, Callable[[Backstage], Awaitable[Any]]]] = [
    ("orders_by_status", list_by(status=["open"])),
    ("orders_by_status", list_by(status=["completed"])),
    ("orders_by_status", list_by(status=["received"], table="1")),
    ("orders_by_table", list_by(table="1")),
    ("orders_by_table", list_by(table="1", status=["completed"])),
    ("orders_by_source", list_by(source="till")),
    ("orders_by_external", list_by(external_id="1")),
    ("orders_by_external", list_by(external_id="1", source="till")),
    ("orders_by_created", list_by(since="2026-11-20T18:15:02Z")),
    ("order_stations", list_by(station="grill")),
    ("order_stations", list_by(station="grill", status=["open"])),
    ("order_stations", list_by(station="grill", status=["completed"])),
    ("orders_by_created", orders_last_hour),
    ("orders_by_ready", lambda behind: behind.book.load_feed()),
    ("orders_by_status", lambda behind: behind.book.load_feed()),
    ("orders_due", fire_what_is_due),
    ("events_by_order", lambda behind: behind.storage.history(1)),
    ("orders_by_external", lambda behind: behind.place(an_order(source="till", external_id="9"))),
    ("sqlite_autoindex_idempotency_keys_1", lambda behind: behind.place(key="k")),
]
"""An index (or a table that is one), and what is done with its help."""


async def plans_of(file: Path, search: Callable[[Backstage], Awaitable[Any]]) -> list[str]:
    """How SQLite goes about every SELECT of a search, in a database with many orders that are closed."""
    statements: list[str] = []
    async with backstage(app.Storage(f"sqlite:///{file}")) as behind:
        for connection in behind.storage.connections:
            raw: Any = connection.raw_connection
            await raw.set_trace_callback(statements.append)
        await search(behind)
    with closing(sqlite3.connect(file)) as database:
        return [
            step[3]
            for statement in statements
            if statement.strip().startswith(("SELECT", "WITH"))
            for step in database.execute(f"EXPLAIN QUERY PLAN {statement}")
        ]


@pytest.mark.parametrize(("index", "search"), SEARCHES, ids=[f"{n}-{name}" for n, (name, _) in enumerate(SEARCHES)])
def test_an_index_and_its_query(tmp_path: Path, index: str, search: Callable[[Backstage], Awaitable[Any]]) -> None:
    """Every index serves the query that it names, and no search reads all orders."""
    plans = asyncio.run(plans_of(tmp_path / "orders.db", search))
    assert any(re.search(rf"USING (COVERING )?INDEX {index}\b|SEARCH {index}\b", plan) for plan in plans), plans
    whole_tables = re.compile(r"SCAN (orders|events|idempotency_keys)\b(?!.* INDEX )")
    assert not [plan for plan in plans if whole_tables.match(plan)], plans


def test_an_index_without_a_query(tmp_path: Path) -> None:
    """There is none: what no query needs costs every commit for nothing."""
    file = tmp_path / "orders.db"

    async def make() -> None:
        async with backstage(app.Storage(f"sqlite:///{file}")):
            pass

    asyncio.run(make())
    indexes = {name for kind, name, sql in schema(file)[1] if kind == "index" and sql}
    assert indexes <= {index for index, _ in SEARCHES}


# ---------------------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[str, ...]] = {
    "database_url": ("mysql://localhost/orders", "orders.db", "sqlite:/orders.db"),
    "rate_limit": ("-1", "many", "1.5"),
    "max_body_bytes": ("0", "256k"),
    "max_subscribers": ("-1", "all"),
    "subscriber_queue_bytes": ("0", "-1", "1MB"),
    "event_retention_hours": ("0", "-1", "nan", "week"),
    "allowed_origins": ("*", "pos.example.com", "https://pos.example.com/path"),
    "access_log": ("maybe", "2"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The sentence names the variable, and says what it was."""
    variable = f"BISTRO92_{name.upper()}"
    monkeypatch.setenv(variable, value)
    with pytest.raises(app.StartRefused, match=variable) as refused:
        app.Settings.load()
    assert value in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_bad_setting_of_each_variable_at_the_start(tmp_path: Path) -> None:
    """A bad value stops the start with a sentence on the screen, not with a traceback, and makes no database."""
    assert set(BAD) == set(app.Settings.model_fields)
    command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(ROOT), "--port", "0"]
    started = {
        name: subprocess.Popen(command, cwd=tmp_path, env=environment(**{name: values[0]}), stderr=subprocess.PIPE)
        for name, values in BAD.items()
    }
    try:
        for name, process in started.items():
            _, said = process.communicate(timeout=3 * DEADLINE)
            assert process.returncode not in {0, -signal.SIGTERM}
            assert f"BISTRO92_{name.upper()} is {BAD[name][0]!r}: " in said.decode()
            assert "Traceback" not in said.decode()
    finally:
        for process in started.values():
            process.kill()
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable means its default, as an unset one does."""
    for name in app.Settings.model_fields:
        monkeypatch.setenv(f"BISTRO92_{name.upper()}", "")
    assert app.Settings.load().model_dump() == {
        name: known.default for name, known in app.Settings.model_fields.items()
    }


@pytest.mark.parametrize(
    "value", ["https://pos.example.com", "https://a.example http://b.example:8080", "https://a.b,"]
)
def test_a_good_origin(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Origins are given with their scheme, separated by commas or blanks."""
    monkeypatch.setenv("BISTRO92_ALLOWED_ORIGINS", value)
    assert app.Settings.load().allowed_origins


def test_a_relative_database(tmp_path: Path) -> None:
    """`sqlite:///FILE` lies in the working directory, as the default does."""
    command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(ROOT), "--port", "0"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    try:
        until((tmp_path / "bistro92.db").exists, "the database is made")
        until(lambda: (tmp_path / "bistro92.db-wal").exists(), "the database is open")
    finally:
        process.kill()
        process.wait(DEADLINE)
