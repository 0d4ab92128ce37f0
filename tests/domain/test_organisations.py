from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import select

from channels.topics import CONTROL
from domain import invitations
from domain.factors import token_hash
from domain.identity import ROLE_TABLE, Actor, Membership, MembershipRole, Permission, Role, permissions_of
from domain.types import JSON
from persistence import tables
from tests.domain.marketplace import Firm, Marketplace, refusal, refused

OWNER, DISPATCHER, TECHNICIAN = MembershipRole.OWNER, MembershipRole.DISPATCHER, MembershipRole.TECHNICIAN


async def roles_in(market: Marketplace, firm: Firm) -> dict[str, str]:
    listed = await market.call(firm.person, "member.list", organisation_id=firm.organisation_id)
    return {member["user_id"]: member["role"] for member in listed["members"]}


async def accept(market: Marketplace, person: Actor, token: str, **params: Any) -> JSON:
    return await market.call(person, "invitation.accept", token=token, **params)


def test_roles_inherit() -> None:
    assert permissions_of(TECHNICIAN) < permissions_of(DISPATCHER) < permissions_of(OWNER)
    assert permissions_of(Role.OPERATIONS) < permissions_of(Role.ADMIN)
    assert Permission.WORK in permissions_of(OWNER)
    assert Permission.WORK not in permissions_of(Role.ADMIN), "nobody works in somebody else's name"
    assert ROLE_TABLE.keys() == {*Role, *MembershipRole}


def test_a_membership_counts_in_its_own_organisation_only() -> None:
    there = Actor("u", "U", frozenset({Role.PROVIDER}), (), "s")
    member = there.having(place_in("o1", OWNER)).having(place_in("o2", TECHNICIAN))
    assert member.may(Permission.MANAGE_MEMBERS, "o1")
    assert not member.may(Permission.MANAGE_MEMBERS, "o2")
    assert not member.may(Permission.WORK, "o3")
    assert member.having(place_in("o1", TECHNICIAN)).memberships[0].role is TECHNICIAN
    assert [each.organisation_id for each in member.without("o1").memberships] == ["o2"]


def place_in(organisation_id: str, role: MembershipRole) -> Membership:
    return Membership(organisation_id, f"p-{organisation_id}", role)


# --- invitations ------------------------------------------------------------------------------------------------------


async def test_a_person_invited_becomes_a_member_and_is_told_with_the_managers(market: Marketplace) -> None:
    firm, customer = await market.firm(), await market.customer()
    _, token = await market.invitation(firm, await market.email(customer), "dispatcher")
    result = await accept(market, customer, token)
    assert result["member"]["role"] == result["organisation"]["role"] == "dispatcher"
    assert (await roles_in(market, firm))[customer.user_id] == "dispatcher"

    created, accepted, joined = await market.events("invitation.created", "invitation.accepted", "membership.created")
    both = {f"user:{customer.user_id}", f"organisation:{firm.organisation_id}"}
    assert created.channels == accepted.channels == joined.channels == both
    (changed,) = await market.events("access.changed")
    assert changed.channels == {CONTROL}
    membership = {"organisation_id": firm.organisation_id, "provider_id": firm.provider_id, "role": "dispatcher"}
    assert changed.data == {"user_ids": [customer.user_id], "membership": membership}
    user = await market.transactions.read(lambda uow: uow.people.user(customer.user_id))
    assert user is not None
    assert user.roles == {Role.CUSTOMER, Role.PROVIDER}


async def test_only_the_hash_of_a_token_is_kept_anywhere(market: Marketplace) -> None:
    firm, customer = await market.firm(), await market.customer()
    _, token = await market.invitation(firm, await market.email(customer))
    await accept(market, customer, token)
    secret = token.removeprefix("fxi_")
    for table in tables.metadata.sorted_tables:
        assert secret not in repr(await market.rows(table.select())), table.name


