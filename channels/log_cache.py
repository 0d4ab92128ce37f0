"""The newest entries of busy channels, in Redis, so that a storm of resuming clients does not read them from the
database again and again.

Never the truth. An answer comes from here only when the entries held run without a gap from the offset asked for to
the channel's head, which is read from the database first; else the database answers. Losing everything here costs some
queries.

Each channel is a Redis stream whose ids are offsets, so an entry that is added twice or late is refused by Redis
itself. The sequencing node adds entries after their commit; streams are short and expire.

A stream's name holds the namespace of one life of the database (:meth:`channels.redis_client.RedisClient.start`), so
offsets of another life are never found.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from channels.redis_client import RedisClient
from channels.redis_pipe import Words
from channels.redis_wire import Unreadable, pack_entry, unpack_record
from channels.topics import CONTROL
from domain.errors import Unavailable
from domain.log import Entry, EventLog, Head

logger = logging.getLogger(__name__)

_FIELD = b"e"


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Bounds of the cache.

    Attributes:
        entries: newest entries kept of each channel; Redis may keep a few more, as it drops whole blocks.
        seconds: from a channel's last entry until all of it goes.
        call_seconds: for one read; past it the database answers.
    """

    entries: int = 200
    seconds: int = 600
    call_seconds: float = 0.1


@dataclass(slots=True)
class CacheCounts:
    """Channels answered from here, and those that the database had to answer; for metrics."""

    hits: int = 0
    misses: int = 0


class CachedLog:
    """Implements :class:`domain.log.EventLog` over another one.

    Attributes:
        counts: for metrics.
    """

    def __init__(self, log: EventLog, client: RedisClient, size: CacheSize | None = None) -> None:
        self.counts = CacheCounts()
        self._log = log
        self._client = client
        self._size = size or CacheSize()

    def add(self, entries: Sequence[Entry]) -> None:
        """Keep entries that were committed just now. Never waits and never raises; what is lost leaves a gap, which
        is noticed.
        """
        if not self._client.connected:
            return
        commands: list[tuple[bytes, Words]] = []
        touched: dict[bytes, None] = {}
        for entry in entries:
            if entry.offset is None or entry.channel == CONTROL:
                continue
            name = self._name(entry.channel)
            touched[name] = None
            place = f"{entry.offset}-0"
            words: Words = ("XADD", name, "MAXLEN", "~", self._size.entries, place, _FIELD, pack_entry(entry))
            commands.append((name, words))
        commands += ((name, ("EXPIRE", name, self._size.seconds)) for name in touched)
        self._client.post(commands)

    async def heads(self, channels: Collection[str]) -> Mapping[str, Head]:
        return await self._log.heads(channels)

    async def tail(self, after: Mapping[int, int], limit: int) -> Sequence[Entry]:
        return await self._log.tail(after, limit)

    async def cursor(self) -> Mapping[int, int]:
        return await self._log.cursor()

    async def read(self, channel: str, after: int, limit: int) -> Sequence[Entry]:
        return (await self.read_many({channel: after}, limit))[channel]

    async def read_many(self, after: Mapping[str, int], limit: int) -> Mapping[str, Sequence[Entry]]:
        if limit <= 0 or not self._client.connected:
            return await self._log.read_many(after, limit)
        heads = await self._log.heads(after.keys())
        found: dict[str, Sequence[Entry]] = {}
        wanted: dict[str, range] = {}
        for channel, since in after.items():
            head = heads[channel]
            if head.offset <= since:
                found[channel] = ()
            elif since >= head.floor and head.offset - since <= self._size.entries:
                wanted[channel] = range(since + 1, min(head.offset, since + limit) + 1)
        found |= await self._held(wanted)
        missing = {channel: since for channel, since in after.items() if channel not in found}
        self.counts.hits += sum(1 for channel in wanted if channel in found)
        self.counts.misses += len(missing)
        if missing:
            found |= await self._log.read_many(missing, limit)
        return found

    async def _held(self, wanted: Mapping[str, range]) -> dict[str, Sequence[Entry]]:
        """The channels of which exactly the wanted offsets are held."""
        commands: list[tuple[bytes, Words]] = []
        for channel, offsets in wanted.items():
            name = self._name(channel)
            commands.append((name, ("XRANGE", name, f"{offsets[0]}-0", f"{offsets[-1]}-0", "COUNT", len(offsets))))
        try:
            answers = await self._client.run(commands, self._size.call_seconds)
        except Unavailable:
            return {}
        held: dict[str, Sequence[Entry]] = {}
        for (channel, offsets), answer in zip(wanted.items(), answers, strict=True):
            entries = _entries(channel, answer)
            if [entry.offset for entry in entries] == list(offsets):
                held[channel] = entries
        return held

    def _name(self, channel: str) -> bytes:
        return self._client.name("log", channel)


def _entries(channel: str, answer: Any) -> Sequence[Entry]:
    """Read an answer to ``XRANGE``: ``[[id, [field, value]], …]``; nothing when it is an error or unreadable."""
    try:
        return [unpack_record(channel, fields[1]) for _, fields in answer] if isinstance(answer, list) else ()
    except (Unreadable, ValueError, IndexError, TypeError):
        logger.warning("entries of %s in the cache could not be read", channel)
        return ()
