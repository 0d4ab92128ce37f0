"""Organisations and their mail, and what operations look at and switch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from domain.flags import Flag
    from domain.invitations import Invitation
    from domain.organisations import Member, Organisation
    from domain.security import AuditEntry


class Organisations(Protocol):
    """Organisations, their members and invitations. What changes them holds the organisation's lock."""

    async def get(self, organisation_id: str) -> Organisation | None: ...
    async def lock(self, organisation_id: str) -> Organisation | None: ...
    async def members(self, organisation_id: str) -> Sequence[Member]:
        """Everybody, the longest there first."""

    async def member(self, organisation_id: str, user_id: str) -> Member | None: ...
    async def size(self, organisation_id: str) -> int: ...
    async def owners(self, organisation_id: str) -> int: ...
    async def save_member(self, member: Member) -> None: ...
    async def remove_member(self, organisation_id: str, user_id: str) -> None: ...
    async def pending(self, organisation_id: str, now: datetime) -> Sequence[Invitation]:
        """Invitations that wait and have not run out, newest first."""

    async def invitation(self, invitation_id: str) -> Invitation | None: ...
    async def invitation_by_token(self, token_hash: str) -> Invitation | None: ...
    async def add_invitation(self, invitation: Invitation) -> None: ...
    async def save_invitation(self, invitation: Invitation) -> None: ...


class Post(Protocol):
    """Sends letters. Called after the commit: returns at once, never raises, and may lose one."""

    def invite(self, email: str, organisation: str, inviter: str, token: str, expires_at: datetime) -> None:
        """Somebody is invited; the token must be told to nobody else."""


class Flags(Protocol):
    """Feature flags."""

    async def all(self) -> Sequence[Flag]:
        """Every flag, by name."""

    async def lock(self, name: str) -> Flag | None: ...
    async def add(self, flag: Flag) -> None:
        """Makes a flag; when another transaction made it meanwhile, the whole transaction starts over."""

    async def save(self, flag: Flag) -> None: ...


class AuditLog(Protocol):
    """Reads of the audit log; :meth:`UnitOfWork.attest` writes it."""

    async def newest(self, before: int | None, limit: int) -> Sequence[AuditEntry]:
        """Newest rows with ``number < before``, newest first."""