async def test_the_letter_is_sent_once_and_only_after_the_commit(market: Marketplace) -> None:
    sent: list[tuple[str, str, str, str]] = []

    class Postman:
        def invite(self, email: str, organisation: str, inviter: str, token: str, expires_at: datetime) -> None:
            sent.append((email, organisation, inviter, token))

    market.desk.post = Postman()
    firm = await market.firm()
    params = {"organisation_id": firm.organisation_id, "email": "New@Example.test", "role": "technician", "key": "k"}
    first = await market.call(firm.person, "organisation.invite", **params)
    assert await market.call(firm.person, "organisation.invite", **params) == first
    ((email, _, inviter, token),) = sent
    assert (email, inviter) == ("new@example.test", firm.person.name)
    (row,) = await market.rows(select(tables.invitations))
    assert row.token_hash == token_hash(token)
    assert "token" not in first["invitation"]
    assert (
        await refused(market.call(firm.person, "organisation.invite", **(params | {"key": "k2"}))) == "already_invited"
    )
    assert len(sent) == 1


async def test_an_invitation_is_for_one_address(market: Marketplace) -> None:
    firm, customer, stranger = await market.firm(), await market.customer(), await market.customer()
    _, token = await market.invitation(firm, await market.email(customer))
    wrong = await refusal(accept(market, stranger, token))
    guessed = await refusal(accept(market, customer, "fxi_guess"))
    assert (wrong.type, wrong.message) == (guessed.type, guessed.message) == ("not_found", wrong.message)


async def test_a_token_counts_once_and_its_retry_gets_the_same_answer(market: Marketplace) -> None:
    firm, customer = await market.firm(), await market.customer()
    _, token = await market.invitation(firm, await market.email(customer))
    first = await accept(market, customer, token, key="a")
    assert await accept(market, customer, token, key="a") == first
    assert await accept(market, customer, token, key="b") == first
    await market.call(firm.person, "member.remove", organisation_id=firm.organisation_id, user_id=customer.user_id)
    assert await refused(accept(market, customer, token, key="c")) == "invitation_ended"
    assert len(await market.events("membership.created")) == 1


async def test_a_new_token_ends_the_one_before(market: Marketplace) -> None:
    firm, customer = await market.firm(), await market.customer()
    invitation_id, old = await market.invitation(firm, await market.email(customer))
    new = (await market.call(firm.person, "invitation.issue", invitation_id=invitation_id))["token"]
    assert await refused(accept(market, customer, old)) == "not_found"
    await accept(market, customer, new)


async def test_revoked_and_expired_invitations_are_over(market: Marketplace) -> None:
    firm, customer = await market.firm(), await market.customer()
    email = await market.email(customer)
    invitation_id, revoked = await market.invitation(firm, email)
    gone = await market.call(firm.person, "invitation.revoke", invitation_id=invitation_id)
    assert gone["invitation"]["status"] == "revoked"
    again = await market.call(firm.person, "invitation.revoke", invitation_id=invitation_id)
    assert again == gone
    error = await refusal(accept(market, customer, revoked))
    assert (error.type, error.details["invitation_status"]) == ("invitation_ended", "revoked")

    _, late = await market.invitation(firm, email)
    market.clock.advance(7 * 86_400)
    error = await refusal(accept(market, customer, late))
    assert error.details["invitation_status"] == "expired"
    here = {"organisation_id": firm.organisation_id}
    assert (await market.call(firm.person, "invitation.list", **here))["invitations"] == []
    _, fresh = await market.invitation(firm, email)
    await accept(market, customer, fresh)


async def test_members_cannot_be_invited_again(market: Marketplace) -> None:
    firm = await market.firm()
    member = await market.member(firm)
    assert await refused(market.invitation(firm, await market.email(member))) == "already_member"


async def test_invitations_that_wait_are_bounded(market: Marketplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invitations, "MOST_PENDING", 2)
    firm = await market.firm()
    for number in range(2):
        await market.invitation(firm, f"new{number}@example.test")
    assert await refused(market.invitation(firm, "one.more@example.test")) == "organisation_full"


