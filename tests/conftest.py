"""Fixtures of the deep tests: servers that never outlive their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

import test_all_apis
from tests import engines, harness
from tests.harness import Client, Server

Serve = Callable[..., Server]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", choices=("sqlite", "postgresql"), default="sqlite", help="the database to run over")
    parser.addoption("--kill-rounds", type=int, default=15, help="how often the durability test kills its server")
    parser.addoption("--cluster-rounds", type=int, default=1, help="how often every fault comes over each cluster")
    parser.addoption("--power-cuts", type=int, default=3, help="how often the power-cut test cuts it")
    parser.addoption("--half-open", type=int, default=1000, help="sockets that say nothing, or not enough")
    parser.addoption("--malformed", type=int, default=2000, help="bodies and frames that mean nothing")


OVER_POSTGRESQL: Final = {
    "test_all_apis", "test_lifecycle", "test_feed", "test_write_path", "test_accounts", "test_state_machine",
    "test_two_tablets", "test_openapi", "test_durability", "test_shutdown", "test_slow_subscribers", "test_scaleout",
    "test_to_postgres", "test_cluster_proxy", "test_cluster", "test_bench",
}  # fmt: skip
"""The suites that a database can make a difference to."""


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--engine") == "postgresql":
        if why := engines.unreachable():
            pytest.exit(f"Tests over PostgreSQL cannot run: {why}", returncode=pytest.ExitCode.USAGE_ERROR)
        harness.engine = postgresql = engines.Postgresql()
        test_all_apis.database_url = postgresql.url
        config.add_cleanup(postgresql.drop_all)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about the other database."""

    def meant(item: pytest.Item) -> bool:
        if harness.engine.name == "sqlite":
            return item.get_closest_marker("postgresql") is None
        return item.path.stem in OVER_POSTGRESQL and item.get_closest_marker("sqlite") is None

    config.hook.pytest_deselected(items=[item for item in items if not meant(item)])
    items[:] = [item for item in items if meant(item)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A plain server that the tests of a module share."""
    shared = Server(folder := tmp_path_factory.mktemp("server"))
    try:
        yield shared.start()
    finally:
        shared.end()
        harness.engine.drop(folder)


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
        harness.engine.drop(tmp_path)
