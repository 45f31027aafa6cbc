"""A restaurant for minutes or hours: `python -m tests.soak --minutes 3` (or `make soak`).

Tills post, cooks cook, screens follow over WebSocket, SSE and polling; all of them lose their connections at random. In
the first half the server is killed or stopped now and then; in the second half it lives, and its memory, descriptors
and WAL are watched. At the end everything is compared: each answered order is there once, and each screen was told
every event once, in order. The last line says what was done, as JSON; the exit code is 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import closing, suppress
from http import HTTPStatus
from pathlib import Path
from statistics import median
from typing import Final

import websockets.exceptions

from tests.harness import DEADLINE, Client, Display, Dropped, EventStream, Json, Peer, Server, an_order, until

TILLS, COOKS, SCREENS, POLLERS = 4, 3, 6, 2
PAUSE: Final = 0.1  # seconds, on average, between two orders of a till
KILL_PERIOD: Final = 10.0  # seconds, on average, between two kills
LOSS: Final = 0.01  # how often a connection is lost, for each message
GROWTH_BYTES: Final = 16 * 1_048_576  # what memory may grow by in the second half, besides …
BYTES_OF_AN_ORDER: Final = 600  # … what is known of each order of the last 24 hours
MOST_WAL_BYTES: Final = 16 * 1_048_576
MOST_FILES: Final = 25  # that may be open more at the end of the second half than at its beginning


def seq_of(cursor: str) -> int:
    return int(cursor.rpartition("-")[2])


class Actor(threading.Thread):
    """Someone who does something again and again until the end, and starts anew when the connection is lost."""

    def __init__(self, server: Server, name: str, ending: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.server, self.ending, self.chance = server, ending, random.Random(name)
        self.fault: BaseException | None = None
        self.losses = 0

    @abstractmethod
    def act(self) -> None:
        """Connect, and go on until the end. May raise OSError or Dropped."""

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                try:
                    self.act()
                except (OSError, EOFError, Dropped, websockets.exceptions.WebSocketException):
                    self.losses += 1
                self.ending.wait(self.chance.random() * 0.2)
        except BaseException as fault:
            self.fault = fault

    def is_lost(self) -> bool:
        """Whether the connection is to be lost now."""
        return self.chance.random() < LOSS


class Till(Actor):
    """Posts orders. What isn't answered is posted again with its key, until it is."""

    def __init__(self, server: Server, name: str, ending: threading.Event) -> None:
        super().__init__(server, name, ending)
        self.answered: dict[str, int] = {}  # key, which is the name of the first line → id
        self.replays = 0

    def act(self) -> None:
        with closing(self.server.client()) as client:
            while not self.is_lost():
                key = f"{self.name}-{len(self.answered)}"
                if self.ending.is_set():
                    return
                order = an_order(key, note="x" * (len(self.answered) % 200))  # the same one when it is posted again
                reply = client.post(order, idempotency_key=key)
                if reply.status == HTTPStatus.CREATED:
                    self.answered[key] = reply.json["id"]
                    self.replays += reply.headers["idempotency-replayed"] == "true"
                else:
                    assert reply.status == HTTPStatus.SERVICE_UNAVAILABLE, reply.body
                self.ending.wait(self.chance.random() * 2 * PAUSE)


class Cook(Actor):
    """Moves the oldest orders on, or cancels one."""

    def __init__(self, server: Server, name: str, ending: threading.Event) -> None:
        super().__init__(server, name, ending)
        self.moves = 0

    def act(self) -> None:
        with closing(self.server.client()) as client:
            while not self.ending.is_set() and not self.is_lost():
                reply = client.get("/api/orders?status=open&limit=200")
                if reply.status != HTTPStatus.OK:
                    raise ConnectionError
                for order in reply.json[::-1][:20]:
                    following = {"received": "preparing", "preparing": "ready", "ready": "completed"}[order["status"]]
                    change = "cancelled" if self.chance.random() < 0.02 else following
                    tag = f'"{order["version"]}"'
                    path = f"/api/order/{order['id']}"
                    moved = client.request("PATCH", path, {"status": change}, if_match=tag)
                    assert moved.status in {200, 412, 503}, moved.body  # another cook was faster, or the disk is away
                    self.moves += moved.status == HTTPStatus.OK
                self.ending.wait(PAUSE)


