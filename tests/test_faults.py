"""Faults, injected for real into a real server: each answer is true or an error, and the service recovers by itself.

Clients that leave in mid-request, and a lock that is held for too long, are in test_write_path.py; files that are no
database in test_storage.py; power that is cut in test_power_cut.py.
"""

from __future__ import annotations

import contextlib
import errno
import json
import random
import resource
import socket
import sqlite3
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import Serve
from tests.harness import (
    DEADLINE,
    Client,
    Display,
    Dropped,
    Json,
    Peer,
    Server,
    an_order,
    events_up_to,
    frames,
    parse_problem,
    until,
    without_duplicates,
)
from tests.preload import PreloadedServer, Till, may_mount, named, tills

QUIET = ("--log-level", "warning", "--no-access-log")
STORAGE = (503, "storage_unavailable")
FEW_FILES: Final = 256


def is_ready(client: Client) -> bool:
    return client.get("/readyz").status == 200


def sum_up(posting: list[Till]) -> tuple[dict[str, Json], dict[str, Json]]:
    """What tills were answered with 201, and what with 503."""
    answered = {key: order for till in posting for key, order in till.answered.items()}
    refused = {key: order for till in posting for key, order in till.refused.items()}
    return answered, refused


# ---------------------------------------------------------------------------------------------------------------------
# A disk that is full, or read-only
# ---------------------------------------------------------------------------------------------------------------------


class SmallDisk:
    """A file system of its own, of eight megabytes: a whole WAL fits on it, beside a database of the same size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Take the rest of the room."""
        with self._ballast.open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            while ballast.write(bytes(512)):
                pass

    def free(self) -> None:
        self._ballast.unlink()

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", self.folder], check=True, timeout=DEADLINE)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if not may_mount():
        pytest.skip("needs root on Linux, to mount a file system that is small")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=True, timeout=DEADLINE)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True, timeout=DEADLINE)


@pytest.fixture
def server_on_small_disk(small_disk: SmallDisk, tmp_path: Path) -> Iterator[Server]:
    """Its log is elsewhere, so that it has room to say what is wrong."""
    server = Server(tmp_path, *QUIET, database_url=f"sqlite:///{small_disk.folder}/orders.db")
    server.file = small_disk.folder / "orders.db"
    try:
        yield server.start()
    finally:
        server.end()


def test_a_disk_that_is_full(small_disk: SmallDisk, server_on_small_disk: Server) -> None:
    """Under load each order is taken or refused, and the answer is true; reading goes on; then all goes on."""
    server = server_on_small_disk
    with closing(server.client()) as client, closing(Display(server.port)) as display:
        first = display.message()
        client.place(an_order("before"), idempotency_key="before")
        with tills(server, "full") as posting:
            until(lambda: sum_up(posting)[0], "orders are taken")
            small_disk.fill()
            until(lambda: len(sum_up(posting)[1]) > 20, "orders are refused")
            until(lambda: not is_ready(client), "it isn't ready")
            assert parse_problem(client.get("/readyz")) == STORAGE
            assert client.get("/healthz").status == 200
            assert set(named(client.orders())) >= {"before"}
            taken = len(sum_up(posting)[0])
            small_disk.free()
            until(lambda: len(sum_up(posting)[0]) > taken + 20, "orders are taken again")
            until(lambda: is_ready(client), "it is ready again")
        answered, refused = sum_up(posting)
        found = named(client.orders())
        assert {key: order for key, order in found.items() if key != "before"} == answered
        told = events_up_to(display, client.cursor())
        assert [event["order"] for event in told] == client.orders()[::-1]
        for key, order in refused.items():
            answered[key] = client.place(order, idempotency_key=key)
        assert len(named(client.orders())) == len(answered) + 1
    assert first["orders"] == []
    server.kill()
    server.start()
    with closing(server.client()) as client:
        assert {key: order for key, order in named(client.orders()).items() if key != "before"} == answered


