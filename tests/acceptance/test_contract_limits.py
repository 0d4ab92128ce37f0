"""What the contract promises when a client is late, silent, too loud, or when its token ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from uuid import uuid4

import aiohttp
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from persistence.database import Database
from persistence.vault import DatabaseVault, master_key_in
from tests.acceptance.client import ADMIN, CAMDEN, CUSTOMER, JSON, Closed, Refused, Rest, Socket, new_key, signed_in
from tests.acceptance.demo import Demo

HEARTBEAT_SECONDS = 1.0
GRACE_SECONDS = 2.2
TICK_SECONDS = 1.0
"""Deadlines of sockets are met up to this much late."""


@pytest.fixture(scope="module")
def strict_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo with short deadlines and tight limits."""
    demo = Demo(
        tmp_path_factory.mktemp("strict"),
        connect_deadline_seconds=0.5,
        heartbeat_seconds=HEARTBEAT_SECONDS,
        heartbeat_grace_seconds=GRACE_SECONDS,
        token_grace_seconds=0.5,
        access_token_seconds=10,
        access_token_leeway_seconds=0,
        max_sockets_per_user=3,
        commands_per_second=5,
        commands_burst=10,
        typing_seconds=0.5,
    )
    with demo:
        yield demo


async def short_token(demo: Demo, token: str, seconds: float) -> str:
    """The same token with another end, signed with the server's own key: real ones live ten seconds at least."""
    kid, sealed = demo.query("SELECT kid, private_pem FROM signing_keys")[0]
    database = Database(demo.settings["database_url"])
    vault = DatabaseVault(database, master_key_in(demo.directory / "master.key"))
    pem = await vault.open(sealed, owner=kid, purpose="signing_key")
    await database.close()
    header = jwt.get_unverified_header(token)
    claims = jwt.decode(token, options={"verify_signature": False}, algorithms=["EdDSA"])
    claims |= {"exp": int(time.time() + seconds), "jti": uuid4().hex}
    return jwt.encode(claims, load_pem_private_key(pem, None), "EdDSA", headers=header)  # type: ignore[arg-type]


async def person(demo: Demo) -> JSON:
    """Somebody new, with a bucket and sockets of their own."""
    async with Rest(demo.base) as rest:
        return await rest.login(await rest.register())


async def test_the_settings_are_told(strict_demo: Demo) -> None:
    tokens = await person(strict_demo)
    assert tokens["expires_in"] in {9, 10}
    socket = await Socket.open(strict_demo.base)
    result = await socket.connect(tokens["access_token"])
    assert result["heartbeat_seconds"] == HEARTBEAT_SECONDS
    assert 8 <= result["expires_in_seconds"] <= 10
    await socket.close()


async def test_no_session_connect_in_time_is_closed_4502(strict_demo: Demo) -> None:
    silent, busy = [await Socket.open(strict_demo.base) for _ in range(2)]
    started = time.monotonic()
    # Other frames do not put the deadline off.
    with pytest.raises(Refused):
        await busy.call("service.list")
    await busy.send('{"jsonrpc":"2.0","method":"pong"}')
    assert [await socket.close_code(5) for socket in (silent, busy)] == [4502, 4502]
    assert 0.4 < time.monotonic() - started < 0.5 + 2 * TICK_SECONDS
    for socket in (silent, busy):
        assert socket.events == []
        await socket.close()


async def test_a_socket_that_answers_lives_and_a_silent_one_is_closed_4005(strict_demo: Demo) -> None:
    async with (
        signed_in(strict_demo.base, CUSTOMER) as alive,
        signed_in(strict_demo.base, CUSTOMER) as calling,
        signed_in(strict_demo.base, CUSTOMER) as silent,
    ):
        calling.answers_pings = silent.answers_pings = False
        assert await silent.notice("ping") == {"jsonrpc": "2.0", "method": "ping"}
        started = time.monotonic()
        while not silent.ended:
            # Any frame is a sign of life, not only a pong.
            await calling.call("service.list")
            await asyncio.sleep(0.3)
            assert time.monotonic() - started < 8
        assert silent.code == 4005
        assert not alive.ended
        assert not calling.ended


async def test_a_protocol_ping_is_answered(strict_demo: Demo) -> None:
    async with aiohttp.ClientSession() as session:
        websocket = await session.ws_connect(f"{strict_demo.base}/socket", protocols=("fixnado.v1",), autoping=False)
        await websocket.ping(b"there?")
        message = await websocket.receive(5)
        assert (message.type, message.data) == (aiohttp.WSMsgType.PONG, b"there?")
        await websocket.close()


