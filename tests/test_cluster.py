"""A restaurant over several processes behind a proxy: whatever happens to them, and to their database, under load.

Tills post with keys at the proxy, and come again until they have a 201; displays follow, through the proxy and past
it, and resume with their cursor wherever they are let in. Every fault comes while they do. After each one an order
posted at any process has to reach every display, and then a checker compares what tills were answered, what the
database holds, what every process says, and what every display was told since it came: nothing lost, nothing doubled,
one order for all, no stall.

`--cluster-rounds 50` makes every fault fifty times over each cluster.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

import app
from tests import harness
from tests.cluster import Cluster, Follower, Hold, Place, Postgres, Proxy
from tests.harness import (
    DEADLINE,
    Client,
    Display,
    Dropped,
    EventStream,
    Json,
    Server,
    an_order,
    free_port,
    parse_problem,
    until,
    without_duplicates,
)
from tests.test_proxy import MAIN

pytestmark = pytest.mark.postgresql

SBIN: Final = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
PATIENCE: Final = 3.0  # seconds that a till waits for an answer before it comes again
BOUNDS: Final = "command_timeout=2&lock_timeout=500ms&idle_in_transaction_session_timeout=1s"
BUGS: Final = "background work|could not be|subscriber failed|ASGI|never retrieved|the log ends"
"""What the servers' logs say of bugs; asyncpg's own pool writes tracebacks of connections that it can't make."""

HAPROXY: Final = """
global
    maxconn 500
defaults
    mode http
    timeout connect 2s
    timeout client 75s
    timeout server 75s
    timeout tunnel 75s
    option http-buffer-request
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response response-timeout
frontend public
    bind 127.0.0.1:{port}
    default_backend bistro92
backend bistro92
    balance leastconn
    http-request disable-l7-retry if {{ method POST }} !{{ req.hdr(Idempotency-Key) -m found }}
"""

NGINX: Final = """
map $http_upgrade $connection_of {{ default upgrade; '' ''; }}
server {{
    listen 127.0.0.1:{port};
    location / {{
        proxy_pass http://bistro92;
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_of;
        proxy_buffering off;
        proxy_connect_timeout 2s;
        proxy_next_upstream error timeout non_idempotent;
    }}
}}
"""
"""Without what ops/ has besides: TLS and forwarded headers, which would make tills log in."""


class Front:
    """HAProxy or nginx in front of some processes."""

    def __init__(self, program: str, folder: Path, servers: list[Server]) -> None:
        found = shutil.which(program, path=SBIN)
        if found is None:
            pytest.skip(f"needs {program} (apt install haproxy nginx-light)")
        self.port = free_port()
        file, addresses = folder / f"{program}.conf", [f"127.0.0.1:{server.port}" for server in servers]
        if program == "haproxy":
            lines = [f"    server app{number} {address}" for number, address in enumerate(addresses)]
            text, command = HAPROXY.format(port=self.port), [found, "-db", "-f", str(file)]
        else:
            lines = ["upstream bistro92 { least_conn;", *[f"server {each} max_fails=0;" for each in addresses], "}"]
            text, main = NGINX.format(port=self.port), folder / "nginx.conf"
            main.write_text(MAIN.format(folder=folder))
            file = folder / "bistro92.conf"
            command = [found, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(main)]
        file.write_text(text + "\n".join(lines) + "\n")
        self._log = folder / "front.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self._serves, f"{program} serves")

    def _serves(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        with closing(socket.socket()) as attempt:
            return attempt.connect_ex(("127.0.0.1", self.port)) == 0

    def client(self) -> Client:
        return Client(self.port, PATIENCE)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE)


