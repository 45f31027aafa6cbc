"""The feed: one log, read three ways, with no gap, no duplicate and no wrong history."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import pytest

import app
from tests.conftest import Serve
from tests.harness import (
    DEADLINE,
    SCREENS,
    Backstage,
    Client,
    Display,
    Dropped,
    EventStream,
    Json,
    Screen,
    Server,
    an_order,
    backstage,
    events,
    events_up_to,
    eventually,
    nobody_leaves,
    parse_problem,
    until,
    without_duplicates,
)

both = pytest.mark.parametrize("screen", SCREENS)
Open = Callable[..., Screen]


def board_of(orders: list[Json]) -> list[Json]:
    return [order for order in orders if order["status"] in {"received", "preparing", "ready"}]


def post_many(server: Server, orders: list[Json], at_once: int = 8) -> None:
    """Post orders over several connections, so that commits take several of them."""
    local = threading.local()
    clients: list[Client] = []

    def post(order: Json) -> None:
        if not hasattr(local, "client"):
            local.client = server.client()
            clients.append(local.client)
        local.client.place(order)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(post, orders))
    for client in clients:
        client.close()


# ---------------------------------------------------------------------------------------------------------------------
# The hand-over from the snapshot to the stream
# ---------------------------------------------------------------------------------------------------------------------


@both
def test_screens_that_connect_while_orders_are_posted(server: Server, client: Client, screen: Open) -> None:
    """Whenever a screen connects, what it is shown first and what follows add up to the list, each order once."""
    orders, screens = 300, 30
    before = client.cursor()
    posted = 0
    moments = random.Random(screen.__name__)

    def post(count: int) -> None:
        nonlocal posted
        with closing(server.client()) as poster:
            for number in range(count):
                poster.place(an_order(f"Dish {number}"))
                posted += 1

    def watch(moment: int) -> list[Json]:
        until(lambda: posted >= moment, f"{moment} orders posted")
        with closing(screen(server.port)) as watching:
            told = events(watching)
            first = next(told)
            assert first["type"] == "initial"
            seen = [first]
            while len(first["orders"]) + len(seen) - 1 < already + orders:
                seen.append(next(told))
            return seen

    already = len(board_of(client.orders()))
    with ThreadPoolExecutor(screens + 6) as pool:
        watching = [pool.submit(watch, moments.randrange(orders)) for _ in range(screens)]
        posting = [pool.submit(post, orders // 6) for _ in range(6)]
        for task in posting:
            task.result()
        log = client.history(before)
        cursors = [before, *(event["cursor"] for event in log)]
        for screen_task in watching:
            initial, *told = screen_task.result()
            place = cursors.index(initial["cursor"])
            assert told == log[place:]
            shown = [*reversed([event["order"] for event in told]), *initial["orders"]]
            without_duplicates(order["id"] for order in shown)
            assert shown == board_of(client.orders())


class Wire:
    """The server's side of a WebSocket, with a transport to write to directly as uvicorn's has.

    `on_send` runs at every await of the subscriber that sends, before the message is taken and after it.
    """

    def __init__(self, on_step: Callable[[], Any], *, direct: bool) -> None:
        self.messages: list[Json] = []
        self.transport = self if direct else None
        self._on_step = on_step

    async def send(self, message: Any) -> None:
        await self._on_step()
        self.messages.append(json.loads(message["text"]))
        await self._on_step()

    def write(self, data: bytes) -> None:
        while data:
            assert data[0] == 0x81
            size, data = data[1], data[2:]
            if size > 125:
                width = 2 if size == 126 else 8
                size, data = int.from_bytes(data[:width], "big"), data[width:]
            self.messages.append(json.loads(data[:size]))
            data = data[size:]

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None: ...

    def close(self) -> None: ...


class StepStorage(app.Storage):
    """Runs `on_step` before and after it reads a page of the log."""

    on_step: Callable[[], Any] | None = None

    async def events(self, after: int) -> list[Any]:
        if self.on_step:
            await self.on_step()
        rows = await super().events(after)
        if self.on_step:
            await self.on_step()
        return rows


@pytest.mark.sqlite
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("resumed", [None, 0, 7, 40])
def test_a_commit_at_every_step_of_subscribing(direct: bool, resumed: int | None) -> None:
    """A commit at any await of a subscriber, while it is greeted, reads the past or goes live, reaches it just once."""

    async def subscribe_with_a_commit_at(step: int) -> bool:
        """Whether the subscriber had that many steps."""
        storage = StepStorage("sqlite://")
        async with backstage(storage, subscriber_queue_bytes=1024) as behind:
            for number in range(40):
                await behind.place(an_order(f"Dish {number}"))
            assert behind.feed.since(0) is None  # the oldest are in the database only
            steps, interrupting = 0, False

            async def on_step() -> None:
                nonlocal steps, interrupting
                steps += 1
                if steps == step:
                    interrupting = True
                    for _ in range(3):
                        await behind.place(an_order("Interruption"))
                    interrupting = False

            storage.on_step = on_step
            wire = Wire(on_step, direct=direct)
            after = None if resumed is None else behind.cursor(resumed)
            await follow(behind, wire, after, lambda: not interrupting)
            return steps >= step

    async def follow(behind: Backstage, wire: Wire, after: str | None, calm: Callable[[], bool]) -> None:
        gone = asyncio.Event()

        async def receive() -> Any:
            await gone.wait()
            return {"type": "websocket.disconnect", "code": 1000}

        scope: Any = {"type": "websocket", "bistro92.transport": wire.transport, "bistro92.credential": app.LOCAL}
        subscriber = app.Subscriber(behind.manager, scope, wire.send, None)
        serving = asyncio.create_task(behind.manager.serve(subscriber, after, receive))
        await eventually(lambda: subscriber.live, "the subscriber is live")
        await behind.place(an_order("Last"))
        await eventually(lambda: calm() and wire.messages[-1]["cursor"] == behind.cursor(), "the last order")
        gone.set()
        await serving

        first, *told = wire.messages
        listed = await behind.listed()
        if after is None:
            assert first["type"] == "initial"
            shown = [*reversed(first["orders"]), *(event["order"] for event in told)]
        else:
            assert (first["type"], first["cursor"]) == ("resumed", after)
            listed = listed[resumed:]
            shown = [event["order"] for event in told]
        assert shown == listed

    async def every_step() -> None:
        step = 1
        while await subscribe_with_a_commit_at(step):
            step += 1
        assert direct or step > 2

    asyncio.run(every_step())


@pytest.mark.sqlite
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("resumed", [None, 2])
def test_news_at_every_turn_of_the_loop(direct: bool, resumed: int | None) -> None:
    """News that comes between any two turns of the loop, while a screen subscribes, reaches it just once."""

    async def nothing() -> None: ...

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def subscribe_with_news_at(turn: int) -> None:
        async with backstage() as behind:
            for number in range(1, 5):
                behind.manager.publish([event(number, number, epoch=behind.feed.epoch)])
            wire = Wire(nothing, direct=direct)
            scope: Any = {"type": "websocket", "bistro92.transport": wire.transport, "bistro92.credential": app.LOCAL}
            subscriber = app.Subscriber(behind.manager, scope, wire.send, None)
            after = None if resumed is None else behind.cursor(resumed)
            serving = asyncio.create_task(behind.manager.serve(subscriber, after, receive))
            for _ in range(turn):
                await asyncio.sleep(0)
            behind.manager.publish([event(5, 5, epoch=behind.feed.epoch)])
            await eventually(lambda: subscriber.live and subscriber.position == 5, "it is live")
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            first, *told = wire.messages
            shown = [order["id"] for order in first.get("orders", [])[::-1]] + [each["order"]["id"] for each in told]
            assert shown == list(range(1 + (resumed or 0), 6))

    async def every_turn() -> None:
        for turn in range(25):
            await subscribe_with_news_at(turn)

    asyncio.run(every_turn())


@pytest.mark.sqlite
def test_a_page_of_the_log_that_is_ahead_of_the_feed() -> None:
    """Events that are committed but not published yet, and are read from the database, are told once and in order."""

    class EagerStorage(app.Storage):
        """Reads the log as it will be a moment later."""

        async def events(self, after: int) -> list[Any]:
            rows = await super().events(after)
            seq, kind, body = rows[-1]
            return [*rows, (seq + 1, kind, json.dumps({**json.loads(body), "id": seq + 1}))]

    async def scenario() -> None:
        storage = EagerStorage("sqlite://")
        async with backstage(storage, subscriber_queue_bytes=1024) as behind:
            for number in range(40):
                await behind.place(an_order(f"Dish {number}"))
            told, cursor = await behind.manager.changes(behind.cursor(0), limit=500, wait=0, receive=nobody_leaves)
            assert [event.seq for event in told] == list(range(1, 41))
            assert cursor == behind.cursor()

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------------------------------------------
# Resuming
# ---------------------------------------------------------------------------------------------------------------------


@both
def test_resuming_at_every_position(server: Server, client: Client, screen: Open) -> None:
    """Wherever a screen was interrupted, it is told exactly what it missed."""
    before = client.cursor()
    post_many(server, [an_order(f"Dish {number}") for number in range(25)])
    log = client.history(before)
    assert len(log) == 25
    for missed, cursor in enumerate([*reversed([event["cursor"] for event in log]), before]):
        with closing(screen(server.port, after=cursor)) as watching:
            told = events(watching)
            first = next(told)
            assert (first["type"], first["cursor"], "orders" in first) == ("resumed", cursor, False)
            assert [next(told) for _ in range(missed)] == log[len(log) - missed :]
    with closing(screen(server.port, after=before)) as watching:
        last = client.place(an_order("Last"))
        shown = [event["order"] for event in events_up_to(watching, client.cursor())[1:]]
        assert shown == [*(event["order"] for event in log), last]


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str, list[Json]]]:
    """A server that keeps a few events in memory, where it stood at first, and 1,100 events since."""
    server = Server(tmp_path_factory.mktemp("long"), subscriber_queue_bytes=1024)
    try:
        server.start()
        with closing(server.client()) as client:
            before = client.cursor()
            post_many(server, [an_order(f"Dish {number}") for number in range(1100)])
            log = client.history(before)
            assert [event["order"]["id"] for event in log] == list(range(1, 1101))
            yield server, before, log
    finally:
        server.end()


@both
@pytest.mark.parametrize("position", [0, 1, 99, 499, 500, 501, 599, 600, 601, 1000, 1085, 1090, 1095, 1099])
def test_resuming_from_a_position_that_has_left_memory(
    long_log: tuple[Server, str, list[Json]], screen: Open, position: int
) -> None:
    """What is no longer in memory is read from the log, page by page, and meets what is."""
    server, before, log = long_log
    after = log[position - 1]["cursor"] if position else before
    with closing(screen(server.port, after=after)) as watching:
        told = events(watching)
        assert next(told)["type"] == "resumed"
        assert [next(told) for _ in range(len(log) - position)] == log[position:]


@pytest.mark.parametrize("limit", [1, 100, 499, 500, 1000])
def test_polling_pages_through_a_log_that_has_left_memory(long_log: tuple[Server, str, list[Json]], limit: int) -> None:
    """Pages of any size add up to the log, and each page's cursor is its last event's."""
    server, before, log = long_log
    log = log[-30:] if limit == 1 else log
    after = log[0]["cursor"] if limit == 1 else before
    rest = log[1:] if limit == 1 else log
    with closing(server.client()) as client:
        assert client.history(after, limit) == rest
        page = client.changes(after=after, limit=limit).json
        assert page["cursor"] == page["events"][-1]["cursor"]
        assert len(page["events"]) == min(limit, len(rest), app.PAGE_ROWS)


def test_resuming_from_the_log_while_orders_are_posted(serve: Serve) -> None:
    """A screen that is cut off again and again, and resumes while orders come in, holds each order once, in order."""
    server = serve(subscriber_queue_bytes=1024).start()
    with closing(server.client()) as client:
        before = client.cursor()
        post_many(server, [an_order(f"Dish {number}") for number in range(300)])
        posting = threading.Thread(
            target=post_many, args=(server, [an_order(f"Late dish {number}") for number in range(400)], 4)
        )
        posting.start()
        told: list[Json] = []
        cuts = random.Random(92)
        while len(told) < 700:
            after = told[-1]["cursor"] if told else before
            with closing(cuts.choice(SCREENS)(server.port, after=after)) as watching:
                try:
                    following = events(watching)
                    first = next(following)
                    assert (first["type"], first["cursor"]) == ("resumed", after)
                    told.extend(itertools.islice(following, min(cuts.randrange(1, 90), 700 - len(told))))
                except Dropped:  # so small a queue may well be full; then it resumes
                    continue
        posting.join()
        client.close()  # idle for so long that the server may have let it go
        assert told == client.history(before)
        assert [event["order"] for event in reversed(told)] == client.orders()


def wrong_cursors(cursor: str) -> dict[str, str]:
    epoch, _, seq = cursor.rpartition("-")
    other = ("0" if epoch[0] != "0" else "1") + epoch[1:]
    return {
        "empty": "",
        "nonsense": "nonsense",
        "other history": f"{other}-{seq}",
        "future": f"{epoch}-{int(seq) + 1}",
        "negative": f"{epoch}--1",
        "number only": seq,
        "not ASCII": f"{epoch}-¹",
        "very long": f"{epoch}-{'9' * 100}",
    }


@both
@pytest.mark.parametrize("kind", list(wrong_cursors("a-1")))
def test_a_cursor_that_cannot_be_resumed(server: Server, client: Client, screen: Open, kind: str) -> None:
    """A screen with a cursor of no use is shown everything anew."""
    client.place(an_order())
    cursor = wrong_cursors(client.cursor())[kind]
    with closing(screen(server.port, after=cursor)) as watching:
        first = watching.message()
        assert first["type"] == "initial"
        assert first["orders"] == board_of(client.orders())
        assert first["cursor"] == client.cursor()


@pytest.mark.parametrize("kind", list(wrong_cursors("a-1")))
def test_polling_with_a_cursor_that_cannot_be_resumed(client: Client, kind: str) -> None:
    """A poll with a cursor of no use gets 410 cursor_lost, even if it would wait."""
    cursor = wrong_cursors(client.cursor())[kind]
    assert parse_problem(client.changes(after=cursor)) == (410, "cursor_lost")
    assert parse_problem(client.changes(after=cursor, wait=5)) == (410, "cursor_lost")


def test_last_event_id_and_after_together(server: Server, client: Client) -> None:
    """`Last-Event-ID`, which a browser sends when it reconnects, beats the `after` of the address it first opened."""
    early = client.cursor()
    client.place(an_order())
    late = client.cursor()
    client.place(an_order())
    with closing(EventStream(server.port, after=early, last_event_id=late)) as watching:
        assert watching.message()["cursor"] == late
        assert watching.message()["cursor"] == client.cursor()


# ---------------------------------------------------------------------------------------------------------------------
# The same for all
# ---------------------------------------------------------------------------------------------------------------------


def test_the_same_events_over_websocket_sse_and_polling(server: Server, client: Client) -> None:
    """All three ways tell the same events with the same cursors, in `seq` order, while orders are posted."""
    before = client.cursor()
    with closing(Display(server.port)) as display, closing(EventStream(server.port)) as stream:
        assert display.message()["cursor"] == stream.message()["cursor"] == before
        post_many(server, [an_order(f"Dish {number}") for number in range(200)])
        log = client.history(before)
        assert events_up_to(display, log[-1]["cursor"]) == log
        assert events_up_to(stream, log[-1]["cursor"]) == log
    seqs = [app.read_cursor(event["cursor"], before.rpartition("-")[0]) for event in log]
    first = app.read_cursor(before, before.rpartition("-")[0])
    assert first is not None
    assert seqs == list(range(first + 1, first + 201))


@both
def test_what_an_event_carries(server: Server, client: Client, screen: Open) -> None:
    """Every message has the members that the contract names, and no others."""
    with closing(screen(server.port)) as watching:
        initial = watching.message()
        assert set(initial) == {"type", "orders", "cursor", "server_time"}
        order = client.place(an_order())
        event = watching.message()
        assert event == {"type": "new_order", "order": order, "cursor": client.cursor()}
    with closing(screen(server.port, after=initial["cursor"])) as watching:
        resumed = watching.message()
        assert set(resumed) == {"type", "cursor", "server_time"}


@both
def test_an_order_for_later(server: Server, client: Client, screen: Open) -> None:
    """A scheduled order is told as such, and isn't on the board."""
    with closing(screen(server.port)) as watching:
        watching.message()
        order = client.place(an_order(fire_at="2999-01-01T00:00:00Z"))
        event = watching.message()
        assert (event["type"], event["order"]) == ("order_scheduled", order)
    with closing(screen(server.port)) as watching:
        assert order["id"] not in [shown["id"] for shown in watching.message()["orders"]]


