"""Everybody comes back at once: sign-ins and resumes share their queries, and nobody starves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tests.acceptance.client import ADMIN, CAMDEN, CUSTOMER, JSON, PROVIDERS, Rest, Socket, new_key, signed_in
from tests.experiments.cluster import Cluster

SOCKETS = 120
QUERIES_PER_SOCKET = 10
"""Signing in and resuming costs so much when nothing is shared; what runs beside it is counted in."""


async def questions(town: Cluster) -> int:
    """Statements the database was asked since it started."""
    ((_, asked),) = await town.rows("SHOW GLOBAL STATUS LIKE 'Questions'")
    return int(asked)


async def test_experiment_13_every_socket_comes_back_at_once(town: Cluster, report: Callable[..., None]) -> None:
    base = town.bases[0]
    people = [CUSTOMER, *PROVIDERS, ADMIN]
    async with Rest(base) as rest:
        tokens = [(await rest.login(email))["access_token"] for email in people]
    stood: list[dict[str, JSON]] = []
    for token in tokens:
        socket = await Socket.open(base)
        await socket.connect(token)
        stood.append({name: dict(position) for name, position in socket.positions.items()})
        await socket.close()
    # Something to catch up with.
    async with signed_in(base, CUSTOMER) as customer:
        wish: JSON = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN, "key": new_key()}
        booking = (await customer.call("booking.create", wish))["booking"]
        await customer.call("booking.cancel", {"booking_id": booking["id"], "reason": "over", "key": new_key()})
        await customer.event("booking.cancelled", "user:", booking_id=booking["id"])

    async def come_back(number: int) -> float:
        who = number % len(people)
        socket = await Socket.open(base)
        connected = await socket.connect(tokens[who], stood[who])
        assert all(channel["recovered"] for channel in connected["channels"].values())
        if people[who] == ADMIN:
            missed = connected["channels"]["admin:bookings"]["events"]
            assert [event["data"]["booking_id"] for event in missed].count(booking["id"]) >= 3
        return time.monotonic() - began

    before, began = await questions(town), time.monotonic()
    times = sorted(await asyncio.gather(*map(come_back, range(SOCKETS))))
    asked = await questions(town) - before
    report(
        f"{SOCKETS} sockets resumed within {times[-1]:.2f} s (half of them within {times[SOCKETS // 2]:.2f} s), "
        f"{asked} statements, {asked / SOCKETS:.1f} each"
    )
    assert asked < SOCKETS * QUERIES_PER_SOCKET
    assert times[-1] < 10.0
