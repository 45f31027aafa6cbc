"""Fixtures of the deep tests: servers that never outlive their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness import Client, Server

Serve = Callable[..., Server]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kill-rounds", type=int, default=15, help="how often the durability test kills its server")
    parser.addoption("--power-cuts", type=int, default=3, help="how often the power-cut test cuts it")
    parser.addoption("--half-open", type=int, default=1000, help="sockets that say nothing, or not enough")
    parser.addoption("--malformed", type=int, default=2000, help="bodies and frames that mean nothing")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A plain server that the tests of a module share."""
    shared = Server(tmp_path_factory.mktemp("server"))
    try:
        yield shared.start()
    finally:
        shared.end()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """HTTP to the shared server."""
    with closing(server.client()) as shared:
        yield shared


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Make servers of a test's own: `serve(max_subscribers=2)`; options of uvicorn may come first. Not yet started."""
    made: list[Server] = []

    def make(*options: str, folder: Path = tmp_path, **settings: object) -> Server:
        made.append(Server(folder, *options, **settings))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.end()
