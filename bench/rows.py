"""The rows. Each takes the options, measures some rounds, and returns what it found; README.md explains each."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import generators, history
from bench.harness import (
    BenchFailed,
    Generator,
    LeftOut,
    Load,
    Others,
    Server,
    app_version,
    fdatasync_seconds,
    load,
    load_over,
)
from bench.processes import follower, processes
from bench.results import Row, percentile
from tests.engines import Engine, Postgresql, Sqlite, sql, unreachable

MS: Final = 1000.0


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    folder: Path
    rounds: int = 5
    seconds: float = 4
    """How long one load lasts."""
    quick: bool = False

    def few(self, many: int, few: int) -> int:
        return few if self.quick else many


def turns(names: list[str], number: int) -> list[str]:
    """The sides in this round's order: each round starts with another one."""
    start = number % len(names)
    return names[start:] + names[:start]


# 1. Orders a second


DISPLAYS_SERVED: Final = 10


def orders(row: Row, options: Options, side: str, clients: int, protected: bool = False) -> float:
    """Full load on a fresh server, after a short one that doesn't count; orders a second.

    What was answered must be what is stored, and what every display was told. Echo has no displays to tell.
    """
    name = f"{side} with a token, {clients} clients" if protected else f"{side}, {clients} clients"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(side, options.folder, protected=protected))
        screens = None
        if side != "echo":
            wanted = (server.port, DISPLAYS_SERVED, "/ws/orders", True, server.headers)
            screens = stack.enter_context(Generator(generators.displays, *wanted))
            screens.ask("connect")
        warm = load(server, "/api/order", clients, min(1, options.seconds / 2))
        if screens:
            screens.ask("wait", warm.answers)
        busy, seen = server.cpu(), screens.cpu() if screens else 0
        measured = load(server, "/api/order", clients, options.seconds)
        seconds = measured.last - measured.first
        row.busy(name, (server.cpu() - busy) / seconds)
        row.busy(f"wrk on {name}", measured.share, generator=True)
        if screens:
            delivered, _ = screens.ask("wait", warm.answers + measured.answers)
            row.busy(f"displays of {name}", (screens.cpu() - seen) / seconds, generator=True)
            row.side(f"{name}: last display has the last order", (delivered - measured.last) * MS, "ms")
            if (stored := server.stored()) != warm.answers + measured.answers:
                raise BenchFailed(f"{side} answered {warm.answers + measured.answers} orders and shows {stored}")
        row.side(f"{name}: p99", measured.p99 * MS, "ms")
        return row.side(name, measured.rate, "orders/s")


def throughput(options: Options) -> Row:
    """Accepted orders a second, each durable before its answer, against echo and the reference design."""
    row = Row(1, f"Accepted durable orders per second, {DISPLAYS_SERVED} displays connected")
    for number in range(options.rounds):
        for clients in (50, 200):
            rate = {
                side: orders(row, options, "bistro92" if side == "token" else side, clients, side == "token")
                for side in turns(["bistro92", "echo", "reference", "token"], number)
            }
            at = f"{clients} clients"
            row.figure(f"bistro92 / echo, {at}", rate["bistro92"] / rate["echo"], 1.0)
            row.figure(f"bistro92 with a token / echo, {at}", rate["token"] / rate["echo"], 1.0)
            row.figure(f"bistro92 / reference design, {at}", rate["bistro92"] / rate["reference"], 30)
    row.note("Every request was answered 201, and the API showed exactly as many orders as were answered, none twice.")
    row.note("Every display of bistro92 and of the reference design got every order. Echo has no displays.")
    row.note("Every order has an `Idempotency-Key` of its own, which bistro92 stores with it; the other two ignore it.")
    return row


# 2. One client


def one_client(options: Options) -> Row:
    """What an order costs beyond its fdatasync when nobody else is there."""
    row = Row(2, "One client: an order's latency beyond one fdatasync")
    count = options.few(400, 50)
    with contextlib.ExitStack() as stack:
        clients, servers = {}, {}
        for side in ("bistro92", "echo", "reference"):
            servers[side] = stack.enter_context(Server(side, options.folder))
            clients[side] = stack.enter_context(Generator(generators.one_client, servers[side].port))
            clients[side].ask(50)
        for number in range(options.rounds):
            medians = {}
            for side in turns(["fdatasync", *clients], number):
                busy = servers[side].cpu() if side in servers else 0
                started = time.monotonic()
                taken = fdatasync_seconds(options.folder, count) if side == "fdatasync" else clients[side].ask(count)
                if side in servers:
                    row.busy(side, (servers[side].cpu() - busy) / (time.monotonic() - started))
                medians[side] = row.side(f"{side}, median", statistics.median(taken) * MS, "ms")
                row.side(f"{side}, p99", percentile(taken, 0.99) * MS, "ms")
            row.figure(
                "bistro92 minus fdatasync, medians",
                medians["bistro92"] - medians["fdatasync"],
                1.5,
                at_least=False,
                unit="ms",
            )
            row.figure("bistro92 / reference design", medians["bistro92"] / medians["reference"])
    return row


