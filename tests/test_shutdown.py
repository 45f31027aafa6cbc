"""Stopping: under plain `uvicorn app:app`, with everything open that can be open."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest

from tests.conftest import Serve
from tests.harness import (
    Display,
    Dropped,
    EventStream,
    Peer,
    Screen,
    Server,
    a_large_order,
    an_order,
    events,
    until,
)

STOP_WITHIN = 10.0
"""Seconds, of the contract."""


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve().start()


def end_of(screen: Screen) -> int | None:
    """The close code after whatever a screen is still told."""
    with closing(screen), pytest.raises(Dropped) as end:
        for _ in events(screen):
            pass
    return end.value.code


def is_checkpointed(server: Server) -> bool:
    """Whether SQLite has left one file."""
    wal = server.file.with_name(server.file.name + "-wal")
    return not wal.exists() or wal.stat().st_size == 0


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stopping_with_everything_open(server: Server, signum: signal.Signals) -> None:
    """Sockets get 1012, streams end, polls and POSTs under way are answered; it ends in 10 s, with 0, all on disk."""
    idle = server.client()
    cursor = idle.cursor()
    deaf = Peer(server.port, receive_buffer=4096)
    deaf.upgrade()
    deaf_stream = Peer(server.port, receive_buffer=4096)
    deaf_stream.get("/api/events")
    until(lambda: server.metric("bistro92_subscribers") == 2, "the deaf ones are served")
    with closing(server.client()) as client:
        placed = [client.place(a_large_order()) for _ in range(20)]
        cursor = client.cursor()
    display, batched, stream = Display(server.port), Display(server.port, batch=True), EventStream(server.port)
    for screen in (display, batched, stream):
        assert screen.message()["type"] == "initial"
    stalled = Peer(server.port)
    stalled.head_of_post(1000)
    stalled.send(b'{"table": ')
    half_a_head = Peer(server.port)
    half_a_head.send("POST /api/order HTTP/1.1\r\nHost: ")
    silent = Peer(server.port)

    with (
        ThreadPoolExecutor(2) as pool,
        server.held() as let_go,
        closing(server.client()) as waiting,
        closing(server.client()) as posting,
    ):
        poll = pool.submit(waiting.changes, after=cursor, wait=60)
        until(lambda: server.metric("bistro92_subscribers") == 6, "the poll waits")
        post = pool.submit(posting.post, an_order("Last order"))
        idle = server.client()
        assert idle.get("/healthz").status == 200

        stopping = time.monotonic()
        server.running.send_signal(signum)
        assert end_of(display) == 1012
        let_go()
        reply = post.result()
        assert reply.status == 201
        placed.append(reply.json)
        assert (poll.result().status, poll.result().json["cursor"]) == (200, cursor)
        assert end_of(batched) == 1012
        assert end_of(stream) is None
        assert server.wait(STOP_WITHIN + 10) == 0
        assert time.monotonic() - stopping < STOP_WITHIN
    assert b"201 Created" not in read_to_end(stalled)
    for peer in (deaf, deaf_stream, half_a_head, silent):
        peer.close()
    assert is_checkpointed(server)
    assert "Traceback" not in server.log

    server.start()
    with closing(server.client()) as client:
        assert client.orders() == placed[::-1]


def read_to_end(peer: Peer) -> bytes:
    try:
        return peer.read_all()
    except ConnectionResetError:
        return b""


def test_stopping_under_load(server: Server) -> None:
    """Whatever was answered before the end is there afterwards; whoever wasn't answered can retry with his key."""

    def post(caller: int) -> list[str]:
        answered = []
        with closing(server.client()) as client:
            try:
                for number in range(10_000):
                    client.place(an_order(f"{caller}-{number}"))
                    answered.append(f"{caller}-{number}")
            except OSError:
                return answered
        raise AssertionError("the server never stopped")

    with ThreadPoolExecutor(6) as pool:
        posting = [pool.submit(post, caller) for caller in range(6)]
        with closing(server.client()) as client:
            until(lambda: len(client.orders()) > 50, "there is load")
        assert server.stop() == 0
        answered = {name for task in posting for name in task.result()}
    assert is_checkpointed(server)
    server.start()
    with closing(server.client()) as client:
        listed = [order["items"][0]["name"] for order in client.orders()]
    assert answered <= set(listed)
    assert len(set(listed)) == len(listed)
    assert len(listed) - len(answered) <= 6


def test_screens_resume_after_a_restart(server: Server) -> None:
    """A display that was told 1012 comes back with its cursor and has missed nothing."""
    display = Display(server.port)
    cursor = display.message()["cursor"]
    with closing(server.client()) as client:
        first = client.place(an_order())
    assert server.stop() == 0
    told = [event["order"] for event in rest_of(display)]
    server.start()
    with closing(server.client()) as client:
        second = client.place(an_order())
    with closing(Display(server.port, after=cursor)) as again:
        assert again.message()["type"] == "resumed"
        assert [again.message()["order"], again.message()["order"]] == [first, second]
    assert told == [first]
    assert json.dumps(first) != json.dumps(second)


def rest_of(screen: Screen) -> Iterator[dict[str, object]]:
    with closing(screen), suppress(Dropped):
        yield from events(screen)
