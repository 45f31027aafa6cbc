"""A tour of every endpoint of Bistro92 from outside: each promise of the API, tried on a real server.

    python test_all_apis.py                              starts a server of its own and prints a report
    python test_all_apis.py --url http://127.0.0.1:8000  tries one that runs (--token: a manager's)
    pytest test_all_apis.py -k websocket                 the same functions; BISTRO92_TOUR_URL and _TOKEN do the same

A test's docstring is the promise it holds the server to; the word after `test_` is its group in the report. Tests know
their own orders by a name that nobody else uses, so they neither mind what the server holds already nor depend on each
other. A running server should have the default limits, and nobody else to serve meanwhile; every order of the tour is
cancelled at its end.

    1. Talking to a server      HTTP, WebSocket and SSE, in the few verbs that the tests need
    2. A server of our own      on a free port, with a database that is thrown away
    3. Orders                   place, get, list, and every way to be refused
    4. Idempotency              the same request twice is one order
    5. Lifecycle                states, lines, conditions, orders for later, history, statistics
    6. The feed                 WebSocket · SSE · polling: the same events, each exactly once
    7. Concurrency              many at once, nothing lost, nothing doubled
    8. Service                  health, metrics, documentation, restart
    9. Accounts                 who may do what
    10. The report              what `python test_all_apis.py` prints
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from email.message import Message
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

Json = Any

DEADLINE: Final = 30.0
"""Seconds after which what should happen counts as not happening. It bounds every wait; nothing here measures speed."""

ITEMS: Final = [{"name": "Burger", "quantity": 3}, {"name": "Ice Cream", "quantity": 1}]
STATES: Final = ("scheduled", "received", "preparing", "ready", "completed", "cancelled")
TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")

# ---------------------------------------------------------------------------------------------------------------------
# 1. Talking to a server
# ---------------------------------------------------------------------------------------------------------------------


class Reply(NamedTuple):
    """An answer, read to its end."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Json:
        return json.loads(self.body)

    def expect(self, status: int = 200) -> Json:
        """What the answer says, once it has this status."""
        assert self.status == status, self.body.decode()
        return self.json


class Subscriber:
    """One who follows the feed; what WebSocket and SSE have in common."""

    def __init__(self) -> None:
        self.heard: list[Json] = []
        """Every message so far, as it came."""

    def receive(self) -> Json:
        """The next message, within DEADLINE."""
        raise NotImplementedError

    def next(self, *kinds: str) -> Json:
        """The next message of these types; others are passed over."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            message = self.receive()
            self.heard.append(message)
            if message["type"] in kinds:
                return message
        raise TimeoutError(f"no {' or '.join(kinds)} within {DEADLINE} s")

    def events(self, count: int, table: str) -> list[Json]:
        """The next events about the orders of a table, batches unwrapped."""
        found: list[Json] = []
        deadline = time.monotonic() + DEADLINE
        while len(found) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} events within {DEADLINE} s"
            message = self.next("new_order", "order_updated", "order_scheduled", "batch")
            events = message.get("events", [message])
            assert message["cursor"] == events[-1]["cursor"], "a batch has the cursor of its last event"
            found += about(table, events)
        return found


class Screen(Subscriber):
    """A kitchen display on the WebSocket."""

    def __init__(self, websocket: ClientConnection):
        super().__init__()
        self.websocket = websocket
        self.first = self.next("initial", "resumed")

    def receive(self) -> Json:
        return json.loads(self.websocket.recv(DEADLINE))

    def echo(self, text: str) -> Json:
        """Say something that means nothing to the server; what it answers."""
        self.websocket.send(text)
        return self.next("echo")


class Stream(Subscriber):
    """A dashboard on server-sent events."""

    def __init__(self, response: http.client.HTTPResponse):
        super().__init__()
        self.response = response
        self.first = self.next("initial", "resumed")

    def receive(self) -> Json:
        """The data of the next event, once its `event` and `id` say the same. Raises EOFError at the stream's end."""
        fields: dict[str, str] = {}
        while line := self.response.readline().decode():
            name, separator, value = line.rstrip("\n").partition(":")
            if separator:
                fields[name] = value.removeprefix(" ")
            elif "data" in fields:
                message = json.loads(fields["data"])
                assert (fields["event"], fields["id"]) == (message["type"], message["cursor"])
                return message
        raise EOFError


class Api:
    """A server, as its clients see it."""

    def __init__(self, url: str, token: str | None = None):
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.placed: list[int] = []
        """Ids of the orders that the tour placed."""

    def connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        https = parts.scheme == "https"
        return (http.client.HTTPSConnection if https else http.client.HTTPConnection)(parts.netloc, timeout=DEADLINE)

    def request(self, method: str, path: str, body: Json | bytes = None, **headers: str) -> Reply:
        """Ask once. A body that isn't bytes is sent as JSON; `if_match` stands for the header If-Match, and so on."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, path, content, {**self.headers, "Content-Type": "application/json", **named})
            response = connection.getresponse()
            reply = Reply(response.status, response.headers, response.read())
        if (method, path, reply.status) == ("POST", "/api/order", 201):
            self.placed.append(reply.json["id"])
        return reply

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, **headers)

    def post(self, path: str, body: Json | bytes = None, **headers: str) -> Reply:
        return self.request("POST", path, body, **headers)

    def patch(self, path: str, body: Json, **headers: str) -> Reply:
        return self.request("PATCH", path, body, **headers)

    def delete(self, path: str, **headers: str) -> Reply:
        return self.request("DELETE", path, **headers)

    def place(self, table: str, items: Json = ITEMS, **more: Json) -> Json:
        """Place an order; the order."""
        return self.post("/api/order", {"table": table, "items": items, **more}).expect(201)

    def move(self, order: Json, *states: str) -> Json:
        """Take an order through some states; the order as it is then."""
        for state in states:
            order = self.patch(at(order), {"status": state}).expect()
        return order

    def mark(self, order: Json, *lines: str) -> Json:
        """Set the states of an order's lines, from the first one on; the order as it is then."""
        for number, state in enumerate(lines, 1):
            order = self.patch(at(order, f"/items/{number}"), {"status": state}).expect()
        return order

    def list(self, **query: Json) -> Json:
        return self.get(f"/api/orders?{urlencode(query, doseq=True)}").expect()

    def stats(self) -> Json:
        return self.get("/api/stats").expect()

    def cursor(self) -> str:
        """Where the feed stands now."""
        cursor = self.get("/api/changes").expect()["cursor"]
        assert isinstance(cursor, str)
        return cursor

    def changes(self, after: str, table: str) -> Json:
        """All events about the orders of a table between a cursor and now."""
        found: list[Json] = []
        page: Json = {"cursor": after, "events": [None]}
        deadline = time.monotonic() + DEADLINE
        while page["events"]:
            assert time.monotonic() < deadline, f"the log did not end within {DEADLINE} s"
            page = self.get(f"/api/changes?{urlencode({'after': page['cursor']})}").expect()
            found += about(table, page["events"])
        return found

    @contextlib.contextmanager
    def screen(self, **query: str) -> Iterator[Screen]:
        """A screen that is connected and has had its first message."""
        address = f"ws{self.url.removeprefix('http')}/ws/orders?{urlencode(query)}"
        options: Json = {"additional_headers": self.headers, "proxy": None, "max_size": None, "max_queue": None}
        with connect(address, open_timeout=DEADLINE, **options) as websocket:
            yield Screen(websocket)

    @contextlib.contextmanager
    def stream(self, last_event_id: str | None = None, **query: str) -> Iterator[Stream]:
        """A stream that is open and has had its first message."""
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        with contextlib.closing(self.connection()) as connection:
            connection.request("GET", f"/api/events?{urlencode(query)}", headers={**self.headers, **headers})
            with connection.getresponse() as response:
                assert response.status == 200
                assert response.headers.get_content_type() == "text/event-stream"
                yield Stream(response)


def at(order: Json, below: str = "") -> str:
    """The path of an order, or of something below it."""
    return f"/api/order/{order['id']}{below}"


def unique(word: str) -> str:
    """A name that nobody else uses, by which a test knows its own orders."""
    return f"{word} {uuid.uuid4().hex[:12]}"


def about(table: str, messages: Sequence[Json]) -> list[Json]:
    """Those of some events or orders that are about a table."""
    return [message for message in messages if message.get("order", message)["table"] == table]


def kinds(events: Sequence[Json]) -> list[tuple[str, str]]:
    """What some events say, in short: (type, the order's status)."""
    return [(event["type"], event["order"]["status"]) for event in events]


def ids(orders: Sequence[Json]) -> list[int]:
    return [order["id"] for order in orders]


def states(order: Json) -> list[str]:
    """The states of an order's lines."""
    return [item.get("status", "pending") for item in order["items"]]


def dishes(*names: str) -> Json:
    """One line for each name."""
    return [{"name": name, "quantity": 1} for name in names]


def problem(reply: Reply, status: int, code: str | None = None) -> Json:
    """The details of a refusal, once they have the shape that every refusal has."""
    details = reply.expect(status)
    assert reply.headers.get_content_type() == "application/problem+json"
    assert details["status"] == status
    assert all(isinstance(details[name], str) and details[name] for name in ("type", "title", "detail", "code"))
    assert re.fullmatch(r"[a-z][a-z0-9_]*", details["code"])
    assert code in (None, details["code"])
    assert re.fullmatch(r"urn:bistro92:request:[\w.:-]{1,64}", details["instance"])
    return details


def pointers(reply: Reply) -> list[str]:
    """Where the faults are that a 422 names."""
    errors = problem(reply, 422)["errors"]
    assert all(error["detail"] for error in errors)
    return [error["pointer"] for error in errors]


