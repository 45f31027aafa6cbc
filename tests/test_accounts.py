"""Accounts: who is let in, what each may do, and how a door that was open is shut again.

    1. Callers             clients that show who they are
    2. Protected mode      before there is an account
    3. Accounts, logins    register, log in, log out; guessing is slow
    4. Tokens              created, listed, revoked, expired
    5. Roles               every endpoint, every role
    6. Browsers            cookies and origins
    7. Limits and traces   rates, idempotency keys, the audit trail, secrets
"""

from __future__ import annotations

import hashlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import pytest
from websockets.exceptions import InvalidStatus

from tests.conftest import Serve
from tests.harness import (
    Client,
    Display,
    Dropped,
    EventStream,
    Json,
    Peer,
    Reply,
    Screen,
    Server,
    a_large_order,
    an_order,
    events,
    parse_problem,
    until,
)

PASSWORD: Final = "correct horse battery"
PROMPTLY: Final = 5.0
"""Seconds in which a screen has to be gone: the contract says about one, a busy machine takes its time."""
ROLES: Final = ("manager", "pos", "kitchen", "viewer")
numbers: Final = count(1)


def new_name() -> str:
    """A name that nobody has."""
    return f"name-{next(numbers)}"


# ---------------------------------------------------------------------------------------------------------------------
# 1. Callers
# ---------------------------------------------------------------------------------------------------------------------


class Caller(Client):
    """A client that shows something with every request: a token, a cookie, another Host.

    It connects anew for each, because the server closes connections that are idle for long.
    """

    def __init__(self, port: int, **shown: str) -> None:
        super().__init__(port)
        self.port, self.shown = port, shown

    def request(self, method: str, path: str, body: Json | bytes | None = None, **headers: str) -> Reply:
        self.close()
        return super().request(method, path, body, **{**self.shown, **headers})

    def display(self) -> Display:
        return Display(self.port, headers={name.replace("_", "-"): value for name, value in self.shown.items()})

    def stream(self) -> EventStream:
        headers = {name.replace("_", "-"): value for name, value in self.shown.items()}
        return EventStream(self.port, headers=headers, deadline=PROMPTLY)

    def ask_for_stream(self) -> Reply:
        """How a stream is answered; of one that is opened, only the head is read."""
        with closing(self.stream()) as stream:
            body = b"" if stream.response.status == 200 else stream.response.read()
            return Reply(stream.response.status, stream.response.headers, body)

    def shake_hands(self, **headers: str) -> Reply:
        """Ask for a socket, in a handshake whose every header can be chosen; 101 where one is opened."""
        upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec_websocket_version": "13"}
        reply = self.get("/ws/orders", sec_websocket_key="AAAAAAAAAAAAAAAAAAAAAA==", **upgrade, **headers)
        self.close()
        return reply

    def register(self, username: str, role: str | None = None, password: str = PASSWORD, **headers: str) -> Reply:
        named = {} if role is None else {"role": role}
        body = {"username": username, "password": password, **named}
        return self.request("POST", "/api/register", body, **headers)

    def login(self, username: str = "boss", password: str = PASSWORD, **headers: str) -> Reply:
        return self.request("POST", "/api/login", {"username": username, "password": password}, **headers)

    def device(self, role: str, **more: Any) -> Device:
        """Let a device in, as a manager."""
        reply = self.request("POST", "/api/tokens", {"name": f"the {role}", "role": role, **more})
        assert reply.status == 201, reply.body
        return Device(reply.json["id"], reply.json["token"], bearer(self.port, reply.json["token"]))

    def revoke(self, token_id: int) -> Reply:
        return self.request("DELETE", f"/api/tokens/{token_id}")


class Device(NamedTuple):
    """A token that a manager created, and a client that shows it."""

    id: int
    secret: str
    caller: Caller


def bearer(port: int, secret: str) -> Caller:
    return Caller(port, authorization=f"Bearer {secret}")


def open_house(server: Server) -> Caller:
    """Create the first account, log in; returns the manager."""
    with closing(Caller(server.port)) as nobody:
        assert nobody.register("boss").status == 201
        return bearer(server.port, nobody.login().json["token"])


def close_code(screen: Screen) -> int | None:
    """With what the server ends a screen; fails where it doesn't do so promptly."""
    end = time.monotonic() + PROMPTLY
    with closing(screen):
        try:
            while time.monotonic() < end:
                screen.message()
        except Dropped as dropped:
            return dropped.code
    raise AssertionError("the screen is still served")


