"""The log: one line of JSON for each request that is refused or fails, and nothing in it that shouldn't be."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from contextlib import closing
from typing import Any

import pytest

import app
from tests.conftest import Serve
from tests.harness import ROOT, Display, Json, Peer, Server, an_order, environment, until

QUIET = ("--log-level", "error", "--no-access-log")
SENT = 2000


def lines_of(server: Server, count: int) -> list[Json]:
    """The lines of the log, once there are so many."""
    until(lambda: len(server.lines) >= count, f"{count} lines are logged")
    return server.lines


def request_of(problem: Json) -> str:
    """The request's id, as a problem names it."""
    found = re.fullmatch(r"urn:bistro92:request:(.+)", problem["instance"])
    assert found
    return found[1]


def test_a_refused_request(serve: Serve) -> None:
    """It is one line, with the id that its answer has; a request that is served is none."""
    server = serve(*QUIET).start()
    with closing(server.client()) as client:
        client.place(an_order())
        before = len(server.lines)
        problem = client.get("/api/order/77?secret=1").json
        [line] = lines_of(server, before + 1)[before:]
    assert re.fullmatch(r"[0-9a-f]{16}", line["request"])
    assert line.pop("request") == request_of(problem)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert 0 <= line.pop("ms") < 60_000
    assert line == {
        "level": "warning",
        "message": "request",
        "code": "order_not_found",
        "method": "GET",
        "path": "/api/order/77",
        "status": 404,
        "client": "127.0.0.1",
        "credential": None,
    }


@pytest.mark.parametrize("name", ["till-3.0042:a_b", "x" * 64])
def test_a_request_that_has_an_id(serve: Serve, name: str) -> None:
    """It keeps it, in the answer and in the log; for a HEAD, too, which the log calls by its name."""
    server = serve(*QUIET).start()
    with closing(server.client()) as client:
        assert request_of(client.get("/nowhere", x_request_id=name).json) == name
        client.request("HEAD", "/nowhere", x_request_id=name)
    assert [(line["request"], line["method"]) for line in lines_of(server, 2)] == [(name, "GET"), (name, "HEAD")]


@pytest.mark.parametrize("name", ["", "x" * 65, "two words", 'a"b', "<b>", "caf\xe9"])
def test_a_request_with_an_id_that_is_none(serve: Serve, name: str) -> None:
    """It gets another one."""
    server = serve(*QUIET).start()
    with closing(server.client()) as client:
        assert re.fullmatch(r"[0-9a-f]{16}", request_of(client.get("/nowhere", x_request_id=name).json))


def test_refusals_of_every_kind(serve: Serve) -> None:
    """At the door, in a route, by Starlette, of a handshake, of a socket that is open: each is one line."""
    server = serve(*QUIET, max_subscribers=0).start()
    with closing(server.client()) as client:
        told = [
            client.get("/api/orders", host="evil.example"),
            client.post({}),
            client.request("PUT", "/api/orders"),
            client.get("/screens/nowhere"),
            client.get("/api/events"),
        ]
        with closing(Display(server.port)) as display, pytest.raises(Exception, match="1013"):
            display.message()
        lines = lines_of(server, len(told) + 1)
    assert [line["request"] for line in lines[:-1]] == [request_of(reply.json) for reply in told]
    codes = ["protected_mode", "invalid_request", "method_not_allowed", "not_found", "too_many_subscribers"]
    assert [line["code"] for line in lines] == [*codes, "too_many_subscribers"]
    assert (lines[-1]["method"], lines[-1]["path"], lines[-1]["status"]) == ("WEBSOCKET", "/ws/orders", 1013)
    assert [line["level"] for line in lines] == ["warning"] * 4 + ["error"] * 2


def test_a_request_that_fails(serve: Serve) -> None:
    """A bug is logged with its traceback, in the one line; the answer has nothing of it but the id."""
    server = serve(*QUIET).alter(MAX_PAGE_BYTES="many").start()
    with closing(server.client()) as client:
        reply = client.get("/api/orders?limit=1")
        [line] = lines_of(server, 1)
    assert reply.status == 500
    assert line["request"] == request_of(reply.json)
    assert (line["level"], line["status"], line["code"]) == ("error", 500, "internal_error")
    assert "TypeError" in line["exception"]
    assert b"TypeError" not in reply.body


def test_every_request_where_that_is_asked_for(serve: Serve) -> None:
    """With BISTRO92_ACCESS_LOG each request is one line, whatever becomes of it; a WebSocket is one when it ends."""
    server = serve(*QUIET, access_log=True).start()
    with closing(server.client()) as client:
        before = len(server.lines)
        client.place(an_order())
        client.request("HEAD", "/api/orders")
        client.get("/nowhere")
        display = Display(server.port)
        display.message()
        display.close()
        until(lambda: client.get("/healthz").status == 200 and "/ws/orders" in server.log, "the display's line")
    seen = [(line["method"], line["path"], line["status"]) for line in server.lines[before:]]
    assert [each for each in seen if each[1] != "/healthz"] == [
        ("POST", "/api/order", 201),
        ("HEAD", "/api/orders", 200),
        ("GET", "/nowhere", 404),
        ("WEBSOCKET", "/ws/orders", 101),
    ]
    assert {line["level"] for line in server.lines if line["status"] < 400} == {"info"}


