"""What every row is measured with: servers and generators in processes of their own, the disk, the machine.

Everything is on loopback, has a time limit, is stopped by its process id, and works in a temporary directory that is
removed afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench import serving

ROOT: Final = Path(__file__).resolve().parent.parent
TICKS: Final = os.sysconf("SC_CLK_TCK")
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
ANSWER_SECONDS: Final = 180.0
"""How long a generator may take for what it was asked."""
PACKAGES: Final = (
    "fastapi",
    "starlette",
    "pydantic",
    "uvicorn",
    "uvloop",
    "httptools",
    "websockets",
    "databases",
    "aiosqlite",
)


class BenchFailed(Exception):
    """A measurement that must not be believed: something was lost, refused, or did not start."""


class LeftOut(Exception):
    """A row can't be measured here, and why: what it compares with isn't there."""


# Processes


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used, threads that ended included."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / TICKS


def resident_bytes(pid: int) -> int:
    """The memory that a process has in use."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchFailed(f"process {pid} has no memory")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


SIDES: Final[dict[str, list[str]]] = {
    "bistro92": ["app.py"],
    "echo": ["-m", "bench.echo"],
    "reference": ["-m", "bench.reference_design"],
    "broadcast": ["-m", "bench.broadcast_peer"],
    "bare": ["-m", "bench.bare_socket"],
}
"""Server → the command line that starts it, after the interpreter; `--port` follows."""


NUMBERS: Final = itertools.count(1)


