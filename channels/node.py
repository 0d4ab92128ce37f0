"""What all sessions of one node share, and how they wait for what is outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from channels.admission import Admission
from channels.heartbeat import Wheel
from channels.hub import Hub
from channels.limits import Limits, TokenBuckets
from channels.ports import Acknowledgements, Connections, Desk, Doorman, Metrics, Trace
from channels.presence import Presence
from channels.subscriptions import Subscriptions
from domain.errors import Unavailable
from domain.ports import Clock
from domain.types import Origin

if TYPE_CHECKING:
    from channels.session import Session

T = TypeVar("T")


def untraced(_origin: Origin, _session_id: str) -> AbstractContextManager[None]:
    """A :data:`channels.ports.Trace` that adds nothing."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Node:
    """What all sessions of one node share.

    Attributes:
        monotonic: seconds, for deadlines; ``clock`` tells the time of day.
        tasks: running session tasks; whoever composes the node awaits or cancels them.
        sessions: every open session, signed in or not.
    """

    limits: Limits
    admission: Admission
    hub: Hub
    subscriptions: Subscriptions
    presence: Presence
    desk: Desk
    doorman: Doorman
    connections: Connections
    acknowledgements: Acknowledgements
    metrics: Metrics
    clock: Clock
    monotonic: Callable[[], float]
    wheel: Wheel
    buckets: TokenBuckets
    trace: Trace = untraced
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    sessions: set[Session] = field(default_factory=set)


async def within(seconds: float, call: Awaitable[T]) -> T:
    """Wait for a port, but not for ever.

    Raises:
        Unavailable: it took longer.
    """
    try:
        async with asyncio.timeout(seconds):
            return await call
    except TimeoutError:
        raise Unavailable from None
