"""People, organisations and what they may speak for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import cache
from types import MappingProxyType


class Role(StrEnum):
    """What an account is for. ``admin`` may do all that ``operations`` may."""

    CUSTOMER = "customer"
    PROVIDER = "provider"
    OPERATIONS = "operations"
    ADMIN = "admin"


class MembershipRole(StrEnum):
    """What a person is in an organisation."""

    OWNER = "owner"
    DISPATCHER = "dispatcher"
    TECHNICIAN = "technician"


class Permission(StrEnum):
    """What commands and channels ask for; :data:`ROLE_TABLE` says which role has which."""

    WORK = "work"
    """Answer offers, do the jobs, set the live status."""
    SEE_ORGANISATION = "see_organisation"
    HEAR_ORGANISATION = "hear_organisation"
    MANAGE_TECHNICIANS = "manage_technicians"
    """Invite and remove technicians."""
    MANAGE_MEMBERS = "manage_members"
    """Invite and remove anybody, and say what each is."""
    MANAGE_AVAILABILITY = "manage_availability"
    """Say when the provider works."""
    OPERATE = "operate"
    ADMINISTER = "administer"


@dataclass(frozen=True, slots=True)
class RoleRow:
    """One row of the role table: everything that ``includes`` may do, and ``adds``."""

    includes: Role | MembershipRole | None
    adds: frozenset[Permission]


_P, _M = Permission, MembershipRole
ROLE_TABLE: Mapping[Role | MembershipRole, RoleRow] = MappingProxyType(
    {
        _M.TECHNICIAN: RoleRow(None, frozenset({_P.WORK, _P.SEE_ORGANISATION})),
        _M.DISPATCHER: RoleRow(
            _M.TECHNICIAN, frozenset({_P.HEAR_ORGANISATION, _P.MANAGE_TECHNICIANS, _P.MANAGE_AVAILABILITY})
        ),
        _M.OWNER: RoleRow(_M.DISPATCHER, frozenset({_P.MANAGE_MEMBERS})),
        Role.CUSTOMER: RoleRow(None, frozenset()),
        Role.PROVIDER: RoleRow(None, frozenset()),
        Role.OPERATIONS: RoleRow(None, frozenset({_P.OPERATE, _P.SEE_ORGANISATION})),
        Role.ADMIN: RoleRow(
            Role.OPERATIONS,
            frozenset({_P.ADMINISTER, _P.MANAGE_TECHNICIANS, _P.MANAGE_MEMBERS, _P.MANAGE_AVAILABILITY}),
        ),
    }
)
"""Who may do what, and who inherits from whom. A membership's permissions count in its own organisation only, those of
an account's role everywhere.
"""


@cache
def permissions_of(role: Role | MembershipRole) -> frozenset[Permission]:
    """Everything a role may do, inherited permissions included."""
    row = ROLE_TABLE[role]
    return row.adds | (permissions_of(row.includes) if row.includes is not None else frozenset())


@dataclass(frozen=True, slots=True)
class Membership:
    """A person's place in an organisation, and the provider that the organisation is in the marketplace."""

    organisation_id: str
    provider_id: str
    role: MembershipRole


@dataclass(frozen=True, slots=True)
class Actor:
    """Who is asking: a signed-in person with all the hats they wear.

    Attributes:
        session_id: the sign-in (refresh-token family) this access comes from.
    """

    user_id: str
    name: str
    roles: frozenset[Role]
    memberships: tuple[Membership, ...]
    session_id: str

    @property
    def is_operations(self) -> bool:
        return bool(self.roles & {Role.OPERATIONS, Role.ADMIN})

    @property
    def provider_ids(self) -> frozenset[str]:
        return frozenset(membership.provider_id for membership in self.memberships)

    def may(self, permission: Permission, organisation_id: str | None = None) -> bool:
        """Whether a role or a membership gives this permission: in this organisation, or in any when none is named."""
        return any(permission in permissions_of(role) for role in self.roles) or any(
            permission in permissions_of(membership.role)
            for membership in self.memberships
            if organisation_id is None or membership.organisation_id == organisation_id
        )

    def having(self, membership: Membership) -> Actor:
        """The same person with this place in its organisation, in the stead of an earlier one."""
        rest = self.without(membership.organisation_id).memberships
        ordered = sorted((*rest, membership), key=lambda each: each.organisation_id)
        return replace(self, memberships=tuple(ordered))

    def without(self, organisation_id: str) -> Actor:
        """The same person without a place in this organisation."""
        rest = tuple(each for each in self.memberships if each.organisation_id != organisation_id)
        return replace(self, memberships=rest)


UNUSABLE_PASSWORD = "!"  # noqa: S105 — no hash is like it, so no password fits


@dataclass(frozen=True, slots=True)
class User:
    """An account. ``email`` is kept lower-case and is unique."""

    id: str
    email: str
    name: str
    password_hash: str
    roles: frozenset[Role]
    disabled_at: datetime | None = None

    @property
    def own_password_hash(self) -> str | None:
        """The hash to check a password against; ``None`` for people who sign in elsewhere."""
        return None if self.password_hash == UNUSABLE_PASSWORD else self.password_hash


@dataclass(frozen=True, slots=True)
class SignIn:
    """One sign-in on one device: the family of refresh tokens that follow from it.

    Attributes:
        expires_at: the absolute end; no rotation moves it.
        authenticated_at: when the person last proved who they are, all factors included; ``None``: at sign-in.
        device_id: the device among those the person has used, when the client named one.
        network: see :func:`domain.networks.network_of`.
        trust_score, trust_parts: see :mod:`domain.trust`; ``None`` for a sign-in that was not assessed.
        revoked_reason: ``signed_out``, ``reuse``, … once it has ended early.
    """

    id: str
    user_id: str
    device: Mapping[str, str]
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    revoked_reason: str | None = None
    authenticated_at: datetime | None = None
    device_id: str | None = None
    network: str | None = None
    lat: float | None = None
    lon: float | None = None
    trust_score: int | None = None
    trust_parts: Mapping[str, int] | None = None

    @property
    def proven_at(self) -> datetime:
        """When the person last proved who they are."""
        return self.authenticated_at or self.created_at


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """One link of a family's chain. Only hashes are kept.

    Attributes:
        token_hash: SHA-256, hex.
        successor_nonce: with the token itself, which only its holder has, it yields the successor again. A retry after
            a lost reply is thus answered without keeping any token in clear.
    """

    token_hash: str
    session_id: str
    issued_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    successor_nonce: str | None = None
    successor_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """What a client says about the device it runs on."""

    id: str = ""
    name: str = ""
    platform: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
