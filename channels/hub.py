"""This node's channels and who listens to them.

Invariants:

* a live subscriber of a channel gets each durable offset once, in order, without gaps, whatever the broker loses,
  repeats or reorders: the next offset is delivered, an older one dropped, and before a later one the missing rows are
  read from the log;
* what is accepted in one turn of the event loop leaves in one write per subscriber, in order of acceptance, even when
  it listens to several of the channels; each channel's frames are joined once for all;
* entries of the ``control`` channel take effect before anything accepted after them is delivered. While the control
  channel itself has a gap, everything else is held back until it is healed;
* no write waits, and no subscriber's trouble reaches another: a congested one is asked per frame
  (:meth:`Subscriber.offer`).

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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from channels.broker import Broker
from channels.limits import Limits
from channels.listening import Listening
from channels.lookups import Batch
from channels.ports import Metrics, NoMetrics
from channels.protocol import CloseCode, read_event, text_frame
from channels.roster import Roster, Subscriber
from channels.topics import CONTROL
from domain.identity import Actor, Membership, MembershipRole
from domain.log import Entry, EventLog, Head

logger = logging.getLogger(__name__)

HEAL_CHANNELS = 200
"""Channels healed by one query."""

HEAL_ENTRIES = 500
"""Rows of one channel read at once."""

TURN_ENTRIES = 1000
"""Entries joined at most; a longer turn is written in several parts."""

HELD_ENTRIES = 10_000
"""Entries held back while the control channel heals; what is beyond heals by itself later."""

CATCHING_EPHEMERAL = 50
"""Entries without an offset kept for a subscription that is starting; the oldest give way."""

RETRY_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
"""Waits between failed reads of the log; the last one repeats."""


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


class _Channel:
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


ControlListener = Callable[[str, Mapping[str, Any]], None]
"""Gets ``(event type, data)`` of each control entry, on the loop, in order."""


class Hub:
    """See the module. ``receive`` and ``lost`` make it the broker's receiver.

    Attributes:
        roster: who is signed in on this node.
        heads: reads heads of channels; questions of the same moment share a query.
    """

    def __init__(self, log: EventLog, broker: Broker, limits: Limits, metrics: Metrics | None = None) -> None:
        self._log = log
        self._broker = broker
        self._limits = limits
        self._metrics: Metrics = metrics or NoMetrics()
        self._channels: dict[str, _Channel] = {}
        self._turn: list[tuple[_Channel, Entry]] = []
        self._held: deque[Entry] | None = None
        self._gapped: dict[str, None] = {}
        self._audit_due = False
        self._wake = asyncio.Event()
        self._listening = Listening(broker, self._channels, limits.call_seconds)
        self.heads: Batch[str, Head] = Batch(self._read_heads, timeout_seconds=limits.call_seconds)
        self.roster = Roster()
        self._listeners: list[ControlListener] = []
        self._healer: asyncio.Task[None] | None = None
        broker.attach(self)

    # Life

    async def start(self) -> None:
        """Listen to ``control`` and start healing.

        Raises:
            Unavailable: the log or the broker is away.
        """
        self._channels[CONTROL] = _Channel(CONTROL)
        await self._listening.join([CONTROL])
        heads = await self.heads.get([CONTROL])
        self.anchor(CONTROL, heads[CONTROL])
        await self._listening.start()
        self._healer = asyncio.create_task(self._heal_for_ever(), name="hub-heal")

    async def stop(self) -> None:
        """Deliver what is pending and end the tasks."""
        self.flush()
        if self._healer is not None:
            self._healer.cancel()
            await asyncio.gather(self._healer, return_exceptions=True)
            self._healer = None
        await self._listening.stop()
        await self.heads.close()

    def listen(self, listener: ControlListener) -> None:
        """Have control entries told to somebody else too, e.g. to whoever caches revocations or flags."""
        self._listeners.append(listener)

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
                self._accept(channel, entry, entry.offset)
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
        self._audit_due = True
        self._wake.set()

    def _accept(self, channel: _Channel, entry: Entry, offset: int) -> None:
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
                    self._whole(channel)
                return
        channel.target = max(channel.target, offset)
        if len(channel.waiting) < self._limits.waiting_entries:
            channel.waiting[offset] = entry
        # What was not kept is read from the log, because the target stands.
        if channel.offset is not None:
            self._heal(channel)

    def _release(self, channel: _Channel, entry: Entry, offset: int) -> None:
        """The next offset of the channel is here."""
        channel.offset = offset
        if channel.name == CONTROL:
            # Earlier entries go to those who may still have them, later ones must not.
            self.flush()
            self._obey(entry)
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

    def _add_to_turn(self, channel: _Channel, entry: Entry) -> None:
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
        batches: dict[_Channel, list[tuple[int, Entry]]] = {}
        for position, (channel, entry) in enumerate(turn):
            if channel in batches:
                batches[channel].append((position, entry))
            else:
                batches[channel] = [(position, entry)]
        if len(batches) == 1:
            for channel, batch in batches.items():
                self._deliver(channel.live, [entry for _, entry in batch])
            self._metrics.written(turn[0][1])
            return
        plan: dict[Subscriber, tuple[_Channel, ...]] = {}
        for channel in batches:
            for subscriber in channel.live:
                before = plan.get(subscriber)
                plan[subscriber] = (channel,) if before is None else (*before, channel)
        alike: dict[tuple[_Channel, ...], list[Subscriber]] = {}
        for subscriber, channels in plan.items():
            alike.setdefault(channels, []).append(subscriber)
        for channels, subscribers in alike.items():
            merged = [place for channel in channels for place in batches[channel]]
            if len(channels) > 1:
                merged.sort(key=_position)
            self._deliver(subscribers, [entry for _, entry in merged])
        self._metrics.written(turn[0][1])

    def _deliver(self, subscribers: Collection[Subscriber], entries: Sequence[Entry]) -> None:
        """One write of the same bytes to each. This loop is the fan-out: nothing in it may cost."""
        data = text_frame(entries[0].frame) if len(entries) == 1 else b"".join([text_frame(e.frame) for e in entries])
        aside: list[Subscriber] = []
        for subscriber in subscribers:
            if subscriber.congested:
                aside.append(subscriber)
                continue
            try:
                subscriber.write(data)
            except Exception:
                # A transport that died in this very turn; its owner hears of it from the loop.
                logger.debug("a write failed", exc_info=True)
        self._metrics.delivered((len(subscribers) - len(aside)) * len(entries))
        # After the loop, because offering may close a session and so change the set.
        for subscriber in aside:
            subscriber.offer(entries)

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
        unheard: list[_Channel] = []
        for name in names:
            channel = self._channels.get(name)
            if channel is None:
                channel = self._channels[name] = _Channel(name)
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
                self._accept(channel, waiting[offset], offset)
        elif channel.epoch != head.epoch:
            self._renumbered(channel)

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

    def _forget_if_empty(self, channel: _Channel) -> None:
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

    # Control

    def _obey(self, entry: Entry) -> None:
        try:
            event = read_event(entry.frame)
            kind, data = event["type"], event["data"]
            if kind == "access.revoked":
                self._revoke_access(data)
            elif kind == "access.changed":
                self._change_access(data)
            elif kind == "session.revoked":
                self._revoke_sessions(data)
            for listener in self._listeners:
                listener(kind, data)
        except Exception:
            # An entry nobody can read must not stop the channel that carries revocations.
            logger.exception("a control entry failed", extra={"offset": entry.offset})

    def _revoke_access(self, data: Mapping[str, Any]) -> None:
        user_ids = frozenset(data.get("user_ids") or ())
        provider_ids = frozenset(data.get("provider_ids") or ())
        for name in data.get("channels") or ():
            channel = self._channels.get(name)
            if channel is None:
                continue
            for subscriber in [*channel.live, *channel.catching]:
                actor = subscriber.actor
                if actor is None or actor.is_operations:
                    continue
                if actor.user_id in user_ids or actor.provider_ids & provider_ids:
                    channel.live.discard(subscriber)
                    catchup = channel.catching.pop(subscriber, None)
                    if catchup is not None:
                        catchup.revoked = True
                    subscriber.taken(name)
            self._forget_if_empty(channel)
        if (organisation_id := data.get("organisation_id")) is not None:
            self._replace_actors(user_ids, lambda actor: actor.without(organisation_id))

    def _change_access(self, data: Mapping[str, Any]) -> None:
        given = data["membership"]
        role = MembershipRole(given["role"])
        membership = Membership(given["organisation_id"], given["provider_id"], role)
        self._replace_actors(frozenset(data["user_ids"]), lambda actor: actor.having(membership))

    def _replace_actors(self, user_ids: Collection[str], change: Callable[[Actor], Actor]) -> None:
        """Sessions of these people speak with other memberships from now on, and lose what those do not open.

        A subscription that is just starting is judged anew before it goes live, see :mod:`channels.subscriptions`.
        """
        for subscriber in self.roster.change(user_ids):
            if subscriber.actor is None:
                continue
            for name in subscriber.become(change(subscriber.actor)):
                self.part(name, subscriber)
                subscriber.taken(name)

    def _revoke_sessions(self, data: Mapping[str, Any]) -> None:
        session_ids = frozenset(data.get("session_ids") or ())
        user_ids = frozenset(data.get("user_ids") or ())
        gone = self.roster.sign_out(session_ids, user_ids)
        for subscriber in gone:
            subscriber.close(CloseCode.REVOKED)

    def _hold(self, entry: Entry) -> None:
        assert self._held is not None
        if len(self._held) >= HELD_ENTRIES:
            self._held.popleft()
        self._held.append(entry)

    def _whole(self, channel: _Channel) -> None:
        """The channel has no gap any more."""
        self._gapped.pop(channel.name, None)
        channel.tries = 0
        if channel.name == CONTROL:
            held, self._held = self._held, None
            if held:
                self.receive(held)

    # Healing

    async def audit(self) -> None:
        """Compare every channel held here with the log and heal those behind: bounds how long a lost tail stays lost.

        Raises:
            Unavailable: the log is away.
        """
        names = list(self._channels)
        for start in range(0, len(names), HEAL_CHANNELS):
            heads = await self.heads.get(names[start : start + HEAL_CHANNELS])
            for name in names[start : start + HEAL_CHANNELS]:
                channel, head = self._channels.get(name), heads.get(name)
                if channel is None or head is None:
                    continue
                if channel.offset is None:
                    if name == CONTROL:
                        self.anchor(name, head)
                        self._whole(channel)
                elif channel.epoch != head.epoch:
                    self._renumbered(channel)
                elif head.offset > channel.offset:
                    channel.target = max(channel.target, head.offset)
                    self._heal(channel)

    def _heal(self, channel: _Channel) -> None:
        self._gapped[channel.name] = None
        if channel.name == CONTROL and self._held is None:
            self._held = deque()
        self._wake.set()

    async def _heal_for_ever(self) -> None:
        failures = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                if self._audit_due:
                    self._audit_due = False
                    await self.audit()
                while self._gapped:
                    await self._heal_some()
                failures = 0
            except Exception:
                wait = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                failures += 1
                logger.warning("healing from the log failed; again in %.2f s", wait, exc_info=True)
                self._audit_due = True
                self._wake.set()
                await asyncio.sleep(wait)

    async def _heal_some(self) -> None:
        # Control first: everything else waits for it.
        names = [CONTROL] if CONTROL in self._gapped else list(self._gapped)[:HEAL_CHANNELS]
        after = {
            name: channel.offset
            for name in names
            if (channel := self._channels.get(name)) is not None and channel.offset is not None
        }
        for name in names:
            if name not in after:
                self._gapped.pop(name, None)
        if not after:
            return
        async with asyncio.timeout(self._limits.call_seconds):
            rows = await self._log.read_many(after, HEAL_ENTRIES)
        stuck: list[_Channel] = []
        for name, since in after.items():
            channel = self._channels.get(name)
            if channel is None or channel.offset is None:
                self._gapped.pop(name, None)
                continue
            for entry in rows.get(name, ()):
                if entry.offset is not None:
                    self._accept(channel, entry, entry.offset)
            self._metrics.healed(channel.offset - since)
            if channel.offset >= channel.target:
                self._whole(channel)
            elif channel.offset == since:
                stuck.append(channel)
        if stuck:
            await self._unstick(stuck)

    async def _unstick(self, channels: Sequence[_Channel]) -> None:
        """The log has no row after our offset although a later one was heard of."""
        heads = await self.heads.get([channel.name for channel in channels])
        tries = 0
        for channel in channels:
            head = heads.get(channel.name)
            if head is None or channel.offset is None:
                continue
            if head.epoch != channel.epoch or head.floor > channel.offset:
                self._renumbered(channel)
                continue
            channel.tries += 1
            tries = max(tries, channel.tries)
            # Behind the others, which may have rows.
            self._gapped.pop(channel.name, None)
            self._gapped[channel.name] = None
            if channel.tries > len(RETRY_SECONDS) and head.offset < channel.target:
                logger.error("%s was announced beyond the log's head", channel.name, extra={"offset": channel.target})
                channel.target = head.offset
                channel.waiting.clear()
                if channel.offset >= head.offset:
                    self._whole(channel)
        if tries:
            await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS)) - 1])

    def _renumbered(self, channel: _Channel) -> None:
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


def _position(place: tuple[int, Entry]) -> int:
    return place[0]
