"""The system's clock, as the domain's port."""

from __future__ import annotations

from datetime import UTC, datetime


class SystemClock:
    """The time of day; see :class:`domain.ports.Clock`."""

    def now(self) -> datetime:
        return datetime.now(UTC)
