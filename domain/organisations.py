"""Organisations: who belongs to one, as what, and how one gets in and out.

Invariants: an organisation always has an owner; everything about its members and invitations happens under the lock of
    its row, so that two owners cannot remove each other at once; whoever loses a place, or the right to a channel with
    it, is put on the control channel in the same transaction.

An invitation is for one e-mail address. It is taken up by whoever is signed in with that address and shows its token,
which only the mailbox (or the person the inviter gave it to) has. Only the token's hash is kept.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from domain.accounts import Email
from domain.context import Context
from domain.errors import Forbidden, Refused
from domain.events import Audience, Event
from domain.factors import token_hash
from domain.identity import MembershipRole, Permission, Role
from domain.security import SecurityEvents, SecurityKind
from domain.types import JSON, new_id, wire_time
from domain.views import Key, NoParams, Params, View

TOKEN_PREFIX = "fxi_"  # noqa: S105 — names the kind, so that logs and secret scanners can recognise one
MOST_MEMBERS = 500
MOST_PENDING = 100
"""Invitations of one organisation that wait at the same time: nobody's mailbox is flooded from here."""

_security = SecurityEvents()


class InvitationStatus(StrEnum):
    """Where an invitation stands. ``pending`` past its time counts as expired."""

    PENDING = "pending"
    ACCEPTED = "accepted"
    REVOKED = "revoked"
    EXPIRED = "expired"


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


@dataclass(frozen=True, slots=True)
class Invitation:
    """A place that waits for somebody.

    Attributes:
        email: lower-case; only an account with this address may take the place.
        token_hash: SHA-256, hex.
    """

    id: str
    organisation_id: str
    email: str
    role: MembershipRole
    status: InvitationStatus
    token_hash: str
    invited_by: str
    created_at: datetime
    expires_at: datetime
    version: int
    accepted_by: str | None = None

    def status_at(self, now: datetime) -> InvitationStatus:
        """The status by the clock."""
        if self.status is InvitationStatus.PENDING and self.expires_at <= now:
            return InvitationStatus.EXPIRED
        return self.status


class LastOwner(Refused):
    """An organisation cannot be left without an owner."""

    type = "last_owner"
    default_message = "An organisation needs an owner. Make somebody else one first."


class AlreadyMember(Refused):
    """The person is a member."""

    type = "already_member"
    default_message = "This person is a member already."


class AlreadyInvited(Refused):
    """An invitation for this address still waits."""

    type = "already_invited"
    default_message = "An invitation for this address is already waiting."


class OrganisationFull(Refused):
    """Too many members, or too many invitations that wait."""

    type = "organisation_full"
    default_message = "The organisation has as many members or waiting invitations as it may."


class InvitationEnded(Refused):
    """The invitation was taken up, revoked, or has run out; ``invitation_status`` says which."""

    type = "invitation_ended"
    default_message = "This invitation is no longer open."


# --- the wire ---------------------------------------------------------------------------------------------------------

_Id = Annotated[str, Field(max_length=64)]
_Role = Annotated[MembershipRole, Field(strict=False)]


class OrganisationRef(Params):
    """Names an organisation."""

    organisation_id: _Id


class Invite(OrganisationRef):
    """Asks somebody in."""

    email: Email
    role: _Role
    key: Key


class Leave(OrganisationRef):
    """Gives up one's own place."""

    key: Key


class SetMemberRole(OrganisationRef):
    """Says what a member is from now on."""

    user_id: _Id
    role: _Role
    key: Key


class RemoveMember(OrganisationRef):
    """Takes a member's place away."""

    user_id: _Id
    key: Key


class InvitationRef(Params):
    """Names an invitation."""

    invitation_id: _Id


class RevokeInvitation(InvitationRef):
    """Takes an invitation back."""

    key: Key


class AcceptInvitation(Params):
    """``token`` came with the invitation."""

    token: Annotated[str, StringConstraints(min_length=1, max_length=128)]
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


class InvitationView(View):
    """An invitation as the organisation's managers and the person invited see it."""

    id: str
    organisation_id: str
    organisation_name: str
    email: str
    role: MembershipRole
    status: InvitationStatus
    invited_by: str
    created_at: str
    expires_at: str
    version: int


class InvitationResult(View):
    """One invitation."""

    invitation: InvitationView


