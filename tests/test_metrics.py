"""What Prometheus reads is true: of the WAL, of checkpoints, of the feed's lag, and of what waits for displays."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from tests.conftest import Serve
from tests.harness import Display, Peer, a_large_order, an_order, events, until

CHECKPOINTS = "bistro92_checkpoint_seconds_count"
LAGS = "bistro92_feed_lag_seconds_count"
WAITING = "bistro92_subscriber_queue_bytes"


def test_the_wal_and_its_checkpoints(serve: Serve) -> None:
    """The WAL's size is the file's; a checkpoint counts when SQLite makes one, and what is no checkpoint doesn't."""
    server = serve().start()
    wal = Path(f"{server.file}-wal")
    with closing(server.client()) as client:
        for _ in range(3):
            client.place(an_order())
        assert server.metric(CHECKPOINTS) == 0
        assert server.metric("bistro92_wal_bytes") == wal.stat().st_size > 0
        untouched = server.file.stat().st_mtime_ns
        until(
            lambda: client.place(a_large_order()) and server.file.stat().st_mtime_ns != untouched,
            "the WAL is moved into the database",
        )
        assert server.metric(CHECKPOINTS) == 1
        client.place(an_order())
        assert server.metric(CHECKPOINTS) == 1
        assert server.metric("bistro92_wal_bytes") == wal.stat().st_size


def test_a_database_in_memory_has_no_wal(serve: Serve) -> None:
    """It has no checkpoints either, and the metrics say so."""
    server = serve(database_url="sqlite://").start()
    with closing(server.client()) as client:
        client.place(a_large_order())
    assert (server.metric("bistro92_wal_bytes"), server.metric(CHECKPOINTS)) == (0, 0)


def test_the_lag_of_the_feed(serve: Serve) -> None:
    """Each round that brings events to somebody is one observation; without anybody there is no lag."""
    server = serve().start()
    with closing(server.client()) as client:
        client.place(an_order())
        assert server.metric(LAGS) == 0
        with closing(Display(server.port)) as display:
            display.message()
            for told in range(1, 6):
                order = client.place(an_order())
                assert display.message()["order"] == order
                until(lambda told=told: server.metric(LAGS) == told, "the round is over")  # type: ignore[misc]
    assert server.metric("bistro92_feed_lag_seconds_sum") > 0


def test_what_waits_for_a_display(serve: Serve) -> None:
    """It is nothing for who reads, what isn't sent yet for who doesn't, and nothing again when they have left."""
    server = serve().start()
    with closing(server.client()) as client, closing(Display(server.port)) as display:
        display.message()
        with closing(Peer(server.port, receive_buffer=4096)) as deaf:
            deaf.upgrade()
            until(lambda: server.metric("bistro92_subscribers") == 2, "the deaf one is served")
            until(lambda: server.metric(WAITING) == 0, "it is at the head")
            told = events(display)

            def waits() -> bool:
                order = client.place(a_large_order())
                assert next(told)["order"] == order
                return server.metric(WAITING) > 200_000

            until(waits, "much waits for it")
            assert server.metric(WAITING) <= 1_048_576 + 200_000
        until(lambda: server.metric(WAITING) == 0, "it is gone")
