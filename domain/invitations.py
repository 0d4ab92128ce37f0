"""Invitations: how somebody gets into an organisation.

An invitation is for one e-mail address. It is taken up by whoever is signed in with that address and shows its token,
which only the mailbox (or the person the inviter gave it to) has. Only the token's hash is kept. What happens to it
happens under the organisation's lock, see :mod:`domain.organisations`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import StringConstraints

from domain.accounts import Email
from domain.context import Context
from domain.errors import Forbidden, Refused
from domain.events import Audience, Event
from domain.factors import token_hash
from domain.identity import MembershipRole, Permission, Role
from domain.organisations import (
    Id,
    Member,
    MemberRole,
    MemberView,
    Organisation,
    OrganisationRef,
    OrganisationView,
    change_access,
    managed,
    member_view,
    organisation_view,
    seen,
    tell_of_member,
)
from domain.security import SecurityEvents, SecurityKind
from domain.types import JSON, new_id, wire_time
from domain.views import Key, Params, View

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


class Invite(OrganisationRef):
    """Asks somebody in."""

    email: Email
    role: MemberRole
    key: Key


class InvitationRef(Params):
    """Names an invitation."""

    invitation_id: Id


class RevokeInvitation(InvitationRef):
    """Takes an invitation back."""

    key: Key


class AcceptInvitation(Params):
    """``token`` came with the invitation."""

    token: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    key: Key


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


class InvitationEventData(View):
    """What happened to an invitation."""

    organisation_id: str
    invitation_id: str
    invitation: InvitationView


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


# --- use cases --------------------------------------------------------------------------------------------------------


async def list_invitations(ctx: Context, params: OrganisationRef) -> JSON:
    """Invitations that wait, for whoever may make them."""
    organisation = await seen(ctx, params.organisation_id, Permission.MANAGE_TECHNICIANS)
    waiting = await ctx.uow.organisations.pending(organisation.id, ctx.now)
    return {"invitations": [invitation_view(invitation, organisation, ctx.now) for invitation in waiting]}


async def invite(ctx: Context, params: Invite) -> JSON:
    """Asks somebody in by e-mail address. The token goes to whoever sends letters, after the commit.

    Raises:
        AlreadyMember, AlreadyInvited: there is nothing to ask.
        OrganisationFull: too many members or invitations.
    """
    organisation = await managed(ctx, params.organisation_id, params.role)
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
    change_access(ctx, member, organisation)
    await _tell_of_invitation(ctx, after, organisation, "invitation.accepted")
    tell_of_member(ctx, member, organisation, "membership.created")
    return _accepted(organisation, member)


async def _managed_invitation(ctx: Context, invitation_id: str) -> tuple[Invitation, Organisation]:
    found = await ctx.uow.organisations.invitation(invitation_id)
    if found is None:
        raise Forbidden
    organisation = await managed(ctx, found.organisation_id, found.role)
    invitation = await ctx.uow.organisations.invitation(invitation_id)
    if invitation is None:
        raise Forbidden
    return invitation, organisation


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


def _random_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)
