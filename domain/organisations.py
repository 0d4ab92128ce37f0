"""Organisations: who belongs to one, as what, and how one gets out. How one gets in is in :mod:`domain.invitations`.

Invariants: an organisation always has an owner; everything about its members and invitations happens under the lock of
    its row, so that two owners cannot remove each other at once; whoever loses a place, or the right to a channel with
    it, is put on the control channel in the same transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated

from pydantic import Field

from domain.context import Context
from domain.errors import Forbidden, Refused
from domain.events import Audience, Event
from domain.identity import MembershipRole, Permission
from domain.security import SecurityEvents, SecurityKind
from domain.types import JSON, new_id, wire_time
from domain.views import Key, NoParams, Params, View

_security = SecurityEvents()


@dataclass(frozen=True, slots=True)
class Organisation:
    """A company. ``provider_id`` is its face in the marketplace."""

    id: str
    name: str
    provider_id: str
    version: int


@dataclass(frozen=True, slots=True)
class Member:
    """A person's place in an organisation."""

    organisation_id: str
    user_id: str
    name: str
    role: MembershipRole
    joined_at: datetime
    version: int


class LastOwner(Refused):
    """An organisation cannot be left without an owner."""

    type = "last_owner"
    default_message = "An organisation needs an owner. Make somebody else one first."


# --- the wire ---------------------------------------------------------------------------------------------------------

Id = Annotated[str, Field(max_length=64)]
MemberRole = Annotated[MembershipRole, Field(strict=False)]


class OrganisationRef(Params):
    """Names an organisation."""

    organisation_id: Id


class Leave(OrganisationRef):
    """Gives up one's own place."""

    key: Key


class SetMemberRole(OrganisationRef):
    """Says what a member is from now on."""

    user_id: Id
    role: MemberRole
    key: Key


class RemoveMember(OrganisationRef):
    """Takes a member's place away."""

    user_id: Id
    key: Key


class OrganisationView(View):
    """An organisation; ``role`` is the caller's own in it, and missing for staff."""

    id: str
    name: str
    provider_id: str
    version: int
    role: MembershipRole | None = None


class OrganisationResult(View):
    """One organisation."""

    organisation: OrganisationView


class OrganisationList(View):
    """The caller's organisations."""

    organisations: list[OrganisationView]


class MemberView(View):
    """A person's place in an organisation."""

    organisation_id: str
    provider_id: str
    user_id: str
    name: str
    role: MembershipRole
    version: int
    joined_at: str


class MemberList(View):
    """Everybody in an organisation, the longest there first."""

    members: list[MemberView]


class MemberResult(View):
    """A member after a change; for one who went, as it was last."""

    member: MemberView


class MembershipEventData(View):
    """``from`` is the role before, or null when there was none; ``reason`` says how a place was lost."""

    organisation_id: str
    user_id: str
    provider_id: str
    member: MemberView
    from_: MembershipRole | None = Field(default=None, alias="from")
    reason: str | None = None


def organisation_view(organisation: Organisation, role: MembershipRole | None) -> JSON:
    """An organisation, and what the caller is in it."""
    shape: JSON = {
        "id": organisation.id,
        "name": organisation.name,
        "provider_id": organisation.provider_id,
        "version": organisation.version,
    }
    if role is not None:
        shape["role"] = role.value
    return shape


def member_view(member: Member, organisation: Organisation) -> JSON:
    """A place, as the organisation's people see it."""
    return {
        "organisation_id": organisation.id,
        "provider_id": organisation.provider_id,
        "user_id": member.user_id,
        "name": member.name,
        "role": member.role.value,
        "version": member.version,
        "joined_at": wire_time(member.joined_at),
    }


# --- looking ----------------------------------------------------------------------------------------------------------


async def list_own(ctx: Context, _: NoParams) -> JSON:
    """The caller's organisations."""
    shapes = []
    for membership in ctx.actor.memberships:
        organisation = await ctx.uow.organisations.get(membership.organisation_id)
        if organisation is not None:
            shapes.append(organisation_view(organisation, membership.role))
    return {"organisations": shapes}


async def get(ctx: Context, params: OrganisationRef) -> JSON:
    """One organisation, for its members and staff."""
    organisation = await seen(ctx, params.organisation_id, Permission.SEE_ORGANISATION)
    return {"organisation": organisation_view(organisation, _own_role(ctx, organisation.id))}


async def list_members(ctx: Context, params: OrganisationRef) -> JSON:
    """Everybody in it."""
    organisation = await seen(ctx, params.organisation_id, Permission.SEE_ORGANISATION)
    members = await ctx.uow.organisations.members(organisation.id)
    return {"members": [member_view(member, organisation) for member in members]}


# --- members ----------------------------------------------------------------------------------------------------------


async def set_role(ctx: Context, params: SetMemberRole) -> JSON:
    """Makes a member something else.

    Raises:
        LastOwner: it would leave the organisation without one.
    """
    organisation = await managed(ctx, params.organisation_id, MembershipRole.OWNER)
    member = await _member(ctx, organisation, params.user_id)
    if member.role is params.role:
        return {"member": member_view(member, organisation)}
    await _keep_an_owner(ctx, member)
    after = replace(member, role=params.role, version=member.version + 1)
    await ctx.uow.organisations.save_member(after)
    details = {"organisation_id": organisation.id, "from": member.role.value, "to": after.role.value}
    await _security.record(ctx.uow, SecurityKind.ROLE_CHANGED, ctx.actor.user_id, member.user_id, details)
    change_access(ctx, after, organisation)
    tell_of_member(ctx, after, organisation, "membership.changed", before=member.role)
    return {"member": member_view(after, organisation)}


