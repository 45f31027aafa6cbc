"""Several processes behind a proxy: ops/nginx-cluster.conf and ops/haproxy.cfg as they are, but for addresses.

What a proxy does with a write whose process breaks off is shown with processes that break off exactly there: they
speak HTTP by hand. Who serves, resumes and repeats across real processes is shown on PostgreSQL.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests import harness
from tests.conftest import Serve
from tests.harness import DEADLINE, ROOT, Json, Reply, Server, an_order, free_port, until
from tests.test_proxy import MAIN, certificate

SBIN: Final = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
Configure = Callable[[Path, int, list[int]], list[str]]


class Front(NamedTuple):
    """A proxy in front of some processes; its certificate is the only one that `trust` trusts."""

    port: int
    trust: ssl.SSLContext

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        connection = http.client.HTTPSConnection("localhost", self.port, timeout=DEADLINE, context=self.trust)
        with closing(connection):
            content = json.dumps(body).encode() if body is not None else None
            connection.request(method, path, content, {name.replace("_", "-"): text for name, text in headers.items()})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())


def adapted(name: str, changes: dict[str, str]) -> str:
    """A file of ops/ with other addresses; each that is changed has to be there."""
    text = (ROOT / "ops" / name).read_text(encoding="utf-8")
    for example, here in changes.items():
        assert example in text, f"{name} has no {example}"
        text = text.replace(example, here)
    return text


def nginx(folder: Path, port: int, backends: list[int]) -> list[str]:
    """Write nginx's files; returns the command that serves them."""
    first, second = backends
    upstream = {"127.0.0.1:8001": f"127.0.0.1:{first}", "127.0.0.1:8002": f"127.0.0.1:{second}"}
    server = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "listen 80;": f"listen 127.0.0.1:{free_port()};",
        "/etc/ssl/bistro92/": f"{folder}/",
        "bistro.example.com": "localhost",
    }
    text = adapted("nginx-upstream.conf", upstream) + adapted("nginx-cluster.conf", server)
    (folder / "bistro92.conf").write_text(text)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
    return ["nginx", "-e", f"{folder}/error.log", "-p", str(folder), "-c", f"{folder}/nginx.conf"]


def haproxy(folder: Path, port: int, backends: list[int]) -> list[str]:
    """Write HAProxy's files; returns the command that serves them."""
    first, second = backends
    changes = {
        "maxconn 20000": "maxconn 500",
        "bind :80\n": f"bind 127.0.0.1:{free_port()}\n",
        "bind :443 ": f"bind 127.0.0.1:{port} ",
        "/etc/ssl/bistro92/": f"{folder}/",
        "/etc/haproxy/": f"{ROOT}/ops/",
        "127.0.0.1:8001": f"127.0.0.1:{first}",
        "127.0.0.1:8002": f"127.0.0.1:{second}",
    }
    (folder / "haproxy.cfg").write_text(adapted("haproxy.cfg", changes))
    pair = (folder / "fullchain.pem").read_text() + (folder / "privkey.pem").read_text()
    (folder / "bistro92.pem").write_text(pair)
    return ["haproxy", "-db", "-f", f"{folder}/haproxy.cfg"]


PROXIES: Final = (pytest.param(nginx, id="nginx"), pytest.param(haproxy, id="haproxy"))


