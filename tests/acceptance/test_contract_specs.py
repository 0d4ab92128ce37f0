"""What a running server says fits what its published specifications say."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime, timedelta

from jsonschema import Draft202012Validator

from tests.acceptance.client import CUSTOMER, JSON, PASSWORD, Answer, Rest, Socket, new_key
from tests.acceptance.town import Town

# `additionalProperties: false` in the schemas makes this strict: what is not published must not be sent either.


def problems(document: JSON, pointer: str, value: object) -> list[str]:
    """How a value does not fit the schema at that place of a document."""
    validator = Draft202012Validator({"$ref": pointer, "components": document["components"]})
    return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(value)]


async def document(rest: Rest, name: str) -> JSON:
    answer = await rest.get(f"/{name}/fixnado.v1.json")
    assert answer.status == 200
    return answer.body


async def story(town: Town) -> None:
    """Every command and, from them, as many events as one story has."""
    customer, worker, admin = town.customer, town.providers[0], town.admin
    for socket, method in ((customer, "service.list"), (customer, "zone.list"), (admin, "provider.list")):
        await socket.call(method)
    booking = await town.book(notes="Dripping tap")
    offers = await town.offers(booking)
    about = {"booking_id": booking["id"]}
    for kind in ("booking", "conversation"):
        for socket in (customer, admin):
            await socket.call("channel.subscribe", {"channel": f"{kind}:{booking['id']}"})
    await customer.call("channel.presence", {"channel": f"booking:{booking['id']}"})
    await worker.call("offer.list")
    await worker.call("session.ack", {worker.own("provider"): 1})
    await town.providers[2].call("offer.decline", {"offer_id": offers[2]["id"], "reason": "busy", "key": new_key()})
    booking = (await worker.call("offer.accept", {"offer_id": offers[0]["id"], "key": new_key()}))["booking"]
    talk = {"conversation_id": booking["id"]}
    await worker.call("typing.set", talk | {"typing": True})
    await worker.call("message.send", talk | {"text": "Hello", "key": new_key()})
    await customer.call("message.read", talk | {"offset": 1})
    await customer.call("conversation.history", talk)
    booking = await town.step(worker, booking, "en_route")
    where = {"lat": 51.545, "lon": -0.15, "accuracy_m": 5.0, "heading_deg": 90.0}
    await worker.call("location.publish", where | {"fix_at": datetime.now(UTC).isoformat()})
    await customer.event("eta.updated")
    for to in ("arrived", "in_progress", "paused", "in_progress", "completed"):
        booking = await town.step(worker, booking, to)
    booking = await town.step(customer, booking, "disputed", reason="still drips")
    await town.step(admin, booking, "completed", reason="settled")
    await customer.call("booking.get", about)
    await customer.call("booking.list", {"limit": 2})
    await worker.call("presence.set", {"status": "away"})
    await worker.call("presence.set", {"status": "online"})

    zone = {"zone_id": booking["zone_id"]}
    for channel in (f"zone:{zone['zone_id']}", "admin:zones"):
        await admin.call("channel.subscribe", {"channel": channel})
    waiting = await town.book(kind="scheduled", start="2099-03-02T09:00:00Z")
    for method in ("zone.recount", "zone.metrics", "zone.heat", "sla.at_risk"):
        await admin.call(method, zone)
    for told in ("zone.metrics_updated", "zone.heat_updated"):
        await admin.event(told)
    await admin.call("sla.set_policy", zone | {"grace_seconds": 600, "key": new_key()})
    await admin.call("sla.get_policy", zone | {"service_id": booking["service_id"]})
    await admin.call("sla.list_policies")
    ring = [[-40, -40], [-39, -40], [-39, -39], [-40, -40]]
    isle = {"type": "Feature", "id": "isle", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    collection = {"type": "FeatureCollection", "features": [isle]}
    await admin.call("zone.import", {"collection": collection, "key": new_key()})
    await worker.call("route.plan")
    await customer.call("booking.cancel", {"booking_id": waiting["id"], "reason": "never mind", "key": new_key()})

    later = await town.book(kind="scheduled", start="2099-03-01T09:00:00Z")
    moved = {"booking_id": later["id"], "version": later["version"], "start": "2099-03-01T10:00:00Z", "key": new_key()}
    later = (await customer.call("booking.reschedule", moved))["booking"]
    forced = {"booking_id": later["id"], "provider_id": offers[1]["provider_id"], "key": new_key()}
    later = (await admin.call("booking.assign", forced))["booking"]
    later = await town.step(town.providers[1], later, "awaiting_assignment", reason="flat tyre")
    await customer.call("booking.cancel", {"booking_id": later["id"], "reason": "never mind", "key": new_key()})
    await plans(town, {"service_id": booking["service_id"]}, zone)
    await customer.call("channel.unsubscribe", {"channel": f"booking:{booking['id']}"})
    await customer.call("session.refresh", {"token": town.tokens[CUSTOMER]})
    await admin.event("booking.cancelled", booking_id=later["id"])
    await asyncio.gather(*(socket.exchange("no.such") for socket in (customer, worker, admin)))


async def plans(town: Town, service: JSON, zone: JSON) -> None:
    """A provider's calendar, held and booked times, series, and calendars elsewhere."""
    customer, worker = town.customer, town.providers[1]
    theirs = {"provider_id": worker.own("provider").partition(":")[2]}
    place = {"location": {"lat": 51.539, "lon": -0.1426}}
    day = (datetime.now(UTC) + timedelta(days=3)).replace(hour=9, minute=0, second=0, microsecond=0)
    at = [(day + timedelta(hours=hours)).isoformat() for hours in range(9)]
    rule = {"rrule": "FREQ=DAILY", "tzid": "UTC", "dtstart": "2026-01-01T09:00", "duration_minutes": 360}
    await worker.call("availability.set_rules", theirs | {"rules": [rule], "version": 0, "key": new_key()})
    closed = theirs | {"kind": "closed", "start": at[4], "end": at[5], "key": new_key()}
    added = await worker.call("availability.add_exception", closed)
    await customer.call("channel.subscribe", {"channel": f"availability:{service['service_id']}:{zone['zone_id']}"})
    await customer.call("availability.slots", service | zone | {"from": at[0], "to": at[8]})
    held = await customer.call("slot.hold", service | zone | theirs | {"start": at[0], "key": new_key()})
    await customer.call("slot.release", {"hold_id": held["hold"]["id"], "key": new_key()})
    await customer.event("slot.opened")
    held = await customer.call("slot.hold", service | zone | theirs | {"start": at[0], "key": new_key()})
    await town.book(kind="scheduled", hold_id=held["hold"]["id"])
    await customer.event("slot.booked")
    twice = rule | {"rrule": "FREQ=DAILY;COUNT=2", "dtstart": at[0][:16], "duration_minutes": 60}
    wish = service | place | theirs | {"recurrence": twice, "key": new_key()}
    series = (await customer.call("series.create", wish))["series"]
    for told in ("instance_skipped", "instance_created", "ended"):
        await customer.event(f"series.{told}")
    (_, second) = (await customer.call("series.get", {"series_id": series["id"]}))["instances"]
    this = {"series_id": series["id"], "scope": "this", "recurrence_id": second["recurrence_id"]}
    moved = (day + timedelta(days=1, hours=2)).isoformat()
    await customer.call("series.edit", this | {"version": 2, "start": moved, "key": new_key()})
    await customer.call("series.cancel", {"series_id": series["id"], "scope": "all", "key": new_key()})
    await customer.call("series.list")
    await worker.call("calendar.issue_feed")
    await worker.call("calendar.revoke_feed")
    empty = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nEND:VCALENDAR\r\n"
    brought = await worker.call("calendar.import", theirs | {"name": "Home", "ics": empty, "key": new_key()})
    elsewhere = await worker.call(
        "calendar.subscribe", theirs | {"name": "Work", "url": "https://localhost/a.ics", "key": new_key()}
    )
    await worker.call("calendar.list_sources", theirs)
    for source in (brought, elsewhere):
        await worker.call("calendar.remove_source", {"source_id": source["source"]["id"], "key": new_key()})
    gone = {"exception_id": added["exception"]["id"], "key": new_key()}
    await worker.call("availability.remove_exception", gone)
    shown = await worker.call("availability.get", theirs)
    version = shown["calendar"]["version"]
    await worker.call("availability.set_rules", theirs | {"rules": [], "version": version, "key": new_key()})
    await reach_out(town)


