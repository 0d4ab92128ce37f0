"""Where signing keys are kept, sealed: the newest that may sign does, the others verify until their deadline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import Database, database_now
from persistence.resealing import SIGNING_KEY
from persistence.tables import signing_keys
from persistence.vault import DatabaseVault


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A private key.

    Attributes:
        sealed: opened by :func:`open_key`.
        signs_from: it verifies at once, and signs from then on: by then every node knows it.
        retires_at: until when it verifies; ``None`` for the one that signs, or is about to.
    """

    kid: str
    sealed: str = field(repr=False)
    signs_from: datetime
    retires_at: datetime | None


async def read_keys(database: Database) -> tuple[Sequence[StoredKey], datetime]:
    """The keys that still verify, the one that signs last first; and the database's time."""

    async def work(connection: AsyncConnection) -> tuple[list[StoredKey], datetime]:
        now = await database_now(connection)
        rows = await connection.execute(select(signing_keys).order_by(signing_keys.c.signs_from.desc()))
        keys = [StoredKey(row.kid, row.private_pem, row.signs_from, row.retires_at) for row in rows]
        return [key for key in keys if key.retires_at is None or key.retires_at > now], now

    return await database.read(work)


async def open_key(vault: DatabaseVault, key: StoredKey) -> bytes:
    """The key as PEM.

    Raises:
        Unavailable: the master key is away.
    """
    return await vault.open(key.sealed, owner=key.kid, purpose=SIGNING_KEY)


async def add_key(
    database: Database,
    vault: DatabaseVault,
    kid: str,
    pem: bytes,
    *,
    announce_seconds: float = 0.0,
    old_keys_seconds: float = 0.0,
) -> datetime:
    """Adds a key; returns since when it signs.

    Args:
        announce_seconds: it signs so long after now.
        old_keys_seconds: the keys before it verify so long after it has begun to sign, and no longer.
    """
    sealed = await vault.seal(pem, owner=kid, purpose=SIGNING_KEY)

    async def work(connection: AsyncConnection) -> datetime:
        now = await database_now(connection)
        signs_from = now + timedelta(seconds=announce_seconds)
        retires_at = signs_from + timedelta(seconds=old_keys_seconds)
        kids = await connection.execute(select(signing_keys.c.kid).where(signing_keys.c.retires_at.is_(None)))
        for old in sorted(kids.scalars()):
            await connection.execute(
                update(signing_keys).where(signing_keys.c.kid == old).values(retires_at=retires_at)
            )
        row = {"kid": kid, "private_pem": sealed, "created_at": now, "signs_from": signs_from}
        await connection.execute(insert(signing_keys), row)
        return signs_from

    return await database.write(work)
