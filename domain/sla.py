"""Service levels: the clocks that run on a booking, as plain arithmetic.

A clock has a start and a deadline. At 80 % of the way it is *warned*, at the deadline *breached*; whoever does the work
in time has *met* it. While it is *paused* no time passes, and resuming moves the deadline by the length of the pause.

Invariants: ``met``, ``breached`` and ``cancelled`` end a clock; a clock is breached at most once; nothing here reads
    the time, so the same moments give the same clocks on every node. :mod:`domain.deadlines` says which step of a
    booking starts and ends which clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from domain.types import JSON, wire_time
from domain.views import View

WARN_AT = 0.8
"""Share of a clock's time after which it is warned."""


class ClockName(StrEnum):
    """What a customer waits for: that somebody takes the job, is there, and is done."""

    RESPONSE = "response"
    ARRIVAL = "arrival"
    COMPLETION = "completion"


class ClockStatus(StrEnum):
    """How a clock stands."""

    RUNNING = "running"
    PAUSED = "paused"
    WARNED = "warned"
    BREACHED = "breached"
    MET = "met"
    CANCELLED = "cancelled"


TICKING = frozenset({ClockStatus.RUNNING, ClockStatus.WARNED})
OPEN = TICKING | {ClockStatus.PAUSED}
TOLD = frozenset({ClockStatus.WARNED, ClockStatus.BREACHED, ClockStatus.MET})
"""What becomes an event; the rest goes along with a booking's own."""


@dataclass(frozen=True, slots=True)
class Clock:
    """One clock.

    Attributes:
        started_at, due_at: moved along by pauses, so that the share that has passed stays what it was.
        warned: whether the warning was given, also while paused.
        ended_at: when it was met, breached or cancelled.
    """

    status: ClockStatus
    started_at: datetime
    due_at: datetime
    warned: bool = False
    paused_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def warn_at(self) -> datetime:
        return self.started_at + (self.due_at - self.started_at) * WARN_AT

    @property
    def next_at(self) -> datetime | None:
        """When something happens to it by itself."""
        if self.status not in TICKING:
            return None
        return self.due_at if self.warned else self.warn_at


def start(now: datetime, due_at: datetime) -> Clock:
    """A clock that begins to run."""
    return Clock(ClockStatus.RUNNING, now, due_at)


def tick(clock: Clock, now: datetime) -> Clock:
    """The clock at this moment. One that nobody looked at until its deadline is breached without a warning."""
    if clock.status not in TICKING:
        return clock
    if now >= clock.due_at:
        return replace(clock, status=ClockStatus.BREACHED, ended_at=clock.due_at)
    if now >= clock.warn_at and not clock.warned:
        return replace(clock, status=ClockStatus.WARNED, warned=True)
    return clock


def pause(clock: Clock, now: datetime) -> Clock:
    """Stops a ticking clock; what is paused or over stays so."""
    return replace(clock, status=ClockStatus.PAUSED, paused_at=now) if clock.status in TICKING else clock


def resume(clock: Clock, now: datetime) -> Clock:
    """Lets a paused clock go on with the time it had left."""
    if clock.status is not ClockStatus.PAUSED or clock.paused_at is None:
        return clock
    rest = now - clock.paused_at
    status = ClockStatus.WARNED if clock.warned else ClockStatus.RUNNING
    return replace(clock, status=status, paused_at=None, started_at=clock.started_at + rest, due_at=clock.due_at + rest)


def end(clock: Clock, status: ClockStatus, now: datetime) -> Clock:
    """Ends an open clock as met or cancelled."""
    return replace(resume(clock, now), status=status, ended_at=now) if clock.status in OPEN else clock


@dataclass(frozen=True, slots=True)
class Targets:
    """How long each thing may take, in seconds; fixed when the booking is made.

    Attributes:
        arrival: of work on demand, from the assignment.
        grace: of scheduled work, from the agreed start.
        completion: from the beginning of the work.
    """

    response: float
    arrival: float
    grace: float
    completion: float


@dataclass(frozen=True, slots=True)
class Sla:
    """The clocks of one booking; ``version`` rises with each change of any of them."""

    targets: Targets | None = None
    clocks: Mapping[ClockName, Clock] = field(default_factory=dict)
    version: int = 0

    @property
    def due_at(self) -> datetime | None:
        """The soonest deadline that can still be missed."""
        return min((clock.due_at for clock in self.clocks.values() if clock.status in TICKING), default=None)

    @property
    def next_at(self) -> datetime | None:
        """When the soonest clock wants to be looked at."""
        return min((clock.next_at for clock in self.clocks.values() if clock.next_at is not None), default=None)

    @property
    def breached(self) -> int:
        """How many clocks were missed."""
        return sum(clock.status is ClockStatus.BREACHED for clock in self.clocks.values())

    def having(self, clocks: Mapping[ClockName, Clock]) -> Sla:
        """These clocks in place of the old ones."""
        return self if clocks == self.clocks else replace(self, clocks=clocks, version=self.version + 1)


class ClockView(View):
    """One clock. While it is paused it has no deadline, but time left."""

    status: ClockStatus
    due_at: str | None = None
    remaining_seconds: int | None = None


class SlaView(View):
    """The clocks that run, or ran, on a booking."""

    version: int
    response: ClockView
    arrival: ClockView | None = None
    completion: ClockView | None = None


def view(sla: Sla) -> JSON:
    """The clocks on the wire."""
    return {"version": sla.version} | {name.value: _clock_view(clock) for name, clock in sla.clocks.items()}


def _clock_view(clock: Clock) -> JSON:
    shape: dict[str, Any] = {"status": clock.status.value}
    if clock.status is ClockStatus.PAUSED and clock.paused_at is not None:
        shape["remaining_seconds"] = max(0, int((clock.due_at - clock.paused_at) / timedelta(seconds=1)))
    else:
        shape["due_at"] = wire_time(clock.due_at)
    return shape