def at_once(calls: Sequence[Callable[[], Reply]]) -> list[Reply]:
    """Make some requests at the same moment, each from a thread of its own; the replies in the order of the calls."""
    barrier = threading.Barrier(len(calls))

    def start(call: Callable[[], Reply]) -> Reply:
        barrier.wait(DEADLINE)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(start, calls, timeout=2 * DEADLINE))


# ---------------------------------------------------------------------------------------------------------------------
# 2. A server of our own
# ---------------------------------------------------------------------------------------------------------------------


def database_url(folder: Path) -> str:
    """A throw-away database. tests/conftest.py puts another engine's here."""
    return f"sqlite:///{folder / 'tour.db'}"


@contextlib.contextmanager
def own_server(folder: Path) -> Iterator[tuple[Api, subprocess.Popen[bytes]]]:
    """Run `uvicorn app:app` with its database in a folder. A caller that is content stops it with `stop`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = str(Path(__file__).resolve().parent)
    where = ["--app-dir", here, "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BISTRO92_")}
    environment["BISTRO92_DATABASE_URL"] = database_url(folder)
    log = folder / "server.log"
    with log.open("ab") as output:
        command = [sys.executable, "-m", "uvicorn", "app:app", *where]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        api = Api(f"http://127.0.0.1:{port}")
        wait_until_alive(api, process, log)
        yield api, process
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_alive(api: Api, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            api.get("/healthz").expect()
            return
        time.sleep(0.05)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server as an operator does (SIGTERM); it ends by itself, in order."""
    process.terminate()
    assert process.wait(DEADLINE) == 0


own_server_only = pytest.mark.skipif("BISTRO92_TOUR_URL" in os.environ, reason="not to be done to a running server")


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    """The server of the tour."""
    if url := os.environ.get("BISTRO92_TOUR_URL"):
        api = Api(url, os.environ.get("BISTRO92_TOUR_TOKEN"))
        yield api
        for order_id in api.placed:
            api.delete(f"/api/order/{order_id}")
    else:
        with tempfile.TemporaryDirectory() as folder, own_server(Path(folder)) as (api, process):
            yield api
            stop(process)


@pytest.fixture(scope="module", autouse=True)
def idle_screen(api: Api) -> Iterator[Screen]:
    """A screen of a station without orders, open all the time: the server has nothing to tell it but heartbeats."""
    with api.screen(station=unique("idle")) as screen:
        yield screen


@pytest.fixture
def table() -> str:
    """A table of the test's own."""
    return unique("Table")


# ---------------------------------------------------------------------------------------------------------------------
# 3. Orders
# ---------------------------------------------------------------------------------------------------------------------


def test_orders_posted_order_is_answered(api: Api, table: str) -> None:
    """POST answers 201 with the order, where it is found, and its version."""
    reply = api.post("/api/order", {"table": table, "items": ITEMS})
    order = reply.expect(201)
    assert reply.headers["Location"] == f"/api/order/{order['id']}"
    assert reply.headers["ETag"] == '"1"'
    assert reply.headers.get_content_type() == "application/json"
    assert isinstance(order["id"], int)
    assert order["id"] > 0
    assert TIME.fullmatch(order["created_at"])
    expected = {"table": table, "items": ITEMS, "status": "received", "version": 1}
    assert order == {**expected, "id": order["id"]} | dict.fromkeys(("created_at", "updated_at"), order["created_at"])


def test_orders_optional_fields_come_back(api: Api, table: str) -> None:
    """What was sent of the optional fields comes back equal; what wasn't sent doesn't come."""
    items = [{"name": "Burger", "quantity": 1, "note": "no nuts", "station": "grill"}, *ITEMS]
    optional = {"note": "Birthday", "priority": "rush", "source": unique("till"), "external_id": "A-17"}
    order = api.place(table, items, **optional)
    required = {"id", "table", "items", "created_at", "updated_at", "status", "version"}
    assert order["items"] == items
    assert {name: value for name, value in order.items() if name not in required} == optional


def test_orders_texts_come_back_exactly(api: Api) -> None:
    """Texts are kept to the letter, whatever the alphabet."""
    texts = [
        " Crème brûlée ",
        "寿司",
        "🍮👩\u200d🍳",
        "\"'\\/<b>&amp;",
        "two\nlines\t",
        "عربي",
        "%00 {} $1",
        "\u2028\x7f",
    ]
    items = [{"name": text, "quantity": 1, "note": text} for text in texts]
    order = api.place(name := f"{unique('Tür')} \U0001f37d", items, note="".join(texts))
    assert (order["table"], order["items"], order["note"]) == (name, items, "".join(texts))
    assert api.get(at(order)).expect() == order


def test_orders_largest_values_are_taken(api: Api) -> None:
    """Every field takes its longest value, counted in characters."""
    line = {"name": "\U0001f354" * 120, "quantity": 999, "note": "ñ" * 280, "station": "s" * 32}
    table = unique("é").ljust(64, "é")
    order = api.place(table, [line] * 100, note="\u6599" * 280)
    assert (order["table"], order["items"]) == (table, [line] * 100)


def test_orders_get_one(api: Api, table: str) -> None:
    """An order is read back as it was answered, with its version as ETag."""
    order = api.place(table)
    reply = api.get(at(order))
    assert reply.expect() == order
    assert reply.headers["ETag"] == '"1"'


def test_orders_get_one_unchanged(api: Api, table: str) -> None:
    """Who holds an order already is told 304, until it changes."""
    order = api.place(table)
    reply = api.get(at(order), if_none_match='"1"')
    assert (reply.status, reply.body, reply.headers["ETag"]) == (304, b"", '"1"')
    api.move(order, "preparing")
    assert api.get(at(order), if_none_match='"1"').expect()["version"] == 2


@pytest.mark.parametrize("order_id", ["0", "999999999999", "9" * 30, "-1", "soup"])
def test_orders_get_unknown(api: Api, order_id: str) -> None:
    """An order that doesn't exist is a 404."""
    problem(api.get(f"/api/order/{order_id}"), 404)


def test_orders_list_newest_first(api: Api, table: str) -> None:
    """The list is an array of whole orders, newest first; ids only grow."""
    placed = [api.place(table) for _ in range(3)]
    assert ids(placed) == sorted(ids(placed))
    everything = api.list()
    assert ids(everything) == sorted(ids(everything), reverse=True)
    assert about(table, everything) == placed[::-1]


def test_orders_list_filters(api: Api, table: str) -> None:
    """Each filter keeps what matches, and several keep what matches all."""
    source, station = unique("till"), unique("grill")
    plain = api.place(table)
    grilled = api.place(table, [*ITEMS, {"name": "Steak", "quantity": 1, "station": station}])
    named = api.place(table, source=source, external_id="1")
    cooking = api.move(api.place(table, source=source, external_id="2"), "preparing")
    done = api.move(api.place(table, source=source), "completed")
    assert api.list(table=table) == [done, cooking, named, grilled, plain]
    assert api.list(station=station) == [grilled]
    assert api.list(source=source) == [done, cooking, named]
    assert api.list(source=source, external_id="2") == [cooking]
    assert api.list(table=table, status="preparing") == [cooking]
    assert api.list(table=table, status=["preparing", "completed"]) == [done, cooking]
    assert api.list(table=table, status="open") == [cooking, named, grilled, plain]
    assert api.list(source=source, status="open", external_id="1") == [named]
    assert api.list(table=table, station=station, source=source) == []
    assert api.list(table=table, since=plain["created_at"]) == [done, cooking, named, grilled, plain]
    assert api.list(table=table, since="2999-01-01T00:00:00+02:00") == []


def test_orders_list_pages(api: Api, table: str) -> None:
    """With a limit, `Link` leads through all orders: none twice, none left out, none after the last."""
    placed = [api.place(table) for _ in range(5)]
    pages: list[list[int]] = []
    path = f"/api/orders?{urlencode({'table': table, 'status': 'open', 'limit': 2})}"
    while path and len(pages) <= len(placed):
        reply = api.get(path)
        pages.append(ids(reply.expect()))
        link = re.fullmatch(r'<([^>]+)>; rel="next"', reply.headers["Link"] or "")
        path = urlsplit(link[1])._replace(scheme="", netloc="").geturl() if link else ""
    newest_first = ids(placed)[::-1]
    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    assert ids(api.list(table=table, before=newest_first[1], limit=2)) == newest_first[2:4]


def test_orders_list_last_page_is_full(api: Api, table: str) -> None:
    """A limit that takes exactly what is there leads nowhere further."""
    placed = [api.place(table) for _ in range(2)]
    reply = api.get(f"/api/orders?{urlencode({'table': table, 'limit': 2})}")
    assert ids(reply.expect()) == ids(placed)[::-1]
    assert reply.headers["Link"] is None


@pytest.mark.parametrize("query", ["", "?limit=3", "?status=open"])
def test_orders_list_unchanged(api: Api, table: str, query: str) -> None:
    """A dashboard that polls is told 304 for as long as nothing changed."""
    api.place(table)
    tag = api.get(f"/api/orders{query}").headers["ETag"]
    reply = api.get(f"/api/orders{query}", if_none_match=tag)
    assert (reply.status, reply.body, reply.headers["ETag"]) == (304, b"", tag)
    newest = api.place(table)
    reply = api.get(f"/api/orders{query}", if_none_match=tag)
    assert reply.expect()[0] == newest
    assert reply.headers["ETag"] != tag


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=ten", "before=0", "before=x", "status=eaten", "since=noon"]
)
def test_orders_list_bad_query(api: Api, query: str) -> None:
    """A parameter that makes no sense is a 422 that points to it."""
    [pointer] = pointers(api.get(f"/api/orders?{query}"))
    assert pointer.startswith(f"/{query.partition('=')[0]}")


