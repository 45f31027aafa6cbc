"""Bistro92: a real-time ordering backend for restaurants, whole, in one module.

POS clients post orders over HTTP, kitchen displays get them over WebSocket, dashboards poll. One promise:
an order that was answered with 201 is never lost, never doubled, and never missing from a screen.

An order's journey, which is also the order of this file:

    request → Route: body read, validated                          9. HTTP plumbing, 10. endpoints
            → OrderBook.submit: it waits in line                    8. the order book
            → write_lock: one commit for all that are waiting       4. the transaction decides, 5. storage saves
            → each caller gets its own answer
            → Feed: the events, in commit order                     6. the feed
            → ConnectionManager.broadcast                           7. subscribers: WebSocket · SSE · polling

Each section uses only what stands above it. 1 to 4 do no I/O: settings, problems, the rules of a kitchen, and what
one commit decides. docs/decisions/ argues why things are as they are; docs/guarantees.md names each promise's test.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import hashlib
import itertools
import json
import logging
import math
import os
import queue
import re
import secrets
import signal
import sqlite3
import sys
import threading
import time
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, NotRequired
from urllib.parse import parse_qs, urlencode

import uvicorn
from databases import Database
from databases.core import Connection
from fastapi import FastAPI, Query, Request, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from fastapi.sse import EventSourceResponse, format_sse_event
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, Histogram, generate_latest
from prometheus_client import Counter as Total
from pwdlib import PasswordHash
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema
from pydantic_core import from_json, to_json
from pydantic_settings import BaseSettings, SettingsConfigDict
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from typing_extensions import TypedDict

logger = logging.getLogger("bistro92")

# ---------------------------------------------------------------------------------------------------------------------
# 1. Settings and limits
# ---------------------------------------------------------------------------------------------------------------------


class StartRefused(Exception):
    """The server must not start. The message is the sentence that its operator reads."""


class Settings(BaseSettings):
    """Read once from `BISTRO92_*` environment variables; the README's table says what each means."""

    model_config = SettingsConfigDict(env_prefix="BISTRO92_", env_ignore_empty=True, frozen=True)

    database_url: Annotated[
        str, Field(pattern=r"^(sqlite://(/.+)?|postgres(ql)?://.+)$", title="sqlite:///FILE, sqlite:// or postgresql://…")
    ] = "sqlite:///bistro92.db"
    rate_limit: Annotated[int, Field(ge=0)] = 0
    max_body_bytes: Annotated[int, Field(ge=1)] = 262_144
    max_subscribers: Annotated[int, Field(ge=0)] = 5000
    subscriber_queue_bytes: Annotated[int, Field(ge=1)] = 1_048_576
    event_retention_hours: Annotated[float, Field(gt=0, le=876_000)] = 168
    allowed_origins: Annotated[
        str, Field(pattern=r"^(https?://[^/\s*,]+[,\s]*)*$", title="origins such as https://pos.example.com")
    ] = ""
    access_log: bool = False

    @classmethod
    def load(cls) -> Settings:
        """Read the environment. Raises StartRefused with a sentence that names the variable at fault."""
        try:
            return cls()
        except ValidationError as error:
            fault = error.errors()[0]
            variable = f"BISTRO92_{fault['loc'][0]}".upper()
            expected = cls.model_fields[str(fault["loc"][0])].title  # of a pattern, which says little to an operator
            why = f"expected {expected}" if expected else fault["msg"]
            raise StartRefused(f"{variable} is {fault['input']!r}: {why}.") from error


# Of the contract
MAX_LINES: Final = 100  # of an order
MAX_WAIT_SECONDS: Final = 60  # of a poll
HEARTBEAT_SECONDS: Final = 20.0
KEY_RETENTION_HOURS: Final = 72

# Bounds of what is held, in entries or bytes
MAX_WAITING_WRITES: Final = 10_000
MAX_BATCH: Final = 250  # writes in one commit: enough to share the disk's cost; the last one doesn't wait long
GATHER_TURNS: Final = 4  # of the event loop between two commits: who was just answered often asks again
MAX_LOGINS: Final = 50  # on their way at once: each costs tens of megabytes and milliseconds
MAX_LOGINS_EACH: Final = 10  # of them by one client, so that nobody can lock the others out
MAX_FAULTS: Final = 20  # named in one answer
MAX_PAGES: Final = 100  # of the order list, kept as they were last answered; boards of stations
MAX_PAGE_BYTES: Final = 65_536  # of such a page; a larger one is made anew
FEW_ROWS: Final = 20_000  # may be sorted for an answer
PAGE_ROWS: Final = 500  # read at a time where all are streamed
SOCKET_BYTES: Final = 65_536  # in a socket's own buffer; with more a subscriber is behind
SUBSCRIBERS_AT_ONCE: Final = 64  # written to before other tasks, such as POSTs, get their turn
READERS: Final = 2  # connections that read, besides the one that writes
MAX_LOG_LINES: Final = 10_000  # that wait to be written
LOG_RATE: Final = 10  # lines of one kind that are logged in a second

# Bounds of waits, and periods of background work, in seconds
BUSY_SECONDS: Final = 5.0  # for SQLite's lock, where a foreign process holds it
HEADER_SECONDS: Final = 10.0  # for the headers of a request, from its first byte or, for the first one, the connection
BODY_SECONDS: Final = 20.0  # for the body of a request
SEND_SECONDS: Final = 30.0  # for a peer that doesn't read
DROP_SECONDS: Final = 10.0  # for the close frame of a dropped subscriber to get through
STOP_SECONDS: Final = 5.0  # for requests under way once the server was told to stop
LOG_SECONDS: Final = 1.0  # for the last log lines to be written
SESSION_SECONDS: Final = 86_400
COOKIE_SECONDS: Final = 400 * 86_400  # as long as browsers keep one; a screen that is opened asks for more
MAX_LOGIN_DELAY: Final = 5.0  # after failures: slow for who guesses, never a lock-out
REACH_SECONDS: Final = 2.0  # for a process to hear of what another one has told a client
DOOR_SECONDS: Final = 0.005  # for a commit to be answered, before subscribers come in or go; then they do as long
LINE_SECONDS: Final = 3.0  # in the door; who has stood there longer waits for no commit any more
FIRE_PERIOD: Final = 0.5
REVOKE_PERIOD: Final = 0.5
ASK_PERIOD: Final = 0.1  # between two questions to the database about tokens that a process doesn't know
ROOM_PERIOD: Final = 1.0
HOUSEKEEPING_PERIOD: Final = 60.0


def rfc3339(moment: datetime) -> str:
    """`2026-11-20T18:15:02Z`: UTC, whole seconds, so that text order is time order."""
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def clock(**ago: float) -> str:
    """The server's clock as rfc3339, or what it showed `timedelta(**ago)` ago."""
    return rfc3339(datetime.now(UTC) - timedelta(**ago))


# ---------------------------------------------------------------------------------------------------------------------
# 2. Problems
# ---------------------------------------------------------------------------------------------------------------------

CODES: Final = {
    "malformed_json": (400, "The body is not JSON"),
    "unauthenticated": (401, "Who is asking is not known"),
    "wrong_credentials": (401, "The username or the password is wrong"),
    "forbidden": (403, "The role may not do that"),
    "forbidden_origin": (403, "This web origin may not do that"),
    "protected_mode": (403, "There is no account yet, so only this machine is served"),
    "not_found": (404, "Nothing is here"),
    "order_not_found": (404, "There is no such order"),
    "line_not_found": (404, "The order has no such line"),
    "token_not_found": (404, "There is no such token"),
    "user_not_found": (404, "There is no such account"),
    "method_not_allowed": (405, "The method is not allowed here"),
    "invalid_transition": (409, "The order cannot change like that"),
    "order_closed": (409, "The order is closed"),
    "not_scheduled": (409, "The order is no longer scheduled"),
    "username_taken": (409, "The username is taken"),
    "last_manager": (409, "The account is the last manager's"),
    "duplicate_order": (409, "This order of the POS exists already"),
    "cursor_lost": (410, "The cursor cannot be resumed"),
    "version_mismatch": (412, "The order has changed meanwhile"),
    "body_too_large": (413, "The request is too large"),
    "invalid_request": (422, "The request is not valid"),
    "idempotency_mismatch": (422, "The idempotency key was used for another request"),
    "rate_limited": (429, "Too many writes"),
    "internal_error": (500, "The server made a mistake"),
    "overloaded": (503, "Too many writes are waiting"),
    "storage_unavailable": (503, "The database cannot take this now"),
    "too_many_subscribers": (503, "Too many subscribers"),
}
"""Every `code` an answer can carry, with its status and title (RFC 9457). Codes are stable, titles may change."""

RETRY: Final = (b"retry-after", b"1")
WHO: Final = (b"www-authenticate", b'Bearer realm="bistro92"')
CLOSE: Final = (b"connection", b"close")
MISTAKE: Final = "The server made a mistake. It has been logged."


class Fault(TypedDict):
    """One field at fault: a JSON pointer into the request, and a sentence."""

    pointer: str
    detail: str


class ProblemDetails(TypedDict):
    """RFC 9457, as `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str
    errors: NotRequired[list[Fault]]
    order: NotRequired[Order]


class Answer:
    """A whole response as bytes, ready to send: an ASGI app, lighter than Starlette's Response."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, *headers: tuple[bytes, bytes], media: bytes = b"application/json"):
        self.status, self.body, self.headers = status, body, list(headers)
        if body:
            self.headers += [(b"content-type", media), (b"content-length", b"%d" % len(body))]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


class Problem(Exception):
    """A request that is refused or can't be served: the one error type that becomes an answer.

    `code` is a key of CODES, `detail` a sentence for a person; `order` is the current order, where that helps.
    """

    def __init__(self, code: str, detail: str, *headers: tuple[bytes, bytes], errors: Sequence[Fault] = ()):
        super().__init__(detail)
        self.code, self.headers, self.errors = code, headers, errors
        self.order: Order | None = None

    def answer(self, request_id: str) -> Answer:
        status, title = CODES[self.code]
        kind, instance = f"urn:bistro92:problem:{self.code}", f"urn:bistro92:request:{request_id}"
        details = ProblemDetails(
            type=kind, title=title, status=status, detail=str(self), code=self.code, instance=instance
        )
        if self.errors:
            details["errors"] = list(self.errors)
        if self.order:
            details["order"] = self.order
        return Answer(status, to_json(details), *self.headers, media=b"application/problem+json")

    @classmethod
    def of(cls, error: ValidationError) -> Problem:
        """What pydantic found: a body that isn't JSON, or each field at fault with its pointer."""
        found = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_FAULTS]
        if found[0]["type"] == "json_invalid":
            return cls("malformed_json", f"{found[0]['msg']}.")
        paths = [[str(part).replace("~", "~0").replace("/", "~1") for part in fault["loc"]] for fault in found]
        faults = [
            Fault(pointer="".join(f"/{part}" for part in path), detail=fault["msg"])
            for path, fault in zip(paths, found, strict=True)
        ]
        return cls("invalid_request", f"{faults[0]['pointer'] or 'The body'}: {faults[0]['detail']}.", errors=faults)


# ---------------------------------------------------------------------------------------------------------------------
# 3. Orders and their rules
# ---------------------------------------------------------------------------------------------------------------------

RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def moment(text: str) -> str:
    """An RFC 3339 time with its offset, as rfc3339() writes it; a fraction counts as a second. Raises ValueError.

    A `+` that wasn't escaped in a query arrives as a space.
    """
    text = re.sub(r"(?<=[\d.]) (?=\d\d:\d\d$)", "+", text)
    if not RFC3339.fullmatch(text):
        raise ValueError("expected a time with its offset, such as 2026-11-20T18:15:02Z")
    try:
        return rfc3339(datetime.fromisoformat(text.upper()) + timedelta(microseconds=999_999))
    except OverflowError as error:
        raise ValueError("the time is out of range") from error


Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]  # NUL is refused: databases end texts there
Name = Annotated[Text, Field(min_length=1, max_length=120)]
Table = Annotated[Text, Field(min_length=1, max_length=64)]
Note = Annotated[Text, Field(max_length=280)]
Station = Annotated[Text, Field(min_length=1, max_length=32)]
Source = Annotated[Text, Field(min_length=1, max_length=64)]
ExternalId = Annotated[Text, Field(min_length=1, max_length=128)]
Moment = Annotated[str, AfterValidator(moment), WithJsonSchema({"type": "string", "format": "date-time"})]
Status = Literal["scheduled", "received", "preparing", "ready", "completed", "cancelled"]
LineStatus = Literal["pending", "ready", "voided"]
Priority = Literal["normal", "rush"]


def strict(**example: Any) -> ConfigDict:
    """What is said of a request's body: nothing unknown, nothing of another type; and what one looks like."""
    return ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [example]})


class NewLine(TypedDict):
    """A line of an order as a POS client sends it."""

    __pydantic_config__ = strict(name="Burger", quantity=3, note="no onions", station="grill")  # type: ignore[misc]
    name: Name
    quantity: Annotated[int, Field(ge=1, le=999)]
    note: NotRequired[Note]
    station: NotRequired[Station]


Lines = Annotated[list[NewLine], Field(min_length=1, max_length=MAX_LINES)]


class NewOrder(TypedDict):
    """An order as a POS client posts it."""

    __pydantic_config__ = strict(  # type: ignore[misc]
        table="Table 1", items=[{"name": "Burger", "quantity": 3}, {"name": "Ice Cream", "quantity": 1}]
    )
    table: Table
    items: Lines
    note: NotRequired[Note]
    priority: NotRequired[Priority]
    fire_at: NotRequired[Moment]
    source: NotRequired[Source]
    external_id: NotRequired[ExternalId]


class MoreLines(TypedDict):
    """Lines to append to an order."""

    __pydantic_config__ = strict(items=[{"name": "Espresso", "quantity": 2, "station": "bar"}])  # type: ignore[misc]
    items: Lines


class Amendment(TypedDict, total=False):
    """What may be changed of an order; `"note": null` takes the note away."""

    __pydantic_config__ = strict(status="ready")  # type: ignore[misc]
    status: Status
    table: Table
    note: Note | None
    priority: Priority
    fire_at: Moment


class LineChange(TypedDict):
    """What may be changed of a line."""

    __pydantic_config__ = strict(status="ready")  # type: ignore[misc]
    status: LineStatus


class Cancellation(TypedDict, total=False):
    """Why an order is cancelled."""

    __pydantic_config__ = strict(reason="The guests have left")  # type: ignore[misc]
    reason: Note


class Line(NewLine):
    """A line as the server keeps it; its identity is its place. Without `status` it is pending."""

    status: NotRequired[Literal["ready", "voided"]]


class Order(TypedDict):
    """An order as every answer and event shows it. Optional fields are there only when set.

    A stamp (`…_at`) says when the order entered a state; a state that was skipped or taken back has none. An order
    that was scheduled has `fired_at`, when it entered the kitchen.
    """

    id: int
    table: str
    items: list[Line]
    note: NotRequired[str]
    priority: NotRequired[Priority]
    fire_at: NotRequired[str]
    source: NotRequired[str]
    external_id: NotRequired[str]
    created_at: str
    status: Status
    version: int
    updated_at: str
    fired_at: NotRequired[str]
    started_at: NotRequired[str]
    ready_at: NotRequired[str]
    completed_at: NotRequired[str]
    cancelled_at: NotRequired[str]
    cancel_reason: NotRequired[str]


NEXT: Final[dict[Status, tuple[Status, ...]]] = {
    "scheduled": ("received", "preparing", "ready", "completed", "cancelled"),
    "received": ("preparing", "ready", "completed", "cancelled"),
    "preparing": ("ready", "completed", "cancelled"),
    "ready": ("preparing", "completed", "cancelled"),  # back to preparing is a recall
    "completed": ("preparing",),
    "cancelled": (),
}
STAMP: Final = {"ready": "ready_at", "completed": "completed_at", "cancelled": "cancelled_at"}
OPEN: Final = ("received", "preparing", "ready")  # current orders: what is on the kitchen's board
CLOSED: Final = ("completed", "cancelled")  # their lines don't change

Rule = Callable[[Any, str], Order]
"""Decides a write: (the order as it stands, or None for a new one; now) → the order as it will be.

Rules are pure: they return the same object where nothing changes (a double tap), a new one where something does, and
raise Problem to refuse. `id`, `version` and `updated_at` are the transaction's to fill in.
"""


def place(_: None, now: str, new: NewOrder) -> Order:
    """A POS posts an order. A `fire_at` that isn't in the future means now."""
    status = "scheduled" if new.get("fire_at", "") > now else "received"
    order: Any = {"id": 0, **new, "created_at": now, "status": status, "version": 0, "updated_at": now}
    return order  # type: ignore[no-any-return]


def move(order: Order, now: str, to: Status) -> Order:
    """An order is moved forward, recalled or cancelled."""
    if to == order["status"]:
        return order
    if to not in NEXT[order["status"]]:
        raise Problem("invalid_transition", f"An order that is {order['status']} cannot become {to}.")
    return _enter(_draft(order), now, to)


