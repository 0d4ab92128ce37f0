"""ASGI as everybody writes it: uvicorn, and ``await send(…)`` for each client in turn."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from asgi_server import serve  # type: ignore[import-not-found]  # beside this script
from control import message  # type: ignore[import-not-found]  # as above

sends: list[Any] = []


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    sends.append(send)
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def publish(turns: int, burst: int, size: int) -> dict[str, Any]:
    started = time.monotonic()
    for _ in range(turns):
        for _ in range(burst):
            event = {"type": "websocket.send", "text": message(size)}
            for send in sends:
                await send(event)
        await asyncio.sleep(0)
    return {"started": started}


if __name__ == "__main__":
    serve(app, publish)
