"""The schema on one page, as SQLAlchemy Core tables that SQLite and MySQL/MariaDB both take.

Conventions: ids are ULIDs in ``CHAR(26)``-sized strings; times are UTC (:class:`UtcDateTime`); money is integer minor
    units beside its ISO 4217 currency; JSON documents are stored as text that orjson wrote. ``version`` rises by one
    on each change. Migrations in ``persistence/migrations`` must reproduce this page; a test compares them.

Audit: every row that is a fact of the business says who made it and who changed it last (:func:`_audit`). The tables in
    :data:`WITHOUT_AUDIT` hold none; each has its reason there.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.dialects.mysql import DATETIME, LONGBLOB, LONGTEXT
from sqlalchemy.types import DateTime

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
}
metadata = MetaData(naming_convention=NAMING)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC instant with microseconds; naive values are refused on the way in, made aware on the way out."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive time cannot be stored; pass aware UTC")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class JsonText(TypeDecorator[Any]):
    """A JSON document as text written by orjson: the same on both databases, and no slower than it must be."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(LONGTEXT())
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else orjson.dumps(value).decode()

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else orjson.loads(value)


Id = String(64)
Name = String(200)
Code = String(32)
Frame = LargeBinary().with_variant(LONGBLOB(), "mysql", "mariadb")
BigKey = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite auto-increments only a column declared INTEGER."""


def _audit() -> tuple[Column[Any], ...]:
    """Who made a business row and who changed it last; ids of users, or ``system``."""
    return (
        Column("created_at", UtcDateTime, nullable=False),
        Column("created_by", Id, nullable=False),
        Column("updated_at", UtcDateTime, nullable=False),
        Column("updated_by", Id, nullable=False),
    )


# --- people and trust -------------------------------------------------------------------------------------------------

users = Table(
    "users",
    metadata,
    Column("id", Id, primary_key=True),
    Column("email", String(254), nullable=False),
    Column("name", Name, nullable=False),
    Column("password_hash", String(255), nullable=False),
    Column("roles", JsonText, nullable=False),
    Column("disabled_at", UtcDateTime),
    *_audit(),
    UniqueConstraint("email"),
)

organisations = Table(
    "organisations",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Name, nullable=False),
    Column("version", Integer, nullable=False),
    *_audit(),
)

memberships = Table(
    "memberships",
    metadata,
    Column("organisation_id", Id, ForeignKey("organisations.id"), primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True, index=True),
    Column("role", Code, nullable=False),
    Column("version", Integer, nullable=False),
    *_audit(),
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
    *_audit(),
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

audit_log = Table(  # append-only: each row's hash covers its content and the hash of the row before
    "audit_log",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3 … without gaps
    Column("at", UtcDateTime, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("actor_id", Id, nullable=False),
    Column("subject_id", Id),
    Column("correlation_id", String(64), nullable=False),
    Column("details", JsonText, nullable=False),
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

audit_head = Table(  # one row, the newest of the chain; locked by whoever appends
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
)

flags = Table(
    "flags",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("state", Code, nullable=False),
    Column("percentage", Double, nullable=False),
    Column("roles", JsonText, nullable=False),
    Column("organisations", JsonText, nullable=False),
    Column("source", Code, nullable=False),
    Column("version", Integer, nullable=False),
    *_audit(),
)

# --- marketplace ------------------------------------------------------------------------------------------------------

services = Table(
    "services",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Name, nullable=False),
    Column("price_minor", Integer, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("duration_minutes", Integer, nullable=False),
    *_audit(),
)

zones = Table(
    "zones",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Name, nullable=False),
    Column("geometry", JsonText, nullable=False),  # GeoJSON Polygon or MultiPolygon
    Column("area_m2", Double, nullable=False),
    Column("strategy", Code, nullable=False),
    Column("priority", Double, nullable=False),
    Column("organisation_id", Id, ForeignKey("organisations.id")),  # whose set it belongs to; the marketplace's own
    Column("version", Integer, nullable=False),
    *_audit(),
)

zone_generation = Table(  # one row: rises with each change of zones; locked by whoever changes them
    "zone_generation",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("generation", BigInteger, nullable=False),
)

zone_figures = Table(  # what was told last of each zone
    "zone_figures",
    metadata,
    Column("zone_id", Id, ForeignKey("zones.id"), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("metrics", JsonText, nullable=False),
    Column("heat", JsonText, nullable=False),
    Column("counted_at", UtcDateTime, nullable=False),
)

providers = Table(
    "providers",
    metadata,
    Column("id", Id, primary_key=True),
    Column("organisation_id", Id, ForeignKey("organisations.id"), nullable=False, unique=True),
    Column("name", Name, nullable=False),
    Column("verified", Boolean, nullable=False),
    Column("rating", Double, nullable=False),
    Column("offers_answered", Integer, nullable=False),
    Column("offers_accepted", Integer, nullable=False),
    Column("jobs_taken", Integer, nullable=False),
    Column("jobs_completed", Integer, nullable=False),
    Column("max_daily_jobs", Integer, nullable=False),
    Column("chosen_status", Code, nullable=False),
    Column("status", Code, nullable=False, index=True),
    Column("misses_in_a_row", Integer, nullable=False),
    Column("idle_since", UtcDateTime, nullable=False),
    Column("lat", Double),
    Column("lon", Double),
    Column("fix_at", UtcDateTime),
    Column("version", Integer, nullable=False),
    *_audit(),
)

provider_skills = Table(
    "provider_skills",
    metadata,
    Column("provider_id", Id, ForeignKey("providers.id"), primary_key=True),
    Column("service_id", Id, ForeignKey("services.id"), primary_key=True, index=True),
    *_audit(),
)

provider_zones = Table(
    "provider_zones",
    metadata,
    Column("provider_id", Id, ForeignKey("providers.id"), primary_key=True),
    Column("zone_id", Id, ForeignKey("zones.id"), primary_key=True, index=True),
    *_audit(),
)

provider_sockets = Table(  # which nodes hold sockets of a provider; a node that died stops renewing
    "provider_sockets",
    metadata,
    Column("provider_id", Id, primary_key=True),
    Column("node_id", Id, primary_key=True, index=True),
    Column("expires_at", UtcDateTime, nullable=False),
)

calendars = Table(
    "calendars",
    metadata,
    Column("provider_id", Id, ForeignKey("providers.id"), primary_key=True),
    Column("organisation_id", Id, nullable=False),
    Column("rules", JsonText, nullable=False),  # as on the wire, see domain.recurrence
    Column("travel_buffer_minutes", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    *_audit(),
)

calendar_exceptions = Table(
    "calendar_exceptions",
    metadata,
    Column("id", Id, primary_key=True),
    Column("provider_id", Id, ForeignKey("providers.id"), nullable=False),
    Column("kind", Code, nullable=False),
    Column("start", UtcDateTime, nullable=False),
    Column("end", UtcDateTime, nullable=False),
    Column("note", String(200)),
    *_audit(),
    Index(None, "provider_id", "end"),
)

slot_holds = Table(  # a row is gone once it was booked, released, or its timer has run
    "slot_holds",
    metadata,
    Column("id", Id, primary_key=True),
    Column("provider_id", Id, ForeignKey("providers.id"), nullable=False),
    Column("organisation_id", Id, nullable=False),
    Column("customer_id", Id, ForeignKey("users.id"), nullable=False, index=True),
    Column("service_id", Id, nullable=False),
    Column("zone_id", Id, nullable=False),
    Column("start", UtcDateTime, nullable=False),
    Column("end", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    *_audit(),
    Index(None, "provider_id", "end"),
)

calendar_feeds = Table(
    "calendar_feeds",
    metadata,
    Column("provider_id", Id, ForeignKey("providers.id"), primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True),
    Column("token_hash", String(64), nullable=False, unique=True),
    *_audit(),
)

calendar_sources = Table(
    "calendar_sources",
    metadata,
    Column("id", Id, primary_key=True),
    Column("provider_id", Id, ForeignKey("providers.id"), nullable=False),
    Column("organisation_id", Id, nullable=False),
    Column("name", String(100), nullable=False),
    Column("kind", Code, nullable=False),
    Column("url", String(500)),
    Column("times", Integer, nullable=False),
    Column("skipped", Integer, nullable=False),
    Column("problem", String(64)),
    Column("fetched_at", UtcDateTime),
    Column("next_fetch_at", UtcDateTime, index=True),
    *_audit(),
    UniqueConstraint("provider_id", "name"),
)

busy_times = Table(  # brought along from a provider's other calendars; each import replaces those of its source
    "busy_times",
    metadata,
    Column("source_id", Id, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("provider_id", Id, ForeignKey("providers.id"), nullable=False),
    Column("start", UtcDateTime, nullable=False),
    Column("end", UtcDateTime, nullable=False),
    Index(None, "provider_id", "end"),
)

bookings = Table(
    "bookings",
    metadata,
    Column("id", Id, primary_key=True),
    Column("status", Code, nullable=False),
    Column("version", Integer, nullable=False),
    Column("kind", Code, nullable=False),
    Column("service_id", Id, ForeignKey("services.id"), nullable=False),
    Column("zone_id", Id, ForeignKey("zones.id"), nullable=False),
    Column("customer_id", Id, ForeignKey("users.id"), nullable=False),
    Column("provider_id", Id, ForeignKey("providers.id")),
    Column("organisation_id", Id),
    Column("lat", Double, nullable=False),
    Column("lon", Double, nullable=False),
    Column("address", String(500)),
    Column("start", UtcDateTime),
    Column("end", UtcDateTime),
    Column("notes", Text),
    Column("price_minor", Integer, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("wave", Integer, nullable=False),
    Column("dispatch_started_at", UtcDateTime),
    Column("assigned_at", UtcDateTime),
    Column("arrived_at", UtcDateTime),
    Column("completed_at", UtcDateTime),
    Column("sla", JsonText, nullable=False),
    Column("sla_due_at", UtcDateTime, index=True),  # the soonest deadline that can still be missed
    Column("sla_breached", Integer, nullable=False),  # clocks that were
    *_audit(),
    Index(None, "customer_id", "id"),
    Index(None, "provider_id", "status"),
    Index(None, "provider_id", "end"),
    Index(None, "status", "id"),
    Index(None, "zone_id", "status"),
    Index(None, "zone_id", "assigned_at"),
)

sla_policies = Table(  # ``*`` in place of an id: every service, every zone
    "sla_policies",
    metadata,
    Column("service_id", Id, primary_key=True),
    Column("zone_id", Id, primary_key=True),
    Column("response_seconds", Integer),
    Column("arrival_seconds", Integer),
    Column("grace_seconds", Integer),
    Column("completion_seconds", Integer),
    Column("version", Integer, nullable=False),
    *_audit(),
)

booking_declines = Table(  # who must not be asked again for a booking: declined, or withdrew from it
    "booking_declines",
    metadata,
    Column("booking_id", Id, ForeignKey("bookings.id"), primary_key=True),
    Column("provider_id", Id, ForeignKey("providers.id"), primary_key=True),
    *_audit(),
)

series = Table(
    "series",
    metadata,
    Column("id", Id, primary_key=True),
    Column("status", Code, nullable=False),
    Column("version", Integer, nullable=False),
    Column("customer_id", Id, ForeignKey("users.id"), nullable=False),
    Column("service_id", Id, ForeignKey("services.id"), nullable=False),
    Column("zone_id", Id, ForeignKey("zones.id"), nullable=False),
    Column("provider_id", Id, ForeignKey("providers.id")),
    Column("lat", Double, nullable=False),
    Column("lon", Double, nullable=False),
    Column("address", String(500)),
    Column("notes", Text),
    Column("recurrence", JsonText, nullable=False),  # as on the wire, see domain.recurrence
    Column("ends_before", UtcDateTime),
    Column("follows", Id),
    *_audit(),
    Index(None, "customer_id", "status"),
)

series_instances = Table(  # an occurrence that was made, skipped or called off: the key makes it happen once
    "series_instances",
    metadata,
    Column("series_id", Id, ForeignKey("series.id"), primary_key=True),
    Column("recurrence_id", UtcDateTime, primary_key=True),
    Column("status", Code, nullable=False),
    Column("booking_id", Id, ForeignKey("bookings.id")),
    Column("reason", String(64)),
    *_audit(),
)

offers = Table(
    "offers",
    metadata,
    Column("id", Id, primary_key=True),
    Column("booking_id", Id, ForeignKey("bookings.id"), nullable=False),
    Column("provider_id", Id, ForeignKey("providers.id"), nullable=False),
    Column("organisation_id", Id, nullable=False),
    Column("wave", Integer, nullable=False),
    Column("status", Code, nullable=False),
    Column("rank", Double, nullable=False),
    Column("rank_parts", JsonText, nullable=False),
    Column("eta_seconds", Integer),
    Column("payout_minor", Integer, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("sent_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("delivered_at", UtcDateTime),
    Column("closed_at", UtcDateTime),
    Column("reason", String(200)),
    *_audit(),
    Index(None, "booking_id", "status"),
    Index(None, "provider_id", "status"),
)

messages = Table(
    "messages",
    metadata,
    Column("conversation_id", Id, primary_key=True),
    Column("offset", Integer, primary_key=True, autoincrement=False),
    Column("id", Id, nullable=False, unique=True),
    Column("sender_id", Id, nullable=False),
    Column("sender_name", Name, nullable=False),
    Column("text", Text, nullable=False),
    Column("sent_at", UtcDateTime, nullable=False),
    *_audit(),
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", Id, primary_key=True),  # the booking's id: one conversation per booking
    Column("last_offset", Integer, nullable=False),
    *_audit(),
)

read_marks = Table(
    "read_marks",
    metadata,
    Column("conversation_id", Id, primary_key=True),
    Column("user_id", Id, primary_key=True),
    Column("read_offset", Integer, nullable=False),
)

# --- notifications ----------------------------------------------------------------------------------------------------

notifications = Table(
    "notifications",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    Column("category", Code, nullable=False),
    Column("subject", String(160), nullable=False),
    Column("thread", String(160), nullable=False),
    Column("title", Name, nullable=False),
    Column("text", String(500), nullable=False),
    Column("data", JsonText, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("ended_reason", Code),
    Column("version", Integer, nullable=False),
    *_audit(),
    UniqueConstraint("user_id", "subject"),
    Index(None, "user_id", "thread"),
    Index(None, "created_at"),
)

deliveries = Table(  # one per notification and medium: nobody gets two
    "deliveries",
    metadata,
    Column("notification_id", Id, ForeignKey("notifications.id"), primary_key=True),
    Column("medium", Code, primary_key=True),
    Column("status", Code, nullable=False),
    Column("due_at", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("carrier", Code),
    Column("reference", String(200)),  # the carrier's own id
    Column("reason", String(200)),
    *_audit(),
    Index(None, "status", "due_at"),
    Index(None, "carrier", "reference"),
)

notification_preferences = Table(
    "notification_preferences",
    metadata,
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True),
    Column("time_zone", String(64), nullable=False),
    Column("language", String(16), nullable=False),
    Column("quiet_from", String(5)),  # local times
    Column("quiet_until", String(5)),
    Column("off", JsonText, nullable=False),
    Column("version", Integer, nullable=False),
    *_audit(),
)

push_tokens = Table(
    "push_tokens",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False, index=True),
    Column("session_id", Id, nullable=False),
    Column("platform", Code, nullable=False),
    Column("token", Text, nullable=False),
    *_audit(),
)

heard_marks = Table(  # the newest message that a socket of the person has acked; kept only where people are reached
    "heard_marks",
    metadata,
    Column("conversation_id", Id, primary_key=True),
    Column("user_id", Id, primary_key=True),
    Column("heard_offset", Integer, nullable=False),
)

# --- commands, timers, events -----------------------------------------------------------------------------------------

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("user_id", Id, primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("fingerprint", String(64), nullable=False),  # SHA-256 of method and canonical params
    Column("result", JsonText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False, index=True),
)

timers = Table(
    "timers",
    metadata,
    Column("name", String(160), primary_key=True),
    Column("kind", Code, nullable=False),
    Column("due_at", UtcDateTime, nullable=False, index=True),
    Column("data", JsonText, nullable=False),
    Column("attempts", Integer, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigKey, primary_key=True, autoincrement=True),
    Column("partition", Integer, nullable=False, index=True),
    Column("event_id", Id, nullable=False),
    Column("type", String(64), nullable=False),
    Column("source", String(160), nullable=False),
    Column("time", UtcDateTime, nullable=False),
    Column("event_class", Code, nullable=False),
    Column("key", String(160)),
    Column("audience", JsonText, nullable=False),
    Column("data", JsonText, nullable=False),
    Column("correlation_id", String(64), nullable=False),
    Column("traceparent", String(64)),
    sqlite_autoincrement=True,  # ids of deleted rows are never given again, so order by id stays commit order
)

outbox_parked = Table(  # poison rows: what no channel could take, kept with the reason for an operator
    "outbox_parked",
    metadata,
    Column("id", BigKey, primary_key=True, autoincrement=False),
    Column("row", JsonText, nullable=False),
    Column("error", Text, nullable=False),
    Column("parked_at", UtcDateTime, nullable=False),
)

channel_heads = Table(
    "channel_heads",
    metadata,
    Column("channel", String(160), primary_key=True),
    Column("epoch", String(16), nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("floor", BigInteger, nullable=False),  # entries up to and including this offset were pruned
)

log = Table(
    "log",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("channel", String(160), nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("event_class", Code, nullable=False),
    Column("key", String(160)),
    Column("frame", Frame, nullable=False),
    Column("written_at", UtcDateTime, nullable=False, index=True),
    UniqueConstraint("channel", "offset"),
)

log_seed = Table(  # one row, random, made once: a channel's epoch is derived from it
    "log_seed",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seed", String(32), nullable=False),
)

log_cursors = Table(  # the newest sequence of each partition; locked by its sequencer while it writes
    "log_cursors",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
    Column("fence", BigInteger, nullable=False),  # newest lease token seen: an older sequencer is refused
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", Id, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)

export_cursors = Table(  # how far the log has been told to another system; fenced as log_cursors
    "export_cursors",
    metadata,
    Column("target", Code, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("event_id", Id, nullable=False),  # the newest event told: its entries on other channels come next
    Column("fence", BigInteger, nullable=False),
)

export_held = Table(  # what another system did not take, and what waits behind it; with dead_at: a dead letter
    "export_held",
    metadata,
    Column("target", Code, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("source", String(160), nullable=False),
    Column("event", Frame, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at", UtcDateTime, nullable=False),
    Column("error", String(200)),
    Column("dead_at", UtcDateTime),
    Index(None, "target", "source", "dead_at"),
)

WITHOUT_AUDIT = {
    "sessions": "a sign-in belongs to its user, who alone uses it; it has times of its own",
    "refresh_tokens": "as sessions",
    "signing_keys": "made by the system",
    "zone_generation": "a counter of the system",
    "zone_figures": "counted from other rows, again and again",
    "busy_times": "copies of what is elsewhere; their source says who brought them along",
    "provider_sockets": "nodes' claims, renewed all the time and gone with the socket",
    "read_marks": "the key says whose it is; nobody else moves it",
    "heard_marks": "as read_marks",
    "idempotency_keys": "a command's memory, kept for a day",
    "timers": "work of the system",
    "outbox": "on its way into the log",
    "outbox_parked": "as outbox; has its time",
    "channel_heads": "the log's own",
    "log": "the log's own; a frame says when and by what it came about",
    "log_seed": "the log's own",
    "log_cursors": "the log's own",
    "leases": "nodes' claims",
    "export_cursors": "the log's own",
    "export_held": "the log's own; an event says when and by what it came about",
    "data_keys": "made by the system",
    "factors": "the key says whose they are, who alone changes them; they have times of their own",
    "recovery_codes": "as factors",
    "code_guards": "as factors",
    "challenges": "one step of somebody's sign-in; they have times of their own",
    "devices": "as factors",
    "federated_identities": "says itself whose it is and since when; never changed",
    "audit_log": "says itself who did what and when; never changed",
    "audit_head": "the audit log's own",
}
"""Tables that are not facts of the business, and why."""

for _table in metadata.tables.values():
    # Whatever the server's defaults: ids, keys and channel names tell upper from lower case, as SQLite does by itself.
    _table.dialect_kwargs.update(mysql_engine="InnoDB", mysql_charset="utf8mb4", mysql_collate="utf8mb4_bin")
