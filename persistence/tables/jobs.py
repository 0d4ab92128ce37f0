"""Bookings, alone and in series, their deadlines, and offers of them."""

from __future__ import annotations

from sqlalchemy import Column, Double, ForeignKey, Index, Integer, String, Table, Text

from persistence.tables.columns import Code, Id, JsonText, UtcDateTime, audit, metadata

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
    *audit(),
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
    *audit(),
)

booking_declines = Table(  # who must not be asked again for a booking: declined, or withdrew from it
    "booking_declines",
    metadata,
    Column("booking_id", Id, ForeignKey("bookings.id"), primary_key=True),
    Column("provider_id", Id, ForeignKey("providers.id"), primary_key=True),
    *audit(),
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
    *audit(),
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
    *audit(),
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
    *audit(),
    Index(None, "booking_id", "status"),
    Index(None, "provider_id", "status"),
)
