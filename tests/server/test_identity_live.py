"""Identity over the wire: a real process's parts, REST and sockets, in the test's loop.

What is looked for here is what no single part can show: that sockets close in time, that proxies count, that secrets
stay out of every log line, error and event.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyotp
import pytest
import structlog
import uvicorn
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from domain.types import JSON, Origin
from persistence import tables
from persistence.migrate import upgrade
from server.app import Application, database_options
from server.passwords import Passwords
from server.settings import Settings
from server.telemetry import configure_logging
from server.uvicorn_protocol import DrainingServer, server_options
from tests.channels.fakes import until

PASSWORD = "canary-password-1"
NEW_PASSWORD = "canary-password-2"
ANN = "ann@canary.test"


class Node:
    """A server on a free port, and a client of it."""

    def __init__(self, app: Application, port: int, client: httpx.AsyncClient, mail: Path) -> None:
        self.app = app
        self.port = port
        self.client = client
        self.mail = mail

    async def post(
        self, path: str, body: JSON | None = None, token: str | None = None, **headers: str
    ) -> httpx.Response:
        given = headers | ({"Authorization": f"Bearer {token}"} if token else {})
        return await self.client.post(path, json=body or {}, headers=given)

    async def register(self, email: str = ANN) -> None:
        made = {"email": email, "password": PASSWORD, "name": "Ann", "role": "customer"}
        assert (await self.post("/auth/register", made)).status_code == 201

    async def login(self, email: str = ANN, password: str = PASSWORD, **more: Any) -> JSON:
        answer = await self.post("/auth/login", {"email": email, "password": password} | more)
        assert answer.status_code == 200, answer.text
        body: JSON = answer.json()
        return body

    async def live(self, tokens: JSON) -> ClientConnection:
        """A connected socket."""
        socket = await connect(f"ws://127.0.0.1:{self.port}/socket", subprotocols=[Subprotocol("fixnado.v1")])
        hello: JSON = {"jsonrpc": "2.0", "id": 1, "method": "session.connect"}
        hello["params"] = {"token": tokens["access_token"], "client": "test/1"}
        await socket.send(json.dumps(hello))
        while json.loads(await socket.recv()).get("id") != 1:
            pass
        return socket

    async def letter(self, kind: str) -> str:
        """The secret in the newest letter of a kind."""
        await until(lambda: any(self.mail.glob(f"{kind}-*.txt")) if self.mail.exists() else False)
        newest = max(self.mail.glob(f"{kind}-*.txt"), key=lambda file: file.stat().st_mtime_ns)
        words = newest.read_text().replace(".", " ").split()
        return next(word for word in words if word.startswith("fxp_") or (word.isdigit() and len(word) == 6))


@asynccontextmanager
async def node_on(directory: Path, **more: Any) -> AsyncIterator[Node]:
    settings = Settings(
        database_url=f"sqlite+aiosqlite:///{directory / 'live.db'}",
        mail_directory=str(directory / "mail"),
        drain_seconds=0,
        **more,
    )
    await upgrade(settings.database_url, database_options(settings))
    app = Application(settings)
    # The cost is tested elsewhere; here it would only take time.
    app.passwords.close()
    cheap = Passwords(memory_kib=64)
    app.passwords.__dict__.update(cheap.__dict__)
    await app.start()
    config = uvicorn.Config(app.asgi, host="127.0.0.1", port=0, log_config=None, lifespan="off", **server_options())
    server = DrainingServer(config, app.drain)
    serving = asyncio.ensure_future(server._serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        yield Node(app, port, client, directory / "mail")
    server.should_exit = True
    await serving
    await app.stop()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with node_on(tmp_path) as node:
        yield node


async def closed_with(socket: ClientConnection, seconds: float = 1.0) -> int | None:
    """The close code, if it comes in time."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                await socket.recv()
    except ConnectionClosed as end:
        return end.rcvd.code if end.rcvd else None


async def enrol(node: Node, tokens: JSON) -> tuple[str, list[str]]:
    secret: str = (await node.post("/auth/mfa/enrol", token=tokens["access_token"])).json()["secret"]
    code = {"code": pyotp.TOTP(secret).now()}
    answer = await node.post("/auth/mfa/activate", code, tokens["access_token"])
    assert answer.status_code == 200, answer.text
    return secret, answer.json()["recovery_codes"]


# --- sockets ----------------------------------------------------------------------------------------------------------


