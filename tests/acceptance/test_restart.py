from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from tests.acceptance.client import ADMIN, CUSTOMER, JSON, Socket, is_gapless, new_key, offsets
from tests.acceptance.demo import Demo
from tests.acceptance.town import Town, refusal

OFFER_SECONDS = 3.0


async def test_after_kill_and_restart_clients_resume_and_timers_fire_once(start_demo: Callable[..., Demo]) -> None:
    demo = start_demo(offer_on_demand_seconds=OFFER_SECONDS)
    async with Town(demo.base) as town:
        job = await town.assigned(winner=0)
        talk = f"conversation:{job['id']}"
        for channel in (f"booking:{job['id']}", talk):
            await town.customer.call("channel.subscribe", {"channel": channel})
        said = {"conversation_id": job["id"], "text": "before the crash", "key": new_key()}
        before = await town.customer.call("message.send", said)
        await town.customer.event("message.sent", talk)
        waiting = await town.book(service_id="electrical")
        await asyncio.gather(*(each.event("offer.made", booking_id=waiting["id"]) for each in town.providers[1:]))
        offers = [
            (await each.event("offer.made", booking_id=waiting["id"]))["data"]["offer"] for each in town.providers[1:]
        ]

        # The customer is cut off a moment earlier and misses an event that was told before the crash.
        customer_stood = json.loads(json.dumps(town.customer.positions))
        await town.customer.cut()
        job = await town.step(town.providers[0], job, "en_route")
        await town.admin.event("booking.en_route", booking_id=job["id"])
        demo.kill()
        sockets = [*town.providers, town.admin]
        assert [await socket.close_code() for socket in sockets] == [1006] * 4
        stood = [json.loads(json.dumps(socket.positions)) for socket in sockets]
        heard = [socket.events for socket in sockets]

        await asyncio.to_thread(demo.start)
        emails = [*(f"provider{number}@demo.test" for number in (1, 2, 3)), ADMIN]
        # The access tokens of before are still good: the signing key is the database's.
        back: list[Socket] = [await town.connect(email, at) for email, at in zip(emails, stood, strict=True)]
        customer = await town.connect(CUSTOMER, customer_stood)
        for socket, at in zip([*back, customer], [*stood, customer_stood], strict=True):
            for name, channel in socket.connected["channels"].items():
                assert channel["recovered"] is True, name
                assert channel["epoch"] == at[name]["epoch"]
        missed = customer.connected["channels"][customer.own("user")]["events"]
        assert [event["type"] for event in missed] == ["booking.en_route"]
        assert offsets(missed) == [customer_stood[customer.own("user")]["offset"] + 1]

        # What was kept under a key is kept across the crash.
        assert await customer.call("message.send", said) == before
        resumed = await customer.call("channel.subscribe", {"channel": talk, "resume": customer_stood[talk]})
        assert (resumed["recovered"], resumed["events"]) == (True, [])

        # The offers' timer, set before the crash, fires after it: once.
        for socket, offer in zip(back[1:3], offers, strict=True):
            await socket.event("offer.expired", "provider:", seconds=15, offer_id=offer["id"])
            again = await socket.event("offer.made", "provider:", seconds=15, booking_id=waiting["id"], after=0)
            assert again["data"]["offer"]["wave"] == 2
            error = await refusal(socket, "offer.accept", {"offer_id": offer["id"], "key": new_key()})
            assert error["data"]["type"] == "offer_expired"
        # The second wave's timer is the next to fire: nothing of the first can still come after it.
        admin = back[3]
        await admin.event("offer.expired", after=len(admin.events), seconds=15)
        feed = [*heard[3], *admin.events]
        for offer in offers:
            about: list[JSON] = [event for event in feed if event["data"].get("offer_id") == offer["id"]]
            assert [event["type"] for event in about] == ["offer.made", "offer.expired"]
        assert is_gapless([event for event in feed if event["channel"] == "admin:bookings"])


async def test_a_stop_drains_with_4000_and_a_restart_goes_on(start_demo: Callable[..., Demo]) -> None:
    demo = start_demo(drain_seconds=0.5)
    async with Town(demo.base) as town:
        stood = json.loads(json.dumps(town.admin.positions))
        stopping = asyncio.create_task(asyncio.to_thread(demo.terminate))
        sockets = [town.customer, *town.providers, town.admin]
        for socket in sockets:
            notice = await socket.notice("drain")
            assert notice.keys() == {"jsonrpc", "method", "params"}
            assert 0 < notice["params"]["reconnect_after_ms"] <= 500
        # Commands are answered until the socket's time has come.
        assert [await socket.close_code() for socket in sockets] == [4000] * 5
        assert await stopping == 0
        await asyncio.to_thread(demo.start)
        admin = await town.connect(ADMIN, stood)
        assert admin.connected["channels"]["admin:bookings"]["recovered"] is True
