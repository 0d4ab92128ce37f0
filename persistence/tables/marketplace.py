"""Services, zones, providers and what they offer where."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, ForeignKey, Integer, String, Table

from persistence.tables.columns import Code, Id, JsonText, Name, UtcDateTime, audit, metadata

services = Table(
    "services",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Name, nullable=False),
    Column("price_minor", Integer, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("duration_minutes", Integer, nullable=False),
    *audit(),
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
    *audit(),
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
    *audit(),
)

provider_skills = Table(
    "provider_skills",
    metadata,
    Column("provider_id", Id, ForeignKey("providers.id"), primary_key=True),
    Column("service_id", Id, ForeignKey("services.id"), primary_key=True, index=True),
    *audit(),
)

provider_zones = Table(
    "provider_zones",
    metadata,
    Column("provider_id", Id, ForeignKey("providers.id"), primary_key=True),
    Column("zone_id", Id, ForeignKey("zones.id"), primary_key=True, index=True),
    *audit(),
)

provider_sockets = Table(  # which nodes hold sockets of a provider; a node that died stops renewing
    "provider_sockets",
    metadata,
    Column("provider_id", Id, primary_key=True),
    Column("node_id", Id, primary_key=True, index=True),
    Column("expires_at", UtcDateTime, nullable=False),
)