def item(**fields: Json) -> Json:
    """The body of an order with one line that has these fields, or lacks those that are None."""
    line = {"name": "Soup", "quantity": 1, **fields}
    return {"table": "T", "items": [{name: value for name, value in line.items() if value is not None}]}


@pytest.mark.parametrize(
    ("pointer", "body"),
    [
        ("", []),
        ("", None),
        ("", "soup"),
        ("/table", {"items": ITEMS}),
        ("/table", {"table": "", "items": ITEMS}),
        ("/table", {"table": "x" * 65, "items": ITEMS}),
        ("/table", {"table": 7, "items": ITEMS}),
        ("/table", {"table": None, "items": ITEMS}),
        ("/items", {"table": "T"}),
        ("/items", {"table": "T", "items": []}),
        ("/items", {"table": "T", "items": ITEMS[:1] * 101}),
        ("/items", {"table": "T", "items": {"name": "Soup", "quantity": 1}}),
        ("/items/0", {"table": "T", "items": ["Soup"]}),
        ("/items/1/quantity", {"table": "T", "items": [ITEMS[0], {"name": "Soup"}]}),
        ("/items/0/name", item(name=None)),
        ("/items/0/name", item(name="")),
        ("/items/0/name", item(name="x" * 121)),
        ("/items/0/name", item(name=5)),
        ("/items/0/quantity", item(quantity=0)),
        ("/items/0/quantity", item(quantity=-1)),
        ("/items/0/quantity", item(quantity=1000)),
        ("/items/0/quantity", item(quantity=10**30)),
        ("/items/0/quantity", item(quantity="3")),
        ("/items/0/quantity", item(quantity=True)),
        ("/items/0/quantity", item(quantity=1.5)),
        ("/items/0/quantity", item(quantity=[1])),
        ("/items/0/note", item(note="x" * 281)),
        ("/items/0/note", item(note=["no nuts"])),
        ("/items/0/station", item(station="x" * 33)),
        ("/items/0/allergies", item(allergies="nuts")),
        ("/items/0/status", item(status="ready")),
        ("/note", {**item(), "note": "x" * 281}),
        ("/priority", {**item(), "priority": "urgent"}),
        ("/fire_at", {**item(), "fire_at": "tomorrow"}),
        ("/fire_at", {**item(), "fire_at": "2999-01-01T00:00:00"}),
        ("/fire_at", {**item(), "fire_at": "2999-02-30T00:00:00Z"}),
        ("/fire_at", {**item(), "fire_at": 32503680000}),
        ("/source", {**item(), "source": 1}),
        ("/external_id", {**item(), "external_id": 1}),
        ("/tip", {**item(), "tip": 5}),
        ("/id", {**item(), "id": 5}),
        ("/a~1b~0c", {**item(), "a/b~c": 1}),
    ],
)
def test_orders_fault_is_pointed_to(api: Api, pointer: str, body: Json) -> None:
    """A field that is missing, unknown, too long or of another type refuses the order, and is named by its pointer."""
    assert pointers(api.post("/api/order", json.dumps(body).encode())) == [pointer]


def test_orders_all_faults_at_once(api: Api) -> None:
    """Several faults are all named in one answer."""
    body = {"table": "", "items": [{"name": "Soup", "quantity": 0}, {"quantity": 1, "size": "L"}]}
    expected = ["/items/0/quantity", "/items/1/name", "/items/1/size", "/table"]
    assert sorted(pointers(api.post("/api/order", body))) == expected


@pytest.mark.parametrize("body", [b"", b"{", b"{'table': 1}", b'{"table": "T",}', b'{"table": "\xff"}', b"{} {}"])
def test_orders_malformed_json(api: Api, body: bytes) -> None:
    """A body that isn't JSON is a 400."""
    problem(api.post("/api/order", body), 400)


def test_orders_too_large(api: Api) -> None:
    """A body that is too large is a 413, before it is sent."""
    with contextlib.closing(api.connection()) as connection:
        connection.putrequest("POST", "/api/order")
        for name, value in {**api.headers, "Content-Length": str(2**40)}.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        problem(Reply(response.status, response.headers, response.read()), 413)


@pytest.mark.parametrize("path", ["/api/nothing", "/api/order/1/nothing", "/api", "/%00"])
def test_orders_unknown_path(api: Api, path: str) -> None:
    """A path that nothing serves is a 404 with problem details."""
    problem(api.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/order"), ("PUT", "/api/order/1"), ("GET", "/api/order/1/cancel"), ("DELETE", "/api/orders")],
)
def test_orders_method_not_allowed(api: Api, method: str, path: str) -> None:
    """A method that a path doesn't serve is a 405 that says which it does."""
    reply = api.request(method, path)
    problem(reply, 405)
    assert reply.headers["Allow"]
    assert method not in reply.headers["Allow"].split(", ")


# ---------------------------------------------------------------------------------------------------------------------
# 4. Idempotency
# ---------------------------------------------------------------------------------------------------------------------


def test_idempotency_replays_the_first_answer(api: Api, table: str) -> None:
    """The same key and request again get the first status and body again, even after the order has changed."""
    key, body = unique("key"), {"table": table, "items": ITEMS}
    first = api.post("/api/order", body, idempotency_key=key)
    api.move(first.expect(201), "preparing")
    again = api.post("/api/order", body, idempotency_key=key)
    assert (again.status, again.body) == (201, first.body)
    assert again.headers["Location"] == first.headers["Location"]
    assert first.headers["Idempotency-Replayed"] is None
    assert again.headers["Idempotency-Replayed"] == "true"
    assert ids(api.list(table=table)) == ids([first.json])


def test_idempotency_bare_or_quoted(api: Api, table: str) -> None:
    """A key in quotes is the same key as without them."""
    key, body = unique("key"), {"table": table, "items": ITEMS}
    first = api.post("/api/order", body, idempotency_key=key).expect(201)
    assert api.post("/api/order", body, idempotency_key=f'"{key}"').expect(201) == first


def test_idempotency_other_request_is_refused(api: Api, table: str) -> None:
    """A key that came with another request is a 422, and nothing is placed or changed."""
    key, body = unique("key"), {"table": table, "items": ITEMS}
    order = api.post("/api/order", body, idempotency_key=key).expect(201)
    problem(api.post("/api/order", {**body, "items": ITEMS[:1]}, idempotency_key=key), 422, "idempotency_mismatch")
    problem(api.patch(at(order), {"status": "ready"}, idempotency_key=key), 422, "idempotency_mismatch")
    assert api.list(table=table) == [order]


def test_idempotency_every_write(api: Api, table: str) -> None:
    """Any write can be repeated under its key: it happens once."""
    order = api.place(table)
    writes: Json = [
        ("PATCH", at(order), {"note": "window"}),
        ("POST", at(order, "/items"), {"items": ITEMS}),
        ("PATCH", at(order, "/items/1"), {"status": "ready"}),
        ("POST", at(order, "/cancel"), {"reason": "gone"}),
    ]
    for version, write in enumerate(writes, 2):
        key = unique("key")
        replies = [api.request(*write, idempotency_key=key) for _ in range(2)]
        assert [reply.expect()["version"] for reply in replies] == [version, version]
        assert [reply.headers["Idempotency-Replayed"] for reply in replies] == [None, "true"]
    other, key = api.place(table), unique("key")
    replies = [api.delete(at(other), idempotency_key=key) for _ in range(2)]
    assert [(reply.status, reply.headers["Idempotency-Replayed"]) for reply in replies] == [(204, None), (204, "true")]


def test_idempotency_refused_request_is_not_stored(api: Api, table: str) -> None:
    """A request that was refused leaves its key unused."""
    key, order = unique("key"), api.place(table)
    problem(api.post("/api/order", {"table": table, "items": []}, idempotency_key=key), 422)
    problem(api.patch(at(order), {"status": "ready"}, idempotency_key=key, if_match='"9"'), 412)
    api.post("/api/order", {"table": table, "items": ITEMS}, idempotency_key=key).expect(201)


@pytest.mark.parametrize("key", ["", '""', "k" * 256])
def test_idempotency_bad_key(api: Api, table: str, key: str) -> None:
    """A key has 1 to 255 characters."""
    problem(api.post("/api/order", {"table": table, "items": ITEMS}, idempotency_key=key), 422)
    assert api.list(table=table) == []


def test_idempotency_concurrent_duplicates(api: Api, table: str) -> None:
    """Duplicates that arrive at the same moment become one order, and all are answered with it."""
    key, body = unique("key"), {"table": table, "items": ITEMS}
    cursor = api.cursor()
    replies = at_once([partial(api.post, "/api/order", body, idempotency_key=key)] * 20)
    assert {(reply.status, reply.body) for reply in replies} == {(201, replies[0].body)}
    assert Counter(reply.headers["Idempotency-Replayed"] for reply in replies) == {None: 1, "true": 19}
    assert api.list(table=table) == [replies[0].json]
    assert kinds(api.changes(cursor, table)) == [("new_order", "received")]


# ---------------------------------------------------------------------------------------------------------------------
# 5. Lifecycle
# ---------------------------------------------------------------------------------------------------------------------


def test_lifecycle_step_by_step(api: Api, table: str) -> None:
    """An order goes from received to completed; each step adds 1 to its version and has its time stamped."""
    order = api.place(table)
    for version, (state, stamp) in enumerate(
        [("preparing", "started_at"), ("ready", "ready_at"), ("completed", "completed_at")], 2
    ):
        assert stamp not in order
        reply = api.patch(at(order), {"status": state})
        order = reply.expect()
        assert (order["status"], order["version"], reply.headers["ETag"]) == (state, version, f'"{version}"')
        assert order[stamp] == order["updated_at"]
        assert TIME.fullmatch(order[stamp])
    assert api.get(at(order)).expect() == order


