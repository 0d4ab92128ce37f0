from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime

import pytest

from tests.acceptance.client import (
    ADMIN,
    CUSTOMER,
    JSON,
    PROVIDERS,
    Refused,
    Socket,
    is_gapless,
    new_key,
    offsets,
    signed_in,
)
from tests.acceptance.demo import Demo
from tests.acceptance.town import Town, refusal


def fix(lat: float, lon: float, **more: float) -> JSON:
    return {"lat": lat, "lon": lon, "fix_at": datetime.now(UTC).isoformat(), **more}


async def message(socket: Socket, booking: JSON, text: str) -> JSON:
    params = {"conversation_id": booking["id"], "text": text, "key": new_key()}
    sent = (await socket.call("message.send", params))["message"]
    assert isinstance(sent, dict)
    return sent


async def test_a_booking_from_the_wish_to_the_end(either_demo: Demo) -> None:
    async with Town(either_demo.base) as town:
        started = len(town.admin.events)
        booking = await town.book(notes="Dripping tap")
        booking_id = booking["id"]
        assert (booking["status"], booking["customer_id"]) == (
            "awaiting_assignment",
            town.customer.connected["user"]["id"],
        )

        # Every provider is asked at once, and all say yes at the same moment: one wins.
        offers = await town.offers(booking)
        assert len({offer["provider_id"] for offer in offers}) == 3
        keys = [new_key() for _ in offers]
        answers = await asyncio.gather(
            *(
                provider.exchange("offer.accept", {"offer_id": offer["id"], "key": key})
                for provider, offer, key in zip(town.providers, offers, keys, strict=True)
            )
        )
        winners = [place for place, answer in enumerate(answers) if "result" in answer]
        assert len(winners) == 1
        winner = winners[0]
        losers = [place for place in range(3) if place != winner]
        for place in losers:
            error = answers[place]["error"]
            assert (error["code"], error["data"]["type"], error["data"]["status"]) == (-32000, "offer_taken", 409)
            assert error["data"]["retryable"] is False
            assert offers[winner]["provider_id"] not in json.dumps(error)
            withdrawn = await town.providers[place].event("offer.withdrawn", "provider:", booking_id=booking_id)
            assert withdrawn["data"] == {
                "offer_id": offers[place]["id"],
                "booking_id": booking_id,
                "provider_id": offers[place]["provider_id"],
                "reason": "taken",
            }
        worker, taken = town.providers[winner], answers[winner]["result"]["booking"]
        assert (taken["status"], taken["provider_id"]) == ("assigned", offers[winner]["provider_id"])
        # The winner's retry gets its success again, under the same key and under another.
        for key in (keys[winner], new_key()):
            again = await worker.call("offer.accept", {"offer_id": offers[winner]["id"], "key": key})
            assert again["booking"] == taken
        assigned = await town.customer.event("booking.assigned", "user:", booking_id=booking_id)
        assert assigned["data"]["booking"] == taken
        busy = await worker.event("availability.changed", "provider:", after=0, status="busy")
        assert busy["data"]["provider_id"] == taken["provider_id"]

        # The two talk.
        for socket in (town.customer, worker):
            for kind in ("booking", "conversation"):
                await socket.call("channel.subscribe", {"channel": f"{kind}:{booking_id}"})
        talk = f"conversation:{booking_id}"
        await worker.call("typing.set", {"conversation_id": booking_id, "typing": True})
        typing = await town.customer.event("typing.started", talk)
        assert typing["data"]["user_id"] == worker.connected["user"]["id"]
        sent = [
            await message(worker, booking, "On my way! 🚲"),
            await message(town.customer, booking, "Second floor, please."),
            await message(worker, booking, "See you."),
        ]
        assert [each["offset"] for each in sent] == [1, 2, 3]
        for socket in (town.customer, worker):
            await socket.event("message.sent", talk, message=sent[2])
            heard = [event["data"]["message"] for event in socket.heard(talk) if event["type"] == "message.sent"]
            assert heard == sent
        read = await town.customer.call("message.read", {"conversation_id": booking_id, "offset": 3})
        assert read == {"conversation_id": booking_id, "read_offset": 3, "unread": 0}
        receipt = await worker.event("receipt.updated", talk)
        assert receipt["data"] == {
            "conversation_id": booking_id,
            "user_id": booking["customer_id"],
            "read_offset": 3,
        }
        # A read mark never goes back, and one's own messages are not unread.
        back = await town.customer.call("message.read", {"conversation_id": booking_id, "offset": 1})
        assert back["read_offset"] == 3
        history = await worker.call("conversation.history", {"conversation_id": booking_id, "limit": 2})
        assert (history["messages"], history["unread"], history["has_more"]) == (sent[1:], 1, True)
        assert history["read"] == {booking["customer_id"]: 3}

        # The way there.
        assert await refusal(worker, "location.publish", fix(51.541, -0.15)) is not None
        booking = await town.step(worker, taken, "en_route")
        assert await worker.call("location.publish", fix(51.5450, -0.1500, accuracy_m=8.0)) == {
            "booking_id": booking_id,
            "shared": True,
        }
        moved = await town.customer.event("location.moved", f"booking:{booking_id}")
        assert "offset" not in moved
        assert (moved["data"]["lat"], moved["data"]["lon"], moved["data"]["accuracy_m"]) == (51.545, -0.15, 8.0)
        eta = await town.customer.event("eta.updated", f"booking:{booking_id}")
        assert eta["data"]["eta_seconds"] > 0
        assert 700 < eta["data"]["distance_m"] < 1000
        error = await refusal(worker, "location.publish", fix(51.5451, -0.1500))
        assert (error["code"], error["data"]["type"]) == (-32029, "too_many_requests")
        await asyncio.sleep(error["data"]["retry_after_seconds"] + 0.05)
        await worker.call("location.publish", fix(51.5391, -0.1427))
        arrived = await town.customer.event("booking.arrived", f"booking:{booking_id}")
        booking = arrived["data"]["booking"]
        assert booking["status"] == "arrived"

        # The work.
        for to in ("in_progress", "paused", "in_progress", "completed"):
            stale = await refusal(
                worker,
                "booking.transition",
                {"booking_id": booking_id, "to": to, "version": booking["version"] - 1, "key": new_key()},
            )
            assert (stale["data"]["type"], stale["data"]["version"]) == ("conflict", booking["version"])
            after = await town.step(worker, booking, to)
            assert (after["status"], after["version"]) == (to, booking["version"] + 1)
            booking = after
        illegal = await refusal(
            worker,
            "booking.transition",
            {"booking_id": booking_id, "to": "en_route", "version": booking["version"], "key": new_key()},
        )
        assert illegal["data"]["type"] == "illegal_transition"

        # What each of them saw.
        course = [
            "booking.created",
            "booking.dispatch_started",
            "booking.assigned",
            "booking.en_route",
            "booking.arrived",
            "booking.started",
            "booking.paused",
            "booking.resumed",
            "booking.completed",
        ]
        for socket, channel in ((town.customer, town.customer.own("user")), (town.admin, "admin:bookings")):
            await socket.event("booking.completed", channel, booking_id=booking_id)
            mine = [event for event in socket.heard(channel) if event["data"].get("booking_id") == booking_id]
            assert [event["type"] for event in mine if event["type"].startswith("booking.")] == course
            versions = [event["data"]["booking"]["version"] for event in mine if "booking" in event["data"]]
            assert versions == list(range(1, 10))
        feed = town.admin.heard("admin:bookings", started)
        assert is_gapless(feed)
        made = [event["type"] for event in feed if event["type"].startswith("offer.")]
        assert made == ["offer.made"] * 3 + ["offer.accepted"] + ["offer.withdrawn"] * 2
        for place in losers:
            loser = town.providers[place]
            assert not [event for event in loser.events if event["type"].startswith(("booking.", "message."))]
            assert is_gapless(loser.heard(loser.own("provider")))
        online = await worker.event("availability.changed", "provider:", reason="job_completed")
        assert online["data"]["status"] == "online"


