"""picows: a WebSocket protocol written in Cython; one ``send`` per client and message."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import picows  # type: ignore[import-not-found]  # of the yardsticks' own environment
import uvloop
from control import message, obey  # type: ignore[import-not-found]  # beside this script


async def main() -> None:
    clients: list[Any] = []

    class Listener(picows.WSListener):  # type: ignore[misc]
        def on_ws_connected(self, transport: Any) -> None:
            clients.append(transport)

    async def publish(turns: int, burst: int, size: int) -> dict[str, Any]:
        started = time.monotonic()
        for _ in range(turns):
            for _ in range(burst):
                data = message(size).encode()
                for client in clients:
                    client.send(picows.WSMsgType.TEXT, data)
            await asyncio.sleep(0)
        return {"started": started}

    server = await picows.ws_create_server(lambda _request: Listener(), "127.0.0.1", 0, backlog=4096)
    async with server:
        await obey(server.sockets[0].getsockname()[1], {"publish": publish})


if __name__ == "__main__":
    uvloop.run(main())