@pytest.mark.parametrize(("by", "target"), [((), "ready"), ((), "completed"), (("preparing",), "completed")])
def test_lifecycle_forward_moves_may_skip(api: Api, table: str, by: tuple[str, ...], target: str) -> None:
    """A move forward may leave states out."""
    assert api.move(api.place(table), *by, target)["status"] == target


@pytest.mark.parametrize("state", ["ready", "completed"])
def test_lifecycle_recall(api: Api, table: str, state: str) -> None:
    """A ready or completed order can be called back to preparing, and goes forward again."""
    order = api.move(api.place(table), state, "preparing")
    assert (order["status"], order["version"]) == ("preparing", 3)
    assert ids(api.list(table=table, status="open")) == ids([order])
    assert api.move(order, "ready", "completed")["status"] == "completed"


@pytest.mark.parametrize(
    ("by", "target"),
    [
        ((), "scheduled"),
        (("preparing",), "received"),
        (("preparing",), "scheduled"),
        (("ready",), "received"),
        (("completed",), "ready"),
        (("completed",), "received"),
        (("completed",), "cancelled"),
        *((("cancelled",), state) for state in STATES if state != "cancelled"),
    ],
)
def test_lifecycle_forbidden_move(api: Api, table: str, by: tuple[str, ...], target: str) -> None:
    """Any other move is a 409 with the order as it stands, and changes nothing."""
    order = api.move(api.place(table), *by)
    assert problem(api.patch(at(order), {"status": target}), 409)["order"] == order
    assert api.get(at(order)).expect() == order


def test_lifecycle_double_tap(api: Api, table: str) -> None:
    """Asking for what is already so is a 200 that changes nothing and tells nobody."""
    order = api.mark(api.move(api.place(table, note="window"), "preparing"), "ready")
    cursor = api.cursor()
    again: Json = [
        ("PATCH", at(order), {"status": "preparing"}),
        ("PATCH", at(order), {"note": "window", "table": table}),
        ("PATCH", at(order, "/items/1"), {"status": "ready"}),
        ("PATCH", at(order, "/items/2"), {"status": "pending"}),
    ]
    for write in again:
        assert api.request(*write).expect() == order
    order = api.move(order, "cancelled")
    assert api.post(at(order, "/cancel")).expect() == order
    assert api.delete(at(order)).status == 204
    assert kinds(api.changes(cursor, table)) == [("order_updated", "cancelled")]


def test_lifecycle_amend(api: Api, table: str) -> None:
    """Table, note and priority can be changed, alone, together, and with the status."""
    order = api.place(unique("Table"), note="old")
    order = api.patch(at(order), {"table": table, "note": "new"}).expect()
    assert (order["table"], order["note"], order["version"], order["items"]) == (table, "new", 2, ITEMS)
    order = api.patch(at(order), {"priority": "rush", "status": "preparing"}).expect()
    assert (order["priority"], order["status"], order["version"]) == ("rush", "preparing", 3)
    assert api.list(table=table) == [order]


@pytest.mark.parametrize(
    ("pointer", "body"),
    [
        ("/status", {"status": "eaten"}),
        ("/table", {"table": ""}),
        ("/note", {"note": 5}),
        ("/priority", {"priority": "urgent"}),
        ("/fire_at", {"fire_at": "soon"}),
        ("/items", {"items": ITEMS}),
        ("/version", {"version": 7}),
    ],
)
def test_lifecycle_amend_fault(api: Api, table: str, pointer: str, body: Json) -> None:
    """A change is checked as strictly as a new order."""
    order = api.place(table)
    assert pointers(api.patch(at(order), body)) == [pointer]
    assert api.get(at(order)).expect() == order


@pytest.mark.parametrize(
    ("method", "below", "body"),
    [
        ("PATCH", "", {"status": "ready"}),
        ("POST", "/items", {"items": ITEMS}),
        ("PATCH", "/items/1", {"status": "ready"}),
        ("POST", "/cancel", {"reason": "gone"}),
        ("DELETE", "", None),
    ],
)
def test_lifecycle_stale_version(api: Api, table: str, method: str, below: str, body: Json) -> None:
    """If-Match makes any write conditional: a stale version is a 412 with the current order, the current one works."""
    order = api.patch(at(api.place(table)), {"note": "window"}).expect()
    assert problem(api.request(method, at(order, below), body, if_match='"1"'), 412)["order"] == order
    assert api.get(at(order)).expect() == order
    assert api.request(method, at(order, below), body, if_match='"2"').status in (200, 204)
    assert api.get(at(order)).expect()["version"] == 3


@pytest.mark.parametrize(
    ("method", "below", "body"),
    [
        ("PATCH", "", {"status": "ready"}),
        ("POST", "/items", {"items": ITEMS}),
        ("PATCH", "/items/1", {"status": "ready"}),
        ("POST", "/cancel", None),
        ("DELETE", "", None),
        ("GET", "/events", None),
    ],
)
def test_lifecycle_unknown_order(api: Api, method: str, below: str, body: Json) -> None:
    """What is asked of an order that doesn't exist is a 404."""
    problem(api.request(method, f"/api/order/999999999999{below}", body), 404)


def test_lifecycle_append_lines(api: Api, table: str) -> None:
    """Lines are appended after those that are there, which keep their places."""
    more = [{"name": "Coffee", "quantity": 2, "note": "decaf", "station": "bar"}]
    order = api.post(at(api.place(table), "/items"), {"items": more}).expect()
    assert (order["items"], order["status"], order["version"]) == ([*ITEMS, *more], "received", 2)
    assert pointers(api.post(at(order, "/items"), {"items": [{"name": "Tea", "quantity": 0}]})) == ["/items/0/quantity"]
    assert pointers(api.post(at(order, "/items"), {"items": []})) == ["/items"]


def test_lifecycle_append_lines_to_a_ready_order(api: Api, table: str) -> None:
    """New lines bring a ready order back to preparing; what was ready stays ready."""
    order = api.move(api.place(table), "ready")
    order = api.post(at(order, "/items"), {"items": dishes("Coffee")}).expect()
    assert (order["status"], states(order)) == ("preparing", ["ready", "ready", "pending"])


@pytest.mark.parametrize("state", ["completed", "cancelled"])
def test_lifecycle_lines_of_a_closed_order(api: Api, table: str, state: str) -> None:
    """Lines of a completed or cancelled order don't change and aren't added."""
    order = api.move(api.place(table), state)
    assert problem(api.post(at(order, "/items"), {"items": ITEMS}), 409)["order"] == order
    assert problem(api.patch(at(order, "/items/1"), {"status": "voided"}), 409)["order"] == order
    assert api.get(at(order)).expect() == order


def test_lifecycle_line_by_line(api: Api, table: str) -> None:
    """The first ready line makes a received order preparing, the last one makes it ready: one change each."""
    order = api.mark(api.place(table, dishes("Soup", "Steak", "Cake")), "ready")
    assert (order["status"], order["version"], states(order)) == ("preparing", 2, ["ready", "pending", "pending"])
    assert "started_at" in order
    order = api.mark(order, "ready", "ready")
    assert (order["status"], order["version"], states(order)) == ("preparing", 3, ["ready", "ready", "pending"])
    order = api.mark(order, "ready", "ready", "ready")
    assert (order["status"], order["version"], states(order)) == ("ready", 4, ["ready"] * 3)
    assert "ready_at" in order
    assert api.get(at(order)).expect() == order


def test_lifecycle_ready_order_has_ready_lines(api: Api, table: str) -> None:
    """When an order becomes ready, its pending lines do; voided ones stay voided."""
    order = api.mark(api.place(table, dishes("Soup", "Steak", "Cake")), "ready", "voided")
    order = api.move(order, "ready")
    assert states(order) == ["ready", "voided", "ready"]


def test_lifecycle_line_back_to_pending(api: Api, table: str) -> None:
    """A line that is set back to pending makes a ready order preparing."""
    order = api.move(api.place(table), "ready")
    order = api.mark(order, "pending")
    assert (order["status"], states(order)) == ("preparing", ["pending", "ready"])
    assert order["items"][0] == ITEMS[0], "a pending line has no status"
    assert api.mark(order, "ready")["status"] == "ready"


def test_lifecycle_void_what_is_left(api: Api, table: str) -> None:
    """When the lines that are left unvoided are all ready, the order is."""
    order = api.mark(api.place(table), "ready", "voided")
    assert (order["status"], states(order)) == ("ready", ["ready", "voided"])


def test_lifecycle_void_everything(api: Api, table: str) -> None:
    """Voiding all lines cancels the order."""
    order = api.mark(api.place(table), "voided")
    assert (order["status"], states(order)) == ("received", ["voided", "pending"])
    order = api.mark(order, "voided", "voided")
    assert (order["status"], states(order)) == ("cancelled", ["voided", "voided"])
    assert "cancelled_at" in order


def test_lifecycle_unknown_line(api: Api, table: str) -> None:
    """Lines are counted from 1; one that isn't there is a 404, a state that no line has is a 422."""
    order = api.place(table)
    for line in ("0", "3", "9" * 30, "x"):
        problem(api.patch(at(order, f"/items/{line}"), {"status": "ready"}), 404)
    assert pointers(api.patch(at(order, "/items/1"), {"status": "burnt"})) == ["/status"]
    assert pointers(api.patch(at(order, "/items/1"), {})) == ["/status"]
    assert api.get(at(order)).expect() == order