async def test_whoever_loses_a_booking_hears_no_more_of_it(town: Town) -> None:
    booking = await town.assigned(winner=0)
    former, booking_id = town.providers[0], booking["id"]
    second = await town.connect(PROVIDERS[0])
    channels = [f"booking:{booking_id}", f"conversation:{booking_id}"]
    for socket in (former, second, town.customer):
        for channel in channels:
            await socket.call("channel.subscribe", {"channel": channel})
    await message(former, booking, "On my way")
    await second.event("message.sent", channels[1])
    booking = await town.step(former, booking, "awaiting_assignment", reason="flat tyre")
    started = await town.customer.event("booking.reassignment_started", channels[0])
    assert "provider_id" not in started["data"]["booking"]

    # The others are asked again, the one who gave it back is not.
    asked = [
        await town.providers[place].event(
            "offer.made", booking_id=booking_id, after=last(town.providers[place], "offer.withdrawn")
        )
        for place in (1, 2)
    ]
    offer = asked[1]["data"]["offer"]
    taken = (await town.providers[2].call("offer.accept", {"offer_id": offer["id"], "key": new_key()}))["booking"]
    assert taken["status"] == "assigned"
    await message(town.customer, booking, "Who comes now?")
    await town.providers[2].call("channel.subscribe", {"channel": channels[1]})
    await message(town.providers[2], booking, "I do.")
    await town.step(town.providers[2], taken, "en_route")
    await town.customer.event("booking.en_route", channels[0])

    for socket in (former, second):
        # An answer comes after everything that was written before it.
        await socket.call("service.list")
        texts = [event["data"]["message"]["text"] for event in socket.events if event["type"] == "message.sent"]
        assert texts == ["On my way"]
        types = [event["type"] for event in socket.heard(channels[0])]
        assert "booking.assigned" not in types[1:]
        assert "booking.en_route" not in types
        for channel in channels:
            error = await refusal(socket, "channel.subscribe", {"channel": channel})
            assert (error["code"], error["data"]["type"]) == (-32003, "not_found")
        for method, params in (
            ("booking.get", {"booking_id": booking_id}),
            ("conversation.history", {"conversation_id": booking_id}),
            ("message.send", {"conversation_id": booking_id, "text": "Hello?", "key": new_key()}),
            ("typing.set", {"conversation_id": booking_id, "typing": True}),
        ):
            assert (await refusal(socket, method, params))["data"]["type"] == "not_found"
    # Neither does a resume with an old position open the door again.
    async with signed_in(town.base, PROVIDERS[0], resume=former.positions) as back:
        assert set(back.connected["channels"]) == {back.own("user"), back.own("provider")}