@both
def test_a_station_filter(server: Server, client: Client, screen: Open) -> None:
    """A station's screen gets whole orders that have a line for it, first, live and resumed, and no others."""
    station = f"grill of {screen.__name__}"
    mine = {"name": "Steak", "quantity": 1, "station": station}
    other = {"name": "Soup", "quantity": 2, "station": "pot"}
    before = client.cursor()
    wanted = [client.place({"table": "1", "items": items}) for items in ([mine], [other, mine])]
    client.place({"table": "1", "items": [other]})
    with closing(screen(server.port, station=station)) as watching:
        told = events(watching)
        assert next(told)["orders"] == wanted[::-1]
        client.place(an_order("Water"))
        wanted.append(client.place({"table": "2", "items": [mine, other]}))
        event = next(told)
        assert event["order"] == wanted[-1]
    with closing(screen(server.port, station=station, after=before)) as watching:
        resumed = events_up_to(watching, event["cursor"])
        assert [event["order"] for event in resumed[1:]] == wanted


def test_batches(server: Server, client: Client) -> None:
    """With batch=true several events may come in one message, and are the same events."""
    before = client.cursor()
    with closing(Display(server.port, batch=True)) as live:
        live.message()
        post_many(server, [an_order(f"Dish {number}") for number in range(120)])
        log = client.history(before)
        assert events_up_to(live, log[-1]["cursor"]) == log
    with closing(Display(server.port, batch=True, after=before)) as resumed:
        resumed.message()
        batch = resumed.message()
        assert set(batch) == {"type", "events", "cursor"}
        assert (batch["type"], batch["events"], batch["cursor"]) == ("batch", log, log[-1]["cursor"])