def test_a_disk_with_room_for_a_small_commit(small_disk: SmallDisk, server_on_small_disk: Server) -> None:
    """It isn't ready where an order would find no room, though one page would."""
    server = server_on_small_disk
    server.stop()
    with closing(server.start().client()) as client, closing(sqlite3.connect(server.file)) as other:
        assert other.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0  # the next commit begins the WAL anew
        assert Path(f"{server.file}-wal").stat().st_size < 20_000
        small_disk.fill()
        assert parse_problem(client.get("/readyz")) == STORAGE
        assert parse_problem(client.post(an_order())) == STORAGE
        small_disk.free()
        until(lambda: is_ready(client), "it is ready again")
        client.place(an_order())


def refuses_to_start(server: Server) -> str:
    """The sentence with which a start ends."""
    before = len(server.log)
    assert server.launch().wait(DEADLINE) != 0
    said = server.log[before:]
    assert "Traceback" not in said
    return said


def test_a_start_on_a_full_disk(small_disk: SmallDisk, server_on_small_disk: Server) -> None:
    """It is refused with a sentence, or serves what is there; nothing is lost; with room it starts and takes orders."""
    server = server_on_small_disk
    with closing(server.client()) as client:
        order = client.place(an_order())
    server.kill()
    small_disk.fill()
    server.launch()
    if not serves_in_time(server):
        assert f"{server.file} cannot be used as a database: " in server.log
        assert "Traceback" not in server.log
        small_disk.free()
        server.start()
    else:
        with closing(server.client()) as client:
            assert client.orders() == [order]
            small_disk.free()
    with closing(server.client()) as client:
        assert client.orders() == [order]
        client.place(an_order())


def serves_in_time(server: Server) -> bool:
    """Whether a server that was launched serves; False where it has ended."""

    def decided() -> str | None:
        if server.running.poll() is not None:
            return "ended"
        with contextlib.suppress(OSError), closing(server.client()) as client:
            return "serves" if client.get("/healthz").status == 200 else None
        return None

    return until(decided, "the server serves or ends") == "serves"


def test_a_start_on_a_read_only_disk(small_disk: SmallDisk, server_on_small_disk: Server) -> None:
    """It is refused with a sentence, and nothing is changed; when the disk can be written to, it starts."""
    server = server_on_small_disk
    with closing(server.client()) as client:
        order = client.place(an_order())
    server.kill()
    content = {path.name: path.read_bytes() for path in small_disk.folder.iterdir()}
    small_disk.remount("ro")
    assert f"{server.file} cannot be used as a database: " in refuses_to_start(server)
    assert {path.name: path.read_bytes() for path in small_disk.folder.iterdir()} == content
    small_disk.remount("rw")
    server.start()
    with closing(server.client()) as client:
        assert client.orders() == [order]


# ---------------------------------------------------------------------------------------------------------------------
# A disk that fails
# ---------------------------------------------------------------------------------------------------------------------

FAILURES = {
    "a sync, with EIO": ("fdatasync", errno.EIO),
    "a sync, with ENOSPC": ("fdatasync", errno.ENOSPC),
    "a write, with EIO": ("pwrite", errno.EIO),
    "a write, with EROFS": ("pwrite", errno.EROFS),
}


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreloadedServer]:
    """A server whose files and clock the tests hold in their hand."""
    server = PreloadedServer(tmp_path_factory.mktemp("preloaded"), *QUIET)
    try:
        server.start()
        yield server
    finally:
        server.end()


@pytest.mark.parametrize("failure", list(FAILURES))
def test_a_disk_that_fails_at_a_commit(preloaded: PreloadedServer, failure: str) -> None:
    """Orders are refused while it lasts, reading goes on, /readyz tells; afterwards all goes on by itself."""
    with closing(preloaded.client()) as client, closing(Display(preloaded.port, after=client.cursor())) as display:
        display.message()
        before = client.orders()
        with tills(preloaded, failure) as posting:
            until(lambda: sum_up(posting)[0], "orders are taken")
            with preloaded.failing(*FAILURES[failure]):
                until(lambda: len(sum_up(posting)[1]) > 20, "orders are refused")
                until(lambda: not is_ready(client), "it isn't ready")
                assert parse_problem(client.get("/readyz")) == STORAGE
                taken = len(client.orders())
                assert parse_problem(client.post(an_order("Refused"))) == STORAGE
                assert len(client.orders()) == taken
            until(lambda: len(sum_up(posting)[0]) > taken - len(before) + 20, "orders are taken again")
            assert is_ready(client)
        answered, refused = sum_up(posting)
        new = client.orders()[: -len(before) or None]
        assert named(new) == answered
        assert not set(refused) & set(answered)
        told = events_up_to(display, client.cursor())
        assert [event["order"] for event in told] == new[::-1]


