"""People, organisations and what they may speak for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


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


@dataclass(frozen=True, slots=True)
class User:
    """An account. ``email`` is kept lower-case and is unique."""

    id: str
    email: str
    name: str
    password_hash: str
    roles: frozenset[Role]
    disabled_at: datetime | None = None


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
