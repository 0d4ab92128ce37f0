"""What people who watch over security want to know: a log line and a count for each."""

from __future__ import annotations

from typing import Final

from domain.types import JSON
from server.telemetry import Metrics, logger

log = logger(__name__)

KINDS: Final = (
    "letter_not_sent",
    "login_failed",
    "login_refused",
    "trust_low",
    "refresh_token_reused",
    "device_removed",
    "mfa_enabled",
    "mfa_disabled",
    "mfa_failed",
    "recovery_code_used",
    "recovery_codes_replaced",
    "step_up_failed",
    "password_changed",
    "password_reset_asked",
    "password_reset",
    "user_disabled",
    "user_enabled",
)
"""Every kind there is: labels of a metric come from a fixed list."""


class LoggedSecurityEvents:
    """See :class:`domain.ports.SecurityEvents`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def record(self, kind: str, user_id: str | None, details: JSON) -> None:
        self._metrics.security_event(kind)
        log.warning("security_event", kind=kind, user=user_id, **{f"about_{name}": it for name, it in details.items()})
