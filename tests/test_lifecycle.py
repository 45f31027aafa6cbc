"""The life of an order over HTTP: a test for each sentence of the contract, against a real server.

What a rule does is told by table in test_rules.py, any sequence of requests by test_state_machine.py. Here each
promise is made once by the server as clients see it. Time passes only where it must: elsewhere stamps of stored
orders are moved back while the server is stopped.
"""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import pytest

from tests.conftest import Serve
from tests.harness import Client, Display, Json, Reply, Server, an_order, events_up_to, parse_problem, until
from tests.kitchen import ON_THE_BOARD, Ask, Tablet, answer_of

RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
STATES: Final = ("scheduled", "received", "preparing", "ready", "completed", "cancelled")
FAR_AWAY: Final = "2901-01-01T00:00:00Z"
LONG_AGO: Final = "2001-01-01T00:00:00Z"
LONGEST_BODY: Final = 262_144


# ---------------------------------------------------------------------------------------------------------------------
# What the tests say often
# ---------------------------------------------------------------------------------------------------------------------


def at(order: Json, *rest: object) -> str:
    return "/".join(["/api/order", str(order["id"]), *map(str, rest)])


def patch(client: Client, order: Json, change: Json, **headers: str) -> Reply:
    return client.request("PATCH", at(order), change, **headers)


def change(client: Client, order: Json, **changes: Any) -> Json:
    """Change an order, which has to succeed; returns it."""
    reply = patch(client, order, changes)
    assert reply.status == HTTPStatus.OK, reply.body
    changed: Json = reply.json
    return changed


def mark(client: Client, order: Json, line: int, status: str, **headers: str) -> Reply:
    return client.request("PATCH", at(order, "items", line), {"status": status}, **headers)


def read(client: Client, order: Json) -> Json:
    found: Json = client.get(at(order)).json
    return found


def lines(*names: str) -> list[Json]:
    return [{"name": name, "quantity": 1} for name in names]


def placed_in(client: Client, status: str, **more: Any) -> Json:
    """A new order of two lines, brought into a state."""
    when = {"fire_at": FAR_AWAY} if status == "scheduled" else {}
    order = client.place({"table": "Table 1", "items": lines("Soup", "Steak"), **when, **more})
    return order if order["status"] == status else change(client, order, status=status)


def faults_of(reply: Reply) -> list[str]:
    """The pointers of a 422."""
    assert parse_problem(reply) == (422, "invalid_request")
    faults = reply.json["errors"]
    assert all(set(fault) == {"pointer", "detail"} and fault["detail"] for fault in faults)
    return [fault["pointer"] for fault in faults]


def trail(client: Client, order: Json) -> list[Json]:
    found: list[Json] = client.get(at(order, "events")).json
    return found


def stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(**units: float) -> str:
    return stamp(datetime.now(UTC) - timedelta(**units))


def move_back(server: Server, stamps: dict[int, Json]) -> None:
    """While the server is stopped: let orders, by id, have stamps from before."""
    with server.session() as fetch:
        for order_id, values in stamps.items():
            [(body,)] = fetch("SELECT body FROM orders WHERE id = ?", order_id)
            body = json.dumps({**json.loads(body), **values})
            fetch("UPDATE orders SET body = ? WHERE id = ?", body, order_id)


# ---------------------------------------------------------------------------------------------------------------------
# Posting
# ---------------------------------------------------------------------------------------------------------------------

EXAMPLE: Final[Json] = {
    "table": "Table 1",
    "items": [{"name": "Burger", "quantity": 3}, {"name": "Ice Cream", "quantity": 1}],
}
FULL: Final[Json] = {
    "table": "Terrasse é ☕ 表",
    "items": [{"name": "Crème brûlée", "quantity": 2, "note": "no nuts 🥜", "station": "cold"}, *lines("Tea")],
    "note": "window",
    "priority": "rush",
    "source": "till",
}


def test_post_the_example_of_the_contract(client: Client) -> None:
    """A posted order is answered with 201, its place, its version, and itself; nothing that wasn't sent or stamped."""
    before = ago(seconds=1)
    reply = client.post(EXAMPLE)
    order = reply.json
    assert reply.status == 201
    assert reply.headers["location"] == f"/api/order/{order['id']}"
    assert reply.headers["etag"] == '"1"'
    assert reply.headers["content-type"] == "application/json"
    now = order["created_at"]
    assert RFC3339.fullmatch(now)
    assert before <= now <= stamp(datetime.now(UTC))
    assert order == {
        "id": order["id"],
        **EXAMPLE,
        "created_at": now,
        "status": "received",
        "version": 1,
        "updated_at": now,
    }


def test_post_every_optional_field(client: Client) -> None:
    """Optional fields come back as they were sent, in any language, and `items` equal to what was sent."""
    sent = {**FULL, "external_id": "every-field"}
    order = client.place(sent)
    assert {name: order[name] for name in sent} == sent
    assert read(client, order) == order
    assert set(order) - set(sent) == {"id", "created_at", "status", "version", "updated_at"}


def test_answer_in_utf8(client: Client) -> None:
    """Answers are JSON in UTF-8."""
    reply = client.post(FULL)
    assert json.loads(reply.body.decode("utf-8"))["table"] == FULL["table"]
    assert reply.headers["content-type"].partition(";")[0] == "application/json"


def test_ids_of_orders_posted_one_after_the_other(client: Client) -> None:
    """Ids are positive integers, increasing in commit order."""
    ids = [client.place(an_order())["id"] for _ in range(5)]
    assert ids == [*range(ids[0], ids[0] + 5)]
    assert ids[0] >= 1


def test_get_an_order(client: Client) -> None:
    """An order is read as it was answered, with its version as ETag; an order that isn't there is 404."""
    order = client.place(an_order())
    reply = client.get(at(order))
    assert (reply.status, reply.json, reply.headers["etag"]) == (200, order, '"1"')
    for nowhere in ("0", "999999999", "9223372036854775807", "9223372036854775808", "9" * 40):
        assert parse_problem(client.get(f"/api/order/{nowhere}")) == (404, "order_not_found")


@pytest.mark.parametrize("rest", ["", "/events", "/items", "/items/1", "/cancel"])
def test_id_longer_than_any_number(client: Client, rest: str) -> None:
    """An id of thousands of digits is just an order that isn't there: 404 or 405, never a mistake of the server."""
    for method in ("GET", "PATCH", "POST", "DELETE"):
        with closing(client):
            reply = client.request(method, f"/api/order/{'9' * 5000}{rest}", {"status": "ready"})
            assert reply.status in {404, 405, 414, 422}, reply.body


def test_etag_of_an_order_that_the_client_holds(client: Client) -> None:
    """Who holds the current version is answered 304 without a body; who holds an older one gets the order."""
    order = client.place(an_order())
    reply = client.get(at(order), if_none_match='"1"')
    assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", '"1"')
    change(client, order, status="preparing")
    reply = client.get(at(order), if_none_match='"1"')
    assert (reply.status, reply.json["version"], reply.headers["etag"]) == (200, 2, '"2"')


# ---------------------------------------------------------------------------------------------------------------------
# Types and limits
# ---------------------------------------------------------------------------------------------------------------------

Place = tuple[str | int, ...]


def altered(place: Place, value: Any) -> Json:
    """A good order with another value at a place; `...` for none."""
    order: Any = {"table": "Table 1", "items": lines("Soup", "Steak")}
    *way, last = place
    inner = order
    for step in way:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    sent: Json = order
    return sent