# 3. A large file


def large_file(options: Options) -> Row:
    """What a million completed orders cost those who work today."""
    completed = {"large": options.few(1_000_000, 20_000), "small": 1000}
    row = Row(3, f"{completed['large']:,} completed orders in the file against {completed['small']:,}")
    files = {side: options.folder / f"{side}.db" for side in completed}
    for side, file in files.items():
        started = time.monotonic()
        history.write(file, completed[side])
        row.note(f"{side}: {file.stat().st_size / 2**20:,.0f} MiB, written in {time.monotonic() - started:.0f} s")
    goals = {"list": 1.2, "page": None, "connect": 1.2, "stats": 1.2}
    names = {
        "list": "GET /api/orders?limit=50 after a new order",
        "page": "GET /api/orders?limit=50&before=… anywhere",
        "connect": "a display connects, until `initial` is whole",
        "stats": "GET /api/stats",
    }
    with contextlib.ExitStack() as stack:
        servers = {side: stack.enter_context(Server("bistro92", options.folder, file)) for side, file in files.items()}
        ports = {side: server.port for side, server in servers.items()}
        reader = stack.enter_context(Generator(generators.readers, ports))
        reader.ask("list", 20)
        for number in range(options.rounds):
            busy, started = reader.cpu(), time.monotonic()
            taken: dict[str, dict[str, list[float]]] = {}
            for what in turns(["list", "page", "connect"], number):
                taken.update(reader.ask(what, options.few(200, 20)))
            row.busy("the reader", (reader.cpu() - busy) / (time.monotonic() - started), generator=True)
            for what, name in names.items():
                if what not in taken:
                    row.note(f"{name}: not served")
                    continue
                medians = {side: statistics.median(values) for side, values in taken[what].items()}
                for side, median in medians.items():
                    row.side(f"{name}: {side}", median * MS, "ms")
                row.figure(name, medians["large"] / medians["small"], goals[what], at_least=False)
            memory = {side: row.side(f"resident memory: {side}", server.memory() / 2**20, "MiB")
                      for side, server in servers.items()}  # fmt: skip
            row.figure("resident memory", memory["large"] / memory["small"])
    for number in range(options.rounds):
        seconds = {}
        for side in turns(list(files), number):
            with Server("bistro92", options.folder, files[side]) as server:
                seconds[side] = row.side(f"start, until the first answer: {side}", server.seconds_to_start, "s")
        row.figure("start", seconds["large"] / seconds["small"], 2.0, at_least=False)
    return row


# 4. Many displays

DISPLAYS: Final = 500


def example(server: Server) -> str:
    """An event as displays get it, for the peer to send."""
    event = json.loads(server.get("/api/changes"))
    server.request("POST", "/api/order", generators.ORDER)
    found = json.loads(server.get(f"/api/changes?after={event['cursor']}"))["events"][0]
    return json.dumps(found, separators=(",", ":"))


