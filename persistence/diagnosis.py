"""Why a database cannot be used, as one line for the operator: what failed, where, and what would help.

The general errors say the same to every client (``unavailable``); whoever runs the server needs to tell a wrong
password from a wrong port. No line quotes a password, and none quotes what the server said where that may hold one.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from enum import StrEnum

from sqlalchemy.engine import URL
from sqlalchemy.exc import TimeoutError as PoolTimeoutError


class Fault(StrEnum):
    """What kind of thing is wrong, so that the caller can add which setting to look at."""

    PLAINTEXT = "plaintext"
    CERTIFICATE = "certificate"
    TLS_WANTED = "tls_wanted"
    CREDENTIALS = "credentials"
    NO_DATABASE = "no_database"
    HOST = "host"
    AWAY = "away"
    NOT_MYSQL = "not_mysql"
    READ_ONLY = "read_only"
    FULL = "full"
    OTHER = "other"


_BY_CODE = {
    1044: Fault.CREDENTIALS,  # no right to this database
    1045: Fault.CREDENTIALS,
    1130: Fault.CREDENTIALS,  # this host may not connect
    1142: Fault.CREDENTIALS,  # no right to a table
    1227: Fault.CREDENTIALS,
    1698: Fault.CREDENTIALS,
    1049: Fault.NO_DATABASE,
    1040: Fault.FULL,
    1203: Fault.FULL,
    1226: Fault.FULL,
    1290: Fault.READ_ONLY,
    1836: Fault.READ_ONLY,
    3159: Fault.TLS_WANTED,
}
"""Server error codes, of MySQL 8.0's and MariaDB's error references."""


def fault_of(error: BaseException) -> Fault:
    """The fault behind an error of :mod:`persistence.database`; its causes are looked through."""
    chain = list(_causes(error))
    for cause in chain:
        match cause:
            case ssl.SSLCertVerificationError():
                return Fault.CERTIFICATE
            case ssl.SSLError() if "WRONG_VERSION_NUMBER" in str(cause):
                # The server went on in plain text where the first TLS record was due.
                return Fault.PLAINTEXT
            case ssl.SSLError():
                return Fault.CERTIFICATE
            case socket.gaierror():
                return Fault.HOST
    for cause in chain:
        code = cause.args[0] if cause.args else None
        if isinstance(code, int) and code in _BY_CODE:
            return _BY_CODE[code]
        if "Packet sequence" in str(cause):
            return Fault.NOT_MYSQL
    if any(isinstance(cause, TimeoutError | ConnectionError | PoolTimeoutError) for cause in chain):
        return Fault.AWAY
    return Fault.OTHER


def explain(error: BaseException, url: URL) -> str:
    """One line without a full stop: which database, and what is wrong with it."""
    if not url.host:
        return f"the database file {url.database} cannot be used: {_sqlite_reason(error)}"
    where = f"MySQL at {url.host}:{url.port or 3306}"
    match fault_of(error):
        case Fault.PLAINTEXT:
            return f"{where} offers no TLS, which is required"
        case Fault.CERTIFICATE:
            return f"the certificate of {where} is not accepted: {_tls_reason(error)}"
        case Fault.TLS_WANTED:
            return f"{where} takes encrypted connections only"
        case Fault.CREDENTIALS:
            return f"{where} refuses {url.username!r}: a wrong password, or no right to the database {url.database!r}"
        case Fault.NO_DATABASE:
            return f"{where} has no database {url.database!r}"
        case Fault.HOST:
            return f"the name {url.host!r} of the database's host cannot be resolved"
        case Fault.NOT_MYSQL:
            return f"what answers at {url.host}:{url.port or 3306} is not MySQL"
        case Fault.READ_ONLY:
            return f"{where} is read-only: give the address of its primary"
        case Fault.FULL:
            return f"{where} has no connection to spare"
        case Fault.AWAY | Fault.OTHER:
            return f"{where} does not answer"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _tls_reason(error: BaseException) -> str:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return str(cause.verify_message).rstrip(".") or "it cannot be verified"
        if isinstance(cause, ssl.SSLError):
            return str(cause.reason or "the handshake failed").replace("_", " ").lower()
    return "the handshake failed"


def _sqlite_reason(error: BaseException) -> str:
    for cause in _causes(error):
        if getattr(cause, "sqlite_errorcode", None) is not None:
            return str(cause)
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return "it does not answer in time"