class Server:
    """One of the servers, in a process of its own. Use it as a context manager."""

    def __init__(
        self, side: str, folder: Path, file: Path | None = None, protected: bool = False, database: str | None = None
    ):
        self.side = side
        self.headers: dict[str, str] = {}
        """Sent with every request: where the server is protected, a device's token."""
        self._protected = protected
        self.port = free_port()
        name = f"{side}-{next(NUMBERS)}"  # a port may come twice, and a fresh server has a fresh file
        self.file = file or folder / f"{name}.db"
        self._log = folder / f"{name}.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BISTRO92_")}
        self._environment = {
            **inherited,
            "BISTRO92_DATABASE_URL": database or f"sqlite:///{self.file}",
            serving.DATABASE: str(self.file),
        }

    def __enter__(self) -> Server:
        """Start it and wait for its first answer; `seconds_to_start` is how long that took."""
        started = time.monotonic()
        command = [sys.executable, *SIDES[self.side], "--port", str(self.port)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        try:
            while not self._answers():
                if self._process.poll() is not None or time.monotonic() - started > START_SECONDS:
                    raise BenchFailed(f"{self.side} did not start: {self._log.read_text()[-2000:]}")
                time.sleep(0.002)
        except BaseException:
            self.__exit__()
            raise
        self.seconds_to_start = time.monotonic() - started
        if self._protected:
            who = {"username": "chef", "password": "correct horse"}
            self.request("POST", "/api/register", who)
            for path, wanted in (("/api/login", who), ("/api/tokens", {"name": "till", "role": "pos"})):
                _, _, answer = self.request("POST", path, wanted)
                self.headers = {"Authorization": f"Bearer {json.loads(answer)['token']}"}
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        try:
            if self.side == "broadcast":  # speaks nothing but WebSocket
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            else:
                self.get("/api/orders?limit=1")
        except OSError:
            return False
        return True

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request: (status, headers with lower-case names, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            sent = {"Content-Type": "application/json", **self.headers, **(headers or {})}
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()

    def get(self, path: str) -> bytes:
        return self.request("GET", path)[2]

    def write(self, line: str) -> None:
        """Send a line to its stdin."""
        assert self._process.stdin
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def cpu(self) -> float:
        return cpu_seconds(self.pid)

    def memory(self) -> int:
        return resident_bytes(self.pid)

    def stored(self) -> int:
        """How many orders the API shows. Raises BenchFailed where one of them shows twice."""
        orders, before = [], ""
        while True:
            path = "/api/orders" if self.side == "reference" else f"/api/orders?limit=1000{before}"
            page = [order["id"] for order in json.loads(self.get(path))]
            orders += page
            if self.side == "reference" or len(page) < 1000:
                break
            before = f"&before={page[-1]}"
        if len(set(orders)) != len(orders):
            raise BenchFailed(f"{self.side} shows an order twice")
        return len(orders)


@contextlib.contextmanager
def working_folder(parent: str | None) -> Iterator[Path]:
    """A temporary directory, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bistro92-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Generator:
    """A function of generators.py in a process of its own, at the other end of a pipe. Use it as a context manager.

    It gets the pipe's end as its first argument, and answers whatever it is asked.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=work, args=(there, *arguments), daemon=True)
        self._there = there

    def __enter__(self) -> Generator:
        self._process.start()
        self._there.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(2)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(5)

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    def cpu(self) -> float:
        return cpu_seconds(self.pid)

    def tell(self, *command: Any) -> None:
        self._pipe.send(command)

    def answer(self) -> Any:
        if not self._pipe.poll(ANSWER_SECONDS):
            raise BenchFailed("a generator did not answer in time")
        try:
            found = self._pipe.recv()
        except EOFError as error:
            raise BenchFailed("a generator ended early") from error
        if isinstance(found, Exception):
            raise BenchFailed(str(found)) from found
        return found

    def ask(self, *command: Any) -> Any:
        self.tell(*command)
        return self.answer()


@dataclass(frozen=True)
class Load:
    """What wrk did. `first` and `last` are CLOCK_MONOTONIC: the first request, the last answer."""

    answers: int
    first: float
    last: float
    p50: float
    p99: float
    share: float
    """CPU time of wrk in cores."""

    @property
    def rate(self) -> float:
        return self.answers / (self.last - self.first)


def load(server: Server, path: str, clients: int, seconds: float, method: str = "POST", etag: str = "") -> Load:
    """Let wrk post orders, or repeat a GET (with an ETag where it is conditional).

    Raises BenchFailed where one request was refused, broken, or not answered.
    """
    limit = round(seconds + 60)
    run = f"{time.monotonic_ns():x}"
    command = [
        "wrk",
        "-t1",
        f"-c{clients}",
        f"-d{limit}",
        "--timeout",
        "50",
        "-s",
        str(ROOT / "bench" / "load.lua"),
        f"{server.url}{path}",
    ]
    lines = [f"{name}: {value}\r\n" for name, value in server.headers.items()]
    lines += [f"If-None-Match: {etag}\r\n"] * bool(etag)
    command += ["--", str(seconds), str(clients), run, method, "".join(lines)]
    usage = os.times()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout
        output = ""
        for line in process.stdout:
            output += line
            if line == "drained\n":
                process.send_signal(signal.SIGINT)
        process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    after = os.times()
    found = output[output.find('{"sent"') :].splitlines()
    if not found or not found[0]:
        raise BenchFailed(f"wrk failed: {output}")
    said = json.loads(found[0])
    if said["refused"] or said["broken"] or said["answers"] != said["sent"]:
        raise BenchFailed(f"not every request was answered well: {found[0]}")
    busy = after.children_user + after.children_system - usage.children_user - usage.children_system
    share = busy / (said["last"] - said["first"])
    return Load(said["answers"], said["first"], said["last"], said["p50"], said["p99"], share)


def load_over(servers: list[Server], path: str, clients: int, seconds: float) -> Load:
    """Post at several servers at once, so many clients in all; p50 and p99 are those of the slowest server."""
    shares = [clients // len(servers) + (number < clients % len(servers)) for number in range(len(servers))]
    usage = os.times()
    with ThreadPoolExecutor(len(servers)) as pool:
        loads = list(pool.map(lambda server, share: load(server, path, share, seconds), servers, shares))
    after = os.times()
    first, last = min(each.first for each in loads), max(each.last for each in loads)
    # each load's own share has the others' wrk in it, as they are children of the same process
    busy = after.children_user + after.children_system - usage.children_user - usage.children_system
    p50, p99 = max(each.p50 for each in loads), max(each.p99 for each in loads)
    return Load(sum(each.answers for each in loads), first, last, p50, p99, busy / (last - first))


# The machine


class Others:
    """What the rest of the machine does meanwhile: processes that are not this bench's, and time that was stolen."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._before = self._busy()
        self._mine = self._own()

    @staticmethod
    def _busy() -> float:
        user, nice, system, _, _, irq, soft, steal = (
            int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        )
        return (user + nice + system + irq + soft + steal) / TICKS

    @staticmethod
    def _own() -> float:
        return sum(os.times()[:4])

    def share(self) -> float:
        """In cores, since this was made. Only children that have ended count as this bench's own."""
        seconds = time.monotonic() - self.started
        return max(self._busy() - self._before - (self._own() - self._mine), 0) / seconds


def fdatasync_seconds(folder: Path, count: int, pause: float = 0) -> list[float]:
    """The time of single fdatasyncs as SQLite's log causes them: write two pages, sync; from the start after 4 MB."""
    taken = []
    page = os.urandom(8240)
    descriptor = os.open(folder / "fdatasync", os.O_RDWR | os.O_CREAT)
    try:
        for number in range(count):
            os.pwrite(descriptor, page, number % 512 * len(page))
            started = time.perf_counter()
            os.fdatasync(descriptor)
            taken.append(time.perf_counter() - started)
            if pause:
                time.sleep(pause)
    finally:
        os.close(descriptor)
    return taken


def app_version() -> str:
    """The start of the SHA-256 of app.py."""
    return hashlib.sha256((ROOT / "app.py").read_bytes()).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of what is measured: interpreter, SQLite, packages."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, **packages}


def machine(folder: Path) -> dict[str, str]:
    """What the figures depend on, for the head of the results."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    file_system = subprocess.run(
        ["df", "--output=fstype", folder], capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    syncs = sorted(fdatasync_seconds(folder, 300))
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.split()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cores": f"{os.cpu_count()} of {model[0] if model else platform.machine()}, {memory:.0f} GB",
        "system": f"Linux {platform.release()}, {file_system}",
        "load average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "fdatasync": f"p50 {syncs[150] * 1e3:.2f} ms, p99 {syncs[297] * 1e3:.2f} ms",
        "wrk": wrk[1] if len(wrk) > 1 else "?",
        **versions(),
    }