def deliver_at_full_rate(row: Row, options: Options, batch: bool) -> tuple[float, str]:
    """Deliveries a second while 50 clients post as fast as they can; and an event, for the peer."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server("bistro92", options.folder))
        message = example(server)
        path = "/ws/orders?batch=true" if batch else "/ws/orders"
        screens = stack.enter_context(Generator(generators.displays, server.port, DISPLAYS, path, True))
        screens.ask("connect")
        busy, seen = server.cpu(), screens.cpu()
        posted = load(server, "/api/order", 50, options.seconds)
        end, _ = screens.ask("wait", posted.answers)
        name = f"bistro92, batch={str(batch).lower()}"
        seconds = end - posted.first
        row.busy(name, (server.cpu() - busy) / seconds)
        row.busy(f"displays of {name}", (screens.cpu() - seen) / seconds, generator=True)
        row.busy(f"wrk on {name}", posted.share, generator=True)
        row.side(f"{name}: orders", posted.rate, "orders/s")
        return row.side(name, DISPLAYS * posted.answers / seconds, "deliveries/s"), message


def deliver_by_peer(row: Row, options: Options, message: str) -> float:
    """Deliveries a second of `websockets.broadcast()`, one message after the other."""
    with (
        Server("broadcast", options.folder) as server,
        Generator(generators.displays, server.port, DISPLAYS, "/", False) as screens,
    ):
        screens.ask("connect")
        count = options.few(1000, 100)
        busy, seen, started = server.cpu(), screens.cpu(), time.monotonic()
        server.write(f"{count} 0 {message}")
        end, _ = screens.ask("wait", count)
        row.busy("broadcast()", (server.cpu() - busy) / (end - started))
        row.busy("displays of broadcast()", (screens.cpu() - seen) / (end - started), generator=True)
        return row.side("broadcast() of websockets", DISPLAYS * count / (end - started), "deliveries/s")


def cpu_per_delivery(row: Row, options: Options, side: str, message: str) -> float:
    """Microseconds of the server's CPU for one display's event, orders coming one at a time, 50 a second."""
    rate, seconds = 50, max(options.seconds, 2)
    count = round(rate * seconds)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(side, options.folder))
        ours = side == "bistro92"
        path = "/ws/orders" if ours else "/"
        screens = stack.enter_context(Generator(generators.displays, server.port, DISPLAYS, path, ours))
        screens.ask("connect")
        busy = server.cpu()
        if ours:
            stack.enter_context(Generator(generators.paced_posts, server.port, generators.ORDER)).ask(rate, seconds)
        else:
            server.write(f"{count} {rate} {message}")
        screens.ask("wait", count)
        used = (server.cpu() - busy) * 1e6 / (count * DISPLAYS)
    return row.side(f"CPU, one order at a time: {side}", used, "µs/delivery")


def many_displays(options: Options) -> Row:
    """Events brought to 500 displays, against what websockets offers for that."""
    row = Row(4, f"Deliveries to {DISPLAYS} displays")
    message = ""
    with Server("bistro92", options.folder) as server:
        message = example(server)
    for number in range(options.rounds):
        rate: dict[str, float] = {}
        for side in turns(["batch", "single", "broadcast"], number):
            if side == "broadcast":
                rate[side] = deliver_by_peer(row, options, message)
            else:
                rate[side], _ = deliver_at_full_rate(row, options, side == "batch")
        row.figure("deliveries/s, batch=true / broadcast()", rate["batch"] / rate["broadcast"], 5)
        row.figure("deliveries/s, one by one / broadcast()", rate["single"] / rate["broadcast"], 1)
        used = {
            side: cpu_per_delivery(row, options, side, message) for side in turns(["bistro92", "broadcast"], number)
        }
        row.figure("CPU per delivery, one order at a time", used["bistro92"] / used["broadcast"], 1.2, at_least=False)
    row.note("bistro92 takes, stores and answers the orders meanwhile; the peer only broadcasts.")
    row.note("Every display counted every order.")
    return row


# 5. To the last display


def last_display(options: Options) -> Row:
    """From POST until the last of 100 displays has the order, at a quiet 100 orders a second."""
    row = Row(5, "From POST to the last of 100 displays, 100 orders/s")
    seconds = max(options.seconds * 2, 2)
    with (
        Server("bistro92", options.folder) as server,
        Generator(generators.post_to_displays, server.port, 100) as screens,
    ):
        screens.ask(100, 1)
        for number in range(options.rounds):
            found: dict[str, tuple[float, float]] = {}
            for side in turns(["fdatasync", "bistro92"], number):
                busy, seen, began = server.cpu(), screens.cpu(), time.monotonic()
                if side == "fdatasync":
                    taken = fdatasync_seconds(options.folder, round(100 * seconds), 0.01)
                else:
                    taken = screens.ask(100, seconds)
                    lasted = time.monotonic() - began
                    row.busy("bistro92", (server.cpu() - busy) / lasted)
                    row.busy("poster and displays", (screens.cpu() - seen) / lasted, generator=True)
                found[side] = statistics.median(taken) * MS, percentile(taken, 0.99) * MS
                row.side(f"{side}, p50", found[side][0], "ms")
                row.side(f"{side}, p99", found[side][1], "ms")
            for place, name, goal in ((0, "p50", 3), (1, "p99", 25)):
                over = found["bistro92"][place] - found["fdatasync"][place]
                row.figure(f"{name} minus {name} of fdatasync", over, goal, at_least=False, unit="ms")
    return row


# 6. Dashboards


def polls(options: Options) -> Row:
    """How often a dashboard may look."""
    row = Row(6, "A poll that finds nothing new, and a list of 50, against echo")
    page = "/api/orders?limit=50"

    def tag_of(server: Server) -> str:
        """The list's ETag, which a conditional GET is answered 304 for."""
        etag = server.request("GET", page)[1]["etag"]
        if server.request("GET", page, headers={"If-None-Match": etag})[0] != 304:
            raise BenchFailed("a conditional GET of an unchanged list is not answered 304")
        return etag

    with (
        Server("bistro92", options.folder) as server,
        Server("bistro92", options.folder, protected=True) as protected,
        Server("echo", options.folder) as echo,
    ):
        for _ in range(60):
            server.request("POST", "/api/order", generators.ORDER)
            protected.request("POST", "/api/order", generators.ORDER)
        etag, protected_etag = tag_of(server), tag_of(protected)

        def with_orders() -> Load:
            """The list while orders come, so that it is another one each time."""
            with Generator(generators.paced_posts, server.port, generators.ORDER) as poster:
                poster.tell(50, options.seconds + 1)
                time.sleep(0.5)
                found = load(server, page, 50, options.seconds, "GET")
                poster.answer()
                return found

        sides: dict[str, Callable[[], Load]] = {
            "echo": lambda: load(echo, "/api/order", 50, options.seconds),
            "304": lambda: load(server, page, 50, options.seconds, "GET", etag),
            "list": lambda: load(server, page, 50, options.seconds, "GET"),
            "304 with a token": lambda: load(protected, page, 50, options.seconds, "GET", protected_etag),
            "list with a token": lambda: load(protected, page, 50, options.seconds, "GET"),
        }
        names = {"echo": "echo", "304": "bistro92, 304", "list": "bistro92, list of 50"}
        names |= {side: f"bistro92, {side}" for side in ("304 with a token", "list with a token")}
        names["orders"] = "bistro92, list of 50 while 50 orders/s come"
        for number in range(options.rounds):
            rate = {}
            for side in turns(list(sides), number):
                target = echo if side == "echo" else protected if "token" in side else server
                busy = target.cpu()
                found = sides[side]()
                row.busy(names[side], (target.cpu() - busy) / (found.last - found.first))
                row.busy(f"wrk on {side}", found.share, generator=True)
                rate[side] = row.side(names[side], found.rate, "answers/s")
            for which in ("", " with a token"):
                row.figure(f"304{which} / echo, 50 clients", rate[f"304{which}"] / rate["echo"], 1.2)
                row.figure(f"list of 50{which} / echo, 50 clients", rate[f"list{which}"] / rate["echo"], 0.5)
            rate["orders"] = row.side(names["orders"], with_orders().rate, "answers/s")
            row.figure("list of 50 while 50 orders/s come / echo", rate["orders"] / rate["echo"], 0.5)
            etag = tag_of(server)
    return row