def test_lifecycle_cancel(api: Api, table: str) -> None:
    """Cancelling takes a reason, an empty object or nothing; a status of cancelled is the same."""
    order = api.post(at(api.place(table), "/cancel"), {"reason": "guest left"}).expect()
    assert (order["status"], order["version"], order["cancel_reason"]) == ("cancelled", 2, "guest left")
    assert order["cancelled_at"] == order["updated_at"]
    cancellations: Json = [("POST", "/cancel"), ("POST", "/cancel", {}), ("PATCH", "", {"status": "cancelled"})]
    for method, below, *body in cancellations:
        order = api.request(method, at(api.move(api.place(table), "ready"), below), *body).expect()
        assert order["status"] == "cancelled"
        assert "cancel_reason" not in order
    assert pointers(api.post(at(api.place(table), "/cancel"), {"because": "guest left"})) == ["/because"]


def test_lifecycle_delete(api: Api, table: str) -> None:
    """DELETE is the same cancellation, answered 204: an order is a record and is never erased."""
    order = api.place(table)
    reply = api.delete(at(order))
    assert (reply.status, reply.body) == (204, b"")
    order = api.get(at(order)).expect()
    assert (order["status"], order["version"]) == ("cancelled", 2)
    assert api.list(table=table) == [order]


@pytest.mark.parametrize(("method", "below"), [("POST", "/cancel"), ("DELETE", "")])
def test_lifecycle_completed_cannot_be_cancelled(api: Api, table: str, method: str, below: str) -> None:
    """A completed order stays completed."""
    order = api.move(api.place(table), "completed")
    assert problem(api.request(method, at(order, below)), 409)["order"] == order


def later(api: Api, **span: float) -> str:
    """A time that lies ahead on the server's clock, with an offset."""
    return (datetime.fromisoformat(api.stats()["server_time"]) + timedelta(**span)).isoformat()


def test_lifecycle_scheduled_order_fires(api: Api, table: str) -> None:
    """An order for later is announced as such, stays off the board, and enters the kitchen when its time comes."""
    with api.screen() as screen:
        fire_at = later(api, seconds=3)
        order = api.place(table, fire_at=fire_at)
        assert (order["status"], order["version"]) == ("scheduled", 1)
        assert datetime.fromisoformat(order["fire_at"]) == datetime.fromisoformat(fire_at)
        assert TIME.fullmatch(order["fire_at"])
        announced, entered = screen.events(2, table)
        assert kinds([announced, entered]) == [("order_scheduled", "scheduled"), ("new_order", "received")]
        assert announced["order"] == order
        assert entered["order"]["updated_at"] >= order["fire_at"], "it does not fire early"
    assert api.get(at(order)).expect() == entered["order"]
    assert entered["order"]["version"] == 2


def test_lifecycle_scheduled_order_is_not_on_the_board(api: Api, table: str) -> None:
    """An order for later can be listed, but isn't open and isn't in a snapshot."""
    order = api.place(table, fire_at=later(api, hours=2))
    assert api.list(table=table, status="scheduled") == [order]
    assert api.list(table=table, status="open") == []
    with api.screen() as screen:
        assert about(table, screen.first["orders"]) == []
    assert api.delete(at(order)).status == 204


def test_lifecycle_fire_at_in_the_past(api: Api, table: str) -> None:
    """A fire_at that isn't in the future means now, for a new order and for one that waits."""
    cursor = api.cursor()
    order = api.place(table, fire_at="2020-01-01T12:00:00+02:00")
    assert order["status"] == "received"
    order = api.place(table, fire_at=later(api, hours=2))
    assert api.patch(at(order), {"fire_at": "2020-01-01T12:00:00Z"}).expect()["status"] == "received"
    expected = [("new_order", "received"), ("order_scheduled", "scheduled"), ("new_order", "received")]
    assert kinds(api.changes(cursor, table)) == expected


def test_lifecycle_fire_at_changed(api: Api, table: str) -> None:
    """The time of an order can be moved while it is scheduled; after that it is a 409."""
    cursor = api.cursor()
    order = api.place(table, fire_at=later(api, hours=2))
    fire_at = later(api, hours=3)
    order = api.patch(at(order), {"fire_at": fire_at}).expect()
    assert (order["status"], order["version"]) == ("scheduled", 2)
    assert datetime.fromisoformat(order["fire_at"]) == datetime.fromisoformat(fire_at)
    order = api.move(order, "received")
    assert problem(api.patch(at(order), {"fire_at": later(api, hours=4)}), 409)["order"] == order
    expected = [("order_scheduled", "scheduled"), ("order_updated", "scheduled"), ("new_order", "received")]
    assert kinds(api.changes(cursor, table)) == expected


def test_lifecycle_external_id_is_unique(api: Api, table: str) -> None:
    """The POS's own id posted twice is a 409 with the first order; other sources may use the same id."""
    source = unique("till")
    order = api.move(api.place(table, source=source, external_id="7"), "preparing")
    body = {"table": table, "items": ITEMS[:1], "source": source, "external_id": "7"}
    assert problem(api.post("/api/order", body), 409)["order"] == order
    api.place(table, source=unique("till"), external_id="7")
    replies = at_once([partial(api.post, "/api/order", {**body, "external_id": "8"})] * 10)
    assert Counter(reply.status for reply in replies) == {201: 1, 409: 9}
    orders = [reply.json if reply.status == 201 else problem(reply, 409)["order"] for reply in replies]
    assert orders == orders[:1] * 10


def test_lifecycle_history(api: Api, table: str) -> None:
    """An order's history tells what happened to it and when, from the first event on."""
    order = api.mark(api.place(table), "ready")
    api.move(api.patch(at(order), {"note": "window"}).expect(), "ready")
    history = api.get(at(order, "/events")).expect()
    assert [event["type"] for event in history] == ["new_order"] + ["order_updated"] * 3
    assert [event["version"] for event in history] == [1, 2, 3, 4]
    assert all(TIME.fullmatch(event["at"]) for event in history)
    assert history[1]["changes"]["/items/0/status"] == [None, "ready"]
    assert history[2]["changes"] == {"/note": [None, "window"]}
    assert history[3]["changes"]["/status"] == ["preparing", "ready"]


def test_lifecycle_stats(api: Api, table: str) -> None:
    """The statistics count orders by state, and what is still to be cooked over all open ones."""
    before, soup, cake = api.stats(), unique("Soup"), unique("Cake")
    items = [{"name": soup, "quantity": 3}, {"name": cake, "quantity": 1}, {"name": soup, "quantity": 2}]
    api.place(table, items)
    api.mark(api.place(table, items), "voided", "ready", "pending")
    api.move(api.place(table, items), "completed")
    api.move(api.place(table, items), "cancelled")
    with api.screen():
        stats = api.stats()
    assert set(stats["by_status"]) == set(STATES)
    for state, more in (("completed", 1), ("cancelled", 1), ("received", 1), ("preparing", 1)):
        assert stats["by_status"][state] - before["by_status"][state] == more
    counts = {entry["name"]: entry["quantity"] for entry in stats["all_day"]}
    assert (counts[soup], counts[cake]) == (3 + 2 + 2, 1)
    quantities = [entry["quantity"] for entry in stats["all_day"]]
    assert quantities == sorted(quantities, reverse=True)
    assert stats["prep_seconds"]["count"] >= 1
    assert 0 <= stats["prep_seconds"]["p50"] <= stats["prep_seconds"]["p90"]
    assert stats["oldest_open_seconds"] >= 0
    assert stats["orders_last_hour"] >= 4
    assert stats["subscribers"] >= 1
    assert TIME.fullmatch(stats["server_time"])
    assert api.changes(stats["cursor"], table) == []


# ---------------------------------------------------------------------------------------------------------------------
# 6. The feed
# ---------------------------------------------------------------------------------------------------------------------


def test_websocket_begins_with_the_board(api: Api, table: str) -> None:
    """The first message has all current orders, newest first, and no others."""
    received, cooking, ready = api.place(table), api.place(table), api.place(table)
    cooking, ready = api.move(cooking, "preparing"), api.move(ready, "ready")
    api.move(api.place(table), "completed")
    api.move(api.place(table), "cancelled")
    with api.screen() as screen:
        first = screen.first
    assert (first["type"], set(first)) == ("initial", {"type", "orders", "cursor", "server_time"})
    assert about(table, first["orders"]) == [ready, cooking, received]
    assert ids(first["orders"]) == sorted(ids(first["orders"]), reverse=True)
    assert TIME.fullmatch(first["server_time"])


def test_websocket_hears_every_change(api: Api, table: str) -> None:
    """Every change arrives with the whole order, in the order in which it was made, under a cursor of its own."""
    with api.screen() as screen:
        made = [api.place(table)]
        for write in ({"status": "preparing"}, {"note": "window"}):
            made.append(api.patch(at(made[0]), write).expect())
        made.append(api.mark(made[0], "ready"))
        made.append(api.post(at(made[0], "/items"), {"items": ITEMS}).expect())
        made.append(api.post(at(made[0], "/cancel")).expect())
        events = screen.events(len(made), table)
    assert [event["order"] for event in events] == made
    assert [event["type"] for event in events] == ["new_order"] + ["order_updated"] * 5
    assert len({event["cursor"] for event in events}) == len(events)
    assert all(set(event) == {"type", "order", "cursor"} for event in events)


def test_websocket_echo(api: Api) -> None:
    """Text that means nothing to the server comes back as it was."""
    with api.screen() as screen:
        for text in ("hello", '{"type": "ping"}', "", "Grüße \U0001f44b"):
            assert screen.echo(text) == {"type": "echo", "message": text}


