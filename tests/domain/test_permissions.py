"""Every command of the catalogue, for every role, on one's own tenant's things and on somebody else's: what is denied
looks as if it did not exist.

:data:`RULES` must name every command. Whoever adds one to the catalogue has to say here who may use it on what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pydantic import ValidationError

from domain import accounts, session
from domain.catalogue import COMMANDS
from domain.commands import Command, Mode, Who, allowed, validated
from domain.errors import FixnadoError, InvalidParams
from domain.identity import Actor, MembershipRole, Permission, Role
from domain.types import JSON, Point
from persistence import tables
from tests.domain.marketplace import CENTRE, ORIGIN, Firm, Marketplace, refusal, square

CUSTOMER, PROVIDER, UNATTACHED, OPERATIONS, ADMIN = "customer", "provider", "unattached", "operations", "admin"
"""A customer; a provider's person of another tenant; one whose membership is gone; staff."""

OWNER, DISPATCHER, TECHNICIAN = (role.value for role in MembershipRole)
"""People of the organisation that has the things."""

MEMBERS = (OWNER, DISPATCHER, TECHNICIAN)
MANAGERS = frozenset({OWNER, DISPATCHER})

ROLES = (CUSTOMER, PROVIDER, UNATTACHED, OPERATIONS, ADMIN)
STAFF = frozenset({OPERATIONS, ADMIN})
NOBODY: frozenset[str] = frozenset()

NOWHERE = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
"""An id of the right shape that nothing has."""


@dataclass(frozen=True)
class Ids:
    """Somebody's booking, its live offer, the provider that was asked, its organisation, a technician of it, an
    invitation to it, an exception in its calendar, a customer's hold on its time, that customer's
    series, and a source of busy times.
    """

    booking: str
    offer: str
    provider: str
    organisation: str = NOWHERE
    user: str = NOWHERE
    invitation: str = NOWHERE
    exception: str = NOWHERE
    hold: str = NOWHERE
    series: str = NOWHERE
    source: str = NOWHERE
    calendar: int = 0
    version: int = 2
    start: str = "2026-12-01T10:00:00Z"
    zone: str = NOWHERE


NOTHING = Ids(NOWHERE, NOWHERE, NOWHERE)


@dataclass(frozen=True)
class Rule:
    """Who may use a command on things that are not theirs; for everybody else they are not there.

    Attributes:
        params: valid params about these ids.
        may: roles that may.
        about_others: whether the params name a thing that could be somebody else's. If not, ``may`` says who may call
            the command at all.
        members: what somebody must be in the organisation that has the things, to use it on them.
        scheduled: what the booking must be for the command to succeed.
    """

    params: Callable[[Ids], JSON]
    may: frozenset[str]
    about_others: bool = True
    scheduled: bool = False
    members: frozenset[str] = frozenset(MEMBERS)


_create = {"service_id": "plumbing", "kind": "on_demand", "location": CENTRE.view(), "key": "k"}
_fix = CENTRE.view() | {"fix_at": "2026-11-24T09:00:00Z"}
_notice = {"category": "safety", "title": "Gas", "text": "Leave the house.", "key": "k"}
_device = "fcm-token-of-a-device"
_far_away = square(Point(-40.0, -40.0), 0.1)
_zone = {"type": "FeatureCollection", "features": [{"type": "Feature", "id": "z", "geometry": _far_away}]}
_later = "2026-12-01T12:00:00Z"
_anywhere = {"service_id": "plumbing", "zone_id": "camden"}
_weekly = {"rrule": "FREQ=WEEKLY", "tzid": "UTC", "dtstart": "2030-01-01T09:00", "duration_minutes": 60}
_calendar_text = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nEND:VCALENDAR\r\n"
_everybody = frozenset(ROLES)
_admin = frozenset({ADMIN})