def amend(order: Order, now: str, amendment: Amendment) -> Order:
    """Table, note, priority or time are changed, and then the state."""
    to = amendment.get("status")
    default: dict[str, Any] = {"priority": "normal", "note": ""}
    changed: dict[str, Any] = {name: value or "" for name, value in amendment.items() if name != "status"}
    changed = {name: value for name, value in changed.items() if order.get(name, default.get(name)) != value}
    after = order
    if changed:
        if order["status"] == "cancelled":
            raise Problem("order_closed", "The order is cancelled.")
        if "fire_at" in changed and order["status"] != "scheduled":
            raise Problem("not_scheduled", f"The order is {order['status']}; its time can no longer change.")
        after = _draft(order, **changed)
        if changed.get("note") == "":
            del after["note"]
        if "fire_at" in changed and changed["fire_at"] <= now:
            after = move(after, now, "received")
    return move(after, now, to) if to else after


def append_lines(order: Order, now: str, lines: list[NewLine]) -> Order:
    """The guests order more: a ready order goes back to preparing."""
    _refuse_closed(order)
    if len(order["items"]) + len(lines) > MAX_LINES:
        fault = Fault(pointer="/items", detail=f"the order has {len(order['items'])} lines and may have {MAX_LINES}")
        raise Problem("invalid_request", f"An order has at most {MAX_LINES} lines.", errors=[fault])
    after = _draft(order, items=[*order["items"], *lines])
    return _enter(after, now, "preparing") if order["status"] == "ready" else after


def mark_line(order: Order, now: str, line: int, to: LineStatus) -> Order:
    """A cook strikes a line, takes that back, or voids it; the order follows its lines."""
    if not 1 <= line <= len(order["items"]):
        raise Problem("line_not_found", f"Order {order['id']} has lines 1 to {len(order['items'])}.")
    if order["items"][line - 1].get("status", "pending") == to:
        return order
    _refuse_closed(order)
    after = _draft(order)
    marked: Any = after["items"][line - 1]
    marked["status"] = to
    if to == "pending":
        del marked["status"]
    left = [each.get("status") for each in after["items"] if each.get("status") != "voided"]
    if to == "ready" and order["status"] == "received":
        _enter(after, now, "preparing")
    if not left:
        _enter(after, now, "cancelled")
    elif all(left) and after["status"] != "ready":
        _enter(after, now, "ready")
    elif not all(left) and after["status"] == "ready":
        _enter(after, now, "preparing")
    return after


def cancel(order: Order, now: str, reason: str | None) -> Order:
    """The order is cancelled; it stays on record."""
    after = move(order, now, "cancelled")
    if reason and after is not order:
        after["cancel_reason"] = reason
    return after


def fire(order: Order, now: str) -> Order:
    """The time of a scheduled order has come, unless it was moved or cancelled meanwhile."""
    return move(order, now, "received") if order["status"] == "scheduled" and order["fire_at"] <= now else order


def _refuse_closed(order: Order) -> None:
    if order["status"] in CLOSED:
        raise Problem("order_closed", f"The order is {order['status']}; its lines don't change any more.")


def _draft(order: Order, **changed: Any) -> Order:
    draft: Any = {**order, "items": [{**line} for line in order["items"]], **changed}
    return draft  # type: ignore[no-any-return]


def _enter(draft: Any, now: str, status: Status) -> Order:
    """Put a draft into a state, with all that this brings about."""
    if draft["status"] == "scheduled" and status != "cancelled":
        draft["fired_at"] = now
        if status == "received" and any(line.get("status") == "ready" for line in draft["items"]):
            status = "preparing"
    draft["status"] = status
    if status == "preparing":
        draft.pop("ready_at", None)
        draft.pop("completed_at", None)
        draft.setdefault("started_at", now)
    elif status in STAMP:
        draft[STAMP[status]] = now
    if status == "ready":
        for line in draft["items"]:
            line.setdefault("status", "ready")
    return draft  # type: ignore[no-any-return]


def stations_of(order: Order) -> frozenset[str]:
    """The stations an order has a line for. They only grow in number: lines are never removed."""
    return frozenset(line["station"] for line in order["items"] if "station" in line)


def still_to_cook(order: Order) -> list[tuple[str, int]]:
    """What an order adds to the all-day count, as (name, quantity): its pending lines, while it is open."""
    pending = [line for line in order["items"] if "status" not in line] if order["status"] in OPEN else []
    return [(line["name"], line["quantity"]) for line in pending]


def differences(before: Order, after: Order) -> dict[str, list[Any]]:
    """What changed, for the audit trail: JSON pointer → [before, after], None where it was or is absent."""

    def flat(order: Order) -> dict[str, Any]:
        skipped = {"items", "version", "updated_at"}
        flattened = {f"/{name}": value for name, value in order.items() if name not in skipped}
        for place, line in enumerate(order["items"]):
            flattened |= {f"/items/{place}/{name}": value for name, value in line.items()}
        return flattened

    old, new = flat(before), flat(after)
    return {at: [old.get(at), new.get(at)] for at in {**old, **new} if old.get(at) != new.get(at)}


# ---------------------------------------------------------------------------------------------------------------------
# 4. The transaction
# ---------------------------------------------------------------------------------------------------------------------


class Credential(NamedTuple):
    """Who asks: a device's token, a login, or whoever sits at this machine while there are no accounts."""

    id: int
    name: str | None
    role: str
    expires_at: str | None  # None: never
    is_session: bool = False


class Key(NamedTuple):
    """An idempotency key as one credential used it, and a hash of the request that it came with."""

    credential: str
    name: str
    fingerprint: str


class Outcome(NamedTuple):
    """What a committed write comes to. `body` is the order as JSON, the very bytes that its event carries."""

    status: int
    body: bytes
    order_id: int
    version: int
    replayed: bool = False


@dataclass(slots=True, eq=False)
class Write:
    """One change that waits to be committed, and the future that tells its caller."""

    rule: Rule
    done: asyncio.Future[Outcome]
    status: int = 200  # what the caller is answered
    order_id: int | None = None  # the order to change; None for a new one
    key: Key | None = None
    if_match: frozenset[str] | None = None  # the versions that the caller accepts; None for any
    external: tuple[str, str] | None = None  # a new order's (source, external_id), unique
    actor: str | None = None  # who does it, for the audit trail


@dataclass(slots=True)
class Ledger:
    """The one row that every commit moves on: it gives ids, and `seq` without gaps, in commit order."""

    epoch: str
    seq: int
    last_order_id: int
    counts: dict[str, int]  # orders in each state

    def copy(self) -> Ledger:
        return Ledger(self.epoch, self.seq, self.last_order_id, {**self.counts})


class NotNew(Exception):
    """What was taken to be new may be on record. Nothing was saved; recall, and decide again."""


class Recalled(NamedTuple):
    """What the database holds of the things that some writes name."""

    ledger: Ledger
    orders: dict[int, Order]
    keys: dict[tuple[str, str], tuple[str, Outcome]]  # (credential, name) → (fingerprint, what it was answered)
    externals: dict[tuple[str, str], int]  # (source, external_id) → the order's id
    is_guess: bool = False  # the ledger is known; the rest is taken to be new, so the database wasn't asked


class Event:
    """One entry of the log, with what a screen needs of it; serialized once, for all who get it."""

    __slots__ = (
        "body", "cooking", "cursor", "end", "entered_at", "json", "kind", "open", "order_id", "ready_at", "seq",
        "stations",
    )  # fmt: skip

    def __init__(self, seq: int, kind: str, order: Order, body: bytes, epoch: str):
        self.seq, self.kind, self.body = seq, kind, body
        self.order_id = order["id"]
        self.open = order["status"] in OPEN
        self.entered_at = order.get("fired_at", order["created_at"])
        self.ready_at = order.get("ready_at")
        self.stations = stations_of(order)
        self.cooking = still_to_cook(order)
        self.cursor = make_cursor(epoch, seq)
        self.json = b'{"type":"%b","order":%b,"cursor":"%b"}' % (kind.encode(), body, self.cursor.encode())
        self.end = 0  # bytes that the feed has carried up to here; counted by the feed


def events_of(rows: Iterable[Any], epoch: str) -> list[Event]:
    """Rows of the log, (seq, type, order as JSON text), as events."""
    return [Event(row[0], row[1], from_json(row[2]), row[2].encode(), epoch) for row in rows]


def make_cursor(epoch: str, seq: int) -> str:
    """A place in the log, opaque to clients: which history, and the last event seen of it."""
    return f"{epoch}-{seq}"


def read_cursor(cursor: str, epoch: str) -> int | None:
    """The `seq` of a cursor; None where it is no cursor, or one of another history."""
    found = re.fullmatch(r"([0-9a-f]{12})-(0|[1-9][0-9]{0,17})", cursor)
    return int(found[2]) if found and found[1] == epoch else None


def text_frame(payload: bytes) -> bytes:
    """An unmasked, whole, uncompressed text frame (RFC 6455, section 5.2).

    It is legal on every connection: where permessage-deflate was negotiated, a clear RSV1 bit says "not compressed".
    """
    size = len(payload)
    if size < 126:
        return b"\x81%c%b" % (size, payload)
    if size < 65_536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), payload)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), payload)


def close_frame(code: int, reason: bytes) -> bytes:
    """A close frame (RFC 6455, section 5.5.1) with a short reason."""
    return b"\x88%c%b%b" % (2 + len(reason), code.to_bytes(2, "big"), reason)


@dataclass(slots=True)
class Transaction:
    """One group commit in memory: applies writes, one after the other, to what was recalled; keeps what to save."""

    recalled: Recalled
    now: str
    events: list[Event] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)  # what `commit_batch` saves, a JSON object each

    def apply(self, write: Write) -> Outcome:
        """Decide one write. Raises Problem where it is refused, and then leaves no trace."""
        key = write.key
        if key and (stored := self.recalled.keys.get(key[:2])):
            fingerprint, outcome = stored
            if fingerprint != key.fingerprint:
                raise Problem("idempotency_mismatch", "This Idempotency-Key came with another request before.")
            return outcome._replace(replayed=True)
        before = self._find(write)
        try:
            after = write.rule(before, self.now)
        except Problem as refusal:
            refusal.order = before
            raise
        if after is before:
            outcome = Outcome(write.status, to_json(after), after["id"], after["version"])
            if key:
                self._record(b"null", "", b"{}", frozenset(), outcome, write)
        else:
            outcome = self._save(before, after, write)
        if key:
            self.recalled.keys[key[:2]] = (key.fingerprint, outcome)
        return outcome

    def _find(self, write: Write) -> Order | None:
        """The order that a write is about, if the write's conditions hold."""
        twin = write.external and self.recalled.externals.get(write.external)
        order = self.recalled.orders.get(twin or write.order_id or 0)
        problem = None
        if twin:
            problem = Problem("duplicate_order", "{} posted its order {} before.".format(*write.external or ()))
        elif write.order_id is not None and order is None:
            problem = Problem("order_not_found", f"There is no order {write.order_id}.")
        elif order and write.if_match is not None and str(order["version"]) not in write.if_match:
            problem = Problem("version_mismatch", f"Order {order['id']} is at version {order['version']}.")
        if problem:
            problem.order = order
            raise problem
        return order

    def _save(self, before: Order | None, after: Order, write: Write) -> Outcome:
        """Take a changed order into the transaction: its id, version, event, and the counts."""
        ledger, orders, externals = self.recalled.ledger, self.recalled.orders, self.recalled.externals
        ledger.seq += 1
        if before is None:
            ledger.last_order_id += 1
            after["id"] = ledger.last_order_id
            kind, changes = "new_order", b"{}"
        else:
            ledger.counts[before["status"]] -= 1
            kind, changes = "order_updated", to_json(differences(before, after))
        if after["status"] == "scheduled":
            kind = "order_updated" if before else "order_scheduled"
        elif before and before["status"] == "scheduled" and after["status"] != "cancelled":
            kind = "new_order"
        ledger.counts[after["status"]] = ledger.counts.get(after["status"], 0) + 1
        after["version"] += 1
        after["updated_at"] = self.now
        outcome = Outcome(write.status, to_json(after), after["id"], after["version"])
        event = Event(ledger.seq, kind, after, outcome.body, ledger.epoch)
        self.events.append(event)
        orders[event.order_id] = after
        if write.external:
            externals[write.external] = event.order_id
        self._record(b"%d" % event.seq, kind, changes, event.stations, outcome, write)
        return outcome

    def _record(
        self, seq: bytes, kind: str, changes: bytes, stations: frozenset[str], outcome: Outcome, write: Write
    ) -> None:
        named = to_json({"stations": sorted(stations), "actor": write.actor, "key": write.key})
        record = b'{"seq":%b,"type":"%b","changes":%b,"status":%d,"order":%b,%b'
        self.records.append(record % (seq, kind.encode(), changes, outcome.status, outcome.body, named[1:]))


# ---------------------------------------------------------------------------------------------------------------------
# 5. Storage
# ---------------------------------------------------------------------------------------------------------------------

MIGRATIONS: Final = (
    """
    -- What every commit moves on. One row.
    CREATE TABLE ledger (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        epoch TEXT NOT NULL,            -- names this history; restoring a backup gives it another
        seq INTEGER NOT NULL,           -- the last event's
        last_order_id INTEGER NOT NULL,
        counts TEXT NOT NULL            -- {"received": 3, …}: orders in each state
    );
    INSERT INTO ledger VALUES (1, lower(hex(randomblob(6))), 0, 0, '{}');

    -- An order is one document, stored as it is answered; what queries need of it is derived from it.
    CREATE TABLE orders (
        id INTEGER PRIMARY KEY,
        status TEXT AS (json_extract(body, '$.status')) STORED,
        table_name TEXT AS (json_extract(body, '$.table')) STORED,
        source TEXT AS (json_extract(body, '$.source')) STORED,
        external_id TEXT AS (json_extract(body, '$.external_id')) STORED,
        created_at TEXT AS (json_extract(body, '$.created_at')) STORED,
        fire_at TEXT AS (json_extract(body, '$.fire_at')) STORED,
        ready_at TEXT AS (json_extract(body, '$.ready_at')) STORED,
        body TEXT NOT NULL
    );
    CREATE INDEX orders_by_status ON orders (status);           -- list: status; the board at start
    CREATE INDEX orders_by_table ON orders (table_name);        -- list: table
    CREATE INDEX orders_by_created ON orders (created_at);      -- list: since; stats: orders_last_hour
    CREATE INDEX orders_by_source ON orders (source) WHERE source IS NOT NULL;   -- list: source
    CREATE UNIQUE INDEX orders_by_external ON orders (external_id, source)       -- list: external_id; POST: duplicates
        WHERE external_id IS NOT NULL;
    CREATE INDEX orders_due ON orders (fire_at) WHERE status = 'scheduled';      -- which fire next
    CREATE INDEX orders_by_ready ON orders (ready_at) WHERE ready_at IS NOT NULL;  -- stats: the last day's at start

    CREATE TABLE order_stations (       -- list: station
        station TEXT NOT NULL,
        order_id INTEGER NOT NULL REFERENCES orders (id),
        PRIMARY KEY (station, order_id)
    ) WITHOUT ROWID;

    -- The log: what the feed resumes from, and the audit trail.
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY,        -- 1, 2, 3, … in commit order, without gaps
        at TEXT NOT NULL,
        type TEXT NOT NULL,
        order_id INTEGER NOT NULL REFERENCES orders (id),
        actor TEXT,                     -- who did it; null while there are no accounts
        changes TEXT NOT NULL,          -- {"/status": ["received", "ready"], …}
        body TEXT NOT NULL              -- the order as it was then
    );
    CREATE INDEX events_by_order ON events (order_id);          -- an order's history

    CREATE TABLE idempotency_keys (
        credential TEXT NOT NULL,
        key TEXT NOT NULL,
        fingerprint TEXT NOT NULL,      -- a hash of the request
        status INTEGER NOT NULL,        -- what it was answered …
        answer TEXT NOT NULL,           -- … and the order in that answer
        at TEXT NOT NULL,
        UNIQUE (credential, key)
    );
    """,
    """
    CREATE TABLE users (
        username TEXT PRIMARY KEY COLLATE NOCASE,
        password TEXT NOT NULL,         -- argon2
        role TEXT NOT NULL,
        created_at TEXT NOT NULL
    );
    CREATE TABLE tokens (               -- of devices, and of logins
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        hash TEXT NOT NULL UNIQUE,      -- of the secret, which is shown once and not kept
        name TEXT NOT NULL,             -- the device's, or the username
        role TEXT NOT NULL,
        is_session INTEGER NOT NULL,
        created_at TEXT NOT NULL,
        expires_at TEXT                 -- null: never
    );
    """,
    """
    -- A group commit is one INSERT into this view: one statement, so one transaction, which can't be left half open.
    -- A row is a write; the JSON functions of a statement share what they parsed, so each record is parsed once.
    DROP VIEW IF EXISTS batch;
    CREATE VIEW batch (record, at, seq, last_order_id, counts) AS SELECT 1, 2, 3, 4, 5 WHERE false;
    CREATE TRIGGER commit_batch INSTEAD OF INSERT ON batch BEGIN
        INSERT INTO orders (id, body)
            SELECT json_extract(NEW.record, '$.order.id'), json_extract(NEW.record, '$.order')
            WHERE json_extract(NEW.record, '$.seq') IS NOT NULL
            ON CONFLICT (id) DO UPDATE SET body = excluded.body;
        INSERT OR IGNORE INTO order_stations (station, order_id)
            SELECT value, json_extract(NEW.record, '$.order.id') FROM json_each(NEW.record, '$.stations');
        INSERT INTO events (seq, at, type, order_id, actor, changes, body)
            SELECT json_extract(NEW.record, '$.seq'), NEW.at, json_extract(NEW.record, '$.type'),
                json_extract(NEW.record, '$.order.id'), json_extract(NEW.record, '$.actor'),
                json_extract(NEW.record, '$.changes'), json_extract(NEW.record, '$.order')
            WHERE json_extract(NEW.record, '$.seq') IS NOT NULL;
        INSERT INTO idempotency_keys (credential, key, fingerprint, status, answer, at)
            SELECT json_extract(NEW.record, '$.key[0]'), json_extract(NEW.record, '$.key[1]'),
                json_extract(NEW.record, '$.key[2]'), json_extract(NEW.record, '$.status'),
                json_extract(NEW.record, '$.order'), NEW.at
            WHERE json_extract(NEW.record, '$.key[1]') IS NOT NULL;
        UPDATE ledger SET seq = NEW.seq, last_order_id = NEW.last_order_id, counts = NEW.counts;
    END;
    """,
)
"""What takes a database from each version to the next; `PRAGMA user_version` counts those that it has had."""