def test_no_batches_unless_asked_for(server: Server, client: Client) -> None:
    """A client that doesn't know batches isn't sent any."""
    before = client.cursor()
    post_many(server, [an_order(f"Dish {number}") for number in range(20)])
    with closing(Display(server.port, after=before)) as watching:
        watching.message()
        assert [watching.message()["type"] for _ in range(20)] == ["new_order"] * 20


def test_a_text_that_means_nothing(server: Server) -> None:
    """What a client says that means nothing to the server comes back as an echo."""
    with closing(Display(server.port)) as display:
        display.message()
        for text in ("hello", '{"type": "ping"}', "", "Ünïcödé ☕"):
            display.socket.send(text)
            assert display.message() == {"type": "echo", "message": text}


# ---------------------------------------------------------------------------------------------------------------------
# Waiting
# ---------------------------------------------------------------------------------------------------------------------


def test_a_poll_that_waits(server: Server, client: Client) -> None:
    """A poll with `wait` is held until something happens, and then has it."""
    cursor = client.cursor()
    with ThreadPoolExecutor(1) as pool, closing(server.client()) as waiting:
        until(lambda: server.metric("bistro92_subscribers") == 0, "other tests' screens are gone")
        poll = pool.submit(waiting.changes, after=cursor, wait=30)
        until(lambda: server.metric("bistro92_subscribers") == 1, "the poll waits")
        order = client.place(an_order())
        reply = poll.result(DEADLINE)
        assert [event["order"] for event in reply.json["events"]] == [order]
        assert reply.json["cursor"] == client.cursor()