# 7. Idle displays


def idle_display(options: Options) -> Row:
    """What a display that waits keeps in memory."""
    row = Row(7, "Memory of an idle display")
    count = options.few(2000, 200)

    def bytes_each(side: str) -> float:
        with (
            Server(side, options.folder) as server,
            Generator(generators.displays, server.port, count, "/ws/orders", side == "bistro92") as screens,
            Generator(generators.displays, server.port, 20, "/ws/orders", side == "bistro92") as first,
        ):
            first.ask("connect")  # what the first connection of all loads doesn't count
            before = server.memory()
            screens.ask("connect")
            time.sleep(1)
            return row.side(f"{side}, {count} displays", (server.memory() - before) / count / 1024, "KiB each")

    for number in range(options.rounds):
        each = {side: bytes_each(side) for side in turns(["bistro92", "bare"], number)}
        row.figure("bistro92 / bare uvicorn WebSocket", each["bistro92"] / each["bare"], 1.5, at_least=False)
    return row


# 8. Everybody comes back at once


SITUATIONS: Final = {
    "nobody": "no display",
    "connected": "all connected",
    "return": "all come back",
    "reconnect": "all drop and come back",
}


def reconnect_storm(options: Options) -> Row:
    """How long a POST takes while all displays come back at once."""
    count, rate, storms = options.few(2000, 200), 25, options.few(3, 1)
    seconds = options.few(6, 2)
    row = Row(8, f"{count:,} displays reconnect at once, 300 open orders, POSTs go on")

    def storm(server: Server, screens: Generator, poster: Generator, command: str) -> list[float]:
        """The seconds that each order took that was due while displays were coming back."""
        if command == "return":
            screens.ask("leave")
            time.sleep(3)  # they are seen off by then; the longest that it was seen to take is one
        busy, seen, started = server.cpu(), screens.cpu(), time.monotonic()
        poster.tell(rate, seconds)
        time.sleep(0.2)
        begin, end = screens.ask(command)
        name = f"{server.side}, {SITUATIONS[command]}"
        row.side(f"{name}: back after", end - begin, "s")
        row.busy(name, (server.cpu() - busy) / (time.monotonic() - started))
        row.busy(f"displays of {name}", (screens.cpu() - seen) / (time.monotonic() - started), generator=True)
        taken = [taken for due, taken in poster.answer() if begin <= due <= end]
        if not taken:
            raise BenchFailed("the displays were back before one order was posted")
        return taken

    def p99_of(side: str) -> dict[str, float]:
        """By situation, in milliseconds."""
        greets = side == "bistro92"
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(Server(side, options.folder))
            for _ in range(300 if greets else 0):
                server.request("POST", "/api/order", generators.ORDER)
            screens = stack.enter_context(Generator(generators.displays, server.port, count, "/ws/orders", greets))
            poster = stack.enter_context(Generator(generators.paced_posts, server.port, generators.LATER, 16))
            poster.ask(rate, 1)
            found = {"nobody": [taken for _, taken in poster.ask(rate, seconds)]}
            screens.ask("connect")
            poster.ask(rate, 1)
            found["connected"] = [taken for _, taken in poster.ask(rate, seconds)]
            for command in ("return", "reconnect"):
                found[command] = []
                for _ in range(storms):
                    found[command] += storm(server, screens, poster, command)
        for situation, name in SITUATIONS.items():
            row.side(f"{side}, {name}: POST p50", statistics.median(found[situation]) * MS, "ms")
        return {
            situation: row.side(f"{side}, {name}: POST p99", percentile(found[situation], 0.99) * MS, "ms")
            for situation, name in SITUATIONS.items()
        }

    for number in range(options.rounds):
        p99 = {side: p99_of(side) for side in turns(["bistro92", "bare"], number)}
        ours, bare = p99["bistro92"], p99["bare"]
        row.figure("POST p99, all come back / no display", ours["return"] / ours["nobody"], 5, at_least=False)
        row.figure("POST p99, all come back / all connected", ours["return"] / ours["connected"])
        row.figure(
            "POST p99, all drop and come back / no display", ours["reconnect"] / ours["nobody"], 5, at_least=False
        )
        row.figure("the same of bare uvicorn, which does nothing else", bare["reconnect"] / bare["nobody"])
        row.figure("POST p99, all drop and come back, bistro92 / bare uvicorn", ours["reconnect"] / bare["reconnect"])
    row.note(f"Each {storms} times in a round; an order counts if it was due while displays were coming back.")
    row.note("Bare uvicorn answers a POST unread, and lets displays connect; it tells them nothing.")
    return row