@pytest.mark.parametrize("failure", list(FAILURES))
def test_a_crash_right_after_a_commit_that_failed(preloaded: PreloadedServer, failure: str) -> None:
    """An order that was answered 503 stays away: a sync that failed may leave a whole commit in the WAL."""
    with closing(preloaded.client()) as client:
        order = client.place(an_order("Kept"))
        with preloaded.failing(*FAILURES[failure]):
            assert parse_problem(client.post(an_order("Refused"), idempotency_key=failure)) == STORAGE
            preloaded.kill()
    preloaded.start()
    with closing(preloaded.client()) as client:
        assert client.orders()[0] == order
        again = client.post(an_order("Refused"), idempotency_key=failure)
        assert (again.status, again.headers["idempotency-replayed"]) == (201, None)
        assert again.json["id"] == order["id"] + 1


def test_a_lock_that_is_held_for_a_while(serve: Serve) -> None:
    """Orders that are posted meanwhile wait, and are taken: nobody is refused for less than the busy timeout."""
    server = serve(*QUIET).start()
    with closing(server.client()) as client, tills(server, "lock") as posting:
        for _ in range(3):
            with closing(sqlite3.connect(server.file, isolation_level=None)) as foreign:
                foreign.execute("BEGIN IMMEDIATE")
                answered = len(sum_up(posting)[0])
                until(lambda: sum(len(till.unanswered) for till in posting) == len(posting), "all of them wait")
                end = time.monotonic() + 0.5
                until(lambda: time.monotonic() > end, "half a second has passed")  # noqa: B023
                assert client.get("/api/orders?limit=1").status == 200
                assert len(sum_up(posting)[0]) <= answered + len(posting)
                foreign.execute("COMMIT")
            until(lambda: len(sum_up(posting)[0]) > answered + 20, "orders are taken again")  # noqa: B023
    answered_orders, refused = sum_up(posting)
    with closing(server.client()) as client:
        assert not refused
        assert named(client.orders()) == answered_orders


# ---------------------------------------------------------------------------------------------------------------------
# A clock that is set
# ---------------------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_and_forth(preloaded: PreloadedServer) -> None:
    """Ids, versions and the log go on in order, whatever the clock shows; cursors resume; answers stay answers."""
    day = 86_400
    with closing(preloaded.client()) as client:
        beginning = client.cursor()
        made: list[Json] = []
        for number, seconds in enumerate([0, -day, -400 * day, 60, -60, 0]):
            preloaded.set_clock(seconds)
            order = client.place(an_order(f"Clock {number}"), idempotency_key=f"clock {number}")
            path = f"/api/order/{order['id']}"
            assert client.request("PATCH", path, {"status": "preparing"}, if_match='"1"').json["version"] == 2
            preloaded.set_clock(seconds - 3600)  # between two changes of one order
            changed = client.request("PATCH", path, {"status": "ready"}, if_match='"2"').json
            assert (changed["version"], changed["status"]) == (3, "ready")
            again = client.post(an_order(f"Clock {number}"), idempotency_key=f"clock {number}")
            assert (again.json, again.headers["idempotency-replayed"]) == (order, "true")
            stats = client.get("/api/stats")
            assert stats.status == 200
            assert (stats.json["oldest_open_seconds"] or 0) >= 0
            assert is_ready(client)
            made.append(order)
        log = client.history(beginning)
        assert [int(event["cursor"].rpartition("-")[2]) for event in log] == list(
            range(int(beginning.rpartition("-")[2]) + 1, int(beginning.rpartition("-")[2]) + 1 + 3 * len(made))
        )
        assert [event["order"]["version"] for event in log] == [1, 2, 3] * len(made)
        assert [order["id"] for order in made] == list(range(made[0]["id"], made[0]["id"] + len(made)))
        with closing(Display(preloaded.port, after=beginning)) as display:
            assert events_up_to(display, client.cursor())[1:] == log
    preloaded.kill()
    preloaded.set_clock(-day)
    preloaded.start()
    with closing(preloaded.client()) as client:
        assert client.history(beginning) == log
        assert client.place(an_order())["id"] == made[-1]["id"] + 1
    preloaded.set_clock(0)
    assert "Traceback" not in preloaded.log


