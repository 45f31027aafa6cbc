"""How the servers that Bistro92 is compared with are served: by uvicorn with the options of `python app.py`."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

import uvicorn

if TYPE_CHECKING:
    from fastapi import FastAPI

DATABASE = "BENCH_DATABASE"
"""Environment variable: the file of a server that stores something."""

UVICORN: dict[str, Any] = {
    "host": "127.0.0.1",
    "access_log": False,
    "ws_per_message_deflate": False,
    "timeout_keep_alive": 60,  # clients that are done wait for the last one, which takes the reference design seconds
}


def port() -> int:
    """The command line: `--port P`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    chosen: int = parser.parse_args().port
    return chosen


def serve(app: FastAPI) -> None:
    """Serve until SIGTERM."""
    uvicorn.run(app, port=port(), **UVICORN)


def database() -> str:
    """The file to store in."""
    return os.environ[DATABASE]
