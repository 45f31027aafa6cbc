"""Servers with preload.c between SQLite and libc: storage that fails, power that is cut, a clock that can be set."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Final

import pytest

from tests.harness import ROOT, Json, Server, an_order, at_work, environment

SOURCE: Final = Path(__file__).with_name("preload.c")
SECTOR: Final = 512
"""Bytes that a disk writes whole or not at all."""


def library(folder: Path) -> Path:
    """preload.c, compiled. Skips the test where nothing can compile it."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler (cc), to stand between SQLite and its files")
    made = folder / "preload.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, SOURCE, "-ldl"], check=True, timeout=60)
    return made


class PreloadedServer(Server):
    """A server whose files and clock the test holds in its hand."""

    def __init__(self, folder: Path, *options: str, alter: Json | None = None, **settings: object) -> None:
        super().__init__(folder, *options, **settings)
        self.disk = folder / "disk"
        self._alter = alter  # what altered.py is to change of the backend
        self._fault, self._clock = folder / "fault", folder / "clock"
        self._library = library(folder)
        self.disk.mkdir()

    def launch(self) -> subprocess.Popen[bytes]:
        program = "tests.altered:app" if self._alter else "app:app"
        command = [sys.executable, "-m", "uvicorn", program, "--host", "127.0.0.1", "--port", str(self.port)]
        preloaded = {
            "LD_PRELOAD": str(self._library),
            "PRELOAD_DATABASE": str(self.file.resolve()),
            "PRELOAD_FAULT": str(self._fault),
            "PRELOAD_DISK": str(self.disk),
            "PRELOAD_CLOCK": str(self._clock),
            "TESTS_ALTER": json.dumps(self._alter),
        }
        with self._log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self._options],
                cwd=ROOT,
                env={**environment(**self.settings), **preloaded},
                stdout=log,
                stderr=log,
            )
        return self.process

    @contextmanager
    def failing(self, call: str, error: int) -> Iterator[None]:
        """While this lasts, `pwrite` or `fdatasync` fails on the database and its WAL."""
        written = self._fault.with_suffix(".new")
        written.write_text(f"{call} {error}")
        written.rename(self._fault)
        try:
            yield
        finally:
            self._fault.unlink()

    def set_clock(self, seconds: int) -> None:
        """Let the time of day be ahead by so many seconds, or behind."""
        written = self._clock.with_suffix(".new")
        written.write_text(str(seconds))
        written.rename(self._clock)

    def cut_power(self, chance: random.Random | None = None) -> None:
        """Kill the server and leave of its files what the disk has: what was synced.

        With `chance`, some of the sectors that were written since then have reached it, too, in any order.
        """
        self.kill()
        for name, file in (("db", self.file), ("wal", Path(f"{self.file}-wal"))):
            disk = self.disk / name
            synced = disk.read_bytes() if disk.exists() else b""
            if chance and file.exists():
                synced = torn(synced, file.read_bytes(), chance)
            if (self.disk / f"{name}.linked").exists():
                file.write_bytes(synced)
                disk.write_bytes(synced)
            else:
                file.unlink(missing_ok=True)
                disk.unlink(missing_ok=True)
        Path(f"{self.file}-shm").unlink(missing_ok=True)  # was memory


def torn(synced: bytes, written: bytes, chance: random.Random) -> bytes:
    """A file of which any sectors that were written since the last sync may have reached the disk."""
    size = max(len(synced), len(written))
    old, new = synced.ljust(size, b"\0"), written.ljust(size, b"\0")
    share = chance.random()
    sectors = range(0, size, SECTOR)
    return b"".join([(new if chance.random() < share else old)[at : at + SECTOR] for at in sectors])


class Till(threading.Thread):
    """A POS that posts orders with keys, one after the other, until its connection breaks or it is told to stop."""

    def __init__(self, server: Server, name: str, seed: int = 0) -> None:
        super().__init__(daemon=True)
        self.answered: dict[str, Json] = {}  # key → the order that came back with 201
        self.refused: dict[str, Json] = {}  # key → what was asked for and answered 503
        self.unanswered: dict[str, Json] = {}  # key → what was asked for
        self.stopping = False
        self._server, self._prefix, self._random = server, name, random.Random(seed)
        self._fault: BaseException | None = None

    def run(self) -> None:
        try:
            with closing(self._server.client()) as client, suppress(OSError):
                for number in itertools.count():
                    if self.stopping:
                        return
                    key = f"{self._prefix}-{number}"
                    order = an_order(key, note="x" * self._random.randrange(280))
                    self.unanswered[key] = order
                    reply = client.post(order, idempotency_key=key)
                    assert reply.status in {HTTPStatus.CREATED, HTTPStatus.SERVICE_UNAVAILABLE}, reply.body
                    if reply.status == HTTPStatus.CREATED:
                        self.answered[key] = reply.json
                    else:
                        self.refused[key] = order
                    del self.unanswered[key]
        except BaseException as error:
            self._fault = error

    def finish(self) -> None:
        """Tell it to stop, and wait."""
        self.stopping = True
        self.join(30)
        assert not self.is_alive()
        if self._fault:
            raise self._fault


def tills(server: Server, name: str, count: int = 4) -> AbstractContextManager[list[Till]]:
    """Some that post at the same time; they have stopped at the end."""
    return at_work([Till(server, f"{name}-{number}", number) for number in range(count)])


def named(orders: list[Json]) -> dict[str, Json]:
    """Orders by the name of their first line, which is their key here; fails where one is there twice."""
    found = {order["items"][0]["name"]: order for order in orders}
    assert len(found) == len(orders), "an order is there twice"
    return found


def may_mount() -> bool:
    """Whether this process may mount a file system."""
    return sys.platform.startswith("linux") and os.geteuid() == 0 and shutil.which("mount") is not None
