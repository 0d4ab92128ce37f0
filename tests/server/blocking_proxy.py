"""A network that lets no WebSocket through: a proxy that answers every upgrade with 403, or never."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class BlockingProxy:
    """Passes HTTP on to one server.

    Attributes:
        blocking: whether upgrades are blocked now.
        hanging: block by silence, in place of a 403.
        blocked: upgrades that were.
    """

    def __init__(self, port: int, *, hanging: bool = False) -> None:
        self._port = port
        self._open: set[asyncio.StreamWriter] = set()
        self.hanging = hanging
        self.blocking = True
        self.blocked = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if self.blocking and re.search(rb"(?i)\r\nupgrade: *websocket", head):
                self.blocked += 1
                if self.hanging:
                    await reader.read()
                writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                await writer.drain()
                return
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
            self._open.add(server_writer)
            if b"\r\nUpgrade" not in head and b"\r\nupgrade" not in head:
                # One request per connection, so that the next one is looked at again.
                head = re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", head).replace(
                    b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"
                )
            server_writer.write(head)
            await asyncio.gather(_pass(reader, server_writer), _pass(server_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    def cut(self) -> None:
        """End every connection now."""
        for writer in list(self._open):
            writer.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def blocking_proxy(port: int, *, hanging: bool = False) -> AsyncIterator[BlockingProxy]:
    """Runs one on a free port; it sends its own address as the host, as a client that knows no proxy does."""
    proxy = BlockingProxy(port, hanging=hanging)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
