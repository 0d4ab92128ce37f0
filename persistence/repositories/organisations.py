"""Organisations, their members and invitations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, bindparam, delete, func, insert, select, update

from domain.identity import MembershipRole
from domain.invitations import Invitation, InvitationStatus
from domain.organisations import Member, Organisation
from persistence.repositories.audit import created, updated
from persistence.tables import invitations, memberships, organisations, providers, users
from persistence.unit_of_work import UnitOfWork

_GET = (
    select(organisations.c.id, organisations.c.name, organisations.c.version, providers.c.id.label("provider_id"))
    .join(providers, providers.c.organisation_id == organisations.c.id)
    .where(organisations.c.id == bindparam("organisation"))
)
_LOCK = select(organisations.c.id).where(organisations.c.id == bindparam("organisation")).with_for_update()
_MEMBERS = (
    select(memberships, users.c.name)
    .join(users, users.c.id == memberships.c.user_id)
    .where(memberships.c.organisation_id == bindparam("organisation"))
    .order_by(memberships.c.created_at, memberships.c.user_id)
)
_COUNT = select(func.count()).where(memberships.c.organisation_id == bindparam("organisation"))


class SqlOrganisations:
    """See :class:`domain.ports.Organisations`."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit
        self._connection = unit.connection

    async def get(self, organisation_id: str) -> Organisation | None:
        row = (await self._connection.execute(_GET, {"organisation": organisation_id})).one_or_none()
        return None if row is None else Organisation(row.id, row.name, row.provider_id, row.version)

    async def lock(self, organisation_id: str) -> Organisation | None:
        # The row alone: a join would lock the provider too, out of the order of locks.
        if (await self._connection.execute(_LOCK, {"organisation": organisation_id})).one_or_none() is None:
            return None
        return await self.get(organisation_id)

    async def members(self, organisation_id: str) -> Sequence[Member]:
        rows = await self._connection.execute(_MEMBERS, {"organisation": organisation_id})
        return [_member(row) for row in rows]

    async def member(self, organisation_id: str, user_id: str) -> Member | None:
        query = _MEMBERS.where(memberships.c.user_id == user_id)
        row = (await self._connection.execute(query, {"organisation": organisation_id})).one_or_none()
        return None if row is None else _member(row)

    async def size(self, organisation_id: str) -> int:
        return int((await self._connection.execute(_COUNT, {"organisation": organisation_id})).scalar_one())

    async def owners(self, organisation_id: str) -> int:
        query = _COUNT.where(memberships.c.role == MembershipRole.OWNER.value)
        return int((await self._connection.execute(query, {"organisation": organisation_id})).scalar_one())

    async def save_member(self, member: Member) -> None:
        await self._connection.execute(
            update(memberships)
            .where(memberships.c.organisation_id == member.organisation_id, memberships.c.user_id == member.user_id)
            .values(role=member.role.value, version=member.version, **updated(self._unit))
        )

    async def remove_member(self, organisation_id: str, user_id: str) -> None:
        await self._connection.execute(
            delete(memberships).where(
                memberships.c.organisation_id == organisation_id, memberships.c.user_id == user_id
            )
        )

    async def pending(self, organisation_id: str, now: datetime) -> Sequence[Invitation]:
        rows = await self._connection.execute(
            select(invitations)
            .where(
                invitations.c.organisation_id == organisation_id,
                invitations.c.status == InvitationStatus.PENDING.value,
                invitations.c.expires_at > now,
            )
            .order_by(invitations.c.id.desc())
        )
        return [_invitation(row) for row in rows]

    async def invitation(self, invitation_id: str) -> Invitation | None:
        return await self._one(select(invitations).where(invitations.c.id == invitation_id))

    async def invitation_by_token(self, token_hash: str) -> Invitation | None:
        return await self._one(select(invitations).where(invitations.c.token_hash == token_hash))

    async def add_invitation(self, invitation: Invitation) -> None:
        row = _columns(invitation) | {
            "id": invitation.id,
            "organisation_id": invitation.organisation_id,
            "email": invitation.email,
            "role": invitation.role.value,
        }
        await self._connection.execute(insert(invitations), row | created(self._unit))

    async def save_invitation(self, invitation: Invitation) -> None:
        await self._connection.execute(
            update(invitations)
            .where(invitations.c.id == invitation.id)
            .values(**_columns(invitation), **updated(self._unit))
        )

    async def _one(self, query: Select[Any]) -> Invitation | None:
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _invitation(row)


def _columns(invitation: Invitation) -> dict[str, Any]:
    """What of an invitation may change."""
    return {
        "status": invitation.status.value,
        "token_hash": invitation.token_hash,
        "expires_at": invitation.expires_at,
        "accepted_by": invitation.accepted_by,
        "version": invitation.version,
    }


def _member(row: Row[Any]) -> Member:
    return Member(
        organisation_id=row.organisation_id,
        user_id=row.user_id,
        name=row.name,
        role=MembershipRole(row.role),
        joined_at=row.created_at,
        version=row.version,
    )


def _invitation(row: Row[Any]) -> Invitation:
    return Invitation(
        id=row.id,
        organisation_id=row.organisation_id,
        email=row.email,
        role=MembershipRole(row.role),
        status=InvitationStatus(row.status),
        token_hash=row.token_hash,
        invited_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        version=row.version,
        accepted_by=row.accepted_by,
    )