class Till(threading.Thread):
    """A POS that posts one order after the other, each with its key, again and again until it has a 201.

    Through a proxy "nothing was stored" is said by the last process that was asked, so the key stays the same.
    """

    def __init__(self, place: Place, name: str, is_open: threading.Event) -> None:
        super().__init__(daemon=True)
        self.answered: dict[str, Json] = {}  # name of its line → the order that came back with 201
        self.refused = 0  # answers that say that it can't be done now, and answers that never came
        self.busy = False
        self.stopping = False
        self.fault: BaseException | None = None
        self._place, self._prefix, self._open = place, name, is_open

    def run(self) -> None:
        try:
            with closing(self._place.client()) as client:
                for number in count():
                    self.busy = True
                    while not self._open.is_set() and not self.stopping:
                        self.busy = False
                        self._open.wait(DEADLINE)
                        self.busy = True
                    if self.stopping:
                        return
                    self._place_order(client, f"{self._prefix}-{number}")
        except BaseException as error:
            self.fault = error
        finally:
            self.busy = False

    def _place_order(self, client: Client, name: str) -> None:
        end = time.monotonic() + DEADLINE
        while True:
            assert time.monotonic() < end, f"{name} is not answered"
            with suppress(OSError):
                reply = client.post(an_order(name), idempotency_key=name)
                if reply.status == HTTPStatus.CREATED:
                    self.answered[name] = reply.json
                    return
                assert reply.status in {502, 503, 504}, reply.body
            self.refused += 1


def is_told(display: Follower, order: Json) -> bool:
    """Whether that is the last thing that it was told."""
    return bool(display.told) and display.told[-1]["order"] == order


class Restaurant:
    """Servers on a database of their own, each over a wire of its own; a proxy; tills and displays; and the checker."""

    def __init__(self, postgres: Postgres, folder: Path, program: str, size: int, seed: int) -> None:
        self.postgres, self.random = postgres, random.Random(seed)
        self.answered: dict[str, Json] = {}  # what this class posted itself
        url = postgres.database()
        with ExitStack() as stack:
            stack.callback(postgres.drop, url)
            self.cluster = Cluster(folder, url, size)
            self.servers = self.cluster.servers
            self.wires = [stack.enter_context(closing(Proxy(url))) for _ in self.servers]
            for number, (server, wire) in enumerate(zip(self.servers, self.wires, strict=True)):
                server.settings["database_url"] = f"{wire.url}?{BOUNDS}&application_name=process-{number}"
            self.displays: list[Follower] = []
            stack.callback(self._await_displays)
            stack.callback(self.cluster.end)
            self.cluster.start()
            front = Front(program, folder, self.servers)
            stack.callback(front.end)
            stack.callback(self._stop_displays)
            for number in range(size):
                past_the_proxy = [*self.servers[number:], *self.servers[:number]]
                self.displays += [Follower(past_the_proxy), Follower([front], (Display, EventStream)[number % 2])]
            self._open = threading.Event()
            self.tills = [Till(front, f"till-{number}", self._open) for number in range(4)]
            stack.callback(self._stop_tills)
            for each in (*self.displays, *self.tills):
                each.start()
            self._end = stack.pop_all()

    def end(self) -> None:
        self._end.close()

    def _stop_displays(self) -> None:
        for display in self.displays:
            display.stop()

    def _await_displays(self) -> None:
        """Their connections have ended by now."""
        for display in self.displays:
            display.join(DEADLINE)

    def _stop_tills(self) -> None:
        for till in self.tills:
            till.stopping = True
        self._open.set()
        for till in self.tills:
            till.join(2 * DEADLINE)

    # -- load ---------------------------------------------------------------------------------------------------------

    def opens(self) -> None:
        self._open.set()
        self.goes_on()

    def goes_on(self, orders: int = 10) -> None:
        """Wait until so many more orders have been answered with 201."""
        reached = self.count()
        until(lambda: self.count() >= reached + orders, "orders go on")

    def count(self) -> int:
        """How many orders tills have been answered with 201."""
        return sum(len(till.answered) for till in self.sound_tills())

    def is_refused(self) -> None:
        """Wait until a till was refused."""
        reached = sum(till.refused for till in self.tills)
        until(lambda: sum(till.refused for till in self.sound_tills()) > reached, "tills notice")

    def sound_tills(self) -> list[Till]:
        for till in self.tills:
            if till.fault:
                raise till.fault
        return self.tills

    def closes(self) -> None:
        """Tills finish the order that they are at, and post no other."""
        self._open.clear()
        until(lambda: not any(till.busy for till in self.sound_tills()), "every order is answered")

    def reaches_everybody(self) -> None:
        """No stall: an order posted at any process reaches every display, each before the next is posted."""
        for server in self.servers:
            order = self.place(server)
            told = [partial(is_told, display, order) for display in self.displays]
            until(lambda told=told: all(each() for each in told), "every display is told")  # type: ignore[misc]

    def place(self, *servers: Server) -> Json:
        """An order that is posted at each of some processes, one after the other, until it is taken."""
        name = f"placed-{len(self.answered)}"

        def posted() -> Json | None:
            for server in servers:
                with suppress(OSError), closing(server.client()) as client:
                    reply = client.post(an_order(name), idempotency_key=name)
                    assert reply.status in {HTTPStatus.CREATED, HTTPStatus.SERVICE_UNAVAILABLE}, reply.body
                    if reply.status == HTTPStatus.CREATED:
                        order: Json = reply.json
                        return order
            return None

        order = until(posted, "every process takes orders")
        assert order
        self.answered[name] = order
        return order

    # -- the checker --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Nothing lost, nothing doubled, every display told the same in the same order."""
        answered = {name: order for till in self.tills for name, order in till.answered.items()} | self.answered
        orders, log = self.cluster.settled()
        assert [order["id"] for order in orders] == [*range(1, len(orders) + 1)]
        names = without_duplicates(order["items"][0]["name"] for order in orders)
        assert dict(zip(names, orders, strict=True)) == answered
        assert [event["order"] for event in log] == orders
        keys = dict(self.cluster.sql("SELECT key, answer ->> 'id' FROM idempotency_keys"))
        assert keys == {name: str(order["id"]) for name, order in answered.items()}
        [(in_the_log, last)] = self.cluster.sql("SELECT count(*), max(seq) FROM events")
        assert in_the_log == last == len(log)
        for display in self.displays:
            assert display.reach(log[-1]["cursor"]) == log
        assert {server.running.poll() for server in self.servers} == {None}, self.cluster.log
        assert not re.search(BUGS, self.cluster.log), self.cluster.log

    # -- what faults need ---------------------------------------------------------------------------------------------

    def any_server(self) -> Server:
        return self.random.choice(self.servers)

    @contextmanager
    def stopped_in_its_transaction(self) -> Iterator[int]:
        """A process that stands still while it holds the ledger's row; gives the database's process that serves it."""
        idle = "datname = current_database() AND application_name = $1 AND state = 'idle in transaction'"
        stopped: list[subprocess.Popen[bytes]] = []

        def caught() -> list[Any]:
            while stopped:
                stopped.pop().send_signal(signal.SIGCONT)
            number = self.random.randrange(len(self.servers))
            stopped.append(self.servers[number].running)
            stopped[0].send_signal(signal.SIGSTOP)
            return self.cluster.sql(f"SELECT pid FROM pg_stat_activity WHERE {idle}", f"process-{number}")

        try:
            [(backend,)] = until(caught, "it is stopped in its transaction")
            yield backend
        finally:
            stopped[0].send_signal(signal.SIGCONT)


