"""How a subscription starts: live first, then the log, then both merged by offset. No gap, no duplicate.

The order matters, and each step is there for a race:

1. *join*: from here on the hub buffers what it accepts for this subscriber; nothing is delivered;
2. *permission*, read after joining: a revocation that commits later arrives on ``control`` and finds the
   registration, one that committed earlier shows in the facts. A membership that comes or goes meanwhile replaces the
   subscriber's actor: then permission is asked for again, with the new one, before the end;
3. *head*, read after joining: everything up to it is in the log, everything accepted here after joining is in the
   buffer;
4. *missed entries* after the client's offset, or, when they cannot be had, a *state*, read after the head and
   therefore at least as new;
5. *merge*: log and buffer overlap or touch; if they do not (the buffer began above what was read, or overflowed), the
   log is read again. Then, in one turn with the reply, the subscriber goes live.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import orjson

from channels.held_channel import Catchup
from channels.hub import Hub
from channels.limits import Limits
from channels.lookups import Batch
from channels.ports import Access, Snapshots
from channels.protocol import event_params, text_frame
from channels.roster import Subscriber
from channels.topics import UNKNOWN, Facts, Kind, Topic, may_subscribe, needs_facts, parse
from domain.errors import Forbidden, Unavailable
from domain.identity import Actor
from domain.log import Entry, EventLog, Head
from domain.types import JSON

MERGE_ROUNDS = 5
"""Reads of the log to close the space between it and the buffer; a channel that outruns them is answered
``unavailable``."""

WITHOUT_STATE = frozenset({Kind.USER})
"""Channels that have no snapshot whatever the adapter says, so that it is not asked."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a client stands on a channel: it has handled everything up to ``offset`` of that ``epoch``."""

    epoch: str
    offset: int


@dataclass(frozen=True, slots=True)
class Opened:
    """Subscriptions that are live now.

    Attributes:
        replies: for each channel ``{epoch, offset, recovered, events, state?}``; events are spliced bytes.
        trailing: finished frames that must be written right after the reply, before anything else.
        hinges: channels that a role or a membership opened, with the facts it was judged by: when those of the person
            change, these have to be judged anew.
    """

    replies: Mapping[str, JSON]
    trailing: bytes
    hinges: Mapping[str, Facts] = field(default_factory=dict)


class _Opening:
    """One channel on its way."""

    __slots__ = ("catchup", "events", "head", "reached", "recovered", "resume", "state", "topic", "trailing")

    def __init__(self, topic: Topic, resume: Resume | None, catchup: Catchup, head: Head) -> None:
        self.topic = topic
        self.resume = resume
        self.catchup = catchup
        self.head = head
        self.recovered = (
            resume is not None and resume.epoch == head.epoch and head.floor <= resume.offset <= head.offset
        )
        self.reached = resume.offset if resume is not None and self.recovered else head.offset
        self.events: list[bytes] = []
        self.trailing: list[bytes] = []
        self.state: JSON | None = None

    def take(self, entries: Sequence[Entry]) -> None:
        """Append entries that continue what was reached; skip those before."""
        for entry in entries:
            if entry.offset == self.reached + 1:
                self.reached += 1
                if self.recovered:
                    self.events.append(event_params(entry.frame))
                else:
                    self.trailing.append(text_frame(entry.frame))


