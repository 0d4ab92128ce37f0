from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.acceptance.client import (
    ADMIN,
    CUSTOMER,
    JSON,
    PROVIDERS,
    Refused,
    Rest,
    Socket,
    new_key,
    signed_in,
)
from tests.acceptance.demo import Demo
from tests.acceptance.shapes import NOBODY, TIME, ULID, assert_error
from tests.acceptance.town import Town, refusal, token_of


async def test_subscribe_presence_unsubscribe(town: Town) -> None:
    booking = await town.book()
    channel = f"booking:{booking['id']}"
    result = await town.customer.call("channel.subscribe", {"channel": channel})
    assert result.keys() == {"channel", "epoch", "offset", "recovered", "events", "state"}
    assert (result["channel"], result["recovered"], result["events"]) == (channel, False, [])
    assert result["state"] == {"booking": booking}

    await town.admin.call("channel.subscribe", {"channel": channel})
    second = await town.connect(CUSTOMER)
    await second.call("channel.subscribe", {"channel": channel})
    seen = await town.customer.call("channel.presence", {"channel": channel})
    assert seen["channel"] == channel
    assert [(member["name"], member["roles"], member["sockets"]) for member in seen["members"]] == [
        ("Ada Admin", ["admin"], 1),
        ("Casey Jones", ["customer"], 2),
    ]
    assert all(member.keys() == {"user_id", "name", "roles", "sockets"} for member in seen["members"])

    assert await town.customer.call("channel.unsubscribe", {"channel": channel}) == {"channel": channel}
    assert_error(await refusal(town.customer, "channel.presence", {"channel": channel}), -32003, "not_found", 404)
    assert await town.customer.call("channel.unsubscribe", {"channel": channel}) == {"channel": channel}
    params = {"booking_id": booking["id"], "reason": "changed my mind", "key": new_key()}
    await town.customer.call("booking.cancel", params)
    await second.event("booking.cancelled", channel)
    # The same event came over the customer's own channel, and over the one it left it did not.
    await town.customer.event("booking.cancelled", "user:", booking_id=booking["id"])
    assert "booking.cancelled" not in [event["type"] for event in town.customer.heard(channel)]


async def test_subscribing_again_resumes_there(town: Town) -> None:
    booking = await town.book()
    channel = f"booking:{booking['id']}"
    await town.customer.event("booking.dispatch_started", "user:", booking_id=booking["id"])
    first = await town.customer.call("channel.subscribe", {"channel": channel})
    again = await town.customer.call(
        "channel.subscribe", {"channel": channel, "resume": {"epoch": first["epoch"], "offset": 0}}
    )
    assert again["recovered"] is True
    assert "state" not in again
    assert [event["type"] for event in again["events"]] == ["booking.created", "booking.dispatch_started"]
    assert [event["offset"] for event in again["events"]] == [1, 2]
    assert again["offset"] == 2


async def test_an_event_has_cloudevents_attributes(town: Town) -> None:
    booking = await town.book()
    event = await town.customer.event("booking.created", "user:", booking_id=booking["id"])
    assert event.keys() == {"channel", "offset", "id", "type", "time", "source", "correlationid", "data"}
    assert event["channel"] == town.customer.own("user")
    assert ULID.fullmatch(event["id"])
    assert TIME.fullmatch(event["time"])
    assert event["source"] == f"booking/{booking['id']}"
    assert event["data"].keys() == {"booking_id", "booking", "from"}
    assert event["data"]["booking"]["version"] == 1
    started = await town.customer.event("booking.dispatch_started", "user:", booking_id=booking["id"])
    assert started["data"]["from"] == "pending"
    # On every channel it is the same event, each with its place there.
    fed = await town.admin.event("booking.created", "admin:bookings", booking_id=booking["id"])
    assert {**fed, "channel": "", "offset": 0} == {**event, "channel": "", "offset": 0}
    text = next(text for text in town.customer.texts if event["id"] in text)
    assert json.loads(text).keys() == {"jsonrpc", "method", "params"}

    offer = (await town.offers(booking))[0]
    assert offer.keys() - {"eta_seconds", "rank", "rank_parts"} == {
        "id",
        "booking_id",
        "provider_id",
        "wave",
        "status",
        "expires_at",
        "server_time",
        "payout",
        "booking",
    }
    # Roughly where, and not for whom: the address comes with acceptance.
    assert offer["booking"].keys() == {"service_id", "zone_id", "kind", "area"}
    assert booking["customer_id"] not in json.dumps(offer)