def test_a_poll_that_waits_in_vain(client: Client) -> None:
    """A poll in whose time nothing happens gets no events, and the cursor that it came with."""
    client.place(an_order())
    cursor = client.cursor()
    assert client.changes(after=cursor, wait=0.05).json == {"events": [], "cursor": cursor}


@pytest.mark.sqlite
@pytest.mark.slow
def test_heartbeats(server: Server, client: Client) -> None:
    """A silent feed shows every 20 s that it is alive, and where it stands."""
    patience = app.HEARTBEAT_SECONDS + DEADLINE
    with closing(Display(server.port)) as display, closing(EventStream(server.port, deadline=patience)) as stream:
        display.message()
        stream.message()
        started = time.monotonic()
        for heartbeat in (display.message(patience), stream.message()):
            assert set(heartbeat) == {"type", "cursor", "server_time"}
            assert (heartbeat["type"], heartbeat["cursor"]) == ("heartbeat", client.cursor())
        assert time.monotonic() - started >= app.HEARTBEAT_SECONDS - 1
        order = client.place(an_order())
        assert display.message()["order"] == stream.message()["order"] == order


# ---------------------------------------------------------------------------------------------------------------------
# Bounds
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.sqlite
def test_events_past_their_retention(serve: Serve) -> None:
    """A cursor that reaches back to events which were forgotten says so, and never gives a part; keys outlive them."""
    server = serve().start()
    with closing(server.client()) as client:
        before = client.cursor()
        first = client.place(an_order(), idempotency_key="kept")
        second = client.place(an_order())
        last = client.cursor()
    server.stop()
    a_moment = 0.001 / 3600
    until(lambda: app.clock(hours=a_moment) > second["updated_at"], "the events are older than a moment")
    server.start(event_retention_hours=a_moment)
    with closing(server.client()) as client:
        until(lambda: client.changes(after=before).status == 410, "the events are forgotten")
        assert parse_problem(client.changes(after=before)) == (410, "cursor_lost")
        for screen in SCREENS:
            with closing(screen(server.port, after=before)) as watching:
                assert watching.message()["type"] == "initial"
            with closing(screen(server.port, after=last)) as watching:
                assert watching.message()["type"] == "resumed"
        assert client.changes(after=last).json == {"events": [], "cursor": last}
        again = client.post(an_order(), idempotency_key="kept")
        assert (again.status, again.headers["idempotency-replayed"], again.json) == (201, "true", first)
        assert len(client.orders()) == 2
    server.stop()
    server.start()
    with closing(server.client()) as client:
        assert parse_problem(client.changes(after=before)) == (410, "cursor_lost")
        assert client.changes(after=last).json == {"events": [], "cursor": last}


