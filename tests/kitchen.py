"""What the tests of an order's life share: a model of the kitchen, and tablets that tap at the same moment.

The model says what each request has to be answered. It is written from DESIGN.md alone, in another way than the
backend, and knows nothing of HTTP, threads or disks.

    Ask          one write, as a client would send it
    Model        the orders, events and keys that should be there, and the answer that each ask should get
    Tablet       a connection that sends now and reads later, so that one test can have many taps in flight
    serially     which of the possible orders of two concurrent asks explains what they were answered
"""

from __future__ import annotations

import copy
import http.client
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tests.harness import DEADLINE, Client, Json, Reply

JOURNEY: Final = ("scheduled", "received", "preparing", "ready", "completed")
UNSET: Final = {"note": "", "priority": "normal"}  # what it means that an optional field isn't there
ON_THE_BOARD: Final = {"received", "preparing", "ready"}


class Ask(NamedTuple):
    """One write: what it does, to which order, and on which conditions."""

    method: str
    path: str
    body: Json | None = None
    key: str | None = None
    if_match: str | None = None  # as the header says it, or None for no condition

    @property
    def headers(self) -> dict[str, str]:
        given = {"Idempotency-Key": self.key, "If-Match": self.if_match}
        return {name: value for name, value in given.items() if value is not None}


class Answer(NamedTuple):
    """What an ask is answered: the order as it then is, or why not and the order as it stands."""

    status: int
    order: Json | None
    code: str | None = None
    replayed: bool = False


class Refused(Exception):
    """The kitchen doesn't do that."""

    def __init__(self, status: int, code: str, order: Json | None = None) -> None:
        super().__init__(code)
        self.status, self.code, self.order = status, code, order


def answer_of(reply: Reply) -> Answer:
    """What a server's reply says, in the words of the model."""
    replayed = reply.headers.get("idempotency-replayed") == "true"
    body: Any = json.loads(reply.body) if reply.body else None
    if reply.status >= 400:
        assert reply.headers["content-type"] == "application/problem+json"
        assert body["status"] == reply.status
        return Answer(reply.status, body.get("order"), body["code"], replayed)
    if body is not None:
        assert reply.headers["etag"] == f'"{body["version"]}"'
    return Answer(reply.status, body, None, replayed)


@dataclass
class Model:
    """The kitchen as it should be. Orders are replaced, never changed, so that a fork costs little."""

    last_id: int
    orders: dict[int, Json] = field(default_factory=dict)
    events: list[tuple[str, Json]] = field(default_factory=list)  # (type, order), in the order of the log
    keys: dict[str, tuple[Ask, Answer]] = field(default_factory=dict)

    def fork(self) -> Model:
        return Model(self.last_id, {**self.orders}, [*self.events], {**self.keys})

    @property
    def board(self) -> list[Json]:
        """The open orders, newest first."""
        return [order for _, order in sorted(self.orders.items(), reverse=True) if order["status"] in ON_THE_BOARD]

    def answer(self, ask: Ask, now: str) -> Answer:
        """Do what is asked, at that time, and say what has to be answered."""
        order: Json | None = None
        try:
            self._refuse_what_is_malformed(ask)
            if ask.key is not None and ask.key in self.keys:
                first, answered = self.keys[ask.key]
                if first != ask:
                    raise Refused(422, "idempotency_mismatch")
                return answered._replace(replayed=True)
            before = order = self._named(ask)
            after = self._decide(ask, before, now)
        except Refused as refusal:
            return Answer(refusal.status, refusal.order or order, refusal.code)
        if after is not before:
            self._save(before, after, now)
        status = 201 if before is None else 204 if ask.method == "DELETE" else 200
        answered = Answer(status, None if status == 204 else after)
        if ask.key is not None:
            self.keys[ask.key] = (ask, answered)
        return answered

    @staticmethod
    def _refuse_what_is_malformed(ask: Ask) -> None:
        lines = (ask.body or {}).get("items", [])
        if any(not 1 <= line["quantity"] <= 999 for line in lines):
            raise Refused(422, "invalid_request")

    def _named(self, ask: Ask) -> Json | None:
        """The order that the path names, if there is one."""
        return None if ask.path == "/api/order" else self.orders.get(int(ask.path.split("/")[3]))

    def _decide(self, ask: Ask, before: Json | None, now: str) -> Json:
        if ask.path == "/api/order":
            return self._posted(ask.body or {}, now)
        if before is None:
            raise Refused(404, "order_not_found")
        if ask.if_match not in {None, "*"} and f'"{before["version"]}"' != ask.if_match:
            raise Refused(412, "version_mismatch")
        body, rest = ask.body or {}, ask.path.split("/")[4:]
        after = copy.deepcopy(before)
        if rest == ["cancel"] or ask.method == "DELETE":
            move(after, "cancelled", now)
            if body.get("reason") and before["status"] != "cancelled":
                after["cancel_reason"] = body["reason"]
        elif rest == ["items"]:
            append(after, body["items"], now)
        elif rest:
            mark(after, int(rest[1]), body["status"], now)
        else:
            change(after, body, now)
        return before if after == before else after

    def _posted(self, body: Json, now: str) -> Json:
        for order in self.orders.values() if "external_id" in body else ():
            if (order.get("source"), order.get("external_id")) == (body["source"], body["external_id"]):
                raise Refused(409, "duplicate_order", order)
        later = "fire_at" in body and body["fire_at"] > now
        return {**copy.deepcopy(body), "status": "scheduled" if later else "received", "created_at": now}

    def _save(self, before: Json | None, after: Json, now: str) -> None:
        """Give a changed order its id and version, and the log its event."""
        after["updated_at"] = now
        if before is None:
            self.last_id += 1
            after |= {"id": self.last_id, "version": 1}
            kind = "order_scheduled" if after["status"] == "scheduled" else "new_order"
        else:
            after["version"] = before["version"] + 1
            entered = before["status"] == "scheduled" and after["status"] not in {"scheduled", "cancelled"}
            kind = "new_order" if entered else "order_updated"
        self.orders[after["id"]] = after
        self.events.append((kind, after))


