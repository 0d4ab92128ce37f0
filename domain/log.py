"""The event log as the live side sees it: per-channel offsets, a global cursor, and no way to write.

Invariants (kept by the sequencer in :mod:`persistence.sequencer`):

* offsets of one channel are 1, 2, 3 … without gaps, in commit order of the transactions that made the events;
* ``sequence`` grows by one per entry within a partition and is assigned in the transaction that makes the entry
  visible, so "everything after N" never skips a late commit;
* an ``epoch`` names one life of a channel's numbering; an offset means nothing under another epoch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from domain.events import EventClass


@dataclass(frozen=True, slots=True)
class Entry:
    """One event on one channel, as stored and as sent.

    Attributes:
        channel: e.g. ``booking:01J…``.
        offset: position on the channel, from 1; ``None`` for an ephemeral event, which is not in the log.
        sequence: position in the partition's log, from 1; 0 for an ephemeral event.
        event_class: see :class:`domain.events.EventClass`.
        key: conflation key of a ``latest`` event.
        frame: the exact JSON text a client gets, UTF-8, without the WebSocket header.
        partition: which sequencer assigned the sequence.
    """

    channel: str
    offset: int | None
    sequence: int
    event_class: EventClass
    key: str | None
    frame: bytes
    partition: int = 0


@dataclass(frozen=True, slots=True)
class Head:
    """Where a channel stands: ``offset`` of its newest entry (0: none yet), and the oldest offset still kept minus
    one.
    """

    epoch: str
    offset: int
    floor: int = 0


class EventLog(Protocol):
    """Reads of the durable log. Every call is bounded by the database's timeout and raises ``Unavailable`` past it."""

    async def heads(self, channels: Collection[str]) -> Mapping[str, Head]:
        """The head of each channel. A channel that never had an event gets a head too, with the epoch it will keep."""

    async def read(self, channel: str, after: int, limit: int) -> Sequence[Entry]:
        """Entries of one channel with ``offset > after``, oldest first, at most ``limit``."""

    async def read_many(self, after: Mapping[str, int], limit: int) -> Mapping[str, Sequence[Entry]]:
        """:meth:`read` for several channels in one query; ``limit`` is per channel."""

    async def tail(self, after: Mapping[int, int], limit: int) -> Sequence[Entry]:
        """Entries of every channel past a cursor ``{partition: sequence}``, in sequence order, at most ``limit``."""

    async def cursor(self) -> Mapping[int, int]:
        """The newest sequence of each partition: the cursor from which :meth:`tail` would find nothing yet."""
