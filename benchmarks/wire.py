"""WebSocket bytes as clients make and read them (RFC 6455), for load that costs its maker little.

:class:`RawSocket` blocks and is for setting up a fan-out, whose bytes :class:`benchmarks.native.Sink` then counts.
:class:`Client` lives on an event loop and speaks the product's protocol: calls, events, pongs.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import time
from collections.abc import Callable
from typing import Any, cast

import orjson

JSON = dict[str, Any]

TEXT, CLOSE, PING = 0x1, 0x8, 0x9
SUBPROTOCOL = "fixnado.v1"
CALL_SECONDS = 60.0
MAX_HEAD_BYTES = 16_384
LOOPBACK_ADDRESSES = 200
"""Clients come from 127.0.1.1 to 127.0.1.200 in turn, so that the ports of one address do not run out."""

PONG = orjson.dumps({"jsonrpc": "2.0", "method": "pong"})


class WireError(RuntimeError):
    """The server did not do what it should, or went away."""


def handshake(host: str, path: str, subprotocol: str | None = None, extension: str | None = None) -> bytes:
    """A request to upgrade."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
    ]
    if subprotocol is not None:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    if extension is not None:
        lines.append(f"Sec-WebSocket-Extensions: {extension}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def client_frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """A final frame, masked with zeros: valid, and the payload need not be touched."""
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, 0x80 | length))
    elif length < 65_536:
        head = bytes((0x80 | opcode, 0xFE)) + length.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0xFF)) + length.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload


def split_frames(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Complete unmasked frames as ``(opcode, payload)``, and what is left of the data."""
    frames: list[tuple[int, bytes]] = []
    at, end = 0, len(data)
    while end - at >= 2:
        length, start = data[at + 1] & 0x7F, at + 2
        if length == 126:
            length, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        elif length == 127:
            length, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
        if start > end or end - start < length:
            break
        frames.append((data[at] & 0x0F, data[start : start + length]))
        at = start + length
    return frames, data[at:]


def source_address(number: int) -> tuple[str, int]:
    """Where the ``number``-th client comes from."""
    return f"127.0.1.{1 + number % LOOPBACK_ADDRESSES}", 0


class RawSocket:
    """One blocking client socket."""

    def __init__(self, port: int, number: int = 0, timeout_seconds: float = 20.0) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.settimeout(timeout_seconds)
        self.sock.bind(source_address(number))
        self.sock.connect(("127.0.0.1", port))
        self._buffer = b""
        self._frames: list[bytes] = []

    def upgrade(self, host: str, path: str, subprotocol: str | None = None, extension: str | None = None) -> None:
        """Become a WebSocket.

        Raises:
            WireError: the server refused, or does not know the extension.
        """
        self.sock.sendall(handshake(host, path, subprotocol, extension))
        while b"\r\n\r\n" not in self._buffer:
            self._read()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise WireError(head.decode(errors="replace").splitlines()[0])
        if extension is not None and extension.encode() not in head:
            raise WireError(f"the server does not do {extension}")

    def send(self, payload: bytes) -> None:
        self.sock.sendall(client_frame(payload))

    def receive(self) -> bytes:
        """The payload of the next text frame.

        Raises:
            WireError: the connection ended.
        """
        while not self._frames:
            frames, self._buffer = split_frames(self._buffer)
            for opcode, payload in frames:
                if opcode == CLOSE:
                    raise WireError(f"closed: {payload!r}")
                self._frames.append(payload)
            if not self._frames:
                self._read()
        return self._frames.pop(0)

    @property
    def pending(self) -> bool:
        """Whether something was read that nobody has asked for."""
        return bool(self._frames or self._buffer)

    def _read(self) -> None:
        data = self.sock.recv(65_536)
        if not data:
            raise WireError("the connection ended")
        self._buffer += data

    def close(self) -> None:
        self.sock.close()


EventListener = Callable[["Client", JSON, float], None]
"""Gets ``(client, event params, arrival in monotonic seconds)``."""


class Client(asyncio.Protocol):
    """One client of the product on the running loop. Made by :meth:`open`.

    Attributes:
        connected: the result of ``session.connect``.
        closed_with: the server's close code; 1006 when the connection just ended; ``None`` while it lives.
        arrived: when the newest bytes came, monotonic seconds.
    """

    __slots__ = (
        "_buffer",
        "_calls",
        "_host",
        "_next_id",
        "_on_event",
        "_open",
        "_transport",
        "arrived",
        "closed_with",
        "connected",
    )

    def __init__(self, host: str, on_event: EventListener | None) -> None:
        self.connected: JSON = {}
        self.closed_with: int | None = None
        self.arrived = 0.0
        self._host = host
        self._on_event = on_event
        self._buffer = b""
        self._calls: dict[int, asyncio.Future[JSON]] = {}
        self._next_id = 0
        self._open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(
        cls,
        port: int,
        token: str,
        *,
        number: int = 0,
        resume: JSON | None = None,
        on_event: EventListener | None = None,
        timeout_seconds: float = CALL_SECONDS,
    ) -> Client:
        """Connect and sign in.

        Raises:
            WireError: refused, or the connection ended.
            TimeoutError: it took too long.
        """
        loop = asyncio.get_running_loop()
        host = f"127.0.0.1:{port}"
        async with asyncio.timeout(timeout_seconds):
            _, client = await loop.create_connection(
                lambda: cls(host, on_event), "127.0.0.1", port, local_addr=source_address(number)
            )
            try:
                await client._open
                params: JSON = {"token": token, "client": "fixnado-bench/1"}
                if resume is not None:
                    params["resume"] = resume
                client.connected = await client.call("session.connect", params)
            except BaseException:
                client.abort()
                raise
        return client

    async def call(self, method: str, params: JSON | None = None) -> JSON:
        """One command; :attr:`arrived` then says when its reply came.

        Raises:
            WireError: the error reply's type, or the connection ended.
        """
        self._next_id += 1
        reply: asyncio.Future[JSON] = asyncio.get_running_loop().create_future()
        self._calls[self._next_id] = reply
        self._send({"jsonrpc": "2.0", "id": self._next_id, "method": method, "params": params or {}})
        return await reply

    def _send(self, message: JSON) -> None:
        if self._transport is None:
            raise WireError("not connected")
        self._transport.write(client_frame(orjson.dumps(message)))

    def abort(self) -> None:
        """Vanish without a word, as a phone in a tunnel does."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(handshake(self._host, "/socket", SUBPROTOCOL))

    def data_received(self, data: bytes) -> None:
        self.arrived = time.monotonic()
        self._buffer = self._buffer + data if self._buffer else data
        if not self._open.done():
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            self._buffer = rest
            if not head.startswith(b"HTTP/1.1 101"):
                self._open.set_exception(WireError(head.decode(errors="replace").splitlines()[0]))
                return
            self._open.set_result(None)
        frames, self._buffer = split_frames(self._buffer)
        for opcode, payload in frames:
            if opcode == TEXT:
                self._take(orjson.loads(payload))
            elif opcode == CLOSE:
                self.closed_with = int.from_bytes(payload[:2], "big") if payload else 1005

    def _take(self, message: JSON) -> None:
        method = message.get("method")
        if method == "event":
            if self._on_event is not None:
                self._on_event(self, message["params"], self.arrived)
        elif method == "ping":
            assert self._transport is not None
            self._transport.write(client_frame(PONG))
        elif "id" in message:
            reply = self._calls.pop(message["id"], None)
            if reply is None or reply.done():
                return
            if "error" in message:
                reply.set_exception(WireError(message["error"]["data"]["type"]))
            else:
                reply.set_result(message["result"])

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.closed_with is None:
            self.closed_with = 1006
        gone = WireError(f"the connection ended ({self.closed_with})")
        waiting: list[asyncio.Future[Any]] = [*self._calls.values(), self._open]
        self._calls.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(gone)
                future.exception()  # whoever waits sees it; nobody is told when nobody does
