"""How it is served: under a path of its own, where a proxy gives it one."""

from __future__ import annotations

from contextlib import closing

import pytest

import app
from tests.conftest import Serve
from tests.harness import Display, an_order

PREFIX = "/bistro"


@pytest.mark.parametrize("path", sorted(app.PAGES))
def test_a_page_under_a_root_path(serve: Serve, path: str) -> None:
    """`--root-path` is what a proxy has taken away: pages are found without it."""
    server = serve("--root-path", PREFIX).start()
    with closing(server.client()) as client:
        reply = client.get(path)
        assert (reply.status, reply.headers.get_content_type()) == (200, "text/html")


def test_the_api_under_a_root_path(serve: Serve) -> None:
    """Everything is served, orders, the feed, refusals."""
    server = serve("--root-path", PREFIX).start()
    with closing(server.client()) as client:
        order = client.place(an_order())
        assert client.orders() == [order]
        assert client.get("/api/order").status == 405
        assert client.get("/nowhere").status == 404
        with closing(Display(server.port)) as display:
            assert display.message()["orders"] == [order]