# ---------------------------------------------------------------------------------------------------------------------
# The faults
# ---------------------------------------------------------------------------------------------------------------------


def a_process_is_killed(restaurant: Restaurant) -> None:
    """While its COMMIT is on its way: what it then commits is answered by another one, who is asked again."""
    moved = sum(display.resumed for display in restaurant.displays)
    number = restaurant.random.randrange(len(restaurant.servers))
    victim, wire = restaurant.servers[number], restaurant.wires[number]
    wire.at_commit = victim.kill
    wire.cut_at_commit(arrives=True)
    restaurant.place(victim, *[server for server in restaurant.servers if server is not victim])
    restaurant.goes_on()
    until(lambda: sum(display.resumed for display in restaurant.displays) > moved, "its displays move")
    wire.at_commit = None
    assert victim.running.poll() is not None
    victim.start()


def every_connection_is_terminated(restaurant: Restaurant) -> None:
    for _ in range(4):
        restaurant.goes_on(5)
        assert restaurant.cluster.hang_up()


def every_wire_is_cut(restaurant: Restaurant) -> None:
    for wire in restaurant.wires:
        wire.cut()


def the_database_is_stopped_and_started(restaurant: Restaurant, mode: str = "fast") -> None:
    restaurant.postgres.stop(mode)
    try:
        restaurant.is_refused()
    finally:
        restaurant.postgres.start()