async def test_sockets_of_ended_sign_ins_close_within_a_second(node: Node) -> None:
    await node.register()
    tokens, other, third = [await node.login() for _ in range(3)]
    token = tokens["access_token"]

    # Sign-out closes its own.
    socket, staying = await node.live(third), await node.live(tokens)
    await node.post("/auth/logout", token=third["access_token"])
    assert await closed_with(socket) == 4503

    # A change of the password closes the others'.
    socket = await node.live(other)
    change = {"password": PASSWORD, "new_password": NEW_PASSWORD}
    assert (await node.post("/auth/password/change", change, token)).status_code == 204
    assert await closed_with(socket) == 4503

    # So does a change of the second factor.
    socket = await node.live(await node.login(password=NEW_PASSWORD))
    _, codes = await enrol(node, tokens)
    assert await closed_with(socket) == 4503

    # Removing a device closes what came from it.
    asked = await node.login(password=NEW_PASSWORD, device={"id": "d1", "name": "Phone"})
    phone = (await node.post("/auth/mfa/verify", {"challenge": asked["challenge"], "code": codes[0]})).json()
    socket = await node.live(phone)
    devices = (await node.client.get("/auth/devices", headers={"Authorization": f"Bearer {token}"})).json()["devices"]
    gone = await node.client.delete(f"/auth/devices/{devices[0]['id']}", headers={"Authorization": f"Bearer {token}"})
    assert gone.status_code == 204
    assert await closed_with(socket) == 4503

    # Through all of this the one that asked stays; a reset closes it as well.
    await staying.ping()
    assert (await node.post("/auth/password/reset", {"email": ANN})).status_code == 202
    reset = {"token": await node.letter("password_reset"), "new_password": PASSWORD}
    assert (await node.post("/auth/password/reset/confirm", reset)).status_code == 204
    assert await closed_with(staying) == 4503


