"""What a use case is given: who asks, in which transaction, under which policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from domain.events import Event
from domain.identity import Actor
from domain.policy import Policy
from domain.ports import UnitOfWork

if TYPE_CHECKING:
    from domain.ports import Post
    from domain.positions import PositionFeed
    from domain.zones import ZonePulse

SYSTEM = Actor(user_id="system", name="Fixnado", roles=frozenset(), memberships=(), session_id="")
"""The actor of timers and sweeps."""


class NoPost:
    """A :class:`domain.ports.Post` that sends nothing: an inviter hands tokens over in person."""

    def invite(self, email: str, organisation: str, inviter: str, token: str, expires_at: datetime) -> None: ...


@dataclass(frozen=True, slots=True)
class Context:
    """One run of a use case.

    Attributes:
        pulse: notes where something happened, for the live figures of zones.
        positions: the node's memory of who published where, for the rate rules.
        announcements: ephemeral events, sent after commit; lost when the transaction is.
        post: takes letters; only after the commit.
        prepared: what the command's ``prepare`` came to, see :class:`domain.commands.Command`.
        after_commit: what this node should remember once the transaction stands; must not fail.
    """

    actor: Actor
    uow: UnitOfWork
    policy: Policy
    positions: PositionFeed
    announcements: list[Event] = field(default_factory=list)
    after_commit: list[Callable[[], None]] = field(default_factory=list)
    post: Post = field(default_factory=NoPost)
    pulse: ZonePulse | None = None
    prepared: Any = None

    @property
    def now(self) -> datetime:
        return self.uow.now

    def stirred(self, *, zone_id: str | None = None, provider_id: str | None = None) -> None:
        """Something happened in a zone, or to a provider: figures are counted again once the transaction stands."""
        pulse = self.pulse
        if pulse is not None and zone_id is not None:
            self.after_commit.append(partial(pulse.zone, zone_id))
        if pulse is not None and provider_id is not None:
            self.after_commit.append(partial(pulse.provider, provider_id))

    def announce(self, event: Event) -> None:
        self.announcements.append(event)
