"""A channel as one node holds it: how far it has come, who hears it, and who is about to."""

from __future__ import annotations

from collections import deque

from channels.roster import Subscriber
from domain.log import Entry

CATCHING_EPHEMERAL = 50
"""Entries without an offset kept for a subscription that is starting; the oldest give way."""


class Catchup:
    """One subscription on its way: what was accepted since it was registered.

    Attributes:
        ephemeral: the newest entries without an offset, to be sent after the reply: one that came after the state was
            read is news.
        buffer: consecutive entries, the first of them the one after the channel's offset when the buffer was last
            empty.
        overflowed: entries after the buffer's last one were not kept.
        position: the offset reached, once reached; until then ``None``.
        revoked: the right to the channel was taken away meanwhile.
    """

    __slots__ = ("buffer", "ephemeral", "overflowed", "position", "revoked")

    def __init__(self) -> None:
        self.ephemeral: deque[Entry] = deque(maxlen=CATCHING_EPHEMERAL)
        self.buffer: list[Entry] = []
        self.overflowed = False
        self.position: int | None = None
        self.revoked = False


class HeldChannel:
    """A channel with subscribers on this node.

    ``offset`` is the last one accepted; ``None`` until a head anchors it. ``target`` is the newest offset heard of.
    """

    __slots__ = ("catching", "epoch", "heard", "live", "name", "offset", "target", "tries", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch: str | None = None
        self.offset: int | None = None
        self.target = 0
        self.tries = 0
        self.heard = False
        self.live: set[Subscriber] = set()
        self.catching: dict[Subscriber, Catchup] = {}
        self.waiting: dict[int, Entry] = {}