def last(socket: Socket, type_: str) -> int:
    """The place after the newest event of that type."""
    places = [place for place, event in enumerate(socket.events, start=1) if event["type"] == type_]
    return places[-1] if places else 0


async def test_a_cut_client_resumes_with_exactly_what_it_missed(either_demo: Demo) -> None:
    async with Town(either_demo.base) as town:
        booking = await town.assigned()
        talk = f"conversation:{booking['id']}"
        channels = [f"booking:{booking['id']}", talk]
        for socket in (town.customer, town.providers[0]):
            for channel in channels:
                await socket.call("channel.subscribe", {"channel": channel})
        await message(town.providers[0], booking, "before")
        await town.customer.event("message.sent", talk)
        heard = len(town.customer.events)
        positions = json.loads(json.dumps(town.customer.positions))
        await town.customer.cut()

        missed = [(await message(town.providers[0], booking, f"missed {number}")) for number in range(7)]
        booking = await town.step(town.providers[0], booking, "en_route")
        await town.providers[0].event("booking.en_route", channels[0])
        await town.providers[0].event("message.sent", talk, message=missed[-1])
        await town.admin.event("booking.en_route", "admin:bookings", booking_id=booking["id"])

        back = await town.connect(CUSTOMER, positions)
        own = back.connected["channels"][back.own("user")]
        assert own["recovered"] is True
        assert [event["type"] for event in own["events"]] == ["booking.en_route"]
        assert own["offset"] == positions[back.own("user")]["offset"] + 1
        # Channels that are not one's own are resumed in the same reply, if they are still allowed.
        resumed = back.connected["channels"][talk]
        assert (resumed["recovered"], "state" in resumed) == (True, False)
        assert [event["data"]["message"] for event in resumed["events"]] == missed
        assert offsets(resumed["events"]) == list(range(positions[talk]["offset"] + 1, resumed["offset"] + 1))
        # Live goes on where the replay ended.
        after = await message(town.providers[0], booking, "after")
        live = await back.event("message.sent", talk, message=after)
        assert live["offset"] == resumed["offset"] + 1
        whole = [event for event in [*town.customer.events[:heard], *back.events] if event["channel"] == talk]
        assert is_gapless(whole), offsets(whole)


