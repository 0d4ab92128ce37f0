"""This node's channels and who listens to them.

Invariants:

* a live subscriber of a channel gets each durable offset once, in order, without gaps, whatever the broker loses,
  repeats or reorders: the next offset is delivered, an older one dropped, and before a later one the missing rows are
  read from the log;
* what is accepted in one turn of the event loop leaves in one write per subscriber, in order of acceptance, even when
  it listens to several of the channels; each channel's frames are joined once for all who take them in the same form;
* entries of the ``control`` channel take effect before anything accepted after them is delivered. While the control
  channel itself has a gap, everything else is held back until it is healed;
* no write waits, and no subscriber's trouble reaches another: a congested one is asked per frame
  (:meth:`Subscriber.offer`);
* a descriptor is written to only while nothing is buffered for it, so bytes cannot overtake others, and only while its
  subscriber listens here, which ends before its connection is closed: the number may be somebody else's then.

How a subscription starts (see :mod:`channels.subscriptions`): :meth:`Hub.join` registers the subscriber as *catching
up*, which buffers what is accepted from then on; the caller reads the log; :meth:`Hub.go_live` ends it at the offset
reached. A subscriber whose log read was ahead of this node stays aside until the node has passed that offset.

Concurrency: one event loop; everything is synchronous but joining and the one task that heals. The task is owned:
made by :meth:`Hub.start`, ended by :meth:`Hub.stop`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence

from channels.broker import Broker
from channels.control import Control, ControlListener
from channels.deflate import Deflater
from channels.healing import Healer
from channels.held_channel import Catchup, HeldChannel
from channels.limits import Limits
from channels.listening import Listening
from channels.lookups import Batch
from channels.ports import Metrics, NoMetrics, WriteEach, write_to_none
from channels.protocol import CloseCode, text_frame
from channels.roster import Roster, Subscriber
from channels.topics import CONTROL
from domain.log import Entry, EventLog, Head

logger = logging.getLogger(__name__)

_Offer = tuple[Subscriber, Sequence[Entry], Sequence[bytes]]
"""Somebody congested, and the entries of a turn, each with its finished frame."""

TURN_ENTRIES = 1000
"""Entries joined at most; a longer turn is written in several parts."""

MANY_SUBSCRIBERS = 8
"""From so many on, the bytes are offered to their descriptors first. At four, gathering these costs what it saves; at
eight it saves a twentieth, at thirty-two a tenth.
"""

HELD_ENTRIES = 10_000
"""Entries held back while the control channel heals; what is beyond heals by itself later."""


class Hub:
    """See the module. ``receive`` and ``lost`` make it the broker's receiver.

    Attributes:
        roster: who is signed in on this node.
        heads: reads heads of channels; questions of the same moment share a query.
    """

    def __init__(
        self,
        log: EventLog,
        broker: Broker,
        limits: Limits,
        metrics: Metrics | None = None,
        write_each: WriteEach = write_to_none,
        deflater: Deflater | None = None,
    ) -> None:
        self._log = log
        self._broker = broker
        self._limits = limits
        self._metrics: Metrics = metrics or NoMetrics()
        self._write_each = write_each
        self._deflater = deflater
        self._channels: dict[str, HeldChannel] = {}
        self._turn: list[tuple[HeldChannel, Entry]] = []
        self._held: deque[Entry] | None = None
        self._listening = Listening(broker, self._channels, limits.call_seconds)
        self.heads: Batch[str, Head] = Batch(self._read_heads, timeout_seconds=limits.call_seconds)
        self.roster = Roster()
        self._control = Control(self.roster, self._channels, self.part)
        self._healer = Healer(log, self.heads, self._channels, self, self._metrics, limits.call_seconds)
        # The healer's own, because every accepted entry looks into it.
        self._gapped = self._healer.gapped
        broker.attach(self)

    # Life

    async def start(self) -> None:
        """Listen to ``control`` and start healing.

        Raises:
            Unavailable: the log or the broker is away.
        """
        self._channels[CONTROL] = HeldChannel(CONTROL)
        await self._listening.join([CONTROL])
        heads = await self.heads.get([CONTROL])
        self.anchor(CONTROL, heads[CONTROL])
        await self._listening.start()
        self._healer.start()

    async def stop(self) -> None:
        """Deliver what is pending and end the tasks."""
        self.flush()
        await self._healer.stop()
        await self._listening.stop()
        await self.heads.close()

    def listen(self, listener: ControlListener) -> None:
        """Have control entries told to somebody else too, e.g. to whoever caches revocations or flags."""
        self._control.listen(listener)

    # Entries come in

    def receive(self, entries: Sequence[Entry]) -> None:
        """Take what the broker heard. Entries of channels without subscribers here are ignored."""
        channels = self._channels
        for entry in entries:
            channel = channels.get(entry.channel)
            if channel is None:
                continue
            if self._held is not None and channel.name != CONTROL:
                self._hold(entry)
            elif entry.offset is not None:
                self.accept(channel, entry, entry.offset)
            else:
                for catchup in channel.catching.values():
                    if catchup.position is None:
                        catchup.ephemeral.append(entry)
                if channel.live:
                    self._add_to_turn(channel, entry)

    def follow(self, entries: Sequence[Entry]) -> None:
        """Take entries read from the log. Idempotent by offset: what was delivered before is dropped."""
        self.receive(entries)

    def lost(self) -> None:
        """The broker may have missed something: look at every channel's head."""
        self._healer.audit_soon()

    async def audit(self) -> None:
        """Compare every channel held here with the log; see :meth:`channels.healing.Healer.audit`."""
        await self._healer.audit()

    def accept(self, channel: HeldChannel, entry: Entry, offset: int) -> None:
        """Take an entry with its offset: deliver it, drop it, or keep it until what is before it is here."""
        if channel.offset is not None:
            if offset <= channel.offset:
                return
            if offset == channel.offset + 1:
                self._release(channel, entry, offset)
                while channel.waiting:
                    following = channel.waiting.pop(channel.offset + 1, None)
                    if following is None:
                        break
                    self._release(channel, following, channel.offset + 1)
                if channel.name in self._gapped and channel.offset >= channel.target:
                    self.whole(channel)
                return
        channel.target = max(channel.target, offset)
        if len(channel.waiting) < self._limits.waiting_entries:
            channel.waiting[offset] = entry
        # What was not kept is read from the log, because the target stands.
        if channel.offset is not None:
            self.gap(channel)

    def _release(self, channel: HeldChannel, entry: Entry, offset: int) -> None:
        """The next offset of the channel is here."""
        channel.offset = offset
        if channel.name == CONTROL:
            try:
                # Earlier entries go to those who may still have them, later ones must not.
                self.flush()
            finally:
                self._control.obey(entry)
            return
        arrived: list[Subscriber] = []
        if channel.catching:
            for subscriber, catchup in list(channel.catching.items()):
                if catchup.position is None:
                    if catchup.overflowed or len(catchup.buffer) >= self._limits.catching_up_entries:
                        catchup.overflowed = True
                    else:
                        catchup.buffer.append(entry)
                elif offset >= catchup.position:
                    del channel.catching[subscriber]
                    arrived.append(subscriber)
        if channel.live:
            self._add_to_turn(channel, entry)
        if arrived:
            # They have this entry from their own read of the log, and those before it.
            self.flush()
            channel.live.update(arrived)

    def _add_to_turn(self, channel: HeldChannel, entry: Entry) -> None:
        if len(self._turn) >= TURN_ENTRIES:
            self.flush()
        if not self._turn:
            asyncio.get_running_loop().call_soon(self.flush)
        self._turn.append((channel, entry))

    # Frames go out

    def flush(self) -> None:
        """Write what was accepted in this turn."""
        turn = self._turn
        if not turn:
            return
        self._turn = []
        try:
            offers = self._deliver_turn(turn)
        finally:
            if self._deflater is not None:
                self._deflater.forget()
        self._metrics.written(turn[0][1])
        # Last of all: whatever comes of offering, everybody else has all of the turn by now.
        if offers:
            _make(offers)

    def _deliver_turn(self, turn: Sequence[tuple[HeldChannel, Entry]]) -> list[_Offer]:
        """Write to everybody but the congested, for whom what is to be offered is returned."""
        batches: dict[HeldChannel, list[tuple[int, Entry]]] = {}
        for position, (channel, entry) in enumerate(turn):
            if channel in batches:
                batches[channel].append((position, entry))
            else:
                batches[channel] = [(position, entry)]
        if len(batches) == 1:
            return self._deliver(turn[0][0].live, [entry for _, entry in turn])
        plan: dict[Subscriber, tuple[HeldChannel, ...]] = {}
        for channel in batches:
            for subscriber in channel.live:
                before = plan.get(subscriber)
                plan[subscriber] = (channel,) if before is None else (*before, channel)
        alike: dict[tuple[HeldChannel, ...], list[Subscriber]] = {}
        for subscriber, channels in plan.items():
            alike.setdefault(channels, []).append(subscriber)
        offers: list[_Offer] = []
        for channels, subscribers in alike.items():
            merged = [place for channel in channels for place in batches[channel]]
            if len(channels) > 1:
                merged.sort(key=_position)
            offers += self._deliver(subscribers, [entry for _, entry in merged])
        return offers

    def _deliver(self, subscribers: Collection[Subscriber], entries: Sequence[Entry]) -> list[_Offer]:
        """One write of the same bytes to each who takes them in the same form."""
        if (deflater := self._deflater) is None:
            return self._write(subscribers, entries, [text_frame(entry.frame) for entry in entries])
        offers: list[_Offer] = []
        plain = [subscriber for subscriber in subscribers if not subscriber.deflates]
        if len(plain) < len(subscribers):
            deflating = [subscriber for subscriber in subscribers if subscriber.deflates]
            offers += self._write(deflating, entries, [deflater.frame(entry.frame) for entry in entries])
        if plain:
            offers += self._write(plain, entries, [text_frame(entry.frame) for entry in entries])
        return offers

    def _write(
        self, subscribers: Collection[Subscriber], entries: Sequence[Entry], frames: Sequence[bytes]
    ) -> list[_Offer]:
        """One write of the same bytes to each. What is done here for each of them must not cost."""
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        count = len(subscribers)
        if count < MANY_SUBSCRIBERS:
            left = [(subscriber, data) for subscriber in subscribers]
        elif short := self._write_each([subscriber.fd for subscriber in subscribers], data):
            places = enumerate(subscribers)
            left = [(subscriber, data[short[place] :]) for place, subscriber in places if place in short]
        else:
            left = []
        offers: list[_Offer] = []
        for subscriber, rest in left:
            if subscriber.congested:
                offers.append((subscriber, entries, frames))
                continue
            try:
                subscriber.write(rest)
            except Exception:
                # A transport that died in this very turn; its owner hears of it from the loop.
                logger.debug("a write failed", exc_info=True)
        self._metrics.delivered((count - len(offers)) * len(entries))
        return offers

    # Subscribers come and go

    def leave(self, subscriber: Subscriber, names: Iterable[str]) -> None:
        """End all its subscriptions."""
        for name in names:
            self.part(name, subscriber)

    async def join(self, names: Collection[str], subscriber: Subscriber) -> dict[str, Catchup]:
        """Register as catching up, also where already live. Returns when the broker listens to every channel.

        The caller ends each by :meth:`go_live` or :meth:`part`, also when this raises or is cancelled.

        Raises:
            Unavailable: the broker is away.
        """
        catchups: dict[str, Catchup] = {}
        unheard: list[HeldChannel] = []
        for name in names:
            channel = self._channels.get(name)
            if channel is None:
                channel = self._channels[name] = HeldChannel(name)
            elif subscriber in channel.live:
                self.flush()
                channel.live.discard(subscriber)
            catchups[name] = channel.catching[subscriber] = Catchup()
            if not channel.heard:
                unheard.append(channel)
        if unheard:
            await self._listening.join([channel.name for channel in unheard])
            for channel in unheard:
                channel.heard = True
        return catchups

    def anchor(self, name: str, head: Head) -> None:
        """Say where a channel stood after it was joined; the first to say so sets where this node begins."""
        channel = self._channels.get(name)
        if channel is None:
            return
        if channel.offset is None:
            channel.epoch = head.epoch
            channel.offset = head.offset
            waiting, channel.waiting = channel.waiting, {}
            for offset in sorted(waiting):
                self.accept(channel, waiting[offset], offset)
        elif channel.epoch != head.epoch:
            self.renumbered(channel)

    def epoch(self, name: str) -> str | None:
        """The epoch of a channel; ``None`` when this node does not hold it."""
        channel = self._channels.get(name)
        return None if channel is None else channel.epoch

    def offset(self, name: str) -> int | None:
        """The last offset accepted on a channel; ``None`` when this node does not hold it."""
        channel = self._channels.get(name)
        return None if channel is None else channel.offset

    def go_live(self, name: str, subscriber: Subscriber, position: int) -> None:
        """End catching up: everything up to ``position`` is on its way to the subscriber, everything after it comes
        from here.

        Call :meth:`flush` before the bytes up to ``position`` are put together, in the same turn.
        """
        channel = self._channels[name]
        catchup = channel.catching[subscriber]
        catchup.position = position
        catchup.buffer = []
        if channel.offset is not None and channel.offset >= position:
            del channel.catching[subscriber]
            channel.live.add(subscriber)

    def part(self, name: str, subscriber: Subscriber) -> None:
        """End a subscription, live or catching up. Unknown ones are ignored."""
        channel = self._channels.get(name)
        if channel is None:
            return
        channel.live.discard(subscriber)
        channel.catching.pop(subscriber, None)
        self._forget_if_empty(channel)

    def _forget_if_empty(self, channel: HeldChannel) -> None:
        if channel.live or channel.catching or channel.name == CONTROL:
            return
        if self._channels.get(channel.name) is channel:
            del self._channels[channel.name]
            self._gapped.pop(channel.name, None)
            self._listening.leave(channel.name)

    def subscribers(self, name: str) -> Sequence[Subscriber]:
        """Who listens to a channel on this node and may."""
        channel = self._channels.get(name)
        if channel is None:
            return ()
        ahead = [subscriber for subscriber, catchup in channel.catching.items() if catchup.position is not None]
        return [*channel.live, *ahead]

    def held_channels(self) -> Collection[str]:
        """Channels with subscribers here, and ``control``."""
        return self._channels.keys()

    def _hold(self, entry: Entry) -> None:
        assert self._held is not None
        if len(self._held) >= HELD_ENTRIES:
            self._held.popleft()
        self._held.append(entry)

    def gap(self, channel: HeldChannel) -> None:
        """The channel misses what leads up to its target: heal it, and hold back everything when it is ``control``."""
        if channel.name == CONTROL and self._held is None:
            self._held = deque()
        self._healer.heal(channel)

    def whole(self, channel: HeldChannel) -> None:
        """The channel has no gap any more."""
        self._gapped.pop(channel.name, None)
        channel.tries = 0
        if channel.name == CONTROL:
            held, self._held = self._held, None
            if held:
                self.receive(held)

    # The numbering

    def renumbered(self, channel: HeldChannel) -> None:
        """The numbering began anew, or the rows we need are gone: subscribers come back and get a snapshot."""
        logger.warning("%s cannot be continued; its subscribers reconnect", channel.name)
        subscribers = [*channel.live, *channel.catching]
        channel.live.clear()
        channel.catching.clear()
        self._gapped.pop(channel.name, None)
        if channel.name == CONTROL:
            # Revocations may be among what is gone: nobody here can be trusted to be still allowed.
            subscribers = self.roster.everybody()
            channel.offset, channel.target, channel.waiting = None, 0, {}
            self._held = self._held or deque()
            self.lost()
        self._forget_if_empty(channel)
        for subscriber in subscribers:
            subscriber.close(CloseCode.SERVER_ERROR)

    # The broker and the log

    async def _read_heads(self, names: list[str]) -> Mapping[str, Head]:
        return await self._log.heads(names)


def _make(offers: Iterable[_Offer]) -> None:
    """Raises what one failed with, once all were made. Whoever could not be offered to comes back and resumes."""
    failure: Exception | None = None
    for subscriber, entries, frames in offers:
        try:
            subscriber.offer(entries, frames)
        except Exception as error:
            failure = error
            subscriber.close(CloseCode.SERVER_ERROR)
    if failure is not None:
        raise failure


def _position(place: tuple[int, Entry]) -> int:
    return place[0]