def place_name(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else ""


def pointer_to(place: Place) -> str:
    return "".join(f"/{step}" for step in place)


EDGES: Final[list[tuple[Place, list[Any], list[Any]]]] = [
    (("table",), ["T", "T" * 64, "é" * 64, "☕" * 64], ["", "T" * 65, "☕" * 65]),
    (("items",), [lines("a"), lines(*["a"] * 100)], [[], lines(*["a"] * 101)]),
    (("items", 1, "name"), ["a", "a" * 120, "表" * 120], ["", "a" * 121]),
    (("items", 1, "quantity"), [1, 999], [0, 1000, -1, 10**30]),
    (("items", 1, "note"), ["n", "n" * 280, "🥜" * 280], ["n" * 281]),
    (("items", 1, "station"), ["s", "s" * 32], ["s" * 33]),
    (("note",), ["n", "n" * 280], ["n" * 281]),
    (("priority",), ["normal", "rush"], ["urgent", "", "Rush"]),
]


@pytest.mark.parametrize(("place", "good", "bad"), EDGES, ids=place_name)
def test_field_at_its_limits_and_one_beyond(client: Client, place: Place, good: list[Any], bad: list[Any]) -> None:
    """A value at a limit is taken as it is, one beyond is refused with 422 and its pointer; characters are counted."""
    for value in good:
        sent = altered(place, value)
        order = client.place(sent)
        assert {name: order[name] for name in sent} == sent
    count = len(client.orders())
    for value in bad:
        assert faults_of(client.post(altered(place, value))) == [pointer_to(place)]
    assert len(client.orders()) == count


WRONG_TYPES: Final[list[tuple[Place, list[Any]]]] = [
    (("table",), [1, None, True, ["T"], {}]),
    (("items",), [None, "Soup", {"name": "Soup", "quantity": 1}, 1]),
    (("items", 0), [None, "Soup", 1, []]),
    (("items", 0, "name"), [1, None, True, []]),
    (("items", 0, "quantity"), ["3", True, False, None, 1.5, 3.0, [1]]),
    (("items", 0, "note"), [1, None, True]),
    (("items", 0, "station"), [1, None, []]),
    (("note",), [1, None, {}]),
    (("priority",), [1, None, True]),
    (("source",), [1, None]),
    (("external_id",), [1, None]),
    (("fire_at",), [1, None, True, 1795197302]),
]


@pytest.mark.parametrize(("place", "values"), WRONG_TYPES, ids=place_name)
def test_value_of_another_type(client: Client, place: Place, values: list[Any]) -> None:
    """Types are strict: nothing is taken for what it isn't, `"3"` and `true` are no quantities."""
    for value in values:
        assert faults_of(client.post(altered(place, value))) == [pointer_to(place)]


@pytest.mark.parametrize(
    ("place", "pointer"),
    [
        (("table",), "/table"),
        (("items",), "/items"),
        (("items", 0, "name"), "/items/0/name"),
        (("items", 1, "quantity"), "/items/1/quantity"),
    ],
)
def test_missing_member(client: Client, place: Place, pointer: str) -> None:
    """A required field that is missing is 422, its pointer is where it should stand."""
    assert faults_of(client.post(altered(place, ...))) == [pointer]


def test_several_faults(client: Client) -> None:
    """Every field at fault is named."""
    reply = client.request("POST", "/api/order", {"items": [{"name": "", "quantity": "3"}, {"quantity": 0}]})
    expected = ["/items/0/name", "/items/0/quantity", "/items/1/name", "/items/1/quantity", "/table"]
    assert sorted(faults_of(reply)) == expected


def test_unknown_field_in_every_body(client: Client) -> None:
    """An unknown field is refused wherever it stands, never dropped; its name is escaped as a JSON pointer."""
    order = client.place(an_order())
    soup = {"name": "Soup", "quantity": 1, "notes": "no nuts"}
    refused: list[tuple[str, str, Json, str]] = [
        ("POST", "/api/order", {**EXAMPLE, "status": "ready"}, "/status"),
        ("POST", "/api/order", {**EXAMPLE, "id": 5}, "/id"),
        ("POST", "/api/order", {**EXAMPLE, "a/b~c": 1}, "/a~1b~0c"),
        ("POST", "/api/order", {"table": "T", "items": [soup]}, "/items/0/notes"),
        ("POST", "/api/order", {"table": "T", "items": [{**lines("Soup")[0], "status": "ready"}]}, "/items/0/status"),
        ("PATCH", at(order), {"status": "ready", "items": lines("Soup")}, "/items"),
        ("PATCH", at(order), {"source": "till"}, "/source"),
        ("POST", at(order, "items"), {"items": [soup]}, "/items/0/notes"),
        ("POST", at(order, "items"), {"items": lines("Soup"), "table": "Bar"}, "/table"),
        ("PATCH", at(order, "items", 1), {"status": "ready", "note": "no nuts"}, "/note"),
        ("POST", at(order, "cancel"), {"why": "guests left"}, "/why"),
    ]
    for method, path, body, pointer in refused:
        assert faults_of(client.request(method, path, body)) == [pointer]
    assert read(client, order) == order


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("", {"status": "cooking"}, "/status"),
        ("", {"status": None}, "/status"),
        ("", {"table": ""}, "/table"),
        ("", {"table": "T" * 65}, "/table"),
        ("", {"table": None}, "/table"),
        ("", {"note": "n" * 281}, "/note"),
        ("", {"priority": "urgent"}, "/priority"),
        ("", {"fire_at": "tomorrow"}, "/fire_at"),
        ("/items", {"items": []}, "/items"),
        ("/items", {}, "/items"),
        ("/items", {"items": [{"name": "Soup", "quantity": 0}]}, "/items/0/quantity"),
        ("/items/1", {}, "/status"),
        ("/items/1", {"status": "done"}, "/status"),
        ("/cancel", {"reason": "r" * 281}, "/reason"),
        ("/cancel", {"reason": 1}, "/reason"),
    ],
)
def test_fault_in_a_change(client: Client, path: str, body: Json, pointer: str) -> None:
    """Changes are checked as strictly as orders, and what is refused changes nothing."""
    order = client.place(an_order())
    method = "PATCH" if path in {"", "/items/1"} else "POST"
    assert faults_of(client.request(method, at(order) + path, body)) == [pointer]
    assert read(client, order) == order


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{'table': 1}",
        b'{"table": "T",}',
        b"\xff\xfe",
        b'{"table": "\xff"}',
        b'{"table": "\\ud800"}',
        b"[" * 10_000,
    ],
)
def test_malformed_json(client: Client, body: bytes) -> None:
    """What is no JSON is 400, whatever write it is sent to."""
    order = client.place(an_order())
    paths = [
        ("POST", "/api/order"),
        ("PATCH", at(order)),
        ("POST", at(order, "items")),
        ("PATCH", at(order, "items", 1)),
    ]
    if body:  # a cancellation needs none
        paths.append(("POST", at(order, "cancel")))
    for method, path in paths:
        assert parse_problem(client.request(method, path, body)) == (400, "malformed_json")
    assert read(client, order) == order


@pytest.mark.parametrize("body", [b"[]", b"null", b'"order"', b"3", b"true"])
def test_json_that_is_no_object(client: Client, body: bytes) -> None:
    """JSON that is no object is a fault of the whole body: 422 with the empty pointer."""
    assert faults_of(client.request("POST", "/api/order", body)) == [""]


def test_body_as_large_as_allowed_and_one_byte_larger(client: Client) -> None:
    """A request of as many bytes as the setting says is served; one more is 413."""
    order = json.dumps(EXAMPLE).encode()
    assert client.request("POST", "/api/order", order.ljust(LONGEST_BODY)).status == 201
    with closing(client):
        reply = client.request("POST", "/api/order", order.ljust(LONGEST_BODY + 1))
        assert parse_problem(reply) == (413, "body_too_large")


def test_nul_in_a_text(client: Client) -> None:
    """A text that a database would cut short is refused."""
    assert faults_of(client.post(altered(("items", 0, "note"), "no\0nuts"))) == ["/items/0/note"]


# ---------------------------------------------------------------------------------------------------------------------
# Changing
# ---------------------------------------------------------------------------------------------------------------------


def test_patch_each_field(client: Client) -> None:
    """PATCH changes what it names, answers with the order, and each change counts once."""
    order = client.place(an_order())
    for version, (name, value) in enumerate(
        [("table", "Bar"), ("note", "window"), ("priority", "rush"), ("status", "preparing")], start=2
    ):
        reply = patch(client, order, {name: value})
        assert reply.status == 200
        assert reply.headers["etag"] == f'"{version}"'
        assert (reply.json[name], reply.json["version"]) == (value, version)
        assert reply.json == read(client, order)


def test_patch_takes_the_note_away(client: Client) -> None:
    """A null or empty note takes the note away: an optional field is shown only when set."""
    for nothing in (None, ""):
        order = client.place(an_order(note="window"))
        assert "note" not in change(client, order, note=nothing)
        assert change(client, order, note=nothing)["version"] == 2


def test_journey_of_an_order_with_its_stamps(client: Client) -> None:
    """An order goes through its states, each stamped as it is entered, and a recall takes the later stamps back."""
    order = client.place(an_order())
    assert not [name for name in order if name.endswith("_at") and name not in {"created_at", "updated_at"}]
    for version, (status, name) in enumerate(
        [("preparing", "started_at"), ("ready", "ready_at"), ("completed", "completed_at")], start=2
    ):
        order = change(client, order, status=status)
        assert (order["status"], order["version"]) == (status, version)
        assert order[name] == order["updated_at"] >= order["created_at"]
    recalled = change(client, order, status="preparing")
    assert {"ready_at", "completed_at"}.isdisjoint(recalled)
    cancelled = change(client, order, status="cancelled")
    assert cancelled["cancelled_at"] == cancelled["updated_at"]


