"""Moving stored secrets to a new data key, while nodes serve.

Each row is moved by itself, over the very text that was read: whoever changed it meanwhile wins, and a run that was
interrupted goes on where it stopped, because what is at the newest version is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Table, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import Database
from persistence.tables import factors, signing_keys
from persistence.vault import DatabaseVault, version_of

_BATCH = 100


@dataclass(frozen=True, slots=True)
class _Place:
    """A column of sealed texts: its key columns, and the owner and purpose of a row."""

    table: Table
    column: Column[Any]
    keys: tuple[Column[Any], ...]
    owner: Callable[[Any], str]
    purpose: Callable[[Any], str]


SIGNING_KEY = "signing_key"

PLACES = (
    _Place(
        factors,
        factors.c.secret,
        (factors.c.user_id, factors.c.kind),
        lambda row: str(row.user_id),
        lambda row: "mfa.totp" if row.kind == "totp" else "mfa.destination",
    ),
    _Place(
        signing_keys,
        signing_keys.c.private_pem,
        (signing_keys.c.kid,),
        lambda row: str(row.kid),
        lambda _: SIGNING_KEY,
    ),
)


@dataclass(frozen=True, slots=True)
class Resealed:
    """What a run did: ``version`` is where everything is now; ``new`` whether the run made it."""

    version: int
    moved: int
    new: bool


async def reseal(
    database: Database, vault: DatabaseVault, progress: Callable[[int, int], None] = lambda _done, _of: None
) -> Resealed:
    """Re-encrypts every stored secret under the newest data key: a new one, unless a run before this was interrupted.

    Args:
        progress: told how many of how many are done.

    Raises:
        Unavailable: the key service or the database is away; run it again.
    """
    newest = await vault.newest_version()
    old = await _older_than(database, newest)
    new = not old
    if new:
        newest = await vault.add_version()
        old = await _older_than(database, newest)
    progress(0, len(old))
    for done, (place, key) in enumerate(old, start=1):
        await _move(database, vault, place, key)
        progress(done, len(old))
    return Resealed(newest, len(old), new)


async def _older_than(database: Database, version: int) -> list[tuple[_Place, tuple[Any, ...]]]:
    found: list[tuple[_Place, tuple[Any, ...]]] = []
    for place in PLACES:
        after: tuple[Any, ...] | None = None
        while rows := await _page(database, place, after):
            after = _key(place, rows[-1])
            found += [(place, _key(place, row)) for row in rows if version_of(_text(place, row)) < version]
    return found


async def _page(database: Database, place: _Place, after: tuple[Any, ...] | None) -> Sequence[Any]:
    query = select(place.table).order_by(*place.keys).limit(_BATCH)
    if after is not None:
        query = query.where(_past(place.keys, after))

    async def work(connection: AsyncConnection) -> Sequence[Any]:
        return (await connection.execute(query)).all()

    return await database.read(work)


def _past(keys: Sequence[Column[Any]], after: Sequence[Any]) -> Any:
    # Spelt out: not every database uses its index for a comparison of tuples.
    first, *rest = keys
    past = first > after[0]
    return past | ((first == after[0]) & _past(rest, after[1:])) if rest else past


async def _move(database: Database, vault: DatabaseVault, place: _Place, key: tuple[Any, ...]) -> None:
    this = [column == value for column, value in zip(place.keys, key, strict=True)]

    async def look(connection: AsyncConnection) -> Any:
        return (await connection.execute(select(place.table).where(*this))).one_or_none()

    row = await database.read(look)
    if row is None:
        return
    old, owner, purpose = _text(place, row), place.owner(row), place.purpose(row)
    moved = await vault.seal(await vault.open(old, owner=owner, purpose=purpose), owner=owner, purpose=purpose)

    async def write(connection: AsyncConnection) -> None:
        await connection.execute(update(place.table).where(*this, place.column == old).values({place.column: moved}))

    await database.write(write)


def _key(place: _Place, row: Any) -> tuple[Any, ...]:
    return tuple(getattr(row, column.name) for column in place.keys)


def _text(place: _Place, row: Any) -> str:
    return str(getattr(row, place.column.name))
