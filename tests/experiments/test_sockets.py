"""Sockets that do not read or are gone without a word, and all sockets at once: nobody else waits, nobody starves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from tests.acceptance.client import ADMIN, CAMDEN, CUSTOMER, JSON, PROVIDERS, Rest, Socket, new_key, signed_in
from tests.experiments.cluster import Cluster, Wire, metrics
from tests.server.live_server import RawSocket

SOCKETS = 120
QUERIES_PER_SOCKET = 10
"""Signing in and resuming costs so much when nothing is shared; what runs beside it is counted in."""

STALLED = 5
LATE_SECONDS = 5.0
"""Nobody waits so long for a message, on the busiest machine either."""


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


async def stalled(town: Cluster, token: str, conversation: str) -> RawSocket:
    """An operator's socket that hears a conversation and never reads."""
    raw = await RawSocket.open(town.nodes[0].port, receive_buffer_bytes=4096)
    connect = {"token": token, "client": "stalled/1"}
    raw.send_json({"jsonrpc": "2.0", "id": 1, "method": "session.connect", "params": connect})
    raw.send_json({"jsonrpc": "2.0", "id": 2, "method": "channel.subscribe", "params": {"channel": conversation}})
    while b'"id":2' not in (await raw.frame())[1]:
        pass
    return raw


@pytest.mark.soak  # the kernel takes megabytes for each before the server has to keep anything
@pytest.mark.timeout(600)
async def test_experiment_12_sockets_that_do_not_read_delay_nobody(town: Cluster, report: Callable[..., None]) -> None:
    node = town.nodes[0]
    too_slow = 'fixnado_closes_total{code="4003"}'
    async with signed_in(node.base, CUSTOMER) as writer, signed_in(node.base, ADMIN) as reader:
        wish: JSON = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN, "key": new_key()}
        booking_id = (await writer.call("booking.create", wish))["booking"]["id"]
        conversation = f"conversation:{booking_id}"
        await reader.call("channel.subscribe", {"channel": conversation})

        async def say(number: int) -> float:
            began, heard = time.monotonic(), len(reader.events)
            text = f"{number:05d}" + "x" * 3_900
            await writer.call("message.send", {"conversation_id": booking_id, "text": text, "key": new_key()})
            await reader.event("message.sent", conversation, after=heard)
            return time.monotonic() - began

        alone = sorted([await say(number) for number in range(100)])
        before = (await asyncio.to_thread(metrics, node)).get(too_slow, 0.0)
        async with Rest(node.base) as rest:
            token = (await rest.login(ADMIN))["access_token"]
        crowd = [await stalled(town, token, conversation) for _ in range(STALLED)]
        beside: list[float] = []
        while (await asyncio.to_thread(metrics, node)).get(too_slow, 0.0) < before + STALLED:
            beside += [await say(1_000 + len(beside)) for _ in range(50)]
            assert len(beside) < 5_000, "sockets that never read are kept"
        beside.sort()
        await writer.call("booking.cancel", {"booking_id": booking_id, "reason": "over", "key": new_key()})
    await asyncio.gather(*(raw.ended() for raw in crowd))
    report(
        f"{STALLED} sockets closed 4003 after {len(beside)} messages; the others' p50 and p99 from a message to its "
        f"arrival {_ms(alone, 0.5)} and {_ms(alone, 0.99)} ms before, {_ms(beside, 0.5)} and {_ms(beside, 0.99)} ms "
        "beside them"
    )
    assert beside[-1] < LATE_SECONDS


@pytest.mark.soak
async def test_experiment_12_a_half_open_socket_is_let_go(town: Cluster, report: Callable[..., None]) -> None:
    node = town.nodes[0]
    silent = 'fixnado_closes_total{code="4005"}'
    proxy = Wire(node.port)
    async with proxy.running():
        async with signed_in(f"http://127.0.0.1:{proxy.port}", CUSTOMER):
            before = (await asyncio.to_thread(metrics, node)).get(silent, 0.0)
            proxy.swallowing = True
            took = await town.measured(silent, before + 1, node, seconds=60)
    report(f"a socket whose peer is gone without a word was closed 4005 after {took:.1f} s")


def _ms(sorted_seconds: list[float], share: float) -> str:
    return f"{1000 * sorted_seconds[int(share * (len(sorted_seconds) - 1))]:.1f}"
