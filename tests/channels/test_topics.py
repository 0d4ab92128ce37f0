"""Who may hear which channel: every kind of person against every channel of an organisation and of staff."""

from __future__ import annotations

import pytest

from channels.topics import Facts, may_subscribe, own_channels, parse
from domain.identity import Actor, Membership, MembershipRole, Role

MINE, OTHER = "o1", "o2"


def person(*roles: Role, member: MembershipRole | None = None) -> Actor:
    memberships = () if member is None else (Membership(MINE, "p1", member),)
    return Actor("u", "U", frozenset(roles), memberships, "s")


PEOPLE = {
    "customer": person(Role.CUSTOMER),
    "technician": person(Role.PROVIDER, member=MembershipRole.TECHNICIAN),
    "dispatcher": person(Role.PROVIDER, member=MembershipRole.DISPATCHER),
    "owner": person(Role.PROVIDER, member=MembershipRole.OWNER),
    "operations": person(Role.OPERATIONS),
    "admin": person(Role.ADMIN),
}
CREW = {"technician", "dispatcher", "owner"}
STAFF = {"operations", "admin"}

MAY = {
    f"organisation:{MINE}": {"dispatcher", "owner"},
    f"organisation:{OTHER}": set(),
    "provider:p1": CREW,
    "provider:p2": set(),
    "booking:assigned-to-p1": CREW | STAFF,
    "conversation:assigned-to-p1": CREW | STAFF,
    "zone:covered-by-p1": CREW | STAFF,
    "user:u": {*PEOPLE},
    "user:v": set(),
    "admin:bookings": STAFF,
    "admin:security": {"admin"},
    "admin:zones": STAFF,
}


@pytest.mark.parametrize("channel", MAY)
def test_a_channel_is_open_to_exactly_those(channel: str) -> None:
    topic = parse(channel)
    assert topic is not None
    assert topic.channel == channel
    facts = Facts(True, provider_ids=frozenset({"p1"}))
    assert {name for name, actor in PEOPLE.items() if may_subscribe(actor, topic, facts)} == MAY[channel]


@pytest.mark.parametrize("channel", ["control", "admin:", "admin:secrets", "admin:security:x", "organisation:"])
def test_other_names_are_no_channels(channel: str) -> None:
    assert parse(channel) is None


def test_the_security_channel_is_for_admins_who_ask() -> None:
    assert "admin:security" not in own_channels(PEOPLE["admin"])