async def test_a_token_that_ends_is_announced_refreshed_or_closed_4002(strict_demo: Demo) -> None:
    tokens = await person(strict_demo)
    dying, refreshed = [await Socket.open(strict_demo.base) for _ in range(2)]
    for socket in (dying, refreshed):
        result = await socket.connect(await short_token(strict_demo, tokens["access_token"], 3))
        assert 1 <= result["expires_in_seconds"] <= 3
    started = time.monotonic()
    for socket in (dying, refreshed):
        notice = await socket.notice("session.expiring", 5)
        assert notice.keys() == {"jsonrpc", "method", "params"}
        assert notice["params"].keys() == {"expires_in_seconds"}
        assert 0 <= notice["params"]["expires_in_seconds"] <= 2
    async with Rest(strict_demo.base) as rest:
        fresh = (await rest.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})).body
    answer = await refreshed.call("session.refresh", {"token": fresh["access_token"]})
    assert answer.keys() == {"expires_in_seconds"}
    assert answer["expires_in_seconds"] >= 8
    assert await dying.close_code(6) == 4002
    assert time.monotonic() - started < 3 + 0.5 + 2 * TICK_SECONDS
    assert "services" in await refreshed.call("service.list")
    for socket in (dying, refreshed):
        await socket.close()


async def test_typing_ends_by_itself(strict_demo: Demo) -> None:
    async with signed_in(strict_demo.base, CUSTOMER) as customer, signed_in(strict_demo.base, ADMIN) as admin:
        wish = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN, "key": new_key()}
        talk = (await customer.call("booking.create", wish))["booking"]["conversation_id"]
        await admin.call("channel.subscribe", {"channel": f"conversation:{talk}"})
        await customer.call("typing.set", {"conversation_id": talk, "typing": True})
        started = await admin.event("typing.started")
        stopped = await admin.event("typing.stopped", seconds=5)
        assert stopped["data"] == started["data"]
        await customer.call("booking.cancel", {"booking_id": talk, "reason": "only a test", "key": new_key()})


async def test_an_expired_token_is_closed_4500(strict_demo: Demo) -> None:
    tokens = await person(strict_demo)
    for token in (
        await short_token(strict_demo, tokens["access_token"], -1),
        tokens["access_token"][:-4] + "AAAA",
        tokens["refresh_token"],
    ):
        socket = await Socket.open(strict_demo.base)
        with pytest.raises(Refused) as caught:
            await socket.connect(token)
        assert (caught.value.code, caught.value.type) == (-32001, "invalid_token")
        assert await socket.close_code() == 4500
        await socket.close()


async def test_too_many_sockets_of_a_user_are_closed_4504_until_one_is_free(strict_demo: Demo) -> None:
    token = (await person(strict_demo))["access_token"]
    sockets = [await Socket.open(strict_demo.base) for _ in range(4)]
    for socket in sockets[:3]:
        await socket.connect(token)
    with pytest.raises(Refused) as caught:
        await sockets[3].connect(token)
    assert (caught.value.code, caught.value.type) == (-32029, "too_many_requests")
    assert caught.value.error["data"]["retry_after_seconds"] > 0
    assert await sockets[3].close_code() == 4504
    # Another's are not counted, and a place is free again after a client was killed.
    async with signed_in(strict_demo.base, ADMIN) as other:
        assert other.connected["session"]
    await sockets[0].cut()
    async with asyncio.timeout(5):
        while True:
            again = await Socket.open(strict_demo.base)
            sockets.append(again)
            try:
                await again.connect(token)
                break
            except Refused:
                await again.close_code()
    for socket in sockets[1:]:
        await socket.close()


async def test_a_flood_is_answered_then_closed_4006_and_reconnecting_does_not_help(strict_demo: Demo) -> None:
    token = (await person(strict_demo))["access_token"]
    socket, beside = [await Socket.open(strict_demo.base) for _ in range(2)]
    await socket.connect(token)
    await beside.connect(token)
    codes: list[int] = []
    for _ in range(30):
        reply = await socket.exchange("service.list")
        if "error" in reply:
            codes.append(reply["error"]["code"])
            data = reply["error"]["data"]
            assert (data["type"], data["status"], data["retryable"]) == ("too_many_requests", 429, True)
            assert 0 < data["retry_after_seconds"] < 60
    assert set(codes) == {-32029}
    assert len(codes) >= 15
    # Still there: told, not thrown out. It goes on.
    await flood(socket)
    assert await socket.close_code() == 4006
    # All sockets of the person share the bucket, also new ones; nobody else does.
    again = await Socket.open(strict_demo.base)
    await again.connect(token)
    assert await is_held_back(again)
    assert await is_held_back(beside)
    async with signed_in(strict_demo.base, CUSTOMER) as other:
        assert "services" in await other.call("service.list")
    for each in (socket, beside, again):
        await each.close()


async def flood(socket: Socket) -> None:
    """Sends without waiting for answers, until the socket is closed; paced, so that the close frame can be read."""
    async with asyncio.timeout(10):
        while not socket.ended:
            try:
                for _ in range(20):
                    await socket.send('{"jsonrpc":"2.0","id":"f","method":"service.list"}')
                await asyncio.sleep(0.01)
            except Closed:
                await socket.gone()


async def is_held_back(socket: Socket) -> bool:
    """Whether one more command is refused for the rate, or thrown out for it."""
    try:
        reply = await socket.exchange("service.list")
    except Closed:
        return socket.code == 4006
    return "error" in reply and reply["error"]["code"] == -32029


async def test_a_flood_before_connecting_is_closed_4006(strict_demo: Demo) -> None:
    socket = await Socket.open(strict_demo.base)
    await flood(socket)
    assert await socket.close_code() == 4006
    await socket.close()
