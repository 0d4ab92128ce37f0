"""Security events that no transaction of their own goes with: a failed login changes nothing but what it is told by.

What does change something is attested in the transaction that changes it, by the use case.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import structlog

from domain.errors import Unavailable
from domain.security import SecurityFact, SecurityKind
from domain.types import JSON, Origin, new_id
from persistence.repositories import SqlUnitOfWork
from persistence.unit_of_work import Transactions
from server.telemetry import logger

log = logger(__name__)


class AttestedSecurityEvents:
    """Puts security events on record in the audit log, whose rows are logged and counted as they are written. Each is
    a transaction; whoever causes many was refused before (:class:`domain.limits.Gate`).
    """

    def __init__(self, transactions: Transactions[SqlUnitOfWork]) -> None:
        self._transactions = transactions

    async def record(self, kind: SecurityKind, user_id: str | None, details: JSON) -> None:
        fact = SecurityFact(kind, user_id or "anonymous", user_id, {name: _plain(it) for name, it in details.items()})

        async def attest(uow: SqlUnitOfWork) -> None:
            uow.attest(fact)

        try:
            known = structlog.contextvars.get_contextvars().get("correlation_id")
            await self._transactions.write(attest, Origin(known or new_id(datetime.now(UTC))))
        except Unavailable:
            # This line is what is left of it; the caller's own answer must not depend on the audit log.
            about = {f"about_{name}": it for name, it in details.items()}
            log.exception("security_event_not_attested", kind=kind, user=user_id, **about)


def _plain(value: Any) -> Any:
    """A value that hashes alike wherever it is read: text, whole numbers, booleans and lists of them."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return json.dumps(value, sort_keys=True, default=str)
