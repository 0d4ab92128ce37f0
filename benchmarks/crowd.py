"""Many sockets on one server, set up one by one and then received from by a loop in C."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import orjson

from benchmarks.native import Sink
from benchmarks.wire import SUBPROTOCOL, RawSocket, WireError

Progress = Callable[[float], None]
"""Told how far something is, 0–1."""


def no_progress(_share: float) -> None:
    """For those who do not show it."""


Greeting = Callable[[RawSocket, int], None]
"""What a client says and hears between the upgrade and the first message."""


def silent(_sock: RawSocket, _number: int) -> None:
    """Servers to which a socket is all."""


def fixnado(sock: RawSocket, number: int, channel: str = "availability:plumbing:camden") -> None:
    """``session.connect`` and ``channel.subscribe``.

    Raises:
        WireError: one of them was refused.
    """
    for method, params in (
        ("session.connect", {"token": f"user{number}"}),
        ("channel.subscribe", {"channel": channel}),
    ):
        sock.send(orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))
    for _ in range(2):
        reply = orjson.loads(sock.receive())
        if "result" not in reply:
            raise WireError(str(reply))


def socket_io(sock: RawSocket, _number: int) -> None:
    """Engine.IO 4 open, Socket.IO 5 connect."""
    if not sock.receive().startswith(b"0{"):
        raise WireError("no Engine.IO handshake")
    sock.send(b"40")
    if not sock.receive().startswith(b"40{"):
        raise WireError("no Socket.IO connect")


def told_ready(sock: RawSocket, _number: int) -> None:
    """Servers that say when a socket has joined."""
    sock.receive()


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one talks to a server until messages flow."""

    path: str = "/"
    subprotocol: str | None = None
    extension: str | None = None
    greet: Greeting = silent


FIXNADO = Dialect("/socket", SUBPROTOCOL, greet=fixnado)
DEFLATING = replace(FIXNADO, extension="permessage-deflate")


class Crowd:
    """Connected, greeted sockets and the sink that counts what they get. A context manager.

    Raises:
        WireError: the server refused one of them.
    """

    def __init__(
        self, port: int, count: int, dialect: Dialect, progress: Progress = no_progress, *, first: int = 0
    ) -> None:
        self.sockets: list[RawSocket] = []
        try:
            for number in range(first, first + count):
                sock = RawSocket(port, number)
                self.sockets.append(sock)
                sock.upgrade(f"127.0.0.1:{port}", dialect.path, dialect.subprotocol, dialect.extension)
                dialect.greet(sock, number)
                if number % 50 == 0:
                    progress((number - first) / count)
            if any(sock.pending for sock in self.sockets):
                raise WireError("a message came before any was sent")
            self.sink = Sink([sock.sock.fileno() for sock in self.sockets])
        except BaseException:
            self._hang_up()
            raise
        progress(1.0)

    def __len__(self) -> int:
        return len(self.sockets)

    def _hang_up(self) -> None:
        for sock in self.sockets:
            sock.close()

    def close(self) -> None:
        self.sink.close()
        self._hang_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
