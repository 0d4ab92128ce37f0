"""Rows that two transactions may make at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Table, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import RetryTransaction
from persistence.driver_errors import Trouble, trouble_of


async def insert_or_retry(connection: AsyncConnection, table: Table, row: Mapping[str, Any]) -> None:
    """Adds a row; when another transaction added it meanwhile, the whole transaction starts over and finds it."""
    try:
        await connection.execute(insert(table), dict(row))
    except IntegrityError as error:
        if trouble_of(error) is Trouble.DUPLICATE:
            raise RetryTransaction(f"somebody else added the row of {table.name}") from error
        raise