async def reach_out(town: Town) -> None:
    """What is said about being reached without a socket."""
    customer, admin = town.customer, town.admin
    phone = {"token": "phone-" + "x" * 20}
    await customer.call("push.register", phone | {"platform": "ios"})
    await customer.call("notification.set_preferences", {"time_zone": "Europe/London"})
    await customer.call("notification.preferences")
    somebody = {"user_id": customer.connected["user"]["id"], "category": "service"}
    sent = await admin.call("notification.send", somebody | {"title": "Hello", "text": "All well?", "key": new_key()})
    await customer.event("notification.raised")
    await customer.call("notification.list")
    await customer.call("notification.read", {"notification_id": sent["notification"]["id"]})
    await customer.event("notification.ended")
    await customer.call("push.unregister", phone)


OFFICE = {"organisation", "member", "membership", "invitation", "flag", "audit", "security", "user"}
"""Subjects of the back office, which the story of a booking does not touch; their own tests check their shapes."""


async def test_what_the_socket_says_fits_asyncapi(town: Town, rest: Rest) -> None:
    asyncapi = await document(rest, "asyncapi")
    await story(town)
    await town.customer.exchange("booking.get", {"booking_id": 1})
    wrong: list[str] = []
    said: Counter[str] = Counter()
    for socket in (town.customer, *town.providers, town.admin):
        for text in socket.texts:
            name = message_of(socket, json.loads(text))
            said[name] += 1
            wrong += [
                f"{name} {problem}"
                for problem in problems(asyncapi, f"#/components/messages/{name}/payload", json.loads(text))
            ]
    assert not wrong, "\n".join(sorted(set(wrong)))
    commands = {name.removesuffix(".reply") for name in asyncapi["components"]["messages"] if name.endswith(".reply")}
    told = {name for name in commands if name.partition(".")[0] not in OFFICE}
    assert {name.removesuffix(".reply") for name in said if name.endswith(".reply")} == told
    events = {name for name, message in asyncapi["components"]["messages"].items() if "x-event-class" in message}
    # These take a clock, or a crash of the search, to be said; they share their shapes with others.
    rare = {
        "booking.unfulfilled",
        "booking.no_show_recorded",
        "booking.rescue_needed",
        "offer.expired",
        "booking.stalled",
        "sla.warned",
        "sla.breached",
    }
    assert {name for name in events - said.keys() if name.partition(".")[0] not in OFFICE} == rare
    for socket in (town.customer, *town.providers, town.admin):
        for name, channel in socket.connected["channels"].items():
            schema = {"admin": "FeedState", "provider": "ProviderState"}.get(name.partition(":")[0])
            if schema:
                assert problems(asyncapi, f"#/components/schemas/{schema}", channel["state"]) == []


