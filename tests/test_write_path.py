"""The write path: group commit, its faults, and what each caller is told."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest

import app
from tests.conftest import Serve
from tests.harness import (
    Backstage,
    Client,
    Display,
    Json,
    Peer,
    Reply,
    Server,
    an_order,
    backstage,
    eventually,
    nobody_leaves,
    parse_problem,
    until,
)


def named(orders: list[Json], name: str) -> list[Json]:
    return [order for order in orders if order["items"][0]["name"] == name]


# ---------------------------------------------------------------------------------------------------------------------
# Idempotency keys
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waiting", [False, True])
def test_concurrent_posts_with_one_key(server: Server, client: Client, waiting: bool) -> None:
    """Duplicates that arrive together, even while the first one is being committed, are one order; all get it."""
    order, callers = an_order(f"Pizza {waiting}"), 24
    barrier = threading.Barrier(callers)

    def post(_: int) -> Reply:
        with closing(server.client()) as caller:
            caller.get("/healthz")
            barrier.wait()
            return caller.post(order, idempotency_key=f"together {waiting}")

    with ThreadPoolExecutor(callers) as pool:
        if waiting:
            with server.held():
                posting = [pool.submit(post, number) for number in range(callers)]
                until(lambda: barrier.n_waiting == 0 and client.get("/healthz").status == 200, "all have posted")
            replies = [task.result() for task in posting]
        else:
            replies = list(pool.map(post, range(callers)))
    assert {reply.status for reply in replies} == {201}
    assert [reply.json for reply in replies] == named(client.orders(), f"Pizza {waiting}") * callers
    assert len({reply.headers["etag"] for reply in replies}) == 1
    assert len({reply.headers["location"] for reply in replies}) == 1
    assert sorted(reply.headers.get("idempotency-replayed", "") for reply in replies) == ["", *["true"] * (callers - 1)]


def test_a_key_after_kill_9(serve: Serve) -> None:
    """A key that was answered is known after a crash: the retry gets the same bytes, and makes no second order."""
    server = serve().start()
    with closing(server.client()) as client:
        before = client.cursor()
        first = client.post(an_order(), idempotency_key="k")
    server.kill()
    server.start()
    with closing(server.client()) as client:
        again = client.post(an_order(), idempotency_key='"k"')
        assert (again.status, again.body) == (first.status, first.body)
        assert (again.headers["location"], again.headers["etag"]) == (first.headers["location"], first.headers["etag"])
        assert (first.headers["idempotency-replayed"], again.headers["idempotency-replayed"]) == (None, "true")
        assert client.orders() == [first.json]
        assert [event["order"] for event in client.history(before)] == [first.json]


def test_a_key_with_another_request(client: Client) -> None:
    """A key stands for one request: with another body, or on another path, it is refused."""
    placed = client.place(an_order(), idempotency_key="taken")
    assert parse_problem(client.post(an_order("Other"), idempotency_key="taken")) == (422, "idempotency_mismatch")
    cancel = client.request("POST", f"/api/order/{placed['id']}/cancel", idempotency_key="taken")
    assert parse_problem(cancel) == (422, "idempotency_mismatch")
    assert client.get(f"/api/order/{placed['id']}").json == placed
    assert client.post(an_order(), idempotency_key="taken").json == placed


@pytest.mark.parametrize("key", ["", '""', "x" * 256])
def test_a_key_that_is_none(client: Client, key: str) -> None:
    """A key has 1 to 255 characters; anything else is refused, and nothing is stored."""
    before = client.cursor()
    assert parse_problem(client.post(an_order(), idempotency_key=key)) == (422, "invalid_request")
    assert client.cursor() == before


def test_a_refused_request_with_a_key(client: Client) -> None:
    """A refusal isn't stored: the same key serves the request that is put right."""
    twin = an_order("Twin", source="till", external_id="refused-1")
    client.place(twin)
    assert parse_problem(client.post({"table": "1", "items": []}, idempotency_key="retry")) == (422, "invalid_request")
    refused = client.post(twin, idempotency_key="retry")
    assert parse_problem(refused) == (409, "duplicate_order")
    placed = client.post(an_order("Put right"), idempotency_key="retry")
    assert (placed.status, placed.headers["idempotency-replayed"]) == (201, None)


