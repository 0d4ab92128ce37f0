"""Experiments with the nodes: killed, stopped, restarted one after the other, and raced against each other."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import aiohttp

from tests.acceptance.client import ADMIN, CAMDEN, CUSTOMER, JSON, PROVIDERS, Rest, new_key, signed_in
from tests.acceptance.demo import Demo
from tests.experiments.cluster import Cluster, metrics
from tests.experiments.crowd import CREW, RACE_TRACK, SERVICE, SIZE
from tests.experiments.load import Play
from tests.server.live_server import RawSocket

Report = Callable[..., None]


async def test_experiment_01_a_node_is_killed_under_load(town: Cluster, play: Play, report: Report) -> None:
    """Clients resume elsewhere, nothing acked is lost, and another node sequences within five seconds."""
    killed = await asyncio.to_thread(town.leader)

    async def trouble(play: Play) -> None:
        await play.more(30)
        killed.kill()
        await play.more(60)

    verdict = await play.run(trouble)
    report(verdict, f"longest away {verdict.longest_away_seconds:.2f} s")
    verdict.hold()
    assert verdict.longest_gap_seconds < 6.0
    leading = [node for node in town.nodes if node.is_running() and metrics(node)["fixnado_sequencer_leading"]]
    assert len(leading) == 1


async def test_experiment_01_who_was_on_a_killed_node_is_present_no_longer(town: Cluster, report: Report) -> None:
    killed, watching = town.nodes[1], town.nodes[0]
    async with signed_in(watching.base, CUSTOMER) as customer, signed_in(killed.base, ADMIN) as admin:
        wish = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN, "key": new_key()}
        booking = (await customer.call("booking.create", wish))["booking"]
        channel = {"channel": f"booking:{booking['id']}"}
        for each in (customer, admin):
            await each.call("channel.subscribe", channel)

        async def present() -> int:
            return len((await customer.call("channel.presence", channel))["members"])

        assert await present() == 2
        killed.kill()
        began = time.monotonic()
        async with asyncio.timeout(10):
            while await present() != 1:  # noqa: ASYNC110 — the list is asked for, not told
                await asyncio.sleep(0.05)
        seconds = time.monotonic() - began
        report(f"gone from the list after {seconds:.2f} s")
        assert seconds < 5.0
        await customer.call("booking.cancel", {"booking_id": booking["id"], "reason": "over", "key": new_key()})


async def test_experiment_02_a_stopped_node_drains_under_load(town: Cluster, play: Play, report: Report) -> None:
    """No ack is lost, sockets are closed inside the window, and the process ends before its deadline; also with a
    client that never reads.
    """
    stopped = town.nodes[0]
    seconds = 0.0

    async def trouble(play: Play) -> None:
        nonlocal seconds
        deaf = await never_reading(stopped)
        await play.more(20)
        began = time.monotonic()
        assert await asyncio.to_thread(stopped.terminate) == 0
        seconds = time.monotonic() - began
        deaf.writer.transport.abort()
        await play.more(20)

    verdict = await play.run(trouble)
    report(verdict, f"ended after {seconds:.2f} s")
    verdict.hold()
    assert seconds < stopped.settings["shutdown_deadline_seconds"] + 1.0
    assert play.history.longest_away_seconds < 2.0


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


async def test_two_nodes_are_restarted_one_after_the_other_under_load(
    town: Cluster, play: Play, report: Report
) -> None:
    async def trouble(play: Play) -> None:
        for node in town.nodes[:2]:
            await play.more(15)
            assert await asyncio.to_thread(node.terminate) == 0
            await town.start(node)
        await play.more(15)

    verdict = await play.run(trouble)
    report(verdict, f"longest away {verdict.longest_away_seconds:.2f} s")
    verdict.hold()
    assert verdict.longest_away_seconds < 2.0


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
    seconds = 1.5
    node = town.nodes[0]
    node.kill()
    node.settings["offer_on_demand_seconds"] = seconds
    try:
        await town.start(node)
    finally:
        del node.settings["offer_on_demand_seconds"]
    async with signed_in(node.base, CUSTOMER) as customer, signed_in(node.base, PROVIDERS[0]) as provider:
        wish = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN, "key": new_key()}
        booking = (await customer.call("booking.create", wish))["booking"]
        offer = (await provider.event("offer.made", booking_id=booking["id"]))["data"]["offer"]
        stood = dict(provider.positions)
        for each in town.nodes:
            each.kill()
    await town.start(*town.nodes)
    ready_at = time.time()
    async with signed_in(node.base, PROVIDERS[0], resume=stood) as provider, signed_in(node.base, ADMIN) as admin:
        await provider.event("offer.expired", offer_id=offer["id"])
        late = time.time() - ready_at
        again = await provider.event("offer.made", booking_id=booking["id"], after=0)
        assert again["data"]["offer"]["wave"] == 2
        cancel = {"booking_id": booking["id"], "reason": "over", "key": new_key()}
        await admin.call("booking.cancel", cancel)
        await provider.event("offer.withdrawn", booking_id=booking["id"])
        ended = [event for event in provider.events if event["type"] == "offer.expired"]
        assert Counter(event["data"]["offer_id"] for event in ended) == {offer["id"]: 1}
        report(f"expired {late:.2f} s after the restart, once")
        assert late < 3.0