def from_now(**span: float) -> str:
    return (datetime.now(UTC) + timedelta(**span)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(scope="module")
def staff(server: Server) -> Iterator[dict[str, Caller]]:
    """A client for each role, and `nobody`, at a server that has accounts: `boss` is its manager."""
    boss = open_house(server)
    callers = {role: boss.device(role).caller for role in ROLES}
    with ExitStack() as stack:
        for caller in (boss, *callers.values()):
            stack.callback(caller.close)
        nobody = Caller(server.port)
        stack.callback(nobody.close)
        yield {**callers, "nobody": nobody}


@pytest.fixture
def boss(staff: dict[str, Caller]) -> Caller:
    return staff["manager"]


@pytest.fixture
def nobody(staff: dict[str, Caller]) -> Caller:
    return staff["nobody"]


# ---------------------------------------------------------------------------------------------------------------------
# 2. Protected mode
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without accounts, for tests that create none; it listens on every address."""
    server = Server(tmp_path_factory.mktemp("fresh"), "--host", "0.0.0.0")  # noqa: S104
    try:
        yield server.start()
    finally:
        server.end()


def shut_out(caller: Caller) -> None:
    """Nothing is served to this one: no read, no write, no page, no socket, no stream; it is told what to do."""
    with closing(caller):
        replies = [
            caller.get("/api/orders"),
            caller.get("/"),
            caller.get("/healthz"),
            caller.get("/nothing"),
            caller.ask_for_stream(),
            caller.request("OPTIONS", "/api/order", origin="https://evil.example"),
            caller.post(an_order()),
            caller.register("intruder"),
            caller.login(),
            caller.shake_hands(),
        ]
    for reply in replies:
        assert parse_problem(reply) == (403, "protected_mode")
        assert "first account" in reply.json["detail"]
        assert "/api/register" in reply.json["detail"]


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000"])
def test_protected_mode_loopback_host(fresh: Server, host: str) -> None:
    """On the machine itself everything works without a password, under each of its loopback names."""
    with closing(Caller(fresh.port, host=host)) as caller:
        order = caller.place(an_order())
        assert [event["by"] for event in caller.get(f"/api/order/{order['id']}/events").json] == [None]
        assert caller.get("/api/tokens").status == 200
        assert caller.shake_hands().status == 101


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example:80",
        "127.0.0.1@evil.example",
        "evil.example:80:127.0.0.1",
        "[::1].evil.example",
        "192.0.2.1:8000",
        "",
    ],
)
def test_protected_mode_rebound_host(fresh: Server, host: str) -> None:
    """A page whose name was rebound to 127.0.0.1 shows its name in Host, and is served nothing."""
    shut_out(Caller(fresh.port, host=host))


def test_protected_mode_two_hosts(fresh: Server) -> None:
    """A request that names two hosts can't hide one behind the other."""
    for hosts in (("localhost", "evil.example"), ("evil.example", "localhost")):
        with closing(Peer(fresh.port)) as peer:
            lines = [f"Host: {host}" for host in hosts]
            peer.send("\r\n".join(["GET /api/orders HTTP/1.1", *lines, "Connection: close", "", ""]))
            assert peer.read_all().partition(b"\r\n")[0] in {b"HTTP/1.1 403 Forbidden", b"HTTP/1.1 400 Bad Request"}


@pytest.mark.parametrize(
    "header",
    [
        {"x_forwarded_for": "127.0.0.1"},
        {"x_forwarded_for": "203.0.113.9"},
        {"x_forwarded_for": ""},
        {"forwarded": "for=203.0.113.9"},
        {"x_forwarded_host": "localhost"},
        {"x_forwarded_proto": "https"},
        {"x_forwarded_port": "443"},
        {"x_real_ip": "127.0.0.1"},
        {"via": "1.1 proxy"},
    ],
)
def test_protected_mode_forwarded_request(fresh: Server, header: dict[str, str]) -> None:
    """What a proxy on this machine forwards comes from elsewhere, whatever it says."""
    shut_out(Caller(fresh.port, **header))


def test_protected_mode_other_address(fresh: Server) -> None:
    """Who doesn't come over the loopback interface is served nothing, whatever Host it names."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; the system chooses the address to send from
        except OSError:
            pytest.skip("this machine has no address but its loopback")
        address: str = probe.getsockname()[0]
    with socket.create_connection((address, fresh.port), timeout=PROMPTLY) as outside:
        outside.sendall(b"GET /api/orders HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: outside.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"protected_mode" in answer


def test_protected_mode_foreign_page(fresh: Server) -> None:
    """A web page that the manager has open elsewhere can neither write here nor open a socket."""
    with closing(Caller(fresh.port, origin="https://evil.example")) as page:
        assert parse_problem(page.register("intruder")) == (403, "forbidden_origin")
        assert parse_problem(page.post(an_order())) == (403, "forbidden_origin")
        assert parse_problem(page.shake_hands()) == (403, "forbidden_origin")


def test_protected_mode_ends_with_the_first_account(serve: Serve) -> None:
    """The first account shuts the door: requests need a token, and screens that were let in before are sent off."""
    server = serve().start()
    local = Caller(server.port)
    display, stream = local.display(), local.stream()
    assert display.message()["type"] == stream.message()["type"] == "initial"
    with ThreadPoolExecutor(1) as pool, closing(local):
        polling = Caller(server.port)
        poll = pool.submit(polling.changes, after=local.cursor(), wait=60)
        until(lambda: server.metric("bistro92_subscribers") == 3, "the poll waits")
        boss = open_house(server)
        assert close_code(display) == 1008
        assert close_code(stream) is None
        boss.place(an_order())
        assert parse_problem(poll.result()) == (401, "unauthenticated")
        assert parse_problem(local.get("/api/orders")) == (401, "unauthenticated")
        assert len(boss.orders()) == 1
        with closing(Caller(server.port, host="evil.example")) as guest:
            assert parse_problem(guest.get("/api/orders")) == (401, "unauthenticated")


# ---------------------------------------------------------------------------------------------------------------------
# 3. Accounts, logins
# ---------------------------------------------------------------------------------------------------------------------


def test_first_accounts_at_the_same_moment(serve: Serve) -> None:
    """However many try to be first, one is, and is a manager whatever it asked for; the others have to log in."""
    server = serve().start()

    def register(number: int) -> Reply:
        with closing(Caller(server.port)) as caller:
            return caller.register(f"first-{number}", role="viewer" if number % 2 else None)

    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(register, range(4)))
    assert sorted(reply.status for reply in replies) == [201, 401, 401, 401]
    with server.session() as fetch:
        assert fetch("SELECT role FROM users") == [("manager",)]


def test_later_accounts_need_a_manager(staff: dict[str, Caller]) -> None:
    """Who registers others has to be a manager; the role asked for is the role given."""
    assert parse_problem(staff["nobody"].register(new_name())) == (401, "unauthenticated")
    for role in ("pos", "kitchen", "viewer"):
        assert parse_problem(staff[role].register(new_name(), "manager")) == (403, "forbidden")
    for role, answer in (("nobody", (401, "unauthenticated")), ("viewer", (403, "forbidden"))):  # whatever they send
        assert parse_problem(staff[role].request("POST", "/api/register", b"{")) == answer
        assert parse_problem(staff[role].request("PATCH", "/api/order/1", b"{")) == answer
    name = new_name()
    assert staff["manager"].register(name, "kitchen").json == {"username": name, "role": "kitchen"}
    assert staff["nobody"].login(name).json["role"] == "kitchen"


def test_account_whose_name_is_taken(boss: Caller) -> None:
    """A name is taken once, in upper and lower case; whoever has it keeps their password."""
    for name in ("boss", "BOSS", "Boss"):
        assert parse_problem(boss.register(name, "viewer", "another password")) == (409, "username_taken")
    assert boss.login("BOSS").status == 200


@pytest.mark.parametrize(
    "fault", [{"username": ""}, {"username": "x" * 65}, {"password": "1234567"}, {"role": "owner"}, {"admin": True}]
)
def test_account_with_a_fault(boss: Caller, fault: Json) -> None:
    """What an account can't be is said with the field at fault, and never with the password."""
    body = {"username": new_name(), "password": PASSWORD, "role": "viewer", **fault}
    reply = boss.request("POST", "/api/register", body)
    assert parse_problem(reply) == (422, "invalid_request")
    assert reply.json["errors"][0]["pointer"] == f"/{next(iter(fault))}"
    assert body["password"] not in reply.body.decode()


def test_login(nobody: Caller) -> None:
    """A login gives a token, the role and when it ends, and the same token as a cookie that scripts can't read."""
    reply = nobody.login()
    assert reply.status == 200
    assert set(reply.json) == {"token", "role", "expires_at"}
    assert reply.json["role"] == "manager"
    assert from_now(hours=23) < reply.json["expires_at"] < from_now(hours=25)
    cookie, *attributes = reply.headers["set-cookie"].split("; ")
    assert cookie.partition("=")[2] == reply.json["token"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes)
    assert "Secure" not in attributes
    assert reply.headers["cache-control"] == "no-store"


def test_login_behind_https(nobody: Caller) -> None:
    """Behind a proxy that speaks https, the cookie never travels over http."""
    assert "Secure" in nobody.login(x_forwarded_proto="https").headers["set-cookie"].split("; ")


def test_login_with_wrong_credentials(boss: Caller, nobody: Caller) -> None:
    """A wrong password and an unknown user get the same answer, but for the request's id."""
    name = new_name()
    boss.register(name, "viewer")
    wrong, unknown = nobody.login(name, "wrong password"), nobody.login(new_name())
    assert parse_problem(wrong) == parse_problem(unknown) == (401, "wrong_credentials")
    told = [{**reply.json, "instance": ""} for reply in (wrong, unknown)]
    assert told[0] == told[1]
    assert len(wrong.body) == len(unknown.body)
    assert wrong.headers["www-authenticate"] == unknown.headers["www-authenticate"]
    assert wrong.headers["set-cookie"] is unknown.headers["set-cookie"] is None


def test_login_of_an_unknown_user_takes_its_time(nobody: Caller) -> None:
    """An unknown user is answered no sooner than a known one: a hash is computed all the same."""

    def seconds(name: Callable[[], str]) -> float:
        started = time.monotonic()
        nobody.login(name())
        return time.monotonic() - started

    known = min(seconds(lambda: "boss") for _ in range(3))
    unknown = min(seconds(new_name) for _ in range(3))
    assert unknown > known / 3


@pytest.mark.sqlite
def test_login_after_failures(boss: Caller, server: Server) -> None:
    """Guessing gets slower with each failure, in any spelling, one try at a time; others don't notice."""
    name = new_name()
    boss.register(name, "viewer")

    def login(username: str, **headers: str) -> Reply:
        with closing(Caller(server.port)) as caller:
            return caller.login(username, **headers)

    with ThreadPoolExecutor(4) as pool:
        for spelling in (name, name.upper(), name.title(), name, name):
            with closing(Caller(server.port)) as guesser:
                assert guesser.login(spelling, "wrong password").status == 401
        started = time.monotonic()
        tries = [pool.submit(login, name), pool.submit(login, name.upper())]
        until(lambda: any(each.done() for each in tries), "one of them is refused")
        [refused, slowed] = sorted(tries, key=lambda each: not each.done())
        assert parse_problem(refused.result()) == (429, "rate_limited")
        other_name, other_client = pool.submit(login, "boss"), pool.submit(login, name, x_forwarded_for="203.0.113.5")
        assert other_name.result().status == other_client.result().status == 200
        assert not slowed.done()
        assert slowed.result().status == 200  # never locked out
        assert time.monotonic() - started >= 3.2
        started = time.monotonic()
        assert login(name).status == 200
        assert time.monotonic() - started < 3.2  # a success wipes the slate


@pytest.mark.sqlite
def test_login_while_another_client_floods(server: Server, nobody: Caller) -> None:
    """A client that keeps all it may of logins on their way is told to wait; nobody else is."""

    def login(number: int) -> Reply:
        with closing(Caller(server.port, x_forwarded_for="203.0.113.66")) as caller:
            return caller.login(f"guess-{number}")

    with ThreadPoolExecutor(14) as pool:
        flood = [pool.submit(login, number) for number in range(14)]
        until(lambda: any(each.done() and each.result().status == 429 for each in flood), "it is told to wait")
        assert nobody.login().status == 200
        refused = [each.result() for each in flood if each.result().status != 401]
    for reply in refused:
        assert parse_problem(reply) == (429, "rate_limited")
        assert int(reply.headers["retry-after"]) >= 1


def test_logout(nobody: Caller, server: Server) -> None:
    """A logout ends the session that asks, with its cookie and its screens; other sessions go on."""
    here, elsewhere = (bearer(server.port, nobody.login().json["token"]) for _ in range(2))
    with closing(here), closing(elsewhere):
        display, stream = here.display(), here.stream()
        assert display.message()["type"] == stream.message()["type"] == "initial"
        reply = here.request("POST", "/api/logout")
        assert (reply.status, reply.body) == (204, b"")
        assert "Max-Age=0" in reply.headers["set-cookie"]
        assert parse_problem(here.get("/api/orders")) == (401, "unauthenticated")
        assert close_code(display) == 1008
        assert close_code(stream) is None
        assert elsewhere.get("/api/orders").status == 200


def user_path(name: str) -> str:
    return f"/api/users/{quote(name, safe='')}"


def test_users_are_listed(boss: Caller) -> None:
    """A manager sees who can log in, and since when; nothing of their passwords."""
    name = new_name()
    assert boss.register(name, "kitchen").status == 201
    listed = {user["username"]: user for user in boss.get("/api/users").json}
    assert set(listed[name]) == {"username", "role", "created_at"}
    assert (listed[name]["role"], listed["boss"]["role"]) == ("kitchen", "manager")
    assert from_now(minutes=-1) < listed[name]["created_at"] < from_now(minutes=1)


@pytest.mark.parametrize("name", ["Ölaf Ñ", "a/b c", "50% off?", "#1"])
def test_deleted_user(boss: Caller, nobody: Caller, server: Server, name: str) -> None:
    """Whatever the name: its sessions end with their screens, it can't log in any more, and the name is free again."""
    assert boss.register(name, "pos").status == 201
    session = bearer(server.port, nobody.login(name).json["token"])
    with closing(session):
        display = session.display()
        assert display.message()["type"] == "initial"
        assert boss.request("DELETE", user_path(name)).status == 204
        assert close_code(display) == 1008
        assert parse_problem(session.get("/api/orders")) == (401, "unauthenticated")
    assert parse_problem(nobody.login(name)) == (401, "wrong_credentials")
    assert parse_problem(boss.request("DELETE", user_path(name))) == (404, "user_not_found")
    assert boss.register(name, "pos").status == 201
    assert nobody.login(name).status == 200


def test_last_manager(serve: Serve) -> None:
    """Somebody has to hold the keys: one of two managers can go, the other can't; devices don't count."""
    server = serve().start()
    boss = open_house(server)
    with closing(boss):
        boss.device("manager")
        assert parse_problem(boss.request("DELETE", user_path("Boss"))) == (409, "last_manager")
        assert boss.register("second", "manager").status == 201
        assert boss.request("DELETE", user_path("boss")).status == 204
        assert parse_problem(boss.get("/api/users")) == (401, "unauthenticated")


@pytest.mark.parametrize(("method", "body"), [("DELETE", None), ("PATCH", {"password": "a new password"})])
def test_user_changed_while_logging_in(
    boss: Caller, nobody: Caller, server: Server, method: str, body: Json | None
) -> None:
    """A password takes a while to compare; who was deleted, or got another one meanwhile, gets no session."""
    name = new_name()
    assert boss.register(name).status == 201
    for _ in range(4):  # so that the next login is slow
        assert nobody.login(name, "a wrong one").status == 401
    with closing(Caller(server.port)) as one, closing(Caller(server.port)) as two, ThreadPoolExecutor(2) as pool:
        logins = [pool.submit(each.login, name) for each in (one, two)]
        until(lambda: any(each.done() for each in logins), "one is refused because the other is on its way")
        assert boss.request(method, user_path(name), body).status in {200, 204}
        assert sorted(each.result().status for each in logins) == [401, 429]


def test_password_changed_by_its_user(boss: Caller, nobody: Caller, server: Server) -> None:
    """It takes the old one; the session that asks goes on, the user's other ones end."""
    name = new_name()
    assert boss.register(name, "viewer").status == 201
    here, there = (bearer(server.port, nobody.login(name).json["token"]) for _ in range(2))
    new = {"password": "a new password"}
    with closing(here), closing(there):
        reply = here.request("PATCH", user_path(name), new)
        assert parse_problem(reply) == (422, "invalid_request")
        assert reply.json["errors"][0]["pointer"] == "/old_password"
        reply = here.request("PATCH", user_path(name), {**new, "old_password": "a wrong one"})
        assert parse_problem(reply) == (401, "wrong_credentials")
        assert parse_problem(here.request("PATCH", user_path("boss"), new)) == (403, "forbidden")
        assert there.get("/api/me").status == 200
        reply = here.request("PATCH", user_path(name.upper()), {**new, "old_password": PASSWORD})
        assert (reply.status, reply.json) == (200, {"username": name, "role": "viewer"})
        assert here.get("/api/me").json["name"] == name
        assert parse_problem(there.get("/api/me")) == (401, "unauthenticated")
    assert nobody.login(name).status == 401
    assert nobody.login(name, "a new password").status == 200


def test_password_changed_by_a_manager(boss: Caller, nobody: Caller, server: Server) -> None:
    """Who forgot theirs gets a new one, and all sessions with the old one end. A manager's own takes the old one."""
    name = new_name()
    assert boss.register(name, "pos").status == 201
    with closing(bearer(server.port, nobody.login(name).json["token"])) as session:
        assert boss.request("PATCH", user_path(name), {"password": "a new password"}).status == 200
        assert parse_problem(session.get("/api/me")) == (401, "unauthenticated")
    assert nobody.login(name, "a new password").status == 200
    with closing(bearer(server.port, nobody.login("boss").json["token"])) as owner:
        reply = owner.request("PATCH", user_path("boss"), {"password": "a new password"})
        assert parse_problem(reply) == (422, "invalid_request")
    reply = boss.request("PATCH", user_path("nobody-at-all"), {"password": "a new password"})
    assert parse_problem(reply) == (404, "user_not_found")


def test_device_with_a_users_name_is_not_that_user(boss: Caller, server: Server) -> None:
    """A device that is called like a person may not change that person's password, and isn't logged out with them."""
    name = new_name()
    assert boss.register(name, "pos").status == 201
    token = boss.request("POST", "/api/tokens", {"name": name, "role": "pos"}).json["token"]
    with closing(bearer(server.port, token)) as device:
        body = {"password": "a new password", "old_password": PASSWORD}
        assert parse_problem(device.request("PATCH", user_path(name), body)) == (403, "forbidden")
        assert boss.request("DELETE", user_path(name)).status == 204
        assert device.get("/api/me").status == 200


def test_who_asks(staff: dict[str, Caller], nobody: Caller, server: Server, fresh: Server) -> None:
    """A screen learns who it is and what it may do, so that it offers nothing that would be refused."""
    may = {"manager": ["amend", "change", "cook", "manage", "place", "read"]}
    may |= {"pos": ["amend", "change", "place", "read"], "kitchen": ["change", "cook", "read"], "viewer": ["read"]}
    for role in ROLES:
        me = staff[role].get("/api/me").json
        if role != "manager":
            assert me == {"name": f"the {role}", "role": role, "kind": "device", "may": may[role], "expires_at": None}
        assert (me["role"], me["may"]) == (role, may[role])
    with closing(bearer(server.port, nobody.login().json["token"])) as owner:
        me = owner.get("/api/me").json
        assert (me["name"], me["kind"]) == ("boss", "session")
        assert from_now(hours=23) < me["expires_at"] < from_now(hours=25)
    with closing(Caller(fresh.port)) as local:
        me = local.get("/api/me").json
        assert me == {"name": None, "role": "manager", "kind": "local", "may": may["manager"], "expires_at": None}
        assert local.request("POST", "/api/session").headers["set-cookie"] is None


def test_device_becomes_a_cookie(boss: Caller, nobody: Caller, server: Server) -> None:
    """A paired browser sends its token once and keeps it where no script reads it; opened again, it keeps it longer."""
    for days, at_most in ((None, 400), (30, 30), (500, 400)):
        device = boss.device("kitchen", expires_in_days=days)
        reply = device.caller.request("POST", "/api/session")
        assert (reply.status, reply.json["kind"]) == (200, "device")
        for _ in range(2):
            shown, *attributes = reply.headers["set-cookie"].split("; ")
            assert shown == f"bistro92_session={device.secret}"
            assert {"Path=/", "HttpOnly", "SameSite=Strict"} < set(attributes)
            [age] = [int(each.partition("=")[2]) for each in attributes if each.startswith("Max-Age=")]
            assert at_most * 86_400 - 60 < age <= at_most * 86_400
            own = f"http://127.0.0.1:{server.port}"
            reply = nobody.request("POST", "/api/session", cookie=shown, origin=own)
            assert reply.status == 200
        assert parse_problem(nobody.request("POST", "/api/session", cookie=shown))[0] == 401
        assert boss.revoke(device.id).status == 204
        assert parse_problem(nobody.get("/api/me", cookie=shown)) == (401, "unauthenticated")


# ---------------------------------------------------------------------------------------------------------------------
# 4. Tokens
# ---------------------------------------------------------------------------------------------------------------------


def test_token_is_shown_once(boss: Caller) -> None:
    """The secret is in the answer that created the token and nowhere else; logins are not in the list."""
    body = {"name": "grill", "role": "kitchen", "expires_in_days": 30}
    reply = boss.request("POST", "/api/tokens", body)
    assert reply.status == 201
    created = reply.json
    assert set(created) == {"id", "name", "role", "created_at", "expires_at", "token"}
    assert (created["name"], created["role"]) == ("grill", "kitchen")
    assert from_now(days=29) < created["expires_at"] < from_now(days=31)
    listed = boss.get("/api/tokens")
    secret = created.pop("token")
    assert created in listed.json
    assert secret not in listed.body.decode()
    assert "boss" not in [token["name"] for token in listed.json]
    assert boss.revoke(created["id"]).status == 204
    assert created not in boss.get("/api/tokens").json
    assert parse_problem(boss.revoke(created["id"])) == (404, "token_not_found")


def test_token_without_expiry(boss: Caller) -> None:
    """A device that is given no time stays."""
    assert boss.request("POST", "/api/tokens", {"name": "till", "role": "pos"}).json["expires_at"] is None


@pytest.mark.parametrize("days", [0, -0.5, 3651, "7"])
def test_token_with_a_bad_time(boss: Caller, days: object) -> None:
    """A time that isn't some days is refused, not guessed at."""
    reply = boss.request("POST", "/api/tokens", {"name": "till", "role": "pos", "expires_in_days": days})
    assert parse_problem(reply) == (422, "invalid_request")
    assert reply.json["errors"][0]["pointer"] == "/expires_in_days"


def test_token_for_part_of_a_day(boss: Caller) -> None:
    """A device can be let in for a shift."""
    created = boss.request("POST", "/api/tokens", {"name": "till", "role": "pos", "expires_in_days": 0.5}).json
    assert from_now(hours=11) < created["expires_at"] < from_now(hours=13)


def test_tokens_survive_a_restart(serve: Serve) -> None:
    """Devices and logins are known after a restart; what was revoked isn't, and nobody gets in without a token."""
    server = serve().start()
    boss = open_house(server)
    kept, revoked = boss.device("kitchen"), boss.device("kitchen")
    assert boss.revoke(revoked.id).status == 204
    server.kill()
    server.start()
    callers = (boss, kept.caller, revoked.caller, Caller(server.port))
    assert [caller.get("/api/orders").status for caller in callers] == [200, 200, 401, 401]


@pytest.mark.parametrize("shown", ["", "Bearer", "Bearer ", "Bearer nonsense", "Basic Ym9zczpib3Nz", "Bearer Ã"])
def test_no_token(server: Server, shown: str) -> None:
    """Who shows no token, or one that is none, is asked for one."""
    caller = Caller(server.port, authorization=shown) if shown else Caller(server.port)
    with closing(caller):
        replies = [caller.get(path) for path in ("/api/orders", "/api/order/1", "/metrics")]
        for reply in (*replies, caller.post(an_order()), caller.ask_for_stream(), caller.shake_hands()):
            assert parse_problem(reply) == (401, "unauthenticated")
            assert reply.headers["www-authenticate"].startswith("Bearer")


def test_token_in_other_spelling(boss: Caller, server: Server) -> None:
    """The scheme's name may be in any case; a secret's may not."""
    secret = boss.device("viewer").secret
    statuses = {
        shown: Caller(server.port, authorization=shown).get("/api/orders").status
        for shown in (f"bearer {secret}", f"BEARER {secret}", f"Bearer {secret.upper()}", f"Bearer {secret[:-1]}")
    }
    assert list(statuses.values()) == [200, 200, 401, 401]


def test_revocation_closes_what_is_open(boss: Caller) -> None:
    """A revoked device's socket and stream are closed at once, its waiting poll is told nothing; others stay."""
    device, other = boss.device("kitchen"), boss.device("kitchen")
    display, stream, neighbour = device.caller.display(), device.caller.stream(), other.caller.display()
    for screen in (display, stream, neighbour):
        assert screen.message()["type"] == "initial"
    with ThreadPoolExecutor(1) as pool:
        before = boss.get("/api/stats").json["subscribers"]
        poll = pool.submit(device.caller.changes, after=boss.cursor(), wait=60)
        until(lambda: boss.get("/api/stats").json["subscribers"] > before, "the poll waits")
        assert boss.revoke(device.id).status == 204
        assert close_code(display) == 1008
        assert close_code(stream) is None
        order = boss.place(an_order())
        assert parse_problem(poll.result()) == (401, "unauthenticated")
    with closing(neighbour):
        assert next(events(neighbour))["order"] == order


def test_revocation_while_a_body_is_on_its_way(boss: Caller, server: Server) -> None:
    """A request that was begun with a good token and ended after its revocation changes nothing."""
    device, table = boss.device("pos"), new_name()
    body = f'{{"table": "{table}", "items": [{{"name": "Burger", "quantity": 1}}]}}'
    with closing(Peer(server.port)) as peer:
        peer.head_of_post(len(body), f"Authorization: Bearer {device.secret}", "Connection: close")
        peer.send(body[:10])
        assert boss.revoke(device.id).status == 204
        peer.send(body[10:])
        assert peer.read_all().startswith(b"HTTP/1.1 401")
    assert boss.get(f"/api/orders?table={table}").json == []


def test_revocation_while_a_stream_is_not_yet_open(serve: Serve) -> None:
    """A stream whose first byte is held up until its token is revoked tells nothing, however late it is read."""
    server = serve().start()
    boss = open_house(server)
    device = boss.device("viewer")
    for _ in range(200):
        boss.place(a_large_order())
    head = f"Host: localhost\r\nAuthorization: Bearer {device.secret}\r\n\r\n"
    with closing(Peer(server.port, receive_buffer=4096)) as peer:
        peer.send(f"GET /api/orders?limit=200 HTTP/1.1\r\n{head}GET /api/events HTTP/1.1\r\n{head}")
        until(lambda: '"GET /api/orders?limit=200' in server.log, "the answer that nobody reads")
        until(lambda: peer.socket.recv(1), "the answer begins")
        assert boss.revoke(device.id).status == 204
        boss.place(an_order("Secret"))
        received = b""
        while part := peer.socket.recv(65_536):
            received += part
            assert b"data:" not in received[-70_000:]
    assert b"text/event-stream" in received
    assert b"Secret" not in received


def test_expiry_closes_what_is_open(serve: Serve) -> None:
    """When a token's time is over, so are its socket and its stream, even while the database takes no write."""
    server = serve().start()
    device = open_house(server).device("viewer", expires_in_days=1)
    server.kill()
    with server.session() as fetch:
        fetch("UPDATE tokens SET expires_at = ? WHERE id = ?", from_now(seconds=6), device.id)
    server.start()
    display, stream = device.caller.display(), device.caller.stream()
    assert display.message()["type"] == stream.message()["type"] == "initial"
    with server.held():
        until(lambda: device.caller.get("/api/orders").status == 401, "the token expires")
        assert close_code(display) == 1008
        assert close_code(stream) is None


# ---------------------------------------------------------------------------------------------------------------------
# 5. Roles
# ---------------------------------------------------------------------------------------------------------------------


class Ask(NamedTuple):
    """A request, what it is answered, and who may make it. `{order}` and such stand for what the test creates."""

    method: str
    path: str
    status: int
    roles: tuple[str, ...]
    body: Json | None = None


ALL: Final = ROLES
POS: Final = ("manager", "pos")
KITCHEN: Final = ("manager", "kitchen")
MANAGER: Final = ("manager",)
NEW: Final = "{new}"
LINES: Final = an_order()["items"]

TABLE: Final = (
    Ask("GET", "/api/orders", 200, ALL),
    Ask("GET", "/api/orders?limit=1", 200, ALL),
    Ask("HEAD", "/api/orders?limit=1", 200, ALL),
    Ask("GET", "/api/order/{order}", 200, ALL),
    Ask("GET", "/api/order/{order}/events", 200, ALL),
    Ask("GET", "/api/stats", 200, ALL),
    Ask("GET", "/api/changes", 200, ALL),
    Ask("GET", "/metrics", 200, ALL),
    Ask("POST", "/api/order", 201, POS, an_order()),
    Ask("PATCH", "/api/order/{order}", 200, POS, {"table": "Table 9"}),
    Ask("PATCH", "/api/order/{order}", 200, POS, {"note": "no nuts"}),
    Ask("PATCH", "/api/order/{order}", 200, POS, {"priority": "rush"}),
    Ask("PATCH", "/api/order/{scheduled}", 200, POS, {"fire_at": "2099-12-31T18:00:00Z"}),
    Ask("PATCH", "/api/order/{order}", 200, POS, {"status": "cancelled"}),
    Ask("PATCH", "/api/order/{order}", 200, POS, {}),
    *(
        Ask("PATCH", "/api/order/{order}", 200, KITCHEN, {"status": status})
        for status in ("received", "preparing", "ready", "completed")
    ),
    Ask("PATCH", "/api/order/{scheduled}", 200, KITCHEN, {"status": "received"}),
    Ask("PATCH", "/api/order/{order}", 200, MANAGER, {"status": "ready", "note": "no nuts"}),
    Ask("PATCH", "/api/order/{order}", 200, POS, {"status": "cancelled", "note": "guest left"}),
    Ask("POST", "/api/order/{order}/items", 200, POS, {"items": LINES}),
    Ask("PATCH", "/api/order/{order}/items/1", 200, KITCHEN, {"status": "ready"}),
    Ask("PATCH", "/api/order/{order}/items/1", 200, KITCHEN, {"status": "pending"}),
    Ask("PATCH", "/api/order/{order}/items/1", 200, ("manager", "pos", "kitchen"), {"status": "voided"}),
    Ask("POST", "/api/order/{order}/cancel", 200, POS),
    Ask("POST", "/api/order/{order}/cancel", 200, POS, {"reason": "guest left"}),
    Ask("DELETE", "/api/order/{order}", 204, POS),
    Ask("POST", "/api/register", 201, MANAGER, {"username": NEW, "password": PASSWORD, "role": "viewer"}),
    Ask("GET", "/api/me", 200, ALL),
    Ask("POST", "/api/session", 200, ALL),
    Ask("GET", "/api/users", 200, MANAGER),
    Ask("PATCH", "/api/users/{user}", 200, MANAGER, {"password": PASSWORD}),
    Ask("DELETE", "/api/users/{user}", 204, MANAGER),
    Ask("POST", "/api/tokens", 201, MANAGER, {"name": NEW, "role": "manager"}),
    Ask("GET", "/api/tokens", 200, MANAGER),
    Ask("DELETE", "/api/tokens/{token}", 204, MANAGER),
)
OTHERWISE: Final = {"/api/events", "/api/login", "/api/logout", "/healthz", "/readyz"}
"""Paths with a test of their own."""


@pytest.mark.parametrize("ask", TABLE, ids=lambda ask: f"{ask.method} {ask.path} {ask.body or ''}")
def test_role(staff: dict[str, Caller], boss: Caller, ask: Ask) -> None:
    """Each role may do what it is for and nothing else; a refusal changes nothing."""
    for role, caller in staff.items():
        order, scheduled = boss.place(an_order()), boss.place(an_order(fire_at=from_now(days=1)))
        token = boss.device("viewer").id if "{token}" in ask.path else 0
        user = new_name()
        if "{user}" in ask.path:
            assert boss.register(user).status == 201
        path = ask.path.format(order=order["id"], scheduled=scheduled["id"], token=token, user=user)
        body = ask.body and {name: new_name() if value == NEW else value for name, value in ask.body.items()}
        cursor = boss.cursor()
        reply = caller.request(ask.method, path, body)
        if role in ask.roles:
            assert reply.status == ask.status, (role, reply.body)
            continue
        status, code = (401, "unauthenticated") if role == "nobody" else (403, "forbidden")
        assert reply.status == status, (role, reply.body)
        if ask.method != "HEAD":
            assert parse_problem(reply) == (status, code)
        assert boss.cursor() == cursor


def test_role_of_every_endpoint(boss: Caller) -> None:
    """No endpoint is missing from the table above."""
    asked = {(ask.method, re.sub(r"\{\w+\}|(?<=items/)\d", "{}", ask.path.partition("?")[0])) for ask in TABLE}
    served = {
        (method.upper(), re.sub(r"\{\w+\}", "{}", path))
        for path, operations in boss.get("/openapi.json").json["paths"].items()
        for method in operations
        if path not in OTHERWISE
    }
    assert served <= asked


@pytest.mark.parametrize("role", ROLES)
def test_role_follows_the_feed(staff: dict[str, Caller], boss: Caller, role: str) -> None:
    """Every role may look at the feed, over a socket and as a stream, and may log out."""
    device = boss.device(role)
    for screen in (device.caller.display(), device.caller.stream()):
        with closing(screen):
            assert screen.message()["type"] == "initial"
    assert device.caller.request("POST", "/api/logout").status == 204
    assert device.caller.get("/api/orders").status == 401
    assert parse_problem(staff["nobody"].request("POST", "/api/logout")) == (401, "unauthenticated")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probe_without_a_token(nobody: Caller, path: str) -> None:
    """Whoever watches the service needs no account."""
    assert nobody.get(path).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/api/order%73",
        "/api/orders?x=/healthz",
        "/api/orders#/healthz",
        "http://localhost/api/orders",
        "/api/orders/",
        "//api/orders",
        "/healthz/../api/orders",
        "/healthz/%2e%2e/api/orders",
        "/screens/../app.py",
        "/screens/%2e%2e/app.py",
        "/screens/..%2fbistro92.db",
        "/screens//etc/passwd",
    ],
)
def test_path_in_disguise(server: Server, path: str) -> None:
    """No spelling of a path leads past the question who asks, or out of the screens' folder."""
    for method in ("GET", "HEAD", "OPTIONS", "POST"):
        with closing(Peer(server.port)) as peer:
            peer.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert peer.read_all().split()[1] in {b"307", b"400", b"401", b"404", b"405"}


