"""The limit: a C loop of ``send()`` over sockets that have done a WebSocket handshake.

A burst is joined into one buffer, which is the least anybody can do. Arguments: the compiled library.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import hashlib
import socket
import sys
import time
from typing import Any

from control import message, obey  # type: ignore[import-not-found]  # beside this script

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455 section 1.3."""


def frame(payload: bytes) -> bytes:
    """A text frame of 126 to 65,535 bytes."""
    return b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload


async def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    sockets: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    loop = asyncio.get_running_loop()

    async def accept() -> None:
        while True:
            sock, _ = await loop.sock_accept(listener)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = b""
            while b"\r\n\r\n" not in request:
                request += await loop.sock_recv(sock, 4096)
            key = request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
            accepted = base64.b64encode(hashlib.sha1(key + GUID).digest())  # noqa: S324 — as the RFC asks
            await loop.sock_sendall(
                sock,
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: %s\r\n\r\n" % accepted,
            )
            sockets.append(sock)

    async def publish(turns: int, burst: int, size: int) -> dict[str, Any]:
        data = frame(message(size).encode()) * burst
        fds = (ctypes.c_int * len(sockets))(*(sock.fileno() for sock in sockets))
        started = time.monotonic()
        error = library.send_turns(fds, len(sockets), data, ctypes.c_size_t(len(data)), turns)
        if error:
            raise OSError(error, "send")
        return {"started": started}

    accepting = asyncio.create_task(accept())
    await obey(listener.getsockname()[1], {"publish": publish})
    accepting.cancel()


if __name__ == "__main__":
    asyncio.run(main())
