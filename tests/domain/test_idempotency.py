"""Every keyed command has its effect once per person and key, whatever is retried beside or after it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from domain.catalogue import COMMANDS
from domain.commands import Mode
from domain.identity import Actor, Role
from domain.types import JSON, Point
from persistence import tables
from persistence.idempotency import prune_keys
from tests.domain.marketplace import CENTRE, ORIGIN, Firm, Marketplace, refusal, refused, square

KEYED = sorted(name for name, command in COMMANDS.items() if command.mode is Mode.KEYED)
WATCHED = (
    tables.bookings,
    tables.offers,
    tables.messages,
    tables.booking_declines,
    tables.idempotency_keys,
    tables.memberships,
    tables.invitations,
    tables.audit_log,
    tables.zones,
    tables.sla_policies,
    tables.calendars,
    tables.calendar_exceptions,
    tables.slot_holds,
    tables.calendar_sources,
    tables.series,
)


@dataclass(frozen=True)
class Case:
    """A command that will succeed.

    Attributes:
        effect: the event that it records once, where it tells of anything.
        other: params that differ and would be valid too.
        refusable: params that are refused by the rules.
    """

    actor: Actor
    params: JSON
    effect: str | None
    other: JSON
    refusable: JSON = field(default_factory=dict)


async def _create(market: Marketplace) -> Case:
    await market.firm()
    wanted = {"service_id": "plumbing", "kind": "on_demand", "location": CENTRE.view()}
    refusable = wanted | {"location": {"lat": -80.0, "lon": 0.0}}
    return Case(await market.customer(), wanted, "booking.created", wanted | {"notes": "other"}, refusable)


async def _transition(market: Marketplace) -> Case:
    customer, firm = await market.customer(), await market.firm()
    booking = await market.booking(await market.job(customer, firm))
    params = {"booking_id": booking.id, "to": "en_route", "version": booking.version}
    return Case(firm.person, params, "booking.en_route", params | {"reason": "other"}, params | {"to": "completed"})


async def _cancel(market: Marketplace) -> Case:
    customer = await market.customer()
    params = {"booking_id": await market.book(customer), "reason": "no"}
    return Case(customer, params, "booking.cancelled", params | {"reason": "other"}, params | {"booking_id": "none"})


async def _reschedule(market: Marketplace) -> Case:
    customer = await market.customer()
    booking = await market.booking(await market.book_slot(customer))
    params = {"booking_id": booking.id, "version": booking.version, "start": "2026-12-01T10:00:00Z"}
    other = params | {"start": "2026-12-01T11:00:00Z"}
    return Case(customer, params, "booking.rescheduled", other, params | {"version": 99})


async def _assign(market: Marketplace) -> Case:
    customer, operator, firm, other = (
        await market.customer(),
        await market.operator(),
        await market.firm(),
        await market.firm(),
    )
    params = {"booking_id": await market.book(customer), "provider_id": firm.provider_id}
    with_other = params | {"provider_id": other.provider_id}
    return Case(operator, params, "booking.assigned", with_other, params | {"provider_id": "none"})


async def _accept(market: Marketplace) -> Case:
    customer, firm = await market.customer(), await market.firm()
    offer_ids = [await market.offer_id(firm, await market.book(customer)) for _ in range(2)]
    params = {"offer_id": offer_ids[0]}
    return Case(firm.person, params, "booking.assigned", {"offer_id": offer_ids[1]}, {"offer_id": "none"})


async def _decline(market: Marketplace) -> Case:
    customer, firm = await market.customer(), await market.firm()
    params = {"offer_id": await market.offer_id(firm, await market.book(customer)), "reason": "no"}
    return Case(firm.person, params, "offer.declined", params | {"reason": "other"}, params | {"offer_id": "none"})


async def _send(market: Marketplace) -> Case:
    customer = await market.customer()
    params = {"conversation_id": await market.book(customer), "text": "hello"}
    return Case(customer, params, "message.sent", params | {"text": "other"}, params | {"conversation_id": "none"})


async def _invite(market: Marketplace) -> Case:
    firm = await market.firm()
    params = {"organisation_id": firm.organisation_id, "email": "new@example.test", "role": "technician"}
    other = params | {"email": "other@example.test"}
    refusable = params | {"email": await market.email(firm.person)}
    return Case(firm.person, params, "invitation.created", other, refusable)


async def _leave(market: Marketplace) -> Case:
    firm, other = await market.firm(), await market.firm()
    person = await market.member(firm)
    elsewhere = {"organisation_id": other.organisation_id}
    return Case(person, {"organisation_id": firm.organisation_id}, "membership.removed", elsewhere, elsewhere)


async def _set_role(market: Marketplace) -> Case:
    firm = await market.firm()
    here, member = {"organisation_id": firm.organisation_id}, await market.member(firm)
    params = here | {"user_id": member.user_id, "role": "owner"}
    refusable = here | {"user_id": firm.person.user_id, "role": "technician"}
    return Case(firm.person, params, "membership.changed", params | {"role": "dispatcher"}, refusable)


async def _remove(market: Marketplace) -> Case:
    firm = await market.firm()
    here, member = {"organisation_id": firm.organisation_id}, await market.member(firm)
    boss = here | {"user_id": firm.person.user_id}
    return Case(firm.person, here | {"user_id": member.user_id}, "membership.removed", boss, boss)


async def _revoke(market: Marketplace) -> Case:
    firm = await market.firm()
    invitation_id, _ = await market.invitation(firm, "new@example.test")
    nowhere = {"invitation_id": "none"}
    return Case(firm.person, {"invitation_id": invitation_id}, "invitation.revoked", nowhere, nowhere)


async def _join(market: Marketplace) -> Case:
    firm, customer = await market.firm(), await market.customer()
    _, token = await market.invitation(firm, await market.email(customer))
    guessed = {"token": "fxi_guessed"}
    return Case(customer, {"token": token}, "membership.created", guessed, guessed)


async def _set_flag(market: Marketplace) -> Case:
    params = {"flag": "new-map", "state": "enabled"}
    refusable = params | {"roles": ["king"]}
    admin = await market.operator(Role.ADMIN)
    return Case(admin, params, "flag.changed", params | {"state": "disabled"}, refusable)


async def _sign_out(market: Marketplace) -> Case:
    params = {"user_id": (await market.customer()).user_id, "reason": "lost phone"}
    admin = await market.operator(Role.ADMIN)
    return Case(admin, params, "session.revoked", params | {"reason": "other"}, params | {"user_id": "none"})


async def _import_zones(market: Marketplace) -> Case:
    def params(zone_id: str) -> JSON:
        feature = {"type": "Feature", "id": zone_id, "geometry": square(Point(-40.0, -40.0), 0.1)}
        return {"collection": {"type": "FeatureCollection", "features": [feature]}}

    operator = await market.operator()
    return Case(operator, params("isle"), "zones.changed", params("other"), params("no id"))


async def _set_policy(market: Marketplace) -> Case:
    params = {"response_seconds": 60}
    refusable = params | {"zone_id": "none"}
    return Case(await market.operator(), params, "security.event_recorded", {"response_seconds": 90}, refusable)


async def _planned(market: Marketplace) -> Firm:
    """A firm with hours on every morning."""
    firm = await market.firm()
    mornings = {"rrule": "FREQ=DAILY", "tzid": "UTC", "dtstart": "2026-01-01T08:00", "duration_minutes": 240}
    await market.call(
        firm.person, "availability.set_rules", provider_id=firm.provider_id, rules=[mornings], version=0, key="rules"
    )
    return firm


async def _set_rules(market: Marketplace) -> Case:
    firm = await market.firm()
    params = {"provider_id": firm.provider_id, "rules": [], "travel_buffer_minutes": 10, "version": 0}
    other = params | {"travel_buffer_minutes": 20}
    return Case(firm.person, params, "availability.changed", other, params | {"version": 7})


async def _add_exception(market: Marketplace) -> Case:
    firm = await _planned(market)
    when = {"start": "2026-12-01T08:00:00Z", "end": "2026-12-01T10:00:00Z"}
    params = {"provider_id": firm.provider_id, "kind": "closed"} | when
    other, refusable = params | {"note": "other"}, params | {"provider_id": "none"}
    return Case(firm.person, params, "availability.changed", other, refusable)


async def _remove_exception(market: Marketplace) -> Case:
    case = await _add_exception(market)
    added = await market.call(case.actor, "availability.add_exception", **case.params, key="exception")
    nowhere = {"exception_id": "none"}
    return Case(case.actor, {"exception_id": added["exception"]["id"]}, "availability.changed", nowhere, nowhere)


async def _hold(market: Marketplace) -> Case:
    await _planned(market)
    params = {"service_id": "plumbing", "zone_id": "camden", "start": "2026-12-01T08:00:00Z"}
    other, refusable = params | {"start": "2026-12-01T10:00:00Z"}, params | {"start": "2026-12-01T20:00:00Z"}
    return Case(await market.customer(), params, "slot.held", other, refusable)


async def _release(market: Marketplace) -> Case:
    case = await _hold(market)
    held = await market.call(case.actor, "slot.hold", **case.params, key="hold")
    nowhere = {"hold_id": "none"}
    return Case(case.actor, {"hold_id": held["hold"]["id"]}, "slot.opened", nowhere, nowhere)


async def _import_calendar(market: Marketplace) -> Case:
    firm = await _planned(market)
    lines: tuple[str, ...] = (
        "BEGIN:VCALENDAR",
        "VERSION:2.0",
        "PRODID:x",
        "BEGIN:VEVENT",
        "UID:1",
        "DTSTAMP:20261124T000000Z",
    )
    lines += ("DTSTART:20261201T080000Z", "DTEND:20261201T090000Z", "END:VEVENT", "END:VCALENDAR", "")
    params = {"provider_id": firm.provider_id, "name": "Home", "ics": "\r\n".join(lines)}
    return Case(
        firm.person, params, "availability.changed", params | {"name": "Other"}, params | {"ics": "no calendar"}
    )


async def _subscribe_calendar(market: Marketplace) -> Case:
    firm = await _planned(market)
    params = {"provider_id": firm.provider_id, "name": "Work", "url": "https://example.test/a.ics"}
    return Case(firm.person, params, None, params | {"name": "Other"}, params | {"provider_id": "none"})


async def _remove_source(market: Marketplace) -> Case:
    case = await _subscribe_calendar(market)
    added = await market.call(case.actor, "calendar.subscribe", **case.params, key="source")
    nowhere = {"source_id": "none"}
    return Case(case.actor, {"source_id": added["source"]["id"]}, "availability.changed", nowhere, nowhere)


async def _create_series(market: Marketplace) -> Case:
    weekly = {"rrule": "FREQ=WEEKLY", "tzid": "UTC", "dtstart": "2026-12-01T09:00", "duration_minutes": 60}
    params = {"service_id": "plumbing", "location": CENTRE.view(), "recurrence": weekly}
    refusable = params | {"location": {"lat": -80.0, "lon": 0.0}}
    return Case(await market.customer(), params, "series.created", params | {"notes": "other"}, refusable)


async def _edit_series(market: Marketplace) -> Case:
    case = await _create_series(market)
    series = (await market.call(case.actor, "series.create", **case.params, key="series"))["series"]
    later = case.params["recurrence"] | {"dtstart": "2026-12-01T10:00"}
    params = {"series_id": series["id"], "version": series["version"], "scope": "all", "recurrence": later}
    other = params | {"recurrence": later | {"duration_minutes": 90}}
    return Case(case.actor, params, "series.changed", other, params | {"version": 99})


async def _cancel_series(market: Marketplace) -> Case:
    case = await _create_series(market)
    series = (await market.call(case.actor, "series.create", **case.params, key="series"))["series"]
    params = {"series_id": series["id"], "scope": "all"}
    other = params | {"recurrence_id": "2026-12-01T09:00:00Z"}
    return Case(case.actor, params, "series.cancelled", other, params | {"series_id": "none"})


CASES: dict[str, Callable[[Marketplace], Awaitable[Case]]] = {
    "booking.create": _create,
    "booking.transition": _transition,
    "booking.cancel": _cancel,
    "booking.reschedule": _reschedule,
    "booking.assign": _assign,
    "offer.accept": _accept,
    "offer.decline": _decline,
    "message.send": _send,
    "organisation.invite": _invite,
    "organisation.leave": _leave,
    "member.set_role": _set_role,
    "member.remove": _remove,
    "invitation.revoke": _revoke,
    "invitation.accept": _join,
    "flag.set": _set_flag,
    "user.sign_out": _sign_out,
    "zone.import": _import_zones,
    "sla.set_policy": _set_policy,
    "availability.set_rules": _set_rules,
    "availability.add_exception": _add_exception,
    "availability.remove_exception": _remove_exception,
    "slot.hold": _hold,
    "slot.release": _release,
    "calendar.import": _import_calendar,
    "calendar.subscribe": _subscribe_calendar,
    "calendar.remove_source": _remove_source,
    "series.create": _create_series,
    "series.edit": _edit_series,
    "series.cancel": _cancel_series,
}


def test_every_keyed_command_has_a_case() -> None:
    assert sorted(CASES) == KEYED


async def snapshot(market: Marketplace) -> list[int]:
    return [await market.count(table) for table in WATCHED] + [await market.newest_event()]


@pytest.mark.parametrize("method", KEYED)
async def test_same_key_and_params_give_the_stored_result_and_no_second_effect(
    market: Marketplace, method: str
) -> None:
    case = await CASES[method](market)
    heard = await market.newest_event()
    first = await market.call(case.actor, method, **case.params, key="k")
    assert case.effect is None or len(await market.events(case.effect, after=heard)) == 1
    before, announced = await snapshot(market), len(market.announcer.events)
    market.clock.advance(1)
    assert await market.call(case.actor, method, **case.params, key="k") == first
    assert await snapshot(market) == before
    assert len(market.announcer.events) == announced


@pytest.mark.parametrize("method", KEYED)
async def test_same_key_with_other_params_is_refused(market: Marketplace, method: str) -> None:
    case = await CASES[method](market)
    await market.call(case.actor, method, **case.params, key="k")
    before = await snapshot(market)
    error = await refusal(market.call(case.actor, method, **case.other, key="k"))
    assert (error.type, error.status) == ("key_reused", 422)
    assert await snapshot(market) == before


async def test_same_key_for_another_command_is_refused(market: Marketplace) -> None:
    customer = await market.customer()
    booking_id = await market.book(customer)
    await market.call(customer, "message.send", conversation_id=booking_id, text="hello", key="k")
    cancel = market.call(customer, "booking.cancel", booking_id=booking_id, reason="hello", key="k")
    assert await refused(cancel) == "key_reused"


@pytest.mark.parametrize("method", KEYED)
async def test_duplicates_at_once_have_one_effect_and_one_answer(market: Marketplace, method: str) -> None:
    case = await CASES[method](market)
    heard = await market.newest_event()
    await market.warm()
    answers = await asyncio.gather(*(market.call(case.actor, method, **case.params, key="k") for _ in range(6)))
    assert all(answer == answers[0] for answer in answers)
    assert case.effect is None or len(await market.events(case.effect, after=heard)) == 1
    (stored,) = await market.rows(tables.idempotency_keys.select().where(tables.idempotency_keys.c.key == "k"))
    assert (stored.user_id, stored.result) == (case.actor.user_id, answers[0])


@pytest.mark.parametrize("method", KEYED)
async def test_refusal_is_not_stored_so_the_key_is_still_good(market: Marketplace, method: str) -> None:
    case = await CASES[method](market)
    before = await snapshot(market)
    await refusal(market.call(case.actor, method, **case.refusable, key="k"))
    assert await snapshot(market) == before
    await market.call(case.actor, method, **case.params, key="k")
    assert case.effect is None or len(await market.events(case.effect)) >= 1


async def test_key_belongs_to_its_user(market: Marketplace) -> None:
    first, second = await market.customer(), await market.customer()
    wanted: dict[str, Any] = {"service_id": "plumbing", "kind": "on_demand", "location": CENTRE.view(), "key": "k"}
    one = await market.call(first, "booking.create", **wanted)
    other = await market.call(second, "booking.create", **wanted)
    assert one["booking"]["id"] != other["booking"]["id"]
    assert other["booking"]["customer_id"] == second.user_id


async def test_key_of_the_header_counts_like_one_in_the_params(market: Marketplace) -> None:
    customer = await market.customer()
    wanted = {"service_id": "plumbing", "kind": "on_demand", "location": CENTRE.view()}
    execute = market.desk.execute
    first = await execute("booking.create", wanted, customer, ORIGIN, key="k")
    assert await execute("booking.create", wanted | {"key": "k"}, customer, ORIGIN) == first
    assert await execute("booking.create", wanted | {"key": "k"}, customer, ORIGIN, key="k") == first
    error = await refusal(execute("booking.create", wanted | {"key": "other"}, customer, ORIGIN, key="k"))
    assert error.details["errors"][0]["where"] == "key"
    assert await market.count(tables.bookings) == 1


async def test_key_counts_until_it_is_pruned_and_not_after(market: Marketplace) -> None:
    customer = await market.customer()
    booking_id = await market.book(customer)
    for text in ("one", "two"):
        await market.call(customer, "message.send", conversation_id=booking_id, text=text, key=text)
        market.clock.advance(60)
    assert await prune_keys(market.database, market.clock.now() - timedelta(minutes=1.5)) >= 1
    again = await market.call(customer, "message.send", conversation_id=booking_id, text="one", key="one")
    kept = await market.call(customer, "message.send", conversation_id=booking_id, text="two", key="two")
    assert (again["message"]["offset"], kept["message"]["offset"]) == (3, 2)