# ---------------------------------------------------------------------------------------------------------------------
# 6. Browsers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cookie(staff: dict[str, Caller]) -> str:
    found: str = staff["nobody"].login().headers["set-cookie"].partition(";")[0]
    return found


def test_cookie_of_the_same_origin(server: Server, cookie: str) -> None:
    """Our own pages read, write and listen with the cookie, among other cookies too."""
    with closing(Caller(server.port, cookie=f"theme=dark; {cookie}; x", origin=own_origin(server))) as page:
        assert page.get("/api/orders").status == 200
        assert page.place(an_order())["id"] >= 1
        assert page.shake_hands().status == 101
        with closing(page.stream()) as stream:
            assert stream.message()["type"] == "initial"


def own_origin(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


FOREIGN: Final = (
    "https://evil.example",
    "null",
    "",
    "http://127.0.0.1",
    "http://127.0.0.1:1",
    "http://127.0.0.1:{port}.evil.example",
    "http://evil.example:{port}",
    "file://",
    "ftp://127.0.0.1:{port}",
    "127.0.0.1:{port}",
)


@pytest.mark.parametrize("origin", FOREIGN)
def test_cookie_of_a_foreign_origin(server: Server, cookie: str, origin: str) -> None:
    """A page from elsewhere that has our cookie sent along can neither write nor listen, nor see what it reads."""
    with closing(Caller(server.port, cookie=cookie, origin=origin.format(port=server.port))) as page:
        for reply in (
            page.post(an_order()),
            page.register(new_name()),
            page.login(),
            page.request("POST", "/api/logout"),
            page.shake_hands(),
        ):
            assert parse_problem(reply) == (403, "forbidden_origin")
        assert page.get("/api/orders?limit=1").headers["access-control-allow-origin"] is None


def test_cookie_without_an_origin(server: Server, cookie: str) -> None:
    """Browsers say from where a write or a socket comes; a cookie without that is no good for either."""
    with closing(Caller(server.port, cookie=cookie)) as caller:
        assert caller.get("/api/orders").status == 200
        assert parse_problem(caller.post(an_order())) == (401, "unauthenticated")
        assert parse_problem(caller.request("POST", "/api/logout")) == (401, "unauthenticated")
        assert parse_problem(caller.shake_hands()) == (401, "unauthenticated")


def test_cookie_of_an_unencrypted_page(server: Server, cookie: str) -> None:
    """Where we are reached over https, a page of the same name that came over http is a foreign one."""
    host = "bistro.example"
    with closing(Caller(server.port, cookie=cookie, host=host, x_forwarded_proto="https")) as page:
        assert parse_problem(page.post(an_order(), origin=f"http://{host}")) == (403, "forbidden_origin")
        assert page.post(an_order(), origin=f"https://{host}").status == 201


@pytest.mark.parametrize("host", ["bistro.example", "bistro.example:8443"])
def test_cookie_behind_a_proxy_that_hides_https(server: Server, cookie: str, host: str) -> None:
    """A proxy that doesn't say that it speaks https doesn't break the pages."""
    with closing(Caller(server.port, cookie=cookie, host=host, origin=f"https://{host}")) as page:
        assert page.post(an_order()).status == 201


def test_socket_with_token_or_cookie(boss: Caller, server: Server, cookie: str) -> None:
    """A socket is opened with a token, or with the cookie from our own page; else its handshake is refused."""
    with closing(boss.display()) as display:
        assert display.message()["type"] == "initial"
    with closing(Display(server.port, headers={"cookie": cookie, "origin": own_origin(server)})) as display:
        assert display.message()["type"] == "initial"
    for headers, status in (
        ({}, 401),
        ({"authorization": "Bearer nonsense"}, 401),
        ({"cookie": cookie}, 401),
        ({"cookie": "bistro92_session=nonsense", "origin": own_origin(server)}, 401),
        ({"cookie": cookie, "origin": "https://evil.example"}, 403),
    ):
        with pytest.raises(InvalidStatus) as refusal:
            Display(server.port, headers=headers)
        assert refusal.value.response.status_code == status


def test_no_cors_by_default(nobody: Caller) -> None:
    """Without BISTRO92_ALLOWED_ORIGINS no other origin is told that it may call."""
    asked: Any = {"origin": "https://pos.example", "access_control_request_method": "POST"}
    preflight = nobody.request("OPTIONS", "/api/order", **asked)
    assert preflight.status == 405
    assert preflight.headers["access-control-allow-origin"] is None


def test_allowed_origins(serve: Serve) -> None:
    """The origins that are named may call with a token, preflight and all; others, and cookies, still may not."""
    server = serve(allowed_origins="https://pos.example, http://tablet.example:8080").start()
    boss = open_house(server)
    asked: Any = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}
    for origin in ("https://pos.example", "http://tablet.example:8080"):
        with closing(Caller(server.port)) as page:
            preflight = page.request("OPTIONS", "/api/order", origin=origin, **asked)
        assert preflight.status == 200
        assert preflight.headers["access-control-allow-origin"] == origin
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        assert preflight.headers["access-control-allow-credentials"] is None
        for reply in (boss.post(an_order(), origin=origin), boss.get("/api/orders", origin=origin)):
            assert reply.status in {200, 201}
            assert reply.headers["access-control-allow-origin"] == origin
        assert boss.shake_hands(origin=origin).status == 101
    for origin in ("https://evil.example", "http://pos.example", "https://pos.example.evil.example", "null"):
        preflight = boss.request("OPTIONS", "/api/order", origin=origin, **asked)
        assert preflight.headers["access-control-allow-origin"] is None
        assert boss.get("/api/orders", origin=origin).headers["access-control-allow-origin"] is None
        assert parse_problem(boss.post(an_order(), origin=origin)) == (403, "forbidden_origin")
        assert parse_problem(boss.shake_hands(origin=origin)) == (403, "forbidden_origin")
    boss.close()