def test_an_order_of_the_pos_that_is_posted_at_once(server: Server, client: Client) -> None:
    """One (source, external_id) is one order, however many post it together; the others are shown that one."""
    order = an_order("Unique", source="till", external_id="at-once")

    def post(_: int) -> Reply:
        with closing(server.client()) as caller:
            return caller.post(order)

    with ThreadPoolExecutor(12) as pool:
        replies = sorted(pool.map(post, range(12)), key=lambda reply: reply.status)
    assert [reply.status for reply in replies] == [201, *[409] * 11]
    assert all(reply.json["order"] == replies[0].json for reply in replies[1:])
    assert named(client.orders(), "Unique") == [replies[0].json]


def test_a_replay_of_every_kind_of_write(client: Client) -> None:
    """Each write has its own answer, and a retry with the same key gets that answer, not a later state."""
    order = client.place(an_order("Soup"))
    path = f"/api/order/{order['id']}"
    writes: list[tuple[str, str, Json | None]] = [
        ("PATCH", path, {"note": "window"}),
        ("POST", f"{path}/items", {"items": [{"name": "Bread", "quantity": 2}]}),
        ("PATCH", f"{path}/items/1", {"status": "ready"}),
        ("PATCH", path, {"status": "ready"}),
        ("POST", f"{path}/cancel", {"reason": "left"}),
        ("DELETE", path, None),
    ]
    first = [client.request(*write, idempotency_key=f"kind {place}") for place, write in enumerate(writes)]
    assert [reply.status for reply in first] == [200, 200, 200, 200, 200, 204]
    assert [reply.json["version"] for reply in first[:-1]] == [2, 3, 4, 5, 6]
    log = client.cursor()
    again = [client.request(*write, idempotency_key=f"kind {place}") for place, write in enumerate(writes)]
    assert [(reply.status, reply.body) for reply in again] == [(reply.status, reply.body) for reply in first]
    assert [reply.headers["idempotency-replayed"] for reply in again] == ["true"] * len(writes)
    assert client.cursor() == log


# ---------------------------------------------------------------------------------------------------------------------
# Clients that go away
# ---------------------------------------------------------------------------------------------------------------------

BODY = json.dumps(an_order("Left behind")).encode()


def send_most(peer: Peer, key: str, body: bytes) -> None:
    """The head of a POST, and as much of its body as there is."""
    peer.head_of_post(len(BODY), f"Idempotency-Key: {key}")
    peer.send(body)


DEPARTURES: dict[str, Callable[[Peer, str], None]] = {
    "at once": lambda peer, key: None,
    "in the head": lambda peer, key: peer.send("POST /api/order HTTP/1.1\r\nHost: 127.0"),
    "before the body": lambda peer, key: send_most(peer, key, b""),
    "in the body": lambda peer, key: send_most(peer, key, BODY[:20]),
    "after the body": lambda peer, key: send_most(peer, key, BODY),
}


@pytest.mark.parametrize("leave", [Peer.close, Peer.reset])
@pytest.mark.parametrize("departure", list(DEPARTURES))
def test_a_client_that_leaves(server: Server, client: Client, departure: str, leave: Callable[[Peer], None]) -> None:
    """Whenever a client leaves, the others' orders are committed, and its own is there once, now or when it retries."""
    already = len(named(client.orders(), "Left behind"))
    keys = [f"{departure} {leave.__name__} {number}" for number in range(20)]
    for number, key in enumerate(keys):
        peer = Peer(server.port)
        DEPARTURES[departure](peer, key)
        leave(peer)
        if number % 5 == 0:
            client.place(an_order("Of others"))
    for key in keys:
        assert client.request("POST", "/api/order", BODY, idempotency_key=key).status == 201
    assert len(named(client.orders(), "Left behind")) == already + len(keys)


@pytest.mark.parametrize("leave", [Peer.close, Peer.reset])
def test_a_client_that_leaves_while_its_order_is_committed(
    server: Server, client: Client, leave: Callable[[Peer], None]
) -> None:
    """A commit that is under way is finished for those who left, and told to the screens like any other."""
    key = f"gone {leave.__name__}"
    with closing(Display(server.port)) as display, ThreadPoolExecutor(1) as pool, closing(server.client()) as other:
        display.message()
        with server.held():
            peer = Peer(server.port)
            DEPARTURES["after the body"](peer, key)
            client.get("/healthz")  # an answer shows that the server has read what came before
            waiting = pool.submit(other.post, an_order("Of another"))
            client.get("/healthz")
            leave(peer)
            client.get("/healthz")
        assert waiting.result().status == 201
        told = [display.message()["order"], display.message()["order"]]
        assert [order["items"][0]["name"] for order in told] == ["Left behind", "Of another"]
    replayed = client.request("POST", "/api/order", BODY, idempotency_key=key)
    assert (replayed.json, replayed.headers["idempotency-replayed"]) == (told[0], "true")