@pytest.mark.parametrize(
    "resume",
    [{"epoch": "another", "offset": 1}, {"epoch": None, "offset": 10**9}],
    ids=["unknown epoch", "from the future"],
)
async def test_what_cannot_be_resumed_is_said_and_comes_with_state(town: Town, resume: JSON) -> None:
    booking = await town.assigned()
    talk = f"conversation:{booking['id']}"
    first = await message(town.customer, booking, "hello")
    for channel in (f"booking:{booking['id']}", talk):
        epoch = (await town.customer.call("channel.subscribe", {"channel": channel}))["epoch"]
        given = {"epoch": resume["epoch"] or epoch, "offset": resume["offset"]}
        result = await town.customer.call("channel.subscribe", {"channel": channel, "resume": given})
        assert (result["recovered"], result["events"], result["epoch"]) == (False, [], epoch)
        if channel == talk:
            assert result["state"] == {"messages": [first], "read": {}, "unread": 0, "has_more": False}
        else:
            assert result["state"]["booking"] == booking
    given = {name: {"epoch": "another", "offset": 5} for name in town.admin.positions}
    again = await town.connect(ADMIN, given)
    assert not any(channel["recovered"] for channel in again.connected["channels"].values())
    assert booking["id"] in [each["id"] for each in again.connected["channels"]["admin:bookings"]["state"]["bookings"]]


async def test_a_log_that_was_trimmed_is_said(town: Town, demo_server: Demo) -> None:
    """More was missed than one reply may hold: a snapshot, not a part."""
    booking = await town.assigned()
    talk = f"conversation:{booking['id']}"
    start = await town.customer.call("channel.subscribe", {"channel": talk})
    long = "x" * 3900
    for _ in range(14):
        await asyncio.gather(*(message(town.customer, booking, long) for _ in range(10)))
    resumed = await town.customer.call(
        "channel.subscribe", {"channel": talk, "resume": {"epoch": start["epoch"], "offset": start["offset"]}}
    )
    assert (resumed["recovered"], resumed["events"]) == (False, [])
    state = resumed["state"]
    assert [each["offset"] for each in state["messages"]] == list(range(91, 141))
    assert state["has_more"] is True


async def test_commands_with_the_same_key_have_one_effect_on_two_sockets(town: Town) -> None:
    booking = await town.assigned()
    second = await town.connect(CUSTOMER)
    params = {"conversation_id": booking["id"], "text": "once", "key": new_key()}
    answers = await asyncio.gather(*(socket.call("message.send", params) for socket in (town.customer, second) * 3))
    assert all(answer == answers[0] for answer in answers)
    history = await second.call("conversation.history", {"conversation_id": booking["id"]})
    assert [each["text"] for each in history["messages"]] == ["once"]
    with pytest.raises(Refused) as caught:
        await second.call("message.send", params | {"text": "twice"})
    assert caught.value.type == "key_reused"