def test_forgetting_goes_in_log_order() -> None:
    """What is left of the log after forgetting is always its end, whole; later commits go on from its head."""

    async def scenario() -> None:
        async with backstage() as behind:
            for _ in range(5):
                await behind.place()
            await behind.storage.write("UPDATE events SET at = '2000-01-01T00:00:00Z' WHERE seq IN (1, 2, 4)")
            assert await behind.storage.forget("2001-01-01T00:00:00Z", "") == 2
            assert [row[0] for row in await behind.storage.events(0)] == [3, 4, 5]
            assert await behind.storage.forget("2001-01-01T00:00:00Z", "") is None
            await behind.place()
            assert [row[0] for row in await behind.storage.events(4)] == [5, 6]

    asyncio.run(scenario())


@pytest.mark.parametrize("station", ["", "x" * 33, "a%00b"])
def test_a_station_that_is_none(client: Client, station: str) -> None:
    """A display is refused before its socket opens, as a stream is: 422 with the field at fault."""
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec_websocket_version": "13"}
    key = "AAAAAAAAAAAAAAAAAAAAAA=="
    for reply in (
        client.get(f"/ws/orders?station={station}", sec_websocket_key=key, **upgrade),
        client.get(f"/api/events?station={station}"),
    ):
        assert parse_problem(reply) == (422, "invalid_request")
        assert [fault["pointer"] for fault in reply.json["errors"]] == ["/station"]
        client.close()


