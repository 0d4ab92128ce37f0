"""What a database driver's error means: the one table from (dialect, code) to a :class:`Trouble`.

Sources: MySQL 8.0 and MariaDB error references (server codes 1000–4999, client codes 2000–2999), and
https://www.sqlite.org/rescode.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError


class Trouble(StrEnum):
    """Why a statement failed, as far as a caller must tell causes apart.

    ``deadlock``: the server rolled the transaction back. ``lock_timeout``: only the statement failed; the transaction
    still holds its locks and must be rolled back. ``duplicate``: a unique constraint said no. ``lost``: the
    connection broke; what was not yet committed is gone, and a COMMIT under way has an unknown outcome.
    ``unavailable``: the database cannot serve now.
    """

    DEADLOCK = "deadlock"
    LOCK_TIMEOUT = "lock_timeout"
    DUPLICATE = "duplicate"
    LOST = "lost"
    UNAVAILABLE = "unavailable"


_MYSQL: Mapping[int, Trouble] = {
    1020: Trouble.DEADLOCK,  # MariaDB with innodb_snapshot_isolation: the record changed since it was read
    1213: Trouble.DEADLOCK,
    1205: Trouble.LOCK_TIMEOUT,
    3572: Trouble.LOCK_TIMEOUT,  # NOWAIT
    1062: Trouble.DUPLICATE,
    1586: Trouble.DUPLICATE,
    1053: Trouble.LOST,  # server shutdown in progress
    1079: Trouble.LOST,  # shutdown complete
    1152: Trouble.LOST,
    1158: Trouble.LOST,
    1159: Trouble.LOST,
    1160: Trouble.LOST,
    1161: Trouble.LOST,
    1184: Trouble.LOST,
    1927: Trouble.LOST,  # MariaDB: connection was killed
    2006: Trouble.LOST,
    2013: Trouble.LOST,
    2014: Trouble.LOST,
    2055: Trouble.LOST,
    4031: Trouble.LOST,  # MySQL: disconnected for inactivity
    1040: Trouble.UNAVAILABLE,  # too many connections
    1044: Trouble.UNAVAILABLE,
    1045: Trouble.UNAVAILABLE,
    1047: Trouble.UNAVAILABLE,  # Galera: not in the primary component
    1049: Trouble.UNAVAILABLE,
    1129: Trouble.UNAVAILABLE,
    1142: Trouble.UNAVAILABLE,  # the user may not do that to the table
    1227: Trouble.UNAVAILABLE,
    1130: Trouble.UNAVAILABLE,
    1203: Trouble.UNAVAILABLE,
    1226: Trouble.UNAVAILABLE,
    1290: Trouble.UNAVAILABLE,  # --read-only
    1317: Trouble.UNAVAILABLE,  # query interrupted
    1698: Trouble.UNAVAILABLE,
    1836: Trouble.UNAVAILABLE,  # read-only mode
    1969: Trouble.UNAVAILABLE,  # MariaDB: max_statement_time
    2002: Trouble.UNAVAILABLE,
    2003: Trouble.UNAVAILABLE,
    2005: Trouble.UNAVAILABLE,
    2026: Trouble.UNAVAILABLE,  # TLS
    3024: Trouble.UNAVAILABLE,  # MySQL: max_execution_time
    3159: Trouble.UNAVAILABLE,  # the server insists on TLS
}

_SQLITE: Mapping[int, Trouble] = {
    5: Trouble.LOCK_TIMEOUT,  # SQLITE_BUSY and its extended codes
    6: Trouble.LOCK_TIMEOUT,  # SQLITE_LOCKED
    1555: Trouble.DUPLICATE,  # SQLITE_CONSTRAINT_PRIMARYKEY
    2067: Trouble.DUPLICATE,  # SQLITE_CONSTRAINT_UNIQUE
    2579: Trouble.DUPLICATE,  # SQLITE_CONSTRAINT_ROWID
    8: Trouble.UNAVAILABLE,  # SQLITE_READONLY
    10: Trouble.UNAVAILABLE,  # SQLITE_IOERR
    11: Trouble.UNAVAILABLE,  # SQLITE_CORRUPT
    13: Trouble.UNAVAILABLE,  # SQLITE_FULL
    14: Trouble.UNAVAILABLE,  # SQLITE_CANTOPEN
    26: Trouble.UNAVAILABLE,  # SQLITE_NOTADB
}


def trouble_of(error: BaseException) -> Trouble | None:
    """The trouble behind an error of SQLAlchemy or its driver, or ``None`` when it is none of these (a bug, mostly)."""
    if isinstance(error, PoolTimeoutError):
        return Trouble.UNAVAILABLE
    if not isinstance(error, DBAPIError):
        return None
    original: BaseException | None = error.orig
    code = getattr(original, "sqlite_errorcode", None)
    if code is not None:
        return _SQLITE.get(code) or _SQLITE.get(code & 0xFF)
    arguments = original.args if original is not None else ()
    if arguments and isinstance(arguments[0], int) and arguments[0] in _MYSQL:
        return _MYSQL[arguments[0]]
    # asyncmy says "Not connected" with code 0, and "Packet sequence number wrong" with none: either way the
    # conversation with the server is over, which SQLAlchemy has noticed too.
    if error.connection_invalidated or "Packet sequence" in str(original):
        return Trouble.LOST
    return None
