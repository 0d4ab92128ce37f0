"""Leases with fencing tokens: who may do what only one may do, for a while.

All times are the database's, so a node whose own clock is wrong neither steals a lease nor keeps one. A token grows
with every acquisition. A holder that was stopped (a long pause, a cut network) may wake up believing in its lease; so
what it writes must carry the token, and the store must refuse an older one than it has seen (Kleppmann, "How to do
distributed locking", 2016). The lease keeps the peace; the token keeps the data right.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import Database, utc_now
from persistence.race import start_over_if_taken
from persistence.tables import leases

_LOCK = {
    dialect: select(leases.c.holder, leases.c.token, leases.c.expires_at, utc_now(dialect).label("now"))
    .where(leases.c.name == bindparam("lease"))
    .with_for_update()
    for dialect in ("sqlite", "mysql")
}
_NOW = {dialect: select(utc_now(dialect)) for dialect in ("sqlite", "mysql")}
_FIRST = insert(leases)
_TAKE = (
    update(leases)
    .where(leases.c.name == bindparam("lease"))
    .values(holder=bindparam("taker"), token=bindparam("fence"), expires_at=bindparam("until"))
)
_MOVE = (
    update(leases)
    .where(leases.c.name == bindparam("lease"), leases.c.token == bindparam("fence"))
    .values(expires_at=bindparam("until"))
)


_HELD = {
    dialect: select(leases.c.name, leases.c.holder)
    .where(leases.c.expires_at > utc_now(dialect))
    .order_by(leases.c.name)
    for dialect in ("sqlite", "mysql")
}


class Leases:
    """The leases of one database. Every method is one transaction of its own and may raise ``Unavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def acquire(self, name: str, holder: str, ttl_seconds: float) -> int | None:
        """Take a lease that is free, has run out, or is the holder's own.

        A holder that comes back under the same name (a restart) gets it at once, with a new token, which fences off
        what is left of its former self. Others wait until it has run out.

        Returns:
            The fencing token, or ``None`` while somebody else holds the lease.
        """

        async def work(connection: AsyncConnection) -> int | None:
            row = (await connection.execute(_LOCK[self._database.dialect], {"lease": name})).one_or_none()
            if row is None:
                now = (await connection.execute(_NOW[self._database.dialect])).scalar_one()
                first = {"name": name, "holder": holder, "token": 1, "expires_at": now + timedelta(seconds=ttl_seconds)}
                with start_over_if_taken(f"lease {name}"):
                    await connection.execute(_FIRST, first)
                return 1
            if row.holder != holder and row.expires_at > row.now:
                return None
            token: int = row.token + 1
            until = row.now + timedelta(seconds=ttl_seconds)
            await connection.execute(_TAKE, {"lease": name, "taker": holder, "fence": token, "until": until})
            return token

        return await self._database.write(work, urgent=True)

    async def renew(self, name: str, token: int, ttl_seconds: float) -> bool:
        """Prolong a lease; ``False`` when it has run out or has another token, and is lost."""

        async def work(connection: AsyncConnection) -> bool:
            row = (await connection.execute(_LOCK[self._database.dialect], {"lease": name})).one_or_none()
            if row is None or row.token != token or row.expires_at <= row.now:
                return False
            until = row.now + timedelta(seconds=ttl_seconds)
            await connection.execute(_MOVE, {"lease": name, "fence": token, "until": until})
            return True

        return await self._database.write(work, urgent=True)

    async def release(self, name: str, token: int) -> None:
        """Let a lease run out now, if it is still this token's, so that the next holder need not wait."""

        async def work(connection: AsyncConnection) -> None:
            now = (await connection.execute(_NOW[self._database.dialect])).scalar_one()
            await connection.execute(_MOVE, {"lease": name, "fence": token, "until": now})

        await self._database.write(work)

    async def held(self) -> Mapping[str, str]:
        """The holder of each lease that has not run out."""

        async def work(connection: AsyncConnection) -> Mapping[str, str]:
            return {row.name: row.holder for row in await connection.execute(_HELD[self._database.dialect])}

        return await self._database.read(work)