@pytest.mark.parametrize("role", ["dispatcher", "owner"])
async def test_dispatchers_invite_and_remove_technicians_only(market: Marketplace, role: str) -> None:
    firm = await market.firm()
    dispatcher, owner, technician = [await market.member(firm, each) for each in (DISPATCHER, OWNER, TECHNICIAN)]
    here = {"organisation_id": firm.organisation_id}
    invite = market.call(dispatcher, "organisation.invite", **here, email="n@example.test", role=role)
    assert await refused(invite) == "not_found"
    for other in (owner, dispatcher):
        assert await refused(market.call(dispatcher, "member.remove", **here, user_id=other.user_id)) == "not_found"
    await market.call(dispatcher, "member.remove", **here, user_id=technician.user_id)
    waiting, _ = await market.invitation(firm, "boss@example.test", "owner")
    for method in ("invitation.issue", "invitation.revoke"):
        assert await refused(market.call(dispatcher, method, invitation_id=waiting)) == "not_found"


# --- members ----------------------------------------------------------------------------------------------------------


async def test_the_last_owner_cannot_go_or_become_less(market: Marketplace) -> None:
    firm = await market.firm()
    here = {"organisation_id": firm.organisation_id}
    boss = firm.person
    await market.member(firm, DISPATCHER)
    for attempt in (
        market.call(boss, "organisation.leave", **here),
        market.call(boss, "member.remove", **here, user_id=boss.user_id),
        market.call(boss, "member.set_role", **here, user_id=boss.user_id, role="technician"),
    ):
        assert await refused(attempt) == "last_owner"
    await market.member(firm, OWNER)
    await market.call(boss, "organisation.leave", **here)
    (gone,) = await market.events("membership.removed")
    assert (gone.data["reason"], gone.data["from"]) == ("left", "owner")


async def test_two_owners_cannot_remove_each_other_at_once(market: Marketplace) -> None:
    firm = await market.firm()
    other = await market.member(firm, OWNER)
    here = {"organisation_id": firm.organisation_id}
    outcomes = await asyncio.gather(
        market.call(firm.person, "member.remove", **here, user_id=other.user_id),
        market.call(other, "member.remove", **here, user_id=firm.person.user_id),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, dict) for outcome in outcomes) == 1
    rows = await market.rows(
        select(tables.memberships).where(tables.memberships.c.organisation_id == firm.organisation_id)
    )
    assert [row.role for row in rows] == ["owner"]


async def test_whoever_was_removed_while_waiting_for_the_lock_removes_nobody(market: Marketplace) -> None:
    firm = await market.firm()
    await market.member(firm, OWNER)
    other = await market.member(firm, OWNER)
    here = {"organisation_id": firm.organisation_id}
    outcomes = await asyncio.gather(
        market.call(firm.person, "member.remove", **here, user_id=other.user_id),
        market.call(other, "member.remove", **here, user_id=firm.person.user_id),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, dict) for outcome in outcomes) == 1, "one of three owners is gone, not two"


async def test_a_role_is_changed_once_and_told(market: Marketplace) -> None:
    firm = await market.firm()
    technician = await market.member(firm)
    params = {"organisation_id": firm.organisation_id, "user_id": technician.user_id, "role": "dispatcher"}
    result = await market.call(firm.person, "member.set_role", **params)
    assert (result["member"]["role"], result["member"]["version"]) == ("dispatcher", 2)
    assert (await market.call(firm.person, "member.set_role", **params)) == result
    (told,) = await market.events("membership.changed")
    assert (told.data["from"], told.data["member"]["role"]) == ("technician", "dispatcher")
    (access,) = await market.events("access.changed")
    assert access.data["membership"]["role"] == "dispatcher"
    assert access.number < told.number