# ---------------------------------------------------------------------------------------------------------------------
# A database that can't take it
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_database_that_is_locked_for_too_long(server: Server, client: Client) -> None:
    """Writes are answered 503, definitely not stored; reading goes on; afterwards the same write succeeds."""
    before, listed = client.cursor(), client.orders()
    with server.held(), ThreadPoolExecutor(2) as pool:
        posting = pool.submit(server.client().post, an_order("Locked out"), idempotency_key="l")
        ready = pool.submit(server.client().get, "/readyz")
        assert client.orders() == listed
        for reply in (posting.result(), ready.result()):
            assert parse_problem(reply) == (503, "storage_unavailable")
            assert reply.headers["retry-after"]
    with closing(server.client()) as later:
        assert later.cursor() == before
        assert later.get("/readyz").status == 200
        reply = later.post(an_order("Locked out"), idempotency_key="l")
        assert (reply.status, reply.headers["idempotency-replayed"]) == (201, None)
        assert named(later.orders(), "Locked out") == [reply.json]


class FaultyStorage(app.Storage):
    """A storage whose recall and commit fail, or wait, when they are told to."""

    def __init__(self, url: str = "sqlite://") -> None:
        super().__init__(url)
        self.before_recall: Callable[[], Awaitable[None]] | None = None
        self.before_commit: Callable[[], Awaitable[None]] | None = None
        self.after_commit: Callable[[], Awaitable[None]] | None = None
        self.commits = 0
        self.questions = 0  # how often it was asked what is on record

    async def recall_rows(self, named: dict[str, str]) -> list[Any]:
        self.questions += 1
        return await super().recall_rows(named)

    async def recall(self, writes: Any, surely: bool = False) -> app.Recalled:
        if self.before_recall:
            await self.before_recall()
        return await super().recall(writes, surely)

    async def commit(self, transaction: app.Transaction) -> None:
        if self.before_commit:
            await self.before_commit()
        await super().commit(transaction)
        self.commits += 1
        if self.after_commit:
            await self.after_commit()


def failing(error: Exception) -> Callable[..., Awaitable[Any]]:
    async def fail(*_: Any) -> None:
        raise error

    return fail


ERRORS = [
    app.Problem("storage_unavailable", "The disk is full."),
    sqlite3.IntegrityError("UNIQUE constraint failed"),
    RuntimeError("a bug"),
    TimeoutError(),
]