def test_a_flood_of_probes(serve: Serve) -> None:
    """Who may ask whether it is ready, which is anybody, can't wear out the disk: room is asked for once a second."""
    server = serve(*QUIET).start()
    with closing(server.client()) as client:
        began = time.monotonic()
        assert all(is_ready(client) for _ in range(200))
        lasted = time.monotonic() - began
    assert Path(f"{server.file}-wal").stat().st_size < 200 * 4200 + 100_000 * (lasted + 2)


def test_a_clock_that_is_four_days_ahead_for_a_while(tmp_path: Path) -> None:
    """What is tidied away meanwhile is what was old before: a fresh key still replays, a fresh cursor resumes."""
    server = PreloadedServer(tmp_path, *QUIET, alter={"HOUSEKEEPING_PERIOD": 0.05}, event_retention_hours=24)
    with closing(server.start().client()) as client, contextlib.ExitStack() as end:
        end.callback(server.end)
        cursor = client.cursor()
        order = client.place(an_order(), idempotency_key="fresh")
        old = client.place(an_order(), idempotency_key="old")
        with closing(sqlite3.connect(server.file)) as database, database:
            server.set_clock(4 * 86_400)
            tomorrow = f"{order['created_at'][:10]}T99"
            until(lambda: client.get("/api/stats").json["server_time"] > tomorrow, "the clock is ahead")
            # Keys are tidied away oldest first: when this one is gone, the fresh one was looked at, too.
            database.execute("UPDATE idempotency_keys SET at = '2001', rowid = -1 WHERE key = 'old'")
            database.commit()
            count = "SELECT count(*) FROM idempotency_keys WHERE key = 'old'"
            until(lambda: database.execute(count).fetchone() == (0,), "it is tidied")
        server.set_clock(0)
        again = client.post(an_order(), idempotency_key="fresh")
        assert (again.json, again.headers["idempotency-replayed"]) == (order, "true")
        assert [event["order"] for event in client.history(cursor)] == [order, old]


# ---------------------------------------------------------------------------------------------------------------------
# Peers that mean harm, or are broken
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def room_for_sockets(wanted: int) -> Iterator[None]:
    """Let this process, and a server that it starts, have so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


HALF_OPEN = {
    "nothing": b"",
    "a part of the head": b"POST /api/order HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
    "the head": b"POST /api/order HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 60\r\n\r\n",
    "a part of the body": b'POST /api/order HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 60\r\n\r\n{"table": ',
    "a part of a handshake": b"GET /ws/orders HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upg",
}


def test_half_open_sockets(serve: Serve, request: pytest.FixtureRequest) -> None:
    """Orders are taken beside any number of sockets that say nothing or too little, byte by byte; none of it stays."""
    count = request.config.getoption("--half-open")
    sent = list(HALF_OPEN.values())
    with room_for_sockets(count + 500):
        server = serve(*QUIET).start()
        files = Path(f"/proc/{server.running.pid}/fd")
        with closing(server.client()) as client, contextlib.ExitStack() as peers:
            client.place(an_order())
            before = len(list(files.iterdir()))
            half_open = [peers.enter_context(closing(Peer(server.port))) for _ in range(count)]
            for number, peer in enumerate(half_open):
                peer.send(sent[number % len(sent)])
            until(lambda: len(list(files.iterdir())) >= before + count, "the server has them all")
            with tills(server, "beside") as posting:
                drip(half_open, sent)
                taken = len(sum_up(posting)[0])
                drip(half_open, sent)
                until(lambda: len(sum_up(posting)[0]) > taken + 100, "orders are taken")
                assert is_ready(client)
            answered, refused = sum_up(posting)
            assert not refused
            assert len(client.orders()) == len(answered) + 1
            for peer in half_open[::2]:
                peer.reset()
            peers.close()
            until(lambda: len(list(files.iterdir())) <= before, "their sockets are closed")
        assert server.log == ""


def drip(peers: list[Peer], sent: list[bytes]) -> None:
    """One more byte from each that hasn't said nothing."""
    for number, peer in enumerate(peers):
        if sent[number % len(sent)]:
            with contextlib.suppress(ConnectionError):
                peer.send(b"x")