async def test_an_ephemeral_event_has_no_offset(town: Town) -> None:
    booking = await town.book()
    channel = f"conversation:{booking['id']}"
    await town.admin.call("channel.subscribe", {"channel": channel})
    await town.customer.call("channel.subscribe", {"channel": channel})
    typing = {"conversation_id": booking["id"], "typing": True}
    assert await town.customer.call("typing.set", typing) == typing
    started = await town.admin.event("typing.started", channel)
    assert "offset" not in started
    assert started["data"] == {
        "conversation_id": booking["id"],
        "user_id": booking["customer_id"],
        "name": "Casey Jones",
    }
    # A message ends it.
    await town.customer.call("message.send", {"conversation_id": booking["id"], "text": "there", "key": new_key()})
    assert "offset" not in await town.admin.event("typing.stopped", channel)


def without_ids(reply: JSON) -> str:
    text = json.dumps(reply, sort_keys=True)
    correlation_id = reply["error"]["data"]["correlation_id"]
    return text.replace(f'"id": {reply["id"]}', '"id": 0').replace(correlation_id, "")


async def test_a_foreign_channel_and_one_that_does_not_exist_give_the_same_answer(town: Town, rest: Rest) -> None:
    booking = await town.assigned(winner=0)
    organisation = (await rest.login(PROVIDERS[0]))["user"]["id"]
    stranger_email = await rest.register("provider")
    async with signed_in(town.base, stranger_email) as stranger:
        answers = set()
        for channel in (
            f"booking:{booking['id']}",
            f"booking:{NOBODY}",
            f"conversation:{booking['id']}",
            f"conversation:{NOBODY}",
            f"user:{booking['customer_id']}",
            f"user:{NOBODY}",
            f"provider:{booking['provider_id']}",
            f"provider:{NOBODY}",
            f"organisation:{organisation}",
            f"organisation:{NOBODY}",
            "zone:camden",
            "zone:atlantis",
            "availability:plumbing:atlantis",
            "availability:gardening:camden",
            "admin:bookings",
            "admin:payments",
            "control",
            "nonsense",
            "user:",
            "booking:*",
            "booking:" + "x" * 500,
            f"booking:{booking['id']}\n",
        ):
            for method in ("channel.subscribe", "channel.presence"):
                reply = await stranger.exchange(method, {"channel": channel})
                assert_error(reply["error"], -32003, "not_found", 404)
                answers.add(without_ids(reply))
        assert len(answers) == 1
        # Nothing was subscribed by the way.
        await town.step(town.providers[0], booking, "en_route")
        await town.customer.event("booking.en_route", "user:")
        assert {event["channel"] for event in stranger.events} <= set(stranger.connected["channels"])
    loser = town.providers[1]
    assert_error(
        await refusal(loser, "channel.subscribe", {"channel": f"booking:{booking['id']}"}), -32003, "not_found", 404
    )


async def test_resuming_what_is_not_ones_own_opens_nothing_and_tells_nothing(town: Town, rest: Rest) -> None:
    booking = await town.assigned(winner=0)
    epochs = {
        channel: (await town.customer.call("channel.subscribe", {"channel": channel}))["epoch"]
        for channel in (f"booking:{booking['id']}", f"conversation:{booking['id']}")
    }
    strange = (f"booking:{NOBODY}", "admin:bookings", "control", "nonsense", f"user:{booking['customer_id']}")
    resume = {channel: {"epoch": epoch, "offset": 0} for channel, epoch in epochs.items()}
    resume |= {channel: {"epoch": "e", "offset": 0} for channel in strange}
    token = (await rest.login(await rest.register("provider")))["access_token"]
    stranger = await Socket.open(town.base)
    connected = await stranger.connect(token, resume)
    assert set(connected["channels"]) == {stranger.own("user"), stranger.own("provider")}
    await town.step(town.providers[0], booking, "en_route")
    await town.customer.event("booking.en_route", f"booking:{booking['id']}")
    await stranger.call("service.list")
    assert {event["channel"] for event in stranger.events} <= set(connected["channels"])
    await stranger.close()


