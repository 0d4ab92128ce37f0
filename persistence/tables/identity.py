"""Accounts, organisations, sign-ins, second factors, and the keys of all secrets."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from persistence.tables.columns import Code, Id, JsonText, Name, UtcDateTime, audit, metadata

users = Table(
    "users",
    metadata,
    Column("id", Id, primary_key=True),
    Column("email", String(254), nullable=False),
    Column("name", Name, nullable=False),
    Column("password_hash", String(255), nullable=False),
    Column("roles", JsonText, nullable=False),
    Column("disabled_at", UtcDateTime),
    *audit(),
    UniqueConstraint("email"),
)

organisations = Table(
    "organisations",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Name, nullable=False),
    Column("version", Integer, nullable=False),
    *audit(),
)

memberships = Table(
    "memberships",
    metadata,
    Column("organisation_id", Id, ForeignKey("organisations.id"), primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True, index=True),
    Column("role", Code, nullable=False),
    Column("version", Integer, nullable=False),
    *audit(),
)

invitations = Table(
    "invitations",
    metadata,
    Column("id", Id, primary_key=True),
    Column("organisation_id", Id, ForeignKey("organisations.id"), nullable=False),
    Column("email", String(254), nullable=False),
    Column("role", Code, nullable=False),
    Column("status", Code, nullable=False),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("accepted_by", Id),
    Column("version", Integer, nullable=False),
    *audit(),
    Index(None, "organisation_id", "status"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False, index=True),
    Column("device", JsonText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("last_used_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),  # absolute: rotation never moves it
    Column("revoked_at", UtcDateTime),
    Column("revoked_reason", Code),
    Column("authenticated_at", UtcDateTime),  # all factors proven; a step-up moves it
    Column("device_id", Id),
    Column("network", String(64)),
    Column("lat", Double),
    Column("lon", Double),
    Column("trust_score", Integer),
    Column("trust_parts", JsonText),
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("session_id", Id, ForeignKey("sessions.id"), nullable=False, index=True),
    Column("issued_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False, index=True),
    Column("used_at", UtcDateTime),
    Column("successor_nonce", String(64)),  # with the old token (never stored) it yields the successor again
    Column("successor_hash", String(64)),
)

federated_identities = Table(  # who of a trusted issuer is which account here
    "federated_identities",
    metadata,
    Column("issuer", String(255), primary_key=True),
    Column("subject", String(255), primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False, index=True),
    Column("created_at", UtcDateTime, nullable=False),
)

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("kid", Id, primary_key=True),
    Column("private_pem", Text, nullable=False),  # sealed; see persistence/vault.py
    Column("created_at", UtcDateTime, nullable=False),
    Column("signs_from", UtcDateTime, nullable=False),  # later than created_at: every node knows it before it signs
    Column("retires_at", UtcDateTime),  # verifies until then, signs no longer
)

data_keys = Table(  # what secrets are encrypted with, itself wrapped by a master key that is elsewhere
    "data_keys",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("wrapped", Text, nullable=False),
    Column("wrapped_by", String(255), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

factors = Table(  # second factors; one without confirmed_at is being enrolled and does not count
    "factors",
    metadata,
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True),
    Column("kind", Code, primary_key=True),
    Column("secret", Text, nullable=False),  # sealed: the TOTP secret, or where codes are sent
    Column("hint", String(64), nullable=False),
    Column("last_step", BigInteger, nullable=False),  # newest TOTP time step used (RFC 6238); only ever rises
    Column("created_at", UtcDateTime, nullable=False),
    Column("confirmed_at", UtcDateTime),
)

recovery_codes = Table(
    "recovery_codes",
    metadata,
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True),
    Column("code_hash", String(64), primary_key=True),
    Column("used_at", UtcDateTime),
)

code_guards = Table(  # wrong one-time codes of an account, whichever sign-in they came with
    "code_guards",
    metadata,
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("next_at", UtcDateTime),
)

challenges = Table(  # opaque one-purpose tokens: second step of a sign-in, step-up, password reset
    "challenges",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("purpose", Code, nullable=False),
    Column("user_id", Id, index=True),  # none: a reset asked for an address nobody registered
    Column("data", JsonText, nullable=False),
    Column("code_hash", String(64)),  # of the code that was sent, keyed by the token, which is not stored
    Column("attempts", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False, index=True),
    Column("used_at", UtcDateTime),
)

devices = Table(
    "devices",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    Column("key", String(64), nullable=False),  # SHA-256 of the id that the client chose
    Column("name", String(128), nullable=False),
    Column("platform", String(64), nullable=False),
    Column("first_seen_at", UtcDateTime, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),
    Column("network", String(64)),
    Column("trust_score", Integer, nullable=False),
    Column("trust_parts", JsonText, nullable=False),
    UniqueConstraint("user_id", "key"),
)
