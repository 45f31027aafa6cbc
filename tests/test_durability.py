"""kill -9 at any moment: what was answered is there, once; what wasn't can be retried; the feed goes on."""

from __future__ import annotations

import itertools
import json
import random
import threading
from contextlib import closing, suppress

import pytest

from tests.conftest import Serve
from tests.harness import Client, Display, Dropped, Json, Server, an_order, events, until, without_duplicates

CALLERS = 4
ORDERS_OF_A_CALLER = 8
"""In one round: few, because a server reads all open orders at its start, and long runs make thousands of rounds."""


class Caller(threading.Thread):
    """A POS: posts orders with keys, some of them twice, until the server dies under it."""

    def __init__(self, server: Server, name: str, seed: int) -> None:
        super().__init__()
        self.answered: dict[str, Json] = {}  # key → the order that came back with 201
        self.unanswered: dict[str, Json] = {}  # key → what was asked for
        self._server, self._prefix, self._random = server, name, random.Random(seed)
        self._fault: BaseException | None = None

    def run(self) -> None:
        try:
            with closing(self._server.client()) as client, suppress(OSError):
                for number in range(ORDERS_OF_A_CALLER):
                    self._post(client, f"{self._prefix}-{number}")
        except BaseException as error:
            self._fault = error

    def _post(self, client: Client, key: str) -> None:
        order = an_order(key, note="x" * self._random.randrange(200))
        self.unanswered[key] = order
        self.answered[key] = client.place(order, idempotency_key=key)
        del self.unanswered[key]
        if self._random.random() < 0.3:
            again = client.post(order, idempotency_key=key)
            assert (again.json, again.headers["idempotency-replayed"]) == (self.answered[key], "true")

    def finish(self) -> None:
        self.join()
        if self._fault:
            raise self._fault


class Follower(threading.Thread):
    """A display that holds every order it was ever told of; it resumes where the last server died."""

    def __init__(self, server: Server, after: str | None, already: list[Json]) -> None:
        super().__init__()
        self.cursor = after
        self.told = already
        self._display = Display(server.port, after=after)
        first = self._display.message()
        if after is None:
            assert first["type"] == "initial"
            self.told += reversed(first["orders"])
        else:
            assert (first["type"], first["cursor"]) == ("resumed", after)
        self.cursor = first["cursor"]

    def run(self) -> None:
        with closing(self._display), suppress(Dropped):
            for event in events(self._display):
                self.told.append(event["order"])
                self.cursor = event["cursor"]


@pytest.mark.slow
def test_kill_9_at_any_moment(serve: Serve, request: pytest.FixtureRequest) -> None:
    """No order that was answered is lost, doubled or changed; every key leads to one order; a screen misses nothing."""
    rounds = request.config.getoption("--kill-rounds")
    chance = random.Random(rounds)
    server = serve("--log-level", "warning", "--no-access-log")
    answered: dict[str, Json] = {}
    told: list[Json] = []
    log: list[Json] = []
    cursor: str | None = None
    killed_under_load = 0

    server.start()
    with closing(server.client()) as client:
        beginning = position = client.cursor()
    for number in range(rounds):
        follower = Follower(server, cursor, told)
        follower.start()
        callers = [Caller(server, f"{number}-{caller}", chance.getrandbits(32)) for caller in range(CALLERS)]
        for caller in callers:
            caller.start()
        moment = chance.randrange(CALLERS * ORDERS_OF_A_CALLER)
        until(lambda: sum(len(each.answered) for each in callers) >= moment, "orders are answered")  # noqa: B023
        for _ in range(chance.randrange(2000)):  # anywhere between two answers
            pass
        server.kill()
        for caller in callers:
            caller.finish()
        follower.join()
        cursor = follower.cursor

        server.start()
        unanswered = dict(itertools.chain.from_iterable(caller.unanswered.items() for caller in callers))
        killed_under_load += bool(unanswered)
        new = dict(itertools.chain.from_iterable(caller.answered.items() for caller in callers))
        with closing(server.client()) as client:
            for key, order in new.items():
                asked = {name: order[name] for name in ("table", "items", "note")}
                again = client.post(asked, idempotency_key=key)
                assert (again.status, again.json, again.headers["idempotency-replayed"]) == (201, order, "true")
            for key, asked in unanswered.items():
                new[key] = client.place(asked, idempotency_key=key)
            page = client.history(position)
        made = [event["order"] for event in page]
        assert {order["items"][0]["name"]: order for order in made} == new
        assert len(made) == len(new)
        log += page
        position = log[-1]["cursor"] if log else beginning
        answered |= new

    follower = Follower(server, cursor, told)
    follower.start()
    until(lambda: follower.cursor == position, "the display has caught up")
    with closing(server.client()) as client:
        listed = client.orders()
    assert told == listed[::-1]
    assert told == [event["order"] for event in log]
    assert {order["items"][0]["name"]: order for order in listed} == answered
    assert without_duplicates(order["id"] for order in told) == list(range(1, len(told) + 1))
    assert [int(event["cursor"].rpartition("-")[2]) for event in log] == list(range(1, len(log) + 1))
    assert {event["cursor"].rpartition("-")[0] for event in log} == {beginning.rpartition("-")[0]}
    assert killed_under_load >= rounds // 2, "the kills hit too few orders under way to show anything"
    assert server.stop() == 0
    follower.join()
    print(json.dumps({"rounds": rounds, "orders": len(listed), "under load": killed_under_load}))