# 9 and 10. Several processes on PostgreSQL


SIZES: Final[dict[str, int]] = {
    "SQLite, 1 process": 1,
    "PostgreSQL, 1 process": 1,
    "PostgreSQL, 2 processes": 2,
    "PostgreSQL, 4 processes": 4,
}
"""Side → processes."""


def engines(row: Row) -> dict[str, Engine]:
    """What each side's orders are kept in. Raises LeftOut where no PostgreSQL answers."""
    if why := unreachable():
        raise LeftOut(why)
    settings = ("server_version", "fsync", "synchronous_commit")
    version, fsync, synchronous = (sql(f"SHOW {setting}")[0][0] for setting in settings)
    row.note(f"PostgreSQL {version}, fsync {fsync}, synchronous_commit {synchronous}.")
    row.note(
        "Processes, PostgreSQL and generators share this machine's cores, so what 2 and 4 processes reach here doesn't "
        "say how far they scale. PostgreSQL counts among the other processes."
    )
    postgresql = Postgresql()
    return {side: Sqlite() if side.startswith("SQLite") else postgresql for side in SIZES}


def orders_over(row: Row, options: Options, engine: Engine, side: str) -> float:
    """Full load over all processes on a fresh database, after a short one that doesn't count; orders a second."""
    with processes(engine, SIZES[side], options.folder) as running:
        warm = load_over(running.servers, "/api/order", 50, min(1, options.seconds / 2))
        busy, database = running.cpu(), running.database_cpu()
        measured = load_over(running.servers, "/api/order", 50, options.seconds)
        used, after = running.cpu() - busy, running.database_cpu()
        seconds = measured.last - measured.first
        row.busy(side, used / seconds)
        row.side(f"{side}: CPU of the processes", used * 1e6 / measured.answers, "µs/order")
        if database is not None and after is not None:
            row.busy(f"PostgreSQL of {side}", (after - database) / seconds)
            row.side(f"{side}: CPU of PostgreSQL", (after - database) * 1e6 / measured.answers, "µs/order")
        row.busy(f"wrk on {side}", measured.share / SIZES[side], generator=True)  # one for each process
        row.side(f"{side}: p99", measured.p99 * MS, "ms")
        running.check(warm.answers + measured.answers)
        return row.side(side, measured.rate, "orders/s")