# ---------------------------------------------------------------------------------------------------------------------
# 7. Limits and traces
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.sqlite
def test_rate_limit(serve: Serve) -> None:
    """A credential that writes faster than it may is told when to come back; reads and other credentials go on."""
    server = serve(rate_limit=2).start()
    boss = open_house(server)
    fast, other = boss.device("pos").caller, boss.device("pos").caller
    [refused] = until(lambda: [reply for reply in [fast.post(an_order())] if reply.status == 429], "it is refused")
    assert parse_problem(refused) == (429, "rate_limited")
    assert int(refused.headers["retry-after"]) >= 1
    assert fast.get("/api/orders").status == 200
    assert other.post(an_order()).status == 201
    placed = len(boss.orders())
    until(lambda: fast.post(an_order()).status == 201, "it may write again")
    assert len(boss.orders()) == placed + 1


def test_idempotency_key_belongs_to_its_credential(staff: dict[str, Caller]) -> None:
    """Two devices may come up with the same key: each places its own order, and replays its own."""
    key = new_name()
    first, second = (staff[role].place(an_order(), idempotency_key=key) for role in ("pos", "manager"))
    assert first["id"] != second["id"]
    replayed = staff["pos"].post(an_order(), idempotency_key=key)
    assert (replayed.json, replayed.headers["idempotency-replayed"]) == (first, "true")