class Follower(Actor):
    """A screen: has to be told every event once, in order, over all its connections."""

    def __init__(self, server: Server, name: str, ending: threading.Event, cursor: str) -> None:
        super().__init__(server, name, ending)
        self.cursor = cursor
        self.told = 0
        self.board: dict[int, Json] = {}  # the open orders, as the events say

    def take(self, event: Json) -> None:
        assert seq_of(event["cursor"]) == seq_of(self.cursor) + 1, f"{event['cursor']} after {self.cursor}"
        self.cursor = event["cursor"]
        self.told += 1
        order = event["order"]
        self.board.pop(order["id"], None)
        if order["status"] in {"received", "preparing", "ready"}:
            self.board[order["id"]] = order


class Screen(Follower):
    """One over WebSocket or server-sent events."""

    def __init__(self, server: Server, name: str, ending: threading.Event, cursor: str, *, sse: bool) -> None:
        super().__init__(server, name, ending, cursor)
        self._open: Callable[..., Display | EventStream] = EventStream if sse else Display

    def act(self) -> None:
        with closing(self._open(self.server.port, after=self.cursor)) as screen:
            first = screen.message()
            assert first["type"] == "resumed", first["type"]
            assert first["cursor"] == self.cursor
            while not self.ending.is_set() and not self.is_lost():
                event = screen.message()
                if event["type"] != "heartbeat":
                    self.take(event)


class Poller(Follower):
    """One that polls."""

    def act(self) -> None:
        with closing(self.server.client()) as client:
            while not self.ending.is_set() and not self.is_lost():
                reply = client.changes(after=self.cursor, wait=1)
                assert reply.status in {200, 503}, reply.body
                for event in reply.json.get("events", []):
                    self.take(event)


class Guest(Actor):
    """Somebody in the restaurant's network who sends half of something, or nonsense, and leaves."""

    def act(self) -> None:
        with closing(Peer(self.server.port)) as peer:
            if self.chance.random() < 0.5:
                peer.head_of_post(1000)
            else:
                peer.upgrade()
            peer.send(self.chance.randbytes(self.chance.randrange(900)))
            self.ending.wait(self.chance.random())


def files_of(server: Server) -> int:
    return len(list(Path(f"/proc/{server.running.pid}/fd").iterdir()))


def wal_of(server: Server) -> int:
    return Path(f"{server.file}-wal").stat().st_size


def disturb(server: Server, seconds: float, chance: random.Random) -> tuple[int, int]:
    """Kill the server, or stop it, now and then, and start it again. Returns how often each."""
    end, kills, stops = time.monotonic() + seconds, 0, 0
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, chance.expovariate(1 / KILL_PERIOD)))
        if chance.random() < 0.8:
            server.kill()
            kills += 1
        else:
            assert server.stop() == 0
            stops += 1
        server.start()
    return kills, stops


def watch(server: Server, seconds: float, actors: list[Actor]) -> list[tuple[int, int, int]]:
    """(memory, files, WAL) each second, while the server is left alone."""
    samples, end = [], time.monotonic() + seconds
    while time.monotonic() < end and not any(actor.fault for actor in actors):
        time.sleep(1)
        samples.append((server.resident_bytes(), files_of(server), wal_of(server)))
    return samples


