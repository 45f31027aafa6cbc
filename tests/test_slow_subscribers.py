"""Subscribers that don't read: they are dropped, they cost a bounded amount of memory, and they delay nobody."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing

import pytest

import app
from tests.conftest import Serve
from tests.harness import (
    DEADLINE,
    SCREENS,
    Client,
    Display,
    EventStream,
    Peer,
    Server,
    a_large_order,
    an_order,
    events_up_to,
    frames,
    until,
)

QUEUE_BYTES = 65_536
DROPPED = "bistro92_subscribers_dropped_total"
SUBSCRIBERS = "bistro92_subscribers"


def deaf_display(server: Server) -> Peer:
    peer = Peer(server.port, receive_buffer=4096)
    peer.upgrade()
    return peer


def deaf_event_stream(server: Server) -> Peer:
    peer = Peer(server.port, receive_buffer=4096)
    peer.get("/api/events")
    return peer


both = pytest.mark.parametrize("deaf", [deaf_display, deaf_event_stream])
Deaf = Callable[[Server], Peer]


@pytest.fixture
def server(serve: Serve) -> Server:
    """A server with small queues, because a kernel takes megabytes before a queue begins to fill."""
    return serve(subscriber_queue_bytes=QUEUE_BYTES).start()


def post_until_dropped(server: Server, client: Client, how_many: int) -> None:
    """Post until the server has dropped so many; every post is answered with 201."""

    def all_dropped() -> bool:
        client.place(a_large_order())
        return server.metric(DROPPED) == how_many

    until(all_dropped, f"{how_many} dropped")


@both
def test_a_subscriber_that_does_not_read(server: Server, client: Client, deaf: Deaf) -> None:
    """Once its queue is full it is dropped and counted, while others get every event and every post is answered."""
    screens = [screen(server.port) for screen in SCREENS]
    before = client.cursor()
    with closing(deaf(server)):
        until(lambda: server.metric(SUBSCRIBERS) == 3, "the deaf one is served")
        post_until_dropped(server, client, 1)
        assert server.metric(SUBSCRIBERS) == 2
        client.place(an_order("After it"))
        log = client.history(before, limit=50)
        for screen in screens:
            with closing(screen):
                assert events_up_to(screen, log[-1]["cursor"])[1:] == log
        assert server.metric(DROPPED) == 1


def test_a_dropped_display_that_reads_on(server: Server, client: Client) -> None:
    """It finds whole messages, in order, and then the close code 1013; after some time at the latest a reset."""
    with closing(deaf_display(server)) as peer:
        until(lambda: server.metric(SUBSCRIBERS) == 1, "the display is served")
        post_until_dropped(server, client, 1)
        dropped = time.monotonic()
        try:
            data = peer.read_all()
        except ConnectionResetError:
            assert time.monotonic() - dropped >= app.DROP_SECONDS - 1
            return
        _, _, stream = data.partition(b"\r\n\r\n")
        *told, (opcode, payload) = frames(stream)
        assert {opcode for opcode, _ in told} == {1}
        assert (opcode, int.from_bytes(payload[:2], "big")) == (8, 1013)
        assert sum(len(payload) for _, payload in told) > QUEUE_BYTES


def test_a_dropped_event_stream_that_reads_on(server: Server, client: Client) -> None:
    """It finds whole events and then the end, so that it reconnects and resumes."""
    with closing(deaf_event_stream(server)) as peer:
        until(lambda: server.metric(SUBSCRIBERS) == 1, "the stream is served")
        post_until_dropped(server, client, 1)
        dropped = time.monotonic()
        try:
            data = peer.read_all()
        except ConnectionResetError:
            assert time.monotonic() - dropped >= app.DROP_SECONDS - 1
            return
        [*_, last] = [line.removeprefix(b"id: ") for line in data.splitlines() if line.startswith(b"id: ")]
        with closing(EventStream(server.port, last_event_id=last.decode())) as stream:
            assert stream.message()["type"] == "resumed"
            assert events_up_to(stream, client.cursor())


def test_a_display_that_was_dropped_resumes(server: Server, client: Client) -> None:
    """What it read before it was dropped and what it gets when it resumes add up to the log."""
    before = client.cursor()
    with closing(deaf_display(server)) as peer:
        until(lambda: server.metric(SUBSCRIBERS) == 1, "the display is served")
        post_until_dropped(server, client, 1)
        _, _, stream = peer.read_all().partition(b"\r\n\r\n")
    _, *told, _ = [json.loads(payload) if opcode == 1 else {} for opcode, payload in frames(stream)]
    with closing(Display(server.port, after=told[-1]["cursor"])) as display:
        missed = events_up_to(display, client.cursor())[1:]
    assert told + missed == client.history(before, limit=50)


def connected_ports(server: Server) -> set[int]:
    """The ports of those who hold an open connection to the server, as the kernel knows them."""
    with open("/proc/net/tcp") as table:
        ends = [line.split()[1:4] for line in table]
    here = f":{server.port:04X}"
    return {int(peer.rpartition(":")[2], 16) for local, peer, state in ends if local.endswith(here) and state == "01"}


@pytest.mark.slow
def test_dropped_peers_that_stay(server: Server, client: Client) -> None:
    """Their sockets are aborted some seconds later: nobody can hold on to the server's memory by doing nothing."""
    with closing(deaf_display(server)) as display, closing(deaf_event_stream(server)) as stream:
        ports = {peer.socket.getsockname()[1] for peer in (display, stream)}
        until(lambda: server.metric(SUBSCRIBERS) == 2, "both are served")
        post_until_dropped(server, client, 2)
        assert connected_ports(server) >= ports
        until(lambda: not connected_ports(server) & ports, "their sockets are gone", app.DROP_SECONDS + DEADLINE)


@both
def test_the_memory_of_peers_that_do_not_read(server: Server, client: Client, deaf: Deaf) -> None:
    """What waits for them is shared and bounded: many of them cost little more than one."""
    peers = [deaf(server) for _ in range(40)]
    try:
        until(lambda: server.metric(SUBSCRIBERS) == len(peers), "all are served")
        before = server.resident_bytes()
        posted = 0

        def all_dropped() -> bool:
            nonlocal posted
            client.place(a_large_order())
            posted += 1
            return server.metric(DROPPED) == len(peers)

        until(all_dropped, "all are dropped")
        for _ in range(100):
            client.place(a_large_order())
            posted += 1
        queued_for_each = posted * 36_000 * len(peers)
        assert server.resident_bytes() - before < queued_for_each / 4
        assert server.metric(SUBSCRIBERS) == 0
    finally:
        for peer in peers:
            peer.close()
