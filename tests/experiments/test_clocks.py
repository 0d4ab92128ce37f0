"""Experiments with a node whose machine has the wrong time."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pyotp
import pytest

from tests.acceptance.client import CAMDEN, CUSTOMER, JSON, PASSWORD, PROVIDERS, Rest, Socket, new_key, signed_in
from tests.acceptance.demo import Demo
from tests.experiments.cluster import Cluster, metrics, wait_until_ready
from tests.services import faketime

Report = Callable[..., None]

WISH: JSON = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN}
CLOSE_ENOUGH_SECONDS = 3.0
OFFER_SECONDS = 20


@asynccontextmanager
async def a_node_that_is_off(town: Cluster, directory: Path, seconds: int) -> AsyncIterator[Demo]:
    """One more node of the cluster, for which it is so much later than for all others."""
    program = ("env", f"LD_PRELOAD={faketime()}", "FAKETIME_DONT_FAKE_MONOTONIC=1", f"FAKETIME={seconds:+d}s")
    settings = town.nodes[0].settings | {"offer_on_demand_seconds": OFFER_SECONDS}
    settings.pop("port", None)
    node = Demo(directory, program=(*program, sys.executable, "-m", "server"), **settings)
    await town.start(node)
    try:
        await asyncio.to_thread(wait_until_ready, node)
        yield node
    finally:
        node.kill()


def off_by(moment: str) -> float:
    """How far a moment from the wire is from the true time, in seconds; later is positive."""
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()


@pytest.mark.parametrize("seconds", [300, -300])
async def test_experiment_11_a_node_whose_clock_is_minutes_off(
    town: Cluster, tmp_path: Path, report: Report, seconds: int
) -> None:
    """It takes the database's time, so its tokens, codes, offers and leases are as good as everybody's."""
    right = town.nodes[0]
    async with a_node_that_is_off(town, tmp_path, seconds) as wrong:
        ahead = metrics(wrong)["fixnado_clock_ahead_seconds"]
        assert abs(ahead - seconds) < CLOSE_ENOUGH_SECONDS, "that its machine has another time is what this is about"
        await tokens_count_on_both(right, wrong)
        await codes_count_on(wrong)
        left = [await an_offer_lives(made, taken) for made, taken in ((wrong, right), (right, wrong))]
        leading = [node for node in (*town.nodes, wrong) if metrics(node)["fixnado_sequencer_leading"]]
        assert len(leading) == 1
        assert "leading partition" not in wrong.output(), "it took away a lease that is held"
    report(f"ahead by {ahead:.1f} s; offers had {left[0]:.1f} s and {left[1]:.1f} s left; tokens and codes were taken")


async def tokens_count_on_both(right: Demo, wrong: Demo) -> None:
    for issuer, judge in ((wrong, right), (right, wrong)):
        async with Rest(issuer.base) as rest:
            token = (await rest.login(CUSTOMER))["access_token"]
        socket = await Socket.open(judge.base)
        try:
            connected = await socket.connect(token)
        finally:
            await socket.close()
        assert 880 < connected["expires_in_seconds"] <= 901
        assert abs(off_by(connected["server_time"])) < CLOSE_ENOUGH_SECONDS


async def codes_count_on(wrong: Demo) -> None:
    async with Rest(wrong.base) as rest:
        email = await rest.register()
        token = (await rest.login(email))["access_token"]
        totp = pyotp.TOTP((await rest.post("/auth/mfa/enrol", {}, token=token)).body["secret"])
        activated = await rest.post("/auth/mfa/activate", {"code": totp.now()}, token=token)
        assert activated.status == 200, activated
        challenge = (await rest.post("/auth/login", {"email": email, "password": PASSWORD})).body["challenge"]
        # The present step is spent; a clock may be one step early.
        answer = {"challenge": challenge, "code": totp.at(time.time() + 30)}
        assert (await rest.post("/auth/mfa/verify", answer)).status == 200


async def an_offer_lives(made: Demo, taken: Demo) -> float:
    """Made on one node, accepted on the other; returns how long it had to live, in seconds."""
    async with signed_in(made.base, CUSTOMER) as customer, signed_in(taken.base, PROVIDERS[0]) as provider:
        await provider.call("presence.set", {"status": "online"})
        booking = (await customer.call("booking.create", WISH | {"key": new_key()}))["booking"]
        assert abs(off_by(booking["created_at"])) < CLOSE_ENOUGH_SECONDS
        offer = (await provider.event("offer.made", booking_id=booking["id"]))["data"]["offer"]
        left = off_by(offer["expires_at"])
        assert 5 < left <= 31
        accepted = await provider.call("offer.accept", {"offer_id": offer["id"], "key": new_key()})
        for step in ("en_route", "arrived", "in_progress", "completed"):
            version = accepted["booking"]["version"]
            params = {"booking_id": booking["id"], "to": step, "version": version, "key": new_key()}
            accepted = await provider.call("booking.transition", params)
    return left