RECALL: Final = """
    SELECT 'ledger', epoch, seq, last_order_id, counts, NULL FROM ledger
    UNION ALL SELECT 'key', credential, key, fingerprint, status, answer FROM idempotency_keys
        WHERE (credential, key) IN
            (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:keys))
    UNION ALL SELECT 'order', id, NULL, NULL, NULL, body FROM orders WHERE id IN (SELECT value FROM json_each(:ids))
    UNION ALL SELECT 'external', orders.id, source, external_id, NULL, body FROM json_each(:externals) AS named
        CROSS JOIN orders
        ON external_id = json_extract(named.value, '$[1]') AND source = json_extract(named.value, '$[0]')
"""

TODAY: Final = """
    SELECT epoch, seq, (SELECT min(seq) FROM events), body FROM ledger
    LEFT JOIN orders ON status IN ('received', 'preparing', 'ready') OR ready_at >= :yesterday
    ORDER BY ready_at
"""
"""What the feed begins with: where the log stands, the open orders, and those whose preparation time still counts."""

PROBE: Final = "UPDATE ledger SET one = 1"
"""A commit that changes nothing."""

ROOM: Final = """
    INSERT INTO idempotency_keys (credential, key, fingerprint, status, answer, at) VALUES ('', 'room', ?, 0, '{}', ?)
    ON CONFLICT (credential, key) DO UPDATE SET fingerprint = excluded.fingerprint
"""
"""A commit that needs as much room as an order's, under nobody's key: a full disk may still have some for PROBE."""


class WriterConnection(sqlite3.Connection):
    """A connection that has its PRAGMAs from the moment it is made, whoever makes it."""

    pragmas: tuple[str, ...] = (
        f"busy_timeout = {BUSY_SECONDS * 1000:.0f}",  # first: switching to WAL may have to wait, too
        "journal_mode = WAL",
        "synchronous = FULL",  # a commit is on the disk before it is answered
        "foreign_keys = ON",
    )

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        for pragma in self.pragmas:
            self.execute(f"PRAGMA {pragma}").close()


class ReaderConnection(WriterConnection):
    """Only reads: SQLite before 3.51.3 can corrupt a WAL when two connections write or checkpoint at once."""

    pragmas = (*WriterConnection.pragmas, "query_only = ON")


def file_stat(path: str, name: str) -> int:
    """A number that the file system has of a file; 0 where there is no file."""
    try:
        return int(getattr(os.stat(path), name))
    except OSError:
        return 0


