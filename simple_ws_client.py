"""A terminal display for Bistro92: the orders on the board, then every change, through any number of disconnects.

    python simple_ws_client.py                                the kitchen at ws://127.0.0.1:8000/ws/orders
    python simple_ws_client.py --url https://bistro.example   another one
    python simple_ws_client.py --station grill                only orders with a line for the grill
    python simple_ws_client.py --json | jq .type              the messages, one a line, as the server sent them

Orders go to stdout, notes about the connection to stderr. Ctrl-C ends it.

A message's way to the terminal, which is also the order of this file:

    1. Limits        how long to wait for what
    2. Lines         how a message reads on a terminal: plain functions
    3. Connection    connect, read, remember the cursor; whatever breaks, connect again and resume from there
    4. The program   options, signals, stdout
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException
from websockets.uri import parse_uri

Message = dict[str, Any]

# ---------------------------------------------------------------------------------------------------------------------
# 1. Limits
# ---------------------------------------------------------------------------------------------------------------------

SILENCE_SECONDS: Final = 60.0
"""The server sends a heartbeat every 20 s; one that has said nothing for this long is gone, whatever TCP believes."""
CLOSE_SECONDS: Final = 2.0
"""How long a closing handshake may take."""
FIRST_DELAY: Final = 0.5
"""What the first delay before connecting again is at most; it doubles with each failure in a row ..."""
LONGEST_DELAY: Final = 10.0
"""... up to this: a kitchen whose server is back must not look at an old board for long."""
STEADY_SECONDS: Final = 10.0
"""A connection that lasted this long was a good one: the delays start anew."""

JITTER: Final = random.SystemRandom()


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row: exponential, with full jitter.

    Every display loses its connection when the server restarts; they must not all come back in the same moment.
    """
    return JITTER.uniform(0, min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(failures, 30)))


# ---------------------------------------------------------------------------------------------------------------------
# 2. Lines
# ---------------------------------------------------------------------------------------------------------------------

LABELS: Final = {"new_order": "new", "order_updated": "changed", "order_scheduled": "accepted"}
MARKS: Final = {"ready": "✓ ", "voided": "✗ "}
DIM: Final = "\x1b[2m{}\x1b[0m"


def plain(text: str) -> str:
    """Text that anybody may have typed, without what a terminal would obey: line breaks, escape sequences."""
    return "".join(character if character.isprintable() else " " for character in text)


def local(moment: str, form: str = "%H:%M:%S") -> str:
    """A time of the server's on the clock of this terminal; as it came, where it is beyond this machine's calendar."""
    try:
        return datetime.fromisoformat(moment).astimezone().strftime(form)
    except (ValueError, OverflowError, OSError):
        return plain(moment)


def item_text(item: Message, station: str | None, dim: str) -> str:
    """`✓ 3x Burger [grill] (no onions)`; dimmed where it is another station's work."""
    text = f"{MARKS.get(item.get('status', ''), '')}{item['quantity']}x {plain(item['name'])}"
    if "station" in item:
        text += f" [{plain(item['station'])}]"
    if item.get("note"):
        text += f" ({plain(item['note'])})"
    return text if station in (None, item.get("station")) else dim.format(text)


def order_line(label: str, moment: str, order: Message, station: str | None, dim: str) -> str:
    """`18:15:02  new       #12     received   Table 1  3x Burger, 1x Ice Cream`"""
    parts = [f"{local(moment)}  {label:<8}  #{order['id']:<6} {order['status']:<9}", plain(order["table"])]
    if order.get("priority") == "rush":
        parts.append("RUSH")
    if order["status"] == "scheduled":
        parts.append(f"for {local(order['fire_at'], '%Y-%m-%d %H:%M')}")
    parts.append(", ".join(item_text(item, station, dim) for item in order["items"]))
    for field, title in (("note", "note"), ("cancel_reason", "reason")):
        if order.get(field):
            parts.append(f"{title}: {plain(order[field])}")
    return "  ".join(parts)


def lines(message: Message, station: str | None = None, dim: str = "{}") -> Iterator[str]:
    """How a message reads. Nothing for a heartbeat, and for a type that this program doesn't know."""
    if message["type"] == "initial":
        orders = message["orders"]
        yield f"{local(message['server_time'])}  {len(orders) or 'no'} current order{'s' * (len(orders) != 1)}"
        for order in reversed(orders):  # newest first in the message; on a terminal the newest stands lowest
            yield order_line("current", order["created_at"], order, station, dim)
    elif message["type"] == "batch":
        for event in message["events"]:
            yield from lines(event, station, dim)
    elif label := LABELS.get(message["type"]):
        order = message["order"]
        yield order_line(label, order["updated_at"], order, station, dim)


# ---------------------------------------------------------------------------------------------------------------------
# 3. Connection
# ---------------------------------------------------------------------------------------------------------------------


def note(text: str) -> None:
    print(f"-- {text}", file=sys.stderr, flush=True)


