"""The least that an idle display costs under uvicorn: an ASGI app that accepts a WebSocket and waits."""

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


if __name__ == "__main__":
    serving.serve(app)
