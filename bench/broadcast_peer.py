"""What websockets offers for many listeners: its own server, on uvloop, and `websockets.broadcast()`.

It only broadcasts. Lines on stdin tell it what: `COUNT RATE MESSAGE` sends MESSAGE (JSON, to the end of the line)
COUNT times, RATE a second, or as fast as it can where RATE is 0; between two messages the event loop has its turn.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from websockets.asyncio.server import Server, ServerConnection, broadcast, serve

from bench import serving


async def listen(connection: ServerConnection) -> None:
    """Keep a display connected."""
    await connection.wait_closed()


async def send(server: Server, count: int, rate: float, message: str) -> None:
    """Broadcast a message some times."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    for number in range(count):
        wait = started + number / rate - loop.time() if rate else 0
        await asyncio.sleep(max(wait, 0))
        broadcast(server.connections, message)


async def main() -> None:
    """Serve until stdin ends."""
    loop = asyncio.get_running_loop()
    async with serve(listen, "127.0.0.1", serving.port(), compression=None, backlog=2048) as server:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            count, rate, message = line.rstrip("\n").split(" ", 2)
            await send(server, int(count), float(rate), message)


if __name__ == "__main__":
    uvloop.run(main())
