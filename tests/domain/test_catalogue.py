"""The catalogue is true: what really comes back and what is really recorded has the declared shape."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from channels import topics
from domain import availability, flags, snapshots
from domain.catalogue import COMMANDS, EVENTS, TIMERS
from domain.commands import Desk, Mode
from domain.context import Context
from domain.events import Audience, Event, EventClass
from domain.identity import Actor, Role
from domain.letters import Medium
from domain.types import JSON, Point
from domain.views import View
from tests.domain.marketplace import CENTRE, START, Firm, Marketplace, north_of, square

IRREGULAR_PAST = {"en_route", "met", "made", "sent", "withdrawn", "rescue_needed", "no_show_recorded", "held"}


class Play:
    """Acts a whole evening of the marketplace and keeps every answer."""

    def __init__(self, market: Marketplace) -> None:
        self.market = market
        self.answers: list[tuple[str, JSON]] = []

    async def call(self, actor: Actor, method: str, **params: Any) -> JSON:
        answer = await self.market.call(actor, method, **params)
        self.answers.append((method, answer))
        return answer

    async def work(self, firm: Firm, booking_id: str, *targets: str) -> None:
        for target in targets:
            version = (await self.market.booking(booking_id)).version
            await self.call(firm.person, "booking.transition", booking_id=booking_id, to=target, version=version)

    async def book(self, customer: Actor, **params: Any) -> str:
        wanted = {"service_id": "plumbing", "kind": "on_demand", "location": CENTRE.view()} | params
        booking_id: str = (await self.call(customer, "booking.create", **wanted))["booking"]["id"]
        return booking_id

    async def accept(self, firm: Firm, booking_id: str) -> None:
        await self.call(firm.person, "offer.accept", offer_id=await self.market.offer_id(firm, booking_id))

    async def act(self) -> None:
        market = self.market
        customer, operator = await market.customer(), await market.operator()
        first, second = await market.firm(rating=5.0), await market.firm(rating=4.0, position=None)
        await self._first_job(customer, first, second)
        await self._scheduled_job(customer, operator, second)
        await self._search_in_vain(customer, first, second)
        await self._join_and_leave(customer, first)
        await self._notify(customer, operator)
        await self._plan(customer, second)
        await self._administer(customer)
        await self._watch_the_map(operator, first)
        for method in ("service.list", "zone.list", "booking.list"):
            await self.call(customer, method)
        await self.call(operator, "provider.list")
        await self.call(customer, "booking.list", limit=1)
        await self.call(operator, "booking.list", status="completed")

    async def _first_job(self, customer: Actor, first: Firm, second: Firm) -> None:
        market = self.market
        place = CENTRE.view() | {"address": "12 Inverness Street"}
        job = await self.book(customer, location=place, notes="second floor")
        await self.call(first.person, "offer.list")
        await self.accept(first, job)
        await self.work(first, job, "en_route")
        publish = {"accuracy_m": 4.0, "heading_deg": 12.5, "fix_at": market.clock.now().isoformat()}
        await self.call(first.person, "location.publish", **north_of(CENTRE, 2000).view(), **publish)
        await self.work(first, job, "awaiting_assignment")
        await market.run_timers()
        await self.accept(second, job)
        await self.work(second, job, "en_route")
        await self.call(customer, "message.send", conversation_id=job, text="which bell?")
        await self.call(customer, "typing.set", conversation_id=job, typing=True)
        await self.call(customer, "typing.set", conversation_id=job, typing=False)
        await self.call(second.person, "message.read", conversation_id=job, offset=1)
        await self.call(second.person, "conversation.history", conversation_id=job)
        market.clock.advance(3)
        await self.call(second.person, "location.publish", **CENTRE.view(), fix_at=market.clock.now().isoformat())
        await self.work(second, job, "in_progress", "paused", "in_progress", "completed")
        await self.call(customer, "booking.get", booking_id=job)
        version = (await market.booking(job)).version
        await self.call(customer, "booking.transition", booking_id=job, to="disputed", version=version, reason="leaks")

    async def _scheduled_job(self, customer: Actor, operator: Actor, second: Firm) -> None:
        market = self.market
        start = market.clock.now() + timedelta(hours=24)
        booking_id = await self.book(customer, kind="scheduled", start=start.isoformat())
        version = (await market.booking(booking_id)).version
        later = (start + timedelta(hours=2)).isoformat()
        await self.call(customer, "booking.reschedule", booking_id=booking_id, version=version, start=later)
        await self.call(operator, "booking.assign", booking_id=booking_id, provider_id=second.provider_id)
        await self.work(second, booking_id, "en_route", "arrived")
        market.clock.advance(600)
        await self.work(second, booking_id, "no_show")
        disputed = next(row for row in await market.events("dispute.opened")).data["booking_id"]
        version = (await market.booking(disputed)).version
        settle = {"booking_id": disputed, "to": "completed", "version": version}
        await self.call(operator, "booking.transition", **settle)

    async def _join_and_leave(self, customer: Actor, firm: Firm) -> None:
        market, boss = self.market, firm.person
        here = {"organisation_id": firm.organisation_id}
        email = await market.email(customer)
        await self.call(boss, "organisation.invite", **here, email="no.account@example.test", role="owner")
        waiting = (await self.call(boss, "invitation.list", **here))["invitations"]
        await self.call(boss, "invitation.revoke", invitation_id=waiting[0]["id"])
        made = await self.call(boss, "organisation.invite", **here, email=email, role="technician")
        issued = await self.call(boss, "invitation.issue", invitation_id=made["invitation"]["id"])
        await self.call(customer, "invitation.accept", token=issued["token"])
        await self.call(boss, "member.set_role", **here, user_id=customer.user_id, role="dispatcher")
        (membership,) = await market.transactions.read(lambda uow: uow.people.memberships(customer.user_id))
        dispatcher = customer.having(membership)
        for method in ("organisation.get", "member.list"):
            await self.call(dispatcher, method, **here)
        await self.call(dispatcher, "organisation.list")
        await self.call(dispatcher, "organisation.leave", **here)
        leaver = await market.member(firm)
        await self.call(boss, "member.remove", **here, user_id=leaver.user_id)

    async def _notify(self, customer: Actor, operator: Actor) -> None:
        notice = {"user_id": customer.user_id, "category": "service", "title": "Snow", "text": "We may be late."}
        made = await self.call(operator, "notification.send", **notice)
        await self.call(customer, "notification.list")
        await self.call(customer, "notification.read", notification_id=made["notification"]["id"])
        await self.call(customer, "notification.list", limit=1)
        await self.call(customer, "notification.preferences")
        hours = {"start": "22:00", "end": "07:00"}
        await self.call(customer, "notification.set_preferences", quiet_hours=hours, media={"message": ["push"]})
        device = {"token": "fcm-token-of-a-device"}
        await self.call(customer, "push.register", platform="ios", **device)
        await self.call(customer, "push.unregister", **device)

    async def _plan(self, customer: Actor, firm: Firm) -> None:
        theirs = {"provider_id": firm.provider_id}
        rule = {"rrule": "FREQ=DAILY", "tzid": "Europe/London", "dtstart": "2026-01-01T09:00", "duration_minutes": 180}
        await self.call(firm.person, "availability.set_rules", **theirs, rules=[rule], version=0)
        day = START + timedelta(days=7)
        when = {"start": day.isoformat(), "end": (day + timedelta(hours=1)).isoformat()}
        closed = {"kind": "closed", "note": "dentist"}
        added = await self.call(firm.person, "availability.add_exception", **theirs, **closed, **when)
        anywhere = {"service_id": "plumbing", "zone_id": "camden"}
        question = {"from": day.isoformat(), "to": (day + timedelta(hours=4)).isoformat()}
        free = await self.call(customer, "availability.slots", **anywhere, **question, limit=1)
        start = free["slots"][0]["start"]
        held = await self.call(customer, "slot.hold", **anywhere, start=start)
        await self.call(customer, "slot.release", hold_id=held["hold"]["id"])
        held = await self.call(customer, "slot.hold", **anywhere, start=start)
        await self.book(customer, kind="scheduled", hold_id=held["hold"]["id"])
        held = await self.call(customer, "slot.hold", **anywhere, start=(day + timedelta(hours=26)).isoformat())
        await self.call(firm.person, "availability.get", **theirs, **question)
        await self.call(firm.person, "availability.remove_exception", exception_id=added["exception"]["id"])
        await self._bring_along(firm)
        await self._repeat(customer, firm, rule)

    async def _bring_along(self, firm: Firm) -> None:
        theirs = {"provider_id": firm.provider_id}
        await self.call(firm.person, "calendar.issue_feed")
        await self.call(firm.person, "calendar.revoke_feed", **theirs)
        empty = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nEND:VCALENDAR\r\n"
        brought = await self.call(firm.person, "calendar.import", **theirs, name="Home", ics=empty)
        await self.call(firm.person, "calendar.subscribe", **theirs, name="Work", url="https://example.test/a.ics")
        await self.call(firm.person, "calendar.list_sources", **theirs)
        await self.call(firm.person, "calendar.remove_source", source_id=brought["source"]["id"])

    async def _repeat(self, customer: Actor, firm: Firm, rule: JSON) -> None:
        work = {"service_id": "plumbing", "location": CENTRE.view(), "provider_id": firm.provider_id}
        weekly = rule | {
            "rrule": "FREQ=WEEKLY;UNTIL=20270101T000000Z",
            "dtstart": "2026-12-05T10:00",
            "duration_minutes": 60,
        }
        late = rule | {"rrule": "FREQ=DAILY;COUNT=3", "dtstart": "2026-12-06T20:00"}
        first = (await self.call(customer, "series.create", **work, recurrence=weekly))["series"]["id"]
        second = (await self.call(customer, "series.create", **work, recurrence=late))["series"]["id"]
        await self.market.advance(1)
        (begun, *_) = (await self.call(customer, "series.get", series_id=first))["instances"]
        this = {"scope": "this", "recurrence_id": begun["recurrence_id"], "start": "2026-12-05T09:00:00Z"}
        version = (await self.call(customer, "series.get", series_id=first))["series"]["version"]
        await self.call(customer, "series.edit", series_id=first, version=version, **this)
        await self.call(customer, "series.cancel", series_id=second, scope="all")
        await self.call(customer, "series.list")

    async def _administer(self, customer: Actor) -> None:
        admin = await self.market.operator(Role.ADMIN)
        pilot = {"state": "pilot", "percentage": 50, "roles": ["dispatcher"], "organisations": ["o"]}
        await self.call(admin, "flag.set", flag="new-map", **pilot)
        await self.call(admin, "flag.set", flag="dark-mode", state="enabled")
        await self.call(admin, "flag.list")
        await self.call(customer, "flag.evaluate")
        await self.call(customer, "flag.evaluate", flags=["new-map", "unheard-of"])
        await self.call(admin, "user.sign_out", user_id=customer.user_id, reason="lost phone")
        await self.call(admin, "audit.list", limit=3)

    async def _watch_the_map(self, operator: Actor, firm: Firm) -> None:
        market, zone = self.market, {"zone_id": "camden"}
        outline = {"type": "Feature", "id": "isle", "geometry": square(Point(-40.0, -40.0), 0.1)}
        await self.call(operator, "zone.import", collection={"type": "FeatureCollection", "features": [outline]})
        await self.call(operator, "zone.metrics", **zone)
        await self.call(operator, "zone.recount", **zone)
        await self.call(firm.person, "zone.metrics", **zone)
        waiting = await self.book(await market.customer())
        await self.call(operator, "zone.recount", **zone)
        await self.call(operator, "zone.heat", **zone, resolution=9)
        await self.call(operator, "sla.set_policy", **zone, grace_seconds=60)
        await self.call(operator, "sla.list_policies")
        await self.call(operator, "sla.get_policy", **zone, service_id="plumbing")
        await self.call(operator, "sla.at_risk", **zone)
        await self.call(operator, "route.plan", provider_id=firm.provider_id)
        await self.call(operator, "booking.assign", booking_id=waiting, provider_id=firm.provider_id)
        await self.work(firm, waiting, "en_route")
        await self.call(firm.person, "route.plan")
        await market.advance(3600)

    async def _search_in_vain(self, customer: Actor, first: Firm, second: Firm) -> None:
        market = self.market
        nobody = await self.book(customer)
        (offer,) = await market.offers(nobody)
        asked = first if offer.provider_id == first.provider_id else second
        await self.call(asked.person, "offer.decline", offer_id=offer.id, reason="too far")
        await market.advance(2000)
        await self.call(first.person, "presence.set", status="online")
        cancelled = await self.book(customer)
        await self.call(customer, "booking.cancel", booking_id=cancelled, reason="never mind")


async def test_every_answer_and_every_event_has_the_declared_shape(market: Marketplace) -> None:
    play = Play(market)
    await play.act()
    for method, answer in play.answers:
        _same_shape(COMMANDS[method].result, answer, method)
    said = {method for method, _ in play.answers}
    assert said == {name for name, command in COMMANDS.items() if command.handler}, "every command was really run"

    recorded = [event.event for event in await market.events()]
    heard = [event for event in [*recorded, *market.announcer.events] if event.type not in topics.CONTROL_EVENTS]
    # Said by nodes, each to its own clients, and not by a use case.
    heard.append(flags.updated(flags.Flag("new-map", flags.FlagState.ENABLED), "u", on=True, now=START))
    for event in heard:
        _same_shape(EVENTS[event.type].data, dict(event.data), event.type)
        assert event.event_class is EVENTS[event.type].event_class, event.type
        assert topics.route(event), f"{event.type} reaches nobody"
        if event.event_class is EventClass.LATEST:
            assert event.key, f"{event.type} has nothing to be replaced by"
    assert {event.type for event in heard} == EVENTS.keys(), "every event was really recorded"
    ids = [event.id for event in [*recorded, *market.announcer.events]]
    assert len(set(ids)) == len(ids)


def _same_shape(model: type[View], answer: JSON, what: str) -> None:
    parsed = model.model_validate(answer)
    again = parsed.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert again == answer, what


async def test_snapshots_have_the_declared_shape(market: Marketplace) -> None:
    customer, operator, firm = await market.customer(), await market.operator(), await market.firm()
    job, _ = await market.job(customer, firm), await market.book(customer)
    other = await market.firm()
    await market.call(customer, "message.send", conversation_id=job, text="hello")
    await market.advance(6)

    async def as_operator(read: Any, *params: str) -> JSON:
        async def work(uow: Any) -> JSON:
            state: JSON = await read(market.desk.context(operator, uow), *params)
            return state

        return await market.transactions.read(work)

    feed = await as_operator(snapshots.of_feed)
    _same_shape(snapshots.FeedState, feed, "feed")
    assert [len(feed[part]) for part in ("bookings", "offers", "providers", "zones")] == [2, 1, 2, 1]
    _same_shape(snapshots.BookingState, await as_operator(snapshots.of_booking, job), "booking")
    _same_shape(snapshots.ConversationState, await as_operator(snapshots.of_conversation, job), "conversation")
    busy = await as_operator(snapshots.of_provider, firm.provider_id)
    asked = await as_operator(snapshots.of_provider, other.provider_id)
    for state in (busy, asked):
        _same_shape(snapshots.ProviderState, state, "provider")
    assert [len(busy["bookings"]), len(asked["offers"])] == [1, 1]
    assert await as_operator(snapshots.of_booking, "none") is None


def test_every_keyed_command_takes_a_key_and_no_other_does() -> None:
    for name, command in COMMANDS.items():
        assert ("key" in command.params.model_fields) is (command.mode is Mode.KEYED), name
        if command.mode is Mode.KEYED:
            assert command.params.model_fields["key"].is_required(), name


def test_names_are_subject_dot_word() -> None:
    for name in [*COMMANDS, *EVENTS]:
        assert re.fullmatch(r"[a-z]+\.[a-z_]+", name), name
    assert all(name == command.name for name, command in COMMANDS.items())
    assert all(name == event.name for name, event in EVENTS.items())


def test_commands_are_imperative_and_events_past() -> None:
    for name in COMMANDS:
        assert not name.endswith("ed") or name.endswith("eed"), name
    for name in EVENTS:
        word = name.partition(".")[2]
        assert word.endswith("ed") or word in IRREGULAR_PAST, name
    assert not COMMANDS.keys() & EVENTS.keys()


def test_everything_is_described_in_a_sentence() -> None:
    summaries = {entry.name: entry.summary for entry in COMMANDS.values()}
    summaries |= {entry.name: entry.summary for entry in EVENTS.values()}
    for name, summary in summaries.items():
        assert re.fullmatch(r"[A-Z].*\.", summary), name
    models = [model for command in COMMANDS.values() for model in (command.params, command.result)]
    for model in [*models, *(event.data for event in EVENTS.values())]:
        assert model.__doc__, model.__name__


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_has_a_channel_that_carries_it(name: str) -> None:
    audience = Audience(("u",), ("p",), ("o",), "b", "c", ("z",), (("s", "z"),))
    event = Event("e", name, START, "x/1", {}, audience, EVENTS[name].event_class)
    channels = topics.route(event)
    assert channels
    assert len(set(channels)) == len(channels)
    assert topics.CONTROL not in channels, "clients hear it"
    assert all(topics.parse(channel) is not None for channel in channels)


async def test_every_timer_of_the_domain_has_a_handler(market: Marketplace) -> None:
    market.desk = Desk(COMMANDS, market.transactions, replace(market.policy, reach=((Medium.PUSH, 5.0),)))
    firm = await market.firm()
    customer = await market.customer()
    await market.job(customer, await market.firm(rating=5.0), "en_route")
    await market.book(customer)
    await market.advance(0)

    async def close(ctx: Context) -> None:
        await availability.socket_closed(ctx, firm.provider_id, "node")

    await market.as_system(close)
    rule = {"rrule": "FREQ=DAILY", "tzid": "UTC", "dtstart": "2026-01-01T09:00", "duration_minutes": 180}
    await market.call(firm.person, "availability.set_rules", provider_id=firm.provider_id, rules=[rule], version=0)
    anywhere = {"service_id": "plumbing", "zone_id": "camden"}
    await market.call(customer, "slot.hold", **anywhere, start=(START + timedelta(days=1)).isoformat())
    wish = {"service_id": "plumbing", "location": CENTRE.view(), "recurrence": rule | {"dtstart": "2030-01-01T09:00"}}
    await market.call(customer, "series.create", **wish)
    kinds = {name.partition(":")[0] for name in await market.timer_names()}
    await market.advance(605)
    kinds |= {name.partition(":")[0] for name in await market.timer_names()}
    assert kinds == TIMERS.keys()
