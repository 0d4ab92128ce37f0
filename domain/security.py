"""Security events: what an investigator will want to know, kept in a chain of hashes that shows any tampering.

A use case attests a fact in its transaction (:class:`SecurityEvents`); right before the commit, after every other lock,
the facts are appended to the audit log. Each row's hash covers its content and the hash of the row before it, so a row
that is changed, taken out or put in breaks the chain from there on; the head row, locked by whoever appends, shows a
tail that was cut off. Somebody who can rewrite the whole table and its head can forge a whole chain: keep a hash
somewhere else now and then (every event's log line and live notice has it).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from domain.context import Context
from domain.errors import Forbidden
from domain.events import Audience, Event
from domain.types import JSON, new_id, wire_time
from domain.views import MAX_OFFSET, Key, Params, View

if TYPE_CHECKING:
    from domain.ports import UnitOfWork

GENESIS = "0" * 64
"""The hash before the first row."""


class SecurityKind(StrEnum):
    """Every kind there is. Kinds are data for good: add, but do not rename."""

    LETTER_NOT_SENT = "letter_not_sent"
    LOGIN_FAILED = "login_failed"
    LOGIN_REFUSED = "login_refused"
    TRUST_LOW = "trust_low"
    REFRESH_TOKEN_REUSED = "refresh_token_reused"  # noqa: S105 — names a kind
    DEVICE_REMOVED = "device_removed"
    MFA_ENABLED = "mfa_enabled"
    MFA_DISABLED = "mfa_disabled"
    MFA_FAILED = "mfa_failed"
    RECOVERY_CODE_USED = "recovery_code_used"
    RECOVERY_CODES_REPLACED = "recovery_codes_replaced"
    STEP_UP_FAILED = "step_up_failed"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 — names a kind
    PASSWORD_RESET_ASKED = "password_reset_asked"  # noqa: S105 — names a kind
    PASSWORD_RESET = "password_reset"  # noqa: S105 — names a kind
    USER_DISABLED = "user_disabled"
    USER_ENABLED = "user_enabled"
    SIGNED_OUT_BY_ADMIN = "signed_out_by_admin"
    ROLE_CHANGED = "role_changed"
    MEMBER_INVITED = "member_invited"
    MEMBER_ADDED = "member_added"
    MEMBER_REMOVED = "member_removed"
    ACCOUNT_FEDERATED = "account_federated"
    BOOKING_ASSIGNED_BY_STAFF = "booking_assigned_by_staff"
    BOOKING_CHANGED_BY_STAFF = "booking_changed_by_staff"
    DISPUTE_RESOLVED = "dispute_resolved"
    FLAG_CHANGED = "flag_changed"
    SLA_POLICY_CHANGED = "sla_policy_changed"
    ZONES_IMPORTED = "zones_imported"


@dataclass(frozen=True, slots=True)
class SecurityFact:
    """Something that happened, before it has a place in the chain.

    Attributes:
        actor_id: who did it; ``anonymous`` when nobody was signed in, ``system`` for the product itself.
        subject_id: whom or what it was done to; ``None`` when there is no such thing (an unknown address).
        details: JSON without secrets; strings, whole numbers, booleans and lists of them.
    """

    kind: SecurityKind
    actor_id: str
    subject_id: str | None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row of the chain. ``number`` counts from 1 without gaps."""

    number: int
    at: datetime
    kind: str
    actor_id: str
    subject_id: str | None
    correlation_id: str
    details: Mapping[str, Any]
    previous_hash: str
    hash: str


