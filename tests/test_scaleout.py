"""Several processes on one database: the same promises, whichever of them is asked, and whatever becomes of one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

import app
from scaleout.schema import MIGRATIONS
from tests import harness
from tests.cluster import Cluster, Follower, Proxy, tills
from tests.harness import (
    Client,
    Display,
    Dropped,
    EventStream,
    Json,
    Reply,
    an_order,
    events,
    parse_problem,
    until,
    without_duplicates,
)

pytestmark = pytest.mark.postgresql

Gather = Callable[..., Cluster]


@pytest.fixture
def gather(tmp_path: Path) -> Iterator[Gather]:
    """Make clusters of a test's own: `gather(size=3)`, not yet started; their database is dropped at the end."""
    made: list[Cluster] = []

    def make(size: int = 2, **settings: object) -> Cluster:
        made.append(Cluster(tmp_path, harness.engine.url(tmp_path), size, **settings))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.end()
        harness.engine.drop(tmp_path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two processes that the tests of this module share."""
    folder = tmp_path_factory.mktemp("pair")
    cluster = Cluster(folder, harness.engine.url(folder))
    try:
        yield cluster.start()
    finally:
        cluster.end()
        harness.engine.drop(folder)


@pytest.fixture
def a(pair: Cluster) -> Iterator[Client]:
    with closing(pair.servers[0].client()) as client:
        yield client


@pytest.fixture
def b(pair: Cluster) -> Iterator[Client]:
    with closing(pair.servers[1].client()) as client:
        yield client


# ---------------------------------------------------------------------------------------------------------------------
# One log
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("screen", [Display, EventStream])
def test_an_order_posted_at_another_process(pair: Cluster, a: Client, screen: type[Display | EventStream]) -> None:
    """It reaches the screens of every process, as the very event that its own process tells."""
    screens = [screen(server.port) for server in pair.servers]
    for each in screens:
        assert each.message()["type"] == "initial"
    order = a.place(an_order("Von außerhalb"))
    told = [next(events(each)) for each in screens]
    assert told[0] == told[1]
    assert (told[0]["type"], told[0]["order"]) == ("new_order", order)
    for each in screens:
        each.close()


def test_a_poll_that_waits_at_another_process(a: Client, b: Client) -> None:
    """A commit of another process answers it; a cursor of that process is good here at once."""
    order = a.place(an_order())
    cursor = a.cursor()
    assert b.changes(after=cursor).status == 200
    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(b.changes, after=cursor, wait=20)
        changed = a.request("PATCH", f"/api/order/{order['id']}", {"status": "ready"}).json
        assert [event["order"] for event in poll.result().json["events"]] == [changed]


def test_a_cursor_is_good_at_once_at_every_process(pair: Cluster, a: Client) -> None:
    """What a client was told by one process another one resumes from, though it may not have heard of it yet."""
    for number in range(20):
        a.place(an_order(f"Course {number}"))
        cursor = a.cursor()
        with closing(Display(pair.servers[1].port, after=cursor)) as display:
            assert (display.message()["type"]) == "resumed"


def test_a_read_at_every_process(a: Client, b: Client) -> None:
    """An order, its history and the list are the same bytes at every process as soon as it is answered."""
    for number in range(20):
        posted = a.post(an_order(f"Reading {number}", note='ä "quoted" \\ 😀'))
        path = posted.headers["location"]
        assert b.get(path).body == posted.body
        assert b.get("/api/orders?limit=1").json == [posted.json]
        assert b.get(f"{path}/events").json == a.get(f"{path}/events").json


def test_displays_at_all_processes_under_load(gather: Gather) -> None:
    """Every display is told the same events in the same order: the log, without a gap."""
    cluster = gather(size=3).start()
    followers = [Follower([server]) for server in cluster.servers]
    for follower in followers:
        follower.start()
    with tills(cluster.servers, 6) as posting:
        until(lambda: all(len(till.answered) >= 40 for till in posting), "orders are posted at every process")
    orders, log = cluster.settled()
    answered = {key: order for till in posting for key, order in till.answered.items()}
    assert {order["items"][0]["name"]: order for order in orders} == answered
    assert [order["id"] for order in orders] == [*range(1, len(answered) + 1)]
    for follower in followers:
        assert follower.finish(log[-1]["cursor"]) == log


def test_a_display_that_moves_to_another_process(gather: Gather) -> None:
    """The process of a display is killed: it resumes at another one, and is told exactly what it missed."""
    cluster = gather().start()
    first, second = cluster.servers
    follower = Follower([first, second])
    follower.start()
    with tills([second], 2) as posting:
        until(lambda: len(follower.told) > 20, "the display follows")
        first.kill()
        until(lambda: follower.resumed, "it resumes")
        reached = len(posting[0].answered)
        until(lambda: len(posting[0].answered) > reached + 20, "orders go on")
    cluster.servers.remove(first)
    _, log = cluster.settled()
    assert follower.finish(log[-1]["cursor"]) == log


# ---------------------------------------------------------------------------------------------------------------------
# One decision
# ---------------------------------------------------------------------------------------------------------------------


def at_once(*calls: Callable[[], Reply]) -> list[Reply]:
    barrier = threading.Barrier(len(calls))

    def call(one: Callable[[], Reply]) -> Reply:
        barrier.wait(harness.DEADLINE)
        return one()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def test_one_key_at_two_processes(pair: Cluster, a: Client, b: Client) -> None:
    """Duplicates that arrive at both at the same time are one order, and all are answered with it."""
    for number in range(20):
        order, key = an_order(f"Twice {number}"), f"twice-{number}"
        replies = at_once(*[lambda c=c: c.post(order, idempotency_key=key) for c in (a, b)])  # noqa: B023
        assert [reply.status for reply in replies] == [201, 201]
        assert replies[0].body == replies[1].body
        assert sorted(reply.headers.get("idempotency-replayed", "") for reply in replies) == ["", "true"]
        assert [each["items"][0]["name"] for each in a.orders()].count(f"Twice {number}") == 1
        assert parse_problem(b.post(an_order("Other"), idempotency_key=key)) == (422, "idempotency_mismatch")


def test_one_external_id_at_two_processes(a: Client, b: Client) -> None:
    """A POS's own name for an order is unique over all processes: the second one is refused with the first."""
    for number in range(20):
        order = an_order("Named", source="till", external_id=f"x-{number}")
        replies = at_once(*[lambda c=c: c.post(order) for c in (a, b)])  # noqa: B023
        won, lost = sorted(replies, key=lambda reply: reply.status)
        assert (won.status, parse_problem(lost)) == (201, (409, "duplicate_order"))
        assert lost.json["order"] == won.json


def test_one_version_at_two_processes(a: Client, b: Client) -> None:
    """Of two changes to the same version one is taken, wherever they arrive; the other gets the order as it is."""
    for _ in range(20):
        order = a.place(an_order())
        path = f"/api/order/{order['id']}"
        replies = at_once(*[
            lambda c=c, note=note: c.request("PATCH", path, {"note": note}, if_match='"1"')  # noqa: B023
            for c, note in ((a, "from a"), (b, "from b"))
        ])  # fmt: skip
        won, lost = sorted(replies, key=lambda reply: reply.status)
        assert (won.status, parse_problem(lost)) == (200, (412, "version_mismatch"))
        assert lost.json["order"] == won.json


def test_a_double_tap_at_two_processes(a: Client, b: Client) -> None:
    """The same state asked for at both is one change, one event."""
    order = a.place(an_order())
    before, path = a.cursor(), f"/api/order/{order['id']}"
    replies = at_once(*[lambda c=c: c.request("PATCH", path, {"status": "ready"}) for c in (a, b)])
    assert [reply.status for reply in replies] == [200, 200]
    assert replies[0].json == replies[1].json
    assert len(a.history(before)) == 1


def test_a_scheduled_order_with_two_processes_up(pair: Cluster, a: Client, b: Client) -> None:
    """Its time comes once, in one event, also where every process has found it due before one could fire it."""
    before, soon = a.cursor(), harness.now(2)
    ids = {client.place(an_order("Later", fire_at=soon))["id"] for client in (a, b)}
    with pair.held():
        late = harness.now(4)
        until(lambda: harness.now() >= late, "every process waits to fire them")

    def fired() -> list[Json]:
        return [event for event in b.history(before) if event["type"] == "new_order" and event["order"]["id"] in ids]

    until(lambda: len(fired()) >= len(ids), "all have fired")
    a.place(an_order("Afterwards"))
    assert sorted(without_duplicates(event["order"]["id"] for event in fired())) == sorted(ids)
    assert {a.get(f"/api/order/{order_id}").json["version"] for order_id in ids} == {2}


# ---------------------------------------------------------------------------------------------------------------------
# What becomes of connections
# ---------------------------------------------------------------------------------------------------------------------


def test_notifications_that_are_lost(gather: Gather) -> None:
    """Without any, every process finds what others commit; meanwhile reads are current, and cursors are good."""
    cluster = gather().start()
    first, second = cluster.servers
    cluster.sql("CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE sql AS 'SELECT'")
    cluster.sql(f"ALTER DATABASE {cluster.url.rpartition('/')[2]} SET search_path = public, pg_catalog")
    cluster.hang_up()
    with closing(first.client()) as a, closing(second.client()) as b, closing(Display(second.port)) as display:
        assert display.message()["type"] == "initial"
        for number in range(5):
            b.get("/api/orders?limit=1")  # the page is not the same any more, though this process hasn't heard so
            order = a.place(an_order(f"Silent {number}"))
            assert b.get("/api/orders?limit=1").json == [order]
            assert b.changes(after=a.cursor()).status == 200
            assert next(events(display))["order"] == order


def test_a_history_that_was_cut_short(gather: Gather) -> None:
    """A standby that took over without the last commits: no screen is told numbers that mean something else by now."""
    cluster = gather().start()
    with closing(cluster.servers[0].client()) as client, closing(Display(cluster.servers[1].port)) as display:
        assert display.message()["type"] == "initial"
        placed = [client.place(an_order(f"Course {number}")) for number in range(5)]
        assert [next(events(display))["order"] for _ in placed] == placed
        lost = client.cursor()
        cluster.sql("WITH log AS (DELETE FROM events WHERE seq > 2) UPDATE ledger SET seq = 2, last_order_id = 5")
        with pytest.raises(Dropped) as end:
            next(events(display))
        assert end.value.code == 1012
        until(lambda: client.changes(after=lost).status == 410, "the old history is gone")
        for number in range(5):
            client.place(an_order(f"Again {number}"))
        for server in cluster.servers:
            with closing(server.client()) as other:
                assert parse_problem(other.changes(after=lost)) == (410, "cursor_lost")
            with closing(Display(server.port, after=lost)) as again:
                assert again.message()["type"] == "initial"


def test_a_listener_that_is_killed(gather: Gather) -> None:
    """Its process goes on, polling, and listens again by itself."""
    cluster = gather().start()
    first, second = cluster.servers
    listeners = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    until(lambda: cluster.sql(listeners) == [(2,)], "both listen")
    assert cluster.hang_up("query LIKE 'LISTEN%'") == 2
    with closing(first.client()) as client, closing(Display(second.port)) as display:
        assert display.message()["type"] == "initial"
        order = client.place(an_order())
        assert next(events(display))["order"] == order
        until(lambda: cluster.sql(listeners) == [(2,)], "both listen again")


def test_connections_that_are_killed_under_load(gather: Gather) -> None:
    """All of them, again and again: each caller gets a definite answer, what was answered is there once, in order."""
    cluster = gather().start()
    followers = [Follower([server]) for server in cluster.servers]
    for follower in followers:
        follower.start()
    hung_up = 0
    with tills(cluster.servers, 4) as posting:
        for _ in range(15):
            reached = sum(len(till.answered) for till in posting)
            until(lambda: sum(len(till.answered) for till in posting) > reached + 10, "orders go on")  # noqa: B023
            hung_up += cluster.hang_up()
    assert hung_up >= 15
    orders, log = cluster.settled()
    answered = {key: order for till in posting for key, order in till.answered.items()}
    assert len(orders) == len(answered)
    assert {order["items"][0]["name"]: order for order in orders} == answered
    for follower in followers:
        assert follower.finish(log[-1]["cursor"]) == log
    assert "Traceback" not in cluster.log


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[tuple[Cluster, Proxy]]:
    """One process behind a wire that the test holds in its hand, another one that isn't."""
    url = harness.engine.url(tmp_path)
    proxy = Proxy(url)
    cluster = Cluster(tmp_path, url)
    cluster.servers[0].settings["database_url"] = f"{proxy.url}?command_timeout=2"
    try:
        yield cluster.start(), proxy
    finally:
        cluster.end()
        proxy.close()
        harness.engine.drop(tmp_path)


@pytest.mark.parametrize("arrives", [True, False])
def test_a_connection_that_is_lost_at_commit(wired: tuple[Cluster, Proxy], arrives: bool) -> None:
    """The caller is told what became of it all the same: 201 where it is stored, 503 where it isn't."""
    cluster, proxy = wired
    with closing(cluster.servers[0].client()) as client, closing(Display(cluster.servers[0].port)) as display:
        assert display.message()["type"] == "initial"
        proxy.cut_at_commit(arrives)
        reply = client.post(an_order("On the edge"))
        assert proxy.lost == 1
        if arrives:
            assert reply.status == 201
            assert client.orders() == [reply.json]
            assert next(events(display))["order"] == reply.json
        else:
            assert parse_problem(reply) == (503, "storage_unavailable")
            assert "Nothing of this request was stored" in reply.json["detail"]
            assert client.orders() == []
        assert client.post(an_order()).status == 201


def test_an_outcome_that_nobody_knows(wired: tuple[Cluster, Proxy]) -> None:
    """Where the database can't be asked either, the caller is told that, and a retry with the same key is safe."""
    cluster, proxy = wired
    first, second = (server.client() for server in cluster.servers)
    proxy.cut_at_commit(arrives=True, dies=True)
    reply = first.post(an_order("Who knows"), idempotency_key="w")
    assert parse_problem(reply) == (503, "storage_unavailable")
    assert "may be stored or not" in reply.json["detail"]
    again = second.post(an_order("Who knows"), idempotency_key="w")
    assert (again.status, [again.json]) == (201, second.orders())
    proxy.dead = False
    until(lambda: first.post(an_order("Who knows"), idempotency_key="w").body == again.body, "it recovers")


def test_connections_that_are_half_open(wired: tuple[Cluster, Proxy]) -> None:
    """Nothing comes through, nothing is closed: callers get 503 in time, and all goes on as soon as it does."""
    cluster, proxy = wired
    first, second = (server.client() for server in cluster.servers)
    with closing(Display(cluster.servers[0].port)) as display:
        assert display.message()["type"] == "initial"
        proxy.dead = True
        assert parse_problem(first.post(an_order("Lost"), idempotency_key="l")) == (503, "storage_unavailable")
        missed = second.place(an_order("Missed"))
        proxy.dead = False
        assert next(events(display))["order"] == missed
        until(lambda: first.post(an_order("Lost"), idempotency_key="l").status == 201, "it commits again")
        assert [order["items"][0]["name"] for order in first.orders()] == ["Lost", "Missed"]


def test_an_idle_transaction_that_holds_the_ledger(gather: Gather) -> None:
    """Writers get 503 in bounded time, reading goes on, and writing does as soon as it is gone."""
    cluster = gather()
    only_the_lock = "lock_timeout=500ms&statement_timeout=60s&command_timeout=60"  # other bounds would come too late
    cluster.servers[0].settings["database_url"] = f"{cluster.url}?{only_the_lock}"
    cluster.start()
    with closing(cluster.servers[0].client()) as client:
        client.place(an_order())
        with cluster.held():
            reply = client.post(an_order("Held up"), idempotency_key="h")
            assert parse_problem(reply) == (503, "storage_unavailable")
            assert parse_problem(client.get("/readyz")) == (503, "storage_unavailable")
            assert len(client.orders()) == 1
        until(lambda: client.post(an_order("Held up"), idempotency_key="h").status == 201, "it is taken")
        assert len(client.orders()) == 2


# ---------------------------------------------------------------------------------------------------------------------
# Starting
# ---------------------------------------------------------------------------------------------------------------------


def refusal(cluster: Cluster, url: str) -> str:
    """What the first process logs, that must not start with this URL."""
    server = cluster.servers[0]
    server.settings["database_url"] = url
    server.launch()
    assert server.wait() != 0
    return server.log


def test_many_processes_that_start_at_once(gather: Gather) -> None:
    """They take turns to make the schema: there is one history."""
    cluster = gather(size=4).start()
    assert cluster.sql("SELECT version FROM schema_version") == [(len(MIGRATIONS),)]
    cursors = set()
    for server in cluster.servers:
        with closing(server.client()) as client:
            cursors.add(client.cursor())
    assert len(cursors) == 1


def test_the_same_schema_on_both_databases(gather: Gather, tmp_path: Path) -> None:
    """Each table has the same columns in the same order, but for what SQLite has by itself or has no need of."""
    cluster = gather(size=1).start()

    async def make() -> None:
        async with harness.backstage(app.Storage(f"sqlite:///{tmp_path}/orders.db")):
            pass

    asyncio.run(make())
    columns = "SELECT column_name FROM information_schema.columns WHERE table_name = $1 ORDER BY ordinal_position"
    with closing(sqlite3.connect(tmp_path / "orders.db")) as database:
        found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        tables = {table for (table,) in found if not table.startswith("sqlite_")}
        others = {table for (table,) in cluster.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
        assert others - {"schema_version"} == tables
        for table in tables:
            ours = database.execute("SELECT name FROM pragma_table_xinfo(?)", (table,)).fetchall()
            theirs = cluster.sql(columns, table)
            assert [name for name in theirs if name not in {("rowid",), ("began",)}] == ours, table


def test_a_database_of_a_newer_version(gather: Gather) -> None:
    """The start is refused with a sentence, and nothing is touched."""
    cluster = gather(size=1).start()
    cluster.servers[0].stop()
    cluster.sql("UPDATE schema_version SET version = 99")
    assert "was written by a newer Bistro92: its schema has version 99" in refusal(cluster, cluster.url)
    assert cluster.sql("SELECT version FROM schema_version") == [(99,)]


@pytest.mark.parametrize(("more", "sentence"), [
    ("?synchronous_commit=off", "has synchronous_commit = off: an order that was answered with 201 could be lost"),
    ("?max_size=many", "a number in the URL is none"),
    ("?no_such_setting=1", 'cannot be used as a database: unrecognized configuration parameter "no_such_setting"'),
])  # fmt: skip
def test_a_url_that_is_no_good(gather: Gather, more: str, sentence: str) -> None:
    """The start is refused with a sentence that doesn't show the password."""
    cluster = gather(size=1)
    parts = urlsplit(cluster.url)
    host = f"{parts.hostname}:{parts.port or 5432}"
    for place, said in ((host, sentence), ("127.0.0.1:1", "cannot be used as a database: ")):
        url = parts._replace(netloc=f"{parts.username}:S3CRET@{place}").geturl() + (more if place == host else "")
        log = refusal(cluster, url)
        assert said in log
        assert "S3CRET" not in log
        assert "Traceback" not in log


@pytest.fixture
def pooler(tmp_path: Path) -> Iterator[int]:
    """PgBouncer in transaction mode, before the tests' PostgreSQL; its port."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("needs pgbouncer")
    parts, port = urlsplit(harness.engine.url(tmp_path)), harness.free_port()
    configuration = tmp_path / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n* = host={parts.hostname} port={parts.port or 5432} user={parts.username}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 4\n"
    )
    as_nobody = ["-u", "nobody"] if os.geteuid() == 0 else []
    with (tmp_path / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen([program, *as_nobody, configuration], stdout=log, stderr=log)

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    try:
        until(listens, "the pooler listens")
        yield port
    finally:
        process.kill()
        process.wait(harness.DEADLINE)


def test_a_pooler_in_between(gather: Gather, pooler: int) -> None:
    """Without the database's own address the start is refused with a sentence; with it everything is as it was."""
    cluster = gather()
    parts = urlsplit(cluster.url)
    pooled = parts._replace(netloc=f"{parts.username}@127.0.0.1:{pooler}").geturl()
    assert "A pooler such as PgBouncer stands in between" in refusal(cluster, pooled)
    for server in cluster.servers:
        server.settings["database_url"] = f"{pooled}?listen_url={quote(cluster.url, safe='')}"
    cluster.start()
    follower = Follower(cluster.servers[1:])
    follower.start()
    with tills(cluster.servers, 4) as posting:
        until(lambda: all(len(till.answered) >= 20 for till in posting), "orders are posted")
    orders, log = cluster.settled()
    assert len(orders) == sum(len(till.answered) for till in posting)
    assert follower.finish(log[-1]["cursor"]) == log
    assert sum(till.refused for till in posting) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Who may come in
# ---------------------------------------------------------------------------------------------------------------------


def test_accounts_over_two_processes(gather: Gather) -> None:
    """A token is good everywhere at once; revoked at one process it closes what is open at the other."""
    cluster = gather().start()
    first, second = cluster.servers
    account = {"username": "Chef", "password": "correct horse"}
    with closing(first.client()) as a, closing(second.client()) as b:
        protected = Display(second.port)
        assert protected.message()["type"] == "initial"
        assert a.request("POST", "/api/register", account).json["role"] == "manager"
        with pytest.raises(Dropped):  # who was let in without a password
            next(events(protected))
        assert b.get("/api/orders").status == 401
        assert parse_problem(b.request("POST", "/api/register", {**account, "username": "Second"})) == (
            401, "unauthenticated"
        )  # fmt: skip
        token = b.request("POST", "/api/login", {**account, "username": "CHEF"}).json["token"]
        boss = {"authorization": f"Bearer {token}"}
        device = a.request("POST", "/api/tokens", {"name": "grill", "role": "kitchen"}, **boss).json
        shown = {"authorization": f"Bearer {device['token']}"}
        assert b.get("/api/orders", **shown).status == 200
        display, stream = Display(second.port, headers=shown), EventStream(second.port, headers=shown)
        assert display.message()["type"] == stream.message()["type"] == "initial"
        assert a.request("DELETE", f"/api/tokens/{device['id']}", None, **boss).status == 204
        with pytest.raises(Dropped) as end:
            next(events(display))
        assert end.value.code == 1008
        with pytest.raises(Dropped):
            next(events(stream))
        assert b.get("/api/orders", **shown).status == 401


def test_the_first_account_at_two_processes(gather: Gather) -> None:
    """Only one is first, and a manager, though both processes are asked at the same time."""
    cluster = gather().start()
    clients = [server.client() for server in cluster.servers]
    replies = at_once(*[
        lambda c=c, name=name: c.request("POST", "/api/register", {"username": name, "password": "correct horse"})
        for c, name in zip(clients, ("one", "two"), strict=True)
    ])  # fmt: skip
    assert sorted(reply.status for reply in replies) == [201, 401]
    assert cluster.sql("SELECT role FROM users") == [("manager",)]
