"""Event streams of the whole product: behind a network that blocks sockets, and across two nodes."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from domain.identity import Role
from domain.types import JSON
from server import demo
from tests.channels.fakes import until
from tests.server.blocking_proxy import blocking_proxy
from tests.server.running import Running, running
from tests.server.test_events import Stream
from tests.server.test_two_nodes import cheaply, shared_url, two_nodes

__all__ = ["shared_url"]

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "javascript" / "src" / "index.js"
WISH = {"service_id": "plumbing", "kind": "on_demand", "location": {"lat": demo.CENTRE.lat, "lon": demo.CENTRE.lon}}


class Follower:
    """The JavaScript client as a process of its own.

    Attributes:
        lines: all that it said.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[JSON] = []
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def started(cls, url: str, token: str) -> Follower:
        node = shutil.which("node")
        if node is None:
            pytest.skip("Node is not installed")
        # Node 20 has a WebSocket behind this flag, later ones have it anyway.
        command = [node, "--experimental-websocket", str(ROOT / "tests" / "server" / "follow.mjs"), str(CLIENT)]
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*command, url, token, stdin=pipe, stdout=pipe))

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(orjson.loads(line))

    def on(self, transport: str) -> int:
        """How many sessions it had on this transport."""
        return sum(line.get("state") == "online" and line["transport"] == transport for line in self.lines)

    def offsets(self, channel: str) -> list[int]:
        return [line["offset"] for line in self.lines if line.get("channel") == channel and "offset" in line]

    async def says(self, **members: Any) -> JSON:
        def found() -> list[JSON]:
            return [line for line in self.lines if members.items() <= line.items()]

        await until(lambda: bool(found()), 10)
        return found()[0]

    def call(self, method: str, **params: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(orjson.dumps({"method": method, "params": params}) + b"\n")

    async def end(self) -> None:
        self._process.kill()
        await self._process.wait()
        await self._reading


async def test_a_network_that_blocks_sockets_costs_no_event_and_no_command(tmp_path: Path) -> None:
    async with running(f"sqlite+aiosqlite:///{tmp_path / 'live.db'}", cheaply) as server:
        await demo.seed(server.app)
        customer, provider = [
            (await server.http.post(f"{server.url}/auth/login", json={"email": email, "password": demo.PASSWORD}))
            for email in (demo.CUSTOMER, demo.PROVIDERS[0])
        ]
        buyer = (await customer.json())["access_token"]
        token = (await provider.json())["access_token"]
        async with blocking_proxy(int(server.url.rpartition(":")[2])) as proxy:
            follower = await Follower.started(proxy.url, token)
            try:
                await follower.says(state="online", transport="sse")
                assert proxy.blocked == 2
                # Offered to, so counted as present; and it acknowledges what it is offered.
                status, made = await server.rest(buyer, "booking.create", **WISH, key="one")
                assert status == 200, made
                heard = await follower.says(type="offer.made")
                offer = (await server.rest(token, "offer.list"))[1]["offers"][0]

                async def delivered() -> bool:
                    rows = await server.app.transactions.read(lambda uow: uow.offers.get(offer["id"]))
                    return rows is not None and rows.delivered_at is not None

                async with asyncio.timeout(5):
                    while not await delivered():  # noqa: ASYNC110 — a row has no event
                        await asyncio.sleep(0.02)

                proxy.cut()
                follower.call("offer.accept", offer_id=offer["id"])
                accepted = await follower.says(method="offer.accept")
                assert accepted["result"]["booking"]["status"] == "assigned"
                await until(lambda: follower.on("sse") >= 2, 10)

                proxy.blocking = False
                await until(lambda: follower.on("socket") == 1, 20)
                before = len(follower.offsets(heard["channel"]))
                ended = {"booking_id": made["booking"]["id"], "reason": "no longer needed", "key": "two"}
                assert (await server.rest(buyer, "booking.cancel", **ended))[0] == 200
                await until(lambda: len(follower.offsets(heard["channel"])) > before, 10)
                offsets = follower.offsets(heard["channel"])
                assert offsets == list(range(offsets[0], offsets[0] + len(offsets))), "none lost, none twice"
            finally:
                await follower.end()


async def _stream(server: Running, token: str) -> Stream:
    answer = await server.http.get(f"{server.url}/events", headers={"Authorization": f"Bearer {token}"})
    opened = Stream(answer)
    await until(lambda: bool(opened.messages))
    return opened


async def test_requests_name_their_stream(tmp_path: Path) -> None:
    async with running(f"sqlite+aiosqlite:///{tmp_path / 'live.db'}", cheaply) as server:
        user_id = await server.user("ann@x.test", Role.CUSTOMER)
        token = await server.token("ann@x.test")
        opened = await _stream(server, token)
        headers = {"Authorization": f"Bearer {token}", "X-Session": opened.hello["session"]}

        async def post(method: str, params: JSON, **more: str) -> tuple[int, JSON]:
            async with server.http.post(
                f"{server.url}/commands/{method}", json=params, headers={**headers, **more}
            ) as answer:
                return answer.status, await answer.json(content_type=None)

        assert await post("session.ack", {f"user:{user_id}": 0}) == (200, {})
        assert (await post("session.ack", {}, **{"X-Session": "gone"}))[1]["type"] == "no_such_session"
        assert (await post("session.ack", {}, **{"X-Session": ""}))[1]["type"] == "unknown_method"
        assert (await post("session.connect", {"token": token}))[0] == 404
        status, refreshed = await post("session.refresh", {"token": token})
        assert (status, list(refreshed)) == (200, ["expires_in_seconds"])
        status, refused = await post("channel.subscribe", {"channel": "booking:none"})
        assert (status, refused["type"]) == (404, "not_found")
        async with server.http.post(f"{server.url}/auth/logout-all", headers=headers) as answer:
            assert answer.status == 204
        await until(lambda: opened.ended)
        assert opened.closed is not None
        assert opened.closed["code"] == 4503


async def test_a_request_finds_its_stream_at_another_node(shared_url: str, redis_url: str) -> None:
    async with two_nodes(shared_url, redis_url) as (one, two):
        await one.user("cid@two.test", Role.CUSTOMER)
        token = await one.token("cid@two.test")
        opened = await _stream(one, token)
        headers = {"Authorization": f"Bearer {token}", "X-Session": opened.hello["session"]}

        async def post(method: str, params: JSON) -> tuple[int, JSON]:
            url = f"{two.url}/commands/{method}"
            async with aiohttp.ClientSession() as http, http.post(url, json=params, headers=headers) as answer:
                return answer.status, await answer.json(content_type=None)

        own = opened.hello["channels"].keys()
        status, members = await post("channel.presence", {"channel": next(iter(own))})
        assert (status, len(members["members"])) == (200, 1)
        status, refused = await post("channel.subscribe", {"channel": "booking:none"})
        assert (status, refused["type"]) == (404, "not_found")
        status, refused = await post("channel.subscribe", {})
        assert (status, refused["errors"][0]["where"]) == (422, "channel")
        await opened.close()
        await until(lambda: one.app.realtime.sockets == 0)
        assert (await post("session.ack", {}))[1]["type"] == "no_such_session"