def feed_url(text: str) -> str:
    """The feed's address, from a ws:// or http:// URL with or without its path. Raises ArgumentTypeError."""
    try:
        parts = urlsplit(text)
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        path = parts.path.rstrip("/").removesuffix("/ws/orders") + "/ws/orders"
        url = parts._replace(scheme=scheme, path=path, fragment="").geturl()
        parse_uri(url)
    except (InvalidURI, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL such as ws://127.0.0.1:8000/ws/orders") from error
    return url


def with_query(url: str, **more: str | None) -> str:
    """The URL with these parameters besides its own; those that are None are left out."""
    parts = urlsplit(url)
    query = {**dict(parse_qsl(parts.query)), **{name: value for name, value in more.items() if value is not None}}
    return parts._replace(query=urlencode(query)).geturl()


def read_message(text: str) -> Message:
    """A message of the server's. Raises ValueError where the other end speaks of something else."""
    message = json.loads(text)
    if not isinstance(message, dict) or "type" not in message:
        raise ValueError(f"this is no message: {text[:80]}")
    return message


def detail(body: bytes | bytearray) -> str:
    """The sentence for a person in a refusal's problem details."""
    try:
        return plain(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return "without saying why"


def why(error: Exception) -> str:
    """What went wrong with a connection, for the person at the terminal."""
    match error:
        case ConnectionClosed(rcvd=close) if close:
            return f"the server closed the connection ({f'{close.code} {plain(close.reason)}'.strip()})"
        case ConnectionClosed():
            return "the connection broke"
        case InvalidStatus(response=response):
            return f"the server refused the connection ({response.status_code} {detail(response.body)})"
        case TimeoutError():
            return str(error) or f"the server has been silent for {SILENCE_SECONDS:.0f} s"
        case OSError() | InvalidHandshake():
            return f"no connection ({plain(str(error))})"
        case _:
            return f"this is not a Bistro92 server ({plain(str(error))})"


async def follow(url: str, token: str | None = None) -> AsyncGenerator[tuple[str, Message]]:
    """Every message, raw and read, over as many connections as it takes; it never ends by itself.

    The cursor moves on once the caller is done with a message and asks for the next one. So a connection that breaks
    in between is resumed before that message, not after it.
    """
    cursor: str | None = None  # where to resume; None before the first message
    failures = 0  # in a row, before the connection at hand
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    while True:
        since = float("inf")  # when this connection was made
        try:
            async with connect(
                with_query(url, after=cursor),
                additional_headers=headers,
                proxy=None,  # a kitchen and its server share a network
                max_size=None,  # `initial` grows with the board
                ping_interval=None,  # the heartbeats tell more: that the feed is alive, not just the socket
                close_timeout=CLOSE_SECONDS,
            ) as websocket:
                since = time.monotonic()
                note(f"connected to {url}")
                while True:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        text = await websocket.recv(decode=True)
                    message = read_message(text)
                    if message["type"] == "resumed":
                        note("resumed: nothing was missed")
                    elif message["type"] == "initial" and cursor is not None:
                        note("could NOT resume: what changed in between is lost; here is the board as it stands now")
                    yield text, message
                    cursor = message.get("cursor", cursor)
        except (OSError, WebSocketException, ValueError) as error:
            reason = why(error)
        if time.monotonic() - since > STEADY_SECONDS:
            failures = 0
        delay = backoff(failures)
        failures += 1
        note(f"{reason}; trying again in {delay:.1f} s")
        await asyncio.sleep(delay)


# ---------------------------------------------------------------------------------------------------------------------
# 4. The program
# ---------------------------------------------------------------------------------------------------------------------


async def display(url: str, station: str | None, token: str | None, raw: bool) -> None:
    """Print what the feed says until it is cancelled."""
    dim = DIM if sys.stdout.isatty() and "NO_COLOR" not in os.environ else "{}"
    url = with_query(url, station=station, batch=None if raw else "true")
    async with contextlib.aclosing(follow(url, token)) as messages:
        async for text, message in messages:
            for line in [text] if raw else lines(message, station, dim):
                print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Show the orders of a Bistro92 server, live, in this terminal.")
    parser.add_argument("--url", type=feed_url, default="ws://127.0.0.1:8000/ws/orders", help="default: %(default)s")
    parser.add_argument("--station", help="only orders with a line for this station")
    parser.add_argument("--json", action="store_true", help="print the messages as they come, one a line")
    parser.add_argument("--token", default=os.environ.get("BISTRO92_TOKEN"), help="default: BISTRO92_TOKEN, if set")
    options = parser.parse_args()

    if isinstance(sys.stdout, io.TextIOWrapper):  # an order is never lost to a terminal that lacks a letter
        sys.stdout.reconfigure(encoding="utf-8" if options.json else None, errors="replace")
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        token = (options.token or "").strip() or None
        task = loop.create_task(display(options.url, options.station, token, options.json))
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: loop.call_soon_threadsafe(task.cancel))
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            note("bye")
        except BrokenPipeError:  # whoever read stdout has left; the interpreter must not flush to them at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