def test_one_subscriber_too_many(serve: Serve) -> None:
    """One too many gets 1013 or 503; when one leaves, another is let in."""
    server = serve(max_subscribers=2).start()
    with closing(server.client()) as client, closing(EventStream(server.port)) as stream:
        assert stream.message()["type"] == "initial"
        display = Display(server.port)
        assert display.message()["type"] == "initial"

        with closing(Display(server.port)) as refused, pytest.raises(Dropped) as end:
            refused.message()
        assert end.value.code == 1013
        reply = client.get("/api/events")
        assert parse_problem(reply) == (503, "too_many_subscribers")
        assert reply.headers["retry-after"]
        assert parse_problem(client.changes(after=client.cursor(), wait=5)) == (503, "too_many_subscribers")

        order = client.place(an_order())
        assert display.message()["order"] == stream.message()["order"] == order
        display.close()
        until(lambda: server.metric("bistro92_subscribers") == 1, "the display is gone")
        with closing(Display(server.port)) as another:
            assert another.message()["orders"] == [order]


@both
def test_a_screen_that_comes_and_goes_while_a_commit_hangs(server: Server, client: Client, screen: Open) -> None:
    """Commits go first, but not for long: it is let in, and forgotten when it has left, while the order waits."""
    subscribers = partial(server.metric, "bistro92_subscribers")
    until(lambda: subscribers() == 0, "other tests' screens are gone")
    with ThreadPoolExecutor(1) as pool, server.held() as let_go:
        posting = pool.submit(post_many, server, [an_order()])
        for _ in range(3):
            with closing(screen(server.port)) as come:
                assert come.message()["type"] == "initial"
                assert subscribers() == 1
            until(lambda: subscribers() == 0, "it is forgotten")
        assert not posting.done()
        let_go()
        posting.result(DEADLINE)


