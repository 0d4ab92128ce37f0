"""Deleting a batch of rows by number without meeting anybody else's rows.

``DELETE … WHERE id IN (…)`` looks innocent. On a small table MySQL and MariaDB scan it all for that, and in a DELETE
the scan waits for every row that another transaction has inserted and not yet committed: one slow writer stops the
sequencer. (Seen with 30 ids on MariaDB 10.11, whatever index was forced.) Joining from the list forces one lookup per
row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection


class BatchDelete:
    """A statement that deletes the rows of a table whose ``column`` is one of some numbers.

    Args:
        fixed: a column that further narrows the primary key, given with each call.
    """

    def __init__(self, table: str, column: str, fixed: str | None = None) -> None:
        narrowed = f" AND {table}.{fixed} = :fixed" if fixed else ""
        quoted = f" AND {table}.`{fixed}` = :fixed" if fixed else ""
        # The names are constants of this room, never input.
        self._statements: Mapping[str, TextClause] = {
            "sqlite": text(
                f"DELETE FROM {table}"  # noqa: S608
                f" WHERE {table}.{column} IN (SELECT value FROM json_each(:numbers)){narrowed}"
            ),
            "mysql": text(
                f"DELETE {table}"
                " FROM JSON_TABLE(:numbers, '$[*]' COLUMNS (number BIGINT PATH '$')) AS listed"
                f" STRAIGHT_JOIN {table} ON {table}.{column} = listed.number{quoted}"
            ),
        }

    async def __call__(self, connection: AsyncConnection, numbers: Sequence[int], fixed: int | None = None) -> None:
        parameters: dict[str, Any] = {"numbers": orjson.dumps(list(numbers)).decode()}
        if fixed is not None:
            parameters["fixed"] = fixed
        await connection.execute(self._statements[connection.dialect.name], parameters)