def flatness(samples: list[tuple[int, int, int]], orders: int) -> Json:
    """What grew from the second quarter to the last one, and whether that is too much."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    memory, files = ([int(median(s[n] for s in part)) for part in (early, late)] for n in (0, 1))
    wal = max(sample[2] for sample in samples)
    flat = (
        memory[1] - memory[0] < GROWTH_BYTES + orders * BYTES_OF_AN_ORDER
        and files[1] - files[0] < MOST_FILES
        and wal < MOST_WAL_BYTES
    )
    megabytes = [round(each / 1e6, 1) for each in (*memory, wal)]
    return {"memory MB": megabytes[:2], "files": files, "most WAL MB": megabytes[2], "flat": flat}


def compare(client: Client, tills: list[Till], followers: list[Follower]) -> Json:
    """Every answered order is there once, and none that nobody asked for; every screen has caught up and is right."""
    asked = {key for till in tills for key in [*till.answered, f"{till.name}-{len(till.answered)}"]}
    answered = {key: order_id for till in tills for key, order_id in till.answered.items()}
    orders = client.orders()
    found = {order["items"][0]["name"]: order["id"] for order in orders}
    head = seq_of(client.cursor())
    board = {order["id"]: order for order in client.get("/api/orders?status=open").json}
    for follower in followers:
        for event in client.history(follower.cursor):
            follower.take(event)
    return {
        "lost": len([key for key, order_id in answered.items() if found.get(key) != order_id]),
        "doubled": len(orders) - len(found),
        "unasked": len(set(found) - asked),
        "screens that are wrong": len([f for f in followers if f.board != board or seq_of(f.cursor) != head]),
    }


def soak(folder: Path, minutes: float, seed: int) -> Json:
    chance, ending = random.Random(seed), threading.Event()
    server = Server(folder, "--log-level", "error", "--no-access-log")
    actors: list[Actor] = []
    try:
        with closing(server.start().client()) as client:
            cursor = client.cursor()
        tills = [Till(server, f"till {number}", ending) for number in range(TILLS)]
        cooks = [Cook(server, f"cook {number}", ending) for number in range(COOKS)]
        screens = [Screen(server, f"screen {n}", ending, cursor, sse=n % 3 == 2) for n in range(SCREENS)]
        followers = [*screens, *(Poller(server, f"poller {n}", ending, cursor) for n in range(POLLERS))]
        actors = [*tills, *cooks, *followers, Guest(server, "guest", ending)]
        for actor in actors:
            actor.start()
        kills, stops = disturb(server, minutes * 30, chance)
        before = sum(len(till.answered) for till in tills)
        samples = watch(server, minutes * 30, actors)
        ending.set()
        for actor in actors:
            actor.join(2 * DEADLINE)
        faults = [f"{actor.name}: {actor.fault!r}" for actor in actors if actor.fault]
        faults += [f"{actor.name} hangs" for actor in actors if actor.is_alive()]
        orders = sum(len(till.answered) for till in tills)
        with closing(server.client()) as client:
            until(lambda: client.get("/readyz").status == HTTPStatus.OK, "it is ready")
            wrong = compare(client, tills, followers) if not faults else {}
        assert server.stop() == 0
        return {
            "minutes": minutes,
            "kills": kills,
            "stops": stops,
            "orders": orders,
            "changes": sum(cook.moves for cook in cooks),
            "retries that had been committed": sum(till.replays for till in tills),
            "events told": sum(follower.told for follower in followers),
            "connections lost": sum(actor.losses for actor in actors),
            **wrong,
            **flatness(samples, orders - before),
            "faults": faults,
        }
    finally:
        ending.set()
        server.end()
        for actor in actors:
            with suppress(RuntimeError):
                actor.join(DEADLINE)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mixed load, random kills and reconnects; everything is compared.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=92)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        found = soak(Path(folder), options.minutes, options.seed)
        print(json.dumps(found))
        wrong = [found.get(name) for name in ("lost", "doubled", "unasked", "screens that are wrong")]
        sys.exit(0 if wrong == [0] * 4 and found["flat"] and not found["faults"] else 1)


if __name__ == "__main__":
    main()