@contextlib.contextmanager
def driver_errors() -> Iterator[None]:
    """Where the driver's errors become ours. Violated constraints and programming errors pass: those are bugs."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except sqlite3.DatabaseError as error:
        raise unavailable(error) from error


def unavailable(
    error: Exception, detail: str = "The database cannot take this now. Nothing of this request was stored; try again."
) -> Problem:
    """What a failure of the database is to who asked."""
    logger.error("storage: %s", str(error) or type(error).__name__)
    return Problem("storage_unavailable", detail, RETRY)


class ListQuery(BaseModel, extra="forbid"):
    """What `GET /api/orders` can be asked for."""

    status: Annotated[list[Literal[Status, "open"]], Field(description="repeatable; open: the current ones")] = []
    table: Table | None = None
    station: Station | None = None
    source: Source | None = None
    external_id: ExternalId | None = None
    since: Annotated[Moment | None, Field(description="created at or after")] = None
    limit: Annotated[int | None, Field(ge=1, le=1000, description="without it, all orders are streamed")] = None
    before: Annotated[int | None, Field(ge=1, lt=2**63, description="only orders with a smaller id")] = None

    def sql(self, rows: int, recent: bool = True) -> tuple[str, dict[str, Any]]:
        """A SELECT of (id, body), newest first, and its values. `recent`: `since` leaves few orders to look through.

        Each status is searched for itself and the findings are merged: that reads at most `rows` of each from an
        index, where `status IN (…)` would sort all orders that were ever completed. The unary `+` keeps SQLite off an
        index that finds more: few orders are open at a time, most are completed.
        """
        columns = {"table": "table_name", "source": "source", "external_id": "external_id"}
        values: dict[str, Any] = {"rows": rows, **self.model_dump(exclude_none=True, exclude={"status", "limit"})}
        named = [f"{column} = :{name}" for name, column in columns.items() if name in values]
        bounds = ["created_at >= :since"] * ("since" in values) + ["id < :before"] * ("before" in values)
        branches = []
        for status in sorted({s for name in self.status for s in (OPEN if name == "open" else (name,))}) or [""]:
            few = status in (*OPEN, "scheduled")
            where = [f"+{condition}" if few else condition for condition in named] + bounds
            if status:
                values[status] = status
                where.append(f"{'' if few or not (named or self.station) else '+'}status = :{status}")
            by_time = recent and self.since and not (named or self.station or status)
            tables, key = "orders INDEXED BY orders_by_created" if by_time else "orders", "id"
            if self.station and few:
                where.append("EXISTS (SELECT 1 FROM order_stations WHERE station = :station AND order_id = id)")
            elif self.station:
                tables, key = "order_stations CROSS JOIN orders ON id = order_id", "order_id"
                where.append("station = :station")
            condition = " AND ".join(where) or "true"
            found = f"SELECT id, body FROM {tables} WHERE {condition} ORDER BY {key} DESC LIMIT :rows"
            branches.append(f"SELECT * FROM ({found}) AS found")
        return f"{' UNION ALL '.join(branches)} ORDER BY id DESC LIMIT :rows", values


CHECKPOINT_SECONDS: Final = Histogram(
    "bistro92_checkpoint_seconds",
    "Duration of a write that also moved the WAL into the database.",
    buckets=(0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
)
WAL_BYTES: Final = Gauge("bistro92_wal_bytes", "Size of the WAL file, which is used again and doesn't shrink.")


class Storage:
    """Orders, log and keys in one SQLite file: one connection that writes, a few that read, all held open.

    `databases` opens a connection, and a thread, at every acquire: these are acquired once and used by all tasks.
    In memory one connection does everything, because a private database has no second one.
    """

    shared = False  # whether other processes write, too: then the log is followed, and memory may be behind
    _ledger: Ledger | None = None  # as this process's last commit left it; None where that isn't known, or is shared

    def __init__(self, url: str):
        named = url.removeprefix("sqlite://").removeprefix("/")
        self.file = os.path.realpath(named) if named else ":memory:"  # one name for one file: links lead to its lock
        self.connections: list[Connection] = []  # the writer, then the readers; none while closed
        self._turns: Iterator[Connection] = iter(())  # the readers, in turn
        self._claim: sqlite3.Connection | None = None  # locks FILE-lock while this process serves FILE
        self._checkpointed = 0  # when the file itself was written last, which only a checkpoint does; in nanoseconds

    @property
    def _writer(self) -> Any:
        """The connection that writes, as aiosqlite has it; its user holds OrderBook.write_lock."""
        return self.connections[0].raw_connection

    async def open(self) -> None:
        """Claim the file, connect, migrate. Raises StartRefused with a sentence where that can't be."""
        readers = 0 if self.file == ":memory:" else READERS
        try:
            if readers:
                self._claim_file()
            for factory in (WriterConnection, *[ReaderConnection] * readers):
                connection = Database(f"sqlite:///{self.file}", factory=factory).connection()
                self.connections.append(await connection.__aenter__())
                if factory is WriterConnection:
                    await self._migrate()
        except (sqlite3.DatabaseError, StartRefused) as error:
            await self.close()  # its threads would keep the process alive
            if isinstance(error, StartRefused):
                raise
            raise StartRefused(
                f"BISTRO92_DATABASE_URL: {self.file} cannot be used as a database: {error}."
            ) from error
        self._turns = itertools.cycle(self.connections[1:] or self.connections)
        self._checkpointed = file_stat(self.file, "st_mtime_ns")

    async def close(self) -> None:
        """Disconnect, the writer last, so that it alone checkpoints the WAL into the file."""
        self._ledger = None
        while self.connections:
            await self.connections.pop().__aexit__()
        if self._claim:
            self._claim.close()

    def _claim_file(self) -> None:
        self._claim = sqlite3.connect(f"{self.file}-lock", timeout=0, isolation_level=None)
        try:
            self._claim.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise StartRefused(
                f"{self.file} is served by another process already. One process serves one SQLite file; "
                "to run several, keep the orders in PostgreSQL (BISTRO92_DATABASE_URL=postgresql://...)."
            ) from error
        if file_stat(self.file, "st_nlink") > 1:
            raise StartRefused(f"{self.file} has a second name, a hard link, under which it could be served again.")
        with contextlib.closing(sqlite3.connect(self.file)) as file:
            file.execute("PRAGMA schema_version")  # a file that is no database is found out before threads are started

    async def _migrate(self) -> None:
        [(version,)] = await self._writer.execute_fetchall("PRAGMA user_version")
        newest = len(MIGRATIONS)
        if version > newest:
            raise StartRefused(
                f"{self.file} was written by a newer Bistro92: its schema has version {version}, "
                f"this program knows {newest}. Upgrade the program, or restore a backup."
            )
        steps = "".join(MIGRATIONS[version:])
        try:
            await self._writer.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {newest}; COMMIT;")
        except sqlite3.DatabaseError:
            await self._writer.rollback()
            raise

    async def recall(self, writes: Sequence[Write], surely: bool = False) -> Recalled:
        """What the database holds of the orders, keys and external names that some writes are about.

        Most writes are new orders. These are taken to be new, which costs no question: where one isn't, the commit
        finds its key or name on record, raises NotNew, and the writes are decided again on what is `surely` there.
        """
        if self._ledger and not surely and all(write.order_id is None for write in writes):
            return Recalled(self._ledger.copy(), {}, {}, {}, is_guess=True)
        named = {
            "keys": to_json([write.key[:2] for write in writes if write.key]).decode(),
            "ids": to_json([write.order_id for write in writes if write.order_id]).decode(),
            "externals": to_json([write.external for write in writes if write.external]).decode(),
        }
        rows = await self.recall_rows(named)
        _, epoch, seq, last_order_id, counts, _ = rows[0]
        recalled = Recalled(Ledger(epoch, seq, last_order_id, from_json(counts)), {}, {}, {})
        for kind, first, second, third, fourth, body in rows[1:]:
            order = from_json(body)
            if kind == "key":
                outcome = Outcome(fourth, body.encode(), order["id"], order["version"])
                recalled.keys[first, second] = (third, outcome)
                continue
            recalled.orders[first] = order
            if kind == "external":
                recalled.externals[second, third] = first
        return recalled

    async def recall_rows(self, named: dict[str, str]) -> list[Any]:
        with driver_errors():
            return list(await self._writer.execute_fetchall(RECALL, named))

    def guard(self) -> contextlib.AbstractAsyncContextManager[None]:
        """What is recalled, decided and saved inside is one transaction; here nobody else writes anyway."""
        return contextlib.nullcontext()

    async def commit(self, transaction: Transaction) -> None:
        """Save a transaction: one statement, durable when this returns, without a trace when it raises."""
        ledger, self._ledger = transaction.recalled.ledger, None
        moved = (transaction.now, ledger.seq, ledger.last_order_id, to_json(ledger.counts).decode())
        rows = ",".join([f"(?{place}, ?1, ?2, ?3, ?4)" for place in range(5, 5 + len(transaction.records))])
        try:
            records = [record.decode() for record in transaction.records]
            await self.write(f"INSERT INTO batch VALUES {rows}", (*moved, *records))
            self._ledger = ledger
        except sqlite3.IntegrityError as error:
            if not transaction.recalled.is_guess:
                raise
            raise NotNew from error
        except Problem as problem:
            # A sync that failed leaves all of it in the WAL, where a restart would find it: it is written over.
            if getattr(problem.__cause__, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
                with contextlib.suppress(Problem):
                    await self.write(PROBE)
            raise

    async def write(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run one statement, a transaction of its own; its user holds OrderBook.write_lock.

        SQLite checkpoints at the end of a commit, when the WAL has a thousand pages.
        """
        began = time.perf_counter()
        with driver_errors():
            rows = list(await self._writer.execute_fetchall(statement, values))
        if (written := file_stat(self.file, "st_mtime_ns")) != self._checkpointed:
            self._checkpointed = written
            CHECKPOINT_SECONDS.observe(time.perf_counter() - began)
        return rows

    async def forget(self, events_before: str, keys_before: str) -> int | None:
        """Delete some of the oldest events and keys. Returns the last `seq` deleted, or 0; None when it is done.

        Takes small steps, so that no commit waits long. Events go in log order: what is left is always the log's end.
        """
        oldest = await self.write(f"SELECT seq, at FROM events ORDER BY seq LIMIT {PAGE_ROWS}")
        expired = [seq for seq, _ in itertools.takewhile(lambda row: row[1] < events_before, oldest)]
        if expired:
            await self.write("DELETE FROM events WHERE seq <= ?", (expired[-1],))
        first_keys = f"SELECT rowid FROM idempotency_keys ORDER BY rowid LIMIT {PAGE_ROWS}"
        delete_keys = f"DELETE FROM idempotency_keys WHERE at < ? AND rowid IN ({first_keys}) RETURNING 1"
        keys = await self.write(delete_keys, (keys_before,))
        return expired[-1] if expired else 0 if keys else None

    async def read(self, query: str, **values: Any) -> list[Any]:
        """Run a query on a connection that reads."""
        with driver_errors():
            rows: list[Any] = await next(self._turns).raw_connection.execute_fetchall(query, values)
            return rows

    async def events(self, after: int) -> list[Any]:
        """(seq, type, order as JSON text) of the next events, in order."""
        query = "SELECT seq, type, body FROM events WHERE seq > :after ORDER BY seq LIMIT :rows"
        return await self.read(query, after=after, rows=PAGE_ROWS)

    async def history(self, order_id: int) -> list[Any]:
        query = "SELECT seq, at, type, actor, changes, body FROM events WHERE order_id = :id ORDER BY seq"
        return await self.read(query, id=order_id)

    async def order(self, order_id: int) -> bytes | None:
        """An order as JSON."""
        rows = await self.read("SELECT body FROM orders WHERE id = :id", id=order_id)
        return rows[0][0].encode() if rows else None

    async def user(self, name: str) -> list[Any]:
        """(password, role, name as it was registered) of a user, upper and lower case being one."""
        return await self.read("SELECT password, role, username FROM users WHERE username = :name", name=name)

    async def orders(self, query: ListQuery, rows: int) -> list[tuple[int, bytes]]:
        """(id, order as JSON) of at most so many orders, newest first."""
        many = f"SELECT 1 FROM orders WHERE created_at >= :since LIMIT 1 OFFSET {FEW_ROWS}"
        recent = query.since is not None and not await self.read(many, since=query.since)
        statement, values = query.sql(rows, recent)
        return [(row[0], row[1].encode()) for row in await self.read(statement, **values)]

    def wal_bytes(self) -> int:
        return file_stat(f"{self.file}-wal", "st_size")


def storage_at(url: str) -> Any:
    """The storage that a URL names. What differs on PostgreSQL is in scaleout/, which SQLite does without."""
    if url.startswith("sqlite:"):
        return Storage(url)
    try:
        from scaleout.postgresql import Shared
    except ModuleNotFoundError as error:
        raise StartRefused(
            f"BISTRO92_DATABASE_URL names PostgreSQL, and {error.name} is not there. It needs the folder scaleout/ "
            "beside app.py, and: pip install -r requirements-postgres.txt."
        ) from error

    class SharedStorage(Shared, Storage):
        problem, refused, unavailable = Problem, StartRefused, staticmethod(unavailable)

    return SharedStorage(url)


# ---------------------------------------------------------------------------------------------------------------------
# 6. The feed
# ---------------------------------------------------------------------------------------------------------------------


class PrepTimes:
    """How long the orders that became ready in the last 24 hours took, from entering the kitchen; kept sorted."""

    def __init__(self) -> None:
        self._times: dict[int, tuple[str, int]] = {}  # order id → (ready_at, seconds), in the order of readiness
        self._sorted: list[int] = []

    def note(self, order_id: int, ready_at: str | None, entered_at: str) -> None:
        """Take an order's time; without `ready_at` it isn't ready, or not any more."""
        known = self._times.get(order_id)
        if known and known[0] == ready_at:
            return
        if known:
            del self._times[order_id], self._sorted[bisect_left(self._sorted, known[1])]
        if ready_at:
            seconds = int((datetime.fromisoformat(ready_at) - datetime.fromisoformat(entered_at)).total_seconds())
            self._times[order_id] = (ready_at, seconds)
            insort(self._sorted, seconds)

    def percentiles(self, *ranks: int) -> list[int | None]:
        """How many there are, then the nearest-rank percentiles; None where there are none."""
        yesterday = clock(hours=24)
        while self._times and (first := next(iter(self._times.items())))[1][0] < yesterday:
            self.note(first[0], None, "")
        count = len(self._sorted)
        return [count, *(self._sorted[-(-count * rank // 100) - 1] if count else None for rank in ranks)]


class Feed:
    """The newest events of the log, in memory, and the board that the whole log adds up to. No I/O.

    All of it happens between two awaits, so a snapshot and the events after it always meet without a gap.
    """

    def __init__(self, kept_bytes: int):
        self.epoch = ""
        self.head = 0  # `seq` of the last event; only grows
        self.floor = 0  # the lowest `seq` to resume from: every event after it is still in the log
        self.recent: deque[Event] = deque()  # the events up to `head`, as far back as `kept_bytes` reach
        self.board: dict[int, Event] = {}  # order id → its last event, for every open order
        self.all_day: Counter[str] = Counter()  # item name → quantity still to be cooked, over the board
        self.prep_times = PrepTimes()
        self._carried = 0  # bytes of all events that were ever published
        self._kept_bytes = kept_bytes
        self._snapshots: dict[str | None, bytes] = {}  # station, None for all → the board as JSON at `head`

    def load(self, epoch: str, head: int, floor: int, orders: Iterable[bytes]) -> None:
        """Begin where the database stands; `orders` are all open ones and those of the last day, as JSON."""
        self.epoch, self.head, self.floor = epoch, head, floor
        for forgotten in (self.recent, self.board, self.all_day, self._snapshots):
            forgotten.clear()
        for body in orders:
            self._show(Event(head, "new_order", from_json(body), body, epoch))

    def publish(self, events: Sequence[Event]) -> None:
        """Take committed events, in `seq` order."""
        for event in events:
            self._carried += len(event.body)
            event.end = self._carried
            self.recent.append(event)
            self._show(event)
        self.head = events[-1].seq
        self._snapshots.clear()
        while self._carried - self.recent[0].end > self._kept_bytes:
            self.recent.popleft()

    def _show(self, event: Event) -> None:
        if before := self.board.pop(event.order_id, None):
            for name, quantity in before.cooking:
                self.all_day[name] -= quantity
                if not self.all_day[name]:
                    del self.all_day[name]
        self.prep_times.note(event.order_id, event.ready_at, event.entered_at)
        if event.open:
            self.board[event.order_id] = event
            for name, quantity in event.cooking:
                self.all_day[name] += quantity

    def resumable(self, cursor: str | None) -> int | None:
        """The `seq` of a cursor that can be resumed from; None where it can't."""
        seq = read_cursor(cursor, self.epoch) if cursor else None
        return seq if seq is not None and self.floor <= seq <= self.head else None

    def since(self, seq: int) -> list[Event] | None:
        """The events after `seq`; None where some of them are only in the database."""
        kept = len(self.recent) - (self.head - seq)
        return list(itertools.islice(self.recent, kept, None)) if kept >= 0 else None

    def bytes_since(self, seq: int) -> float:
        """How much the events after `seq` amount to; infinite where memory doesn't reach back to them."""
        kept = len(self.recent) - (self.head - seq)
        if kept < 0:
            return math.inf
        return self._carried - self.recent[kept].end + len(self.recent[kept].body) if seq < self.head else 0

    def snapshot(self, station: str | None) -> bytes:
        """The open orders that have a line for the station, newest first, as JSON; made once for each position."""
        if station not in self._snapshots:
            if len(self._snapshots) >= MAX_PAGES:
                self._snapshots.clear()
            shown = sorted(self.board.items(), reverse=True)
            bodies = [event.body for _, event in shown if station is None or station in event.stations]
            self._snapshots[station] = b"[%b]" % b",".join(bodies)
        return self._snapshots[station]


# ---------------------------------------------------------------------------------------------------------------------
# 7. Subscribers
# ---------------------------------------------------------------------------------------------------------------------

SUBSCRIBERS: Final = Gauge("bistro92_subscribers", "Screens that are connected, waiting polls among them.")
DROPPED: Final = Total("bistro92_subscribers_dropped", "Subscribers dropped because they didn't read.")
QUEUE_BYTES: Final = Gauge("bistro92_subscriber_queue_bytes", "What waits for the subscriber that is furthest behind.")
FEED_LAG: Final = Histogram(
    "bistro92_feed_lag_seconds",
    "From a commit until its events were offered to every subscriber.",
    buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
)
PUBLISHED: Final = Total("bistro92_events_published", "Events handed to the feed.")

Ready = dict[tuple[int, str | None, bool], bytes]
"""(position, station, batch) → all frames from there to the head, for every subscriber who stands there."""


class Subscriber:
    """One who follows the feed: where it stands in the log, and the task that sends it what it hasn't got.

    It has no queue of its own: what waits for it lies in the log between its position and the head. That is bounded
    by `subscriber_queue_bytes`, shared by all subscribers, and freed as soon as nobody needs it.
    """

    def __init__(self, manager: ConnectionManager, scope: Scope, send: Send, station: str | None, batch: bool = False):
        self.manager, self.feed, self.station, self.batch = manager, manager.feed, station, batch
        self.credential: Credential = scope["bistro92.credential"]
        self.is_socket = scope["type"] == "websocket"  # a display; else a reader of server-sent events
        self.transport: asyncio.Transport | None = scope["bistro92.transport"]
        self.position = 0  # `seq` of the last event that was handed to the socket
        self.caught_up = False  # it has been at the head once; until then it reads the past, at its own pace
        self.live = False  # it is at the head and nothing is in the way: offer() may serve it
        self.wake = asyncio.Event()  # there is something to send that offer() could not serve
        self.over: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()  # why it must go
        self._send = send

    def offer(self, ready: Ready) -> bool:
        """Hand everything up to the head to the socket, at once. False where that can't be done without waiting.

        A display that keeps up costs no task switch: it gets frames that are ready, the same bytes as its neighbours.
        """
        transport = self.transport if self.is_socket else None
        if not transport or transport.is_closing() or transport.get_write_buffer_size() > SOCKET_BYTES:
            return False
        place = (self.position, self.station, self.batch)
        if place not in ready:
            events = self.feed.since(self.position)
            if events is None:
                return False
            ready[place] = b"".join([text_frame(message) for _, _, message in self._messages(events)])
        transport.write(ready[place])
        self.position = self.feed.head
        return True

    def _messages(self, events: Sequence[Event]) -> list[tuple[str, str, bytes]]:
        """What it is to be told of some events: (type, cursor, JSON) each."""
        wanted = [event for event in events if self.station is None or self.station in event.stations]
        if self.batch and len(wanted) > 1:
            everything, cursor = b",".join([event.json for event in wanted]), wanted[-1].cursor
            return [("batch", cursor, b'{"type":"batch","events":[%b],"cursor":"%b"}' % (everything, cursor.encode()))]
        return [(event.kind, event.cursor, event.json) for event in wanted]

    async def say(self, kind: str, cursor: str, message: bytes) -> None:
        """Send one message, waiting for the socket. Who leaves it parked for SEND_SECONDS is dropped: TimeoutError."""
        if self.is_socket and self.transport and kind == "initial":  # the largest one: shared as it is, not compressed
            if self.transport.is_closing():
                raise ConnectionResetError
            self.transport.write(text_frame(message))
            return
        if self.is_socket:
            wrapped: Message = {"type": "websocket.send", "text": message.decode()}
        else:
            chunk = format_sse_event(data_str=message.decode(), event=kind, id=cursor)
            wrapped = {"type": "http.response.body", "body": chunk, "more_body": True}
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._send(wrapped)
        except TimeoutError:
            self.manager.drop(self)
            raise
        except RuntimeError as error:  # uvicorn has closed the socket: its peer broke the protocol meanwhile
            raise ConnectionResetError from error

    async def tell(self, kind: str, more: bytes = b"") -> None:
        """Say where it stands, with the server's clock: `initial`, `resumed` or `heartbeat`."""
        cursor = make_cursor(self.feed.epoch, self.position)
        message = b'{"type":"%b",%b"cursor":"%b","server_time":"%b"}'
        await self.say(kind, cursor, message % (kind.encode(), more, cursor.encode(), clock().encode()))

    async def begin(self, position: int | None) -> None:
        """Resume from a position, or start with the whole board."""
        self.position = self.feed.head if position is None else position
        if position is None:
            await self.tell("initial", b'"orders":%b,' % self.feed.snapshot(self.station))
        else:
            await self.tell("resumed")

    async def follow(self, after: str | None) -> None:
        """Send the past, then the present, until cancelled. Between finding nothing more and being live is no await."""
        await self.manager.reach(after)
        await self.begin(self.feed.resumable(after))
        while True:
            while self.position < self.feed.head:
                events = await self.manager.events_since(self.position)
                if events is None:
                    await self.begin(None)
                    continue
                for kind, cursor, message in self._messages(events):
                    await self.say(kind, cursor, message)
                self.position = events[-1].seq
            self.caught_up = self.live = True
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self.wake.wait()
                self.live = False
            except TimeoutError:
                self.live = False
                await self.tell("heartbeat")
            self.wake.clear()

    async def listen(self, receive: Receive) -> tuple[int, str]:
        """Echo what a display says, until it leaves or says what it must not: returns the close code for that."""
        while (message := await receive())["type"] not in {"websocket.disconnect", "http.disconnect"}:
            words = message.get("text")
            if self.is_socket and words is None:
                return 1003, "text frames only"
            if words and len(words) > self.manager.max_message:
                return 1009, "message too big"
            if words is not None:
                await self.say("echo", "", to_json({"type": "echo", "message": words}))
        return 1000, ""


async def departure(receive: Receive) -> Literal[True]:
    """Returns when a client that was sent no answer yet has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    return True


class ConnectionManager:
    """Who listens to the feed. Broadcasts after the commit, in `seq` order, and waits for nobody."""

    def __init__(self, feed: Feed, storage: Storage, settings: Settings):
        self.feed = feed
        self.max_message = settings.max_body_bytes  # characters that a display may send at once
        self.stopping = False
        self.calm = asyncio.Event()  # cleared by the order book while a commit is under way
        self.calm.set()
        self._door = asyncio.Lock()  # whoever holds it is the next to come in or to go
        self._opened = -math.inf  # when it last had been closed for a commit, on the monotonic clock
        self._storage = storage
        self._max_subscribers = settings.max_subscribers
        self._queue_bytes = settings.subscriber_queue_bytes
        self._subscribers: dict[Subscriber, None] = {}
        self._polling = 0  # requests that wait in changes(); they count as subscribers
        self._news_since: float | None = None  # when the oldest events came that broadcast() hasn't begun with
        self._news = asyncio.Event()  # set and replaced whenever the head moves, and when the server stops

    def __len__(self) -> int:
        return len(self._subscribers) + self._polling

    def admit(self) -> None:
        """Raises Problem where there is no room for one more subscriber."""
        if len(self) >= self._max_subscribers:
            raise Problem("too_many_subscribers", f"No more than {self._max_subscribers} are served.", RETRY)

    async def pass_door(self) -> None:
        """Come in or go, one subscriber a turn of the loop, however many crowd in the door, and not during a commit.

        A loop that never rests keeps the interpreter from SQLite's thread, which wakes too late to catch it. But where
        commits never rest, the door is open for half of the time, and nobody is kept until they give up and come again.
        """
        arrived = time.monotonic()
        async with self._door:
            await asyncio.sleep(0)
            now = time.monotonic()
            if not self.calm.is_set() and now - self._opened > DOOR_SECONDS and now - arrived < LINE_SECONDS:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DOOR_SECONDS):
                        await self.calm.wait()
                self._opened = time.monotonic()

    def publish(self, events: Sequence[Event]) -> None:
        """Take a commit's events and wake whoever carries them on. Costs the same for any number of subscribers."""
        self.feed.publish(events)
        self._news_since = self._news_since or time.perf_counter()
        PUBLISHED.inc(len(events))
        self.ring()

    def ring(self) -> None:
        """Wake whoever waits for news."""
        self._news.set()
        self._news = asyncio.Event()

    async def broadcast(self) -> None:
        """Bring news to every subscriber, for as long as the server runs.

        Those that keep up get ready bytes, the same for all who stand at the same place. The others are woken to send
        for themselves, until they are too far behind.
        """
        reached = self.feed.head
        while True:
            if reached == self.feed.head:
                await self._news.wait()
            reached, ready = self.feed.head, Ready()
            since, self._news_since = self._news_since, None
            for count, subscriber in enumerate(list(self._subscribers), 1):
                if not (subscriber.live and subscriber.offer(ready)):
                    subscriber.wake.set()
                    if subscriber.caught_up and self.feed.bytes_since(subscriber.position) > self._queue_bytes:
                        self.drop(subscriber)
                if count % SUBSCRIBERS_AT_ONCE == 0:
                    await asyncio.sleep(0)
                    ready.clear()  # the head may have moved
            if since and self._subscribers:
                FEED_LAG.observe(time.perf_counter() - since)

    def most_waiting(self) -> float:
        """The bytes that wait for the subscriber that is furthest behind, in the log and in its socket."""
        behind = [
            min(self.feed.bytes_since(each.position), self._queue_bytes)
            + (each.transport.get_write_buffer_size() if each.transport else 0)
            for each in self._subscribers
            if each.caught_up
        ]
        return max(behind, default=0)

    async def events_since(self, seq: int) -> list[Event] | None:
        """At most PAGE_ROWS events after `seq`, from memory or the database; None where they are forgotten."""
        events = self.feed.since(seq)
        if events is not None:
            return events[:PAGE_ROWS]
        epoch, rows = self.feed.epoch, await self._storage.events(seq)
        rows = [row for row in rows if row[0] <= self.feed.head]  # what is committed but not published has its turn
        if not rows or rows[0][0] != seq + 1 or epoch != self.feed.epoch:
            return None
        return events_of(rows, epoch)

    async def reach(self, cursor: str | None) -> None:
        """Wait, where processes share a log, until this one has heard of what another has told a client already."""
        seq = read_cursor(cursor, self.feed.epoch) if cursor and self._storage.shared else None
        try:
            async with asyncio.timeout(REACH_SECONDS):
                while seq is not None and seq > self.feed.head and not self.stopping:
                    await self._news.wait()
        except TimeoutError:
            if await self._storage.read("SELECT 1 FROM ledger WHERE seq >= :seq", seq=seq):
                raise Problem("storage_unavailable", "This process is behind the others; try again.", RETRY) from None

    async def changes(
        self, after: str | None, limit: int, wait: float, receive: Receive
    ) -> tuple[list[Event], str]:
        """The events after a cursor, or from now on, and the cursor after them; may wait for the first one."""
        await self.reach(after)
        after = make_cursor(self.feed.epoch, self.feed.head) if after is None else after
        if self.feed.resumable(after) == self.feed.head and wait and not self.stopping:
            self.admit()
            self._polling += 1
            ends = [asyncio.create_task(self._news.wait()), asyncio.create_task(departure(receive))]
            try:
                await asyncio.wait(ends, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._polling -= 1
                for end in ends:
                    end.cancel()
        position = self.feed.resumable(after)
        events = None if position is None else await self.events_since(position)
        if events is None:
            raise Problem("cursor_lost", "This cursor can't be resumed: read the orders anew and go on from there.")
        return events[:limit], events[:limit][-1].cursor if events else make_cursor(self.feed.epoch, position or 0)

    async def serve(self, subscriber: Subscriber, after: str | None, receive: Receive) -> tuple[int, str]:
        """Serve one subscriber until it leaves or must go. Returns the close code and the reason."""
        self._subscribers[subscriber] = None
        if self.stopping:
            subscriber.over.set_result((1012, "service restart"))
        follow, listen = asyncio.create_task(subscriber.follow(after)), asyncio.create_task(subscriber.listen(receive))
        try:
            ends: list[asyncio.Future[Any]] = [follow, listen, subscriber.over]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not subscriber.over.done():  # it left by itself; who is sent away goes at once
                self._subscribers.pop(subscriber, None)
                await self.pass_door()
        finally:
            self._subscribers.pop(subscriber, None)
            follow.cancel()
            listen.cancel()
            failed, left = await asyncio.gather(follow, listen, return_exceptions=True)
            if subscriber.transport:  # a peer that doesn't read can't hold on to a socket that is closed
                asyncio.get_running_loop().call_later(DROP_SECONDS, subscriber.transport.abort)
        if subscriber.over.done():
            return subscriber.over.result()
        if isinstance(failed, Problem):  # what it asks for can't be read now
            return 1013, failed.code
        for outcome in (failed, left):
            if isinstance(outcome, Exception) and not isinstance(outcome, (OSError, WebSocketDisconnect)):
                logger.error("a subscriber failed", exc_info=outcome)
                return 1011, "internal error"
        return left if isinstance(left, tuple) else (1000, "")

    def drop(self, subscriber: Subscriber) -> None:
        """Let go of a subscriber that doesn't read: it is forgotten now, and its socket aborted if it stays stuck."""
        if subscriber.over.done():
            return
        DROPPED.inc()
        subscriber.over.set_result((1013, "too slow"))
        self._subscribers.pop(subscriber, None)
        if transport := subscriber.transport:
            if subscriber.is_socket and not transport.is_closing():
                transport.write(close_frame(1013, b"too slow"))
            transport.close()

    def dismiss(self, code: int, reason: str, credential_id: int | None = None) -> None:
        """Close all subscribers, or those of one credential."""
        for subscriber in self._subscribers:
            if credential_id in (None, subscriber.credential.id) and not subscriber.over.done():
                subscriber.over.set_result((code, reason))

    def stop(self) -> None:
        """The server stops: sockets are closed with 1012, streams and waiting polls end."""
        self.stopping = True
        self.ring()
        self.dismiss(1012, "service restart")


# ---------------------------------------------------------------------------------------------------------------------
# 8. The order book
# ---------------------------------------------------------------------------------------------------------------------

WRITES: Final = Total("bistro92_writes", "Writes that were decided.", ["outcome"])
COMMIT_SECONDS: Final = Histogram(
    "bistro92_commit_seconds", "Duration of a group commit.", buckets=(0.0005, 0.001, 0.002, 0.005, 0.02, 0.1, 0.5, 5)
)
BATCH_WRITES: Final = Histogram(
    "bistro92_batch_writes", "Writes in a group commit.", buckets=(1, 2, 5, 10, 25, 50, 100, MAX_BATCH)
)


class OrderBook:
    """Every change of an order goes through here: writes wait in line, and one commit takes all that are waiting."""

    def __init__(self, storage: Storage, manager: ConnectionManager, settings: Settings):
        self.write_lock = asyncio.Lock()  # guards the writer connection: commits, housekeeping, probes take turns
        self._storage, self._manager = storage, manager
        self._retention_hours = settings.event_retention_hours
        self._room_shown = -math.inf  # when probe() last found room for an order, on the monotonic clock
        self._waiting: deque[Write] = deque()  # writes that no commit has taken yet
        self._committing: asyncio.Task[None] | None = None  # belongs to no request, so none can cancel it; None: idle

    async def submit(self, write: Write) -> Outcome:
        """Commit a write together with whatever else is waiting; return when it is on the disk.

        Raises Problem where it was refused or could not be stored: then nothing of it was. Cancelling the caller
        doesn't cancel the write.
        """
        if len(self._waiting) >= MAX_WAITING_WRITES:
            raise Problem("overloaded", "Too many writes are waiting; try again.", RETRY)
        self._waiting.append(write)
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_waiting())
        return await write.done

    async def _commit_waiting(self) -> None:
        try:
            while self._waiting:
                self._manager.calm.clear()
                async with self.write_lock:  # taken anew for each commit: probes and housekeeping get their turn
                    await self._commit([self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))])
                self._manager.calm.set()
                for _ in range(GATHER_TURNS):
                    await asyncio.sleep(0)
        finally:
            self._manager.calm.set()
            self._committing = None

    async def _commit(self, writes: Sequence[Write]) -> None:
        """Decide and save some writes in one transaction, answer each caller, publish."""
        started, events = time.perf_counter(), list[Event]()
        answers: Sequence[Outcome | Exception]
        try:
            async with self._storage.guard():
                try:
                    decided = await self._decide(writes)
                except NotNew:
                    decided = await self._decide(writes, surely=True)
            answers, events = decided  # not before the guard has committed
        except Problem as problem:
            answers = [problem] * len(writes)
        except Exception as error:  # a bug in a rule, or a constraint that the rules don't know: it fails alone
            if len(writes) > 1:
                for write in writes:
                    await self._commit([write])
                return
            answers = [error]
        for write, answer in zip(writes, answers, strict=True):
            if write.done.done():  # the caller is gone
                continue
            if isinstance(answer, Exception):
                write.done.set_exception(answer)
            else:
                write.done.set_result(answer)
        try:
            feed = self._manager.feed
            if events and (not self._storage.shared or events[0].cursor == make_cursor(feed.epoch, feed.head + 1)):
                self._manager.publish(events)  # else other processes' events come before: the tail brings all
        except Exception:  # what is committed stands; screens get it from the log
            logger.critical("events could not be published; the feed is loaded anew", exc_info=True)
            await self.load_feed()
        refused = sum(isinstance(answer, Exception) for answer in answers)
        WRITES.labels("refused").inc(refused)
        WRITES.labels("accepted").inc(len(answers) - refused)
        COMMIT_SECONDS.observe(time.perf_counter() - started)
        BATCH_WRITES.observe(len(writes))

    async def _decide(
        self, writes: Sequence[Write], surely: bool = False
    ) -> tuple[list[Outcome | Exception], list[Event]]:
        """What each write comes to, saved, and the events of all. Raises Problem or NotNew: then nothing was."""
        transaction, answers = Transaction(await self._storage.recall(writes, surely), clock()), list[Any]()
        for write in writes:
            try:
                answers.append(transaction.apply(write))
            except Problem as refusal:
                if transaction.recalled.is_guess:  # another reason may come first
                    raise NotNew from refusal
                answers.append(refusal)
        if transaction.records:
            try:
                await self._storage.commit(transaction)
            except Problem as problem:
                if self._storage.shared:
                    raise
                return await self._from_record(writes, problem), []
        return answers, transaction.events

    async def _from_record(self, writes: Sequence[Write], problem: Problem) -> list[Outcome | Exception]:
        """What each write comes to where nothing can be saved: what is on record needs no saving."""
        recalled, answers = await self._storage.recall(writes, surely=True), list[Any]()
        for write in writes:
            is_known = (write.key and write.key[:2] in recalled.keys) or write.external in recalled.externals
            try:
                answers.append(Transaction(recalled, clock()).apply(write) if is_known else problem)
            except Problem as refusal:
                answers.append(refusal)
        return answers

    async def load_feed(self) -> None:
        """Let the feed begin where the database stands."""
        rows = await self._storage.read(TODAY, yesterday=clock(hours=24))
        epoch, seq, oldest, _ = rows[0]
        if epoch == self._manager.feed.epoch and seq < self._manager.feed.head:
            return  # more was published meanwhile
        bodies = [row[3].encode() for row in rows if row[3]]
        self._manager.feed.load(epoch, seq, seq if oldest is None else oldest - 1, bodies)
        self._manager.ring()

    async def probe(self) -> None:
        """Show that a commit is possible. Raises Problem, or TimeoutError where others hold the lock too long."""
        async with asyncio.timeout(BUSY_SECONDS), self.write_lock, self._storage.guard():
            if time.monotonic() - self._room_shown < ROOM_PERIOD:  # anybody may ask, as often as they like
                await self._storage.write(PROBE)
            else:
                await self._storage.write(ROOM, (secrets.token_hex(16_384), clock()))
                self._room_shown = time.monotonic()

    async def keep_time(self) -> None:
        """Fire scheduled orders when their time comes, for as long as the server runs."""
        due = "status = 'scheduled' AND fire_at <= :now ORDER BY fire_at LIMIT :rows"
        query = f"SELECT id FROM orders INDEXED BY orders_due WHERE {due}"
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(Problem):  # logged where it was raised; the next round tries again
                found = await self._storage.read(query, now=clock(), rows=MAX_BATCH)
                writes = [Write(fire, loop.create_future(), order_id=row[0]) for row in found]
                for failure in filter(None, await asyncio.gather(*map(self.submit, writes), return_exceptions=True)):
                    if isinstance(failure, Exception):
                        logger.error("a scheduled order could not be fired", exc_info=failure)
            await asyncio.sleep(FIRE_PERIOD)

    async def keep_house(self) -> None:
        """Forget events and keys that are past their time, for as long as the server runs.

        A clock that was set forward, and may be set back, makes nothing older until it has stood so for as long as a
        key is kept: its distance from the monotonic clock counts as the least it was in that time.
        """
        ahead: deque[float] = deque(maxlen=int(KEY_RETENTION_HOURS * 3600 / HOUSEKEEPING_PERIOD))
        while True:
            ahead.append(time.time() - time.monotonic())
            now, kept = time.monotonic() + min(ahead), (self._retention_hours, KEY_RETENTION_HOURS)
            retention = [rfc3339(datetime.fromtimestamp(now - hours * 3600, UTC)) for hours in kept]
            with contextlib.suppress(Problem):
                forgotten: int | None = 0
                while forgotten is not None:
                    self._manager.feed.floor = max(self._manager.feed.floor, forgotten)
                    async with self.write_lock:
                        forgotten = await self._storage.forget(*retention)
            await asyncio.sleep(HOUSEKEEPING_PERIOD)

    async def drain(self) -> None:
        """Wait until nothing is waiting."""
        while self._committing:
            await self._committing