def the_database_crashes(restaurant: Restaurant) -> None:
    the_database_is_stopped_and_started(restaurant, "immediate")


def commits_lose_their_connection(restaurant: Restaurant) -> None:
    for arrives in (True, False):
        for wire in restaurant.wires:
            wire.cut_at_commit(arrives)
        lost = sum(wire.lost for wire in restaurant.wires)
        until(lambda: sum(wire.lost for wire in restaurant.wires) > lost, "a commit loses its connection")  # noqa: B023


def a_process_stops_in_its_transaction(restaurant: Restaurant) -> None:
    """The database ends it; the others go on meanwhile."""
    with restaurant.stopped_in_its_transaction():
        restaurant.goes_on()


def two_commit_in_reverse_order(restaurant: Restaurant) -> None:
    """One has its numbers, but its orders are still on the wire; another one wants to commit, and must not overtake."""
    hold = Hold(b'"new_order"')
    for wire in restaurant.wires:
        wire.hold = hold
    try:
        assert hold.met.wait(DEADLINE)
        reached, waits = restaurant.count(), "datname = current_database() AND wait_event_type = 'Lock'"
        until(
            lambda: restaurant.cluster.sql(f"SELECT 1 FROM pg_stat_activity WHERE {waits}")
            or restaurant.count() > reached + 5,
            "another one wants to commit",
        )
    finally:
        hold.let_go()
        for wire in restaurant.wires:
            wire.hold = None


def a_backend_is_stopped(restaurant: Restaurant) -> None:
    """The database's own process, while it holds the ledger's row."""
    with restaurant.stopped_in_its_transaction() as backend:  # waits for its process, so it holds nothing else
        os.kill(backend, signal.SIGSTOP)
    try:
        restaurant.is_refused()
    finally:
        os.kill(backend, signal.SIGCONT)


def a_transaction_is_left_idle(restaurant: Restaurant) -> None:
    with restaurant.cluster.held():
        restaurant.is_refused()


def the_listeners_are_terminated(restaurant: Restaurant) -> None:
    restaurant.cluster.hang_up("query LIKE 'LISTEN%' OR query = 'SELECT 1'")


def every_notification_is_lost(restaurant: Restaurant) -> None:
    for wire in restaurant.wires:
        wire.deaf = True
    try:
        restaurant.goes_on()
        restaurant.closes()
        restaurant.reaches_everybody()
    finally:
        for wire in restaurant.wires:
            wire.deaf = False


def a_wire_is_half_open(restaurant: Restaurant) -> None:
    wire = restaurant.random.choice(restaurant.wires)
    wire.dead = True
    try:
        restaurant.goes_on()
    finally:
        wire.dead = False


FAULTS: Final[tuple[Callable[[Restaurant], None], ...]] = (
    a_process_is_killed, every_connection_is_terminated, every_wire_is_cut, the_database_is_stopped_and_started,
    the_database_crashes, commits_lose_their_connection, a_process_stops_in_its_transaction,
    two_commit_in_reverse_order, a_backend_is_stopped, a_transaction_is_left_idle, the_listeners_are_terminated,
    every_notification_is_lost, a_wire_is_half_open,
)  # fmt: skip
CLUSTERS: Final = (("nginx", 2), ("haproxy", 4))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "restaurant" in metafunc.fixturenames:
        rounds = range(metafunc.config.getoption("--cluster-rounds"))
        made = [(program, size, number) for number in rounds for program, size in CLUSTERS]
        ids = [f"{size}-{program}-{number}" for program, size, number in made]
        metafunc.parametrize("restaurant", made, indirect=True, ids=ids, scope="module")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    own = Postgres()
    try:
        yield own
    finally:
        own.end()


@pytest.fixture(scope="module")
def restaurant(
    request: pytest.FixtureRequest, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Restaurant]:
    made = Restaurant(postgres, tmp_path_factory.mktemp("restaurant"), *request.param)
    try:
        yield made
    finally:
        made.end()