def test_more_sockets_than_a_process_may_have(serve: Serve) -> None:
    """It serves again as soon as there is room, and has lost nothing."""
    server = serve(*QUIET).start()
    resource.prlimit(server.running.pid, resource.RLIMIT_NOFILE, (FEW_FILES, FEW_FILES))
    with closing(server.client()) as early:
        early.place(an_order("Early"))
        with contextlib.ExitStack() as peers:
            for number in range(FEW_FILES + 100):
                with contextlib.suppress(OSError):
                    peers.enter_context(closing(Peer(server.port)))
                if number % 20 == 0:  # an idle connection would be closed
                    early.place(an_order("Among them"))
            end = time.monotonic() + 1.5  # the server's own work has its turns meanwhile
            until(lambda: early.place(an_order("Among them")) and time.monotonic() > end, "orders are taken")
            assert early.get("/readyz").status == 200
        until(lambda: takes_orders(server), "it takes orders from new clients")
        assert early.get("/readyz").status == 200


def takes_orders(server: Server) -> bool:
    with contextlib.suppress(OSError), closing(server.client()) as client:
        return client.post(an_order("Late")).status == 201
    return False


@pytest.mark.parametrize("parser", ["httptools", "h11"])
def test_headers_that_never_end(serve: Serve, parser: str) -> None:
    """Who says nothing, or drips a header, is cut off in time (10 s; here it is 1), on a kept connection, too.

    Whoever waits for the server, or for its own next request, stays; a display and a till work on.
    """
    server = serve(*QUIET, "--http", parser, "--timeout-keep-alive", "60").alter(HEADER_SECONDS=1).start()
    with closing(server.client()) as client, closing(Display(server.port)) as display, contextlib.ExitStack() as peers:
        display.message()
        silent, first, second, idle, poll = (peers.enter_context(closing(Peer(server.port))) for _ in range(5))
        poll.get(f"/api/changes?after={client.cursor()}&wait=60")
        for kept in (second, idle):
            kept.get("/healthz")
            hears(kept, b"alive")
        first.send("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Drip: ")
        second.send("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Drip: ")
        waiting = {silent, first, second}
        for peer in waiting:
            peer.socket.settimeout(0.05)

        def all_cut_off() -> bool:
            for peer in list(waiting):
                try:
                    if peer is not silent:
                        peer.send(b"x")
                    closed = peer.socket.recv(1) == b""
                except TimeoutError:
                    closed = False
                except ConnectionError:
                    closed = True
                if closed:
                    waiting.remove(peer)
            return not waiting

        until(all_cut_off, "each is cut off")
        order = client.place(an_order())
        assert display.message()["order"] == order
        hears(poll, b"new_order")
        idle.get("/healthz")
        hears(idle, b"alive")
    assert server.log == ""


def hears(peer: Peer, words: bytes) -> None:
    """Read until the server has said something."""
    heard = b""
    while words not in heard:
        part = peer.socket.recv(65_536)
        assert part, heard
        heard += part


def test_a_body_that_never_ends(tmp_path: Path) -> None:
    """It is cut off in time (20 seconds; here it is 2), however steadily it drips."""
    server = PreloadedServer(tmp_path, *QUIET, alter={"BODY_SECONDS": 2})
    with closing(server.start().client()) as client, closing(Peer(server.port)) as peer, contextlib.ExitStack() as end:
        end.callback(server.end)
        peer.head_of_post(100_000)
        began = time.monotonic()
        peer.socket.settimeout(0.25)

        def cut_off() -> bool:
            try:
                peer.send(b" ")
                return peer.socket.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        until(cut_off, "it is cut off", 10)
        assert time.monotonic() - began > 1.5
        assert client.place(an_order())["id"] == 1


