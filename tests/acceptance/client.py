"""A client of the published contract that shares no code with the product: aiohttp and the standard library.

It keeps everything it hears, in order, so that a test can ask afterwards whether anything came twice, late or not at
all. What it does by itself is what an SDK must do: answer pings, and remember where it stands on each channel.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

JSON = dict[str, Any]

PASSWORD = "demo-Fixnado-2026"
BUSY_TRIES = 30
CUSTOMER = "customer@demo.test"
ADMIN = "admin@demo.test"
PROVIDERS = ("provider1@demo.test", "provider2@demo.test", "provider3@demo.test")
CAMDEN = {"lat": 51.539, "lon": -0.1426}

SUBPROTOCOL = "fixnado.v1"
WAIT_SECONDS = 10.0
"""How long anything may take before a test gives up; generous, because the machine is shared."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024


def new_key() -> str:
    return str(uuid.uuid4())


class Refused(Exception):
    """An error object on the socket, whole."""

    def __init__(self, error: JSON) -> None:
        super().__init__(json.dumps(error))
        self.error = error

    @property
    def code(self) -> int:
        return int(self.error["code"])

    @property
    def type(self) -> str:
        return str(self.error["data"]["type"])


class Closed(Exception):
    """The socket went before the answer came: whether the command had its effect is not known."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP response."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def type(self) -> str:
        return self.headers.get("Content-Type", "").partition(";")[0]

    @property
    def body(self) -> JSON:
        parsed = json.loads(self.raw)
        assert isinstance(parsed, dict)
        return parsed


class Rest:
    """HTTP of one server."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WAIT_SECONDS))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> Answer:
        """One request; ``body`` is sent as JSON, ``data`` as it is."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if body is not None:
            data = json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        async with self._session.request(
            method, self.base + path, data=data, headers=sent, allow_redirects=False
        ) as reply:
            return Answer(reply.status, reply.headers.copy(), await reply.read())

    async def get(self, path: str, **more: Any) -> Answer:
        return await self.send("GET", path, **more)

    async def post(self, path: str, body: object = None, **more: Any) -> Answer:
        return await self.send("POST", path, body, **more)

    async def login(self, email: str, password: str = PASSWORD) -> JSON:
        """Signs in, again after a moment while the server says that it is busy, as every client should."""
        answer = await self.post("/auth/login", {"email": email, "password": password})
        for _ in range(BUSY_TRIES):
            if answer.status != 503:
                break
            await asyncio.sleep(0.3)
            answer = await self.post("/auth/login", {"email": email, "password": password})
        assert answer.status == 200, answer
        return answer.body

    async def register(self, role: str = "customer", password: str = PASSWORD) -> str:
        """A new account; returns its e-mail address."""
        email = f"{uuid.uuid4().hex}@people.test"
        answer = await self.post(
            "/auth/register", {"email": email, "password": password, "name": "Somebody", "role": role}
        )
        assert answer.status == 201, answer
        return email

    async def command(self, method: str, params: JSON, token: str, key: str | None = None) -> Answer:
        headers = {"Idempotency-Key": key} if key else {}
        return await self.post(f"/commands/{method}", params, token=token, headers=headers)


@dataclass(slots=True, eq=False)
class Socket:
    """One live socket. Made by :meth:`open`; then :meth:`connect`, :meth:`call`, :meth:`event`.

    Attributes:
        texts: every text frame, as it came.
        events: params of every event, as it came, live or replayed in a reply.
        times: when each of them came, in seconds of ``time.time()``.
        notices: other notifications (``ping``, ``session.expiring``, ``drain``).
        asked: the method of each request, by id.
        stray: replies that nobody waits for, such as errors with ``"id": null``.
        positions: ``{channel: {epoch, offset}}``, to resume from.
        answers_pings: what a client does; a test may stop it.
        ended, code: whether the socket is closed, and with which code.
    """

    websocket: aiohttp.ClientWebSocketResponse
    session: aiohttp.ClientSession
    texts: list[str] = field(default_factory=list)
    events: list[JSON] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    notices: list[JSON] = field(default_factory=list)
    asked: dict[object, str] = field(default_factory=dict)
    stray: list[JSON] = field(default_factory=list)
    positions: dict[str, JSON] = field(default_factory=dict)
    connected: JSON = field(default_factory=dict)
    answers_pings: bool = True
    ended: bool = False
    code: int | None = None
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _waiting: dict[object, asyncio.Future[JSON]] = field(default_factory=dict)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _reader: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        base: str,
        *,
        path: str = "/socket",
        origin: str | None = None,
        protocols: tuple[str, ...] = (SUBPROTOCOL,),
        headers: Mapping[str, str] | None = None,
    ) -> Socket:
        """A WebSocket that is not signed in yet.

        Raises:
            aiohttp.WSServerHandshakeError: the server refused the upgrade.
        """
        session = aiohttp.ClientSession()
        try:
            websocket = await session.ws_connect(
                base + path,
                protocols=protocols,
                origin=origin,
                headers=headers,
                autoping=True,
                max_msg_size=MAX_MESSAGE_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
            )
        except BaseException:
            await session.close()
            raise
        socket = cls(websocket, session)
        open_sockets.append(socket)
        socket._reader = asyncio.create_task(socket._read())
        return socket

    async def connect(self, token: str, resume: Mapping[str, JSON] | None = None, client: str = "test/1") -> JSON:
        """``session.connect``; returns its result."""
        params: JSON = {"token": token, "client": client}
        if resume is not None:
            params["resume"] = dict(resume)
        self.connected = await self.call("session.connect", params)
        return self.connected

    async def call(self, method: str, params: JSON | None = None) -> JSON:
        """One command.

        Raises:
            Refused: the server answered with an error.
            Closed: the socket went first.
        """
        reply = await self.exchange(method, params)
        if "error" in reply:
            raise Refused(reply["error"])
        result = reply["result"]
        assert isinstance(result, dict)
        return result

    async def exchange(self, method: str, params: JSON | None = None) -> JSON:
        """One command; the whole reply, be it a result or an error."""
        number = next(self._ids)
        self.asked[number] = method
        message: JSON = {"jsonrpc": "2.0", "id": number, "method": method}
        if params is not None:
            message["params"] = params
        return await self.ask(number, json.dumps(message))

    async def ask(self, request_id: object, text: str) -> JSON:
        """Sends a text and waits for the reply with that id."""
        if self.ended:
            raise Closed
        reply: asyncio.Future[JSON] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = reply
        try:
            await self.send(text)
            async with asyncio.timeout(WAIT_SECONDS):
                return await reply
        finally:
            self._waiting.pop(request_id, None)

    async def send(self, text: str) -> None:
        try:
            await self.websocket.send_str(text)
        except (aiohttp.ClientError, ConnectionError):
            raise Closed from None

    async def raw_reply(self, text: str) -> JSON:
        """Sends a text that may have no id; the next reply that nobody else waits for."""
        before = len(self.stray)
        await self.send(text)
        await self.until(lambda: len(self.stray) > before)
        return self.stray[before]

    async def until(self, holds: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
        """Waits until something that is heard makes it true.

        Raises:
            TimeoutError: it did not become true in time.
        """
        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(holds)

    async def event(
        self, type_: str, channel: str = "", after: int = 0, seconds: float = WAIT_SECONDS, **data: object
    ) -> JSON:
        """The first event of that type, heard already or yet to come.

        Args:
            channel: what its channel begins with.
            after: look only at events from this place of :attr:`events` on.
            data: members that its data must have.
        """

        def found() -> JSON | None:
            for event in self.events[after:]:
                fits = event["type"] == type_ and event["channel"].startswith(channel)
                if fits and all(event["data"].get(name) == value for name, value in data.items()):
                    return event
            return None

        try:
            await self.until(lambda: found() is not None, seconds)
        except TimeoutError:
            heard = [(event["channel"].partition(":")[0], event["type"]) for event in self.events[after:]]
            raise AssertionError(f"no {type_} {data} on {channel or 'any channel'}; heard {heard}") from None
        event = found()
        assert event is not None
        return event

    def heard(self, channel: str, after: int = 0) -> list[JSON]:
        """Events of one channel, in the order they came."""
        return [event for event in self.events[after:] if event["channel"] == channel]

    async def notice(self, method: str, seconds: float = WAIT_SECONDS) -> JSON:
        """The first notification of that method other than an event."""
        await self.until(lambda: any(notice["method"] == method for notice in self.notices), seconds)
        return next(notice for notice in self.notices if notice["method"] == method)

    async def gone(self) -> None:
        """Returns when the socket has ended, whenever that is."""
        async with self._news:
            await self._news.wait_for(lambda: self.ended)

    async def close_code(self, seconds: float = WAIT_SECONDS) -> int:
        """Waits for the server to close; the code it gave."""
        await self.until(lambda: self.ended, seconds)
        assert self.code is not None
        return self.code

    async def close(self) -> None:
        """Leaves, with a proper goodbye."""
        if self in open_sockets:
            open_sockets.remove(self)
            await self.websocket.close()
            await self._end()

    async def cut(self) -> None:
        """Drops the connection as a lost network does: no close frame, the TCP connection is reset."""
        open_sockets.remove(self)
        response = self.websocket._response
        if response.connection is not None and response.connection.transport is not None:
            response.connection.transport.abort()
        response.close()
        await self._end()

    async def _end(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self.session.close()

    def own(self, kind: str) -> str:
        """The name of the session's own channel of that kind."""
        names: list[str] = list(self.connected["channels"])
        return next(name for name in names if name.startswith(f"{kind}:"))

    async def _read(self) -> None:
        try:
            while True:
                message = await self.websocket.receive()
                if message.type is aiohttp.WSMsgType.TEXT:
                    await self._take(message.data)
                    continue
                # aiohttp forgets the server's code when its own answer finds the connection closed.
                closed = message.type is aiohttp.WSMsgType.CLOSE
                self.code = message.data if closed else self.websocket.close_code
                return
        finally:
            self.ended = True
            for reply in self._waiting.values():
                if not reply.done():
                    reply.set_exception(Closed())
                    reply.exception()
            async with self._news:
                self._news.notify_all()

    async def _take(self, text: str) -> None:
        frame = json.loads(text)
        self.texts.append(text)
        match frame.get("method"):
            case "event":
                self._note(frame["params"])
            case "ping":
                self.notices.append(frame)
                if self.answers_pings:
                    await self.websocket.send_str('{"jsonrpc":"2.0","method":"pong"}')
            case str():
                self.notices.append(frame)
            case _:
                self._reply(frame)
        async with self._news:
            self._news.notify_all()

    def _reply(self, frame: JSON) -> None:
        result = frame.get("result", {})
        channels = dict(result.get("channels", {}))
        if "channel" in result and "epoch" in result:
            channels[result["channel"]] = result
        for name, state in channels.items():
            for event in state["events"]:
                self._note(event)
            self.positions[name] = {"epoch": state["epoch"], "offset": state["offset"]}
        reply = self._waiting.get(frame.get("id"))
        if reply is not None and not reply.done():
            reply.set_result(frame)
        else:
            self.stray.append(frame)

    def _note(self, event: JSON) -> None:
        self.events.append(event)
        self.times.append(time.time())
        if "offset" in event and event["channel"] in self.positions:
            self.positions[event["channel"]]["offset"] = event["offset"]


open_sockets: list[Socket] = []
"""Sockets of the running test that are not closed yet."""


async def close_all() -> None:
    """Closes what a test that failed has left open."""
    while open_sockets:
        await open_sockets[-1].close()


@asynccontextmanager
async def signed_in(
    base: str, email: str, password: str = PASSWORD, resume: Mapping[str, JSON] | None = None, **options: Any
) -> AsyncIterator[Socket]:
    """A socket of that person, closed at the end."""
    async with Rest(base) as rest:
        token = (await rest.login(email, password))["access_token"]
    socket = await Socket.open(base, **options)
    try:
        await socket.connect(token, resume)
        yield socket
    finally:
        await socket.close()


def offsets(events: list[JSON]) -> list[int]:
    """Offsets of those that have one."""
    return [event["offset"] for event in events if "offset" in event]


def is_gapless(events: list[JSON]) -> bool:
    """Whether each offset is the one before plus one."""
    places = offsets(events)
    return all(later == earlier + 1 for earlier, later in itertools.pairwise(places))