async def remove(ctx: Context, params: RemoveMember) -> JSON:
    """Takes a member's place away, and with it every channel it opened, before the next event.

    Raises:
        LastOwner: it would leave the organisation without one.
    """
    organisation = await managed(ctx, params.organisation_id, MembershipRole.TECHNICIAN)
    member = await _member(ctx, organisation, params.user_id)
    await _check_manages(ctx, organisation.id, member.role)
    return await _end(ctx, organisation, member, "removed")


async def leave(ctx: Context, params: Leave) -> JSON:
    """Gives one's own place up.

    Raises:
        LastOwner: nobody else could let people in.
    """
    if _own_role(ctx, params.organisation_id) is None:
        raise Forbidden
    organisation = await ctx.uow.organisations.lock(params.organisation_id)
    if organisation is None:
        raise Forbidden
    member = await _member(ctx, organisation, ctx.actor.user_id)
    return await _end(ctx, organisation, member, "left")


async def _end(ctx: Context, organisation: Organisation, member: Member, reason: str) -> JSON:
    await _keep_an_owner(ctx, member)
    await ctx.uow.organisations.remove_member(organisation.id, member.user_id)
    details = {"organisation_id": organisation.id, "role": member.role.value, "reason": reason}
    await _security.record(ctx.uow, SecurityKind.MEMBER_REMOVED, ctx.actor.user_id, member.user_id, details)
    # Before anything else is said: what follows is no longer for those ears.
    ctx.uow.record(_access_revoked(member, organisation, ctx.now))
    tell_of_member(ctx, member, organisation, "membership.removed", before=member.role, reason=reason)
    return {"member": member_view(member, organisation)}


# --- rules ------------------------------------------------------------------------------------------------------------


def _manages(role: MembershipRole) -> Permission:
    """What it takes to invite or remove somebody of this role."""
    return Permission.MANAGE_TECHNICIANS if role is MembershipRole.TECHNICIAN else Permission.MANAGE_MEMBERS


def _own_role(ctx: Context, organisation_id: str) -> MembershipRole | None:
    return next((each.role for each in ctx.actor.memberships if each.organisation_id == organisation_id), None)


async def seen(ctx: Context, organisation_id: str, permission: Permission) -> Organisation:
    """The organisation, if the caller has this permission in it.

    Raises:
        Forbidden: not there, or not theirs.
    """
    if not ctx.actor.may(permission, organisation_id):
        raise Forbidden
    organisation = await ctx.uow.organisations.get(organisation_id)
    if organisation is None:
        raise Forbidden
    return organisation


async def managed(ctx: Context, organisation_id: str, role: MembershipRole) -> Organisation:
    """The locked organisation, if the caller may manage people of this role in it. Strangers take no lock.

    Raises:
        Forbidden: not there, or not theirs.
    """
    if not ctx.actor.may(_manages(role), organisation_id):
        raise Forbidden
    organisation = await ctx.uow.organisations.lock(organisation_id)
    if organisation is None:
        raise Forbidden
    await _check_manages(ctx, organisation_id, role)
    return organisation


async def _check_manages(ctx: Context, organisation_id: str, role: MembershipRole) -> None:
    """Under the lock, by what the caller is now: somebody may have removed them while they waited for it."""
    actor = replace(ctx.actor, memberships=await ctx.uow.people.memberships(ctx.actor.user_id))
    if not actor.may(_manages(role), organisation_id):
        raise Forbidden


async def _member(ctx: Context, organisation: Organisation, user_id: str) -> Member:
    member = await ctx.uow.organisations.member(organisation.id, user_id)
    if member is None:
        raise Forbidden
    return member


async def _keep_an_owner(ctx: Context, member: Member) -> None:
    if member.role is MembershipRole.OWNER and await ctx.uow.organisations.owners(member.organisation_id) <= 1:
        raise LastOwner


# --- events -----------------------------------------------------------------------------------------------------------


def tell_of_member(
    ctx: Context,
    member: Member,
    organisation: Organisation,
    type_: str,
    *,
    before: MembershipRole | None = None,
    reason: str | None = None,
) -> None:
    """Tells the managers and the person what became of a place."""
    data: JSON = {
        "organisation_id": organisation.id,
        "user_id": member.user_id,
        "provider_id": organisation.provider_id,
        "member": member_view(member, organisation),
        "from": before.value if before else None,
    }
    if reason:
        data["reason"] = reason
    audience = Audience(users=(member.user_id,), organisations=(organisation.id,))
    ctx.uow.record(Event(new_id(ctx.now), type_, ctx.now, f"organisation/{organisation.id}", data, audience))


def change_access(ctx: Context, member: Member, organisation: Organisation) -> None:
    """Live sockets of the person speak with this role from now on, and lose the channels that it does not open."""
    membership = {
        "organisation_id": organisation.id,
        "provider_id": organisation.provider_id,
        "role": member.role.value,
    }
    ctx.uow.record(
        Event(
            id=new_id(ctx.now),
            type="access.changed",
            time=ctx.now,
            source=f"organisation/{organisation.id}",
            data={"user_ids": [member.user_id], "membership": membership},
        )
    )


def _access_revoked(member: Member, organisation: Organisation, now: datetime) -> Event:
    """Nodes take the membership from the person's live sockets, and with it every channel that it alone opened."""
    return Event(
        id=new_id(now),
        type="access.revoked",
        time=now,
        source=f"organisation/{organisation.id}",
        data={
            "channels": [f"organisation:{organisation.id}", f"provider:{organisation.provider_id}"],
            "user_ids": [member.user_id],
            "provider_ids": [],
            "organisation_id": organisation.id,
        },
    )
