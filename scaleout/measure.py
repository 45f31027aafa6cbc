"""What an order costs on PostgreSQL: `python -m scaleout.measure` writes measured.json, which model.py reckons with.

Costs are CPU time, of the process and of PostgreSQL's backends: that hardly depends on what else the machine does, as
rates and latencies would. Of several rounds the cheapest counts. It needs what the benches need (wrk), and a PostgreSQL
on this machine whose user may create databases (TEST_POSTGRESQL_URL).
"""

from __future__ import annotations

import asyncio
import datetime
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import app
from bench.harness import BenchFailed, Server, fdatasync_seconds, load
from bench.processes import backends, follower
from tests.engines import Postgresql
from tests.harness import an_order, backstage

MEASURED: Final = Path(__file__).parent / "measured.json"
ROUNDS: Final = 5
SECONDS: Final = 1.5
DISPLAYS: Final = 200
BATCHES: Final = (1, app.MAX_BATCH)


async def commits(url: str) -> dict[str, dict[str, float]]:
    """Writes in a commit → CPU time of one commit from the lock to its end, without HTTP."""
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        async with backstage(app.storage_at(url)) as behind:
            for size in BATCHES:
                count = 300 if size == 1 else 30  # CPU time is counted in hundredths of a second
                lots = [
                    [behind.write(an_order(), f"{time.monotonic_ns()}-{lot}-{each}") for each in range(size)]
                    for lot in range(count)
                ]
                database, busy = await asyncio.to_thread(backends, url), time.process_time()
                for writes in lots:
                    await behind.book._commit(writes)
                busy = time.process_time() - busy
                database = await asyncio.to_thread(backends, url) - database
                if any(write.done.result().status != 201 for writes in lots for write in writes):
                    raise BenchFailed("an order was not taken")
                found.setdefault(str(size), []).append((1e3 * busy / count, 1e3 * database / count))
    return {
        size: {"process_ms": min(cost[0] for cost in costs), "database_ms": min(cost[1] for cost in costs)}
        for size, costs in found.items()
    }


def requests(server: Server, clients: int) -> float:
    """CPU milliseconds of the process for an order that is posted."""
    load(server, "/api/order", clients, 1)
    costs = []
    for _ in range(ROUNDS):
        busy = server.cpu()
        costs.append((load(server, "/api/order", clients, SECONDS).answers, server.cpu() - busy))
    return min(1e3 * seconds / answers for answers, seconds in costs)


def measure(folder: Path, stack: ExitStack) -> dict[str, Any]:
    engine = Postgresql()
    stack.callback(engine.drop_all)
    (folder / "commits").mkdir()
    flushes = sorted(fdatasync_seconds(folder, 300))
    found: dict[str, Any] = {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "flush_ms": 1e3 * flushes[len(flushes) // 100],
        "commit": asyncio.run(commits(engine.url(folder / "commits"))),
    }
    database = engine.url(folder)
    first = stack.enter_context(Server("bistro92", folder, database=database))
    found["request_process_ms"] = {str(clients): requests(first, clients) for clients in (1, 200)}
    second = stack.enter_context(Server("bistro92", folder, database=database))
    found["follower_ms"] = {
        str(displays): min(follower(first, second, displays, SECONDS)[1] for _ in range(3))
        for displays in (0, DISPLAYS)
    }
    found["process_mib"] = second.memory() / 2**20
    return found


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bistro92-measure-") as folder, ExitStack() as stack:
        found = measure(Path(folder), stack)
    MEASURED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