def several_processes(options: Options) -> Row:
    """Accepted orders a second of one, two and four processes on one PostgreSQL, against one on SQLite."""
    row = Row(9, "Accepted durable orders per second on PostgreSQL, 50 clients over 1, 2 and 4 processes")
    kept = engines(row)
    for number in range(options.rounds):
        rate = {side: orders_over(row, options, kept[side], side) for side in turns(list(SIZES), number)}
        sqlite, one, two, four = (rate[side] for side in SIZES)
        row.figure("PostgreSQL, 1 process / SQLite", one / sqlite)
        row.figure("2 processes / 1 process", two / one)
        row.figure("4 processes / 1 process", four / one)
    row.note("Every process showed exactly as many orders as all of them answered, none twice; no `seq` was left out.")
    return row


def another_process(options: Options) -> Row:
    """From POST at one process to displays of another, and the CPU time of a process that takes no orders."""
    count, rate = 20, 100
    row = Row(10, f"From POST at one process to {count} displays of another, 100 orders/s; the cost of a follower")
    kept = engines(row)
    for number in range(options.rounds):
        found: dict[str, tuple[float, float]] = {}
        for side in turns(list(SIZES), number):
            with processes(kept[side], SIZES[side], options.folder) as running:
                first, last = running.servers[0], running.servers[-1]
                with Generator(generators.post_to_displays, last.port, count, first.port) as screens:
                    screens.ask(rate, min(1, options.seconds))
                    busy, seen, began = running.cpu(), screens.cpu(), time.monotonic()
                    taken = screens.ask(rate, options.seconds)
                    lasted = time.monotonic() - began
                    row.busy(side, (running.cpu() - busy) / lasted)
                    row.busy(f"poster and displays of {side}", (screens.cpu() - seen) / lasted, generator=True)
                found[side] = statistics.median(taken) * MS, percentile(taken, 0.99) * MS
                row.side(f"{side}: p50", found[side][0], "ms")
                row.side(f"{side}: p99", found[side][1], "ms")
                if SIZES[side] == 2:
                    for displays, name in ((0, "a follower"), (count, f"a follower with {count} displays")):
                        takes, follows = follower(first, last, displays, options.seconds)
                        row.side(f"CPU of the process that takes orders, beside {name}", takes * MS, "µs/order")
                        row.side(f"CPU of {name}", follows * MS, "µs/order")
                        row.figure(f"CPU for an order, {name} / the process that takes it", follows / takes)
        for place, name in ((0, "p50"), (1, "p99")):
            sqlite, *others = (found[side][place] for side in SIZES)
            for side, other in zip(list(SIZES)[1:], others, strict=True):
                row.figure(f"{name} on {side}, minus {name} on SQLite", other - sqlite, unit="ms")
    row.note("With one process, on SQLite or PostgreSQL, it has the displays, too. Every display got every order.")
    return row


ROWS: Final[dict[int, Callable[[Options], Row]]] = {
    1: throughput,
    2: one_client,
    3: large_file,
    4: many_displays,
    5: last_display,
    6: polls,
    7: idle_display,
    8: reconnect_storm,
    9: several_processes,
    10: another_process,
}


def measure(number: int, options: Options) -> Row:
    """One row, with what the rest of the machine did meanwhile."""
    others, version = Others(), app_version()
    row = ROWS[number](options)
    row.rounds, row.app = options.rounds, version
    if app_version() != version:
        row.note("app.py was changed while this row was measured.")
    row.date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    row.note(f"Other processes of the machine kept {others.share():.2f} cores busy.")
    return row
