"""The least that displays cost under uvicorn: an app that accepts a WebSocket and waits, and answers a POST unread."""

from __future__ import annotations

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from bench import serving

app = FastAPI()


@app.websocket("/ws/orders")
async def socket(websocket: WebSocket) -> None:
    """Accept, then wait until the client leaves."""
    await websocket.accept()
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        return


@app.post("/api/order", status_code=201)
async def order() -> dict[str, str]:
    """Take an order that nobody looks at."""
    return {}


if __name__ == "__main__":
    serving.serve(app)