# ---------------------------------------------------------------------------------------------------------------------
# 9. Who may do what
# ---------------------------------------------------------------------------------------------------------------------

Role = Literal["manager", "pos", "kitchen", "viewer"]
MAY: Final = {
    "manager": {"read", "change", "place", "amend", "cook", "manage"},
    "pos": {"read", "change", "place", "amend"},
    "kitchen": {"read", "change", "cook"},
    "viewer": {"read"},
}
LOCAL: Final = Credential(0, None, "manager", None)
SET_UP: Final = (
    "Bistro92 is in protected mode: there is no account yet, so only clients on this machine are served. Create the "
    "first account there: curl -d '{\"username\": \"...\", \"password\": \"...\"}' http://127.0.0.1:PORT/api/register"
)
FORWARDED: Final = (b"forwarded", b"x-forwarded", b"x-real-ip", b"via")  # what such headers begin with
COOKIE: Final = "bistro92_session"


def is_local(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Whether a connection comes from this machine and means it.

    A `Host` that isn't loopback betrays a page that had its name rebound to 127.0.0.1; a forwarded request comes
    from wherever the proxy heard it.
    """
    hosts = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
    client, host = (scope["client"] or ("",))[0], hosts[0] if len(hosts) == 1 else ""
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    loopback = (client.startswith("127.") or client == "::1") and name in {"localhost", "127.0.0.1", "[::1]"}
    return loopback and not any(header.startswith(FORWARDED) for header in headers)


Account = TypedDict("Account", {"username": str, "role": Role})


class Accounts:
    """Users, devices and logins. Tokens are held in memory, so that knowing who asks costs a look-up."""

    def __init__(self, storage: Storage, order_book: OrderBook, manager: ConnectionManager):
        self._storage, self._order_book, self._manager = storage, order_book, manager
        self._passwords = PasswordHash.recommended()
        self._nobody = ""  # the hash that an unknown user's password is compared with, for the same answer and time
        self._tokens: dict[str, Credential] = {}  # hash of the secret → whose it is
        self._failures: dict[tuple[str, str], int] = {}  # (client, username) → failed logins in a row
        self._slowed: set[tuple[str, str]] = set()  # (client, username) that failed before and try again just now
        self._logins: Counter[str] = Counter()  # client → those on their way
        self._hash_turn = asyncio.Lock()  # one hash at a time: orders need the processor, too
        self.protected = True  # nobody has registered yet
        self.revoked = 0  # how often somebody's access ended: who waited meanwhile is asked again
        self._changes = 0  # how often this process changed who may come in
        self._asking, self._asked = asyncio.Lock(), -math.inf  # look_again(): its turn, and when it last asked

    async def load(self) -> None:
        self._nobody = await asyncio.to_thread(self._passwords.hash, secrets.token_hex())
        await self._refresh()

    async def _refresh(self) -> None:
        """Take tokens and accounts as the database has them; whose access another process has ended is put out."""
        changes = None
        while changes != self._changes:  # by this process, meanwhile: what was read may be older than that
            changes = self._changes
            columns, live = "hash, id, name, role, expires_at, is_session", "coalesce(expires_at > :now, true)"
            rows = await self._storage.read(f"SELECT {columns} FROM tokens WHERE {live}", now=clock())
            [(users,)] = await self._storage.read("SELECT count(*) FROM users")
        before, self._tokens = self._tokens, {hashed: Credential(*rest) for hashed, *rest in rows}
        self._end(before[hashed].id for hashed in before.keys() - self._tokens.keys())
        if self.protected and users:
            self.protected = False
            self._end([LOCAL.id], "log in")

    def _end(self, credentials: Iterable[int], reason: str = "revoked") -> None:
        """Close what these have open, and let who waits just now be asked again who they are."""
        for credential_id in credentials:
            self.revoked += 1
            self._changes += 1
            self._manager.dismiss(1008, reason, credential_id)

    async def look_again(self) -> None:
        """Ask the database who may come in, if another process let somebody in. All who wait share one question."""
        arrived = time.monotonic()
        async with self._asking:
            if self._asked < arrived:
                await asyncio.sleep(self._asked + ASK_PERIOD - time.monotonic())
                self._asked = time.monotonic()
                with contextlib.suppress(Problem):
                    await self._refresh()

    def identify(self, scope: Scope, headers: dict[bytes, bytes]) -> Credential | None:
        """Whose token a connection shows; None where it is no good."""
        if self.protected:
            return LOCAL if is_local(scope, headers) else None
        credential = self._tokens.get(hash_of(shown_secret(scope, headers)))
        return credential if credential and not expired(credential) else None

    async def register(self, client: str, who: Credential, username: str, password: str, role: Role) -> Role:
        """Create an account; the first one is a manager's. Raises Problem where the name is taken."""
        hashed = await self._hashing(client, self._passwords.hash, password)
        async with self._order_book.write_lock, self._storage.guard():
            [(users,)] = await self._storage.write("SELECT count(*) FROM users")
            if who is LOCAL and users:
                raise Problem("unauthenticated", "Somebody else has just created the first account: log in.", WHO)
            role = role if users else "manager"
            statement = "INSERT INTO users VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING 1"
            if not await self._storage.write(statement, (username, hashed, role, clock())):
                raise Problem("username_taken", f"There is an account {username} already.")
        self.protected = False
        self._end([LOCAL.id], "log in")
        return role

    async def login(self, client: str, username: str, password: str) -> tuple[str, Role, str]:
        """Returns a session's secret, the role and when it expires. Raises Problem where the credentials are wrong.

        After failures the same client waits longer and longer for the same name, one try at a time: nobody else does.
        """
        name, role, hashed = await self._check(client, username, password)
        expires_at = clock(seconds=-SESSION_SECONDS)
        _, secret = await self.issue(name, role, expires_at, hashed)
        return secret, role, expires_at

    async def _check(self, client: str, username: str, password: str) -> tuple[str, Role, str]:
        """See _verify(); here guessing is slow."""
        attempt = (client, username.lower())
        failed = self._failures.get(attempt, 0)
        if attempt in self._slowed:
            raise Problem("rate_limited", "This name failed before; one login at a time.", RETRY)
        self._slowed |= {attempt} if failed else set()
        try:
            found = await self._verify(client, username, password, 0.1 * 2 ** min(failed, 10) if failed else 0)
        except Problem as problem:
            if problem.code == "wrong_credentials":
                if len(self._failures) >= MAX_WAITING_WRITES:
                    del self._failures[next(iter(self._failures))]
                self._failures[attempt] = self._failures.get(attempt, 0) + 1
            raise
        finally:
            self._slowed -= {attempt} if failed else set()
        self._failures.pop(attempt, None)
        return found

    async def _verify(self, client: str, username: str, password: str, delay: float) -> tuple[str, Role, str]:
        """Name, as registered, role and password's hash of who has this password. Raises Problem where nobody has."""
        found = await self._storage.user(username)
        known, role, name = found[0] if found else (self._nobody, None, "")
        if not await self._hashing(client, self._passwords.verify, password, known, delay=delay) or role is None:
            raise Problem("wrong_credentials", "The username or the password is wrong.", WHO)
        return name, role, known

    async def set_password(
        self, client: str, who: Credential, username: str, password: str, old: str | None
    ) -> Account:
        """Change a password; the old one is looked at where it is given. Who had the old one is logged out."""
        if old is not None:
            await self._check(client, username, old)
        hashed = await self._hashing(client, self._passwords.hash, password)
        async with self._order_book.write_lock, self._storage.guard():
            name, role = await self._user(username)
            await self._forget("is_session AND name = ? AND id <> ?", name, who.id)
            await self._storage.write("UPDATE users SET password = ? WHERE username = ?", (hashed, name))
        return Account(username=name, role=role)

    async def remove(self, username: str) -> None:
        """Delete an account; its sessions end first, so that a crash in between leaves none of them."""
        async with self._order_book.write_lock, self._storage.guard():
            name, role = await self._user(username)
            [(managers,)] = await self._storage.write("SELECT count(*) FROM users WHERE role = 'manager'")
            if role == "manager" and managers == 1:
                raise Problem("last_manager", f"{name} is the last manager: create another one first.")
            await self._forget("is_session AND name = ?", name)
            await self._storage.write("DELETE FROM users WHERE username = ?", (name,))

    async def _user(self, username: str) -> tuple[str, Role]:
        """An account's name, as it was registered, and its role. Raises Problem where there is none."""
        found = await self._storage.user(username)
        if not found:
            raise Problem("user_not_found", f"There is no account {username}.")
        return found[0][2], found[0][1]

    async def _hashing(self, client: str, work: Callable[..., Any], *arguments: str, delay: float = 0) -> Any:
        """Run a slow hash in a thread; no more than MAX_LOGINS wait for one."""
        if self._logins[client] >= MAX_LOGINS_EACH or self._logins.total() >= MAX_LOGINS:
            raise Problem("rate_limited", "Too many logins are on their way.", RETRY)
        self._logins[client] += 1
        try:
            await asyncio.sleep(min(delay, MAX_LOGIN_DELAY))
            async with self._hash_turn:
                return await asyncio.to_thread(work, *arguments)
        finally:
            self._logins[client] -= 1
            self._logins += Counter()  # drops those at zero

    async def issue(self, name: str, role: Role, expires_at: str | None, login: str | None = None) -> tuple[int, str]:
        """Create a token. Returns its id, and the secret, which is kept nowhere.

        `login` makes it a session of who still has this hash of a password: it took a while to compare.
        """
        secret = f"b92_{secrets.token_urlsafe(32)}"
        columns = "hash, name, role, is_session, created_at, expires_at"
        statement = f"INSERT INTO tokens ({columns}) VALUES (?, ?, ?, ?, ?, ?) RETURNING id"
        values = (hash_of(secret), name, role, login is not None, clock(), expires_at)
        still = "SELECT 1 FROM users WHERE username = ? AND password = ?"
        async with self._order_book.write_lock, self._storage.guard():
            if login is not None and not await self._storage.write(still, (name, login)):
                raise Problem("wrong_credentials", "The username or the password is wrong.", WHO)
            await self._storage.write("DELETE FROM tokens WHERE expires_at <= ?", (clock(),))
            [(token_id,)] = await self._storage.write(statement, values)
        self._tokens[hash_of(secret)] = Credential(token_id, name, role, expires_at, login is not None)
        self._changes += 1
        return token_id, secret

    async def revoke(self, token_id: int) -> bool:
        """Forget a token and close its sockets and streams. False where there is none."""
        async with self._order_book.write_lock:
            return await self._forget("id = ?", token_id)

    async def _forget(self, which: str, *values: Any) -> bool:
        """Revoke the tokens that a condition finds; its user holds write_lock. False where there is none."""
        found = await self._storage.write(f"DELETE FROM tokens WHERE {which} RETURNING id, hash", values)
        for _, hashed in found:
            self._tokens.pop(hashed, None)
        self._end(token_id for token_id, _ in found)
        return bool(found)

    async def keep_watch(self) -> None:
        """Let nobody in whose token has expired, for as long as the server runs, whatever the database does."""
        while True:
            await asyncio.sleep(REVOKE_PERIOD)
            now = clock()
            past = [hashed for hashed, known in self._tokens.items() if known.expires_at and known.expires_at <= now]
            self._end((self._tokens.pop(hashed).id for hashed in past), "expired")


def shown_secret(scope: Scope, headers: dict[bytes, bytes]) -> str:
    """The secret that a connection shows, in `Authorization: Bearer` or in the cookie; "" where it shows none."""
    scheme, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return secret.strip()
    cookies = headers.get(b"cookie", b"").decode("latin-1").split(";")
    pairs = dict(cookie.strip().partition("=")[::2] for cookie in cookies)
    writes = scope["type"] == "websocket" or scope["method"] not in {"GET", "HEAD", "OPTIONS"}
    return "" if writes and b"origin" not in headers else pairs.get(COOKIE, "")  # a browser names the page's origin


def hash_of(secret: str) -> str:
    """A token's secret is 256 random bits: a plain hash is enough to keep it from who reads the database."""
    return hashlib.sha256(secret.encode()).hexdigest()


def expired(credential: Credential) -> bool:
    return credential.expires_at is not None and credential.expires_at <= clock()


# ---------------------------------------------------------------------------------------------------------------------
# 10. HTTP plumbing
# ---------------------------------------------------------------------------------------------------------------------


class ClientGone(Exception):
    """The client went away before its request was whole; nobody is left to answer."""


reading: dict[asyncio.Transport | None, float] = {}  # sockets whose bodies are on their way → when they must be whole


async def cut_off_slow_peers() -> None:
    """Abort requests that take too long to arrive. One round a second costs less than a timer for each request.

    uvicorn has no deadline for headers. It shows where they are awaited: no answer is on its way (`cycle`), and the
    keep-alive timer, which is its own business, isn't running because something has come, or nothing ever has.
    """
    awaited: dict[tuple[Any, Any], float] = {}  # (connection, its last answer) → since when the next headers are
    while True:
        await asyncio.sleep(1)
        now, before = time.monotonic(), awaited
        slow = [transport for transport, deadline in reading.items() if transport and deadline < now]
        connections = app.server.server_state.connections if app.server else ()
        awaited = {
            (each, each.cycle): before.get((each, each.cycle), now)
            for each in connections
            if hasattr(each, "cycle") and not each.timeout_keep_alive_task  # a WebSocket has neither
            and (each.cycle is None or each.cycle.response_complete)
        }
        slow += [each.transport for (each, _), since in awaited.items() if now - since > HEADER_SECONDS]
        for transport in slow:
            transport.abort()
        json_log.own_up()


async def read_body(scope: Scope, receive: Receive, longest: int) -> bytes:
    """The whole body of a request. Raises Problem where it is too large, ClientGone where it ends early."""
    too_large = Problem("body_too_large", f"A request may have {longest} bytes.")  # the server discards the rest
    if int(scope["bistro92.headers"].get(b"content-length", b"0")) > longest:
        raise too_large
    reading[scope["bistro92.transport"]] = time.monotonic() + BODY_SECONDS
    body, more = b"", True
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > longest:
                raise too_large
    finally:
        reading.pop(scope["bistro92.transport"], None)
    return body


def read_query(query: bytes, model: type[BaseModel]) -> BaseModel:
    """A query string as its model. A field that isn't a list takes the last of several values."""
    try:
        values = parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=100)
    except ValueError as error:
        raise Problem("invalid_request", "The query has too many fields.") from error
    lists = {name for name, known in model.model_fields.items() if isinstance(known.default, list)}
    return model.model_validate({name: found if name in lists else found[-1] for name, found in values.items()})