@pytest.mark.parametrize(
    ("status", "to"),
    [
        ("received", "scheduled"),
        ("preparing", "received"),
        ("ready", "received"),
        ("completed", "ready"),
        ("completed", "cancelled"),
        *[("cancelled", to) for to in STATES if to != "cancelled"],
    ],
)
def test_move_that_is_not_allowed(client: Client, status: str, to: str) -> None:
    """A move that the table doesn't have is 409 with the current order, which stays as it is."""
    order = placed_in(client, status)
    reply = patch(client, order, {"status": to})
    assert parse_problem(reply) == (409, "invalid_transition")
    assert reply.json["order"] == order == read(client, order)


@pytest.mark.parametrize("status", STATES)
def test_double_tap(client: Client, status: str) -> None:
    """Asking for the state that an order is in is a 200 no-op: no new version, no event."""
    order = placed_in(client, status)
    cursor = client.cursor()
    reply = patch(client, order, {"status": status})
    assert (reply.status, reply.json, reply.headers["etag"]) == (200, order, f'"{order["version"]}"')
    assert client.cursor() == cursor


def test_double_tap_of_every_other_kind(client: Client) -> None:
    """Tapping a line twice, cancelling twice, amending to what is there: 200 or 204, and nothing changes."""
    order = client.place(an_order(note="window", items=lines("Soup", "Steak")))
    order = mark(client, order, 1, "ready").json
    cursor = client.cursor()
    assert mark(client, order, 1, "ready").json == order
    assert mark(client, order, 2, "pending").json == order
    assert change(client, order, table=order["table"], note="window") == order
    assert change(client, order) == order
    assert client.cursor() == cursor
    gone = client.request("POST", at(order, "cancel"), {"reason": "left"}).json
    cursor = client.cursor()
    assert client.request("POST", at(order, "cancel"), {"reason": "other"}).json == gone
    assert client.request("DELETE", at(order)).status == 204
    assert change(client, order, status="cancelled") == gone
    assert client.cursor() == cursor


def test_append_lines(client: Client) -> None:
    """Appended lines come last, a ready order is preparing again; 200 with the order."""
    order = placed_in(client, "ready")
    reply = client.request("POST", at(order, "items"), {"items": [{"name": "Pie", "quantity": 2, "station": "cold"}]})
    assert reply.status == 200
    assert reply.json["items"] == [*order["items"], {"name": "Pie", "quantity": 2, "station": "cold"}]
    assert (reply.json["status"], reply.json["version"]) == ("preparing", order["version"] + 1)


def test_append_lines_beyond_the_limit(client: Client) -> None:
    """An order has at most 100 lines, appended ones included: 422, and none of them is added."""
    order = client.place(an_order(items=lines(*["Soup"] * 99)))
    assert faults_of(client.request("POST", at(order, "items"), {"items": lines("a", "b")})) == ["/items"]
    assert len(client.request("POST", at(order, "items"), {"items": lines("a")}).json["items"]) == 100


def test_lines_and_the_order_that_follows_them(client: Client) -> None:
    """Lines are struck, set back and voided in their place, and the order follows them."""
    order = client.place(an_order(items=lines("Soup", "Steak", "Pie")))
    steps = [
        (2, "ready", "preparing", [None, "ready", None]),
        (1, "ready", "preparing", ["ready", "ready", None]),
        (3, "voided", "ready", ["ready", "ready", "voided"]),
        (1, "pending", "preparing", [None, "ready", "voided"]),
        (1, "voided", "ready", ["voided", "ready", "voided"]),
        (2, "voided", "cancelled", ["voided", "voided", "voided"]),
    ]
    for version, (line, to, status, states) in enumerate(steps, start=2):
        reply = mark(client, order, line, to)
        assert (reply.status, reply.headers["etag"]) == (200, f'"{version}"')
        assert (reply.json["status"], reply.json["version"]) == (status, version)
        assert [each.get("status") for each in reply.json["items"]] == states
        assert [each["name"] for each in reply.json["items"]] == ["Soup", "Steak", "Pie"]


def test_lines_of_an_order_that_becomes_ready(client: Client) -> None:
    """When an order becomes ready its pending lines do, voided ones don't."""
    order = placed_in(client, "received")
    mark(client, order, 1, "voided")
    ready = change(client, order, status="ready")
    assert [each["status"] for each in ready["items"]] == ["voided", "ready"]


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_lines_of_a_closed_order(client: Client, status: str) -> None:
    """Lines of a completed or cancelled order don't change and aren't added: 409 with the order."""
    order = placed_in(client, status)
    for reply in (
        mark(client, order, 1, "ready"),
        mark(client, order, 1, "voided"),
        client.request("POST", at(order, "items"), {"items": lines("Pie")}),
    ):
        assert parse_problem(reply) == (409, "order_closed")
        assert reply.json["order"] == order == read(client, order)


def test_line_that_is_not_there(client: Client) -> None:
    """Lines count from 1; a line that an order doesn't have is 404."""
    order = client.place(an_order())
    for line in ("0", "2", "9" * 30):
        reply = client.request("PATCH", f"{at(order)}/items/{line}", {"status": "ready"})
        assert parse_problem(reply) == (404, "line_not_found")


@pytest.mark.parametrize("status", ["scheduled", "received", "preparing", "ready"])
def test_cancel_in_each_way(client: Client, status: str) -> None:
    """An order that isn't completed is cancelled by POST, DELETE or PATCH; it stays on record."""
    by_post, by_delete, by_patch = (placed_in(client, status) for _ in range(3))
    reply = client.request("POST", at(by_post, "cancel"), {"reason": "guests left"})
    assert (reply.status, reply.json["status"], reply.json["cancel_reason"]) == (200, "cancelled", "guests left")
    reply = client.request("DELETE", at(by_delete))
    assert (reply.status, reply.body) == (204, b"")
    assert change(client, by_patch, status="cancelled")["status"] == "cancelled"
    for order in (by_post, by_delete, by_patch):
        record = read(client, order)
        assert (record["status"], record["version"]) == ("cancelled", order["version"] + 1)
        assert record["cancelled_at"] == record["updated_at"]
        assert record["items"] == order["items"]
        assert record in client.orders()


@pytest.mark.parametrize("body", [None, b"", b"{}"])
def test_cancel_without_a_reason(client: Client, body: bytes | None) -> None:
    """The reason is optional."""
    order = client.place(an_order())
    reply = client.request("POST", at(order, "cancel"), body)
    assert (reply.status, reply.json["status"]) == (200, "cancelled")
    assert "cancel_reason" not in reply.json


def test_cancel_a_completed_order(client: Client) -> None:
    """A completed order cannot be cancelled, in whatever way: 409 with the order."""
    order = placed_in(client, "completed")
    for reply in (client.request("POST", at(order, "cancel")), client.request("DELETE", at(order))):
        assert parse_problem(reply) == (409, "invalid_transition")
        assert reply.json["order"] == order == read(client, order)


# ---------------------------------------------------------------------------------------------------------------------
# Every kind of write: conditions and keys
# ---------------------------------------------------------------------------------------------------------------------

Write = Callable[[Json], Ask]
CHANGES: Final[dict[str, Write]] = {
    "amend": lambda order: Ask("PATCH", at(order), {"table": "Bar"}),
    "move": lambda order: Ask("PATCH", at(order), {"status": "preparing"}),
    "append": lambda order: Ask("POST", at(order, "items"), {"items": lines("Pie")}),
    "mark": lambda order: Ask("PATCH", at(order, "items", 1), {"status": "ready"}),
    "cancel": lambda order: Ask("POST", at(order, "cancel"), {"reason": "left"}),
    "delete": lambda order: Ask("DELETE", at(order)),
}
every_change = pytest.mark.parametrize("write", CHANGES.values(), ids=CHANGES)


def send(client: Client, ask: Ask, **headers: str) -> Reply:
    return client.request(ask.method, ask.path, ask.body, **headers)


@every_change
def test_if_match_with_the_current_version(client: Client, write: Write) -> None:
    """A write on the version that the order has is done, and any of several versions will do, or `*`."""
    for condition in ('"1"', '"7", "1"', "*"):
        order = placed_in(client, "received")
        reply = send(client, write(order), if_match=condition)
        assert reply.status in {200, 204}
        assert reply.headers["etag"] == '"2"'
        assert read(client, order)["version"] == 2


@every_change
def test_if_match_with_a_stale_version(client: Client, write: Write) -> None:
    """A write on another version is 412 with the current order, and changes nothing."""
    order = change(client, placed_in(client, "received"), note="seen by somebody else")
    cursor = client.cursor()
    for condition in ('"1"', '"3"', '"1", "3"', '"x"'):
        reply = send(client, write(order), if_match=condition)
        assert parse_problem(reply) == (412, "version_mismatch")
        assert reply.json["order"] == order
    assert read(client, order) == order
    assert client.cursor() == cursor


def test_if_match_and_a_double_tap(client: Client) -> None:
    """A stale condition is 412 even where there would be nothing to do: the client learns what has changed."""
    order = change(client, placed_in(client, "received"), status="preparing")
    assert parse_problem(patch(client, order, {"status": "preparing"}, if_match='"1"')) == (412, "version_mismatch")
    assert patch(client, order, {"status": "preparing"}, if_match='"2"').json == order


