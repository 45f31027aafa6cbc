"""How far one PostgreSQL goes, reckoned from what was measured: `python -m scaleout.model` writes CAPACITY.md's tables.

Every write of a database locks its ledger's row until it is committed: that gives `seq` without gaps, and a ceiling.
Processes take turns at it, each with all that waits in it (up to MAX_BATCH). So

    hold(b) = fixed + b × each      a turn with b writes, from the lock to the end of the commit: work, way, disk
    ceiling = MAX_BATCH / hold(MAX_BATCH)

whatever the number of processes. What processes add is CPU time for requests and displays; what they cost is that each
reads the whole log. simulate() plays the turns; the tests hold it to queueing theory where that has an exact answer.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

MAX_BATCH: Final = 250  # as app.MAX_BATCH
FOLDER: Final = Path(__file__).parent
PAGE: Final = FOLDER / "CAPACITY.md"

# Assumed, not measured
BUSY: Final = 0.7  # of a core, or of the counter, that may be used at the peak: beyond it, queues grow fast
CORES: Final = 16  # of a server
CONNECTIONS: Final = 1000  # that one PostgreSQL serves well without a pooler
CONNECTIONS_EACH: Final = 3  # a process's least: one that writes, one that reads, one that listens
WRITES_PER_ORDER: Final = 5  # placed, started, a line or two struck, ready, completed
PROCESSES_EACH: Final = 2  # of a database, so that one may fail
ROUND_TRIPS: Final = 4  # of a commit: the lock, what the writes are about, the writes, the commit


class Site(NamedTuple):
    """Where PostgreSQL stands: milliseconds to it and back, and until a commit is safe. Assumed."""

    name: str
    round_trip: float
    flush: float | None  # None: as it was measured here

    def hold(self, costs: Costs) -> Line:
        """How long a commit keeps the others from theirs."""
        flush = costs.flush if self.flush is None else self.flush
        return Line(costs.commit.fixed + ROUND_TRIPS * self.round_trip + flush, costs.commit.each)


class Line(NamedTuple):
    """A cost that has a part for each commit and a part for each write in it, in milliseconds."""

    fixed: float
    each: float

    def of(self, batch: float) -> float:
        """Of a whole commit."""
        return self.fixed + batch * self.each

    def share(self, batch: float) -> float:
        """Of one write in it."""
        return self.of(batch) / batch


class Costs(NamedTuple):
    """What was measured, in milliseconds of CPU time where nothing else is said."""

    commit: Line  # from the lock to the end of the commit: of the process and PostgreSQL, who work in turn
    process: Line  # of the process that takes the writes, with HTTP
    database: Line  # of PostgreSQL's backends
    follow: float  # of another process, for an event that it reads
    deliver: float  # for one display's event
    flush: float  # until the disk has a commit, elapsed
    memory: float  # of a process, MiB

    @classmethod
    def measured(cls, found: dict[str, Any]) -> Costs:
        few, many = found["commit"]["1"], found["commit"][str(MAX_BATCH)]

        def line(low: float, high: float) -> Line:
            """Through what a commit of one write costs, and one of MAX_BATCH."""
            each = (high - low) / (MAX_BATCH - 1)
            return Line(low - each, each)

        commit = line(sum(few.values()), sum(many.values()))
        decide, database = [line(few[name], many[name]) for name in ("process_ms", "database_ms")]
        http = found["request_process_ms"]["200"] - decide.share(200)  # what a request costs besides its commit
        alone, shown = found["follower_ms"]["0"], found["follower_ms"]["200"]
        process = Line(decide.fixed, decide.each + http)
        return cls(commit, process, database, alone, (shown - alone) / 200, found["flush_ms"], found["process_mib"])


SITES: Final = (
    Site("on the same machine", 0, None),
    Site("on another machine of the room", 0.2, 0.5),
    Site("with a synchronous standby in another zone", 0.3, 2),
    Site("in another region", 20, 2),
)
BATCHES: Final = (1, 10, 50, MAX_BATCH)
NEAR: Final = SITES[1]
"""The site of the tables that follow."""


def ceiling(hold: Line, most: int = MAX_BATCH) -> float:
    """Writes a second that one counter allows, however many processes there are."""
    return 1e3 * most / hold.of(most)


def batch_at(rate: float, hold: Line, most: int = MAX_BATCH) -> float:
    """How many writes share a commit at so many a second: as many as come during one. b = rate × hold(b)."""
    left = 1 - rate * hold.each / 1e3
    return min(most, max(1.0, rate * hold.fixed / 1e3 / left)) if left > 0 else most


def rate_by_cpu(costs: Costs, hold: Line, processes: int, displays: int) -> float:
    """Writes a second at which each of the processes is BUSY, on a core of its own; displays are spread over them."""
    rate = 0.0
    for _ in range(50):  # the batch depends on the rate
        batch = batch_at(rate, hold)
        own = costs.process.share(batch) / processes
        each = own + (1 - 1 / processes) * costs.follow + displays / processes * costs.deliver
        rate = (rate + 1e3 * BUSY / each) / 2
    return rate


class Seen(NamedTuple):
    """What a simulation comes to; times in milliseconds."""

    rate: float  # writes answered a second
    batch: float  # writes in a commit
    mean: float
    p50: float
    p99: float


def simulate(
    hold: Line, rate: float, processes: int, writes: int = 100_000, most: int = MAX_BATCH, seed: int = 92
) -> Seen:
    """Writes come at random, to any process. One with writes and no commit under way asks for the counter, with all
    that wait in it then; who asked first gets it first. A write is answered when its commit ends."""
    draw = random.Random(seed)  # noqa: S311
    arrivals: list[list[float]] = [[] for _ in range(processes)]
    now = 0.0
    for _ in range(writes):
        now += draw.expovariate(rate / 1e3)
        arrivals[draw.randrange(processes)].append(now)
    turns = [(times[0], number, 0) for number, times in enumerate(arrivals) if times]  # (asks when, who, from where)
    heapq.heapify(turns)
    free, commits, waits = 0.0, 0, list[float]()
    while turns:
        asks, number, start = heapq.heappop(turns)
        times = arrivals[number]
        end = min(bisect_right(times, asks, start), start + most)
        free = max(free, asks) + hold.of(end - start)
        commits += 1
        waits += [free - time for time in times[start:end]]
        if end < len(times):
            heapq.heappush(turns, (max(free, times[end]), number, end))
    waits.sort()
    ranked = [waits[math.ceil(rank * writes) - 1] for rank in (0.5, 0.99)]
    return Seen(1e3 * writes / free, writes / commits, sum(waits) / writes, *ranked)


class Place(NamedTuple):
    """A business at its peak."""

    name: str
    venues: int
    orders: float  # a second, in each venue
    displays: int  # in each venue


PLACES: Final = (
    Place("one restaurant, 1 order/s", 1, 1, 10),
    Place("stadium, 300 points of sale, an order every 10 s each", 1, 30, 100),
    Place("one hall with 300 orders/s", 1, 300, 100),
    Place("chain of 100 venues, 2 orders/s each", 100, 2, 8),
    Place("chain of 1,000 venues, 2 orders/s each", 1000, 2, 8),
    Place("10,000 venues, 0.5 orders/s each", 10_000, 0.5, 8),
)


class Need(NamedTuple):
    """What a place needs, with a database for each venue."""

    writes: float  # a second, in all
    counter: float  # share of one counter, if all were in one database
    counter_each: float  # share of each database's counter
    process_cores: float  # kept BUSY
    database_cores: float
    connections: int
    databases_on: int  # PostgreSQL servers, by cores or by connections
    memory: float  # of all processes, GiB


def need(costs: Costs, place: Place) -> Need:
    hold, each = NEAR.hold(costs), place.orders * WRITES_PER_ORDER
    batch, processes = batch_at(each, hold), PROCESSES_EACH
    while rate_by_cpu(costs, hold, processes, place.displays) < each and processes < 64:
        processes += 1
    cpu = costs.process.share(batch) + (processes - 1) * costs.follow + place.displays * costs.deliver
    database_cores = place.venues * each * costs.database.share(batch) / 1e3 / BUSY
    connections = place.venues * processes * CONNECTIONS_EACH
    return Need(
        place.venues * each,
        place.venues * each / ceiling(hold),
        each / ceiling(hold),
        place.venues * each * cpu / 1e3 / BUSY,
        database_cores,
        connections,
        max(math.ceil(database_cores / CORES), math.ceil(connections / CONNECTIONS)),
        place.venues * processes * costs.memory / 1024,
    )


def rows(*header: str) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|---{'|---:' * (len(header) - 1)}|"


def figure(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def tables(found: dict[str, Any]) -> dict[str, str]:
    """The page's tables by name."""
    costs = Costs.measured(found)
    near = NEAR.hold(costs)
    most = ceiling(near)

    def measured() -> Iterator[str]:
        yield from rows("measured", "each commit", "each write in it")
        for name, line in (
            ("a commit's work, of the process and PostgreSQL", costs.commit),
            ("CPU of the process that takes it, with HTTP", costs.process),
            ("CPU of PostgreSQL", costs.database),
        ):
            yield f"| {name} | {figure(line.fixed)} ms | {figure(line.each)} ms |"
        yield f"| until the disk has it | {figure(costs.flush)} ms | |"
        yield f"| CPU of every other process, which reads it | | {figure(costs.follow)} ms |"
        yield f"| CPU for each display that is told | | {figure(1e3 * costs.deliver)} µs |"

    def counter() -> Iterator[str]:
        yield from rows("PostgreSQL stands", *(f"{batch} in a commit" for batch in BATCHES), "one write takes")
        for site in SITES:
            hold = site.hold(costs)
            rates = " | ".join(figure(ceiling(hold, batch)) for batch in BATCHES)
            yield f"| {site.name} | {rates} | {figure(hold.of(1))} ms |"

    def waiting() -> Iterator[str]:
        yield from rows("writes a second", "of the ceiling", "processes", "in a commit", "p50", "p99")
        for share in (0.1, 0.5, 0.8, 0.95):
            for processes in (1, 2, 4, 8):
                seen = simulate(near, share * most, processes)
                times = f"{figure(seen.p50)} ms | {figure(seen.p99)} ms"
                yield f"| {figure(share * most)} | {share:.0%} | {processes} | {figure(seen.batch)} | {times} |"

    def processes() -> Iterator[str]:
        yield from rows("processes, a core each", "10 displays", "100 displays", "1,000 displays", "the counter")
        for number in (1, 2, 4, 8, 16):
            rates = " | ".join(figure(rate_by_cpu(costs, near, number, displays)) for displays in (10, 100, 1000))
            yield f"| {number} | {rates} | {figure(BUSY * most)} |"

    def places() -> Iterator[str]:
        yield from rows(
            "at the peak", "writes/s", "of one counter", "of each venue's", "cores: processes", "cores: PostgreSQL",
            "connections", "PostgreSQL servers", "memory",
        )  # fmt: skip
        for place in PLACES:
            each = need(costs, place)
            yield (
                f"| {place.name} | {figure(each.writes)} | {figure(100 * each.counter)} % "
                f"| {figure(100 * each.counter_each)} % | {figure(each.process_cores)} | {figure(each.database_cores)} "
                f"| {each.connections:,} | {each.databases_on} | {figure(each.memory)} GiB |"
            )

    made = {"measured": measured, "counter": counter, "waiting": waiting, "processes": processes, "places": places}
    return {name: "\n".join(make()) for name, make in made.items()}


def filled(page: str, made: dict[str, str]) -> str:
    """The page with its tables, each between `<!-- name -->` and an empty line."""
    for name, table in made.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        if not mark:
            raise SystemExit(f"{PAGE.name} has no place for the table {name}")
        _, _, rest = f"\n{rest}".partition("\n\n")
        page = f"{before}{mark}{table}\n\n{rest}"
    return page


def main() -> None:
    made = tables(json.loads((FOLDER / "measured.json").read_text(encoding="utf-8")))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    print("\n\n".join(made.values()))


if __name__ == "__main__":
    main()