def require(scope: Scope, *may: str) -> Credential:
    """Who asks, if their role may do it all. Raises Problem where it may not, or where nobody knows who they are."""
    credential: Credential | None = scope["bistro92.credential"]
    if credential is None:
        detail = "Log in (POST /api/login), or send a token: Authorization: Bearer ..."
        raise Problem("unauthenticated", detail, WHO)
    if not MAY[credential.role].issuperset(may):
        raise Problem("forbidden", f"The role {credential.role} may not {' and '.join(sorted(may))}.")
    return credential


class NumberConvertor(IntegerConvertor):
    """A number in a path. One that no database can hold is taken for the largest: nothing has that id either."""

    regex = "[0-9]{1,100}"

    def convert(self, value: str) -> int:
        return min(int(value), 2**63 - 1)


register_url_convertor("number", NumberConvertor())


def require_still(scope: Scope) -> None:
    """Ask again who asks, after a wait: a token may have been revoked meanwhile. Raises Problem where it was."""
    if scope["bistro92.credential"] != accounts.identify(scope, scope["bistro92.headers"]):
        scope["bistro92.credential"] = None
        require(scope)


class Route(APIRoute):
    """A route that FastAPI documents and this class serves.

    FastAPI reads an endpoint's signature and writes the OpenAPI page from it; solving the signature for each request
    costs it more than a commit. Here that is done once: the path's parameters are what its convertors make of them, a
    query is validated by its model, a body by pydantic's core straight from its bytes. An endpoint returns an ASGI
    app, mostly an Answer.
    """

    may: str | None = None  # what a role must be allowed to do, to come here; None: nothing

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        plan = self.dependant
        self._query: Any = next(iter(plan.query_params), None)
        self._body: Any = next(iter(plan.body_params), None)
        body_type: Any = self._body and self._body.field_info.annotation
        self._body_type = TypeAdapter(body_type) if self._body else None
        self._request = plan.request_param_name

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            raise HTTPException(405)
        try:
            if self.may:
                require(scope, self.may)
            arguments = {**scope.get("path_params", {})}
            if self._query:
                arguments[self._query.name] = read_query(scope["query_string"], self._query.field_info.annotation)
            if self._body_type:
                revoked = accounts.revoked
                body = scope["bistro92.body"] = await read_body(scope, receive, settings.max_body_bytes)
                if accounts.revoked != revoked:
                    require_still(scope)
                if body or self._body.field_info.is_required():
                    arguments[self._body.name] = self._body_type.validate_json(body)
            if self._request:
                arguments[self._request] = Request(scope, receive)
            respond = await self.endpoint(**arguments)
        except ValidationError as error:
            respond = refuse(scope, Problem.of(error))
        except Problem as problem:
            respond = refuse(scope, problem)
        except ClientGone:
            return
        except Exception as error:
            respond = refuse(scope, Problem("internal_error", MISTAKE), error)
        await respond(scope, receive, send)


async def send_in_time(scope: Scope, send: Send, message: Message) -> None:
    """Send; a client that leaves it parked for SEND_SECONDS is cut off. Raises TimeoutError then."""
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await send(message)
    except TimeoutError:
        if transport := scope.get("bistro92.transport"):
            transport.abort()
        raise


def read_tags(header: bytes) -> frozenset[str] | None:
    """The entity tags of If-Match or If-None-Match, weak or strong, without their quotes; None for `*`."""
    tags = header.decode("latin-1").strip()
    return None if tags == "*" else frozenset(tag.strip().removeprefix("W/").strip('"') for tag in tags.split(","))


def unchanged(request: Request, tag: str) -> bool:
    """Whether the client says (If-None-Match) that it holds this very answer."""
    header = request.scope["bistro92.headers"].get(b"if-none-match")
    return header is not None and ((tags := read_tags(header)) is None or tag in tags)


def read_key(scope: Scope, credential: str) -> Key | None:
    """The request's Idempotency-Key, bare or quoted, with a hash of the request. Raises Problem where it is none."""
    headers = scope["bistro92.headers"]
    if b"idempotency-key" not in headers:
        return None
    name = headers[b"idempotency-key"].decode("latin-1").strip()
    name = name[1:-1] if name[:1] == name[-1:] == '"' else name
    if not 1 <= len(name) <= 255:
        fault = Fault(pointer="/Idempotency-Key", detail="1 to 255 characters")
        raise Problem("invalid_request", "An Idempotency-Key has 1 to 255 characters.", errors=[fault])
    asked = f"{scope['method']} {scope['path']} {headers.get(b'if-match', b'')!r}".encode()
    return Key(credential, name, hashlib.blake2b(asked + scope.get("bistro92.body", b""), digest_size=16).hexdigest())


class RateLimit:
    """A token bucket for each name, such as a credential: so many a second, as many at once; 0 is no limit."""

    def __init__(self, rate: int):
        self._rate = rate
        self._buckets: dict[str, tuple[float, float]] = {}  # name → (how many are left, when that was)

    def has_room(self, name: str) -> bool:
        """Count one more, unless it is one too many."""
        now = time.monotonic()
        left, since = self._buckets.get(name, (self._rate, now))
        left = min(self._rate, left + (now - since) * self._rate)
        if left >= 1:
            self._buckets[name] = (left - 1, now)
        return left >= 1

    def take(self, credential: str) -> None:
        """Count one write. Raises Problem where it is one too many."""
        if self._rate and not self.has_room(credential):
            raise Problem("rate_limited", f"One credential may make {self._rate} writes a second.", RETRY)


LEFT_OUT: Final = Total("bistro92_log_lines_left_out", "Log lines that were not written: there were too many.")


