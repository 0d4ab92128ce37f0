"""What the live side needs from outside. Adapters live in persistence and server; tests bring fakes.

Whoever calls one of these bounds the wait itself (:class:`channels.limits.Limits`), so an adapter may take as long as
its own timeouts say. A call past its bound is cancelled, and the client is told ``unavailable``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from channels.topics import Facts, Topic
from domain.identity import Actor
from domain.log import Entry
from domain.types import JSON, Origin


@dataclass(frozen=True, slots=True)
class SignedIn:
    """What a good access token proves, and until when (aware UTC)."""

    actor: Actor
    expires_at: datetime


class Doorman(Protocol):
    """Tells who a token belongs to."""

    async def authenticate(self, token: str) -> SignedIn:
        """Who presents this access token.

        Raises:
            InvalidToken: malformed, expired, revoked, or not an access token.
            Unavailable: it cannot be told now.
        """


class Desk(Protocol):
    """Runs the commands of the catalogue."""

    async def execute(self, method: str, params: JSON, actor: Actor, origin: Origin, key: str | None = None) -> JSON:
        """Run one command for somebody.

        Args:
            params: as the client sent them, not yet validated, an idempotency ``key`` among them.
            key: an idempotency key that came beside the params; sockets never have one.

        Raises:
            FixnadoError: every refusal.
        """


class Access(Protocol):
    """Looks up what :func:`channels.topics.may_subscribe` decides by."""

    async def facts(self, topics: Collection[Topic]) -> Mapping[Topic, Facts]:
        """The facts about each topic, committed before this call; a missing key means the thing does not exist."""


class Snapshots(Protocol):
    """Reads the state behind a channel."""

    async def state(self, actor: Actor, topic: Topic) -> JSON | None:
        """The state as this person may see it, no older than the call; ``None`` for channels without one."""


class Connections(Protocol):
    """Hears of sockets coming and going: what a provider's live status follows from."""

    async def opened(self, actor: Actor) -> None:
        """A socket of this person is connected."""

    async def closed(self, actor: Actor) -> None:
        """It is gone. Called exactly once for each :meth:`opened`, after it, whether that one succeeded or not."""


class Acknowledgements(Protocol):
    """Hears how far clients have handled their channels."""

    async def acked(self, actor: Actor, channel: str, offset: int) -> None:
        """This person handled everything on the channel up to ``offset``. May repeat and may go backwards."""


class Transport(Protocol):
    """A connection, lent to a session: a WebSocket, or an event stream that puts frames into a shape of its own.

    Nothing here waits.
    """

    @property
    def write(self) -> Callable[[bytes], None]:
        """Sends finished frames (:func:`channels.protocol.text_frame`), in order. What the peer does not take yet is
        buffered without bound.
        """

    @property
    def fd(self) -> int:
        """The file descriptor where the same bytes may go without :attr:`write`, as long as nothing is buffered: what
        the kernel does not take of them goes to :attr:`write`. -1 when there is none.
        """

    @property
    def deflates(self) -> bool:
        """Whether :attr:`write` also takes deflated frames (:mod:`channels.deflate`)."""

    def beat(self) -> bool:
        """Send a heartbeat. Returns whether the peer is known to be there already; otherwise it has to answer."""

    def buffered_bytes(self) -> int:
        """What :attr:`write` took and the kernel did not yet."""

    def close(self, code: int, reason: str) -> None:
        """Say why, and end the connection: when the peer has taken that, or without it after a grace."""

    def abort(self) -> None:
        """End the connection now; what is buffered is lost."""


WriteEach = Callable[[Sequence[int], bytes], Mapping[int, int]]
"""Offers the same bytes to each of these file descriptors (-1: none), without waiting. Returns the places of those that
did not take all of them, and how many bytes each took: 0 when it is full or its peer is gone.
"""


def write_to_none(fds: Sequence[int], _data: bytes) -> Mapping[int, int]:
    """A :data:`WriteEach` that takes nothing."""
    return dict.fromkeys(range(len(fds)), 0)


class Metrics(Protocol):
    """Counts what the live side does. Called on hot paths: must be quick and must not raise."""

    def session_opened(self) -> None:
        """A client is connected and signed in."""

    def session_closed(self, code: int | None) -> None:
        """It is gone; ``code`` when this side closed it."""

    def delivered(self, frames: int) -> None:
        """So many frames were written to sockets."""

    def written(self, entry: Entry) -> None:
        """This one was written just now; told of the first entry of each turn, so that latency can be sampled."""

    def dropped(self, frames: int) -> None:
        """So many frames were not: ephemeral or outdated ones at a slow socket."""

    def healed(self, entries: int) -> None:
        """So many entries came from the log because the broker had not brought them."""

    def command(self, method: str, outcome: str, seconds: float) -> None:
        """A command ended. ``outcome`` is ``ok`` or the error's type; an unknown method is named ``unknown``."""


class NoMetrics:
    """Counts nothing."""

    def session_opened(self) -> None: ...

    def session_closed(self, code: int | None) -> None: ...

    def delivered(self, frames: int) -> None: ...

    def written(self, entry: Entry) -> None: ...

    def dropped(self, frames: int) -> None: ...

    def healed(self, entries: int) -> None: ...

    def command(self, method: str, outcome: str, seconds: float) -> None: ...


Trace = Callable[[Origin, str], AbstractContextManager[None]]
"""Surrounds a command with its log context. Takes its origin and the session's id."""