RULES: Mapping[str, Rule] = {
    "booking.create": Rule(lambda _: _create, frozenset({CUSTOMER}), about_others=False, members=NOBODY),
    "booking.get": Rule(lambda ids: {"booking_id": ids.booking}, STAFF),
    "booking.list": Rule(lambda _: {}, _everybody, about_others=False),
    "booking.transition": Rule(
        lambda ids: {"booking_id": ids.booking, "to": "cancelled", "version": ids.version, "reason": "x", "key": "k"},
        STAFF,
    ),
    "booking.cancel": Rule(lambda ids: {"booking_id": ids.booking, "reason": "x", "key": "k"}, STAFF),
    "booking.reschedule": Rule(
        lambda ids: {"booking_id": ids.booking, "version": ids.version, "start": ids.start, "key": "k"},
        STAFF,
        scheduled=True,
    ),
    "booking.assign": Rule(
        lambda ids: {"booking_id": ids.booking, "provider_id": ids.provider, "key": "k"}, STAFF, members=NOBODY
    ),
    "offer.accept": Rule(lambda ids: {"offer_id": ids.offer, "key": "k"}, NOBODY),
    "offer.decline": Rule(lambda ids: {"offer_id": ids.offer, "reason": "x", "key": "k"}, NOBODY),
    "offer.list": Rule(lambda _: {}, frozenset({PROVIDER}), about_others=False),
    "message.send": Rule(lambda ids: {"conversation_id": ids.booking, "text": "x", "key": "k"}, STAFF),
    "message.read": Rule(lambda ids: {"conversation_id": ids.booking, "offset": 1}, STAFF),
    "conversation.history": Rule(lambda ids: {"conversation_id": ids.booking}, STAFF),
    "typing.set": Rule(lambda ids: {"conversation_id": ids.booking, "typing": True}, STAFF),
    "presence.set": Rule(lambda ids: {"status": "away", "provider_id": ids.provider}, NOBODY),
    "location.publish": Rule(lambda _: _fix, frozenset({PROVIDER}), about_others=False),
    "service.list": Rule(lambda _: {}, _everybody, about_others=False),
    "zone.list": Rule(lambda _: {}, _everybody, about_others=False),
    "zone.import": Rule(lambda _: {"collection": _zone, "key": "k"}, STAFF, about_others=False, members=NOBODY),
    # Others than staff must cover the zone, see test_zone_metrics; here it is one that nobody covers.
    "zone.metrics": Rule(lambda ids: {"zone_id": ids.zone}, STAFF, members=NOBODY),
    "zone.heat": Rule(lambda ids: {"zone_id": ids.zone}, STAFF, members=NOBODY),
    "zone.recount": Rule(lambda ids: {"zone_id": ids.zone}, STAFF, members=NOBODY),
    "sla.at_risk": Rule(lambda ids: {"zone_id": ids.zone}, STAFF, members=NOBODY),
    "sla.list_policies": Rule(lambda _: {}, STAFF, about_others=False, members=NOBODY),
    "sla.get_policy": Rule(lambda ids: {"service_id": "plumbing", "zone_id": ids.zone}, STAFF, members=NOBODY),
    "sla.set_policy": Rule(lambda _: {"response_seconds": 60, "key": "k"}, STAFF, about_others=False, members=NOBODY),
    "route.plan": Rule(lambda ids: {"provider_id": ids.provider}, STAFF),
    "provider.list": Rule(lambda _: {}, STAFF, about_others=False, members=NOBODY),
    "organisation.list": Rule(lambda _: {}, _everybody, about_others=False),
    "organisation.get": Rule(lambda ids: {"organisation_id": ids.organisation}, STAFF),
    "organisation.invite": Rule(
        lambda ids: {
            "organisation_id": ids.organisation,
            "email": "new@example.test",
            "role": "technician",
            "key": "k",
        },
        _admin,
        members=MANAGERS,
    ),
    # Nobody gives up a place in somebody else's organisation, not even staff.
    "organisation.leave": Rule(
        lambda ids: {"organisation_id": ids.organisation, "key": "k"}, NOBODY, members=frozenset(MEMBERS)
    ),
    "member.list": Rule(lambda ids: {"organisation_id": ids.organisation}, STAFF),
    "member.set_role": Rule(
        lambda ids: {"organisation_id": ids.organisation, "user_id": ids.user, "role": "dispatcher", "key": "k"},
        _admin,
        members=frozenset({OWNER}),
    ),
    "member.remove": Rule(
        lambda ids: {"organisation_id": ids.organisation, "user_id": ids.user, "key": "k"}, _admin, members=MANAGERS
    ),
    "invitation.list": Rule(lambda ids: {"organisation_id": ids.organisation}, _admin, members=MANAGERS),
    "invitation.issue": Rule(lambda ids: {"invitation_id": ids.invitation}, _admin, members=MANAGERS),
    "invitation.revoke": Rule(lambda ids: {"invitation_id": ids.invitation, "key": "k"}, _admin, members=MANAGERS),
    # Whoever shows the token decides, not a role; see test_organisations.
    "invitation.accept": Rule(lambda _: {"token": "fxi_guessed", "key": "k"}, NOBODY, members=NOBODY),
    "notification.list": Rule(lambda _: {}, _everybody, about_others=False),
    # Nobody has seen somebody else's notification for them; see test_reaching for one's own.
    "notification.read": Rule(lambda ids: {"notification_id": ids.booking}, NOBODY, members=NOBODY),
    "notification.send": Rule(lambda ids: _notice | {"user_id": ids.user}, STAFF, members=NOBODY),
    "notification.preferences": Rule(lambda _: {}, _everybody, about_others=False),
    "notification.set_preferences": Rule(lambda _: {"time_zone": "Europe/London"}, _everybody, about_others=False),
    "push.register": Rule(lambda _: {"platform": "web", "token": _device}, _everybody, about_others=False),
    "push.unregister": Rule(lambda _: {"token": _device}, _everybody, about_others=False),
    "availability.get": Rule(lambda ids: {"provider_id": ids.provider}, STAFF),
    "availability.set_rules": Rule(
        lambda ids: {"provider_id": ids.provider, "rules": [], "version": ids.calendar, "key": "k"},
        _admin,
        members=MANAGERS,
    ),
    "availability.add_exception": Rule(
        lambda ids: {"provider_id": ids.provider, "kind": "closed", "start": ids.start, "end": _later, "key": "k"},
        _admin,
        members=MANAGERS,
    ),
    "availability.remove_exception": Rule(
        lambda ids: {"exception_id": ids.exception, "key": "k"}, _admin, members=MANAGERS
    ),
    "availability.slots": Rule(
        lambda ids: _anywhere | {"from": ids.start, "to": _later}, _everybody, about_others=False
    ),
    "slot.hold": Rule(
        lambda ids: _anywhere | {"start": ids.start, "key": "k"},
        frozenset({CUSTOMER}),
        about_others=False,
        members=NOBODY,
    ),
    "slot.release": Rule(lambda ids: {"hold_id": ids.hold, "key": "k"}, NOBODY, members=NOBODY),
    "calendar.issue_feed": Rule(lambda ids: {"provider_id": ids.provider}, NOBODY),
    "calendar.revoke_feed": Rule(lambda ids: {"provider_id": ids.provider}, NOBODY),
    "calendar.import": Rule(
        lambda ids: {"provider_id": ids.provider, "name": "Home", "ics": _calendar_text, "key": "k"},
        _admin,
        members=MANAGERS,
    ),
    "calendar.subscribe": Rule(
        lambda ids: {"provider_id": ids.provider, "name": "Home", "url": "https://example.test/a.ics", "key": "k"},
        _admin,
        members=MANAGERS,
    ),
    "calendar.list_sources": Rule(lambda ids: {"provider_id": ids.provider}, STAFF),
    "calendar.remove_source": Rule(lambda ids: {"source_id": ids.source, "key": "k"}, _admin, members=MANAGERS),
    "series.create": Rule(
        lambda _: {"service_id": "plumbing", "location": CENTRE.view(), "recurrence": _weekly, "key": "k"},
        frozenset({CUSTOMER}),
        about_others=False,
        members=NOBODY,
    ),
    "series.get": Rule(lambda ids: {"series_id": ids.series}, STAFF, members=NOBODY),
    "series.list": Rule(lambda _: {}, frozenset({CUSTOMER}), about_others=False, members=NOBODY),
    # A series is its customer's alone.
    "series.edit": Rule(
        lambda ids: {"series_id": ids.series, "version": 1, "scope": "all", "recurrence": _weekly, "key": "k"},
        NOBODY,
        members=NOBODY,
    ),
    "series.cancel": Rule(lambda ids: {"series_id": ids.series, "scope": "all", "key": "k"}, NOBODY, members=NOBODY),
    "flag.evaluate": Rule(lambda _: {"flags": ["new-map"]}, _everybody, about_others=False),
    "flag.list": Rule(lambda _: {}, STAFF, about_others=False, members=NOBODY),
    "flag.set": Rule(
        lambda _: {"flag": "new-map", "state": "enabled", "key": "k"}, _admin, about_others=False, members=NOBODY
    ),
    "audit.list": Rule(lambda _: {}, _admin, about_others=False, members=NOBODY),
    "user.sign_out": Rule(
        lambda ids: {"user_id": ids.user, "reason": "lost phone", "key": "k"}, _admin, members=NOBODY
    ),
}

