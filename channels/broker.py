"""How entries travel between nodes: a fast hint, never the truth.

The log (:class:`domain.log.EventLog`) is the truth. A broker may lose, repeat or reorder entries, and may fall
silent; the hub notices by offsets and heals from the log. That is why the contract is so small.

Invariants every broker keeps:

* what :meth:`Broker.publish` takes reaches, at most a few times and mostly once, the receiver of every node that
  listens to the entry's channel, this node included; the bytes of an entry are never altered;
* once :meth:`Broker.subscribe` has returned, entries published afterwards are delivered, unless lost;
* entries of a channel nobody here listens to are not delivered;
* ``publish`` raises nothing for a loss: it is not on a request's path, and the log has the entry.

Concurrency: one event loop. The receiver is called on the loop, synchronously, and must return quickly.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Protocol

from domain.log import Entry

logger = logging.getLogger(__name__)


class Receiver(Protocol):
    """Whoever takes in what the broker hears: the hub."""

    def receive(self, entries: Sequence[Entry]) -> None:
        """Take entries in the order the broker heard them. Must not block and must not raise."""

    def lost(self) -> None:
        """The broker may have missed entries (a reconnect, an overflow): look at the log."""


class Broker(Protocol):
    """Carries entries to every node that listens to their channels."""

    def attach(self, receiver: Receiver) -> None:
        """Set the one receiver of this node, before anything is subscribed."""

    async def publish(self, entries: Sequence[Entry]) -> None:
        """Hand entries on, in order. Returns when they are on their way, not when they arrived."""

    async def subscribe(self, channels: Collection[str]) -> None:
        """Listen to channels as well; those already listened to stay so.

        Raises:
            Unavailable: the broker is away. The channel is then remembered and joined when it is back, followed by
                :meth:`Receiver.lost`.
        """

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Stop listening. Unknown channels are ignored."""


class InProcessBroker:
    """The broker of a single process: delivers within ``publish`` itself."""

    def __init__(self) -> None:
        self._receiver: Receiver | None = None
        self._channels: set[str] = set()

    def attach(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def publish(self, entries: Sequence[Entry]) -> None:
        wanted = [entry for entry in entries if entry.channel in self._channels]
        if not wanted or self._receiver is None:
            return
        try:
            self._receiver.receive(wanted)
        except Exception:
            # The publisher (a sequencer) must not stop for a receiver's defect; the offsets will show the gap.
            logger.exception("the receiver failed")

    async def subscribe(self, channels: Collection[str]) -> None:
        self._channels.update(channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        self._channels.difference_update(channels)
