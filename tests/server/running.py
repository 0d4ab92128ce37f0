"""The whole product on a free port, inside the test's own loop, and a client of its socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import aiohttp
import uvicorn

from channels.protocol import SUBPROTOCOL
from domain.accounts import Login
from domain.identity import Actor, Role
from domain.types import JSON, Origin
from persistence.migrate import upgrade
from server.app import Application, database_options
from server.demo import MASTER_KEY
from server.settings import Settings
from server.uvicorn_protocol import DrainingServer, server_options
from tests.channels.fakes import until

ORIGIN = Origin("test-running")
PASSWORD = "long enough for a test"


class Running:
    """A started application and where it is reached."""

    def __init__(self, app: Application, port: int, http: aiohttp.ClientSession) -> None:
        self.app = app
        self.url = f"http://127.0.0.1:{port}"
        self.http = http

    async def user(self, email: str, *roles: Role) -> str:
        """Opens an account; returns its id."""
        made = await self.app.accounts.add(email, PASSWORD, email.partition("@")[0].title(), frozenset(roles), ORIGIN)
        user_id: str = made["user"]["id"]
        return user_id

    async def token(self, email: str) -> str:
        tokens = await self.app.accounts.login(Login(email=email, password=PASSWORD), ORIGIN)
        access_token: str = tokens["access_token"]
        return access_token

    async def actor(self, email: str) -> Actor:
        """Signs in; returns who that is."""
        claims = self.app.tokens.verify(await self.token(email))
        return await self.app.accounts.actor(claims.user_id, claims.session_id)

    async def rest(self, token: str, method: str, **params: Any) -> tuple[int, JSON]:
        """A command over REST: status and body."""
        headers = {"Authorization": f"Bearer {token}"}
        async with self.http.post(f"{self.url}/commands/{method}", json=params, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def get(self, path: str) -> tuple[int, JSON]:
        async with self.http.get(f"{self.url}{path}") as answer:
            return answer.status, await answer.json(content_type=None)

    async def socket(self, token: str) -> Socket:
        """A socket that is signed in."""
        opened = await self.http.ws_connect(f"{self.url}/socket", protocols=(SUBPROTOCOL,))
        socket = Socket(opened)
        socket.hello = await socket.call("session.connect", token=token)
        return socket


class Socket:
    """A client that keeps every event it hears.

    Attributes:
        hello: what ``session.connect`` was answered.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._replies: dict[int, asyncio.Future[JSON]] = {}
        self._number = 0
        self.hello: JSON = {}
        self.events: list[JSON] = []
        self._reading = asyncio.create_task(self._read())

    @property
    def closed_with(self) -> int | None:
        return self._socket.close_code

    async def _read(self) -> None:
        async for message in self._socket:
            shape = message.json()
            if shape.get("method") == "event":
                self.events.append(shape["params"])
            elif shape.get("id") in self._replies:
                self._replies.pop(shape["id"]).set_result(shape)

    async def ask(self, method: str, **params: Any) -> JSON:
        """The reply, result or error."""
        self._number += 1
        number = self._number
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        async with asyncio.timeout(10):
            answer: JSON = await reply
        return answer

    async def call(self, method: str, **params: Any) -> JSON:
        reply = await self.ask(method, **params)
        assert "result" in reply, reply
        result: JSON = reply["result"]
        return result

    async def hears(self, type_: str, seconds: float = 5.0) -> JSON:
        """The first event of this type, which may have come already."""
        await until(lambda: any(event["type"] == type_ for event in self.events), seconds)
        return next(event for event in self.events if event["type"] == type_)

    async def ends(self, seconds: float = 5.0) -> int | None:
        """The code with which the server closes the socket."""
        await until(lambda: self._socket.closed, seconds)
        return self.closed_with

    async def close(self) -> None:
        await self._socket.close()
        await self._reading

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@asynccontextmanager
async def running(
    database_url: str, prepare: Callable[[Application], None] = lambda _: None, **settings: Any
) -> AsyncIterator[Running]:
    """Serves on a free port with a database that is migrated first."""
    always = {"database_url": database_url, "database_tls": "off", "master_key": MASTER_KEY}
    chosen = Settings.load({}, None, always | settings)
    await upgrade(chosen.database_url, database_options(chosen))
    app = Application(chosen)
    prepare(app)
    await app.start()
    config = uvicorn.Config(app.asgi, host="127.0.0.1", port=0, lifespan="off", log_config=None, **server_options())
    server = DrainingServer(config, drain=lambda: app.realtime.drain(0, 1))
    # serve() would take over the test runner's signal handlers.
    serving = asyncio.create_task(server._serve())
    try:
        await until(lambda: server.started)
        async with aiohttp.ClientSession() as http:
            yield Running(app, server.servers[0].sockets[0].getsockname()[1], http)
    finally:
        server.should_exit = True
        async with asyncio.timeout(15):
            await serving
        await app.stop()