@pytest.mark.sqlite
def test_who_is_sent_away_does_not_stand_in_the_door() -> None:
    """Whose access ends is told nothing from then on, however many are leaving, and a stranger never comes so far."""

    async def scenario() -> None:
        async with backstage() as behind:
            wire = Wire(asyncio.Event().wait, direct=True)
            scope: Any = {"type": "websocket", "bistro92.transport": wire.transport, "bistro92.credential": app.LOCAL}
            subscriber = app.Subscriber(behind.manager, scope, wire.send, None)
            serving = asyncio.create_task(behind.manager.serve(subscriber, None, nobody_leaves))
            await eventually(lambda: subscriber.live, "the subscriber is live")
            async with behind.manager._door:
                behind.manager.dismiss(1008, "revoked")
                assert await asyncio.wait_for(serving, DEADLINE) == (1008, "revoked")

        answered: list[Any] = []
        stranger: Any = {
            "type": "http", "scheme": "http", "method": "GET", "path": "/api/events", "query_string": b"",
            "headers": [(b"host", b"bistro.example")], "client": ("192.0.2.1", 50_000),
        }  # fmt: skip

        async def send(message: Any) -> None:
            answered.append(message)

        async with app.manager._door:
            await asyncio.wait_for(app.app(stranger, nobody_leaves, send), DEADLINE)
        assert answered[0]["status"] == 403

    asyncio.run(scenario())


def test_a_door_that_is_open_for_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where commits never rest, subscribers come in all the same: who has waited lets those behind pass."""
    monkeypatch.setattr(app, "DOOR_SECONDS", DEADLINE)

    async def scenario() -> None:
        async with backstage() as behind:
            behind.manager.calm.clear()
            crowd = [asyncio.create_task(behind.manager.pass_door()) for _ in range(5)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            behind.manager.calm.set()
            behind.manager.calm.clear()
            await asyncio.wait_for(asyncio.gather(*crowd), DEADLINE / 2)

    asyncio.run(scenario())


def test_a_crowd_that_has_stood_in_the_door_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for no commit any more: who gives up and comes again would only make the line longer."""
    monkeypatch.setattr(app, "DOOR_SECONDS", DEADLINE)
    monkeypatch.setattr(app, "LINE_SECONDS", 0.0)

    async def scenario() -> None:
        async with backstage() as behind:
            behind.manager.calm.clear()
            await asyncio.wait_for(behind.manager.pass_door(), DEADLINE / 2)

    asyncio.run(scenario())