def test_websocket_resumes(api: Api, table: str) -> None:
    """A screen that comes back with its cursor gets exactly what it missed, then what follows."""
    with api.screen() as screen:
        seen = api.place(table)
        [last] = screen.events(1, table)
    missed = [api.place(table), api.move(seen, "ready"), api.place(table)]
    with api.screen(after=last["cursor"]) as screen:
        assert screen.first == {"type": "resumed", "cursor": last["cursor"], "server_time": screen.first["server_time"]}
        assert [event["order"] for event in screen.events(3, table)] == missed
        news = api.move(seen, "completed")
        assert [event["order"] for event in screen.events(1, table)] == [news]


def test_websocket_resumes_from_every_event(api: Api, table: str) -> None:
    """Each event's cursor resumes right after that event."""
    start = api.cursor()
    placed = [api.place(table) for _ in range(4)]
    for number, event in enumerate(api.changes(start, table), 1):
        with api.screen(after=event["cursor"]) as screen:
            newest = api.place(table)
            events = screen.events(len(placed) - number + 1, table)
            assert [event["order"] for event in events] == [*placed[number:], newest]
        placed.append(newest)


@pytest.mark.parametrize("cursor", ["nonsense", "", "0", "-1", "' OR 1=1", "{}0"])
def test_websocket_bad_cursor(api: Api, table: str, cursor: str) -> None:
    """A cursor that can't be resumed gets the whole board, never a part of what was missed."""
    order = api.place(table)
    with api.screen(after=cursor.format(api.cursor()) if "{}" in cursor else cursor) as screen:
        assert screen.first["type"] == "initial"
        assert about(table, screen.first["orders"]) == [order]


def test_websocket_station(api: Api, table: str) -> None:
    """A station's screen gets whole orders that have a line for it, and nothing else."""
    grill, bar = unique("grill"), unique("bar")
    steak, beer = ({"name": "Steak", "quantity": 1, "station": grill}, {"name": "Beer", "quantity": 1, "station": bar})
    both, bar_only, neither = api.place(table, [steak, beer]), api.place(table, [beer]), api.place(table)
    cursor = api.cursor()
    with api.screen(station=grill) as screen:
        assert screen.first["orders"] == [both]
        writes = [api.move(order, "preparing") for order in (neither, bar_only, both)]
        newest = api.place(table, [steak])
        assert [event["order"] for event in screen.events(2, table)] == [writes[2], newest]
        assert {message["type"] for message in screen.heard} <= {"initial", "new_order", "order_updated", "heartbeat"}
        assert len([message for message in screen.heard if message["type"] != "heartbeat"]) == 3
    with api.screen(station=grill, after=cursor) as screen:
        assert [event["order"] for event in screen.events(2, table)] == [writes[2], newest]


def test_websocket_batch(api: Api, table: str) -> None:
    """A screen that takes batches gets the same events in the same order; one that doesn't ask never gets one."""
    start = api.cursor()
    with api.screen(batch="true") as batched, api.screen() as single:
        at_once([partial(api.post, "/api/order", {"table": table, "items": ITEMS})] * 30)
        events = single.events(30, table)
        assert batched.events(30, table) == events
        assert "batch" not in {message["type"] for message in single.heard}
    with api.screen(batch="true", after=start) as resumed:
        assert resumed.events(30, table) == events


def test_websocket_foreign_page(api: Api) -> None:
    """A browser's page of another origin isn't let in."""
    address = f"ws{api.url.removeprefix('http')}/ws/orders"
    headers = {**api.headers, "Origin": "https://evil.example"}
    with pytest.raises(InvalidStatus) as refusal, connect(address, proxy=None, additional_headers=headers):
        pass
    assert refusal.value.response.status_code == 403


def test_sse_begins_with_the_board(api: Api, table: str) -> None:
    """The stream's first event has all current orders; then every change follows."""
    order = api.place(table)
    with api.stream() as stream:
        assert set(stream.first) == {"type", "orders", "cursor", "server_time"}
        assert about(table, stream.first["orders"]) == [order]
        made = [api.move(order, "ready"), api.place(table)]
        events = stream.events(2, table)
    assert [event["order"] for event in events] == made
    assert [event["type"] for event in events] == ["order_updated", "new_order"]


@pytest.mark.parametrize("how", ["last_event_id", "after"])
def test_sse_resumes(api: Api, table: str, how: str) -> None:
    """A stream resumes from Last-Event-ID, as browsers send it, or from `after`."""
    cursor = api.cursor()
    missed = [api.place(table), api.place(table)]
    with api.stream(**{how: cursor}) as stream:
        assert (stream.first["type"], stream.first["cursor"]) == ("resumed", cursor)
        assert [event["order"] for event in stream.events(2, table)] == missed


def test_sse_last_event_id_beats_after(api: Api, table: str) -> None:
    """A browser that reconnects repeats the address it began with; where it really was stands in Last-Event-ID."""
    old = api.cursor()
    api.place(table)
    new = api.cursor()
    order = api.place(table)
    with api.stream(last_event_id=new, after=old) as stream:
        assert stream.first["cursor"] == new
        assert [event["order"] for event in stream.events(1, table)] == [order]


def test_sse_bad_cursor(api: Api, table: str) -> None:
    """A stream that can't be resumed begins with the whole board."""
    order = api.place(table)
    with api.stream(last_event_id="nonsense") as stream:
        assert about(table, stream.first["orders"]) == [order]


def test_sse_station(api: Api, table: str) -> None:
    """A stream for a station has only its orders."""
    station = unique("bar")
    with api.stream(station=station) as stream:
        assert stream.first["orders"] == []
        api.place(table)
        order = api.place(table, [{"name": "Beer", "quantity": 1, "station": station}])
        assert [event["order"] for event in stream.events(1, table)] == [order]


def test_polling_same_events(api: Api, table: str) -> None:
    """Polling, SSE and WebSocket tell the same events under the same cursors."""
    start = api.cursor()
    order = api.place(table)
    api.mark(order, "ready", "ready")
    api.move(order, "completed")
    polled = api.changes(start, table)
    assert kinds(polled) == [
        ("new_order", "received"),
        ("order_updated", "preparing"),
        ("order_updated", "ready"),
        ("order_updated", "completed"),
    ]
    with api.screen(after=start) as screen, api.stream(after=start) as stream:
        assert screen.events(4, table) == polled
        assert stream.events(4, table) == polled


def test_polling_pages(api: Api, table: str) -> None:
    """With a limit, each answer's cursor leads to the next events, until there are no more."""
    cursor = api.cursor()
    placed = [api.place(table) for _ in range(3)]
    for expected in [[order] for order in placed] + [[]]:
        page = api.get(f"/api/changes?{urlencode({'after': cursor, 'limit': 1})}").expect()
        assert [event["order"] for event in page["events"]] == expected
        cursor = page["cursor"]


def test_polling_waits_for_news(api: Api, table: str) -> None:
    """`wait` holds the request until something happens."""
    query = urlencode({"after": api.cursor(), "wait": 20})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api.get, f"/api/changes?{query}")
        order = api.place(table)
        page = waiting.result(DEADLINE).expect()
    assert [event["order"] for event in page["events"]] == [order]


def test_polling_wait_runs_out(api: Api) -> None:
    """Where nothing happens, `wait` ends with no events and the same cursor."""
    cursor = api.cursor()
    page = api.get(f"/api/changes?{urlencode({'after': cursor, 'wait': 0.2})}").expect()
    assert page == {"events": [], "cursor": cursor}


@pytest.mark.parametrize("cursor", ["nonsense", "", "0", "{}0"])
def test_polling_bad_cursor(api: Api, table: str, cursor: str) -> None:
    """A cursor that can't be resumed, or is none, is a 410."""
    api.place(table)
    after = cursor.format(api.cursor()) if "{}" in cursor else cursor
    problem(api.get(f"/api/changes?{urlencode({'after': after})}"), 410, "cursor_lost")


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "wait=-1", "wait=soon", "wait=nan"])
def test_polling_bad_query(api: Api, query: str) -> None:
    """A parameter that makes no sense is a 422 that points to it."""
    assert pointers(api.get(f"/api/changes?{query}")) == [f"/{query.partition('=')[0]}"]


# ---------------------------------------------------------------------------------------------------------------------
# 7. Concurrency
# ---------------------------------------------------------------------------------------------------------------------


def test_concurrency_posts_are_neither_lost_nor_doubled(api: Api, table: str) -> None:
    """200 orders posted at once are all placed, all listed, and each shown once to every screen, in the same order."""
    bodies = [{"table": table, "items": [{"name": f"Dish {n}", "quantity": n + 1}, *ITEMS]} for n in range(200)]
    with api.screen() as first, api.screen(batch="true") as second, api.stream() as third:
        replies = at_once([partial(api.post, "/api/order", body) for body in bodies])
        last = api.place(table)  # whatever a screen gets twice, it gets before this one
        seen = [subscriber.events(201, table) for subscriber in (first, second, third)]
    orders = [reply.expect(201) for reply in replies]
    assert [order["items"] for order in orders] == [body["items"] for body in bodies]
    assert len(set(ids(orders))) == 200
    in_order = [*sorted(orders, key=lambda order: order["id"]), last]
    assert [event["order"] for event in seen[0]] == in_order
    assert seen[1] == seen[2] == seen[0]
    assert api.list(table=table) == in_order[::-1]


def test_concurrency_snapshot_meets_stream(api: Api, table: str) -> None:
    """A screen that connects in the middle of a rush has each order once: on its first board or as an event."""

    def watch() -> list[int]:
        with api.screen() as screen:
            board = ids(about(table, screen.first["orders"]))
            return board + ids([event["order"] for event in screen.events(60 - len(board), table)])

    def post(_: int) -> int:
        order_id = api.place(table)["id"]
        assert isinstance(order_id, int)
        return order_id

    with ThreadPoolExecutor(20) as pool:
        early = [pool.submit(post, n) for n in range(20)]
        screens = [pool.submit(watch) for _ in range(5)]
        late = list(pool.map(post, range(40), timeout=DEADLINE))
        placed = [order_id.result(DEADLINE) for order_id in early] + late
        for screen in screens:
            assert sorted(screen.result(DEADLINE)) == sorted(placed)