async def test_removal_takes_access_before_anything_else_is_said(market: Marketplace) -> None:
    firm = await market.firm()
    technician = await market.member(firm)
    after = await market.newest_event()
    await market.call(firm.person, "member.remove", organisation_id=firm.organisation_id, user_id=technician.user_id)
    revoked, removed = await market.events("access.revoked", "membership.removed", after=after)
    assert revoked.type == "access.revoked"
    assert revoked.channels == {CONTROL}
    assert revoked.data == {
        "channels": [f"organisation:{firm.organisation_id}", f"provider:{firm.provider_id}"],
        "user_ids": [technician.user_id],
        "provider_ids": [],
        "organisation_id": firm.organisation_id,
    }
    assert removed.channels == {f"user:{technician.user_id}", f"organisation:{firm.organisation_id}"}


async def test_a_membership_taken_away_counts_for_commands_at_once(market: Marketplace) -> None:
    """The actor of a live socket is older than the removal; the command's own transaction knows better."""
    customer, firm = await market.customer(), await market.firm()
    technician = await market.member(firm)
    booking_id = await market.job(customer, firm)
    await market.call(technician, "booking.get", booking_id=booking_id)
    await market.call(firm.person, "member.remove", organisation_id=firm.organisation_id, user_id=technician.user_id)
    version = (await market.booking(booking_id)).version
    step = {"booking_id": booking_id, "to": "en_route", "version": version}
    for attempt in (
        market.call(technician, "booking.get", booking_id=booking_id),
        market.call(technician, "booking.transition", **step),
        market.call(technician, "offer.list"),
        market.call(technician, "member.list", organisation_id=firm.organisation_id),
        market.call(technician, "presence.set", status="away"),
    ):
        assert await refused(attempt) == "not_found"
    await market.call(firm.person, "booking.transition", **step)


async def test_an_older_actor_has_no_more_of_a_role_than_is_left(market: Marketplace) -> None:
    firm = await market.firm()
    dispatcher = await market.member(firm, DISPATCHER)
    here = {"organisation_id": firm.organisation_id}
    await market.call(firm.person, "member.set_role", **here, user_id=dispatcher.user_id, role="technician")
    assert await refused(market.call(dispatcher, "invitation.list", **here)) == "not_found"
    assert (await market.call(dispatcher, "organisation.get", **here))["organisation"]["role"] == "technician"


async def test_somebody_of_two_firms_speaks_for_each(market: Marketplace) -> None:
    customer, first, second = await market.customer(), await market.firm(rating=5.0), await market.firm(rating=1.0)
    _, token = await market.invitation(second, await market.email(first.person))
    await accept(market, first.person, token)
    memberships = await market.transactions.read(lambda uow: uow.people.memberships(first.person.user_id))
    both = Actor(first.person.user_id, "Both", first.person.roles, memberships, "s")
    job = await market.job(customer, first, "en_route")
    listed = await market.call(both, "organisation.list")
    assert {each["id"]: each["role"] for each in listed["organisations"]} == {
        first.organisation_id: "owner",
        second.organisation_id: "technician",
    }
    assert await refused(market.call(both, "presence.set", status="away")) == "not_found", "for which one?"
    await market.call(both, "presence.set", status="away", provider_id=second.provider_id)
    fix = {"lat": 51.6, "lon": -0.1426, "fix_at": market.clock.now().isoformat()}
    assert (await market.call(both, "location.publish", **fix))["booking_id"] == job, "the one that is on a job"


def test_every_row_about_a_provider_carries_its_organisation() -> None:
    # These are parts of a provider, named by it, and never read but through it.
    parts = {"provider_skills", "provider_zones", "provider_sockets", "booking_declines"}
    parts |= {"calendar_exceptions", "calendar_feeds", "busy_times"}
    # A series is its customer's, who names a provider; the bookings made of it carry the organisation.
    parts.add("series")
    for table in tables.metadata.sorted_tables:
        if "provider_id" in table.c and table.name not in parts:
            assert "organisation_id" in table.c, table.name
