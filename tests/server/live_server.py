"""A real uvicorn on a free port, with our protocol classes and fakes behind them, inside the test's own loop."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar

import orjson
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from channels.limits import Limits
from channels.ports import WriteEach
from channels.protocol import SUBPROTOCOL
from channels.streams import Streams
from hatch_build import find_compiler
from server import fanout
from server.door import Door, DoorPolicy
from server.events import EventsEndpoint
from server.http import middleware
from server.uvicorn_protocol import BODY_SECONDS, HEADER_SECONDS, DrainingServer, server_options
from server.websocket import SocketEndpoint, WithSocket
from tests.channels.fakes import House, until


async def _hello(request: Request) -> Response:
    await request.body()
    return PlainTextResponse("hello")


LARGE_BYTES = 16 << 20
"""More than the kernel keeps for a connection that is not read."""


async def _large(_request: Request) -> Response:
    return Response(b"x" * LARGE_BYTES)


def compiled() -> WriteEach:
    """The loop in C. Without a compiler there is none, and tests of it are skipped; otherwise there has to be one."""
    if find_compiler() is None and not fanout.LIBRARY.exists():
        pytest.skip("there was no C compiler at the installation")
    return fanout.in_c(fanout.LIBRARY)


class LiveServer:
    def __init__(
        self,
        limits: Limits,
        policy: DoorPolicy,
        drain_seconds: float,
        header_seconds: float,
        body_seconds: float,
        write_each: WriteEach,
        deflate: bool,
    ) -> None:
        self.house = House(limits, wall=lambda: datetime.now(UTC), write_each=write_each, deflate=deflate)
        self.door = Door(policy, lambda: self.house.realtime.draining)
        self.streams = Streams()
        surface = Starlette(
            routes=[
                Route("/", _hello, methods=["GET", "POST"]),
                Route("/large", _large),
                Route("/events", EventsEndpoint(self.house.realtime, self.streams, self.door, limits)),
            ],
            middleware=middleware(tuple(policy.allowed_origins)),
        )
        app = WithSocket(surface, SocketEndpoint(self.house.realtime, self.door))
        options = server_options(
            shutdown_seconds=4, header_seconds=header_seconds, body_seconds=body_seconds, deflate=deflate
        )
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off", **options)
        self.server = DrainingServer(
            config, drain=lambda: self.house.realtime.drain(drain_seconds, drain_seconds + 1.0)
        )
        self.task: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/socket"

    async def start(self) -> None:
        await self.house.realtime.start()
        # serve() would take over the test runner's signal handlers.
        self.task = asyncio.create_task(self.server._serve())
        await until(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.server.should_exit = True
        if self.task is not None:
            await asyncio.wait_for(self.task, 15)
        await self.house.realtime.stop()


@asynccontextmanager
async def live_server(
    limits: Limits | None = None,
    policy: DoorPolicy | None = None,
    drain_seconds: float = 0.0,
    header_seconds: float = HEADER_SECONDS,
    body_seconds: float = BODY_SECONDS,
    write_each: WriteEach | None = None,
    deflate: bool = False,
) -> AsyncIterator[LiveServer]:
    server = LiveServer(
        limits or Limits(),
        policy or DoorPolicy(),
        drain_seconds,
        header_seconds,
        body_seconds,
        write_each or fanout.load(),
        deflate,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class RawSocket:
    """A WebSocket client that obeys nothing: it sends the bytes it is told to."""

    opened: ClassVar[list[RawSocket]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.opened.append(self)

    @classmethod
    async def tcp(cls, port: int) -> RawSocket:
        """A connection on which nothing was sent yet."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    @classmethod
    async def close_all(cls) -> None:
        """Close what tests opened, in their loop."""
        while cls.opened:
            raw = cls.opened.pop()
            raw.writer.transport.abort()
            await asyncio.gather(raw.writer.wait_closed(), return_exceptions=True)

    @classmethod
    async def open(cls, port: int, *, receive_buffer_bytes: int | None = None, **headers: str) -> RawSocket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**16)
        raw = cls(reader, writer)
        writer.write(handshake(port, **headers))
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert answer.startswith(b"HTTP/1.1 101"), answer
        return raw

    def send(self, data: bytes) -> None:
        """Into the void when the connection is gone, which uvloop would call a programming error."""
        if not self.writer.is_closing():
            self.writer.write(data)

    def send_json(self, message: Any) -> None:
        self.send(client_frame(0x1, orjson.dumps(message)))

    async def frame(self) -> tuple[int, bytes]:
        """The next frame: opcode and payload."""
        deflated, opcode, payload = await self.any_frame()
        assert not deflated
        return opcode, payload

    async def any_frame(self) -> tuple[bool, int, bytes]:
        """The next frame, whether it is deflated or not: that, opcode and payload as it came."""
        head = await asyncio.wait_for(self.reader.readexactly(2), 10)
        length = head[1] & 0x7F
        if length == 126:
            length = int.from_bytes(await self.reader.readexactly(2), "big")
        elif length == 127:
            length = int.from_bytes(await self.reader.readexactly(8), "big")
        return bool(head[0] & 0x40), head[0] & 0x0F, await self.reader.readexactly(length)

    async def close_code(self) -> int:
        """The code of the close frame that comes sooner or later."""
        while True:
            opcode, payload = await self.frame()
            if opcode == 0x8:
                return int(struct.unpack("!H", payload[:2])[0])

    async def ended(self) -> None:
        """Returns when the server has ended the connection."""
        try:
            while await asyncio.wait_for(self.reader.read(2**16), 10):
                pass
        except ConnectionError:
            pass


def handshake(port: int, **headers: str) -> bytes:
    given = {
        "Host": f"127.0.0.1:{port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": SUBPROTOCOL,
        **headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"GET /socket HTTP/1.1\r\n{lines}\r\n".encode()


def client_frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv1: bool = False) -> bytes:
    """A masked frame (with the mask 0, which leaves the payload as it is)."""
    head = (0x80 if fin else 0) | (0x40 if rsv1 else 0) | opcode
    length = len(payload)
    if length < 126:
        prefix = struct.pack("!BB", head, 0x80 | length)
    elif length < 65536:
        prefix = struct.pack("!BBH", head, 0x80 | 126, length)
    else:
        prefix = struct.pack("!BBQ", head, 0x80 | 127, length)
    return prefix + b"\0\0\0\0" + payload
