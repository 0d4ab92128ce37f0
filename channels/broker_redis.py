"""The broker of several processes: Redis pub/sub carries the bytes that sockets get.

Invariants, beside those of :mod:`channels.broker`:

* :meth:`RedisBroker.publish` returns at once, whatever Redis does; what cannot be sent within two seconds is
  dropped, since the log has it and an ephemeral event would be stale;
* entries of one channel in one publication share a message, and a ``control`` entry is never overtaken by an entry
  published after it;
* a subscription while Redis is away is remembered. Where somebody reads the log for this node meanwhile
  (:class:`channels.failover.Follower`), that is no failure.

In a cluster a channel lives in the shard of its slot (sharded pub/sub, Redis 7), so load spreads over the shards, and
entries of different channels may overtake each other; each channel keeps its order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property

from channels.broker import Receiver
from channels.redis_client import RedisClient
from channels.redis_wire import Unreadable, pack_entry, pack_message, unpack_message
from channels.topics import CONTROL
from domain.errors import Unavailable
from domain.log import Entry

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 64 * 1024
"""Records joined into one message until it is this large."""


class RedisBroker:
    """Implements :class:`channels.broker.Broker`; also carries heartbeats and what nodes tell each other.

    Args:
        client: started and stopped by its owner.
        followed: somebody reads the log for what is not heard, so subscribing is fine while Redis is away.
    """

    def __init__(self, client: RedisClient, *, followed: bool = True) -> None:
        self.client = client
        self._followed = followed
        self._receiver: Receiver | None = None
        client.on_loss(self._lost)

    def attach(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def publish(self, entries: Sequence[Entry]) -> None:
        self.client.publish(self._messages(entries))

    async def subscribe(self, channels: Collection[str]) -> None:
        heard = await self.client.listen([self._name(channel) for channel in channels], self._heard)
        if not heard and not self._followed:
            raise Unavailable

    async def unsubscribe(self, channels: Collection[str]) -> None:
        await self.client.unlisten([self._name(channel) for channel in channels])

    @property
    def connected(self) -> bool:
        """Whether entries can be published and heard now, as far as is known."""
        return self.client.connected

    def rebuild(self, reason: str) -> None:
        """Connect anew, because heartbeats say that the connection is no good."""
        self.client.rebuild(reason)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have it called when the connection comes or goes."""
        self.client.on_change(listener)

    # Between nodes

    def tell(self, subject: str, payload: bytes) -> None:
        """Tell every node that hears this subject, this one included. Never waits; may be lost."""
        self.client.publish([(self.client.name("nodes", subject), payload)])

    async def hear(self, subject: str, handler: Callable[[bytes], None]) -> None:
        """Hear what nodes tell about a subject, now or once Redis is back."""

        def heard(_name: bytes, payload: bytes) -> None:
            try:
                handler(payload)
            except Exception:
                # What another node said must not stop the reading of everything else.
                logger.exception("what a node told could not be handled: %s", subject)

        await self.client.listen([self.client.name("nodes", subject)], heard)

    # Names and bytes

    @cached_property
    def _prefix(self) -> bytes:
        return self.client.name("channel", "")

    def _name(self, channel: str) -> bytes:
        return self._prefix + channel.encode()

    def _messages(self, entries: Sequence[Entry]) -> Iterator[tuple[bytes, bytes]]:
        waiting: dict[str, list[bytes]] = {}
        sizes: dict[str, int] = {}
        for entry in entries:
            if entry.channel == CONTROL and waiting:
                yield from self._joined(waiting)
                waiting, sizes = {}, {}
            record = pack_entry(entry)
            size = sizes.get(entry.channel, 0) + len(record)
            if size > MESSAGE_BYTES and entry.channel in waiting:
                yield self._name(entry.channel), pack_message(waiting.pop(entry.channel))
                size = len(record)
            waiting.setdefault(entry.channel, []).append(record)
            sizes[entry.channel] = size
            if entry.channel == CONTROL:
                yield from self._joined(waiting)
                waiting, sizes = {}, {}
        yield from self._joined(waiting)

    def _joined(self, waiting: dict[str, list[bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for channel, records in waiting.items():
            yield self._name(channel), pack_message(records)

    def _heard(self, name: bytes, payload: bytes) -> None:
        if self._receiver is None:
            return
        channel = name[len(self._prefix) :].decode()
        try:
            self._receiver.receive(unpack_message(channel, payload))
        except Unreadable:
            # A node of another version during a rolling update: the log says what it meant.
            self.client.counts.unreadable += 1
            self._receiver.lost()
        except Exception:
            logger.exception("the receiver failed")

    def _lost(self) -> None:
        if self._receiver is not None:
            self._receiver.lost()
