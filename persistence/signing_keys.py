"""Where signing keys are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import Database, database_now
from persistence.tables import signing_keys


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A private key and until when it still verifies; ``None`` for the one that signs."""

    kid: str
    private_pem: str = field(repr=False)
    retires_at: datetime | None


async def read_keys(database: Database) -> Sequence[StoredKey]:
    """Every key, newest first."""

    async def work(connection: AsyncConnection) -> list[StoredKey]:
        rows = await connection.execute(select(signing_keys).order_by(signing_keys.c.created_at.desc()))
        return [StoredKey(row.kid, row.private_pem, row.retires_at) for row in rows]

    return await database.read(work)


async def add_key(database: Database, kid: str, private_pem: str) -> None:
    """Adds a key that signs from now on."""

    async def work(connection: AsyncConnection) -> None:
        now = await database_now(connection)
        await connection.execute(insert(signing_keys), {"kid": kid, "private_pem": private_pem, "created_at": now})

    await database.write(work)