def test_a_flood_of_refused_requests(serve: Serve) -> None:
    """It doesn't fill the disk: few lines of a kind are written in a second, the others are counted, and told of."""
    server = serve(*QUIET).start()
    with closing(server.client()) as client:
        began = time.monotonic()
        for _ in range(SENT):
            client.get("/nowhere")
        lasted = time.monotonic() - began
        assert client.get("/api/order/77").status == 404  # of another kind: it is not lost among the others

    def written() -> int:
        return sum(line.get("code") == "not_found" for line in server.lines)

    def left_out() -> int:
        return sum(line.get("left_out", {}).get("not_found", 0) for line in server.lines)

    until(lambda: written() + left_out() == SENT, "each is written, or told of")
    assert written() <= app.LOG_RATE * (lasted + 2)
    assert [line["code"] for line in server.lines if line.get("code") == "order_not_found"]
    assert server.metric("bistro92_log_lines_left_out_total") == left_out()


def test_a_flood_of_malformed_requests(serve: Serve) -> None:
    """uvicorn has a line for each; it doesn't fill the disk either."""
    server = serve("--no-access-log").start()
    began = time.monotonic()
    for _ in range(500):
        with closing(Peer(server.port)) as peer:
            peer.send("nonsense\r\n\r\n")
            assert b" 400 " in peer.read_all()
    lasted = time.monotonic() - began
    written = server.log.count("Invalid HTTP request")
    assert 0 < written <= app.LOG_RATE * (lasted + 2)

    def counted() -> bool:
        left_out = server.metric("bistro92_log_lines_left_out_total")
        return left_out + server.log.count("Invalid HTTP request") == 500

    until(counted, "the others are counted")
    with closing(Display(server.port)):
        until(lambda: "/ws/orders" in server.log, "other lines of uvicorn's are there")


def test_a_log_that_nobody_reads(serve: Serve) -> None:
    """A pipe that is full holds up nobody: lines are left out, and a stop doesn't wait for it."""
    server = serve(access_log=True)
    command = [sys.executable, "-m", "uvicorn", "tests.altered:app", "--port", str(server.port), *QUIET]
    variables = {**environment(**server.settings), "TESTS_ALTER": json.dumps({"MAX_LOG_LINES": 100})}
    reading, writing = os.pipe()
    with open(reading, "rb"):
        with open(writing, "wb") as log:
            server.process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log)

        def serves() -> bool:
            try:
                with closing(server.client()) as client:
                    return client.get("/healthz").status == 200
            except OSError:
                return False

        until(serves, "it serves")
        with closing(server.client()) as client:
            until(
                lambda: client.place(an_order()) and server.metric("bistro92_log_lines_left_out_total") > 100,
                "the pipe is full, and orders are taken",
            )
        assert server.stop() == 0


def test_a_path_that_would_be_a_line(serve: Serve) -> None:
    """What a client sends can't begin a line of its own, nor speak to a terminal, nor make a line long."""
    server = serve(*QUIET).start()
    with closing(server.client()) as client:
        for path in ("%0A{%22level%22:%22error%22}", "%1B[2J%1B]0;x%07", "%E2%80%A8%E2%80%AE", "%FF%00", "x" * 9000):
            assert client.get(f"/{path}").status == 404
        lines = lines_of(server, 5)
    assert [line["level"] for line in lines] == ["warning"] * 5
    assert re.fullmatch(r"[\x20-\x7e\n]*", server.log)
    assert max(map(len, server.log.splitlines())) < 1000


def test_secrets_in_every_place(serve: Serve) -> None:
    """Tokens, passwords and cookies aren't logged, wherever they were put, and even where everything is."""
    server = serve(*QUIET, access_log=True).start()
    password = "correct horse battery"
    with closing(server.client()) as client:
        client.request("POST", "/api/register", {"username": "chef", "password": password})
        token = client.request("POST", "/api/login", {"username": "chef", "password": password}).json["token"]
        bearer = f"Bearer {token}"
        before = len(server.lines)
        client.get("/api/orders", authorization=bearer)
        client.get(f"/api/orders?token={token}", authorization=bearer)
        client.request("DELETE", f"/api/tokens/{token}", authorization=bearer)
        client.get("/nowhere", x_request_id=token, authorization=bearer)
        client.get("/nowhere", cookie=f"bistro92_session={token}")
        client.request("POST", "/api/login", {"username": "chef", "password": password + "!"})
        client.request("POST", "/api/login", f'{{"password": "{password}"'.encode())
        lines = lines_of(server, before + 7)
    assert {line["credential"] for line in lines[before:]} == {"chef", None}
    assert token not in server.log
    assert token[-20:] not in server.log
    assert password not in server.log


def test_a_line_that_is_of_no_request() -> None:
    """All that the backend says is JSON, with a traceback where there is one; no line has a token."""
    try:
        raise ValueError("b92_abcdefgh")
    except ValueError as error:
        fault: Any = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("bistro92", logging.CRITICAL, "", 0, "work %s", ("ended\nnow",), fault)
    line = json.loads(app.JsonLog._line_of(record))
    assert (line["level"], line["message"]) == ("critical", "work ended\nnow")
    assert line["exception"].endswith("ValueError: b92_...")
