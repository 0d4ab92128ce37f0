"""Access that was taken away on one node is gone from sockets on another: within a second, or two without Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from domain.types import Origin
from server.app import Application
from server.demo import MASTER_KEY
from server.settings import Settings
from tests.acceptance.client import PROVIDERS, Rest, Socket, new_key, signed_in
from tests.acceptance.town import refusal
from tests.experiments.cluster import Cluster

Report = Callable[..., None]
REVOKED = 4503


@asynccontextmanager
async def redis_as(town: Cluster, state: str) -> AsyncIterator[float]:
    """Redis is well or hangs; yields within how many seconds access must be gone."""
    if state == "up":
        yield 1.0
        return
    town.redis.pause()
    await town.measured('fixnado_event_path{state="tailing"}', 1)
    try:
        yield 2.0
    finally:
        town.redis.resume()


@pytest.mark.parametrize("state", ["up", "away"])
async def test_access_that_is_taken_away_is_gone_on_other_nodes(town: Cluster, report: Report, state: str) -> None:
    here, there = town.bases[0], town.bases[1]
    told: list[str] = []
    async with Rest(here) as rest, redis_as(town, state) as bound_seconds:

        async def gone(what: str, socket: Socket, began: float) -> None:
            assert await socket.close_code() == REVOKED
            told.append(f"{what} {time.monotonic() - began:.2f} s")
            assert time.monotonic() - began < bound_seconds

        # A sign-in that is ended.
        tokens = await rest.login(await rest.register())
        socket = await Socket.open(there)
        await socket.connect(tokens["access_token"])
        began = time.monotonic()
        assert (await rest.post("/auth/logout", token=tokens["access_token"])).status == 204
        await gone("signed out", socket, began)

        # A user who is disabled, from a process that is no node.
        email = await rest.register()
        async with signed_in(there, email) as socket:
            began = await disable(town, email)
            await gone("disabled", socket, began)

        # A membership that is taken away: its channels go, the socket stays.
        newcomer = await rest.register()
        async with signed_in(here, PROVIDERS[0]) as boss, signed_in(there, newcomer) as member:
            (organisation,) = (await boss.call("organisation.list"))["organisations"]
            place = {"organisation_id": organisation["id"]}
            invite = {**place, "email": newcomer, "role": "technician", "key": new_key()}
            invitation = (await boss.call("organisation.invite", invite))["invitation"]
            issued = await boss.call("invitation.issue", {"invitation_id": invitation["id"]})
            joined = await member.call("invitation.accept", {"token": issued["token"], "key": new_key()})
            channel = f"provider:{organisation['provider_id']}"
            async with asyncio.timeout(5):
                while "error" in await member.exchange("channel.subscribe", {"channel": channel}):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            remove = {**place, "user_id": joined["member"]["user_id"], "key": new_key()}
            began = time.monotonic()
            await boss.call("member.remove", remove)
            await member.event("membership.removed", seconds=bound_seconds)
            told.append(f"removed {time.monotonic() - began:.2f} s")
            heard = len(member.events)
            await boss.call("presence.set", {"status": "away"})
            await boss.call("presence.set", {"status": "online"})
            await boss.event("availability.changed", channel, status="online")
            assert (await refusal(member, "channel.subscribe", {"channel": channel}))["data"]["type"] == "not_found"
            assert not [event for event in member.events[heard:] if event["channel"] == channel]
    report(f"Redis {state}: " + ", ".join(told))


async def disable(town: Cluster, email: str) -> float:
    """What ``fixnado user disable`` does; when it was committed."""
    app = Application(
        Settings.load({}, None, {"database_url": town.url, "database_tls": "off", "master_key": MASTER_KEY})
    )
    try:
        await app.credentials.disable(email, Origin("experiment", actor_id="cli"))
        return time.monotonic()
    finally:
        app.passwords.close()
        app.aws.close()
        await app.database.close()