def test_audit_trail(staff: dict[str, Caller], server: Server) -> None:
    """An order's history says who did what: the device, or the user, by name."""
    path = f"/api/order/{staff['pos'].place(an_order())['id']}"
    user = bearer(server.port, staff["nobody"].login().json["token"])
    assert staff["kitchen"].request("PATCH", path, {"status": "preparing"}).status == 200
    assert user.request("PATCH", path, {"note": "no nuts"}).status == 200
    history = [(event["by"], event["changes"]) for event in user.get(f"{path}/events").json]
    assert [by for by, _ in history] == ["the pos", "the kitchen", "boss"]
    assert history[1][1]["/status"] == ["received", "preparing"]
    assert history[2][1]["/note"] == [None, "no nuts"]


def test_secrets_stay_secret(boss: Caller, server: Server) -> None:
    """Passwords and tokens, right or wrong, are in no log, error, metric or event; the database holds only hashes."""
    device = boss.device("viewer")
    session: str = boss.login().json["token"]
    wrong = {"password": "wrong-password-1", "token": "wrong-token-2", "key": "wrong-cookie-3"}
    display = boss.display()
    replies = [
        boss.register("boss", "viewer", wrong["password"]),
        boss.login("boss", wrong["password"], x_forwarded_for="203.0.113.7"),
        boss.login("stranger", wrong["password"]),
        boss.request("POST", "/api/login", b'{"username": "boss", "password": "wrong-password-1"'),
        boss.request("POST", "/api/login", {"user": "boss", "password": wrong["password"]}),
        boss.request("POST", "/api/register", {"username": "x", "password": [wrong["password"]]}),
        boss.get("/api/orders", authorization=f"Bearer {wrong['token']}"),
        boss.get("/api/orders", authorization="", cookie=f"bistro92_session={wrong['key']}"),
        boss.post(an_order(), authorization=f"Bearer {wrong['token']}"),
        boss.shake_hands(authorization=f"Bearer {wrong['token']}"),
        device.caller.post(an_order()),
        boss.get("/api/tokens"),
        boss.get("/api/stats"),
        boss.get("/metrics"),
    ]
    order = boss.place(an_order())
    replies.append(boss.get(f"/api/order/{order['id']}/events"))
    with closing(display):
        told = [str(display.message()) for _ in range(2)]
    secrets = (PASSWORD, device.secret, session, boss.shown["authorization"].partition(" ")[2], *wrong.values())
    seen = [server.log, *told, *(f"{reply.headers}{reply.body.decode()}" for reply in replies)]
    stored = b"".join(file.read_bytes() for file in server.file.parent.glob(f"{server.file.name}*"))
    for secret in secrets:
        assert not [text for text in seen if secret in text]
        assert secret.encode() not in stored
    with server.session() as fetch:
        passwords = [password for (password,) in fetch("SELECT password FROM users")]
        hashes = {hashed for (hashed,) in fetch("SELECT hash FROM tokens")}
    assert all(password.startswith("$argon2id$") for password in passwords)
    assert {hashlib.sha256(secret.encode()).hexdigest() for secret in (device.secret, session)} <= hashes
    assert "Traceback" not in server.log
