"""Feature flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, insert, select, update

from domain.flags import Flag, FlagSource, FlagState
from persistence.race import start_over_if_taken
from persistence.repositories.audit import created, updated
from persistence.tables import flags
from persistence.unit_of_work import UnitOfWork


class SqlFlags:
    """See :class:`domain.ports.Flags`."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit
        self._connection = unit.connection

    async def all(self) -> Sequence[Flag]:
        return [_flag(row) for row in await self._connection.execute(select(flags).order_by(flags.c.name))]

    async def lock(self, name: str) -> Flag | None:
        query = select(flags).where(flags.c.name == name).with_for_update()
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _flag(row)

    async def add(self, flag: Flag) -> None:
        with start_over_if_taken(f"flag {flag.name}"):
            await self._connection.execute(insert(flags), {"name": flag.name} | _columns(flag) | created(self._unit))

    async def save(self, flag: Flag) -> None:
        await self._connection.execute(
            update(flags).where(flags.c.name == flag.name).values(**_columns(flag), **updated(self._unit))
        )


def _columns(flag: Flag) -> dict[str, Any]:
    return {
        "state": flag.state.value,
        "percentage": flag.percentage,
        "roles": sorted(flag.roles),
        "organisations": sorted(flag.organisations),
        "source": flag.source.value,
        "version": flag.version,
    }


def _flag(row: Row[Any]) -> Flag:
    return Flag(
        name=row.name,
        state=FlagState(row.state),
        percentage=row.percentage,
        roles=frozenset(row.roles),
        organisations=frozenset(row.organisations),
        source=FlagSource(row.source),
        version=row.version,
        updated_at=row.updated_at,
    )