def example(schema: JSON, name: str, ids: dict[str, str]) -> Any:
    """A value that fits a property's schema."""
    options = schema.get("anyOf", [schema])
    if any(option.get("format") == "date-time" for option in options):
        return "2099-01-01T12:00:00Z" if name in ("to", "end") else "2099-01-01T10:00:00Z"
    if name in ids:
        return ids[name]
    for option in options:
        match option.get("type"):
            case "array":
                return []
            case "integer":
                return 1
            case "number":
                return 51.5
            case "boolean":
                return True
            case "string" if "enum" in option:
                return option["enum"][0]
            case "string" if "url" in name:
                return "https://calendar.example.org/a.ics"
            case "string":
                return option.get("const", "text")
    return None


async def test_every_command_about_somebody_elses_thing_looks_like_not_found(town: Town, rest: Rest) -> None:
    """Enumerated from the published specification, so that a new command is tested without being asked for."""
    booking = await town.assigned(winner=0)
    offer = (await town.offers(booking))[0]
    theirs = {
        "booking_id": booking["id"],
        "conversation_id": booking["id"],
        "offer_id": offer["id"],
        "provider_id": booking["provider_id"],
        "to": "arrived",
        "status": "online",
        "kind": "closed",
    }
    missing = theirs | dict.fromkeys(("booking_id", "conversation_id", "offer_id", "provider_id"), NOBODY)
    document = (await rest.get("/openapi/fixnado.v1.json")).body
    schemas = document["components"]["schemas"]
    tried = []
    strangers = [await rest.register("customer"), await rest.register("provider")]
    tokens = [(await rest.login(email))["access_token"] for email in strangers] + [town.tokens[PROVIDERS[2]]]
    for path, operations in document["paths"].items():
        method = path.removeprefix("/commands/")
        if method == path:
            continue
        body = operations["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        properties = schemas[body.rpartition("/")[2]].get("properties", {})
        about = theirs.keys() & properties.keys() & {"booking_id", "conversation_id", "offer_id", "provider_id"}
        # Whom to ask for is everybody's choice.
        if not about or method in {"availability.slots", "slot.hold", "series.create"}:
            continue
        tried.append(method)
        for token in tokens:
            answers = []
            for ids in (theirs, missing):
                params = {name: example(schema, name, ids) for name, schema in properties.items()}
                params = {name: value for name, value in params.items() if value is not None and name != "key"}
                answers.append(await rest.command(method, params, token, new_key()))
            foreign, absent = answers
            assert foreign.status == absent.status == 404, (method, foreign, absent)
            assert {**foreign.body, "correlation_id": ""} == {**absent.body, "correlation_id": ""}, method
    assert {"booking.get", "booking.cancel", "booking.assign", "offer.accept", "message.send"} <= set(tried)
    after = (await town.customer.call("booking.get", {"booking_id": booking["id"]}))["booking"]
    assert after == booking


# --- the life of a sign-in --------------------------------------------------------------------------------------------


async def test_logout_closes_all_sockets_of_that_sign_in_and_no_other_within_a_second(
    demo_server: Demo, rest: Rest
) -> None:
    email = await rest.register()
    ending, staying = [(await rest.login(email))["access_token"] for _ in range(2)]
    sockets = [await Socket.open(demo_server.base) for _ in range(4)]
    for socket, token in zip(sockets, (ending, ending, ending, staying), strict=True):
        await socket.connect(token)
    started = time.monotonic()
    assert (await rest.post("/auth/logout", token=ending)).status == 204
    assert [await socket.close_code(1.0) for socket in sockets[:3]] == [4503] * 3
    assert time.monotonic() - started < 1.0
    assert "services" in await sockets[3].call("service.list")
    started = time.monotonic()
    assert (await rest.post("/auth/logout-all", token=staying)).status == 204
    assert await sockets[3].close_code(1.0) == 4503
    assert time.monotonic() - started < 1.0
    for socket in sockets:
        await socket.close()


async def test_a_stolen_refresh_token_closes_the_sockets_of_its_family(demo_server: Demo, rest: Rest) -> None:
    first = await rest.login(await rest.register())
    second = (await rest.post("/auth/refresh", {"refresh_token": first["refresh_token"]})).body
    await rest.post("/auth/refresh", {"refresh_token": second["refresh_token"]})
    socket = await Socket.open(demo_server.base)
    await socket.connect(second["access_token"])
    assert (await rest.post("/auth/refresh", {"refresh_token": first["refresh_token"]})).status == 401
    assert await socket.close_code(1.0) == 4503
    await socket.close()


async def test_somebody_elses_token_does_not_refresh_a_socket(demo_server: Demo, rest: Rest) -> None:
    async with signed_in(demo_server.base, CUSTOMER) as socket:
        other = await token_of(demo_server, ADMIN)
        assert_error(await refusal(socket, "session.refresh", {"token": other}), -32001, "invalid_token", 401)
        mine = await token_of(demo_server, CUSTOMER)
        result = await socket.call("session.refresh", {"token": mine})
        assert result.keys() == {"expires_in_seconds"}
        assert 890 <= result["expires_in_seconds"] <= 900
        assert socket.connected["user"]["roles"] == ["customer"]
        with pytest.raises(Refused):
            await socket.call("provider.list")


async def test_an_acknowledged_offer_counts_as_delivered(town: Town) -> None:
    booking = await town.book()
    offer = (await town.offers(booking))[0]
    provider = town.providers[0]
    assert (await provider.call("offer.list"))["offers"][0]["status"] == "sent"
    channel = provider.own("provider")
    assert await provider.call("session.ack", {channel: provider.positions[channel]["offset"]}) == {}
    listed = (await provider.call("offer.list"))["offers"]
    assert [(each["id"], each["status"]) for each in listed if each["booking_id"] == booking["id"]] == [
        (offer["id"], "delivered")
    ]
    assert await provider.call("session.ack", {f"provider:{NOBODY}": 5, "nonsense": 1}) == {}
    assert await provider.call("session.ack") == {}


async def test_many_commands_at_once_are_answered_each_once_and_in_order(demo_server: Demo) -> None:
    async with signed_in(demo_server.base, CUSTOMER) as socket:
        replies = await asyncio.gather(*(socket.exchange("service.list") for _ in range(30)))
        assert all("result" in reply for reply in replies)
        answered = [json.loads(text)["id"] for text in socket.texts]
        assert answered == sorted(answered)
        assert len(answered) == len(set(answered))


# --- live status ------------------------------------------------------------------------------------------------------


async def test_a_provider_is_online_while_it_has_a_socket_and_a_moment_longer(town: Town) -> None:
    provider = town.providers[2]
    provider_id = provider.own("provider").partition(":")[2]
    extra = await town.connect(PROVIDERS[2])
    place = len(town.admin.events)
    await provider.close()
    # One of two went: nothing to tell. The last went, but another came within the linger time: nothing either.
    await extra.close()
    again = await town.connect(PROVIDERS[2])
    await town.admin.call("zone.list")
    assert again.connected["channels"][again.own("provider")]["state"]["provider"]["status"] == "online"
    await again.close()
    gone = await town.admin.event("presence.changed", after=place, provider_id=provider_id)
    assert gone.keys() == {"channel", "id", "type", "time", "source", "correlationid", "data"}
    assert gone["data"]["status"] == "offline"
    assert gone["data"].keys() <= {"provider_id", "name", "status", "location"}
    back = await town.connect(PROVIDERS[2])
    online = await town.admin.event("presence.changed", after=place, provider_id=provider_id, status="online")
    assert online["data"]["name"] == "Obi Home Services"
    changes = [
        event["data"]["status"]
        for event in town.admin.events[place:]
        if event["type"] == "presence.changed" and event["data"]["provider_id"] == provider_id
    ]
    assert changes == ["offline", "online"]

    assert await back.call("presence.set", {"status": "away"}) == {"provider_id": provider_id, "status": "away"}
    changed = await back.event("availability.changed", "provider:", status="away")
    assert changed["data"] == {"provider_id": provider_id, "status": "away", "reason": "chosen"}
    assert changed["offset"] > 0
    # Whoever is away is not asked.
    booking = await town.book()
    await town.admin.event("offer.made", after=place, booking_id=booking["id"])
    await back.call("presence.set", {"status": "online"})
    asked = {event["data"]["provider_id"] for event in town.admin.events[place:] if event["type"] == "offer.made"}
    assert provider_id not in asked