SOCKET_PARAMS: Mapping[str, JSON] = {
    "session.connect": {"token": "t", "resume": {"user:1": {"epoch": "e", "offset": 1}}},
    "session.refresh": {"token": "t"},
    "session.ack": {"provider:7": 12},
    "channel.subscribe": {"channel": "user:1", "resume": {"epoch": "e", "offset": 1}},
    "channel.unsubscribe": {"channel": "user:1"},
    "channel.presence": {"channel": "user:1"},
}


async def actors(market: Marketplace) -> dict[str, Actor]:
    return {
        CUSTOMER: await market.customer(),
        PROVIDER: (await market.firm(rating=0.1)).person,
        UNATTACHED: await market.person(Role.PROVIDER),
        OPERATIONS: await market.operator(Role.OPERATIONS),
        ADMIN: await market.operator(Role.ADMIN),
    }


class _Asked:
    """Looks like :class:`Ids` and remembers what was asked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(NOTHING, name)


def needs(rule: Rule) -> frozenset[str]:
    """Which things the params of a command name: a test makes those, and not everything there could be."""
    asked = _Asked()
    rule.params(asked)  # type: ignore[arg-type]
    return frozenset(asked.names)


async def somebodys(market: Marketplace, rule: Rule) -> Ids:
    """Somebody's things, as many as the rule's params name."""
    customer, firm = await market.customer(), await market.firm(rating=5.0)
    needed, ids = needs(rule), replace(NOTHING, provider=firm.provider_id, organisation=firm.organisation_id)
    if needed & {"booking", "offer"}:
        booking_id = await (market.book_slot(customer) if rule.scheduled else market.book(customer))
        ids = replace(ids, booking=booking_id, offer=await market.offer_id(firm, booking_id))
    if "zone" in needed:
        ids = replace(ids, zone=await market.zone(f"uncovered-{market.key()}", centre=Point(30.0, 30.0)))
    return await _with_more(market, customer, firm, ids, needed)


async def own(market: Marketplace, role: str, rule: Rule) -> tuple[Actor, Ids]:
    """Somebody of that role in a firm, and the firm's: a confirmed job, a live offer for another, a technician, as far
    as the rule's params name them.
    """
    customer, firm = await market.customer(), await market.firm(rating=5.0)
    needed, ids = needs(rule), replace(NOTHING, provider=firm.provider_id, organisation=firm.organisation_id)
    if "booking" in needed:
        booking_id = await market.book_slot(customer, in_hours=48)
        await market.accept(firm, booking_id)
        ids = replace(ids, booking=booking_id, version=(await market.booking(booking_id)).version)
    if "offer" in needed:
        asked = await market.book_slot(customer, in_hours=72)
        ids = replace(ids, offer=await market.offer_id(firm, asked))
    person = await market.member(firm, MembershipRole(role))
    return person, await _with_more(market, customer, firm, ids, needed)


async def _with_more(market: Marketplace, customer: Actor, firm: Firm, ids: Ids, needed: frozenset[str]) -> Ids:
    """A technician, an invitation, rules with an exception and a hold, a series, a source of busy times."""
    theirs = {"provider_id": firm.provider_id}
    if "user" in needed:
        ids = replace(ids, user=(await market.member(firm)).user_id)
    if "invitation" in needed:
        ids = replace(ids, invitation=(await market.invitation(firm, "waiting@example.test"))[0])
    if needed & {"exception", "hold", "calendar", "start"}:
        rule = {"rrule": "FREQ=DAILY", "tzid": "UTC", "dtstart": "2026-01-01T09:00", "duration_minutes": 180}
        await market.call(firm.person, "availability.set_rules", **theirs, rules=[rule], version=0)
        when = {"start": "2027-01-01T10:00:00Z", "end": "2027-01-01T11:00:00Z"}
        added = await market.call(firm.person, "availability.add_exception", **theirs, kind="closed", **when)
        ids = replace(ids, exception=added["exception"]["id"], calendar=added["version"])
    if "hold" in needed:
        wanted = theirs | _anywhere | {"start": "2026-12-02T10:00:00Z"}
        ids = replace(ids, hold=(await market.call(customer, "slot.hold", **wanted))["hold"]["id"])
    if "series" in needed:
        wish = {"service_id": "plumbing", "location": CENTRE.view(), "recurrence": _weekly}
        ids = replace(ids, series=(await market.call(customer, "series.create", **wish))["series"]["id"])
    if "source" in needed:
        brought = {"name": "Work", "url": "https://example.test/w"}
        source = await market.call(firm.person, "calendar.subscribe", **theirs, **brought)
        ids = replace(ids, source=source["source"]["id"])
    return ids


def shape(error: FixnadoError) -> tuple[Any, ...]:
    """All of an error that can reach a client."""
    return (type(error), error.type, error.status, error.code, error.retryable, error.message, dict(error.details))


def test_every_command_has_a_rule() -> None:
    assert RULES.keys() | SOCKET_PARAMS.keys() == COMMANDS.keys()
    assert {name for name, command in COMMANDS.items() if command.handler is None} == SOCKET_PARAMS.keys()
    assert all(isinstance(command.who, Who | Permission) for command in COMMANDS.values())


def test_command_cannot_be_declared_without_saying_who_may() -> None:
    read = COMMANDS["booking.get"]
    stated = {"name": "a.b", "summary": "x", "mode": Mode.READ, "params": read.params, "result": read.result}
    with pytest.raises(TypeError, match="who"):
        Command(**stated, handler=read.handler)  # type: ignore[arg-type]


def test_unknown_rule_lets_nobody_in() -> None:
    actor = Actor("u", "U", frozenset(Role), (), "s")
    assert not allowed(actor, "anybody at all")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", RULES)
async def test_command_is_open_to_those_who_may_and_looks_to_others_as_if_nothing_were_there(
    broadcast_market: Marketplace, method: str
) -> None:
    rule, market = RULES[method], broadcast_market
    people = await actors(market)
    ids = await somebodys(market, rule)
    before, market.announcer.events = await _everything(market), []
    for role in ROLES:
        if role in rule.may:
            continue
        theirs = await refusal(market.call(people[role], method, **rule.params(ids)))
        assert (theirs.type, theirs.status, theirs.code) == ("not_found", 404, -32003), role
        assert not theirs.details, role
        if rule.about_others:
            nothing = await refusal(market.call(people[role], method, **rule.params(NOTHING)))
            assert shape(theirs) == shape(nothing), role
    assert await _everything(market) == before, "a denied command changed something"
    assert market.announcer.events == [], "a denied command was announced"
    for number, role in enumerate(role for role in ROLES if role in rule.may):
        if number and COMMANDS[method].mode is not Mode.READ:
            ids = await somebodys(market, rule)  # the first has changed them
        attempt = market.call(people[role], method, **rule.params(ids) | _fresh_key(market, rule))
        if method == "location.publish":
            assert (await refusal(attempt)).type == "not_on_a_job", "the rules speak, not the door"
        else:
            await attempt


@pytest.mark.parametrize("role", MEMBERS)
async def test_commands_on_ones_own_tenants_things_follow_the_role(broadcast_market: Marketplace, role: str) -> None:
    market = broadcast_market
    for method, rule in RULES.items():
        person, ids = await own(market, role, rule)
        attempt = market.call(person, method, **rule.params(ids) | _fresh_key(market, rule))
        if role not in rule.members:
            error = await refusal(attempt)
            assert (error.type, error.details) == ("not_found", {}), method
        elif method == "location.publish":
            assert (await refusal(attempt)).type == "not_on_a_job", "the rules speak, not the door"
        else:
            await attempt


def _fresh_key(market: Marketplace, rule: Rule) -> JSON:
    return {"key": market.key()} if "key" in rule.params(NOTHING) else {}


@pytest.mark.parametrize("role", ROLES)
async def test_what_is_not_there_looks_the_same_to_everybody(market: Marketplace, role: str) -> None:
    person = (await actors(market))[role]
    for method, rule in RULES.items():
        if rule.about_others:
            error = await refusal(market.call(person, method, **rule.params(NOTHING)))
            assert shape(error)[1:] == (
                "not_found",
                404,
                -32003,
                False,
                "There is no such thing here, or it is not yours.",
                {},
            ), method


async def test_lists_hold_ones_own_and_nothing_else(market: Marketplace) -> None:
    people, ids = await actors(market), await somebodys(market, RULES["booking.get"])
    for role in (CUSTOMER, PROVIDER, UNATTACHED):
        assert (await market.call(people[role], "booking.list"))["bookings"] == []
    for role in STAFF:
        listed = (await market.call(people[role], "booking.list"))["bookings"]
        assert [booking["id"] for booking in listed] == [ids.booking]
    assert (await market.call(people[PROVIDER], "offer.list"))["offers"] == []


async def test_losing_provider_sees_no_more_of_the_booking(broadcast_market: Marketplace) -> None:
    market = broadcast_market
    winner, loser = await market.firms(2)
    booking_id = await market.book(await market.customer())
    await market.accept(winner, booking_id)
    for method in ("booking.get", "booking.cancel", "message.send", "conversation.history", "typing.set"):
        params = RULES[method].params(Ids(booking_id, NOWHERE, NOWHERE))
        assert (await refusal(market.call(loser.person, method, **params))).type == "not_found"


async def test_former_membership_opens_nothing(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    booking_id = await market.job(customer, firm)
    removed = replace(firm.person, memberships=())
    for method, rule in RULES.items():
        if rule.about_others:
            ids = Ids(booking_id, await market.offer_id(firm, booking_id), firm.provider_id)
            assert (await refusal(market.call(removed, method, **rule.params(ids)))).type == "not_found", method


@pytest.mark.parametrize("method", [*SOCKET_PARAMS, "booking.destroy", "", "__class__"])
async def test_socket_commands_and_unknown_ones_are_unknown_to_the_desk(market: Marketplace, method: str) -> None:
    person = await market.operator(Role.ADMIN)
    error = await refusal(market.desk.execute(method, dict(SOCKET_PARAMS.get(method, {})), person, ORIGIN))
    assert (error.type, error.status, error.code) == ("unknown_method", 404, -32601)


# --- owner, status and price are not the client's to say --------------------------------------------------------------

SMUGGLED: JSON = {
    "id": NOWHERE,
    "status": "completed",
    "price": {"amount_minor": 1, "currency": "GBP"},
    "payout": {"amount_minor": 1, "currency": "GBP"},
    "customer_id": NOWHERE,
    "provider_id": NOWHERE,
    "organisation_id": NOWHERE,
    "user_id": NOWHERE,
    "actor_id": NOWHERE,
    "sender_id": NOWHERE,
    "owner": NOWHERE,
    "role": "admin",
    "roles": ["admin"],
    "version": 1,
    "zone_id": "camden",
    "created_at": "2026-11-24T09:00:00Z",
    "expires_at": "2026-11-24T09:00:00Z",
    "__proto__": {},
}

VALID: Mapping[str, JSON] = {name: rule.params(NOTHING) for name, rule in RULES.items()} | dict(SOCKET_PARAMS)


@pytest.mark.parametrize("method", COMMANDS)
def test_params_refuse_what_they_do_not_know(method: str) -> None:
    model = COMMANDS[method].params
    validated(model, VALID[method])
    for name, value in SMUGGLED.items():
        if name in model.model_fields:
            continue
        if model is session.Ack and isinstance(value, int):
            continue  # any name is a channel there, and an integer an offset
        with pytest.raises(InvalidParams) as caught:
            validated(model, VALID[method] | {name: value})
        (problem,) = caught.value.details["errors"]
        assert problem["where"].startswith(name)
        assert NOWHERE not in str(problem), "values are not echoed"


def test_only_these_params_share_a_name_with_what_the_server_decides() -> None:
    shared = {(name, field) for name, command in COMMANDS.items() for field in command.params.model_fields} & {
        (name, smuggled) for name in COMMANDS for smuggled in SMUGGLED
    }
    assert shared == {
        ("booking.list", "status"),  # a filter
        ("booking.transition", "version"),  # what the caller saw
        ("booking.reschedule", "version"),
        ("booking.assign", "provider_id"),  # operations say whom
        ("presence.set", "status"),  # online, away or offline, checked against one's own
        ("presence.set", "provider_id"),
        ("availability.get", "provider_id"),  # whose calendar, checked against one's own
        ("availability.set_rules", "provider_id"),
        ("availability.set_rules", "version"),  # what the caller saw
        ("availability.add_exception", "provider_id"),
        ("availability.slots", "provider_id"),  # a filter
        ("availability.slots", "zone_id"),
        ("slot.hold", "provider_id"),  # whose time, if it matters
        ("slot.hold", "zone_id"),
        ("calendar.issue_feed", "provider_id"),  # for whom, checked against one's own
        ("calendar.revoke_feed", "provider_id"),
        ("calendar.import", "provider_id"),
        ("calendar.subscribe", "provider_id"),
        ("calendar.list_sources", "provider_id"),
        ("series.create", "provider_id"),  # whose time, if it matters
        ("series.edit", "version"),  # what the caller saw
        ("organisation.get", "organisation_id"),  # whose people are meant, checked against one's own
        ("organisation.invite", "organisation_id"),
        ("organisation.leave", "organisation_id"),
        ("member.list", "organisation_id"),
        ("member.set_role", "organisation_id"),
        ("member.remove", "organisation_id"),
        ("invitation.list", "organisation_id"),
        ("member.set_role", "user_id"),  # the member that is meant
        ("member.remove", "user_id"),
        ("user.sign_out", "user_id"),
        ("notification.send", "user_id"),  # staff say whom
        ("organisation.invite", "role"),  # what the person invited is to be, checked against what the caller may give
        ("member.set_role", "role"),
        ("route.plan", "provider_id"),  # whose day, checked against one's own
        ("zone.import", "organisation_id"),  # whose set, for staff
        ("zone.metrics", "zone_id"),  # the zone that is meant
        ("zone.heat", "zone_id"),
        ("zone.recount", "zone_id"),
        ("sla.at_risk", "zone_id"),
        ("sla.get_policy", "zone_id"),
        ("sla.set_policy", "zone_id"),
        ("flag.set", "roles"),  # for whom a feature is on
    }


@pytest.mark.parametrize(
    ("method", "where", "value"),
    [
        ("booking.create", "location", CENTRE.view() | {"zone_id": "camden"}),
        ("booking.create", "kind", "urgent"),
        ("booking.create", "location", {"lat": 91, "lon": 0}),
        ("booking.create", "location", {"lat": float("nan"), "lon": 0}),
        ("booking.create", "location", {"lat": "51.5", "lon": 0}),
        ("booking.create", "start", "2026-12-01T10:00:00"),
        ("booking.create", "start", "tomorrow"),
        ("booking.create", "start", 1_796_119_200),
        ("booking.create", "start", "1796119200"),
        ("booking.create", "start", "9999-12-31T23:59:59Z"),  # an hour later there is no calendar left
        ("booking.create", "start", "0001-01-01T00:00:00+14:00"),
        ("booking.create", "key", "with space"),
        ("booking.create", "key", ""),
        ("booking.create", "key", "k" * 65),
        ("booking.create", "notes", "n" * 2001),
        ("booking.create", "notes", "\ud800"),
        ("booking.transition", "version", True),
        ("booking.transition", "version", "2"),
        ("booking.transition", "version", 0),
        ("booking.transition", "to", "gone"),
        ("booking.list", "limit", 101),
        ("message.send", "text", ""),
        ("message.send", "text", "x" * 4001),
        ("message.read", "offset", -1),
        ("message.read", "offset", 2**63),
        ("conversation.history", "before", 2**63),  # what JSON can say and SQLite cannot hold
        ("session.ack", "provider:7", 2**63),
        ("typing.set", "typing", 1),
        ("availability.slots", "from", "2026-12-01T10:00"),
        ("availability.slots", "limit", 501),
        ("availability.set_rules", "travel_buffer_minutes", 241),
        ("availability.set_rules", "rules", [{"rrule": "FREQ=DAILY"}]),
        ("availability.add_exception", "kind", "maybe"),
        ("calendar.subscribe", "url", "http://example.test/a.ics"),
        ("calendar.subscribe", "url", "https://example.test/a\r\nHost: b"),
        ("calendar.import", "ics", "x" * 60_001),
        ("calendar.import", "ics", "\ud800"),
        ("presence.set", "status", "busy"),
        ("location.publish", "heading_deg", 360),
        ("location.publish", "accuracy_m", float("inf")),
    ],
)
def test_params_refuse_what_does_not_fit_and_say_where(method: str, where: str, value: object) -> None:
    with pytest.raises(InvalidParams) as caught:
        validated(COMMANDS[method].params, VALID[method] | {where: value})
    assert all(problem["where"].split(".")[0] == where for problem in caught.value.details["errors"])


async def test_created_booking_takes_owner_status_and_price_from_the_server(market: Marketplace) -> None:
    customer = await market.customer()
    booking = await market.booking(await market.book(customer))
    assert (booking.customer_id, booking.price.amount_minor) == (customer.user_id, 8_500)
    for name in ("price", "status", "customer_id", "provider_id"):
        error = await refusal(market.book(customer, **{name: SMUGGLED[name]}))
        assert error.type == "invalid_params"
    assert await market.count(tables.bookings) == 1


def test_nobody_registers_as_staff() -> None:
    account = {"email": "a@b.cd", "password": "long enough 123", "name": "A"}
    accounts.Register.model_validate(account | {"role": "customer"})
    for extra in ({"role": "admin"}, {"role": "operations"}, {"role": "customer", "roles": ["admin"]}):
        with pytest.raises(ValidationError):
            accounts.Register.model_validate(account | extra)


async def _everything(market: Marketplace) -> list[Any]:
    """Every row that a command could have changed."""
    watched: tuple[str, ...] = (
        "bookings",
        "offers",
        "providers",
        "messages",
        "read_marks",
        "timers",
        "outbox",
        "idempotency_keys",
    )
    watched += ("calendars", "calendar_exceptions", "slot_holds", "series", "series_instances")
    watched += ("calendar_feeds", "calendar_sources", "busy_times")
    watched += ("users", "memberships", "invitations", "sessions", "flags", "audit_log")
    watched += ("notifications", "deliveries", "notification_preferences", "push_tokens")
    return [sorted(map(repr, await market.rows(tables.metadata.tables[name].select()))) for name in watched]
