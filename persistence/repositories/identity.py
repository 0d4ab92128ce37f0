"""Second factors, challenges and known devices. Rows are found by primary key, so that locks touch what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import ColumnElement, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.factors import Challenge, CodeGuard, Factor, FactorKind, KnownDevice, Purpose
from persistence.database import Database
from persistence.tables import challenges, code_guards, devices, factors, recovery_codes, refresh_tokens
from persistence.unit_of_work import UnitOfWork


class SqlFactors:
    """See :class:`domain.ports.Factors`."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._connection = unit.connection

    async def of(self, user_id: str) -> Sequence[Factor]:
        query = select(factors).where(factors.c.user_id == user_id).order_by(factors.c.kind)
        rows = (await self._connection.execute(query)).mappings()
        return [Factor(**{**row, "kind": FactorKind(row["kind"])}) for row in rows]

    async def put(self, factor: Factor) -> None:
        await self._connection.execute(delete(factors).where(_is(factor.user_id, factor.kind)))
        await self._connection.execute(insert(factors), asdict(factor))

    async def confirm(self, user_id: str, kind: FactorKind, confirmed_at: datetime) -> None:
        await self._connection.execute(update(factors).where(_is(user_id, kind)).values(confirmed_at=confirmed_at))

    async def remove_all(self, user_id: str) -> None:
        for table in (factors, recovery_codes):
            await self._connection.execute(delete(table).where(table.c.user_id == user_id))

    async def use_step(self, user_id: str, step: int) -> bool:
        newer = update(factors).where(_is(user_id, FactorKind.TOTP), factors.c.last_step < step).values(last_step=step)
        return (await self._connection.execute(newer)).rowcount == 1

    async def replace_recovery_codes(self, user_id: str, code_hashes: Sequence[str]) -> None:
        await self._connection.execute(delete(recovery_codes).where(recovery_codes.c.user_id == user_id))
        rows = [{"user_id": user_id, "code_hash": code_hash} for code_hash in code_hashes]
        await self._connection.execute(insert(recovery_codes), rows)

    async def use_recovery_code(self, user_id: str, code_hash: str, now: datetime) -> bool:
        this = (recovery_codes.c.user_id == user_id) & (recovery_codes.c.code_hash == code_hash)
        unused = update(recovery_codes).where(this, recovery_codes.c.used_at.is_(None)).values(used_at=now)
        return (await self._connection.execute(unused)).rowcount == 1

    async def recovery_codes_left(self, user_id: str) -> int:
        left = (recovery_codes.c.user_id == user_id) & recovery_codes.c.used_at.is_(None)
        query = select(func.count()).select_from(recovery_codes).where(left)
        return int((await self._connection.execute(query)).scalar_one())

    async def guard(self, user_id: str, *, lock: bool) -> CodeGuard:
        query = select(code_guards).where(code_guards.c.user_id == user_id)
        row = (await self._connection.execute(query.with_for_update() if lock else query)).mappings().one_or_none()
        if row is not None:
            return CodeGuard(**row)
        guard = CodeGuard(user_id)
        if lock:
            # Codes of one person are judged under the lock of the person's row, so nobody else inserts it meanwhile.
            await self._connection.execute(insert(code_guards), asdict(guard))
        return guard

    async def save_guard(self, guard: CodeGuard) -> None:
        values = {"failures": guard.failures, "next_at": guard.next_at}
        await self._connection.execute(update(code_guards).where(code_guards.c.user_id == guard.user_id).values(values))