# ---------------------------------------------------------------------------------------------------------------------
# What means nothing
# ---------------------------------------------------------------------------------------------------------------------


def mutilated(chance: random.Random) -> bytes:
    """A body that is nearly an order, or nothing like one."""
    body = bytearray(json.dumps(an_order(note="no nuts", station="grill")).encode())
    kind = chance.randrange(8)
    if kind == 0:
        return chance.randbytes(chance.randrange(300))
    if kind == 1:
        return bytes(body[: chance.randrange(len(body))])
    if kind == 2:
        return b"[" * chance.randrange(1, 5000)
    if kind == 3:
        return json.dumps(an_order(quantity=chance.choice([None, 1e999, -1, 2**70, "1", [], {}]))).encode()
    if kind == 4:
        return bytes(body).replace(b"Burger", chance.choice([b"\xff\xfe", b"\\ud800", b"\\u0000", b"\x00", b"\\x"]))
    if kind == 5:
        return bytes(body).replace(b"1", chance.choice([b"1e400", b"-0", b"NaN", b"Infinity", b"9" * 5000, b"0x1"]))
    for _ in range(chance.randrange(1, 6)):
        body[chance.randrange(len(body))] = chance.randrange(256)
    return bytes(body)


def test_malformed_bodies(serve: Serve, request: pytest.FixtureRequest) -> None:
    """Each is answered with what is wrong with it (4xx), or is an order after all; none is a server's mistake."""
    chance = random.Random(92)
    server = serve(*QUIET).start()
    paths = ["/api/order"] * 5 + ["/api/order/1/items", "/api/order/1/cancel", "/api/register", "/api/login"]
    methods = ["POST"] * 6 + ["PATCH", "PUT", "DELETE"]
    taken = 0
    with closing(server.client()) as client:
        client.place(an_order())
        for _ in range(request.config.getoption("--malformed")):
            path, method = chance.choice(paths), chance.choice(methods)
            reply = client.request(method, path, mutilated(chance))
            assert reply.status < 500, (method, path, reply.body)
            taken += (reply.status, path) == (201, "/api/order")
        assert is_ready(client)
        assert len(client.orders()) == taken + 1
    assert not [line for line in server.log.splitlines() if not line.startswith("{")]
    assert {line["level"] for line in server.lines} == {"warning"}