class Subscriptions:
    """Starts subscriptions; the queries of those that start together are shared."""

    def __init__(self, hub: Hub, log: EventLog, access: Access, snapshots: Snapshots, limits: Limits) -> None:
        self._hub = hub
        self._log = log
        self._access = access
        self._snapshots = snapshots
        self._limits = limits
        self._entries: Batch[tuple[str, int], Sequence[Entry]] = Batch(
            self._read_entries, timeout_seconds=limits.call_seconds
        )
        self._facts: Batch[Topic, Facts] = Batch(self._read_facts, timeout_seconds=limits.call_seconds)

    async def close(self) -> None:
        """End the running queries."""
        await self._entries.close()
        await self._facts.close()

    async def open(
        self,
        subscriber: Subscriber,
        actor: Actor,
        wanted: Mapping[str, Resume | None],
        optional: Mapping[str, Resume | None] | None = None,
    ) -> Opened:
        """Subscribe to channels, all or none of those that are ``wanted``.

        An ``optional`` one that is not a channel, not there or not this person's is left out of the answer: a client
        that comes back names what it had, and may have lost some of it meanwhile.

        The caller writes its reply and then ``trailing`` without awaiting anything in between.

        Raises:
            Forbidden: a channel is not a channel, not there, or not this person's; or the subscriber is gone.
            Unavailable: the log, the broker or the database did not answer in time.
        """
        topics = {name: topic for name in (*wanted, *(optional or ())) if (topic := parse(name)) is not None}
        if not topics.keys() >= wanted.keys():
            raise Forbidden
        wanted = {name: resume for name, resume in {**(optional or {}), **wanted}.items() if name in topics}
        try:
            catchups = await self._hub.join(wanted, subscriber)
            facts = await self._facts_of(topics)
            for name in _forbidden(actor, topics, facts):
                if optional is None or name not in optional:
                    raise Forbidden
                self._hub.part(name, subscriber)
                del wanted[name]
            heads = await self._hub.heads.get(wanted)
            openings = {
                name: _Opening(topics[name], resume, catchups[name], heads[name]) for name, resume in wanted.items()
            }
            for name, opening in openings.items():
                self._hub.anchor(name, opening.head)
            await self._replay(openings)
            await self._read_states(actor, openings)
            await self._close_the_space(openings)
            while subscriber.actor is not None and subscriber.actor != actor:
                actor = subscriber.actor
                facts = await self._facts_of(topics)
                for name in _forbidden(actor, {name: topics[name] for name in openings}, facts):
                    openings[name].catchup.revoked = True
                    self._hub.part(name, subscriber)
                await self._close_the_space(openings)
            for name in [name for name, opening in openings.items() if opening.catchup.revoked]:
                if optional is None or name not in optional:
                    raise Forbidden
                del openings[name]
            if subscriber.closed:
                raise Forbidden
            opened = self._settle(subscriber, openings)
            return replace(opened, hinges=_hinges(actor, {name: topics[name] for name in openings}, facts))
        except BaseException:
            for name in wanted:
                self._hub.part(name, subscriber)
            raise

    async def _facts_of(self, topics: Mapping[str, Topic]) -> Mapping[Topic, Facts]:
        asked = [topic for topic in topics.values() if needs_facts(topic)]
        return await self._facts.get(asked) if asked else {}

    async def _replay(self, openings: Mapping[str, _Opening]) -> None:
        """Read what was missed; what is too much is not recovered."""
        behind = {name: opening for name, opening in openings.items() if opening.reached < opening.head.offset}
        for name, opening in list(behind.items()):
            if opening.head.offset - opening.reached > self._limits.replay_entries:
                opening.recovered = False
                opening.reached = opening.head.offset
                del behind[name]
        if not behind:
            return
        rows = await self._entries.get([(name, opening.reached) for name, opening in behind.items()])
        budget = self._limits.replay_bytes
        for name, opening in behind.items():
            entries = rows.get((name, opening.reached), ())
            budget -= sum(len(entry.frame) for entry in entries)
            if budget >= 0:
                opening.take(entries)
            if opening.reached < opening.head.offset:
                # Over the budget, or the log was trimmed since its head was read.
                opening.recovered = False
                opening.events = []
                opening.reached = opening.head.offset

    async def _read_states(self, actor: Actor, openings: Mapping[str, _Opening]) -> None:
        fresh = [
            opening
            for opening in openings.values()
            if not opening.recovered and opening.topic.kind not in WITHOUT_STATE
        ]
        if not fresh:
            return
        try:
            async with asyncio.timeout(self._limits.call_seconds):
                for opening in fresh:
                    opening.state = await self._snapshots.state(actor, opening.topic)
        except TimeoutError:
            raise Unavailable from None

    async def _close_the_space(self, openings: Mapping[str, _Opening]) -> None:
        """Take the buffers in; read the log again where they do not continue what was read."""
        for _ in range(MERGE_ROUNDS):
            lacking: list[tuple[str, int]] = []
            for name, opening in openings.items():
                catchup = opening.catchup
                if catchup.revoked:
                    continue
                opening.take(catchup.buffer)
                catchup.buffer.clear()
                catchup.overflowed = False
                if opening.reached < (self._hub.offset(name) or 0):
                    lacking.append((name, opening.reached))
            if not lacking:
                return
            rows = await self._entries.get(lacking)
            for name, after in lacking:
                openings[name].take(rows.get((name, after), ()))
        raise Unavailable

    def _settle(self, subscriber: Subscriber, openings: Mapping[str, _Opening]) -> Opened:
        # What was accepted in this turn is in the buffers already; it must not also come with the turn's write.
        self._hub.flush()
        replies: dict[str, JSON] = {}
        trailing: list[bytes] = []
        for name, opening in openings.items():
            self._hub.go_live(name, subscriber, opening.reached)
            reply: JSON = {
                "epoch": opening.head.epoch,
                "offset": opening.reached if opening.recovered else opening.head.offset,
                "recovered": opening.recovered,
                "events": [orjson.Fragment(event) for event in opening.events],
            }
            if opening.state is not None:
                reply["state"] = opening.state
            replies[name] = reply
            trailing += opening.trailing
            # Not in the log, so the buffer is the only place to have them from. They come last: none is
            # older than the state.
            trailing += [text_frame(entry.frame) for entry in opening.catchup.ephemeral]
        return Opened(replies, b"".join(trailing))

    async def _read_entries(self, keys: list[tuple[str, int]]) -> Mapping[tuple[str, int], Sequence[Entry]]:
        """Entries after each ``(channel, offset)``; those of one channel share a read from the lowest offset."""
        limit = self._limits.replay_entries + 1
        found: dict[tuple[str, int], Sequence[Entry]] = {}
        left = list(keys)
        while left:
            lowest: dict[str, int] = {}
            for name, after in left:
                lowest[name] = min(after, lowest.get(name, after))
            rows = await self._log.read_many(lowest, limit)
            again: list[tuple[str, int]] = []
            for name, after in left:
                entries = rows.get(name, ())
                if after != lowest[name] and len(entries) >= limit:
                    # The shared read may have ended before this one's share did.
                    again.append((name, after))
                else:
                    found[name, after] = [entry for entry in entries if (entry.offset or 0) > after]
            left = again
        return found

    async def _read_facts(self, topics: list[Topic]) -> Mapping[Topic, Facts]:
        return await self._access.facts(topics)


def _forbidden(actor: Actor, topics: Mapping[str, Topic], facts: Mapping[Topic, Facts]) -> list[str]:
    return [name for name, topic in topics.items() if not may_subscribe(actor, topic, facts.get(topic, UNKNOWN))]


def _hinges(actor: Actor, topics: Mapping[str, Topic], facts: Mapping[Topic, Facts]) -> dict[str, Facts]:
    """The channels that the person would not have without roles and memberships."""
    if not actor.memberships and not actor.is_operations:
        return {}
    bare = replace(actor, roles=frozenset(), memberships=())
    return {name: facts.get(topics[name], UNKNOWN) for name in _forbidden(bare, topics, facts)}
