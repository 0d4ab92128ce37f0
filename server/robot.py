"""A small client of the contract in Python: for the terminal feed, the demo's traffic, and load."""

from __future__ import annotations

import asyncio
import itertools
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from domain.types import JSON

REQUEST_TIMEOUT_SECONDS = 15.0
EVENTS_KEPT = 10_000


class RobotError(Exception):
    """The server refused, or could not be reached; ``type`` is the refusal's code."""

    def __init__(self, type_: str, message: str) -> None:
        super().__init__(f"{type_}: {message}")
        self.type = type_


async def post(base: str, path: str, body: JSON, token: str | None = None) -> JSON:
    """One REST call.

    Raises:
        RobotError: a problem document, or no answer at all (``unreachable``).
    """
    return await asyncio.to_thread(_post, base + path, body, token)


def _post(url: str, body: JSON, token: str | None) -> JSON:
    if not url.startswith(("http://", "https://")):
        raise RobotError("unreachable", f"{url} is no web address")
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, orjson.dumps(body), headers)  # noqa: S310 — checked above
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_SECONDS) as reply:  # noqa: S310 — checked above
            answer: JSON = orjson.loads(reply.read() or b"{}")
            return answer
    except urllib.error.HTTPError as error:
        problem = orjson.loads(error.read() or b"{}")
        raise RobotError(problem.get("type", str(error.code)), problem.get("detail", error.reason)) from None
    except (urllib.error.URLError, TimeoutError) as error:
        raise RobotError("unreachable", f"{url}: {getattr(error, 'reason', error)}") from None


@dataclass(slots=True)
class Robot:
    """One signed-in socket. Use :meth:`open`, then :meth:`call` and :meth:`events`; ends with :meth:`close`."""

    socket: ClientConnection
    connected: JSON = field(default_factory=dict)
    _ids: itertools.count[int] = field(default_factory=itertools.count)
    _waiting: dict[int, asyncio.Future[JSON]] = field(default_factory=dict)
    _events: asyncio.Queue[JSON | None] = field(default_factory=lambda: asyncio.Queue(EVENTS_KEPT))
    _reader: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, base: str, email: str, password: str, client: str = "fixnado-robot/1") -> Robot:
        """Logs in and connects.

        Raises:
            RobotError: wrong credentials, or no server there.
        """
        tokens = await post(base, "/auth/login", {"email": email, "password": password})
        url = "ws" + base.removeprefix("http") + "/socket"
        try:
            socket = await connect(url, subprotocols=[Subprotocol("fixnado.v1")], ping_interval=None, max_size=None)
        except OSError as error:
            raise RobotError("unreachable", f"{url}: {error}") from None
        robot = cls(socket)
        robot._reader = asyncio.create_task(robot._read(), name="robot")
        robot.connected = await robot.call("session.connect", {"token": tokens["access_token"], "client": client})
        return robot

    async def call(self, method: str, params: JSON | None = None) -> JSON:
        """One command.

        Raises:
            RobotError: the refusal, or ``closed`` when the socket went.
        """
        number = next(self._ids)
        reply: asyncio.Future[JSON] = asyncio.get_running_loop().create_future()
        self._waiting[number] = reply
        frame = {"jsonrpc": "2.0", "id": number, "method": method, "params": params or {}}
        try:
            await self.socket.send(orjson.dumps(frame).decode())
            async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
                return await reply
        except ConnectionClosed as error:
            raise RobotError("closed", str(error)) from None
        finally:
            self._waiting.pop(number, None)

    async def events(self) -> AsyncIterator[JSON]:
        """Events as they come, until the socket closes."""
        while (event := await self._events.get()) is not None:
            yield event

    async def close(self) -> None:
        await self.socket.close()
        if self._reader is not None:
            await self._reader

    async def _read(self) -> None:
        try:
            async for text in self.socket:
                await self._take(orjson.loads(text))
        except ConnectionClosed:
            pass  # told to whoever waits, below
        finally:
            for reply in self._waiting.values():
                if not reply.done():
                    reply.set_exception(RobotError("closed", "the socket closed"))
            self._put(None)

    async def _take(self, frame: JSON) -> None:
        if frame.get("method") == "event":
            self._put(frame["params"])
        elif frame.get("method") == "ping":
            await self.socket.send('{"jsonrpc":"2.0","method":"pong"}')
        elif (reply := self._waiting.get(frame.get("id", -1))) is not None and not reply.done():
            if "error" in frame:
                error = frame["error"]
                reply.set_exception(RobotError(error["data"]["type"], error["message"]))
            else:
                reply.set_result(frame["result"])

    def _put(self, event: JSON | None) -> None:
        if self._events.full():
            self._events.get_nowait()  # a reader that fell this far behind sees the newest, not the oldest
        self._events.put_nowait(event)


def own_channel(connected: JSON, kind: str) -> str:
    """The session's own channel of that kind, e.g. ``provider:01J…``."""
    channels: dict[str, Any] = connected["channels"]
    return next(name for name in channels if name.startswith(f"{kind}:"))