def frame(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    """A frame as a client sends it, or as it mustn't."""
    first = fin << 7 | reserved << 4 | opcode
    size = len(payload)
    length = size if size < 126 else 126 if size < 65_536 else 127
    extended = b"" if size < 126 else struct.pack("!H" if size < 65_536 else "!Q", size)
    mask = b"mask" if masked else b""
    content = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if masked else payload
    return bytes([first, masked << 7 | length]) + extended + mask + content


A_LONG_FRAME: Final = frame(1, b"x" * 70_000)


def nonsense(chance: random.Random) -> bytes:
    """What no display would send: broken frames, in every way that there is."""
    payload = chance.randbytes(chance.randrange(200))
    return chance.choice(
        [
            chance.randbytes(chance.randrange(1, 100)),
            frame(1, payload),  # not UTF-8, mostly
            frame(1, b"hello", masked=False),
            frame(chance.choice([3, 4, 5, 6, 7, 11, 15]), payload),
            frame(1, b"hello", reserved=chance.randrange(1, 8)),
            frame(0, b"a continuation of nothing"),
            frame(1, b"begun", fin=False) + frame(1, b"and begun again"),
            frame(9, bytes(126)),  # a control frame may not be as long
            frame(9, b"ping", fin=False),
            frame(8, b"\x03"),  # half a close code
            frame(8, struct.pack("!H", chance.choice([0, 999, 1005, 1006, 5000])) + b"why"),
            frame(8, struct.pack("!H", 1000) + b"\xff\xff"),
            b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xffmask",  # as long as a number can say
            b"\x81\xfe\xff\xffmask" + payload,  # and then nothing more
            frame(2, payload),
            A_LONG_FRAME,
        ]
    )


def test_malformed_frames(serve: Serve, request: pytest.FixtureRequest) -> None:
    """A socket that talks nonsense is answered or closed; the displays beside it, and the log, hear nothing of it."""
    chance = random.Random(92)
    server = serve(*QUIET).start()
    with closing(Display(server.port)) as display:
        display.message()
        for number in range(request.config.getoption("--malformed") // 5):
            with closing(Peer(server.port)) as peer:
                peer.upgrade()
                for _ in range(5):
                    with contextlib.suppress(ConnectionError):
                        peer.send(nonsense(chance))
                if number % 4 == 0:
                    peer.reset()
                else:
                    with contextlib.suppress(OSError):
                        peer.socket.shutdown(socket.SHUT_WR)
                        said = peer.read_all().partition(b"\r\n\r\n")[2]
                        opcodes = [opcode for opcode, _ in frames(said)]
                        assert set(opcodes) <= {1, 8}
                        assert 8 not in opcodes[:-1], "something was said after the close"
            if number % 50 == 0:
                with closing(server.client()) as client:  # anew: one that is idle for five seconds is let go
                    order = client.place(an_order(f"Beside {number}"))
                assert display.message()["order"] == order
    with closing(server.client()) as client:
        until(lambda: client.get("/api/stats").json["subscribers"] == 0, "nobody is left")
        assert is_ready(client)
    assert "app.py" not in server.log  # uvicorn may say that a text was not UTF-8


# ---------------------------------------------------------------------------------------------------------------------
# A storm
# ---------------------------------------------------------------------------------------------------------------------

STORMERS, RECONNECTS = 8, 25


def test_a_storm_of_reconnects(serve: Serve) -> None:
    """Displays that lose their Wi-Fi all the time get each event once, in order; nothing of them is left behind."""
    server = serve(*QUIET).start()
    files = Path(f"/proc/{server.running.pid}/fd")
    with closing(server.client()) as client:
        cursor = client.cursor()
        before = len(list(files.iterdir()))
        finished = threading.Event()

        def reconnect(seed: int) -> list[Json]:
            """Connect again and again, read a little, vanish; at last read up to the end."""
            chance, position, told = random.Random(seed), cursor, list[Json]()
            for _ in range(RECONNECTS):
                display = Display(server.port, after=position)
                assert display.message()["type"] == "resumed"
                with contextlib.suppress(TimeoutError, Dropped):
                    for _ in range(chance.randrange(8)):
                        event = display.message(0.05)
                        told.append(event["order"])
                        position = event["cursor"]
                if chance.random() < 0.5:  # out of range: it says nothing any more
                    raw = display.socket.socket
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    with contextlib.suppress(OSError):
                        raw.shutdown(socket.SHUT_RDWR)
                display.close()
            finished.wait(DEADLINE)
            with closing(Display(server.port, after=position)) as display:
                end = client_cursor[0]
                while position != end:
                    event = display.message()
                    position = event["cursor"]
                    if event["type"] != "resumed":
                        told.append(event["order"])
            return told

        client_cursor: list[str] = []
        with ThreadPoolExecutor(STORMERS) as pool:
            with tills(server, "storm", 2) as posting:
                storming = [pool.submit(reconnect, seed) for seed in range(STORMERS)]
                until(lambda: len(sum_up(posting)[0]) > 200, "orders are taken in the storm")
            client_cursor.append(client.cursor())
            finished.set()
            told = [stormer.result(60) for stormer in storming]
        orders = client.orders()[::-1]
        assert named(orders) == sum_up(posting)[0]
        assert told == [orders] * STORMERS
        assert without_duplicates(order["id"] for order in orders)
        until(lambda: client.get("/api/stats").json["subscribers"] == 0, "nobody is counted any more")
        until(lambda: len(list(files.iterdir())) <= before, "their sockets are closed")
    assert server.log == ""
