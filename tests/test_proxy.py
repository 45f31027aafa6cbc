"""ops/nginx.conf as it is, but for ports, host and certificate: everything through TLS, and who is local."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import websockets.sync.client

from tests.conftest import Serve
from tests.harness import DEADLINE, ROOT, Json, Server, an_order, free_port, until

PASSWORD = "correct horse"
MAIN = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/bistro92.conf;
}}
"""


class Proxy(NamedTuple):
    """nginx in front of a server; its certificate is the only one that `trust` trusts."""

    port: int
    plain_port: int
    trust: ssl.SSLContext

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """(status, JSON) of an answer."""
        connection = http.client.HTTPSConnection("localhost", self.port, timeout=DEADLINE, context=self.trust)
        with closing(connection):
            content = json.dumps(body).encode() if body is not None else None
            connection.request(method, path, content, {name.replace("_", "-"): text for name, text in headers.items()})
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")


def certificate(folder: Path) -> ssl.SSLContext:
    """Make a certificate for localhost that is good for a day; returns what trusts it."""
    key, chain = folder / "privkey.pem", folder / "fullchain.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, *names, "-keyout", key, "-out", chain], check=True, capture_output=True, timeout=DEADLINE)
    return ssl.create_default_context(cafile=str(chain))


def configure(folder: Path, server: Server, port: int, plain_port: int) -> Path:
    """The example with other ports and files, inside of what Debian's nginx.conf has around it."""
    text = (ROOT / "ops" / "nginx.conf").read_text(encoding="utf-8")
    for example, here in {
        "127.0.0.1:8000": f"127.0.0.1:{server.port}",
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "listen 80;": f"listen 127.0.0.1:{plain_port};",
        "/etc/ssl/bistro92/": f"{folder}/",
        "bistro.example.com": "localhost",
    }.items():
        assert example in text
        text = text.replace(example, here)
    (folder / "bistro92.conf").write_text(text)
    main = folder / "nginx.conf"
    main.write_text(MAIN.format(folder=folder))
    return main


@contextmanager
def nginx(folder: Path, server: Server) -> Iterator[Proxy]:
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None or shutil.which("openssl") is None:
        pytest.skip("needs nginx and openssl (apt install nginx-light openssl)")
    proxy = Proxy(free_port(), free_port(), certificate(folder))
    command = [program, "-e", str(folder / "error.log"), "-p", str(folder), "-c"]
    main = configure(folder, server, proxy.port, proxy.plain_port)
    process = subprocess.Popen([*command, str(main)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def serves() -> bool:
            assert process.poll() is None, (folder / "error.log").read_text()
            with closing(socket.socket()) as attempt:
                return attempt.connect_ex(("127.0.0.1", proxy.port)) == 0

        until(serves, "nginx serves")
        yield proxy
    finally:
        process.terminate()
        process.wait(DEADLINE)


def read_event(response: http.client.HTTPResponse) -> Json:
    """The data of the next server-sent event."""
    while not (line := response.readline()).startswith(b"data: "):
        assert line, "the stream ended"
    event: Json = json.loads(line.removeprefix(b"data: "))
    return event


def test_everything_through_nginx_and_tls(serve: Serve, tmp_path: Path) -> None:
    """A forwarded request is never local; with a token, orders, WebSocket, events, polls and pages go through."""
    server = serve("--log-level", "warning", "--no-access-log").start()
    with nginx(tmp_path, server) as proxy, closing(server.client()) as local:
        status, problem = proxy.request("POST", "/api/order", an_order())
        assert (status, problem["code"]) == (403, "protected_mode")
        account = {"username": "chef", "password": PASSWORD}
        assert proxy.request("POST", "/api/register", account)[0] == 403
        assert local.request("POST", "/api/register", account).status == 201

        status, session = proxy.request("POST", "/api/login", account)
        assert status == 200
        bearer = {"authorization": f"Bearer {session['token']}"}
        origin = f"https://localhost:{proxy.port}"
        cookie = {"cookie": f"bistro92_session={session['token']}"}
        assert proxy.request("POST", "/api/order", an_order())[0] == 401
        assert proxy.request("POST", "/api/order", an_order(), **cookie, origin="https://evil.example")[0] == 403

        stream = http.client.HTTPSConnection("localhost", proxy.port, timeout=DEADLINE, context=proxy.trust)
        socket_url = f"wss://localhost:{proxy.port}/ws/orders"
        with (
            closing(stream),
            websockets.sync.client.connect(
                socket_url, ssl=proxy.trust, additional_headers=bearer, proxy=None, open_timeout=DEADLINE
            ) as display,
            websockets.sync.client.connect(
                socket_url, ssl=proxy.trust, additional_headers={**cookie, "origin": origin}, proxy=None
            ) as browser,
        ):  # fmt: skip
            stream.request("GET", "/api/events", headers=bearer)
            response = stream.getresponse()
            assert response.status == HTTPStatus.OK
            firsts = [json.loads(display.recv(DEADLINE)), json.loads(browser.recv(DEADLINE)), read_event(response)]
            assert {first["type"] for first in firsts} == {"initial"}
            for number in range(3):
                headers = {**(cookie if number else bearer), "origin": origin}
                status, order = proxy.request("POST", "/api/order", an_order(f"Burger {number}"), **headers)
                assert status == 201
                told = [json.loads(display.recv(DEADLINE)), json.loads(browser.recv(DEADLINE)), read_event(response)]
                assert [event["order"] for event in told] == [order] * 3
            status, polled = proxy.request("GET", f"/api/changes?after={firsts[0]['cursor']}", **bearer)
            assert (status, len(polled["events"])) == (200, 3)

        large = an_order(note="x" * 300_000)
        status, problem = proxy.request("POST", "/api/order", large, **bearer)
        assert (status, problem["code"]) == (413, "body_too_large")


def test_the_scheme_and_the_host_that_the_client_used(serve: Serve, tmp_path: Path) -> None:
    """Links and cookies are those of the address outside; plain HTTP is led to TLS."""
    server = serve("--log-level", "warning", "--no-access-log").start()
    with nginx(tmp_path, server) as proxy, closing(server.client()) as local:
        account = {"username": "chef", "password": PASSWORD}
        assert local.request("POST", "/api/register", account).status == 201
        connection = http.client.HTTPSConnection("localhost", proxy.port, timeout=DEADLINE, context=proxy.trust)
        with closing(connection):
            connection.request("POST", "/api/login", json.dumps(account))
            response = connection.getresponse()
            token = json.loads(response.read())["token"]
            assert "; Secure" in str(response.headers["set-cookie"])
            bearer = {"authorization": f"Bearer {token}"}
            for _ in range(2):
                assert proxy.request("POST", "/api/order", an_order(), **bearer)[0] == 201
            connection.request("GET", "/api/orders?limit=1", headers=bearer)
            response = connection.getresponse()
            response.read()
            assert re.match(rf"<https://localhost:{proxy.port}/api/orders\?", str(response.headers["link"]))
        with closing(http.client.HTTPConnection("127.0.0.1", proxy.plain_port, timeout=DEADLINE)) as plain:
            plain.request("GET", "/kitchen", headers={"host": "localhost"})
            response = plain.getresponse()
            assert (response.status, response.headers["location"]) == (308, "https://localhost/kitchen")
