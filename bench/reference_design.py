"""The design that Bistro92 comes from, in short: FastAPI, an asyncio.Lock around every write, `databases` on SQLite.

One transaction, and so one commit, for every order with its items; WAL; busy_timeout; synchronous=FULL (SQLite's
default, which a fresh connection therefore has); a ConnectionManager that sends each order to every WebSocket, one
after the other. The statements are plain SQL, which `databases` runs faster than SQLAlchemy expressions.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from databases import Database
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel

from bench import serving

database = Database(f"sqlite:///{serving.database()}")
write_lock = asyncio.Lock()


class Item(BaseModel):
    """A line of an order."""

    name: str
    quantity: int


class NewOrder(BaseModel):
    """An order as it is posted."""

    table: str
    items: list[Item]


class Order(NewOrder):
    """An order as it is answered."""

    id: int
    created_at: str


class ConnectionManager:
    """The WebSockets that are connected."""

    def __init__(self) -> None:
        self.active: list[WebSocket] = []

    async def connect(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.active.append(websocket)

    def disconnect(self, websocket: WebSocket) -> None:
        if websocket in self.active:
            self.active.remove(websocket)

    async def broadcast(self, message: dict[str, Any]) -> None:
        for websocket in list(self.active):
            try:
                await websocket.send_json(message)
            except (RuntimeError, WebSocketDisconnect):
                self.disconnect(websocket)


manager = ConnectionManager()


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Connect, set the PRAGMAs, create the tables."""
    await database.connect()
    await database.execute("PRAGMA journal_mode = WAL")
    await database.execute("PRAGMA busy_timeout = 30000")
    await database.execute(
        "CREATE TABLE IF NOT EXISTS orders"
        " (id INTEGER PRIMARY KEY AUTOINCREMENT, table_name TEXT NOT NULL, created_at TEXT NOT NULL)"
    )
    await database.execute(
        "CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY AUTOINCREMENT, order_id INTEGER NOT NULL"
        " REFERENCES orders (id), name TEXT NOT NULL, quantity INTEGER NOT NULL)"
    )
    await database.execute("CREATE INDEX IF NOT EXISTS items_by_order ON items (order_id)")
    yield
    await database.disconnect()


app = FastAPI(lifespan=lifespan)


@app.post("/api/order", status_code=201)
async def create_order(new: NewOrder) -> Order:
    """Store an order and its items in one transaction, then tell every display."""
    created_at = datetime.now(UTC).isoformat()
    async with write_lock, database.transaction():
        order_id = await database.execute(
            "INSERT INTO orders (table_name, created_at) VALUES (:table, :created_at)",
            {"table": new.table, "created_at": created_at},
        )
        for item in new.items:
            await database.execute(
                "INSERT INTO items (order_id, name, quantity) VALUES (:order_id, :name, :quantity)",
                {"order_id": order_id, "name": item.name, "quantity": item.quantity},
            )
    order = Order(id=order_id, table=new.table, items=new.items, created_at=created_at)
    await manager.broadcast({"type": "new_order", "order": order.model_dump()})
    return order


@app.get("/api/orders")
async def list_orders() -> list[Order]:
    """Every order, newest first."""
    orders = await database.fetch_all("SELECT id, table_name, created_at FROM orders ORDER BY id DESC")
    items: dict[int, list[Item]] = {}
    for row in await database.fetch_all("SELECT order_id, name, quantity FROM items ORDER BY id"):
        items.setdefault(row[0], []).append(Item(name=row[1], quantity=row[2]))
    return [Order(id=row[0], table=row[1], created_at=row[2], items=items[row[0]]) for row in orders]


@app.websocket("/ws/orders")
async def orders_socket(websocket: WebSocket) -> None:
    """Send all orders, then each new one."""
    await manager.connect(websocket)
    try:
        await websocket.send_json({"type": "initial", "orders": [order.model_dump() for order in await list_orders()]})
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        manager.disconnect(websocket)


if __name__ == "__main__":
    serving.serve(app)