@contextmanager
def wired(postgres: Postgres, folder: Path, more: str = "") -> Iterator[tuple[Proxy, Cluster]]:
    """Two processes, not yet started, the first of which reaches the database over a wire; `more` is for its URL."""
    url = postgres.database()
    with ExitStack() as stack:
        stack.callback(postgres.drop, url)
        wire = stack.enter_context(closing(Proxy(url)))
        cluster = Cluster(folder, url)
        stack.callback(cluster.end)
        cluster.servers[0].settings["database_url"] = wire.url + more
        yield wire, cluster


@pytest.mark.parametrize("somebody_else", [True, False])
def test_a_crash_before_a_commit_left_a_trace(postgres: Postgres, tmp_path: Path, somebody_else: bool) -> None:
    """The number of such a transaction is given again, maybe to one that commits. Who asks isn't fooled."""
    with wired(postgres, tmp_path) as (wire, cluster), ExitStack() as stack:
        first, second = [stack.enter_context(closing(server.client())) for server in cluster.start().servers]
        for number in range(20):  # what a page needs once after a checkpoint has been written
            first.place(an_order(f"Starter {number}"))

        def crash() -> None:
            wire.refusing = True
            postgres.stop("immediate")
            postgres.start()
            if somebody_else:
                until(lambda: second.post(an_order("Other"), idempotency_key="o").status == 201, "others go on")
            wire.refusing = False

        wire.at_commit = crash
        wire.cut_at_commit(arrives=False)
        assert parse_problem(first.post(an_order("Lost"), idempotency_key="l")) == (503, "storage_unavailable")
        until(lambda: first.post(an_order("Lost"), idempotency_key="l").status == 201, "it is taken again")
        posted = [order["items"][0]["name"] for order in first.orders()[:-20]]
        assert posted == (["Lost", "Other"] if somebody_else else ["Lost"])


def test_a_display_that_moves_to_a_process_that_hears_nothing(postgres: Postgres, tmp_path: Path) -> None:
    """It isn't shown an older board, nor told that its cursor is lost: it shall come again, here or elsewhere."""
    with wired(postgres, tmp_path, f"?{BOUNDS}") as (wire, cluster), ExitStack() as stack:
        deaf, other = cluster.start().servers
        client = stack.enter_context(closing(other.client()))
        cursor = client.cursor()
        with closing(Display(deaf.port, after=cursor)) as display:
            assert display.message()["type"] == "resumed"
        wire.refusing = True
        wire.cut()
        order = client.place(an_order())
        [event] = client.history(cursor)

        def sent_away(screen: type[Display | EventStream]) -> int | None:
            with closing(screen(deaf.port, after=event["cursor"])) as moved, pytest.raises(Dropped) as end:
                moved.message()
            return end.value.code

        with closing(deaf.client()) as poll, ThreadPoolExecutor(3) as pool:
            codes = [pool.submit(sent_away, screen) for screen in (Display, EventStream)]
            assert parse_problem(poll.changes(after=event["cursor"])) == (503, "storage_unavailable")
            assert [code.result() for code in codes] == [1013, None]
        wire.refusing = False

        def resumed() -> bool:
            with suppress(Dropped), closing(Display(deaf.port, after=event["cursor"])) as display:
                assert display.message()["type"] == "resumed"
                return True
            return False

        until(resumed, "it resumes when the process has heard of it")
        with closing(deaf.client()) as poll:
            assert [each["order"] for each in poll.history(cursor)] == [order]
        assert not re.search(BUGS, cluster.log), cluster.log


def test_a_cursor_that_is_only_ahead_of_its_process() -> None:
    """One that reads the log, but hasn't published it yet, says so; a cursor that nobody gave is none."""

    async def check() -> None:
        async with harness.backstage() as behind:
            await behind.storage.write("UPDATE ledger SET seq = 1")
            with pytest.raises(app.Problem) as refused:
                await behind.manager.reach(behind.cursor(1))
            assert refused.value.code == "storage_unavailable"
            await behind.manager.reach(behind.cursor(2))

    asyncio.run(check())


@pytest.mark.parametrize("fault", FAULTS)
def test_under_load(restaurant: Restaurant, fault: Callable[[Restaurant], None]) -> None:
    """Whatever happens: nothing is lost, nothing doubled, displays are told the same in one order, none stalls."""
    restaurant.opens()
    fault(restaurant)
    restaurant.opens()
    restaurant.closes()
    restaurant.reaches_everybody()
    restaurant.check()