@every_change
def test_change_of_an_order_that_is_not_there(client: Client, write: Write) -> None:
    """A change of no order is 404, with a condition and a key too."""
    for headers in ({}, {"if_match": '"1"'}, {"idempotency_key": "nobody's"}):
        assert parse_problem(send(client, write({"id": 10**9}), **headers)) == (404, "order_not_found")


@every_change
def test_key_with_the_same_change(client: Client, write: Write, request: pytest.FixtureRequest) -> None:
    """The same key and request: the first status and body again, marked as replayed, and done once."""
    order = placed_in(client, "received")
    key = request.node.name
    first = send(client, write(order), idempotency_key=key)
    assert first.status in {200, 204}
    assert first.headers["idempotency-replayed"] is None
    done = read(client, order)
    assert done["version"] == 2
    now = done if done["status"] == "cancelled" else change(client, order, note="changed meanwhile")
    for spelling in (key, f'"{key}"'):
        again = send(client, write(order), idempotency_key=spelling)
        assert (again.status, again.body, again.headers["etag"]) == (first.status, first.body, '"2"')
        assert again.headers["idempotency-replayed"] == "true"
    assert read(client, order) == now


def test_key_with_the_same_post(client: Client) -> None:
    """A POST that is repeated with its key gives the first order again, and there is one."""
    first = client.post(EXAMPLE, idempotency_key="post")
    before = client.orders()
    change(client, first.json, status="completed")
    again = client.post(EXAMPLE, idempotency_key="post")
    assert (again.status, again.body) == (201, first.body)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["etag"] == first.headers["etag"]
    assert [order["id"] for order in client.orders()] == [order["id"] for order in before]


def test_key_with_a_double_tap(client: Client) -> None:
    """A no-op is remembered by its key as any other write."""
    order = placed_in(client, "preparing")
    first = patch(client, order, {"status": "preparing"}, idempotency_key="no-op")
    change(client, order, status="ready")
    again = patch(client, order, {"status": "preparing"}, idempotency_key="no-op")
    assert (again.status, again.body, again.headers["idempotency-replayed"]) == (200, first.body, "true")
    assert read(client, order)["status"] == "ready"


def test_key_with_another_request(client: Client) -> None:
    """A key that was used for another body, path or method is 422, and nothing is done."""
    order, other = placed_in(client, "received"), placed_in(client, "received")
    assert patch(client, order, {"table": "Bar"}, idempotency_key="one").status == 200
    cursor = client.cursor()
    for ask in (
        Ask("PATCH", at(order), {"table": "Hall"}),
        Ask("PATCH", at(other), {"table": "Bar"}),
        Ask("DELETE", at(order)),
        Ask("POST", at(order, "cancel")),
        Ask("POST", "/api/order", EXAMPLE),
    ):
        assert parse_problem(send(client, ask, idempotency_key="one")) == (422, "idempotency_mismatch")
    assert client.cursor() == cursor


def test_concurrent_duplicates_of_a_post(server: Server, client: Client) -> None:
    """The same key at the same moment on many connections: one order, and all are answered with it."""
    ask = Ask("POST", "/api/order", an_order("Duplicate"), key="at once")
    with ExitStack() as opened:
        tablets = [opened.enter_context(closing(Tablet(server.port))) for _ in range(16)]
        for tablet in tablets:
            tablet.tap(ask)
        replies = [tablet.read() for tablet in tablets]
    assert {(reply.status, reply.body) for reply in replies} == {(201, replies[0].body)}
    assert sum(answer_of(reply).replayed for reply in replies) == 15
    assert [order for order in client.orders() if order["items"] == ask.body["items"]] == [replies[0].json]  # type: ignore[index]


@pytest.mark.parametrize("key", ["k", "k" * 255, '"' + "k" * 253 + 'x"', "a b", "ключ"])
def test_key_of_any_length_allowed(client: Client, key: str) -> None:
    """A key has 1 to 255 characters, bare or quoted."""
    name = key.encode().decode("latin-1")
    first, again = (client.post(an_order(note=key[:9]), idempotency_key=name) for _ in range(2))
    assert (first.status, again.status, again.body) == (201, 201, first.body)


@pytest.mark.parametrize("key", ["", '""', "k" * 256, '"' + "k" * 256 + '"'])
def test_key_that_is_none(client: Client, key: str) -> None:
    """An empty key, or one of 256 characters, is 422, and the write is not done without it."""
    cursor = client.cursor()
    reply = client.post(EXAMPLE, idempotency_key=key)
    assert parse_problem(reply) == (422, "invalid_request")
    assert client.cursor() == cursor


def test_key_of_a_refused_request(client: Client) -> None:
    """Refused requests are not stored: once the reason is gone, the same request with the same key is done."""
    order = placed_in(client, "completed")
    more = {"items": lines("Pie")}
    for _ in range(2):
        refused = client.request("POST", at(order, "items"), more, idempotency_key="refused 409")
        assert parse_problem(refused) == (409, "order_closed")
    change(client, order, status="preparing")
    done = client.request("POST", at(order, "items"), more, idempotency_key="refused 409")
    assert (done.status, done.headers["idempotency-replayed"]) == (200, None)

    assert parse_problem(patch(client, order, {"table": "Bar"}, if_match='"9"', idempotency_key="412"))[0] == 412
    assert patch(client, order, {"table": "Bar"}, if_match=done.headers["etag"], idempotency_key="412").status == 200

    assert parse_problem(client.post({**EXAMPLE, "table": ""}, idempotency_key="refused 422"))[0] == 422
    assert client.post(EXAMPLE, idempotency_key="refused 422").status == 201


def test_key_and_a_condition_that_is_stale_by_then(client: Client) -> None:
    """A retry of a conditional write is answered as the first time, although its version has passed."""
    order = placed_in(client, "received")
    first, again = (patch(client, order, {"table": "Bar"}, if_match='"1"', idempotency_key="both") for _ in range(2))
    assert (first.status, again.status, again.body) == (200, 200, first.body)


def test_key_of_another_credential(serve: Serve) -> None:
    """Keys are scoped to the credential: two tills that use the same key have an order each."""
    with closing(serve().start().client()) as client:
        owner = {"username": "owner", "password": "correct horse battery"}
        assert client.request("POST", "/api/register", {**owner, "role": "manager"}).status == 201
        manager = f"Bearer {client.request('POST', '/api/login', owner).json['token']}"
        secrets = [
            client.request("POST", "/api/tokens", {"name": name, "role": "pos"}, authorization=manager).json["token"]
            for name in ("till 1", "till 2")
        ]
        orders = [
            client.place(EXAMPLE, idempotency_key="1", authorization=f"Bearer {secret}") for secret in secrets * 2
        ]
        assert orders[:2] == orders[2:]
        assert orders[0]["id"] != orders[1]["id"]


# ---------------------------------------------------------------------------------------------------------------------
# The POS's own name for an order
# ---------------------------------------------------------------------------------------------------------------------


def test_pair_of_source_and_external_id_posted_twice(client: Client) -> None:
    """A (source, external_id) that was posted before is 409 with the first order, as it stands now."""
    first = client.place(an_order(source="till", external_id="twice"))
    for body in (an_order(source="till", external_id="twice"), an_order("Other", source="till", external_id="twice")):
        reply = client.post(body)
        assert parse_problem(reply) == (409, "duplicate_order")
        assert reply.json["order"] == first
    cancelled = change(client, first, status="cancelled")
    assert client.post(an_order(source="till", external_id="twice")).json["order"] == cancelled
    assert client.get("/api/orders?external_id=twice").json == [cancelled]


def test_half_of_a_pair_posted_twice(client: Client) -> None:
    """Only the pair is unique: another source, another id, or one of the two alone makes another order."""
    names = [
        {"source": "half", "external_id": "1"},
        {"source": "half", "external_id": "2"},
        {"source": "other", "external_id": "1"},
        {"source": "half"},
        {"source": "half"},
        {"external_id": "1"},
        {"external_id": "1"},
    ]
    ids = {client.place(an_order(**name))["id"] for name in names}
    assert len(ids) == len(names)


def test_pair_posted_twice_with_a_key(client: Client) -> None:
    """With its key a repeated pair is the retry that it is: 201 and the first order."""
    body = an_order(source="till", external_id="keyed")
    first, again = (client.post(body, idempotency_key="pair") for _ in range(2))
    assert (first.status, again.status, again.body) == (201, 201, first.body)
    assert parse_problem(client.post(body, idempotency_key="another")) == (409, "duplicate_order")


