"""ops/to_postgres.py: a restaurant moves from SQLite to PostgreSQL, and nobody who uses it can tell."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests import harness
from tests.conftest import Serve
from tests.engines import sql
from tests.harness import ROOT, Client, Display, Json, Server, an_order, environment, events_up_to

pytestmark = pytest.mark.postgresql

PASSWORD: Final = "correct horse"
LONG: Final = 120.0  # seconds that a move may take
AWKWARD: Final = 'tab\t newline\n quote" \\N \\. {} backslash\\ ünïcode 🍔 \u2028 <b>'


class Moved(NamedTuple):
    status: int
    said: str
    peak: int  # of memory, in bytes


def to_postgres(file: Path, url: str) -> Moved:
    """Run the program as `make to-postgres` does."""
    command = [sys.executable, "ops/to_postgres.py", url]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(database_url=f"sqlite:///{file}"), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout as output:
        said = output.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Moved(process.returncode, said, usage.ru_maxrss * 1024)


def bytes_of(file: Path) -> bytes:
    return file.read_bytes()


class As:
    """Requests with a token."""

    def __init__(self, client: Client, token: str) -> None:
        self._client, self.headers = client, {"authorization": f"Bearer {token}"}

    def ask(self, method: str, path: str, body: Json | None = None, **headers: str) -> harness.Reply:
        return self._client.request(method, path, body, **self.headers, **headers)

    def log(self, after: str) -> list[Json]:
        found: list[Json] = self.ask("GET", f"/api/changes?after={after}&limit=1000").json["events"]
        return found


def a_busy_evening(chef: As) -> None:
    """Orders of every kind and state."""
    for number in range(12):
        order = an_order(f"Burger {number} {AWKWARD}", note=AWKWARD, source="pos-1", external_id=f"x{number}")
        order["items"][0]["station"] = ("grill", "bar", AWKWARD.strip()[:32])[number % 3]
        assert chef.ask("POST", "/api/order", order, idempotency_key=f"key-{number}").status == 201
    assert chef.ask("POST", "/api/order", an_order("Cake", fire_at="2099-01-01T00:00:00Z")).status == 201
    for number, status in ((1, "preparing"), (2, "ready"), (3, "completed"), (4, "cancelled")):
        assert chef.ask("PATCH", f"/api/order/{number}", {"status": status}).status == 200
    assert chef.ask("PATCH", "/api/order/5", {"status": "ready"}, idempotency_key="patch").status == 200


@pytest.fixture
def target(tmp_path: Path) -> str:
    """An empty PostgreSQL database, which `serve` drops."""
    return harness.engine.url(tmp_path)


@pytest.fixture
def old(serve: Serve, tmp_path: Path) -> Server:
    """A server on SQLite."""
    return serve("--log-level", "warning", "--no-access-log", database_url=f"sqlite:///{tmp_path / 'orders.db'}")


def test_a_restaurant_that_moves(old: Server, target: str) -> None:
    """Displays resume with the cursors they have; keys, logins, tokens, orders and the log are known; numbers go on."""
    server = old.start()
    account = {"username": "Chef", "password": PASSWORD}
    with closing(server.client()) as client:
        assert client.request("POST", "/api/register", account).status == 201
        chef = As(client, client.request("POST", "/api/login", account).json["token"])
        device = chef.ask("POST", "/api/tokens", {"name": "grill", "role": "kitchen"}).json
        revoked = chef.ask("POST", "/api/tokens", {"name": "old", "role": "pos"}).json
        assert chef.ask("DELETE", f"/api/tokens/{revoked['id']}").status == 204
        start = chef.ask("GET", "/api/changes").json["cursor"]
        with closing(Display(server.port, headers=chef.headers)) as display:
            assert display.message()["type"] == "initial"
            first = chef.ask("POST", "/api/order", an_order("First")).json
            seen = display.message()
            assert seen["order"] == first
        a_busy_evening(chef)
        log, listed = chef.log(start), chef.ask("GET", "/api/orders").json
        stations = chef.ask("GET", "/api/orders?station=grill").json
        history = chef.ask("GET", "/api/order/5/events").json
        stats = chef.ask("GET", "/api/stats").json
        first_answer = chef.ask("POST", "/api/order", an_order("Kept"), idempotency_key="kept")
        head = chef.ask("GET", "/api/changes").json["cursor"]
    assert server.stop() == 0
    file = server.file
    before = bytes_of(file)

    moved = to_postgres(file, target)
    assert moved.status == 0, moved.said
    assert f"{len(listed) + 1} orders" in moved.said
    assert bytes_of(file) == before

    server.start(database_url=target)
    with closing(server.client()) as client:
        chef = As(client, chef.headers["authorization"].split()[1])
        for headers in (chef.headers, {"authorization": f"Bearer {device['token']}"}):
            with closing(Display(server.port, after=seen["cursor"], headers=headers)) as display:
                greeting, *missed = events_up_to(display, head)
                assert (greeting["type"], greeting["cursor"]) == ("resumed", seen["cursor"])
                assert missed[:-1] == log[1:]
                assert missed[-1]["order"] == first_answer.json
        assert chef.log(start)[:-1] == log
        assert chef.ask("GET", "/api/orders").json[1:] == listed
        assert chef.ask("GET", "/api/orders?station=grill").json == stations
        assert chef.ask("GET", "/api/order/5/events").json == history
        now = chef.ask("GET", "/api/stats").json
        assert now["by_status"]["received"] == stats["by_status"]["received"] + 1
        assert now["prep_seconds"] == stats["prep_seconds"]

        again = chef.ask("POST", "/api/order", an_order("Kept"), idempotency_key="kept")
        assert (again.status, again.body) == (201, first_answer.body)
        assert again.headers["idempotency-replayed"] == "true"
        assert chef.ask("POST", "/api/order", an_order("Other"), idempotency_key="kept").status == 422
        twin = chef.ask("POST", "/api/order", an_order("Twin", source="pos-1", external_id="x3"))
        assert (twin.status, twin.json["code"]) == (409, "duplicate_order")
        assert client.request("POST", "/api/login", {**account, "username": "CHEF"}).status == 200
        assert As(client, revoked["token"]).ask("GET", "/api/orders?limit=1").status == 401
        assert chef.ask("POST", "/api/tokens", {"name": "new", "role": "pos"}).json["id"] > revoked["id"]

        order = chef.ask("POST", "/api/order", an_order("Next")).json
        assert order["id"] == first_answer.json["id"] + 1
        event = chef.log(head)[0]
        epoch, seq = head.split("-")
        assert (event["order"], event["cursor"]) == (order, f"{epoch}-{int(seq) + 1}")


def test_a_move_while_a_server_runs(old: Server, target: str) -> None:
    """It is refused: what is answered 201 now would be missing there."""
    server = old.start()
    with closing(server.client()) as client:
        client.place(an_order())
        moved = to_postgres(server.file, target)
        assert (moved.status, "is being served" in moved.said) == (1, True)
        assert client.place(an_order())["id"] == 2
    assert sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", url=target) == [(0,)]


def test_a_file_of_a_server_that_was_killed(old: Server, target: str) -> None:
    """What is only in its WAL moves, too."""
    server = old.start()
    with closing(server.client()) as client:
        ids = [client.place(an_order())["id"] for _ in range(5)]
    server.kill()
    wal = bytes_of(Path(f"{server.file}-wal"))
    assert wal
    moved = to_postgres(server.file, target)
    assert moved.status == 0, moved.said
    assert bytes_of(Path(f"{server.file}-wal")) == wal
    assert sql("SELECT id FROM orders ORDER BY id", url=target) == [(number,) for number in ids]


@pytest.mark.parametrize("statement", [
    "UPDATE ledger SET seq = 1",
    "INSERT INTO users VALUES ('chef', 'hash', 'manager', '2026-11-20T18:15:02Z')",
])  # fmt: skip
def test_a_target_that_is_not_empty(serve: Serve, old: Server, target: str, tmp_path: Path, statement: str) -> None:
    """Two restaurants are never mixed: it is refused, and stays as it is."""
    assert old.start().stop() == 0
    (tmp_path / "elsewhere").mkdir()
    assert serve(folder=tmp_path / "elsewhere", database_url=target).start().stop() == 0
    epoch = sql("SELECT epoch FROM ledger", url=target)
    sql(statement, url=target)
    moved = to_postgres(old.file, target)
    assert (moved.status, "not empty" in moved.said) == (1, True)
    assert sql("SELECT epoch FROM ledger", url=target) == epoch


@pytest.mark.parametrize("fault", [
    "NEW.body := replace(NEW.body::text, 'Burger', 'Burgir')::json; RETURN NEW",
    "IF NEW.id = 2 THEN RETURN NULL; END IF; RETURN NEW",
])  # fmt: skip
def test_what_does_not_arrive_as_it_is(serve: Serve, old: Server, target: str, tmp_path: Path, fault: str) -> None:
    """It is found out before the commit: nothing has moved."""
    server = old.start()
    with closing(server.client()) as client:
        for _ in range(3):
            client.place(an_order())
    server.stop()
    (tmp_path / "elsewhere").mkdir()
    assert serve(folder=tmp_path / "elsewhere", database_url=target).start().stop() == 0
    sql("ALTER TABLE events DROP CONSTRAINT events_order_id_fkey", url=target)
    sql(f"CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {fault}; END $$", url=target)
    sql("CREATE TRIGGER fault BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION fault()", url=target)
    epoch = sql("SELECT epoch FROM ledger", url=target)
    moved = to_postgres(server.file, target)
    assert (moved.status, "did not arrive" in moved.said) == (1, True), moved.said
    assert sql("SELECT epoch FROM ledger", url=target) == epoch
    assert sql("SELECT 1 FROM orders UNION ALL SELECT 1 FROM events", url=target) == []


def damage(statement: str) -> Callable[[Path], None]:
    def do(file: Path) -> None:
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("PRAGMA foreign_keys = OFF")
            database.execute(statement)

    return do


@pytest.mark.parametrize(("spoil", "why"), [
    (damage("DELETE FROM events WHERE seq = 2"), "gaps"),
    (damage("UPDATE ledger SET seq = 9"), "does not agree"),
    (damage("UPDATE ledger SET counts = '{\"ready\": 3}'"), "counts"),
    (damage("PRAGMA user_version = 1"), "older Bistro92"),
    (damage("PRAGMA user_version = 99"), "newer Bistro92"),
    (Path.unlink, "There is no database"),
    (lambda file: file.write_bytes(b"x" * 5000), "not a"),
], ids=["gap", "seq", "counts", "older", "newer", "absent", "garbage"])  # fmt: skip
def test_a_file_that_is_not_sound(old: Server, target: str, spoil: Callable[[Path], Any], why: str) -> None:
    """It is refused with a sentence, and PostgreSQL is left as it was."""
    server = old.start()
    with closing(server.client()) as client:
        for _ in range(3):
            client.place(an_order())
    server.stop()
    spoil(server.file)
    moved = to_postgres(server.file, target)
    assert moved.status == 1
    assert moved.said.startswith("to-postgres: ")
    assert why in moved.said
    assert "Traceback" not in moved.said
    assert sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", url=target) == [(0,)]


def test_a_url_where_nothing_is(old: Server) -> None:
    """It is refused with a sentence."""
    assert old.start().stop() == 0
    moved = to_postgres(old.file, f"postgresql://nobody@127.0.0.1:{harness.free_port()}/nothing")
    assert moved.status == 1
    assert moved.said.startswith("to-postgres: The PostgreSQL database cannot be reached")


def test_a_large_file_in_little_memory(old: Server, target: str, tmp_path: Path) -> None:
    """What is held in memory doesn't grow with what is moved."""
    assert old.start().stop() == 0
    small = to_postgres(old.file, target)
    assert small.status == 0, small.said
    sql("DROP SCHEMA public CASCADE", url=target)
    sql("CREATE SCHEMA public", url=target)
    with closing(sqlite3.connect(old.file)) as database, database:
        database.execute(
            "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 20000) "
            "INSERT INTO idempotency_keys SELECT '0', n, '', 201, json_object('id', n, 'note', hex(randomblob(2500))), "
            "'2026-11-20T18:15:02Z' FROM number"
        )
    large = to_postgres(old.file, target)
    assert large.status == 0, large.said
    assert old.file.stat().st_size > 80_000_000
    assert large.peak < small.peak + 40_000_000
    assert sql("SELECT answer ->> 'id' FROM idempotency_keys WHERE key = '20000'", url=target) == [("20000",)]