class IssuedInvitation(InvitationResult):
    """An invitation with a token that replaces every earlier one. It is shown this once."""

    token: str


class InvitationList(View):
    """Invitations that wait, newest first."""

    invitations: list[InvitationView]


class Accepted(View):
    """The place one has now."""

    organisation: OrganisationView
    member: MemberView


class MembershipEventData(View):
    """``from`` is the role before, or null when there was none; ``reason`` says how a place was lost."""

    organisation_id: str
    user_id: str
    provider_id: str
    member: MemberView
    from_: MembershipRole | None = Field(default=None, alias="from")
    reason: str | None = None


class InvitationEventData(View):
    """What happened to an invitation."""

    organisation_id: str
    invitation_id: str
    invitation: InvitationView


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


def invitation_view(invitation: Invitation, organisation: Organisation, now: datetime) -> JSON:
    """An invitation without its token."""
    return {
        "id": invitation.id,
        "organisation_id": organisation.id,
        "organisation_name": organisation.name,
        "email": invitation.email,
        "role": invitation.role.value,
        "status": invitation.status_at(now).value,
        "invited_by": invitation.invited_by,
        "created_at": wire_time(invitation.created_at),
        "expires_at": wire_time(invitation.expires_at),
        "version": invitation.version,
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
    organisation = await _seen(ctx, params.organisation_id, Permission.SEE_ORGANISATION)
    return {"organisation": organisation_view(organisation, _own_role(ctx, organisation.id))}


async def list_members(ctx: Context, params: OrganisationRef) -> JSON:
    """Everybody in it."""
    organisation = await _seen(ctx, params.organisation_id, Permission.SEE_ORGANISATION)
    members = await ctx.uow.organisations.members(organisation.id)
    return {"members": [member_view(member, organisation) for member in members]}


async def list_invitations(ctx: Context, params: OrganisationRef) -> JSON:
    """Invitations that wait, for whoever may make them."""
    organisation = await _seen(ctx, params.organisation_id, Permission.MANAGE_TECHNICIANS)
    waiting = await ctx.uow.organisations.pending(organisation.id, ctx.now)
    return {"invitations": [invitation_view(invitation, organisation, ctx.now) for invitation in waiting]}


# --- invitations ------------------------------------------------------------------------------------------------------


async def invite(ctx: Context, params: Invite) -> JSON:
    """Asks somebody in by e-mail address. The token goes to whoever sends letters, after the commit.

    Raises:
        AlreadyMember, AlreadyInvited: there is nothing to ask.
        OrganisationFull: too many members or invitations.
    """
    organisation = await _managed(ctx, params.organisation_id, params.role)
    invited = await ctx.uow.people.by_email(params.email)
    if invited is not None and await ctx.uow.organisations.member(organisation.id, invited.id):
        raise AlreadyMember
    waiting = await ctx.uow.organisations.pending(organisation.id, ctx.now)
    if any(invitation.email == params.email for invitation in waiting):
        raise AlreadyInvited
    if len(waiting) >= MOST_PENDING or await ctx.uow.organisations.size(organisation.id) >= MOST_MEMBERS:
        raise OrganisationFull
    token = _random_token()
    invitation = Invitation(
        id=new_id(ctx.now),
        organisation_id=organisation.id,
        email=params.email,
        role=params.role,
        status=InvitationStatus.PENDING,
        token_hash=token_hash(token),
        invited_by=ctx.actor.user_id,
        created_at=ctx.now,
        expires_at=ctx.now + timedelta(days=ctx.policy.invitation_days),
        version=1,
    )
    await ctx.uow.organisations.add_invitation(invitation)
    details = {"organisation_id": organisation.id, "role": params.role.value}
    await _security.record(ctx.uow, SecurityKind.MEMBER_INVITED, ctx.actor.user_id, invitation.id, details)
    await _tell_of_invitation(ctx, invitation, organisation, "invitation.created")
    ctx.after_commit.append(_letter(ctx, invitation, organisation, token))
    return {"invitation": invitation_view(invitation, organisation, ctx.now)}


async def issue(ctx: Context, params: InvitationRef) -> JSON:
    """A new token for an invitation that waits, to be handed over by the caller; earlier ones no longer count."""
    invitation, organisation = await _managed_invitation(ctx, params.invitation_id)
    _check_open(invitation, ctx.now)
    token = _random_token()
    after = replace(invitation, token_hash=token_hash(token), version=invitation.version + 1)
    await ctx.uow.organisations.save_invitation(after)
    return {"invitation": invitation_view(after, organisation, ctx.now), "token": token}


async def revoke(ctx: Context, params: RevokeInvitation) -> JSON:
    """Takes an invitation back. One that is revoked already stays so.

    Raises:
        InvitationEnded: it was taken up.
    """
    invitation, organisation = await _managed_invitation(ctx, params.invitation_id)
    if invitation.status is InvitationStatus.REVOKED:
        return {"invitation": invitation_view(invitation, organisation, ctx.now)}
    if invitation.status is InvitationStatus.ACCEPTED:
        raise InvitationEnded(invitation_status=invitation.status.value)
    after = replace(invitation, status=InvitationStatus.REVOKED, version=invitation.version + 1)
    await ctx.uow.organisations.save_invitation(after)
    await _tell_of_invitation(ctx, after, organisation, "invitation.revoked")
    return {"invitation": invitation_view(after, organisation, ctx.now)}


async def accept(ctx: Context, params: AcceptInvitation) -> JSON:
    """Takes up the place that the token stands for. Whoever did so already gets the same answer again.

    Raises:
        Forbidden: no such token, or it was meant for another address.
        InvitationEnded: revoked or run out.
        AlreadyMember: the caller has another place there.
    """
    shown = token_hash(params.token)
    found = await ctx.uow.organisations.invitation_by_token(shown)
    user = await ctx.uow.people.user(ctx.actor.user_id)
    if found is None or user is None or found.email != user.email:
        raise Forbidden
    organisation = await ctx.uow.organisations.lock(found.organisation_id)
    # Under the lock, read again: it may have been revoked, issued anew or taken up meanwhile.
    invitation = await ctx.uow.organisations.invitation(found.id)
    if organisation is None or invitation is None or invitation.token_hash != shown:
        raise Forbidden
    member = await ctx.uow.organisations.member(organisation.id, user.id)
    if invitation.status is InvitationStatus.ACCEPTED and invitation.accepted_by == user.id and member is not None:
        return _accepted(organisation, member)
    _check_open(invitation, ctx.now)
    if member is not None:
        raise AlreadyMember
    if await ctx.uow.organisations.size(organisation.id) >= MOST_MEMBERS:
        raise OrganisationFull
    member = Member(organisation.id, user.id, user.name, invitation.role, ctx.now, 1)
    await ctx.uow.people.add_membership(organisation.id, user.id, invitation.role)
    if Role.PROVIDER not in user.roles:
        # What the account is for; the place itself says what it may.
        await ctx.uow.people.save_roles(user.id, user.roles | {Role.PROVIDER})
    after = replace(invitation, status=InvitationStatus.ACCEPTED, accepted_by=user.id, version=invitation.version + 1)
    await ctx.uow.organisations.save_invitation(after)
    details = {"organisation_id": organisation.id, "role": member.role.value, "invited_by": invitation.invited_by}
    await _security.record(ctx.uow, SecurityKind.MEMBER_ADDED, user.id, user.id, details)
    _change_access(ctx, member, organisation)
    await _tell_of_invitation(ctx, after, organisation, "invitation.accepted")
    _tell_of_member(ctx, member, organisation, "membership.created")
    return _accepted(organisation, member)


# --- members ----------------------------------------------------------------------------------------------------------


async def set_role(ctx: Context, params: SetMemberRole) -> JSON:
    """Makes a member something else.

    Raises:
        LastOwner: it would leave the organisation without one.
    """
    organisation = await _managed(ctx, params.organisation_id, MembershipRole.OWNER)
    member = await _member(ctx, organisation, params.user_id)
    if member.role is params.role:
        return {"member": member_view(member, organisation)}
    await _keep_an_owner(ctx, member)
    after = replace(member, role=params.role, version=member.version + 1)
    await ctx.uow.organisations.save_member(after)
    details = {"organisation_id": organisation.id, "from": member.role.value, "to": after.role.value}
    await _security.record(ctx.uow, SecurityKind.ROLE_CHANGED, ctx.actor.user_id, member.user_id, details)
    _change_access(ctx, after, organisation)
    _tell_of_member(ctx, after, organisation, "membership.changed", before=member.role)
    return {"member": member_view(after, organisation)}


async def remove(ctx: Context, params: RemoveMember) -> JSON:
    """Takes a member's place away, and with it every channel it opened, before the next event.

    Raises:
        LastOwner: it would leave the organisation without one.
    """
    organisation = await _managed(ctx, params.organisation_id, MembershipRole.TECHNICIAN)
    member = await _member(ctx, organisation, params.user_id)
    if not ctx.actor.may(_manages(member.role), organisation.id):
        raise Forbidden
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
    _tell_of_member(ctx, member, organisation, "membership.removed", before=member.role, reason=reason)
    return {"member": member_view(member, organisation)}


# --- rules ------------------------------------------------------------------------------------------------------------


def _manages(role: MembershipRole) -> Permission:
    """What it takes to invite or remove somebody of this role."""
    return Permission.MANAGE_TECHNICIANS if role is MembershipRole.TECHNICIAN else Permission.MANAGE_MEMBERS


def _own_role(ctx: Context, organisation_id: str) -> MembershipRole | None:
    return next((each.role for each in ctx.actor.memberships if each.organisation_id == organisation_id), None)


async def _seen(ctx: Context, organisation_id: str, permission: Permission) -> Organisation:
    if not ctx.actor.may(permission, organisation_id):
        raise Forbidden
    organisation = await ctx.uow.organisations.get(organisation_id)
    if organisation is None:
        raise Forbidden
    return organisation


async def _managed(ctx: Context, organisation_id: str, role: MembershipRole) -> Organisation:
    """The locked organisation, if the caller may manage people of this role in it. Strangers take no lock."""
    if not ctx.actor.may(_manages(role), organisation_id):
        raise Forbidden
    organisation = await ctx.uow.organisations.lock(organisation_id)
    if organisation is None:
        raise Forbidden
    return organisation


async def _managed_invitation(ctx: Context, invitation_id: str) -> tuple[Invitation, Organisation]:
    found = await ctx.uow.organisations.invitation(invitation_id)
    if found is None:
        raise Forbidden
    organisation = await _managed(ctx, found.organisation_id, found.role)
    invitation = await ctx.uow.organisations.invitation(invitation_id)
    if invitation is None:
        raise Forbidden
    return invitation, organisation


async def _member(ctx: Context, organisation: Organisation, user_id: str) -> Member:
    member = await ctx.uow.organisations.member(organisation.id, user_id)
    if member is None:
        raise Forbidden
    return member


async def _keep_an_owner(ctx: Context, member: Member) -> None:
    if member.role is MembershipRole.OWNER and await ctx.uow.organisations.owners(member.organisation_id) <= 1:
        raise LastOwner


def _check_open(invitation: Invitation, now: datetime) -> None:
    status = invitation.status_at(now)
    if status is not InvitationStatus.PENDING:
        raise InvitationEnded(invitation_status=status.value)


def _accepted(organisation: Organisation, member: Member) -> JSON:
    return {
        "organisation": organisation_view(organisation, member.role),
        "member": member_view(member, organisation),
    }


def _letter(ctx: Context, invitation: Invitation, organisation: Organisation, token: str) -> Callable[[], None]:
    return lambda: ctx.post.invite(invitation.email, organisation.name, ctx.actor.name, token, invitation.expires_at)


# --- events -----------------------------------------------------------------------------------------------------------


def _tell_of_member(
    ctx: Context,
    member: Member,
    organisation: Organisation,
    type_: str,
    *,
    before: MembershipRole | None = None,
    reason: str | None = None,
) -> None:
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


async def _tell_of_invitation(ctx: Context, invitation: Invitation, organisation: Organisation, type_: str) -> None:
    """Tells the managers, and the person invited when the address has an account."""
    invited = await ctx.uow.people.by_email(invitation.email)
    data: JSON = {
        "organisation_id": organisation.id,
        "invitation_id": invitation.id,
        "invitation": invitation_view(invitation, organisation, ctx.now),
    }
    audience = Audience(users=(invited.id,) if invited else (), organisations=(organisation.id,))
    ctx.uow.record(Event(new_id(ctx.now), type_, ctx.now, f"organisation/{organisation.id}", data, audience))


def _change_access(ctx: Context, member: Member, organisation: Organisation) -> None:
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


def _random_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)