async def test_operations_assign_and_a_decline_asks_nobody_twice(town: Town) -> None:
    booking = await town.book()
    offers = await town.offers(booking)
    decline = {"offer_id": offers[0]["id"], "reason": "too far", "key": new_key()}
    assert await town.providers[0].call("offer.decline", decline) == {"offer_id": offers[0]["id"], "status": "declined"}
    declined = await town.admin.event("offer.declined", "admin:bookings", offer_id=offers[0]["id"])
    assert declined["data"]["reason"] == "too far"
    error = await refusal(town.providers[0], "offer.accept", {"offer_id": offers[0]["id"], "key": new_key()})
    assert error["data"]["type"] == "offer_withdrawn"
    forced = {"booking_id": booking["id"], "provider_id": offers[1]["provider_id"], "key": new_key()}
    assert (await refusal(town.customer, "booking.assign", forced))["data"]["type"] == "not_found"
    taken = (await town.admin.call("booking.assign", forced))["booking"]
    assert (taken["status"], taken["provider_id"]) == ("assigned", offers[1]["provider_id"])
    late = await refusal(town.providers[2], "offer.accept", {"offer_id": offers[2]["id"], "key": new_key()})
    assert late["data"]["type"] == "offer_taken"


async def test_a_cancelled_booking_withdraws_its_offers(town: Town) -> None:
    booking = await town.book()
    offers = await town.offers(booking)
    no_reason = await refusal(town.customer, "booking.cancel", {"booking_id": booking["id"], "key": new_key()})
    assert (no_reason["code"], no_reason["data"]["errors"][0]["where"]) == (-32602, "reason")
    cancel = {"booking_id": booking["id"], "reason": "fixed it myself", "key": new_key()}
    assert (await town.customer.call("booking.cancel", cancel))["booking"]["status"] == "cancelled"
    for provider, offer in zip(town.providers, offers, strict=True):
        withdrawn = await provider.event("offer.withdrawn", offer_id=offer["id"])
        assert withdrawn["data"]["reason"] == "cancelled"
        error = await refusal(provider, "offer.accept", {"offer_id": offer["id"], "key": new_key()})
        assert error["data"]["type"] == "offer_withdrawn"


def messages_of(socket: Socket, channel: str) -> list[JSON]:
    return [event for event in socket.heard(channel) if event["type"] == "message.sent"]


async def heard_up_to(socket: Socket, channel: str, offset: int) -> None:
    await socket.until(lambda: bool(socket.positions[channel]["offset"] >= offset))


async def test_clients_that_come_and_go_under_fire_miss_and_double_nothing(town: Town) -> None:
    """Subscriptions start while events of the channel are on their way, again and again, at every moment."""
    booking = await town.assigned()
    talk = f"conversation:{booking['id']}"
    await town.customer.call("channel.subscribe", {"channel": talk})
    done = asyncio.Event()

    async def write() -> None:
        for number in range(150):
            await message(town.customer, booking, str(number))
        done.set()

    async def come_and_go(email: str) -> list[JSON]:
        stood: dict[str, JSON] = {}
        heard: list[JSON] = []
        finished = False
        while not finished:
            finished = done.is_set()
            socket = await Socket.open(town.base)
            await socket.connect(town.tokens[email])
            params = {"channel": talk} | ({"resume": stood[talk]} if stood else {})
            result = await socket.call("channel.subscribe", params)
            assert result["recovered"] is bool(stood)
            await asyncio.sleep(random.uniform(0, 0.05))
            if finished:
                await town.customer.until(lambda: len(messages_of(town.customer, talk)) == 150)
                newest = offsets(town.customer.heard(talk))[-1]
                await heard_up_to(socket, talk, newest)
            heard += socket.heard(talk)
            stood[talk] = dict(socket.positions[talk])
            await socket.cut()
        return heard

    writing = asyncio.create_task(write())
    all_heard = await asyncio.gather(*(come_and_go(email) for email in (ADMIN, PROVIDERS[0], ADMIN, PROVIDERS[0])))
    await writing
    for heard in all_heard:
        durable = [event for event in heard if "offset" in event]
        assert is_gapless(durable)
        texts = [int(event["data"]["message"]["text"]) for event in durable]
        assert texts == list(range(texts[0], 150))
        assert len(texts) > 50
