"""What every room's tables are made of: the one metadata, and the types of their columns."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import BigInteger, Column, Dialect, Integer, LargeBinary, MetaData, String, Text, TypeDecorator
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
LongText = Text().with_variant(LONGTEXT(), "mysql", "mariadb")
Frame = LargeBinary().with_variant(LONGBLOB(), "mysql", "mariadb")
BigKey = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite auto-increments only a column declared INTEGER."""


def audit() -> tuple[Column[Any], ...]:
    """Who made a business row and who changed it last; ids of users, or ``system``."""
    return (
        Column("created_at", UtcDateTime, nullable=False),
        Column("created_by", Id, nullable=False),
        Column("updated_at", UtcDateTime, nullable=False),
        Column("updated_by", Id, nullable=False),
    )