# ---------------------------------------------------------------------------------------------------------------------
# The rules once more: each changes the order that it is given, which nobody else has
# ---------------------------------------------------------------------------------------------------------------------


def may_become(status: str, to: str) -> bool:
    if status == "cancelled" or (status, to) == ("completed", "cancelled"):
        return False
    recalled = to == "preparing" and status in {"ready", "completed"}
    return to == "cancelled" or recalled or JOURNEY.index(to) > JOURNEY.index(status)


def move(order: Json, to: str, now: str) -> None:
    if order["status"] == to:
        return
    if not may_become(order["status"], to):
        raise Refused(409, "invalid_transition")
    put(order, to, now)


def put(order: Json, to: str, now: str) -> None:
    """The order is in that state from now on, with its stamps: of what was taken back none is left."""
    if order["status"] == "scheduled" and to != "cancelled":
        order["fired_at"] = now
        if to == "received" and any(line.get("status") == "ready" for line in order["items"]):
            to = "preparing"
    order["status"] = to
    if to == "preparing":
        order.pop("ready_at", None)
        order.pop("completed_at", None)
        order.setdefault("started_at", now)
    elif to != "received":
        order[f"{to}_at"] = now
    if to == "ready":
        for line in order["items"]:
            line.setdefault("status", "ready")


def append(order: Json, lines: list[Json], now: str) -> None:
    if order["status"] in {"completed", "cancelled"}:
        raise Refused(409, "order_closed")
    if len(order["items"]) + len(lines) > 100:
        raise Refused(422, "invalid_request")
    order["items"] = order["items"] + copy.deepcopy(lines)
    if order["status"] == "ready":
        put(order, "preparing", now)


def mark(order: Json, place: int, to: str, now: str) -> None:
    if not 1 <= place <= len(order["items"]):
        raise Refused(404, "line_not_found")
    line = order["items"][place - 1]
    if line.get("status", "pending") == to:
        return
    if order["status"] in {"completed", "cancelled"}:
        raise Refused(409, "order_closed")
    line.pop("status", None)
    if to != "pending":
        line["status"] = to
    states = {each.get("status", "pending") for each in order["items"]} - {"voided"}
    if to == "ready" and order["status"] == "received":
        put(order, "preparing", now)
    if not states:
        put(order, "cancelled", now)
    elif states == {"ready"} and order["status"] != "ready":
        put(order, "ready", now)
    elif "pending" in states and order["status"] == "ready":
        put(order, "preparing", now)


def change(order: Json, wanted: Json, now: str) -> None:
    wanted = {**wanted}
    to = wanted.pop("status", None)
    new = {name: value for name, value in wanted.items() if order.get(name, UNSET.get(name)) != (value or "")}
    if new and order["status"] == "cancelled":
        raise Refused(409, "order_closed")
    if "fire_at" in new and order["status"] != "scheduled":
        raise Refused(409, "not_scheduled")
    order |= new
    if not new.get("note", "some"):
        del order["note"]
    if "fire_at" in new and new["fire_at"] <= now:
        put(order, "received", now)
    if to is not None:
        move(order, to, now)


# ---------------------------------------------------------------------------------------------------------------------
# At the same moment
# ---------------------------------------------------------------------------------------------------------------------


class Tablet:
    """One kept connection: `tap` sends a request without waiting, `read` reads what it was answered."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)

    def tap(self, ask: Ask) -> None:
        body = None if ask.body is None else json.dumps(ask.body).encode()
        self._connection.request(ask.method, ask.path, body, ask.headers)

    def read(self) -> Reply:
        response = self._connection.getresponse()
        return Reply(response.status, response.headers, response.read())

    def close(self) -> None:
        self._connection.close()


def decided_at(client: Client, ask: Ask, reply: Reply) -> str:
    """What the server's clock showed when an ask was decided; empty where it came to nothing."""
    order = answer_of(reply).order
    if order is None and reply.status < 400:
        order = client.get(ask.path).json
    return order["updated_at"] if order else ""


def serially(client: Client, model: Model, asks: Sequence[Ask], replies: Sequence[Reply]) -> Model:
    """The model after asks that were in flight together: some order of them has to explain every answer."""
    answers = [answer_of(reply) for reply in replies]
    moments = [decided_at(client, ask, reply) for ask, reply in zip(asks, replies, strict=True)]
    tried = []
    for places in itertools.permutations(range(len(asks))):
        after = model.fork()
        expected = {place: after.answer(asks[place], moments[place]) for place in places}
        if all(expected[place] == answers[place] for place in places):
            return after
        tried.append([expected[place] for place in range(len(asks))])
    raise AssertionError(f"{asks}\nwere answered {answers}\nbut should have been answered one of {tried}")