def test_concurrent_posts_of_a_pair(server: Server) -> None:
    """The same pair at the same moment on many connections: one 201, and 409 with that order for the others."""
    ask = Ask("POST", "/api/order", an_order(source="till", external_id="at once"))
    with ExitStack() as opened:
        tablets = [opened.enter_context(closing(Tablet(server.port))) for _ in range(8)]
        for tablet in tablets:
            tablet.tap(ask)
        answers = [answer_of(tablet.read()) for tablet in tablets]
    assert sorted(answer.status for answer in answers) == [201] + [409] * 7
    assert all(answer.order == answers[0].order for answer in answers)


# ---------------------------------------------------------------------------------------------------------------------
# Later
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fire_at", "shown"),
    [
        (FAR_AWAY, FAR_AWAY),
        ("2901-01-01T02:00:00+02:00", FAR_AWAY),
        ("2900-12-31T19:30:00-04:30", FAR_AWAY),
        ("2901-01-01t00:00:00z", FAR_AWAY),
    ],
)
def test_fire_at_in_the_future(client: Client, fire_at: str, shown: str) -> None:
    """An order with a later time is scheduled, its time shown in UTC, and it is not on the board."""
    order = client.place(an_order(fire_at=fire_at))
    assert (order["status"], order["fire_at"]) == ("scheduled", shown)
    assert order not in client.get("/api/orders?status=open").json
    assert order in client.get("/api/orders?status=scheduled").json


@pytest.mark.parametrize(
    "fire_at", [LONG_AGO, "2001-01-01T00:00:00+14:00", "0999-01-01T00:00:00Z", "0001-01-01T00:00:00Z"]
)
def test_fire_at_in_the_past(client: Client, fire_at: str) -> None:
    """A fire_at that isn't in the future means now, however long ago it was; it comes back as an RFC 3339 time."""
    order = client.place(an_order(fire_at=fire_at))
    assert order["status"] == "received"
    assert RFC3339.fullmatch(order["fire_at"])


@pytest.mark.parametrize(
    "fire_at",
    ["", "tomorrow", "2901-01-01", "2901-01-01T00:00:00", "2901-13-01T00:00:00Z", "2901-02-29T00:00:00Z",
     "2901-01-01T25:00:00Z", "2901-01-01T00:00:00+0200", "20901-01-01T00:00:00Z", " 2901-01-01T00:00:00Z",
     "9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00", "٢٩٠١-01-01T00:00:00Z", "4075-W01-1T00:00:00Z"],
)  # fmt: skip
def test_fire_at_that_is_no_time(client: Client, fire_at: str) -> None:
    """A fire_at is an RFC 3339 time with its offset; anything else is 422."""
    assert faults_of(client.post(an_order(fire_at=fire_at))) == ["/fire_at"]


def test_fire_at_changed_while_scheduled(client: Client) -> None:
    """The time of a scheduled order can be changed, to a later one, or to now by one that has passed."""
    order = client.place(an_order(fire_at=FAR_AWAY))
    later = change(client, order, fire_at="2902-01-01T00:00:00+01:00")
    assert (later["status"], later["fire_at"], later["version"]) == ("scheduled", "2901-12-31T23:00:00Z", 2)
    now = change(client, order, fire_at=LONG_AGO)
    assert (now["status"], now["fire_at"], now["version"]) == ("received", LONG_AGO, 3)
    assert now in client.get("/api/orders?status=open").json
    assert [(event["type"], event["version"]) for event in trail(client, order)] == [
        ("order_scheduled", 1),
        ("order_updated", 2),
        ("new_order", 3),
    ]


@pytest.mark.parametrize("status", ["received", "preparing", "ready", "completed", "cancelled"])
def test_fire_at_changed_after_that(client: Client, status: str) -> None:
    """Once an order is not scheduled any more, its time can't be changed: 409 with the order."""
    for order in (placed_in(client, status), change(client, placed_in(client, "scheduled"), status=status)):
        reply = patch(client, order, {"fire_at": FAR_AWAY if "fire_at" not in order else "2902-02-02T00:00:00Z"})
        assert reply.status == 409
        assert parse_problem(reply)[1] == ("order_closed" if status == "cancelled" else "not_scheduled")
        assert reply.json["order"] == order == read(client, order)


@pytest.mark.parametrize("to", ["received", "preparing", "ready", "completed"])
def test_scheduled_order_moved_early(server: Server, client: Client, to: str) -> None:
    """A scheduled order enters the kitchen early by a move, which screens learn as a new order."""
    with closing(Display(server.port)) as screen:
        order = client.place(an_order(fire_at=FAR_AWAY))
        moved = change(client, order, status=to)
        told = events_up_to(screen, client.cursor())[1:]
    assert moved["status"] == to
    assert [(event["type"], event["order"]) for event in told] == [("order_scheduled", order), ("new_order", moved)]


def test_scheduled_order_cancelled(server: Server, client: Client) -> None:
    """A scheduled order that is cancelled never was a new order for the kitchen."""
    with closing(Display(server.port)) as screen:
        order = client.place(an_order(fire_at=FAR_AWAY))
        cancelled = change(client, order, status="cancelled")
        told = events_up_to(screen, client.cursor())[1:]
    assert [(event["type"], event["order"]) for event in told] == [
        ("order_scheduled", order),
        ("order_updated", cancelled),
    ]


def test_scheduled_orders_fire_when_their_time_comes(server: Server, client: Client) -> None:
    """At its time a scheduled order is received by itself, once, and not before; screens see it scheduled, then new."""
    due = stamp(datetime.now(UTC) + timedelta(seconds=3))
    with closing(Display(server.port)) as screen:
        soon = [client.place(an_order(f"Soon {number}", fire_at=due)) for number in range(3)]
        changed = change(client, client.place(an_order("Changed", fire_at=FAR_AWAY)), fire_at=due)
        early = change(client, client.place(an_order("Early", fire_at=due)), status="preparing")
        gone = change(client, client.place(an_order("Gone", fire_at=due)), status="cancelled")
        later = client.place(an_order("Later", fire_at=FAR_AWAY))
        assert {order["status"] for order in [*soon, changed]} == {"scheduled"}
        fired = [
            until(lambda order=order: (now := read(client, order))["status"] == "received" and now, "it fires")  # type: ignore[misc]
            for order in [*soon, changed]
        ]
        told = events_up_to(screen, client.cursor())[1:]
    for before, after in zip([*soon, changed], fired, strict=True):
        assert after["fired_at"] == after["updated_at"] >= due
        assert after["version"] == before["version"] + 1
        kinds = [event["type"] for event in told if event["order"]["id"] == before["id"]]
        assert (kinds[0], kinds[-1], kinds.count("new_order")) == ("order_scheduled", "new_order", 1)
    for untouched in (early, gone, later):
        assert read(client, untouched) == untouched


def test_scheduled_order_whose_time_came_while_the_server_was_down(serve: Serve) -> None:
    """A restart that slept through an order's time fires it then, once, and a screen that resumes is told once."""
    server = serve().start()
    with closing(server.client()) as client:
        due = datetime.now(UTC) + timedelta(seconds=3)
        order = client.place(an_order(fire_at=stamp(due)))
        assert order["status"] == "scheduled"
        cursor = client.cursor()
    server.stop()
    until(lambda: datetime.now(UTC) > due, "its time comes")
    with closing(server.start().client()) as client, closing(Display(server.port, after=cursor)) as screen:
        fired = until(lambda: (now := read(client, order))["status"] == "received" and now, "it fires")
        resumed, *told = events_up_to(screen, client.cursor())
        assert resumed["type"] == "resumed"
        assert [(event["type"], event["order"]) for event in told] == [("new_order", fired)]
        assert [event["type"] for event in trail(client, order)] == ["order_scheduled", "new_order"]


