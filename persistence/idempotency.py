"""Idempotency keys: the result of a command, stored in the command's transaction under the caller's key.

A retry finds the result. A retry that runs *beside* the first attempt ends in one of two ways. Its own insert meets the
first one's row: the whole transaction starts over and finds the result. Or the rules refuse it because the first
attempt has won already ("another provider has taken this job"): :meth:`SqlIdempotencyKeys.once` looks again before it
lets a refusal out, and by then the first attempt is committed, since its locks are what the second waited for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.errors import FixnadoError, KeyReused
from domain.types import JSON
from persistence.database import Database, RetryTransaction
from persistence.race import start_over_if_taken
from persistence.tables import idempotency_keys

_FIND = select(idempotency_keys.c.fingerprint, idempotency_keys.c.result).where(
    idempotency_keys.c.user_id == bindparam("user"), idempotency_keys.c.key == bindparam("caller_key")
)
_STORE = insert(idempotency_keys)
_OLD = (
    select(idempotency_keys.c.user_id.label("user"), idempotency_keys.c.key.label("caller_key"))
    .where(idempotency_keys.c.created_at <= bindparam("before"))
    .order_by(idempotency_keys.c.created_at)
    .limit(bindparam("most"))
)
_REMOVE = delete(idempotency_keys).where(
    idempotency_keys.c.user_id == bindparam("user"), idempotency_keys.c.key == bindparam("caller_key")
)


class SqlIdempotencyKeys:
    """The stored results, within one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def find(self, user_id: str, key: str) -> tuple[str, JSON] | None:
        """The fingerprint and the result stored under a person's key, if any."""
        row = (await self._connection.execute(_FIND, {"user": user_id, "caller_key": key})).one_or_none()
        return None if row is None else (row.fingerprint, row.result)

    async def store(self, user_id: str, key: str, fingerprint: str, result: JSON, now: datetime) -> None:
        """Keep a result, to be seen if and only if this transaction commits.

        Raises:
            RetryTransaction: a concurrent transaction has stored under this key. Let it through: the whole transaction
                starts over and finds that one.
        """
        row = {"user_id": user_id, "key": key, "fingerprint": fingerprint, "result": result, "created_at": now}
        with start_over_if_taken(f"key {key} of {user_id}"):
            await self._connection.execute(_STORE, row)

    async def once(
        self, user_id: str, key: str, fingerprint: str, now: datetime, work: Callable[[], Awaitable[JSON]]
    ) -> JSON:
        """Do the work and keep its result, or return what an earlier attempt with this key has kept.

        Args:
            fingerprint: SHA-256 of method and canonical params, in hex.

        Raises:
            KeyReused: the key was used with another fingerprint.
            FixnadoError: what the work refuses; refusals are not kept, so a retry is judged anew.
        """
        stored = await self._checked(user_id, key, fingerprint)
        if stored is not None:
            return stored
        try:
            result = await work()
        except FixnadoError:
            stored = await self._checked(user_id, key, fingerprint)
            if stored is None:
                raise
            # What the work changed before it was refused must not be committed with this answer.
            raise RetryTransaction("another attempt with this key has won") from None
        await self.store(user_id, key, fingerprint, result, now)
        return result

    async def _checked(self, user_id: str, key: str, fingerprint: str) -> JSON | None:
        found = await self.find(user_id, key)
        if found is None:
            return None
        if found[0] != fingerprint:
            raise KeyReused
        return found[1]


async def prune_keys(database: Database, before: datetime, batch_rows: int = 200) -> int:
    """Remove keys stored up to a moment, at most ``batch_rows`` of them.

    Returns:
        How many went; call again while it is not 0.
    """

    async def work(connection: AsyncConnection) -> int:
        old = (await connection.execute(_OLD, {"before": before, "most": batch_rows})).all()
        if old:
            # One by one, by primary key: a DELETE over a range may scan, and wait for commands that are under way.
            await connection.execute(_REMOVE, [{"user": row.user, "caller_key": row.caller_key} for row in old])
        return len(old)

    return await database.write(work)