def test_a_crowd_in_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subscribers come in one a turn of the loop, in their order, and none while a commit is under way."""
    monkeypatch.setattr(app, "DOOR_SECONDS", DEADLINE)

    async def scenario() -> None:
        async with backstage() as behind:
            inside: list[int] = []

            async def come(number: int) -> None:
                await behind.manager.pass_door()
                inside.append(number)

            async with behind.book.write_lock:
                placing = asyncio.create_task(behind.place())
                crowd = [asyncio.create_task(come(number)) for number in range(5)]
                for _ in range(20):
                    await asyncio.sleep(0)
                assert inside == []
            await placing
            grown = [len(inside)]
            while len(inside) < len(crowd):
                await asyncio.sleep(0)
                grown.append(len(inside))
            assert inside == [0, 1, 2, 3, 4]
            assert max(later - sooner for sooner, later in itertools.pairwise(grown)) == 1

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------------------------------------------
# Rules of the feed, without a server
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq", [0, 1, 9, 10, 2**40])
def test_a_cursor_there_and_back(seq: int) -> None:
    """A cursor read in its own history gives its position, in another one nothing."""
    assert app.read_cursor(app.make_cursor("0123456789ab", seq), "0123456789ab") == seq
    assert app.read_cursor(app.make_cursor("0123456789ab", seq), "ba9876543210") is None


@pytest.mark.parametrize("text", ["", "-", "1", "0123456789ab-", "0123456789ab-01", "0123456789AB-1"])
@pytest.mark.parametrize("around", ["{}", "x{}", "{}\n", "{}¹"])
def test_a_text_that_is_no_cursor(text: str, around: str) -> None:
    """Only what the server could have written is a cursor."""
    assert app.read_cursor(around.format(text), "0123456789ab") is None


EPOCH = "0123456789ab"


def event(
    seq: int,
    order_id: int,
    *,
    note: str = "",
    status: str = "received",
    station: str | None = None,
    epoch: str = EPOCH,
) -> app.Event:
    line: Any = {"name": "Burger", "quantity": 2, **({"station": station} if station else {})}
    order: Any = {"id": order_id, "items": [line], "status": status, "note": note}
    order["created_at"] = "2026-11-20T18:15:02Z"
    return app.Event(seq, "new_order", order, json.dumps(order).encode(), epoch)


def test_what_the_feed_keeps_in_memory() -> None:
    """Memory holds the newest events within its bytes; what it says about a position fits the log at every position."""
    feed = app.Feed(kept_bytes=2000)
    feed.load(EPOCH, 5, 2, [])
    published = [event(seq, seq, note="x" * (seq * 37 % 400)) for seq in range(6, 60)]
    for start in range(0, len(published), 3):
        feed.publish(published[start : start + 3])
        kept = sum(len(each.body) for each in feed.recent)
        assert kept <= 2000 + len(feed.recent[0].body)
        for seq in range(feed.head + 1):
            after = [each for each in published if seq < each.seq <= feed.head]
            found = feed.since(seq)
            if found is None:
                assert feed.bytes_since(seq) > 1000
            else:
                assert found == after
                assert feed.bytes_since(seq) == sum(len(each.body) for each in after)
    assert feed.since(6) is None
    assert feed.since(feed.head) == []


@pytest.mark.parametrize(("seq", "resumable"), [(1, False), (2, True), (5, True), (7, True), (8, False)])
def test_which_positions_the_feed_can_resume(seq: int, resumable: bool) -> None:
    """Everything from the floor to the head can be resumed from, and nothing else."""
    feed = app.Feed(kept_bytes=2000)
    feed.load(EPOCH, 5, 2, [])
    feed.publish([event(6, 6), event(7, 7)])
    assert (feed.resumable(app.make_cursor(EPOCH, seq)) == seq) is resumable


def test_the_board_that_the_events_add_up_to() -> None:
    """The board is the open orders as last told, newest first, for all and for each station."""
    feed = app.Feed(kept_bytes=2000)
    feed.load(EPOCH, 0, 0, [event(0, 3, station="bar").body])
    feed.publish([event(1, 1), event(2, 2, station="bar"), event(3, 4)])
    assert [order["id"] for order in json.loads(feed.snapshot(None))] == [4, 3, 2, 1]
    assert [order["id"] for order in json.loads(feed.snapshot("bar"))] == [3, 2]
    assert feed.all_day == {"Burger": 8}
    feed.publish([event(4, 4, status="completed"), event(5, 2, status="cancelled", station="bar")])
    feed.publish([event(6, 1, note="new")])
    board = json.loads(feed.snapshot(None))
    assert [(order["id"], order["note"]) for order in board] == [(3, ""), (1, "new")]
    assert [order["id"] for order in json.loads(feed.snapshot("bar"))] == [3]
    assert feed.all_day == {"Burger": 4}