@pytest.mark.sqlite
@pytest.mark.parametrize("where", ["before_recall", "before_commit"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_commit_that_fails(where: str, error: Exception) -> None:
    """Every caller of the batch gets a definite error, nothing is stored or told, and the next write succeeds."""

    async def scenario() -> None:
        storage = FaultyStorage()
        async with backstage(storage) as behind:
            setattr(storage, where, failing(error))
            async with behind.book.write_lock:
                callers = [asyncio.create_task(behind.place(key=f"k{number}")) for number in range(5)]
                await asyncio.sleep(0)
            answers = await asyncio.gather(*callers, return_exceptions=True)
            assert [type(answer) for answer in answers] == [type(error)] * 5
            assert not behind.book.write_lock.locked()
            assert (await behind.listed(), behind.feed.head) == ([], 0)

            setattr(storage, where, None)
            outcomes = [await behind.place(key=f"k{number}") for number in range(5)]
            assert [(each.order_id, each.replayed) for each in outcomes] == [(number, False) for number in range(1, 6)]

    asyncio.run(scenario())


@contextmanager
def broken_feed(behind: Backstage) -> Iterator[None]:
    """A feed that can't take events, as a bug in it would have it."""

    def fail(events: Any) -> None:
        raise RuntimeError("a bug")

    publish = behind.feed.publish
    behind.feed.publish = fail  # type: ignore[method-assign]
    yield
    behind.feed.publish = publish  # type: ignore[method-assign]


def test_a_broadcast_that_fails() -> None:
    """A commit whose broadcast fails is answered all the same, because it is stored, and the log tells of it later."""

    async def scenario() -> None:
        async with backstage() as behind:
            await behind.place()
            before = behind.cursor()
            with broken_feed(behind):
                assert (await asyncio.wait_for(behind.place(), 5)).order_id == 2
                await behind.book.drain()
            assert (await asyncio.wait_for(behind.place(), 5)).order_id == 3
            told, _ = await behind.manager.changes(before, limit=10, wait=0, receive=nobody_leaves)
            assert [event.order_id for event in told] == [2, 3]

    asyncio.run(scenario())


def test_screens_that_wait_while_a_broadcast_fails() -> None:
    """They are told from the log at once: an order must not be missing from a screen until the next one comes."""

    async def scenario() -> None:
        async with backstage() as behind:
            changes = behind.manager.changes(behind.cursor(), limit=10, wait=10, receive=nobody_leaves)
            waiting = asyncio.create_task(changes)
            await asyncio.sleep(0)
            with broken_feed(behind):
                await asyncio.wait_for(behind.place(), 5)
                await behind.book.drain()
            told, _ = await asyncio.wait_for(waiting, 3)
            assert [event.order_id for event in told] == [1]

    asyncio.run(scenario())


@pytest.mark.sqlite
def test_one_write_of_a_batch_that_is_refused() -> None:
    """It fails alone: each of the others gets its own outcome, out of the one commit."""

    async def scenario() -> None:
        storage = FaultyStorage()
        async with backstage(storage) as behind:
            first = await behind.place(an_order("First", source="till", external_id="1"), key="old")
            unknown = app.Write(app.fire, asyncio.get_running_loop().create_future(), order_id=999)
            stale = app.Write(
                app.fire, asyncio.get_running_loop().create_future(), order_id=1, if_match=frozenset({"7"})
            )
            commits = storage.commits
            async with behind.book.write_lock:
                writes = [
                    behind.write(an_order("Second"), key="new"),
                    behind.write(an_order("Twin", source="till", external_id="1")),
                    behind.write(an_order("First", source="till", external_id="1"), key="old"),
                    behind.write(an_order("Other"), key="new", fingerprint="other"),
                    unknown,
                    behind.write(an_order("Second"), key="new"),
                    stale,
                    behind.write(an_order("Third", source="till", external_id="2")),
                    behind.write(an_order("Its twin", source="till", external_id="2")),
                ]
                callers = [asyncio.create_task(behind.book.submit(write)) for write in writes]
                await asyncio.sleep(0)
            answers = await asyncio.gather(*callers, return_exceptions=True)
            assert storage.commits == commits + 1
            told = [
                answer.code if isinstance(answer, app.Problem) else (answer.order_id, answer.replayed)
                for answer in answers
                if isinstance(answer, (app.Problem, app.Outcome))
            ]
            assert told == [
                (2, False),
                "duplicate_order",
                (1, True),
                "idempotency_mismatch",
                "order_not_found",
                (2, True),
                "version_mismatch",
                (3, False),
                "duplicate_order",
            ]
            replayed = answers[2]
            assert isinstance(replayed, app.Outcome)
            assert replayed.body == first.body
            assert [order["items"][0]["name"] for order in await behind.listed()] == ["First", "Second", "Third"]
            assert behind.feed.head == 3

    asyncio.run(scenario())


@pytest.mark.sqlite
@pytest.mark.parametrize("known", ["key", "pair"])
def test_a_new_order_that_is_on_record(known: str) -> None:
    """Orders are taken to be new. Where one isn't, its commit fails; then all are decided anew, and saved once."""

    async def scenario() -> None:
        storage = FaultyStorage()
        async with backstage(storage) as behind:
            first = await behind.place(an_order("First", source="till", external_id="1"), key="old")
            storage.questions, storage.commits = 0, 0
            async with behind.book.write_lock:
                writes = [
                    behind.write(an_order("Second"), key="new"),
                    behind.write(an_order("First"), key="old")
                    if known == "key"
                    else behind.write(an_order("First", source="till", external_id="1"), key="other"),
                    behind.write(an_order("Third")),
                ]
                callers = [asyncio.create_task(behind.book.submit(write)) for write in writes]
                await asyncio.sleep(0)
            second, again, third = await asyncio.gather(*callers, return_exceptions=True)
            if known == "key":
                assert again == first._replace(replayed=True)
            else:
                assert isinstance(again, app.Problem)
                assert (again.code, again.order and again.order["id"]) == ("duplicate_order", 1)
            assert [each.order_id for each in (second, third) if isinstance(each, app.Outcome)] == [2, 3]
            assert [order["items"][0]["name"] for order in await behind.listed()] == ["First", "Second", "Third"]
            assert [event.seq for event in behind.feed.recent] == [1, 2, 3]
            assert (storage.questions, storage.commits) == (1, 1)

    asyncio.run(scenario())


@pytest.mark.sqlite
def test_a_refusal_among_new_orders() -> None:
    """It is for the reason that comes first, though only the database knows that: the key, before the pair."""

    async def scenario() -> None:
        async with backstage(FaultyStorage()) as behind:
            await behind.place(an_order("First"), key="old")
            async with behind.book.write_lock:
                twins = [an_order("Twin", source="till", external_id="1")] * 2
                writes = [behind.write(twins[0]), behind.write(twins[1], key="old", fingerprint="other")]
                callers = [asyncio.create_task(behind.book.submit(write)) for write in writes]
                await asyncio.sleep(0)
            taken, refused = await asyncio.gather(*callers, return_exceptions=True)
            assert isinstance(taken, app.Outcome)
            assert isinstance(refused, app.Problem)
            assert (taken.order_id, refused.code) == (2, "idempotency_mismatch")

    asyncio.run(scenario())


@pytest.mark.sqlite
@pytest.mark.parametrize("known", [True, False])
def test_what_is_on_record_while_nothing_can_be_saved(known: bool) -> None:
    """A retry gets its answer, as at any time: 503 would say that nothing was stored. `known`: the ledger is."""

    async def scenario() -> None:
        storage = FaultyStorage()
        async with backstage(storage) as behind:
            first = await behind.place(an_order("First", source="till", external_id="1"), key="old")
            if not known:
                storage._ledger = None
            storage.before_commit = failing(app.Problem("storage_unavailable", "The disk is full."))
            async with behind.book.write_lock:
                writes = [
                    behind.write(an_order("Second"), key="new"),
                    behind.write(an_order("First"), key="old"),
                    behind.write(an_order("Second"), key="new"),
                    behind.write(an_order("Other"), key="old", fingerprint="other"),
                    behind.write(an_order("Twin", source="till", external_id="1")),
                ]
                callers = [asyncio.create_task(behind.book.submit(write)) for write in writes]
                await asyncio.sleep(0)
            answers = await asyncio.gather(*callers, return_exceptions=True)
            assert answers[1] == first._replace(replayed=True)
            codes = [answer.code for answer in answers if isinstance(answer, app.Problem)]
            assert codes == [*["storage_unavailable"] * 2, "idempotency_mismatch", "duplicate_order"]
            storage.before_commit = None
            assert (await behind.place(an_order("Second"), key="new")).order_id == 2
            assert [order["items"][0]["name"] for order in await behind.listed()] == ["First", "Second"]

    asyncio.run(scenario())


@pytest.mark.sqlite
def test_what_new_orders_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """No question to the database, but for the first one and after a commit that failed: then nothing is assumed."""

    async def scenario() -> None:
        storage = FaultyStorage()
        async with backstage(storage) as behind:
            for number in range(3):
                await behind.place(an_order(source="till", external_id=f"{number}"), key=f"k{number}")
            assert storage.questions == 1
            monkeypatch.setattr(storage, "write", failing(app.Problem("storage_unavailable", "The disk is full.")))
            with pytest.raises(app.Problem, match="full"):
                await behind.place()
            monkeypatch.undo()
            assert [(await behind.place()).order_id for _ in range(2)] == [4, 5]
            assert storage.questions == 3  # at first, what was on record when the commit failed, and after that
            assert [event.seq for event in behind.feed.recent] == [1, 2, 3, 4, 5]

    asyncio.run(scenario())


def test_a_rule_with_a_bug() -> None:
    """It fails its own write only, though it was decided together with others; nobody is told of it twice."""

    async def scenario() -> None:
        async with backstage() as behind:

            def broken(order: Any, now: str) -> Any:
                raise ZeroDivisionError

            async with behind.book.write_lock:
                bug = app.Write(broken, asyncio.get_running_loop().create_future())
                callers = [asyncio.create_task(behind.place(key=f"k{number}")) for number in range(3)]
                callers.insert(1, asyncio.create_task(behind.book.submit(bug)))
                await asyncio.sleep(0)
            answers = await asyncio.gather(*callers, return_exceptions=True)
            kinds = [type(answer) for answer in answers]
            assert kinds == [app.Outcome, ZeroDivisionError, app.Outcome, app.Outcome]
            assert [order["id"] for order in await behind.listed()] == [1, 2, 3]
            assert [event.seq for event in behind.feed.since(0) or []] == [1, 2, 3]

    asyncio.run(scenario())


@pytest.mark.sqlite
@pytest.mark.parametrize("where", ["before_recall", "before_commit", "after_commit"])
def test_callers_that_are_cancelled(where: str) -> None:
    """Cancelling every caller at any await of a commit doesn't cancel the commit, nor those that wait behind it."""

    async def scenario() -> None:
        storage = FaultyStorage()
        async with backstage(storage) as behind:
            reached, go_on = asyncio.Event(), asyncio.Event()

            async def wait() -> None:
                reached.set()
                await go_on.wait()

            setattr(storage, where, wait)
            callers = [asyncio.create_task(behind.place(key=f"k{number}")) for number in range(3)]
            await reached.wait()
            late = asyncio.create_task(behind.place())
            await asyncio.sleep(0)
            for caller in callers:
                caller.cancel()
            answers = await asyncio.gather(*callers, return_exceptions=True)
            assert [type(answer) for answer in answers] == [asyncio.CancelledError] * 3
            go_on.set()
            assert (await late).order_id == 4
            assert [order["id"] for order in await behind.listed()] == [1, 2, 3, 4]
            assert behind.feed.head == 4
            again = [await behind.place(key=f"k{number}") for number in range(3)]
            assert [(each.order_id, each.replayed) for each in again] == [(1, True), (2, True), (3, True)]

    asyncio.run(scenario())


def test_too_many_writes_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is bounded: one too many is answered 503 at once, and the others are committed."""
    monkeypatch.setattr(app, "MAX_WAITING_WRITES", 3)

    async def scenario() -> None:
        async with backstage() as behind:
            async with behind.book.write_lock:
                callers = [asyncio.create_task(behind.place()) for _ in range(5)]
                await eventually(lambda: callers[4].done(), "the last one is refused")
            answers = await asyncio.gather(*callers, return_exceptions=True)
            refused = [answer for answer in answers if isinstance(answer, app.Problem)]
            assert [problem.code for problem in refused] == ["overloaded"] * 2
            assert app.CODES["overloaded"][0] == 503
            assert len(await behind.listed()) == 3
            assert (await behind.place()).order_id == 4

    asyncio.run(scenario())


@pytest.mark.sqlite
def test_a_batch_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many wait, one commit takes no more than MAX_BATCH, in the order in which they came."""
    monkeypatch.setattr(app, "MAX_BATCH", 4)

    async def scenario() -> None:
        storage = FaultyStorage()
        async with backstage(storage) as behind:
            async with behind.book.write_lock:
                callers = [asyncio.create_task(behind.place(an_order(f"Dish {number}"))) for number in range(10)]
                await asyncio.sleep(0)
            outcomes = await asyncio.gather(*callers)
            assert [each.order_id for each in outcomes] == list(range(1, 11))
            assert storage.commits == 3

    asyncio.run(scenario())


@pytest.mark.sqlite
def test_a_probe_under_load() -> None:
    """While a write arrives during every commit, a probe of readiness, like housekeeping, gets its turn at the lock."""

    async def scenario() -> None:
        storage = FaultyStorage()
        async with backstage(storage) as behind:
            arrived: list[asyncio.Task[app.Outcome]] = []

            async def another_arrives() -> None:
                if len(arrived) < 200:
                    arrived.append(asyncio.create_task(behind.place()))
                    await asyncio.sleep(0)

            storage.before_commit = another_arrives
            await behind.place()
            await behind.book.probe()
            assert len(arrived) < 200
            await asyncio.gather(*arrived)

    asyncio.run(scenario())