async def test_sockets_of_a_disabled_account_and_of_a_reused_token_close_within_a_second(node: Node) -> None:
    await node.register()
    first = await node.login()
    socket = await node.live(first)
    second = (await node.post("/auth/refresh", {"refresh_token": first["refresh_token"]})).json()
    await node.post("/auth/refresh", {"refresh_token": second["refresh_token"]})
    answer = await node.post("/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert answer.status_code == 401
    assert await closed_with(socket) == 4503

    socket = await node.live(await node.login())
    await node.app.credentials.disable(ANN, Origin("cli"))
    assert await closed_with(socket) == 4503


# --- limits and proxies -----------------------------------------------------------------------------------------------


async def knock(node: Node, count: int, **headers: str) -> list[httpx.Response]:
    body = {"refresh_token": "fxr_nothing"}
    return [await node.post("/auth/refresh", body, **headers) for _ in range(count)]


async def test_forwarded_addresses_count_only_from_trusted_proxies(tmp_path: Path) -> None:
    limits = {"auth_requests_per_second": 0.1, "auth_requests_burst": 2}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with node_on(tmp_path / "a", **limits) as node:
        answers = [
            await node.post("/auth/refresh", {"refresh_token": "x"}, **{"X-Forwarded-For": f"192.0.2.{n}"})
            for n in range(3)
        ]
        assert [answer.status_code for answer in answers] == [401, 401, 429], "a client's own word does not count"
        assert int(answers[2].headers["retry-after"]) >= answers[2].json()["retry_after_seconds"] > 0
    async with node_on(tmp_path / "b", trusted_proxies=("127.0.0.1",), **limits) as node:
        for address in ("192.0.2.1", "192.0.2.2"):
            answers = await knock(node, 3, **{"X-Forwarded-For": f"10.9.9.9, {address}"})
            assert [answer.status_code for answer in answers] == [401, 401, 429]


async def test_place_counts_only_from_trusted_proxies(tmp_path: Path) -> None:
    london = {"CloudFront-Viewer-Latitude": "51.5", "CloudFront-Viewer-Longitude": "-0.12"}
    for number, proxies in enumerate(((), ("127.0.0.1",))):
        directory = tmp_path / str(number)
        directory.mkdir()
        async with node_on(directory, trusted_proxies=proxies) as node:
            await node.register()
            body = {"email": ANN, "password": PASSWORD}
            for place in (london, london | {"CloudFront-Viewer-Latitude": "nan"}):
                assert (await node.post("/auth/login", body, **place)).status_code == 200

            async def work(connection: AsyncConnection) -> list[float | None]:
                query = select(tables.sessions.c.lat).order_by(tables.sessions.c.id)
                return list((await connection.execute(query)).scalars())

            assert await node.app.database.read(work) == [51.5 if proxies else None, None]


async def test_a_person_has_one_rate_whichever_door_requests_come_through(tmp_path: Path) -> None:
    async with node_on(tmp_path, commands_per_second=1, commands_burst=10) as node:
        await node.register()
        tokens = await node.login()
        socket = await node.live(tokens)
        answers = [await node.post("/commands/service.list", token=tokens["access_token"]) for _ in range(40)]
        assert 9 <= [answer.status_code for answer in answers].count(200) <= 15
        assert answers[-1].status_code == 429
        assert float(answers[-1].headers["retry-after"]) >= 1
        assert (await node.client.get("/auth/me", headers=_bearer(tokens))).status_code == 429
        # The bucket is the sockets' too, and refusals at REST have cost them nothing.
        await socket.send(json.dumps({"jsonrpc": "2.0", "id": 7, "method": "service.list", "params": {}}))
        while (reply := json.loads(await socket.recv())).get("id") != 7:
            pass
        assert reply["error"]["data"]["type"] == "too_many_requests"
        await socket.ping()


def _bearer(tokens: JSON) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


# --- tokens of the wrong kind -----------------------------------------------------------------------------------------


async def test_no_token_is_taken_for_another(node: Node) -> None:
    await node.register()
    tokens = await node.login()
    _, _ = await enrol(node, tokens)
    challenge = (await node.login())["challenge"]
    await node.post("/auth/password/reset", {"email": ANN})
    reset = await node.letter("password_reset")
    for foreign in (challenge, reset, tokens["refresh_token"]):
        answer = await node.client.get("/auth/me", headers={"Authorization": f"Bearer {foreign}"})
        assert (answer.status_code, answer.json()["type"]) == (401, "invalid_token")
    for path, name, foreign in (
        ("/auth/refresh", "refresh_token", [challenge, reset]),
        ("/auth/mfa/verify", "challenge", [reset, tokens["refresh_token"]]),
        ("/auth/password/reset/confirm", "token", [challenge, tokens["refresh_token"]]),
    ):
        for wrong in foreign:
            rest = {"/auth/mfa/verify": {"code": "1"}, "/auth/password/reset/confirm": {"new_password": "x" * 12}}
            answer = await node.post(path, {name: wrong} | rest.get(path, {}))
            assert (answer.status_code, answer.json()["type"]) == (401, "invalid_token"), path


# --- canaries ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def everything_logged() -> Iterator[io.StringIO]:
    """The process's log as an operator gets it, at its most talkative."""
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    configure_logging("json", "debug", stream)
    yield stream
    root.handlers = before
    root.setLevel(level)
    structlog.reset_defaults()


async def test_no_secret_is_in_a_log_line_an_error_or_an_event(everything_logged: io.StringIO, tmp_path: Path) -> None:
    secrets: set[str] = {PASSWORD, NEW_PASSWORD}
    errors: list[str] = []

    async with node_on(tmp_path) as node:

        async def ask(path: str, body: JSON, token: str | None = None) -> JSON:
            answer = await node.post(path, body, token)
            if answer.status_code >= 400:
                errors.append(answer.text)
            result: JSON = answer.json() if answer.content else {}
            return result

        await node.register()
        await ask("/auth/login", {"email": ANN, "password": "canary-wrong-password"})
        secrets.add("canary-wrong-password")
        tokens = await node.login()
        token = tokens["access_token"]
        socket = await node.live(tokens)
        secrets |= {token, tokens["refresh_token"]}
        begun = await ask("/auth/mfa/enrol", {}, token)
        secrets.add(begun["secret"])
        await ask("/auth/mfa/activate", {"code": "000000"}, token)
        given = await ask("/auth/mfa/activate", {"code": pyotp.TOTP(begun["secret"]).now()}, token)
        secrets |= set(given["recovery_codes"])
        challenge = (await node.login())["challenge"]
        secrets.add(challenge)
        await ask("/auth/mfa/verify", {"challenge": challenge, "code": "canary-wrong-code"})
        await ask("/auth/mfa/verify", {"challenge": challenge, "code": "canary-wrong-code", "more": challenge})
        secrets.add("canary-wrong-code")
        await ask("/auth/mfa/verify", {"challenge": challenge, "code": given["recovery_codes"][0]})
        await ask("/auth/step-up", {"password": PASSWORD, "code": given["recovery_codes"][1]}, token)
        await ask("/auth/password/change", {"password": "canary-wrong-password", "new_password": NEW_PASSWORD}, token)
        await ask("/auth/password/change", {"password": PASSWORD, "new_password": NEW_PASSWORD}, token)
        await ask("/auth/password/reset", {"email": ANN})
        reset = await node.letter("password_reset")
        secrets.add(reset)
        await ask("/auth/password/reset/confirm", {"token": reset, "new_password": "short"})
        await ask("/auth/password/reset/confirm", {"token": reset, "new_password": PASSWORD})
        await ask("/auth/password/reset/confirm", {"token": reset, "new_password": PASSWORD})
        await closed_with(socket)

        async def events(connection: AsyncConnection) -> str:
            return repr((await connection.execute(select(tables.log.c.frame))).all())

        told = await node.app.database.read(events)
        metrics = (await node.client.get("/metrics")).text
        master = (tmp_path / "master.key").read_text().strip()

    log = everything_logged.getvalue()
    assert log.count('"event":"security_event"') >= 8, "it was listening"
    assert len(errors) >= 6
    assert "session.revoked" in told
    for secret in secrets | {master}:
        for place, text in (("log", log), ("errors", "".join(errors)), ("events", told), ("metrics", metrics)):
            assert secret not in text, (secret, place)
    assert ANN not in log, "who it is, the log says by id"


async def test_what_is_stored_beside_the_database_is_its_owners_alone(node: Node) -> None:
    key = node.mail.parent / "master.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert datetime.now(UTC).timestamp() - key.stat().st_mtime < 60