def test_concurrency_one_of_many_conditional_writes_wins(api: Api, table: str) -> None:
    """Of writes with the same If-Match at the same moment, one succeeds; the others get the order that it made."""
    order = api.place(table)
    notes = [f"note {n}" for n in range(20)]
    replies = at_once([partial(api.patch, at(order), {"note": note}, if_match='"1"') for note in notes])
    assert Counter(reply.status for reply in replies) == {200: 1, 412: 19}
    [order] = [reply.json for reply in replies if reply.status == 200]
    assert all(problem(reply, 412)["order"] == order for reply in replies if reply.status == 412)
    assert api.get(at(order)).expect() == order


def test_concurrency_changes_of_one_order_add_up(api: Api, table: str) -> None:
    """Changes of one order at the same moment are all made, one after the other, each with a version of its own."""
    cursor, lines = api.cursor(), 20
    order = api.place(table, dishes(*(f"Dish {n}" for n in range(lines))))
    paths = [at(order, f"/items/{number}") for number in range(1, lines + 1)]
    replies = at_once([partial(api.patch, path, {"status": "ready"}) for path in paths])
    assert sorted(reply.expect()["version"] for reply in replies) == list(range(2, lines + 2))
    order = api.get(at(order)).expect()
    assert (order["status"], order["version"], states(order)) == ("ready", lines + 1, ["ready"] * lines)
    assert [event["order"]["version"] for event in api.changes(cursor, table)] == list(range(1, lines + 2))


def test_concurrency_refused_write_fails_alone(api: Api, table: str) -> None:
    """A write that is refused doesn't take those with it that arrived at the same moment."""
    order = api.move(api.place(table), "completed")
    bad = partial(api.patch, at(order), {"status": "cancelled"})
    good = partial(api.post, "/api/order", {"table": table, "items": ITEMS})
    replies = at_once([bad, good] * 20)
    assert [reply.status for reply in replies] == [409, 201] * 20
    assert len(api.list(table=table, status="received")) == 20


# ---------------------------------------------------------------------------------------------------------------------
# 8. Service
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_service_health(api: Api, path: str) -> None:
    """A server in order says so."""
    api.get(path).expect()


def test_service_metrics(api: Api) -> None:
    """The metrics are in Prometheus' text format, and Bistro92's own are among them."""
    reply = api.get("/metrics")
    assert (reply.status, reply.headers.get_content_type()) == (200, "text/plain")
    lines = [line for line in reply.body.decode().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-zA-Z_:][\w:]*(\{.*\})? \S+( \d+)?", line) for line in lines)
    assert any(line.startswith("bistro92_") for line in lines)


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_service_documentation(api: Api, path: str) -> None:
    """The API's documentation can be read in a browser."""
    reply = api.get(path)
    assert (reply.status, reply.headers.get_content_type()) == (200, "text/html")


def test_service_start_page(api: Api) -> None:
    """The bare address leads a person somewhere."""
    reply = api.get("/")
    assert reply.status == 200 or (reply.status in (302, 303, 307, 308) and reply.headers["Location"])


def test_service_openapi(api: Api) -> None:
    """The OpenAPI description names every endpoint."""
    described = api.get("/openapi.json").expect()["paths"]
    found = {(method, re.sub(r"\{[^}]*\}", "{}", path)) for path, methods in described.items() for method in methods}
    assert found >= {
        ("post", "/api/order"),
        ("get", "/api/order/{}"),
        ("patch", "/api/order/{}"),
        ("delete", "/api/order/{}"),
        ("post", "/api/order/{}/items"),
        ("patch", "/api/order/{}/items/{}"),
        ("post", "/api/order/{}/cancel"),
        ("get", "/api/order/{}/events"),
        ("get", "/api/orders"),
        ("get", "/api/stats"),
        ("get", "/api/changes"),
        ("get", "/api/events"),
        ("post", "/api/register"),
        ("post", "/api/login"),
        ("post", "/api/logout"),
        ("get", "/api/me"),
        ("post", "/api/session"),
        ("get", "/api/users"),
        ("patch", "/api/users/{}"),
        ("delete", "/api/users/{}"),
        ("post", "/api/tokens"),
        ("get", "/api/tokens"),
        ("delete", "/api/tokens/{}"),
        ("get", "/healthz"),
        ("get", "/readyz"),
        ("get", "/metrics"),
    }


def test_service_foreign_page(api: Api, table: str) -> None:
    """A browser's page of another origin can't place orders."""
    problem(api.post("/api/order", {"table": table, "items": ITEMS}, origin="https://evil.example"), 403)
    assert api.list(table=table) == []


@own_server_only
def test_service_survives_a_crash(table: str) -> None:
    """What was answered before the process was killed is there afterwards: order, feed, cursor and idempotency key."""
    body = {"table": table, "items": ITEMS}
    with tempfile.TemporaryDirectory() as folder:
        with own_server(Path(folder)) as (api, process):
            cursor = api.cursor()
            posted = api.post("/api/order", body, idempotency_key="k")
            process.kill()
            process.wait(DEADLINE)
        with own_server(Path(folder)) as (api, process):
            order = posted.expect(201)
            assert api.get(at(order)).expect() == order
            again = api.post("/api/order", body, idempotency_key="k")
            assert (again.body, again.headers["Idempotency-Replayed"]) == (posted.body, "true")
            with api.screen() as screen, api.screen(after=cursor) as resumed:
                assert screen.first["orders"] == [order]
                assert [event["order"] for event in resumed.events(1, table)] == [order]
            assert api.place(table)["id"] > order["id"]
            stop(process)


@own_server_only
def test_service_stops_in_order() -> None:
    """A server that is told to stop says goodbye to its subscribers (close code 1012), and ends with status 0."""
    with tempfile.TemporaryDirectory() as folder, own_server(Path(folder)) as (api, process):
        with api.screen() as screen, api.stream() as stream:
            process.terminate()
            with pytest.raises(ConnectionClosed) as closed:
                screen.next("new_order")
            assert closed.value.rcvd
            assert closed.value.rcvd.code == 1012
            with pytest.raises(EOFError):
                stream.next("new_order")
        assert process.wait(DEADLINE) == 0


def test_service_heartbeat(idle_screen: Screen) -> None:
    """A screen that has nothing to show hears from the server nevertheless, with a cursor and the time."""
    heartbeat = idle_screen.next("heartbeat")
    assert set(heartbeat) == {"type", "cursor", "server_time"}
    assert TIME.fullmatch(heartbeat["server_time"])
    assert {message["type"] for message in idle_screen.heard} == {"initial", "heartbeat"}


# ---------------------------------------------------------------------------------------------------------------------
# 9. Accounts
# ---------------------------------------------------------------------------------------------------------------------

PASSWORD: Final = "correct horse battery staple"
ROLES: Final = ("manager", "pos", "kitchen", "viewer")


@pytest.fixture(scope="module")
def staff() -> Iterator[dict[str, Api]]:
    """Another server of our own, one that has accounts: a client for each role, and `nobody`, who has no token."""
    with tempfile.TemporaryDirectory() as folder, own_server(Path(folder)) as (nobody, process):
        nobody.post("/api/register", {"username": "anna", "password": PASSWORD, "role": "manager"}).expect(201)
        session = nobody.post("/api/login", {"username": "anna", "password": PASSWORD}).expect()
        manager = Api(nobody.url, session["token"])
        clients = {"nobody": nobody, **{role: Api(nobody.url, issue(manager, role)["token"]) for role in ROLES}}
        yield clients
        stop(process)


def issue(manager: Api, role: str) -> Json:
    """A new token."""
    return manager.post("/api/tokens", {"name": unique("device"), "role": role, "expires_in_days": 7}).expect(201)


@own_server_only
@pytest.mark.parametrize("header", [{"host": "bistro.example"}, {"x_forwarded_for": "192.0.2.1"}])
def test_accounts_protected_mode(api: Api, header: dict[str, str]) -> None:
    """Before there is an account, only this machine is served; others are told how to create one."""
    assert "/api/register" in problem(api.get("/api/orders", **header), 403, "protected_mode")["detail"]
    problem(api.post("/api/order", {"table": "T", "items": ITEMS}, **header), 403, "protected_mode")


@own_server_only
def test_accounts_login(staff: dict[str, Api]) -> None:
    """A login gives a token, and a cookie that scripts can't read and other sites can't use; logout ends both."""
    browser, order = staff["nobody"], {"table": "T", "items": ITEMS}
    reply = browser.post("/api/login", {"username": "anna", "password": PASSWORD})
    session = reply.expect()
    assert session["role"] == "manager"
    assert TIME.fullmatch(session["expires_at"])
    cookie, *attributes = reply.headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict"} <= set(attributes)
    browser.get("/api/orders", cookie=cookie).expect()
    browser.post("/api/order", order, cookie=cookie, origin=browser.url).expect(201)
    problem(browser.post("/api/order", order, cookie=cookie, origin="https://evil.example"), 403)
    program = Api(browser.url, session["token"])
    program.get("/api/orders").expect()
    assert program.post("/api/logout").status == 204
    problem(program.get("/api/orders"), 401)
    problem(browser.get("/api/orders", cookie=cookie), 401)


@own_server_only
def test_accounts_wrong_credentials(staff: dict[str, Api]) -> None:
    """A wrong password and an unknown user get the same answer, but for the request's id."""
    tries = [{"username": "anna", "password": "wrong"}, {"username": unique("x"), "password": PASSWORD}]
    first, second = (problem(staff["nobody"].post("/api/login", who), 401) for who in tries)
    assert first.pop("instance") != second.pop("instance")
    assert first == second