class SecurityEvents:
    """How use cases of every subject attest what they did."""

    async def record(
        self,
        uow: UnitOfWork,
        kind: SecurityKind,
        actor_id: str,
        subject_id: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Attests a fact: it is in the audit log if, and only if, the transaction commits.

        A refusal that should be on record (a failed login) must therefore be committed: return it from the transaction
        and raise afterwards.
        """
        uow.attest(SecurityFact(kind, actor_id, subject_id, dict(details or {})))


def chained(
    facts: Sequence[SecurityFact], number: int, previous_hash: str, at: datetime, correlation_id: str
) -> list[AuditEntry]:
    """The facts as the rows that follow the row of this number and hash."""
    entries = []
    for fact in facts:
        number += 1
        own = digest(number, at, fact.kind, fact.actor_id, fact.subject_id, correlation_id, fact.details, previous_hash)
        entries.append(
            AuditEntry(
                number,
                at,
                fact.kind,
                fact.actor_id,
                fact.subject_id,
                correlation_id,
                fact.details,
                previous_hash,
                own,
            )
        )
        previous_hash = own
    return entries


def digest(
    number: int,
    at: datetime,
    kind: str,
    actor_id: str,
    subject_id: str | None,
    correlation_id: str,
    details: Mapping[str, Any],
    previous_hash: str,
) -> str:
    """SHA-256, hex, over every column of a row but its own hash, as canonical JSON: a list in the order of the columns,
    names of objects sorted, no white space, ASCII.
    """
    moment = at.astimezone(UTC).isoformat(timespec="microseconds")
    content = [number, moment, kind, actor_id, subject_id, correlation_id, details, previous_hash]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def flaw_of(entry: AuditEntry, number_before: int, hash_before: str) -> str | None:
    """Why this row does not continue the chain, or ``None`` when it does."""
    if entry.number != number_before + 1:
        return f"row {number_before + 1} is missing"
    if entry.previous_hash != hash_before:
        return "it does not continue the row before it"
    expected = digest(
        entry.number,
        entry.at,
        entry.kind,
        entry.actor_id,
        entry.subject_id,
        entry.correlation_id,
        entry.details,
        entry.previous_hash,
    )
    return None if expected == entry.hash else "its content was changed"


# --- the wire ---------------------------------------------------------------------------------------------------------


class ListAudit(Params):
    """A page of the audit log, newest first; ``before`` is the smallest number of the page before."""

    before: Annotated[int, Field(ge=1, le=MAX_OFFSET)] | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50


class SignOutUser(Params):
    """Ends every sign-in of a person."""

    user_id: Annotated[str, Field(max_length=64)]
    reason: Annotated[str, Field(min_length=1, max_length=200)]
    key: Key


class SignedOut(View):
    """How many sign-ins ended."""

    user_id: str
    ended: int


class SecurityEventView(View):
    """One row of the audit log."""

    number: int
    at: str
    kind: str
    actor_id: str
    subject_id: str | None
    correlation_id: str
    details: dict[str, Any]
    hash: str


class AuditPage(View):
    """Rows of the audit log, newest first."""

    events: list[SecurityEventView]


class SecurityEventRecordedData(View):
    """A row that was just appended."""

    number: int
    event: SecurityEventView


def view(entry: AuditEntry) -> JSON:
    """A row for admins."""
    return {
        "number": entry.number,
        "at": wire_time(entry.at),
        "kind": entry.kind,
        "actor_id": entry.actor_id,
        "subject_id": entry.subject_id,
        "correlation_id": entry.correlation_id,
        "details": dict(entry.details),
        "hash": entry.hash,
    }


def recorded(entry: AuditEntry) -> Event:
    """The notice that goes to the admins' security channel."""
    data = {"number": entry.number, "event": view(entry)}
    return Event(new_id(entry.at), "security.event_recorded", entry.at, "audit/log", data, Audience())


async def list_events(ctx: Context, params: ListAudit) -> JSON:
    """A page of the audit log, for admins."""
    return {"events": [view(entry) for entry in await ctx.uow.audit.newest(params.before, params.limit)]}


async def sign_out_user(ctx: Context, params: SignOutUser) -> JSON:
    """An admin ends every sign-in of a person; its sockets close on every node.

    Raises:
        Forbidden: there is no such person.
    """
    if await ctx.uow.people.user(params.user_id) is None:
        raise Forbidden
    ended = []
    # In the order of their ids: two calls at once must not wait for each other.
    for listed in sorted(await ctx.uow.people.sign_ins(params.user_id), key=lambda sign_in: sign_in.id):
        sign_in = await ctx.uow.people.lock_sign_in(listed.id)
        if sign_in is not None and sign_in.revoked_at is None:
            ended.append(sign_in.id)
            ending = replace(sign_in, revoked_at=ctx.now, revoked_reason="signed_out_by_admin")
            await ctx.uow.people.save_sign_in(ending)
    data = {"session_ids": ended, "user_ids": [params.user_id]}
    ctx.uow.record(Event(new_id(ctx.now), "session.revoked", ctx.now, f"user/{params.user_id}", data))
    details = {"sessions": len(ended), "reason": params.reason}
    await SecurityEvents().record(ctx.uow, SecurityKind.SIGNED_OUT_BY_ADMIN, ctx.actor.user_id, params.user_id, details)
    return {"user_id": params.user_id, "ended": len(ended)}