# ---------------------------------------------------------------------------------------------------------------------
# The list
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of which nothing is changed any more: 60 orders of every kind, created on different days."""
    server = Server(tmp_path_factory.mktemp("catalog"))
    try:
        with closing(server.start().client()) as client:
            for number in range(60):
                order: Json = {"table": f"Table {number % 3}", "items": lines("Soup")}
                if number % 4:
                    order["items"] += [{"name": "Cola", "quantity": 1, "station": ("grill", "bar", "bär")[number % 3]}]
                if number % 5:
                    order["source"] = ("till", "web shop & co")[number % 2]
                if number % 5 > 2:
                    order["external_id"] = f"no. {number // 10}/{number % 5}"
                status = STATES[number * 7 % 6]
                placed = client.place({**order, "fire_at": FAR_AWAY} if status == "scheduled" else order)
                if status not in {"scheduled", "received"}:
                    change(client, placed, status=status)
        server.stop()
        move_back(
            server, {number + 1: {"created_at": f"2026-10-{1 + number // 2:02}T12:00:00Z"} for number in range(60)}
        )
        yield server.start()
    finally:
        server.end()


@pytest.fixture
def catalog(full: Server) -> Iterator[Client]:
    """HTTP to that server."""
    with closing(full.client()) as client:
        yield client


def listed(client: Client, **query: Any) -> list[Json]:
    reply = client.get(f"/api/orders?{urlencode(query, doseq=True)}")
    assert reply.status == 200, reply.body
    assert reply.headers["etag"]
    found: list[Json] = reply.json
    return found


def matches(order: Json, query: Json) -> bool:
    """The filters as the contract tells them."""
    wanted = {each for name in query.get("status", []) for each in (ON_THE_BOARD if name == "open" else {name})}
    return (
        (not wanted or order["status"] in wanted)
        and query.get("table", order["table"]) == order["table"]
        and ("station" not in query or query["station"] in [line.get("station") for line in order["items"]])
        and ("source" not in query or query["source"] == order.get("source"))
        and ("external_id" not in query or query["external_id"] == order.get("external_id"))
        and order["created_at"] >= query.get("since", "")
        and order["id"] < query.get("before", 10**9)
    )


def test_list_without_filters(catalog: Client) -> None:
    """All orders, newest first, with every line: as each is read by itself."""
    orders = catalog.get("/api/orders").json
    assert [order["id"] for order in orders] == [*range(60, 0, -1)]
    assert orders == [read(catalog, order) for order in orders]


FILTERS: Final[dict[str, list[Any]]] = {
    "status": [["open"], ["received"], ["cancelled"], ["open", "scheduled"], ["completed", "ready"], [*STATES]],
    "table": ["Table 1", "Table"],
    "station": ["grill", "bär", "hot"],
    "source": ["till", "web shop & co"],
    "external_id": ["no. 1/4"],
    "since": ["2026-10-15T12:00:00Z", "2026-10-15T12:00:01Z"],
    "before": [31],
}


@pytest.mark.parametrize(
    "names", [names for size in range(1, 8) for names in itertools.combinations(FILTERS, size)], ids="+".join
)
def test_filters_alone_and_combined(catalog: Client, names: tuple[str, ...]) -> None:
    """The orders that match every filter, newest first, for each value of each filter in every combination."""
    orders = catalog.get("/api/orders").json
    for values in itertools.product(*(FILTERS[name] for name in names)):
        query = dict(zip(names, values, strict=True))
        expected = [order for order in orders if matches(order, query)]
        assert listed(catalog, **query) == expected, query
        assert listed(catalog, **query, limit=7) == expected[:7], query


def test_filters_find_something(catalog: Client) -> None:
    """Each filter alone finds some orders and leaves some out, so that the combinations above show something."""
    for name, values in FILTERS.items():
        found = [len(listed(catalog, **{name: value})) for value in values if value not in ("Table", "hot", [*STATES])]
        assert all(0 < count < 60 for count in found), name


def test_since_in_every_spelling(catalog: Client) -> None:
    """`since` is any RFC 3339 time with its offset, and orders created at that very moment are found."""
    expected = listed(catalog, since="2026-10-15T12:00:00Z")
    assert expected[-1]["created_at"] == "2026-10-15T12:00:00Z"
    assert listed(catalog, since="2026-10-15T14:00:00+02:00") == expected
    assert listed(catalog, since="2026-10-15T12:00:00.000Z") == expected
    assert catalog.get("/api/orders?since=2026-10-15T14:00:00+02:00").json == expected  # unescaped: a space
    assert len(listed(catalog, since="0999-01-01T00:00:00Z")) == 60
    assert listed(catalog, since=FAR_AWAY) == []


@pytest.mark.parametrize("limit", [1, 7, 20, 30, 59, 60, 61, 1000])
@pytest.mark.parametrize(
    "query", [{}, {"status": ["open"]}, {"source": "web shop & co", "status": ["ready", "completed"]}]
)
def test_pages(catalog: Client, limit: int, query: Json) -> None:
    """Following Link gives every order once, in pages of `limit`, and there is a next page only while there is more."""
    expected = listed(catalog, **query)
    path: str | None = f"/api/orders?{urlencode({**query, 'limit': limit}, doseq=True)}"
    pages = []
    while path:
        reply = catalog.get(path)
        pages.append(reply.json)
        link = reply.headers["link"]
        path = None
        if link:
            found = re.fullmatch(r'<([^>]+)>; rel="next"', link)
            assert found
            url = urlsplit(found[1])
            path = f"{url.path}?{url.query}"
    assert [order for page in pages for order in page] == expected
    assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    assert len(pages) == max(1, -(-len(expected) // limit))


def test_pages_while_orders_are_posted(client: Client) -> None:
    """A page isn't shifted by what is posted meanwhile: no order comes twice, none is left out."""
    before = [client.place(an_order(table="Paged"))["id"] for _ in range(5)]
    seen: list[int] = []
    query = "table=Paged&limit=2"
    while query:
        reply = client.get(f"/api/orders?{query}")
        seen += [order["id"] for order in reply.json]
        client.place(an_order(table="Paged"))
        query = urlsplit(reply.headers["link"].partition(">")[0][1:]).query if reply.headers["link"] else ""
    assert seen == sorted(before, reverse=True)


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("limit=0", "/limit"),
        ("limit=1001", "/limit"),
        ("limit=x", "/limit"),
        ("limit=", "/limit"),
        ("before=0", "/before"),
        ("before=-1", "/before"),
        ("before=9223372036854775808", "/before"),
        ("since=yesterday", "/since"),
        ("since=2026-10-15T12:00:00", "/since"),
        ("table=", "/table"),
        ("station=" + "s" * 33, "/station"),
        ("table=%00", "/table"),
        ("tabel=Bar", "/tabel"),
        ("status=done", "/status/0"),
        ("status=ready&status=OPEN", "/status/1"),
    ],
)
def test_fault_in_a_query(client: Client, query: str, pointer: str) -> None:
    """A filter that is unknown or has no possible value is 422 with its pointer, never left out."""
    assert set(faults_of(client.get(f"/api/orders?{query}"))) == {pointer}


def test_list_of_many_orders(serve: Serve) -> None:
    """Without `limit` all orders come, also where they are many more than one reading of the database gives."""
    server = serve().start()
    server.stop()
    order = {**EXAMPLE, "created_at": LONG_AGO, "status": "completed", "version": 1}
    with server.session() as fetch:
        fetch("BEGIN")
        for number in range(1, 1501):
            fetch("INSERT INTO orders (id, body) VALUES (?, ?)", number, json.dumps({"id": number, **order}))
        fetch("COMMIT")
    with closing(server.start().client()) as client:
        for query, count in (("", 1500), ("?before=1001", 1000), ("?before=1000", 999), ("?status=completed", 1500)):
            ids = [order["id"] for order in client.get(f"/api/orders{query}").json]
            assert ids == [*range(count, 0, -1)]
        assert client.get("/api/orders?status=open").json == []
        assert len(client.get("/api/orders?limit=1000").json) == 1000


def test_etag_of_the_list(client: Client) -> None:
    """Every answer of the list has an ETag; who sends it back is answered 304 until something changes."""
    order = client.place(an_order())
    for path in ("/api/orders", "/api/orders?status=open", "/api/orders?limit=2", "/api/orders?table=nowhere"):
        first = client.get(path)
        same = client.get(path, if_none_match=first.headers["etag"])
        assert (same.status, same.body, same.headers["etag"]) == (304, b"", first.headers["etag"])
        order = change(client, order, note=path)
        changed = client.get(path, if_none_match=first.headers["etag"])
        assert changed.status == 200
        assert changed.headers["etag"] != first.headers["etag"]
        assert client.get(path).json == changed.json


@pytest.mark.sqlite
def test_etag_of_the_list_while_the_database_is_away(serve: Serve) -> None:
    """A list that hasn't changed is answered 304 without touching the database."""
    server = serve().start()
    with closing(server.client()) as client, closing(sqlite3.connect(server.file)) as database:
        client.place(an_order())
        etag = client.get("/api/orders").headers["etag"]
        database.execute("ALTER TABLE orders RENAME TO hidden")
        assert parse_problem(client.get("/api/orders")) == (503, "storage_unavailable")
        assert client.get("/api/orders", if_none_match=etag).status == 304
        assert client.get("/api/orders?limit=1", if_none_match=etag).status == 304


# ---------------------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------------------


def stats(client: Client) -> Json:
    reply = client.get("/api/stats")
    assert reply.status == 200
    found: Json = reply.json
    return found


def test_stats_of_an_empty_restaurant(serve: Serve) -> None:
    """Every field is there before the first order: zero, nothing or null."""
    with closing(serve().start().client()) as client:
        numbers = stats(client)
        assert numbers == {
            "by_status": dict.fromkeys(STATES, 0),
            "all_day": [],
            "prep_seconds": {"count": 0, "p50": None, "p90": None},
            "oldest_open_seconds": None,
            "orders_last_hour": 0,
            "subscribers": 0,
            "cursor": client.cursor(),
            "server_time": numbers["server_time"],
        }
        assert RFC3339.fullmatch(numbers["server_time"])
        assert ago(seconds=20) <= numbers["server_time"] <= ago()