@own_server_only
def test_accounts_register(staff: dict[str, Api]) -> None:
    """Once there is a manager, only a manager creates accounts; a name can be taken once."""
    new = {"username": unique("ben"), "password": PASSWORD, "role": "kitchen"}
    problem(staff["nobody"].post("/api/register", new), 401)
    problem(staff["pos"].post("/api/register", new), 403)
    staff["manager"].post("/api/register", new).expect(201)
    problem(staff["manager"].post("/api/register", new), 409)
    who = {"username": new["username"], "password": PASSWORD}
    assert staff["nobody"].post("/api/login", who).expect()["role"] == "kitchen"


@own_server_only
def test_accounts_users(staff: dict[str, Api]) -> None:
    """People are listed, change their password, and are deleted; each ends their sessions. The last manager stays."""
    manager, nobody = staff["manager"], staff["nobody"]
    name, path = unique("cleo"), "/api/users/"
    manager.post("/api/register", {"username": name, "password": PASSWORD, "role": "pos"}).expect(201)
    listed = {user["username"]: user["role"] for user in manager.get("/api/users").expect()}
    assert (listed["anna"], listed[name]) == ("manager", "pos")
    path += quote(name)
    cleo = Api(nobody.url, nobody.post("/api/login", {"username": name, "password": PASSWORD}).expect()["token"])
    me = cleo.get("/api/me").expect()
    assert (me["name"], me["role"], me["kind"]) == (name, "pos", "session")
    assert me["may"] == ["amend", "change", "place", "read"]
    problem(cleo.patch(path, {"password": "another one"}), 422)
    problem(cleo.patch(path, {"password": "another one", "old_password": "wrong one"}), 401, "wrong_credentials")
    problem(cleo.patch("/api/users/anna", {"password": "another one"}), 403)
    cleo.patch(path, {"password": "another one", "old_password": PASSWORD}).expect()
    problem(nobody.post("/api/login", {"username": name, "password": PASSWORD}), 401)
    manager.patch(path, {"password": PASSWORD}).expect()
    problem(cleo.get("/api/orders"), 401)
    assert manager.delete(path).status == 204
    problem(manager.delete(path), 404, "user_not_found")
    problem(manager.delete("/api/users/anna"), 409, "last_manager")


@own_server_only
def test_accounts_device_in_a_browser(staff: dict[str, Api]) -> None:
    """A device's token becomes a cookie that scripts can't read, and ends with the token."""
    manager, nobody = staff["manager"], staff["nobody"]
    token = issue(manager, "kitchen")
    reply = Api(nobody.url, token["token"]).post("/api/session")
    assert reply.expect()["kind"] == "device"
    cookie, *attributes = reply.headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict"} <= set(attributes)
    assert nobody.get("/api/me", cookie=cookie).expect()["name"] == token["name"]
    assert manager.delete(f"/api/tokens/{token['id']}").status == 204
    problem(nobody.get("/api/me", cookie=cookie), 401)


@own_server_only
def test_accounts_no_token(staff: dict[str, Api]) -> None:
    """Who shows no token, or one that is none, gets nothing: no orders, no stream, no socket."""
    for api in (staff["nobody"], Api(staff["nobody"].url, "nonsense")):
        for path in ("/api/orders", "/api/order/1", "/api/stats", "/api/changes", "/api/events", "/api/tokens"):
            problem(api.get(path), 401)
        problem(api.post("/api/order", {"table": "T", "items": ITEMS}), 401)
        with pytest.raises(InvalidStatus) as refusal, api.screen():
            pass
        assert refusal.value.response.status_code == 401
        api.get("/healthz").expect()


@own_server_only
@pytest.mark.parametrize("role", ROLES)
def test_accounts_roles(staff: dict[str, Api], role: str) -> None:
    """Each role can do what it is for, and nothing else."""
    api, manager, table = staff[role], staff["manager"], unique("Table")
    order = manager.place(table)
    everyone: Json = [("GET", path) for path in (at(order), at(order, "/events"), "/api/orders", "/api/stats")]
    kitchen: Json = [
        ("PATCH", at(order), {"status": "preparing"}),
        ("PATCH", at(order, "/items/1"), {"status": "ready"}),
    ]
    pos: Json = [
        ("PATCH", at(order), {"table": table, "note": "window", "priority": "rush"}),
        ("POST", at(order, "/items"), {"items": ITEMS}),
        ("POST", at(order, "/cancel")),
        ("DELETE", at(order)),
        ("POST", "/api/order", {"table": table, "items": ITEMS}),
    ]
    manage: Json = [
        ("GET", "/api/users"),
        ("GET", "/api/tokens"),
        ("POST", "/api/tokens", {"name": unique("device"), "role": "viewer"}),
    ]
    for may, requests in (
        (ROLES, everyone),
        (("manager", "kitchen"), kitchen),
        (("manager", "pos"), pos),
        (("manager",), manage),
    ):
        for request in requests:
            reply = api.request(*request)
            if role in may:
                assert reply.status in (200, 201, 204), (request, reply.body)
            else:
                problem(reply, 403)
    with api.screen() as screen:
        assert screen.first["type"] == "initial"


@own_server_only
def test_accounts_tokens(staff: dict[str, Api]) -> None:
    """A token's secret is shown once; a revoked token is worth nothing, and its sockets and streams are closed."""
    manager = staff["manager"]
    token = issue(manager, "kitchen")
    [listed] = [listed for listed in manager.get("/api/tokens").expect() if listed["id"] == token["id"]]
    assert listed == {name: value for name, value in token.items() if name != "token"}
    api = Api(manager.url, token["token"])
    with api.screen() as screen, api.stream() as stream:
        assert manager.delete(f"/api/tokens/{token['id']}").status == 204
        with pytest.raises(ConnectionClosed):
            screen.next("new_order")
        with pytest.raises(EOFError):
            stream.next("new_order")
    problem(api.get("/api/orders"), 401)
    problem(manager.delete(f"/api/tokens/{token['id']}"), 404)


@own_server_only
def test_accounts_idempotency_key_belongs_to_its_token(staff: dict[str, Api], table: str) -> None:
    """Two devices may come up with the same key: each places its own order."""
    key, body = unique("key"), {"table": table, "items": ITEMS}
    placed = [staff[role].post("/api/order", body, idempotency_key=key).expect(201) for role in ("pos", "manager")]
    assert len(set(ids(placed))) == 2


# ---------------------------------------------------------------------------------------------------------------------
# 10. The report
# ---------------------------------------------------------------------------------------------------------------------


class Report:
    """A pytest plugin that takes the place of pytest's own output: which promises are kept, group by group."""

    def __init__(self) -> None:
        self.promises: dict[str, tuple[str, str]] = {}
        """Test → its group and promise, in the order of this file. The cases of one function share theirs."""
        self.outcomes: dict[str, str] = {}
        """Test → passed, failed or skipped."""
        self.failures: dict[str, str] = {}
        """What went wrong → the test that showed it first: a server that doesn't start fails them all."""

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        for item in items:
            self.promises[item.nodeid] = (item.originalname.split("_")[1], str(item.function.__doc__))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failures[report.longreprtext] = report.nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed and report.when != "call":
            return
        print("." if report.passed else report.outcome[0].upper(), end="", flush=True)
        if report.failed:
            self.failures.setdefault(report.longreprtext, f"{report.nodeid} ({report.when})")
        if self.outcomes.get(report.nodeid) != "failed":
            self.outcomes[report.nodeid] = report.outcome

    def lines(self) -> Iterator[str]:
        """The failures, each promise with the worst of its outcomes, the counts."""
        for failure, where in self.failures.items():
            yield f"\n{where}\n{failure}"
        promises: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        groups: dict[str, Counter[str]] = defaultdict(Counter)
        for test, (group, promise) in self.promises.items():
            outcome = self.outcomes.get(test, "skipped")
            promises[group, promise][outcome] += 1
            groups[group][outcome] += 1
        for group in groups:
            yield f"\n{group}"
            for (its_group, promise), found in promises.items():
                if its_group == group:
                    cases = f" ({found.total()} cases)" if found.total() > 1 else ""
                    yield f"  {min(found):8} {promise}{cases}"  # alphabetical: failed before passed before skipped
        yield ""
        for group, found in [*groups.items(), ("total", sum(groups.values(), Counter()))]:
            yield f"{group:12}{found['passed']:5} passed{found['failed']:5} failed{found['skipped']:5} skipped"


def main() -> int:
    parser = argparse.ArgumentParser(description="Try every endpoint of Bistro92 and report which promises it keeps.")
    parser.add_argument("--url", help="the server to try; without it, one is started for the tour")
    parser.add_argument("--token", help="a manager's token, where the server has accounts")
    options = parser.parse_args()
    if options.url and not re.fullmatch(r"https?://[^/]+/?", options.url):
        parser.error(f"{options.url!r} is not an address such as http://127.0.0.1:8000")
    for name in ("url", "token"):
        if value := getattr(options, name):
            os.environ[f"BISTRO92_TOUR_{name.upper()}"] = value

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a tour that is stopped stops its server, too
    here, report = Path(__file__).resolve(), Report()
    alone = ["-c", os.devnull, f"--rootdir={here.parent}", "--noconftest", "--disable-plugin-autoload"]
    status = pytest.main([str(here), *alone, "-p", "no:terminal", "-p", "no:cacheprovider"], plugins=[report])
    print("", *report.lines(), sep="\n")
    return int(status != pytest.ExitCode.OK)


if __name__ == "__main__":
    sys.exit(main())
