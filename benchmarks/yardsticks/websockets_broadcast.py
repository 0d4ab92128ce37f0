"""websockets: its ``broadcast`` function, made for this."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import uvloop
from control import message, obey  # type: ignore[import-not-found]  # beside this script
from websockets.asyncio.server import ServerConnection, broadcast, serve


async def main() -> None:
    clients: set[ServerConnection] = set()

    async def handler(connection: ServerConnection) -> None:
        clients.add(connection)
        await connection.wait_closed()

    async def publish(turns: int, burst: int, size: int) -> dict[str, Any]:
        started = time.monotonic()
        for _ in range(turns):
            for _ in range(burst):
                broadcast(clients, message(size))
            await asyncio.sleep(0)
        return {"started": started}

    async with serve(handler, "127.0.0.1", 0, compression=None, ping_interval=None, backlog=4096) as server:
        await obey(next(iter(server.sockets)).getsockname()[1], {"publish": publish})


if __name__ == "__main__":
    uvloop.run(main())