def test_stats_of_a_day_before_and_after_a_restart(serve: Serve) -> None:
    """Orders in each state, what is still to be cooked, times and counts: right at once, and after a restart."""
    server = serve().start()
    with closing(server.client()) as client:
        busy = client.place({"table": "1", "items": [{"name": "Soup", "quantity": 3}, {"name": "Pie", "quantity": 9}]})
        client.place({"table": "2", "items": [{"name": "Soup", "quantity": 2}, {"name": "Tea", "quantity": 4}]})
        mark(client, busy, 2, "ready")
        client.place({"table": "3", "items": [{"name": "Pie", "quantity": 50}], "fire_at": FAR_AWAY})
        placed_in(client, "cancelled")
        done = [placed_in(client, "ready") for _ in range(10)]
        late = placed_in(client, "completed")  # was never ready: its time is not known
        fired = change(client, client.place(an_order(fire_at=FAR_AWAY)), status="ready")
        expected = {
            "by_status": {
                "scheduled": 1,
                "received": 1,
                "preparing": 1,
                "ready": 11,
                "completed": 1,
                "cancelled": 1,
            },
            "all_day": [{"name": "Soup", "quantity": 5}, {"name": "Tea", "quantity": 4}],
            "orders_last_hour": 16,
            "subscribers": 0,
        }
        numbers = stats(client)
        assert {name: numbers[name] for name in expected} == expected
        assert numbers["prep_seconds"]["count"] == 11
        assert numbers["cursor"] == client.cursor()

    server.stop()
    times = [600, 60, 120, 540, 180, 240, 480, 300, 360]  # nearest rank of ten: p50 is the 5th, p90 the 9th
    ready_at = datetime.now(UTC) - timedelta(minutes=5)
    stamps = {
        order["id"]: {"created_at": stamp(ready_at - timedelta(seconds=seconds)), "ready_at": stamp(ready_at)}
        for order, seconds in zip(done, times, strict=False)
    }
    stamps[done[9]["id"]] = {"created_at": ago(hours=26), "ready_at": ago(hours=24, seconds=60)}  # not of this day
    stamps[fired["id"]] = {
        "created_at": ago(hours=23),
        "fired_at": stamp(ready_at - timedelta(seconds=420)),  # in the kitchen since then
        "ready_at": stamp(ready_at),
    }
    stamps[busy["id"]] = {"created_at": ago(hours=1, seconds=60)}
    stamps[late["id"]] = {"created_at": ago(minutes=59)}
    move_back(server, stamps)
    with closing(server.start().client()) as client:
        numbers = stats(client)
        assert numbers["by_status"] == expected["by_status"]
        assert numbers["all_day"] == expected["all_day"]
        assert numbers["prep_seconds"] == {"count": 10, "p50": 300, "p90": 540}
        assert numbers["orders_last_hour"] == 16 - 3
        oldest = 26 * 3600
        assert oldest <= numbers["oldest_open_seconds"] <= oldest + 600
        change(client, done[9], status="completed")
        assert 3660 <= stats(client)["oldest_open_seconds"] < 3660 + 600


def test_prep_seconds_of_few_and_many_orders(serve: Serve) -> None:
    """Percentiles are of nearest rank: always a time that an order took, the smallest with so many at or below it."""
    server = serve().start()
    with closing(server.client()) as client:
        orders = [placed_in(client, "ready") for _ in range(20)]
    server.stop()
    now = datetime.now(UTC)
    times = {order["id"]: 10 * place for place, order in enumerate(orders, start=1)}
    move_back(
        server,
        {
            each: {"created_at": stamp(now - timedelta(seconds=took)), "ready_at": stamp(now)}
            for each, took in times.items()
        },
    )
    ranks = {20: (100, 180), 11: (60, 100), 10: (50, 90), 9: (50, 90), 3: (20, 30), 2: (10, 20), 1: (10, 10)}
    with closing(server.start().client()) as client:
        for count in range(20, 0, -1):
            found = stats(client)["prep_seconds"]
            assert found["count"] == count
            if count in ranks:
                assert (found["p50"], found["p90"]) == ranks[count]
            change(client, orders[count - 1], status="preparing")  # recalled: the slowest isn't ready any more
        assert stats(client)["prep_seconds"] == {"count": 0, "p50": None, "p90": None}


def test_prep_seconds_of_a_day_ago(serve: Serve) -> None:
    """An order is counted for 24 hours from when it became ready, whatever else is changed about it meanwhile."""
    server = serve().start()
    with closing(server.client()) as client:
        old, new = placed_in(client, "ready"), placed_in(client, "ready")
    server.stop()
    nearly = datetime.now(UTC) - timedelta(hours=24) + timedelta(seconds=3)
    lately = datetime.now(UTC) - timedelta(hours=1)
    times = {
        order["id"]: {"created_at": stamp(ready_at - timedelta(seconds=took)), "ready_at": stamp(ready_at)}
        for order, ready_at, took in ((old, nearly, 60), (new, lately, 30))
    }
    move_back(server, times)
    with closing(server.start().client()) as client:
        change(client, old, table="Bar")
        until(lambda: stats(client)["prep_seconds"]["count"] == 1, "the day is over")
        assert stats(client)["prep_seconds"] == {"count": 1, "p50": 30, "p90": 30}


def test_all_day_follows_every_change(client: Client) -> None:
    """What is still to be cooked: appended lines are, ready and voided ones, closed and scheduled orders aren't."""

    def pies() -> int:
        return sum(each["quantity"] for each in stats(client)["all_day"] if each["name"] == "All-day pie")

    def pie(quantity: int) -> Json:
        return {"name": "All-day pie", "quantity": quantity}

    order = client.place(an_order(items=[pie(1), pie(20)]))
    assert pies() == 21
    mark(client, order, 1, "ready")
    assert pies() == 20
    mark(client, order, 1, "pending")
    mark(client, order, 2, "voided")
    assert pies() == 1
    client.request("POST", at(order, "items"), {"items": [pie(300)]})
    assert pies() == 301
    change(client, order, status="ready")
    assert pies() == 0
    mark(client, order, 3, "pending")
    assert pies() == 300
    change(client, order, status="cancelled")
    assert pies() == 0
    later = client.place(an_order(items=[pie(5)], fire_at=FAR_AWAY))
    assert pies() == 0
    change(client, later, status="received")
    assert pies() == 5
    change(client, later, status="completed")
    assert pies() == 0
    quantities = [each["quantity"] for each in stats(client)["all_day"]]
    assert quantities == sorted(quantities, reverse=True)
    assert all(quantities)


def test_by_status_follows_every_change(client: Client) -> None:
    """The counts of the states are those of the list after every move."""
    order = client.place(an_order(fire_at=FAR_AWAY))
    for status in ("scheduled", "received", "preparing", "ready", "completed", "preparing", "cancelled"):
        change(client, order, status=status)
        counted = [each["status"] for each in client.orders()]
        assert stats(client)["by_status"] == {each: counted.count(each) for each in STATES}


def test_subscribers_are_counted(server: Server, client: Client) -> None:
    """`subscribers` is how many screens are connected now."""
    until(lambda: stats(client)["subscribers"] == 0, "earlier screens are gone")
    with closing(Display(server.port)) as one, closing(Display(server.port)) as two:
        assert {one.message()["type"], two.message()["type"]} == {"initial"}
        assert stats(client)["subscribers"] == 2
    until(lambda: stats(client)["subscribers"] == 0, "screens that left aren't counted")


# ---------------------------------------------------------------------------------------------------------------------
# What is kept
# ---------------------------------------------------------------------------------------------------------------------


def test_history_of_an_order(client: Client) -> None:
    """Every change of an order with its time, type, version, and what was before and after; no-ops leave no trace."""
    order = client.place(an_order(items=lines("Soup", "Steak")))
    change(client, order, table="Bar", note="window")
    mark(client, order, 1, "ready")
    mark(client, order, 1, "ready")
    client.request("POST", at(order, "items"), {"items": lines("Pie")})
    last = change(client, order, note=None, status="ready")
    events = trail(client, order)
    seqs = [event["seq"] for event in events]
    assert seqs == [*range(seqs[0], seqs[0] + 5)]
    assert [event["version"] for event in events] == [1, 2, 3, 4, 5]
    assert [event["type"] for event in events] == ["new_order", *["order_updated"] * 4]
    assert all(RFC3339.fullmatch(event["at"]) for event in events)
    started = events[2]["at"]
    assert [event["changes"] for event in events] == [
        {},
        {"/table": ["Table 1", "Bar"], "/note": [None, "window"]},
        {"/items/0/status": [None, "ready"], "/status": ["received", "preparing"], "/started_at": [None, started]},
        {"/items/2/name": [None, "Pie"], "/items/2/quantity": [None, 1]},
        {
            "/note": ["window", None],
            "/status": ["preparing", "ready"],
            "/ready_at": [None, last["ready_at"]],
            "/items/1/status": [None, "ready"],
            "/items/2/status": [None, "ready"],
        },
    ]
    assert all(set(event) == {"seq", "at", "type", "by", "version", "changes"} for event in events)
    assert {event["by"] for event in events} == {None}, "there are no accounts yet"