class JsonLog(logging.Handler):
    """Writes log lines to standard error, as JSON, from a thread of its own: nobody waits for a disk or a full pipe.

    A flood must not fill the disk: LOG_RATE lines of a kind are written in a second, be it a code or a message. What
    is left out is counted, and one line a second says so. `logging`'s own QueueListener stops only when all is
    written, however long that takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._left_out: Counter[str] = Counter()  # kind → lines left out that no line has told of yet
        self._rates = RateLimit(LOG_RATE)
        self._waiting: queue.Queue[logging.LogRecord | None] = queue.Queue()  # bounded by start(); None ends the writer
        self._writer: threading.Thread | None = None  # None until it is started

    def start(self) -> None:
        self._waiting = queue.Queue(MAX_LOG_LINES)
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        logging.getLogger("uvicorn.error").addFilter(self._spare)  # it has a line for each malformed request

    def stop(self) -> None:
        """Write what waits, unless that takes too long."""
        self.own_up()
        logger.removeHandler(self)
        logging.getLogger("uvicorn.error").removeFilter(self._spare)
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        if self._writer:
            self._writer.join(LOG_SECONDS)

    def takes(self, kind: str) -> bool:
        """Whether one more line of a kind is written now; where it isn't, it is counted."""
        if not (room := self._rates.has_room(kind)):
            self._leave_out(kind)
        return room

    def _spare(self, record: logging.LogRecord) -> bool:
        return self.takes(str(record.msg))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if hasattr(record, "about") or self._spare(record):
                self._waiting.put_nowait(record)
        except queue.Full:
            self._leave_out("all")

    def _leave_out(self, kind: str) -> None:
        LEFT_OUT.inc()
        self._left_out[kind] += 1

    def own_up(self) -> None:
        """Tell of the lines that were left out since this was called last."""
        if told := dict(self._left_out):
            self._left_out.clear()
            logger.warning("log lines were left out", extra={"about": {"left_out": told}})

    def _write(self) -> None:
        with open(2, "wb", buffering=0, closefd=False) as out:  # not sys.stderr: no lock is held where this is stuck
            for record in iter(self._waiting.get, None):
                try:
                    out.write(self._line_of(record))
                except Exception:  # the log's own disk is full, or its reader gone
                    LEFT_OUT.inc()

    @staticmethod
    def _line_of(record: logging.LogRecord) -> bytes:
        """ASCII, so that what a client sent can neither begin a line nor move a terminal's cursor; without tokens."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": at, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "about", {})
        if record.exc_info:
            line["exception"] = logging.Formatter().formatException(record.exc_info)
        return re.sub(r"b92_[\w-]+", "b92_...", json.dumps(line)).encode() + b"\n"


def log_request(level: int, scope: Scope, status: int | None, error: Exception | None = None, **more: str) -> None:
    """The one line about a request."""
    who: Credential | None = scope["bistro92.credential"]
    about = {
        **more,
        "method": scope.get("bistro92.method", scope.get("method", "WEBSOCKET"))[:16],
        "path": scope["path"][:256],
        "status": status,
        "client": (scope["client"] or (None,))[0],
        "credential": who and who.name,
        "ms": round((time.perf_counter() - scope["bistro92.began"]) * 1000, 1),
    }
    logger.log(level, "request", exc_info=error, extra={"about": about})


def log_refusal(scope: Scope, status: int, code: str, error: Exception | None = None) -> str:
    """Log that a request is refused or fails. Returns the request's id.

    A proxy, or a client, may name its request; an id is made only where it is needed.
    """
    scope["bistro92.logged"] = True
    named = scope["bistro92.headers"].get(b"x-request-id", b"")
    request_id = named.decode() if re.fullmatch(rb"[\w.:-]{1,64}", named) else secrets.token_hex(8)
    if json_log.takes(code):
        level = logging.WARNING if CODES[code][0] < 500 else logging.ERROR
        log_request(level, scope, status, error, request=request_id, code=code)
    return request_id


def refuse(scope: Scope, problem: Problem, error: Exception | None = None) -> Answer:
    """The answer to a request that is refused or fails. Its `instance` is the id that the line in the log has."""
    return problem.answer(log_refusal(scope, CODES[problem.code][0], problem.code, error))


FEEDS: Final = ("/ws/orders", "/api/events")


class Bistro92(FastAPI):
    """The app's front door: what has to be known of a connection before it is routed."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.server: Any = None  # the uvicorn.Server that runs this; None under another server, or in a thread
        self.in_flight: set[Any] = set()  # sockets of requests under way, so that a stop can abort them
        self.direct: dict[tuple[str, str], Any] = {}  # (method, path) → its route, where the path has no parameters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, partial(self._speak_plainly, send))
            return
        headers = scope["bistro92.headers"] = dict(scope["headers"])
        # ASGI can neither write to many sockets at once nor abort one; uvicorn shows the transport behind `send`.
        transport = scope["bistro92.transport"] = getattr(getattr(send, "__self__", None), "transport", None)
        scope["bistro92.credential"] = accounts.identify(scope, headers)
        scope["bistro92.began"] = time.perf_counter()
        if scope["bistro92.credential"] is None and storage.shared and {b"authorization", b"cookie"} & headers.keys():
            await accounts.look_again()
            scope["bistro92.credential"] = accounts.identify(scope, headers)
        self.in_flight.add(transport)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            if path in FEEDS and scope["bistro92.credential"]:
                await manager.pass_door()
            elif scope.get("method") == "HEAD":
                # the server, who knows better, sends no body
                scope = {**scope, "method": "GET", "bistro92.method": "HEAD"}
            if settings.access_log:
                send = partial(self._note_status, scope, send)
            self._admit(scope, headers)
            if b"origin" not in headers and (route := self.direct.get((scope.get("method", ""), path))):
                await route.handle(scope, receive, send)  # middleware and a search would cost more than a commit
            else:
                await super().__call__(scope, receive, send)
        except Problem as problem:
            await self._refuse(problem, scope, receive, send)
        finally:
            self.in_flight.discard(transport)
            if settings.access_log and "bistro92.logged" not in scope:
                log_request(logging.INFO, scope, scope.get("bistro92.status"))

    @staticmethod
    async def _note_status(scope: Scope, send: Send, message: Message) -> None:
        if message["type"] in {"http.response.start", "websocket.accept"}:
            scope["bistro92.status"] = message.get("status", 101)
        await send(message)

    @staticmethod
    def _admit(scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raises Problem for who isn't to come in at all. What a page may read over HTTP is left to CORS to hide."""
        if accounts.protected and not scope["bistro92.credential"]:
            raise Problem("protected_mode", SET_UP)
        if b"origin" in headers and scope.get("method") not in {"GET", "HEAD", "OPTIONS"}:
            origin, host = headers[b"origin"].decode("latin-1"), headers.get(b"host", b"").decode("latin-1")
            own = {f"https://{host}"} if scope["scheme"] in {"https", "wss"} else {f"https://{host}", f"http://{host}"}
            if origin not in own.union(settings.allowed_origins.replace(",", " ").split()):
                detail = "A page of this origin may not do that; BISTRO92_ALLOWED_ORIGINS names those that may."
                raise Problem("forbidden_origin", detail)
        if scope["type"] == "websocket":
            require(scope, "read")

    @staticmethod
    async def _refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a problem instead of what was asked for: a WebSocket's handshake, too."""

        async def deny(message: Message) -> None:
            await send({**message, "type": f"websocket.{message['type']}"})

        answer = refuse(scope, problem)
        if scope["type"] == "http":
            await answer(scope, receive, send)
            return
        await answer(scope, receive, deny)
        with contextlib.suppress(TimeoutError):  # uvicorn logs an error where this ends before the socket is closed
            async with asyncio.timeout(SEND_SECONDS):
                for _ in ("connect", "denied", "closed"):
                    await receive()

    @staticmethod
    async def _speak_plainly(send: Send, message: Message) -> None:
        """Let the log of a refused start end with its sentence, where Starlette puts a traceback."""
        found = re.search(r"StartRefused: (.*)\s*\Z", message.get("message", ""))
        await send({**message, "message": found[1]} if found else message)

    def openapi(self) -> dict[str, Any]:
        """FastAPI's page, with the media type that problems have."""
        page = super().openapi()
        for operation in (operation for path in page["paths"].values() for operation in path.values()):
            for status, response in [*operation["responses"].items()]:
                if status < "400":
                    continue
                if "HTTPValidationError" in str(response):  # FastAPI's guess; ours are documented where they are made
                    del operation["responses"][status]
                elif response["content"].keys() != {"application/problem+json"}:
                    [schema] = response["content"].values()
                    response["content"] = {"application/problem+json": schema}
        for guess in ("HTTPValidationError", "ValidationError"):
            page["components"]["schemas"].pop(guess, None)
        return page


# ---------------------------------------------------------------------------------------------------------------------
# 11. The app and its endpoints
# ---------------------------------------------------------------------------------------------------------------------

try:
    settings = Settings.load()
    storage = storage_at(settings.database_url)
except StartRefused as refusal:
    sys.exit(f"bistro92: {refusal}")

feed = Feed(kept_bytes=2 * settings.subscriber_queue_bytes)
manager = ConnectionManager(feed, storage, settings)
order_book = OrderBook(storage, manager, settings)
accounts = Accounts(storage, order_book, manager)
rate_limit = RateLimit(settings.rate_limit)
json_log = JsonLog()
pages: dict[tuple[str, bytes], Answer] = {}  # (path with query, host) → what was answered last; its ETag tells when


@contextlib.asynccontextmanager
async def lifespan(app: Bistro92) -> AsyncIterator[None]:
    """Open the database, start what runs in the background, and stop in order; on_stop() has been called by then."""
    await storage.open()
    await order_book.load_feed()
    await accounts.load()
    json_log.start()
    routine = [order_book.keep_time, order_book.keep_house, accounts.keep_watch, cut_off_slow_peers]
    if storage.shared:
        routine += storage.follow(
            feed,
            publish=lambda rows: manager.publish(events_of(rows, feed.epoch)),
            load=order_book.load_feed,
            begin_anew=partial(manager.dismiss, 1012, "service restart"),
            refresh=accounts.look_again,
        )
    tasks = [asyncio.create_task(work()) for work in (manager.broadcast, *routine)]
    for task in tasks:
        task.add_done_callback(on_task_done)
    on_stop(app)
    gc.collect()
    gc.freeze()  # what is here stays, so no collection need look at it;
    gc.set_threshold(5_000, 1, 50_000)  # what follows is freed by its counts: collections are to be small, or rare
    SUBSCRIBERS.set_function(lambda: len(manager))
    QUEUE_BYTES.set_function(manager.most_waiting)
    WAL_BYTES.set_function(storage.wal_bytes)
    yield
    manager.stop()
    await order_book.drain()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await storage.close()
    json_log.stop()


def on_task_done(task: asyncio.Task[None]) -> None:
    """Background work ends when it is cancelled. Any other end is a bug; half a server is worse than none."""
    if not task.cancelled():
        logger.critical("background work ended", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


def on_stop(app: Bistro92) -> None:
    """Hear of SIGTERM and SIGINT before the server waits for its connections, because subscribers wait for us.

    The end of the lifespan is too late for that. What is still stuck after STOP_SECONDS is aborted. Setting
    `should_exit`, instead of calling uvicorn's handler, keeps it from raising the signal again: a clean stop exits 0.
    """
    loop = asyncio.get_running_loop()

    def stop() -> None:
        manager.stop()
        stuck = {*app.in_flight}
        loop.call_later(STOP_SECONDS, abort, stuck)

    def abort(stuck: set[Any]) -> None:
        for transport in filter(None, stuck | app.in_flight):
            transport.abort()

    def handle(signum: int, frame: Any) -> None:
        loop.call_soon_threadsafe(stop)
        server = getattr(previous[signum], "__self__", None)
        if isinstance(server, uvicorn.Server):
            server.force_exit = server.should_exit and signum == signal.SIGINT
            server.should_exit = True
        elif callable(previous[signum]):
            previous[signum](signum, frame)

    previous: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us there stops us
        for signum in (signal.SIGTERM, signal.SIGINT):
            previous[signum] = signal.signal(signum, handle)
            server = getattr(previous[signum], "__self__", None)
            app.server = server if isinstance(server, uvicorn.Server) else None


app = Bistro92(
    title="Bistro92",
    version="1.0.0",
    summary="Real-time orders for restaurants",
    lifespan=lifespan,
    redirect_slashes=False,
)
app.router.route_class = Route
if settings.allowed_origins:
    origins = settings.allowed_origins.replace(",", " ").split()
    readable = ["ETag", "Link", "Location", "Idempotency-Replayed", "Retry-After"]
    app.add_middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=readable
    )


@app.exception_handler(HTTPException)
async def not_served(request: Request, error: HTTPException) -> Any:
    """What Starlette refuses by itself: a path, or a method, that nothing serves."""
    if error.status_code != 405:
        return refuse(request.scope, Problem("not_found", f"Nothing is at {request.url.path}."))
    anything = {**request.scope, "method": ""}
    here = [route for route in app.routes if route.matches(anything)[0] is Match.PARTIAL]
    allow = ", ".join(sorted({method for route in here for method in getattr(route, "methods", ())}))
    detail = f"{request.method} is not served at {request.url.path}, but {allow}."
    return refuse(request.scope, Problem("method_not_allowed", detail, (b"allow", allow.encode())))


@app.exception_handler(Exception)
async def mistake(request: Request, error: Exception) -> Any:
    """A bug. The log has its traceback; the client learns no more than that the fault isn't its own."""
    return refuse(request.scope, Problem("internal_error", MISTAKE), error)


def endpoint(
    method: str, path: str, tag: str, may: str | None, model: Any, *codes: str, **options: Any
) -> Callable[[Any], Any]:
    """An endpoint with its documentation: who may come, what it answers, each code that it can refuse with."""
    described: dict[int, list[str]] = {}
    refusals = ("unauthenticated", "forbidden") if may else ()
    for code in (*codes, *refusals, "protected_mode", "internal_error"):
        described.setdefault(CODES[code][0], []).append(f"{CODES[code][1]} (`{code}`)")
    responses = {code: {"model": ProblemDetails, "description": " · ".join(why)} for code, why in described.items()}

    def register(function: Any) -> Any:
        name = function.__name__
        details = {"response_model": model, "operation_id": name, "tags": [tag], "responses": responses, **options}
        app.add_api_route(path, function, methods=[method], **details)
        route: Any = app.routes[-1]
        route.may = may
        if "{" not in path:
            app.direct[method, path] = route
        return function

    return register


READ: Final = ("invalid_request", "storage_unavailable")
WRITE: Final = (
    "malformed_json", "forbidden_origin", "body_too_large", *READ, "idempotency_mismatch",
    "rate_limited", "overloaded",
)  # fmt: skip
CHANGE: Final = (*WRITE, "order_not_found", "version_mismatch")


def headers_of(*names: str) -> dict[str, Any]:
    """The documentation of the request headers that make a write conditional or repeatable."""
    shortest = {"Idempotency-Key": 1}
    schemas = {name: {"type": "string", "minLength": shortest.get(name, 0)} for name in names}
    return {"parameters": [{"name": name, "in": "header", "schema": schema} for name, schema in schemas.items()]}


async def commit(
    request: Request,
    rule: Rule,
    order_id: int | None = None,
    status: int = 200,
    external: tuple[str, str] | None = None,
) -> Answer:
    """Commit what a request asks for, on its own conditions, and answer with the order."""
    who: Credential = request.scope["bistro92.credential"]
    rate_limit.take(str(who.id))
    key = read_key(request.scope, str(who.id))
    if_match = request.scope["bistro92.headers"].get(b"if-match") if order_id else None
    versions = read_tags(if_match) if if_match else None
    done = asyncio.get_running_loop().create_future()
    outcome = await order_book.submit(Write(rule, done, status, order_id, key, versions, external, who.name))
    headers = [(b"etag", b'"%d"' % outcome.version)]
    if outcome.status == 201:
        headers.append((b"location", b"/api/order/%d" % outcome.order_id))
    if outcome.replayed:
        headers.append((b"idempotency-replayed", b"true"))
    return Answer(outcome.status, b"" if outcome.status == 204 else outcome.body, *headers)


NEW_ORDER: Final = headers_of("Idempotency-Key")
CONDITIONAL: Final = headers_of("Idempotency-Key", "If-Match")


@endpoint("POST", "/api/order", "orders", "place", Order, *WRITE, "duplicate_order", status_code=201,
          openapi_extra=NEW_ORDER)  # fmt: skip
async def create_order(request: Request, order: NewOrder) -> Any:
    """Place an order. 201 means that it is on the disk."""
    named = (order["source"], order["external_id"]) if "source" in order and "external_id" in order else None
    return await commit(request, partial(place, new=order), status=201, external=named)


@endpoint("PATCH", "/api/order/{order_id:number}", "orders", "change", Order, *CHANGE, "invalid_transition",
          "order_closed", "not_scheduled", openapi_extra=CONDITIONAL)  # fmt: skip
async def amend_order(request: Request, order_id: int, amendment: Amendment) -> Any:
    """Change an order's state, table, note, priority or time."""
    cooking = "status" in amendment and amendment["status"] != "cancelled"
    require(request.scope, *["cook"] * cooking, *["amend"] * (not cooking or len(amendment) > 1))
    return await commit(request, partial(amend, amendment=amendment), order_id)


@endpoint("POST", "/api/order/{order_id:number}/items", "orders", "amend", Order, *CHANGE, "order_closed",
          openapi_extra=CONDITIONAL)  # fmt: skip
async def append_items(request: Request, order_id: int, more: MoreLines) -> Any:
    """Append lines. They get the next places."""
    return await commit(request, partial(append_lines, lines=more["items"]), order_id)


@endpoint("PATCH", "/api/order/{order_id:number}/items/{line:number}", "orders", "change", Order, *CHANGE,
          "line_not_found", "order_closed", openapi_extra=CONDITIONAL)  # fmt: skip
async def change_item(request: Request, order_id: int, line: int, change: LineChange) -> Any:
    """Strike a line, take that back, or void it. Lines count from 1; the order follows its lines."""
    if change["status"] != "voided" or "amend" not in MAY[require(request.scope).role]:
        require(request.scope, "cook")
    return await commit(request, partial(mark_line, line=line, to=change["status"]), order_id)


@endpoint("POST", "/api/order/{order_id:number}/cancel", "orders", "amend", Order, *CHANGE, "invalid_transition",
          openapi_extra=CONDITIONAL)  # fmt: skip
async def cancel_order(request: Request, order_id: int, why: Cancellation | None = None) -> Any:
    """Cancel an order. It stays on record."""
    return await commit(request, partial(cancel, reason=(why or {}).get("reason")), order_id)


@endpoint("DELETE", "/api/order/{order_id:number}", "orders", "amend", None, *CHANGE, "invalid_transition",
          status_code=204, openapi_extra=CONDITIONAL)  # fmt: skip
async def delete_order(request: Request, order_id: int) -> Any:
    """Cancel an order, as POST …/cancel does. An order is a record and is never erased."""
    return await commit(request, partial(cancel, reason=None), order_id, status=204)


@endpoint("GET", "/api/order/{order_id:number}", "orders", "read", Order, "order_not_found", "storage_unavailable")
async def get_order(request: Request, order_id: int) -> Any:
    """An order as it stands. Its ETag is its version."""
    body = await storage.order(order_id)
    if body is None:
        raise Problem("order_not_found", f"There is no order {order_id}.")
    version = str(from_json(body)["version"])
    tag = (b"etag", b'"%b"' % version.encode())
    return Answer(304, b"", tag) if unchanged(request, version) else Answer(200, body, tag)


class Change(TypedDict):
    """One event of an order's history. `changes`: JSON pointer → [before, after]."""

    seq: int
    at: str
    type: Literal["new_order", "order_updated", "order_scheduled"]
    by: str | None
    version: int
    changes: dict[str, list[Any]]


@endpoint("GET", "/api/order/{order_id:number}/events", "orders", "read", list[Change], "order_not_found",
          "storage_unavailable")  # fmt: skip
async def get_order_history(order_id: int) -> Any:
    """What happened to an order, and when, oldest first; as far back as the log is kept."""
    if await storage.order(order_id) is None:
        raise Problem("order_not_found", f"There is no order {order_id}.")
    rows = await storage.history(order_id)
    return Answer(200, to_json([
        Change(seq=seq, at=at, type=kind, by=by, version=from_json(body)["version"], changes=from_json(changes))
        for seq, at, kind, by, changes, body in rows
    ]))  # fmt: skip


@endpoint("GET", "/api/orders", "orders", "read", list[Order], *READ)
async def list_orders(request: Request, query: Annotated[ListQuery, Query()]) -> Any:
    """All orders that match, newest first. With a `limit`, Link names the next page while there is one."""
    cursor = make_cursor(feed.epoch, feed.head)
    tag = (b"etag", b'W/"%b"' % cursor.encode())
    if unchanged(request, cursor):
        return Answer(304, b"", tag)
    if query.limit is None:
        return await stream_orders(query, tag)
    place = (f"?{request.scope['query_string']}", request.scope["bistro92.headers"].get(b"host", b""))
    if not storage.shared and (known := pages.get(place)) and tag in known.headers:
        return known
    rows = await storage.orders(query, query.limit + 1)
    headers = [tag]
    if len(rows) > query.limit:
        rows.pop()
        following = query.model_copy(update={"before": rows[-1][0]}).model_dump(exclude_defaults=True)
        url = request.url.replace(query=urlencode(following, doseq=True))
        headers.append((b"link", f'<{url}>; rel="next"'.encode()))
    if len(pages) >= MAX_PAGES:
        pages.clear()
    answer = Answer(200, b"[%b]" % b",".join([body for _, body in rows]), *headers)
    if len(answer.body) <= MAX_PAGE_BYTES:
        pages[place] = answer
    return answer


async def stream_orders(query: ListQuery, tag: tuple[bytes, bytes]) -> ASGIApp:
    """All orders that match, read and sent a page at a time: in constant memory, with no transaction held open."""
    first = await storage.orders(query, PAGE_ROWS)

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        page, before = first, b"["
        headers = [(b"content-type", b"application/json"), tag]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while len(page) == PAGE_ROWS:
            body = before + b",".join([body for _, body in page])
            await send_in_time(scope, send, {"type": "http.response.body", "body": body, "more_body": True})
            page, before = await storage.orders(query.model_copy(update={"before": page[-1][0]}), PAGE_ROWS), b","
        body = (before if page or before == b"[" else b"") + b",".join([body for _, body in page]) + b"]"
        await send_in_time(scope, send, {"type": "http.response.body", "body": body})

    return respond


Quantity = TypedDict("Quantity", {"name": str, "quantity": int})
PrepSeconds = TypedDict("PrepSeconds", {"count": int, "p50": int | None, "p90": int | None})  # nearest rank


class Stats(TypedDict):
    """What a dashboard shows. `all_day`: what is still to be cooked over all open orders, biggest first."""

    by_status: dict[Status, int]
    all_day: list[Quantity]
    prep_seconds: PrepSeconds
    oldest_open_seconds: int | None
    orders_last_hour: int
    subscribers: int
    cursor: str
    server_time: str


@endpoint("GET", "/api/stats", "orders", "read", Stats, "storage_unavailable")
async def get_stats() -> Any:
    """Counts and times over the kitchen, as of `cursor`; preparation times are those of the last 24 hours."""
    all_day = [Quantity(name=name, quantity=quantity) for name, quantity in feed.all_day.most_common()]
    oldest = min((event.entered_at for event in feed.board.values()), default=None)
    cursor = make_cursor(feed.epoch, feed.head)
    query = "SELECT counts, (SELECT count(*) FROM orders WHERE created_at >= :hour_ago) FROM ledger"
    [(counts, orders_last_hour)] = await storage.read(query, hour_ago=clock(hours=1))
    count, p50, p90 = feed.prep_times.percentiles(50, 90)
    by_status = {status: from_json(counts).get(status, 0) for status in NEXT}
    return Answer(200, to_json(Stats(
        by_status=by_status,
        all_day=all_day,
        prep_seconds=PrepSeconds(count=count or 0, p50=p50, p90=p90),
        oldest_open_seconds=max(0, int(time.time() - datetime.fromisoformat(oldest).timestamp())) if oldest else None,
        orders_last_hour=orders_last_hour,
        subscribers=len(manager),
        cursor=cursor,
        server_time=clock(),
    )))  # fmt: skip


class FeedQuery(BaseModel, extra="forbid"):
    """What the feed can be asked for."""

    after: Annotated[str | None, Field(description="the cursor to resume from")] = None
    station: Annotated[Station | None, Field(description="only orders with a line for this station")] = None


class SocketQuery(FeedQuery, extra="ignore"):
    """What a display can ask for."""

    batch: str = ""


class ChangesQuery(BaseModel, extra="forbid"):
    """What a poll can ask for."""

    after: Annotated[str | None, Field(description="a cursor; without one, from now on")] = None
    limit: Annotated[int, Field(ge=1, le=1000, description="an answer may hold fewer: go on from its cursor")] = 100
    wait: Annotated[float, Field(ge=0, le=MAX_WAIT_SECONDS, description="seconds, until something happens")] = 0


EventType = Literal["new_order", "order_updated", "order_scheduled"]
FeedEvent = TypedDict("FeedEvent", {"type": EventType, "order": Order, "cursor": str})
Changes = TypedDict("Changes", {"events": list[FeedEvent], "cursor": str})


@endpoint("GET", "/api/changes", "feed", "read", Changes, *READ, "cursor_lost", "too_many_subscribers")
async def poll_changes(request: Request, query: Annotated[ChangesQuery, Query()]) -> Any:
    """The events after a cursor. `wait` holds the request until there is one."""
    events, cursor = await manager.changes(query.after, query.limit, query.wait, request.receive)
    require_still(request.scope)
    found = b",".join([event.json for event in events])
    return Answer(200, b'{"events":[%b],"cursor":"%b"}' % (found, cursor.encode()))


@endpoint("GET", "/api/events", "feed", "read", None, *READ, "too_many_subscribers", response_class=EventSourceResponse)
async def stream_events(request: Request, query: Annotated[FeedQuery, Query()]) -> Any:
    """The feed as server-sent events: `event` is the type, `id` the cursor. Last-Event-ID beats `after`."""
    manager.admit()

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        kind, unbuffered = (b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")
        headers = [kind, (b"cache-control", b"no-store"), unbuffered, CLOSE]
        await send_in_time(scope, send, {"type": "http.response.start", "status": 200, "headers": headers})
        try:
            require_still(scope)
            manager.admit()
            subscriber = Subscriber(manager, scope, send, query.station)
            await manager.serve(subscriber, request.headers.get("last-event-id") or query.after, receive)
        except Problem as problem:
            log_refusal(scope, 200, problem.code)
        with contextlib.suppress(TimeoutError):
            await send_in_time(scope, send, {"type": "http.response.body", "body": b""})

    return respond


@app.websocket(FEEDS[0])
async def orders_socket(websocket: WebSocket) -> None:
    """The feed for displays: `initial` or `resumed`, then every event."""
    try:
        query: Any = read_query(websocket.scope["query_string"], SocketQuery)
    except ValidationError as error:
        raise Problem.of(error) from error
    await websocket.accept()
    try:
        require_still(websocket.scope)
        manager.admit()
    except Problem as problem:
        code, reason = 1008 if problem.code == "unauthenticated" else 1013, problem.code
        log_refusal(websocket.scope, code, problem.code)
    else:
        batch = query.batch.lower() in {"true", "1"}
        subscriber = Subscriber(manager, websocket.scope, websocket.send, query.station, batch)
        code, reason = await manager.serve(subscriber, query.after, websocket.receive)
    with contextlib.suppress(TimeoutError, RuntimeError, WebSocketDisconnect):
        async with asyncio.timeout(DROP_SECONDS):
            await websocket.close(code, reason)


Password = Annotated[Text, Field(min_length=8, max_length=1024)]


class Registration(TypedDict):
    """An account to create. The first one is a manager's, whatever it says."""

    __pydantic_config__ = strict(username="maria", password="correct horse", role="manager")  # type: ignore[misc]
    username: Annotated[Text, Field(min_length=1, max_length=64)]
    password: Password
    role: NotRequired[Role]


class Login(TypedDict):
    """Who logs in."""

    __pydantic_config__ = strict(username="maria", password="correct horse")  # type: ignore[misc]
    username: Annotated[Text, Field(max_length=64)]
    password: Annotated[Text, Field(max_length=1024)]


class NewPassword(TypedDict):
    """A password that takes another's place; one's own is changed with the old one."""

    __pydantic_config__ = strict(password="battery staple", old_password="correct horse")  # type: ignore[misc]
    password: Password
    old_password: NotRequired[Annotated[Text, Field(max_length=1024)]]


class NewToken(TypedDict):
    """A device to let in."""

    __pydantic_config__ = strict(name="Grill display", role="kitchen", expires_in_days=365)  # type: ignore[misc]
    name: Annotated[Text, Field(min_length=1, max_length=64)]
    role: Role
    expires_in_days: NotRequired[Annotated[float, Field(gt=0, le=3650)] | None]  # 0.5: for a shift


User = TypedDict("User", {"username": str, "role": Role, "created_at": str})
Session = TypedDict("Session", {"token": str, "role": Role, "expires_at": str})


class Me(TypedDict):
    """Who asks. `local`: whoever sits at this machine while there is no account."""

    name: str | None
    role: Role
    kind: Literal["local", "session", "device"]
    may: list[Literal["amend", "change", "cook", "manage", "place", "read"]]
    expires_at: str | None


class Token(TypedDict):
    """A device's token; its secret is only in the answer that created it."""

    id: int
    name: str
    role: Role
    created_at: str
    expires_at: str | None
    token: NotRequired[str]


BODY: Final = ("malformed_json", "body_too_large", "forbidden_origin", *READ)


@endpoint("POST", "/api/register", "accounts", "manage", Account, *BODY, "username_taken", "rate_limited",
          status_code=201)  # fmt: skip
async def register(request: Request, new: Registration) -> Any:
    """Create an account. The first one can be created from this machine only; later ones by a manager."""
    who, client = require(request.scope), request.client.host if request.client else ""
    role = await accounts.register(client, who, new["username"], new["password"], new.get("role", "viewer"))
    return Answer(201, to_json(Account(username=new["username"], role=role)))


@endpoint("POST", "/api/login", "accounts", None, Session, *BODY, "wrong_credentials", "rate_limited")
async def log_in(request: Request, who: Login) -> Any:
    """Begin a session: a token for programs, and the same one as a cookie for browsers."""
    client = request.client.host if request.client else ""
    secret, role, expires_at = await accounts.login(client, who["username"], who["password"])
    session = Session(token=secret, role=role, expires_at=expires_at)
    return Answer(200, to_json(session), cookie(request, secret, SESSION_SECONDS), (b"cache-control", b"no-store"))


def cookie(request: Request, secret: str, seconds: int) -> tuple[bytes, bytes]:
    """The header that makes a browser show a secret, to us only, and not to its scripts."""
    secure = "; Secure" if request.url.scheme == "https" else ""
    value = f"{COOKIE}={secret}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
    return b"set-cookie", value.encode("latin-1")


@endpoint("GET", "/api/me", "accounts", "read", Me)
async def who_am_i(request: Request) -> Any:
    """Who asks, and what they may do."""
    who = request.scope["bistro92.credential"]
    kind: Any = "local" if who is LOCAL else "session" if who.is_session else "device"
    may: Any = sorted(MAY[who.role])
    me = Me(name=who.name, role=who.role, kind=kind, may=may, expires_at=who.expires_at)
    return Answer(200, to_json(me), (b"cache-control", b"no-store"))


@endpoint("POST", "/api/session", "accounts", "read", Me, "forbidden_origin")
async def keep_session(request: Request) -> Any:
    """Keep the token that asks as this browser's cookie, for as long as it is good: how a device is paired."""
    answer: Answer = await who_am_i(request)
    if (who := request.scope["bistro92.credential"]) is not LOCAL:
        seconds = datetime.fromisoformat(who.expires_at).timestamp() - time.time() if who.expires_at else COOKIE_SECONDS
        secret = shown_secret(request.scope, request.scope["bistro92.headers"])
        answer.headers.append(cookie(request, secret, min(int(seconds), COOKIE_SECONDS)))
    return answer


@endpoint("GET", "/api/users", "accounts", "manage", list[User], "storage_unavailable")
async def list_users() -> Any:
    """Who can log in."""
    names = ("username", "role", "created_at")
    rows = await storage.read(f"SELECT {', '.join(names)} FROM users ORDER BY username")
    return Answer(200, to_json([dict(zip(names, row, strict=True)) for row in rows]))


@endpoint("PATCH", "/api/users/{username:path}", "accounts", "read", Account, *BODY, "wrong_credentials",
          "user_not_found", "rate_limited")  # fmt: skip
async def change_password(request: Request, username: str, new: NewPassword) -> Any:
    """Set a password: one's own with `old_password`, others' as a manager. Sessions end, but for the one that asks."""
    who, old = require(request.scope), new.get("old_password")
    own = who.is_session and str(who.name).lower() == username.lower()
    if own and old is None:
        fault = Fault(pointer="/old_password", detail="one's own password is changed with the old one")
        raise Problem("invalid_request", "Changing one's own password needs the old one.", errors=[fault])
    if not own:
        require(request.scope, "manage")
    client = request.client.host if request.client else ""
    return Answer(200, to_json(await accounts.set_password(client, who, username, new["password"], old)))


@endpoint("DELETE", "/api/users/{username:path}", "accounts", "manage", None, "user_not_found", "last_manager",
          "forbidden_origin", "storage_unavailable", status_code=204)  # fmt: skip
async def delete_user(username: str) -> Any:
    """Delete an account; its sessions end. The last manager stays."""
    await accounts.remove(username)
    return Answer(204, b"")


@endpoint("POST", "/api/logout", "accounts", "read", None, "forbidden_origin", "storage_unavailable", status_code=204)
async def log_out(request: Request) -> Any:
    """End the session that asks: its token is good for nothing from now on."""
    if (who := request.scope["bistro92.credential"]) is not LOCAL:
        await accounts.revoke(who.id)
    return Answer(204, b"", (b"set-cookie", f"{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict".encode()))


@endpoint("POST", "/api/tokens", "accounts", "manage", Token, *BODY, status_code=201)
async def create_token(new: NewToken) -> Any:
    """Let a device in. The secret is in this answer and nowhere else."""
    days = new.get("expires_in_days")
    expires_at = clock(days=-days) if days else None
    token_id, secret = await accounts.issue(new["name"], new["role"], expires_at)
    name, role = new["name"], new["role"]
    token = Token(id=token_id, name=name, role=role, created_at=clock(), expires_at=expires_at, token=secret)
    return Answer(201, to_json(token), (b"cache-control", b"no-store"))


@endpoint("GET", "/api/tokens", "accounts", "manage", list[Token], "storage_unavailable")
async def list_tokens() -> Any:
    """The devices that are let in."""
    names = ("id", "name", "role", "created_at", "expires_at")
    live = "NOT is_session AND coalesce(expires_at > :now, true)"
    rows = await storage.read(f"SELECT {', '.join(names)} FROM tokens WHERE {live} ORDER BY id", now=clock())
    return Answer(200, to_json([dict(zip(names, row, strict=True)) for row in rows]))


@endpoint("DELETE", "/api/tokens/{token_id:number}", "accounts", "manage", None, "token_not_found", "forbidden_origin",
          "storage_unavailable", status_code=204)  # fmt: skip
async def delete_token(token_id: int) -> Any:
    """Let a device in no longer; its sockets and streams are closed."""
    if not await accounts.revoke(token_id):
        raise Problem("token_not_found", f"There is no token {token_id}.")
    return Answer(204, b"")


@endpoint("GET", "/healthz", "service", None, dict[str, str])
async def healthz() -> Any:
    """The process is alive."""
    return Answer(200, b'{"status":"alive"}')


@endpoint("GET", "/readyz", "service", None, dict[str, str], "storage_unavailable")
async def readyz() -> Any:
    """A commit is possible: one was just made."""
    try:
        await order_book.probe()
    except TimeoutError as error:
        raise Problem("storage_unavailable", "The database is busy.", RETRY) from error
    return Answer(200, b'{"status":"ready"}')


@endpoint("GET", "/metrics", "service", "read", None, response_class=PlainTextResponse)
async def metrics() -> Any:
    """What Prometheus reads."""
    return Answer(200, generate_latest(), media=CONTENT_TYPE_LATEST.encode())


SCREENS: Final = Path(__file__).parent / "screens"
PAGES: Final = {"/": "start", **{f"/{name}": name for name in ("kitchen", "pos", "dashboard", "ready", "account")}}
PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Screens(StaticFiles):
    """What the pages are made of."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        worker = path == "worker.js"
        response = make_worker() if worker else await super().get_response(path, scope)
        response.headers.update(PAGE_HEADERS | {"Service-Worker-Allowed": "/"} if worker else PAGE_HEADERS)
        return response


def make_worker() -> Response:
    """The service worker, told what the pages are made of: when any of it changes, browsers take another worker."""
    files = {f"/screens/{file.name}": file.read_bytes() for file in sorted(SCREENS.iterdir())}
    version = hashlib.sha256(b"".join(files.values())).hexdigest()[:16]
    told = b"const VERSION = %b, FILES = %b;\n" % (to_json(version), to_json([*PAGES, *files]))
    return Response(told + files["/screens/worker.js"], media_type="text/javascript")


async def show_page(name: str, request: Request) -> Response:
    """A screen; the API's documentation where there are no screens."""
    page = SCREENS / f"{name}.html"
    docs = f"{request.scope.get('root_path', '')}/docs"
    return FileResponse(page, headers=PAGE_HEADERS) if page.is_file() else RedirectResponse(docs)


for path in PAGES if SCREENS.is_dir() else ["/"]:
    app.add_route(path, partial(show_page, PAGES[path]), include_in_schema=False)
if SCREENS.is_dir():
    app.mount("/screens", Screens(directory=SCREENS))


def main() -> None:
    """`python app.py`: serve as `uvicorn app:app` does, without an access log and without compressing every frame."""
    parser = argparse.ArgumentParser(description="Bistro92, a real-time ordering backend for restaurants")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(app, host=options.host, port=options.port, access_log=False, ws_per_message_deflate=False)


if __name__ == "__main__":
    main()
