"""Experiments with the nodes: killed, stopped, restarted one after the other, and raced against each other."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import aiohttp

from tests.acceptance.client import ADMIN, CAMDEN, CUSTOMER, JSON, PROVIDERS, Rest, Socket, new_key, signed_in
from tests.acceptance.demo import Demo
from tests.experiments.cluster import Cluster, metrics
from tests.experiments.crowd import CREW, RACE_TRACK, SERVICE, SIZE
from tests.experiments.load import Play
from tests.server.live_server import RawSocket

Report = Callable[..., None]

WISH: JSON = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN}


async def test_experiment_01_a_node_is_killed_under_load(town: Cluster, play: Play, report: Report) -> None:
    """Clients resume elsewhere, nothing acked is lost, another node sequences within five seconds, and who was on the
    dead one is present no longer.
    """
    killed = await asyncio.to_thread(town.leader)
    living = next(node for node in town.nodes if node is not killed)
    gone_after = 0.0

    async def trouble(play: Play) -> None:
        nonlocal gone_after
        async with signed_in(living.base, CUSTOMER) as customer, signed_in(killed.base, ADMIN) as admin:
            booking = (await customer.call("booking.create", WISH | {"key": new_key()}))["booking"]
            channel = {"channel": f"booking:{booking['id']}"}
            for each in (customer, admin):
                await each.call("channel.subscribe", channel)
            members = (await customer.call("channel.presence", channel))["members"]
            await play.more(30)
            killed.kill()
            gone_after = await vanished(customer, channel, len(members))
        await play.more(60)

    verdict = await play.run(trouble)
    report(verdict, f"longest away {verdict.longest_away_seconds:.2f} s, absent after {gone_after:.2f} s")
    verdict.hold()
    assert verdict.longest_gap_seconds < 6.0
    assert gone_after < 5.0
    leading = [node for node in town.nodes if node.is_running() and metrics(node)["fixnado_sequencer_leading"]]
    assert len(leading) == 1


async def vanished(watcher: Socket, channel: JSON, before: int) -> float:
    """How long it takes, in seconds, until fewer are present."""
    began = time.monotonic()
    async with asyncio.timeout(10):
        while len((await watcher.call("channel.presence", channel))["members"]) >= before:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return time.monotonic() - began


async def test_experiment_02_two_nodes_are_restarted_one_after_the_other_under_load(
    town: Cluster, report: Report
) -> None:
    """No ack is lost, nobody is away for long, and a process ends before its deadline although a client never reads."""
    seconds: list[float] = []

    async def trouble(play: Play) -> None:
        for node in town.nodes[:2]:
            deaf = await never_reading(node)
            await play.more(15)
            began = time.monotonic()
            assert await asyncio.to_thread(node.terminate) == 0
            seconds.append(time.monotonic() - began)
            deaf.writer.transport.abort()
            await town.start(node)
        await play.more(15)

    play = Play(town.bases, town.rows, pause_seconds=0.1)
    verdict = await play.run(trouble)
    ended = " and ".join(f"{each:.2f} s" for each in seconds)
    report(verdict, f"longest away {verdict.longest_away_seconds:.2f} s; ended after {ended}")
    verdict.hold()
    assert verdict.longest_away_seconds < 2.0
    assert max(seconds) < town.nodes[0].settings["shutdown_deadline_seconds"]


async def never_reading(node: Demo) -> RawSocket:
    """Signs in and never reads: it answers no close frame either."""
    async with Rest(node.base) as rest:
        token = (await rest.login(ADMIN))["access_token"]
    socket = await RawSocket.open(node.port, receive_buffer_bytes=4096)
    socket.writer.transport.pause_reading()  # type: ignore[attr-defined]
    socket.send_json({"jsonrpc": "2.0", "id": 1, "method": "session.connect", "params": {"token": token}})
    for number in range(2, 40):
        socket.send_json({"jsonrpc": "2.0", "id": number, "method": "booking.list", "params": {"limit": 100}})
    return socket


async def test_experiment_14_of_200_who_accept_at_once_on_three_nodes_one_wins(town: Cluster, report: Report) -> None:
    async with Rest(town.bases[0]) as rest:
        customer = (await rest.login(CUSTOMER))["access_token"]
        crew = (await rest.login(CREW))["access_token"]
        wish: JSON = {"service_id": SERVICE.id, "kind": "on_demand", "location": RACE_TRACK}
        booking = (await rest.command("booking.create", wish, customer, new_key())).body["booking"]
    offers = await town.rows(f"SELECT id, provider_id FROM offers WHERE booking_id = '{booking['id']}'")
    assert len(offers) == SIZE

    async def accept(place: int, offer_id: str) -> tuple[int, JSON]:
        url = f"{town.bases[place % len(town.bases)]}/commands/offer.accept"
        headers = {"Authorization": f"Bearer {crew}", "Idempotency-Key": new_key()}
        async with http.post(url, json={"offer_id": offer_id}, headers=headers) as reply:
            return reply.status, await reply.json(content_type=None)

    began = time.monotonic()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        answers = await asyncio.gather(*(accept(place, offer_id) for place, (offer_id, _) in enumerate(offers)))
    seconds = time.monotonic() - began
    counts = Counter("won" if status == 200 else body["type"].rpartition("/")[2] for status, body in answers)
    report(f"200 accepts in {seconds:.2f} s: {dict(counts)}")
    assert counts == {"won": 1, "offer_taken": 199}
    ((owner,),) = await town.rows(f"SELECT provider_id FROM bookings WHERE id = '{booking['id']}'")
    (told,) = [body["booking"]["provider_id"] for status, body in answers if status == 200]
    assert told == owner
    statuses = await town.rows(
        f"SELECT status, COUNT(*) FROM offers WHERE booking_id = '{booking['id']}' GROUP BY status"
    )
    assert dict(statuses) == {"accepted": 1, "withdrawn": 199}


async def test_experiment_16_timers_across_a_crash_fire_once(town: Cluster, report: Report) -> None:
    """Offers that run out while every node is dead are ended once, right after the restart."""
    base = town.bases[0]
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    slot = {"start": start.isoformat(), "end": (start + timedelta(hours=1)).isoformat()}
    async with signed_in(base, CUSTOMER) as customer, signed_in(base, PROVIDERS[0]) as provider:
        wish = WISH | {"kind": "scheduled", **slot, "key": new_key()}
        booking = (await customer.call("booking.create", wish))["booking"]
        offer = (await provider.event("offer.made", booking_id=booking["id"]))["data"]["offer"]
        stood = dict(provider.positions)
        for node in town.nodes:
            node.kill()
    await asyncio.sleep(2)  # the offer's life, and the better part of the dead sequencer's lease
    await town.start(*town.nodes)
    ready_at = time.time()
    async with signed_in(base, PROVIDERS[0], resume=stood) as provider, signed_in(base, ADMIN) as admin:
        await provider.event("offer.expired", offer_id=offer["id"])
        late = time.time() - ready_at
        again = await provider.event("offer.made", booking_id=booking["id"])
        assert again["data"]["offer"]["wave"] == 2
        await admin.call("booking.cancel", {"booking_id": booking["id"], "reason": "over", "key": new_key()})
        await admin.event("booking.cancelled", booking_id=booking["id"])
        ended = [event for event in provider.events if event["type"] == "offer.expired"]
        assert Counter(event["data"]["offer_id"] for event in ended)[offer["id"]] == 1
    report(f"expired once, {max(0.0, late):.2f} s after the restart")
    assert late < 3.0
