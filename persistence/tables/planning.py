"""Providers' calendars: rules, exceptions, holds, and what goes in and out."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, Integer, String, Table, UniqueConstraint

from persistence.tables.columns import Code, Id, JsonText, LongText, UtcDateTime, audit, metadata

calendars = Table(
    "calendars",
    metadata,
    Column("provider_id", Id, ForeignKey("providers.id"), primary_key=True),
    Column("organisation_id", Id, nullable=False),
    Column("rules", JsonText, nullable=False),  # as on the wire, see domain.recurrence
    Column("travel_buffer_minutes", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    *audit(),
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
    *audit(),
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
    *audit(),
    Index(None, "provider_id", "end"),
)

calendar_feeds = Table(
    "calendar_feeds",
    metadata,
    Column("provider_id", Id, ForeignKey("providers.id"), primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True),
    Column("token_hash", String(64), nullable=False, unique=True),
    *audit(),
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
    Column("text", LongText),  # of a file, what in it says when
    Column("times", Integer, nullable=False),
    Column("skipped", Integer, nullable=False),
    Column("problem", String(64)),
    Column("fetched_at", UtcDateTime),
    Column("next_fetch_at", UtcDateTime, index=True),
    *audit(),
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