class SqlChallenges:
    """See :class:`domain.ports.Challenges`."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._connection = unit.connection

    async def add(self, challenge: Challenge) -> None:
        await self._connection.execute(insert(challenges), asdict(challenge))

    async def get(self, token_hash: str) -> Challenge | None:
        return await self._one(token_hash, lock=False)

    async def lock(self, token_hash: str) -> Challenge | None:
        return await self._one(token_hash, lock=True)

    async def save(self, challenge: Challenge) -> None:
        values = {
            "data": challenge.data,
            "code_hash": challenge.code_hash,
            "attempts": challenge.attempts,
            "used_at": challenge.used_at,
        }
        this = challenges.c.token_hash == challenge.token_hash
        await self._connection.execute(update(challenges).where(this).values(values))

    async def end_all(self, user_id: str, now: datetime) -> None:
        query = select(challenges.c.token_hash).where(challenges.c.user_id == user_id, challenges.c.used_at.is_(None))
        # One by one in a fixed order, by primary key: an update over a secondary index locks more than it changes.
        for token_hash in sorted((await self._connection.execute(query)).scalars()):
            this = (challenges.c.token_hash == token_hash) & challenges.c.used_at.is_(None)
            await self._connection.execute(update(challenges).where(this).values(used_at=now))

    async def _one(self, token_hash: str, *, lock: bool) -> Challenge | None:
        query = select(challenges).where(challenges.c.token_hash == token_hash)
        row = (await self._connection.execute(query.with_for_update() if lock else query)).mappings().one_or_none()
        return None if row is None else Challenge(**{**row, "purpose": Purpose(row["purpose"])})


class SqlDevices:
    """See :class:`domain.ports.Devices`."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._connection = unit.connection

    async def find(self, user_id: str, key: str) -> KnownDevice | None:
        return await self._one((devices.c.user_id == user_id) & (devices.c.key == key))

    async def get(self, device_id: str) -> KnownDevice | None:
        return await self._one(devices.c.id == device_id)

    async def of(self, user_id: str) -> Sequence[KnownDevice]:
        query = select(devices).where(devices.c.user_id == user_id).order_by(devices.c.last_seen_at.desc())
        return [KnownDevice(**row) for row in (await self._connection.execute(query)).mappings()]

    async def put(self, device: KnownDevice) -> None:
        this = devices.c.id == device.id
        if await self._one(this) is None:
            await self._connection.execute(insert(devices), asdict(device))
        else:
            await self._connection.execute(update(devices).where(this).values(asdict(device)))

    async def remove(self, device_id: str) -> None:
        await self._connection.execute(delete(devices).where(devices.c.id == device_id))

    async def _one(self, where: ColumnElement[bool]) -> KnownDevice | None:
        row = (await self._connection.execute(select(devices).where(where))).mappings().one_or_none()
        return None if row is None else KnownDevice(**row)


async def prune_challenges(database: Database, before: datetime, limit: int = 500) -> int:
    """Removes challenges that ended before then, at most so many; returns how many."""
    query = select(challenges.c.token_hash).where(challenges.c.expires_at < before).limit(limit)

    async def work(connection: AsyncConnection) -> int:
        hashes = sorted((await connection.execute(query)).scalars())
        for token_hash in hashes:
            await connection.execute(delete(challenges).where(challenges.c.token_hash == token_hash))
        return len(hashes)

    return await database.write(work)


async def prune_refresh_tokens(database: Database, before: datetime, limit: int = 500) -> int:
    """Removes refresh tokens that ended before then, at most so many; returns how many.

    One that has ended is refused whether its row is there or not. The family's own row stays, and so do the used tokens
    of its last weeks, by which a second use is noticed.
    """
    query = select(refresh_tokens.c.token_hash).where(refresh_tokens.c.expires_at < before).limit(limit)

    async def work(connection: AsyncConnection) -> int:
        hashes = sorted((await connection.execute(query)).scalars())
        if hashes:
            # One by one, by primary key: a delete over a range would wait for people who sign in meanwhile.
            this = delete(refresh_tokens).where(refresh_tokens.c.token_hash == bindparam("ended"))
            await connection.execute(this, [{"ended": token_hash} for token_hash in hashes])
        return len(hashes)

    return await database.write(work)


def _is(user_id: str, kind: FactorKind) -> ColumnElement[bool]:
    return (factors.c.user_id == user_id) & (factors.c.kind == kind.value)