def message_of(socket: Socket, frame: JSON) -> str:
    """The name under which the specification has this message."""
    if "error" in frame:
        return "error"
    if "result" in frame:
        return f"{socket.asked[frame['id']]}.reply"
    return str(frame["params"]["type"] if frame["method"] == "event" else frame["method"])


async def test_what_rest_answers_fits_openapi(town: Town, rest: Rest) -> None:
    openapi = await document(rest, "openapi")
    wrong: list[str] = []

    def check(answer: Answer, path: str, method: str = "post") -> JSON:
        responses = openapi["paths"][path][method]["responses"]
        response = responses.get(str(answer.status), responses.get("default"))
        assert response is not None, (path, answer)
        name = response.get("$ref", "").rpartition("/")[2]
        content = (openapi["components"]["responses"][name] if name else response).get("content")
        if content is None:
            assert answer.raw == b""
            return {}
        assert answer.type in content, (path, answer)
        schema = content[answer.type]["schema"]
        if "$ref" in schema:
            wrong.extend(f"{path} {problem}" for problem in problems(openapi, schema["$ref"], answer.body))
        return answer.body if answer.type.endswith("json") else {}

    email = f"{new_key()}@people.test"
    new = {"email": email, "password": PASSWORD, "name": "Zoë", "role": "customer"}
    check(await rest.post("/auth/register", new), "/auth/register")
    check(await rest.post("/auth/register", new), "/auth/register")
    check(await rest.post("/auth/register", {}), "/auth/register")
    tokens = check(await rest.post("/auth/login", {"email": email, "password": PASSWORD}), "/auth/login")
    check(await rest.post("/auth/login", {"email": email, "password": "wrong"}), "/auth/login")
    fresh = check(await rest.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]}), "/auth/refresh")
    token = fresh["access_token"]
    check(await rest.get("/auth/me", token=token), "/auth/me", "get")
    check(await rest.get("/auth/me"), "/auth/me", "get")
    check(await rest.get("/auth/sessions", token=token), "/auth/sessions", "get")
    check(await rest.send("DELETE", "/auth/sessions/x", token=token), "/auth/sessions/{id}", "delete")
    for path in ("/health/live", "/health/ready", "/metrics", "/.well-known/jwks.json"):
        check(await rest.get(path), path, "get")

    wish = {"service_id": "plumbing", "kind": "on_demand", "location": {"lat": 51.539, "lon": -0.1426}}
    made = check(await rest.command("booking.create", wish, token, new_key()), "/commands/booking.create")
    about = {"booking_id": made["booking"]["id"]}
    for method, params in (
        ("booking.get", about),
        ("booking.list", {}),
        ("service.list", {}),
        ("zone.list", {}),
        ("provider.list", {}),
        ("conversation.history", {"conversation_id": about["booking_id"]}),
        ("booking.transition", about | {"to": "completed", "version": 2, "key": new_key()}),
        ("booking.transition", about | {"to": "cancelled", "version": 1, "key": new_key()}),
        ("booking.cancel", about | {"reason": "only a test", "key": new_key()}),
    ):
        check(await rest.command(method, params, token), f"/commands/{method}")
    check(await rest.post("/auth/logout", token=token), "/auth/logout")
    check(await rest.post("/auth/logout-all", token=token), "/auth/logout-all")
    assert not wrong, "\n".join(sorted(set(wrong)))