def test_history_of_an_order_that_is_not_there(client: Client) -> None:
    """No order, no history: 404."""
    assert parse_problem(client.get("/api/order/999999999/events")) == (404, "order_not_found")


def test_everything_after_a_restart(serve: Serve) -> None:
    """Orders, versions, histories and ids go on after a restart; keys and external names still hold."""
    server = serve().start()
    named = an_order(source="till", external_id="1")
    with closing(server.client()) as client:
        first = client.post(named, idempotency_key="kept")
        order = change(client, first.json, status="preparing")
        deleted = client.place(an_order())
        assert client.request("DELETE", at(deleted), idempotency_key="deleted").status == 204
        orders, history = client.orders(), trail(client, order)
    server.stop()
    with closing(server.start().client()) as client:
        assert client.orders() == orders
        assert trail(client, order) == history
        again = client.post(named, idempotency_key="kept")
        assert (again.status, again.body, again.headers["idempotency-replayed"]) == (201, first.body, "true")
        gone = client.request("DELETE", at(deleted), idempotency_key="deleted")
        assert (gone.status, gone.headers["idempotency-replayed"]) == (204, "true")
        assert parse_problem(client.post({**named, "table": "2"}, idempotency_key="kept"))[1] == "idempotency_mismatch"
        assert parse_problem(client.post(named)) == (409, "duplicate_order")
        assert client.place(an_order())["id"] == orders[0]["id"] + 1
        assert change(client, order, status="ready")["version"] == order["version"] + 1


@pytest.mark.sqlite
def test_key_that_is_three_days_old(serve: Serve) -> None:
    """A key is kept at least 72 hours: one that is nearly as old outlives the tidying that takes much older ones."""
    server = serve().start()
    with closing(server.client()) as client:
        first = client.post(EXAMPLE, idempotency_key="kept")
        client.post(EXAMPLE, idempotency_key="forgotten")
    server.stop()
    with closing(sqlite3.connect(server.file)) as database, database:
        for key, hours in (("kept", 71.9), ("forgotten", 1000)):
            database.execute("UPDATE idempotency_keys SET at = ? WHERE key = ?", (ago(hours=hours), key))
        # Keys are tidied away oldest first.
        database.execute("UPDATE idempotency_keys SET rowid = -1 WHERE key = 'forgotten'")
    with closing(server.start().client()) as client, closing(sqlite3.connect(server.file)) as database:
        count = "SELECT count(*) FROM idempotency_keys"
        until(lambda: database.execute(count).fetchone() == (1,), "it is tidied")
        assert client.post(EXAMPLE, idempotency_key="kept").body == first.body


# ---------------------------------------------------------------------------------------------------------------------
# Problems
# ---------------------------------------------------------------------------------------------------------------------


def provoked(client: Client) -> dict[int, list[Reply]]:
    """An answer or more of each kind of refusal that a client can bring about by itself."""
    order, closed = placed_in(client, "received"), placed_in(client, "completed")
    unique = f"provoked {order['id']}"
    client.place(an_order(source="till", external_id=unique))
    patch(client, order, {"note": "n"}, idempotency_key=unique)
    replies = {
        400: [client.request("POST", "/api/order", b"{")],
        404: [
            client.get("/nowhere"),
            client.get("/api/order/abc"),
            client.get("/api/order/-1"),
            client.get("/api/order/999999999"),
            mark(client, order, 9, "ready"),
        ],
        405: [client.get("/api/order"), client.request("PUT", at(order)), client.request("DELETE", "/api/stats")],
        409: [
            patch(client, closed, {"status": "cancelled"}),
            mark(client, closed, 1, "voided"),
            patch(client, order, {"fire_at": FAR_AWAY}),
            client.post(an_order(source="till", external_id=unique)),
        ],
        410: [client.changes(after="no cursor")],
        412: [patch(client, order, {"note": "m"}, if_match='"9"')],
        422: [
            client.post({"table": "T"}),
            client.get("/api/orders?limit=0"),
            client.get("/api/changes?wait=61"),
            patch(client, order, {"note": "m"}, idempotency_key=unique),
        ],
    }
    with closing(client):
        replies[413] = [client.request("POST", "/api/order", b" " * (LONGEST_BODY + 1))]
    return replies


def test_shape_of_every_problem(client: Client) -> None:
    """Every refusal is a problem document: type, title, status, a sentence, a code; faults and the order where due."""
    for status, replies in provoked(client).items():
        for reply in replies:
            assert reply.status == status
            assert parse_problem(reply)[0] == status
            problem = reply.json
            assert set(problem) - {"errors", "order"} == {"type", "title", "status", "detail", "code", "instance"}
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*", problem["code"])
            assert problem["type"]
            assert problem["title"]
            assert re.fullmatch(r"\S.*\.", problem["detail"], re.DOTALL), problem["detail"]
            assert ("order" in problem) == (status in {409, 412} or problem["code"] == "line_not_found")
            assert ("errors" in problem) == (problem["code"] == "invalid_request")


def test_nothing_internal_in_a_problem(client: Client) -> None:
    """A refusal tells nothing of SQL, files, modules or traces."""
    for reply in itertools.chain(*provoked(client).values()):
        assert not re.search(rb"(?i)traceback|sqlite|select |pydantic|\.py\b|/tmp|errors\.", reply.body), reply.body


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/order", {"POST"}),
        ("/api/order/1", {"GET", "PATCH", "DELETE"}),
        ("/api/order/1/items", {"POST"}),
        ("/api/order/1/items/1", {"PATCH"}),
        ("/api/order/1/cancel", {"POST"}),
        ("/api/order/1/events", {"GET"}),
        ("/api/orders", {"GET"}),
        ("/api/stats", {"GET"}),
        ("/api/changes", {"GET"}),
        ("/api/events", {"GET"}),
        ("/healthz", {"GET"}),
        ("/readyz", {"GET"}),
        ("/metrics", {"GET"}),
        ("/docs", {"GET"}),
        ("/redoc", {"GET"}),
        ("/openapi.json", {"GET"}),
        ("/", {"GET"}),
    ],
)
def test_method_that_is_not_allowed(client: Client, path: str, allowed: set[str]) -> None:
    """A method that a path doesn't serve is 405, and Allow names those that it does."""
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - allowed:
        reply = client.request(method, path, {})
        assert parse_problem(reply) == (405, "method_not_allowed")
        assert set((reply.headers["allow"] or "").split(", ")) - {"HEAD", "OPTIONS"} == allowed


# ---------------------------------------------------------------------------------------------------------------------
# Other pages
# ---------------------------------------------------------------------------------------------------------------------


def test_pages_for_people_and_probes(client: Client) -> None:
    """The start page, the documentation, the probes and the metrics are where they are promised."""
    start = client.get("/")
    assert start.status == 200 or (start.status, start.headers["location"]) == (307, "/docs")
    for path in ("/docs", "/redoc"):
        page = client.get(path)
        assert (page.status, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
    for path in ("/healthz", "/readyz"):
        assert client.get(path).status == 200
    assert re.search(rb"(?m)^bistro92_\w+ \d", client.get("/metrics").body)


@pytest.mark.parametrize("name", ["Table 1/2", "a&b=c", "100 %", "表 ☕", "a+b"])
def test_filter_with_characters_that_have_a_meaning(client: Client, name: str) -> None:
    """A filter finds texts of any characters, and Link carries them to the next page."""
    ids = [client.place(an_order(table=name))["id"] for _ in range(2)]
    first = client.get(f"/api/orders?table={quote(name, safe='')}&limit=1")
    assert [order["id"] for order in first.json] == ids[1:]
    url = urlsplit(first.headers["link"].partition(">")[0][1:])
    assert [order["id"] for order in client.get(f"{url.path}?{url.query}").json] == ids[:1]


def test_time_of_the_server(client: Client) -> None:
    """Times are by the server's clock, in whole seconds, and an order's never go back."""
    before = time.time()
    order = client.place(an_order())
    updated = change(client, order, status="ready")
    stamps = [order["created_at"], updated["updated_at"], stats(client)["server_time"]]
    assert stamps == sorted(stamps)
    assert all(RFC3339.fullmatch(each) for each in stamps)
    assert datetime.fromisoformat(stamps[0]).timestamp() >= int(before)