@contextmanager
def front(configure: Configure, folder: Path, backends: list[int]) -> Iterator[Front]:
    """A proxy, serving."""
    if not all(shutil.which(program, path=SBIN) for program in ("openssl", configure.__name__)):
        pytest.skip(f"needs {configure.__name__} and openssl (apt install nginx-light haproxy openssl)")
    proxy = Front(free_port(), certificate(folder))
    program, *arguments = configure(folder, proxy.port, backends)
    command = [str(shutil.which(program, path=SBIN)), *arguments]
    check = [*command, {"nginx": "-t", "haproxy": "-c"}[program]]
    checked = subprocess.run(check, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert checked.returncode == 0, checked.stderr
    with (folder / "proxy.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:

        def serves() -> bool:
            assert process.poll() is None, (folder / "proxy.log").read_text()
            with closing(socket.socket()) as attempt:
                return attempt.connect_ex(("127.0.0.1", proxy.port)) == 0

        until(serves, f"{program} serves")
        yield proxy
    finally:
        process.terminate()
        process.wait(DEADLINE)


class Stub:
    """A process that says it is ready and takes what it is sent; `breaks_off`: it ends the connection unanswered."""

    def __init__(self) -> None:
        self.breaks_off = False
        self.taken: list[bytes] = []  # the bodies, of all but probes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._serve(self._listener.accept()[0])

    def _serve(self, connection: socket.socket) -> None:
        """One request, then the end: the proxy makes a new connection for each."""
        with closing(connection), connection.makefile("rb") as read, suppress(OSError):
            connection.settimeout(DEADLINE)
            line, length = read.readline(), 0
            while header := read.readline().strip().lower():
                if header.startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            body = read.read(length)
            probe = b" /readyz " in line
            if not probe and line:
                self.taken.append(body)
            if probe or not self.breaks_off:
                status = b"200 OK" if probe else b"201 Created"
                connection.sendall(b"HTTP/1.1 %b\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}" % status)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE)


@pytest.fixture
def stubs() -> Iterator[tuple[Stub, Stub]]:
    with ExitStack() as stack:
        yield stack.enter_context(closing(Stub())), stack.enter_context(closing(Stub()))


@pytest.mark.parametrize("configure", PROXIES)
def test_a_write_whose_process_breaks_off(configure: Configure, stubs: tuple[Stub, Stub], tmp_path: Path) -> None:
    """It is not sent to another process, which might do it twice: the client is told that nobody knows (502)."""
    for stub in stubs:
        stub.breaks_off = True
    with front(configure, tmp_path, [stub.port for stub in stubs]) as proxy:
        for method, path in (("POST", "/api/order"), ("PATCH", "/api/order/1")):
            before = sum(len(stub.taken) for stub in stubs)
            assert proxy.request(method, path, an_order()).status == 502
            assert sum(len(stub.taken) for stub in stubs) == before + 1


@pytest.mark.parametrize("configure", PROXIES)
def test_a_write_with_a_key_whose_process_breaks_off(
    configure: Configure, stubs: tuple[Stub, Stub], tmp_path: Path
) -> None:
    """It is sent to the other process, as it was: with its key that does it once."""
    stubs[0].breaks_off = True
    with front(configure, tmp_path, [stub.port for stub in stubs]) as proxy:
        for number in range(4):
            order = an_order(f"Burger {number}")
            assert proxy.request("POST", "/api/order?x=%2F", order, idempotency_key=f"k{number}").status == 201
            assert json.loads(stubs[1].taken[-1]) == order
    assert stubs[0].taken, "nothing was sent a second time"


@pytest.mark.parametrize("configure", PROXIES)
def test_a_write_while_a_process_is_not_there(configure: Configure, stubs: tuple[Stub, Stub], tmp_path: Path) -> None:
    """Who can't be reached hasn't got it, so the other process gets it, with a key or without."""
    stubs[0].close()
    with front(configure, tmp_path, [stub.port for stub in stubs]) as proxy:
        for number in range(6):
            assert proxy.request("POST", "/api/order", an_order(f"Soup {number}")).status == 201
    assert [json.loads(body)["items"][0]["name"] for body in stubs[1].taken] == [f"Soup {n}" for n in range(6)]


# ---------------------------------------------------------------------------------------------------------------------
# Real processes, on PostgreSQL
# ---------------------------------------------------------------------------------------------------------------------


class Follower(threading.Thread):
    """A display behind the proxy that connects again, with its cursor, for as long as it is wanted."""

    def __init__(self, proxy: Front, headers: dict[str, str]) -> None:
        super().__init__()
        self.told: list[Json] = []  # every event, over all connections
        self.greetings: list[str] = []
        self.wanted = True
        self._proxy, self._headers, self._cursor = proxy, headers, ""

    def run(self) -> None:
        while self.wanted:
            with suppress(OSError, ConnectionClosed, InvalidStatus, TimeoutError):
                self._follow()

    def _follow(self) -> None:
        url = f"wss://localhost:{self._proxy.port}/ws/orders?after={self._cursor}"
        with websockets.sync.client.connect(
            url, ssl=self._proxy.trust, additional_headers=self._headers, proxy=None, open_timeout=DEADLINE
        ) as display:
            while self.wanted:
                with suppress(TimeoutError):
                    message = json.loads(display.recv(0.2))
                    self._cursor = message["cursor"]
                    if message["type"] in {"initial", "resumed"}:
                        self.greetings.append(message["type"])
                    elif message["type"] != "heartbeat":
                        self.told.append(message)


@pytest.fixture
def pair(serve: Serve, tmp_path: Path) -> tuple[Server, Server]:
    """Two processes on one database, serving."""
    options, url = ("--log-level", "warning", "--no-access-log"), harness.engine.url(tmp_path)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = [serve(*options, folder=tmp_path / name, database_url=url) for name in ("first", "second")]
    return first.start(), second.start()


@pytest.mark.postgresql
@pytest.mark.parametrize("configure", PROXIES)
def test_losing_a_process(configure: Configure, pair: tuple[Server, Server], tmp_path: Path) -> None:
    """Tills that send keys notice nothing; displays come back to the other process, and are told everything once."""
    with front(configure, tmp_path, [server.port for server in pair]) as proxy, closing(pair[0].client()) as local:

        def ready() -> bool:  # HAProxy asks first; in protected mode the answer is 403 for who isn't local
            return proxy.request("GET", "/api/orders").status == 403

        until(ready, "the proxy lets through, and protected mode doesn't")
        account = {"username": "chef", "password": "correct horse"}
        assert proxy.request("POST", "/api/register", account).status == 403
        assert local.request("POST", "/api/register", account).status == 201
        token = until(lambda: proxy.request("POST", "/api/login", account).json.get("token"), "a login")
        bearer = {"authorization": f"Bearer {token}"}
        followers = [Follower(proxy, bearer) for _ in range(6)]
        for follower in followers:
            follower.start()
        try:
            until(lambda: all(follower.greetings for follower in followers), "displays are greeted")
            ids = []
            for number in range(60):
                if number == 20:
                    pair[0].kill()
                answer = proxy.request("POST", "/api/order", an_order(), idempotency_key=f"k{number}", **bearer)
                assert answer.status == 201, answer.body
                ids.append(answer.json["id"])
            assert ids == list(range(1, 61))
            until(lambda: all(len(follower.told) >= 60 for follower in followers), "everybody is told everything")
        finally:
            for follower in followers:
                follower.wanted = False
            for follower in followers:
                follower.join(DEADLINE)
        for follower in followers:
            assert [event["order"]["id"] for event in follower.told] == ids
            assert follower.greetings.count("initial") == 1
        assert any("resumed" in follower.greetings for follower in followers), "nobody was on the process that was lost"


@pytest.mark.postgresql
@pytest.mark.parametrize("configure", PROXIES)
def test_one_restaurant_over_two_processes(configure: Configure, pair: tuple[Server, Server], tmp_path: Path) -> None:
    """Whoever is asked: a token is known, an order can be read, a cursor is good, a key is one order."""
    with front(configure, tmp_path, [server.port for server in pair]) as proxy, closing(pair[1].client()) as local:
        account = {"username": "chef", "password": "correct horse"}
        assert local.request("POST", "/api/register", account).status == 201
        token = until(lambda: proxy.request("POST", "/api/login", account).json.get("token"), "a login")
        bearer = {"authorization": f"Bearer {token}"}
        cursor = proxy.request("GET", "/api/changes", **bearer).json["cursor"]
        for number in range(20):
            answers = [
                proxy.request("POST", "/api/order", an_order(f"Soup {number}"), idempotency_key=f"k{number}", **bearer)
                for _ in range(2)
            ]
            assert [answer.status for answer in answers] == [201, 201]
            assert answers[0].body == answers[1].body
            assert answers[1].headers["idempotency-replayed"] == "true"
            order = answers[0].json
            assert proxy.request("GET", f"/api/order/{order['id']}", **bearer).json == order
            changes = proxy.request("GET", f"/api/changes?after={cursor}&wait=20", **bearer)
            assert changes.status == 200, changes.body
            assert [event["order"] for event in changes.json["events"]] == [order]
            cursor = changes.json["cursor"]
