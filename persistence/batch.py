"""One batch of the sequencer without its database: outbox rows in, log entries, new heads and parked rows out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Row

from domain.events import Audience, Event, EventClass
from domain.log import Entry
from domain.types import JSON, Origin, wire_time

Route = Callable[[Event], Sequence[str]]
"""The channels of an event, each once; :func:`channels.topics.route`."""

Encode = Callable[[Event, str, int, Origin, bytes], bytes]
"""The frame of an event on a channel at an offset, from its data as JSON; :func:`channels.protocol.encode_event`."""

MAX_FRAME_BYTES = 1 << 20
"""A larger frame is poison: it would fit neither a statement to the database nor a socket's budget."""

MAX_CHANNEL_LENGTH = 160
"""The width of the channel's column."""

_MAX_ERROR_LENGTH = 2000

_PARKED_AS_IS = (
    "id",
    "partition",
    "event_id",
    "type",
    "source",
    "event_class",
    "key",
    "audience",
    "data",
    "correlation_id",
    "traceparent",
)


@dataclass(slots=True)
class _Head:
    epoch: str
    offset: int
    floor: int


@dataclass(frozen=True, slots=True)
class _Routed:
    row: Row[Any]
    event: Event
    data_json: bytes
    channels: Sequence[str]


class Batch:
    """Outbox rows on their way to the log, in id order.

    First route them (the constructor), then fetch the heads of :attr:`channels`, then :meth:`place` them.

    Attributes:
        entries: in sequence order.
        newest: the partition's newest sequence with them.
        parked: rows for ``outbox_parked``: those whose reading, routing or encoding raised. They take no offset.
    """

    def __init__(self, rows: Iterable[Row[Any]], route: Route, now: datetime) -> None:
        self.entries: list[Entry] = []
        self.newest = 0
        self.parked: list[JSON] = []
        self._now = now
        self._heads: dict[str, _Head] = {}
        self._routed: list[_Routed] = []
        for row in rows:
            try:
                event = _event(row)
                channels = route(event)
                if any(len(channel) > MAX_CHANNEL_LENGTH for channel in channels):
                    raise ValueError("a channel's name is too long")  # parked like what route raises
            except Exception as error:  # whatever is wrong with one event must not stop the others
                self._park(row, error)
            else:
                self._routed.append(_Routed(row, event, row.data.encode(), channels))

    @property
    def channels(self) -> list[str]:
        """Every channel the batch writes to, sorted: the order in which heads are locked."""
        return sorted({channel for routed in self._routed for channel in routed.channels})

    def place(
        self,
        heads: Iterable[Row[Any]],
        new_epoch: Callable[[str], str],
        encode: Encode,
        partition: int,
        sequence: int,
    ) -> None:
        """Give every event its offsets and make its frames.

        Args:
            heads: rows of ``channel_heads``; a channel without one begins now, with the epoch of ``new_epoch``.
            sequence: the partition's newest so far.
        """
        self._heads = {head.channel: _Head(head.epoch, head.offset, head.floor) for head in heads}
        for routed in self._routed:
            event, row = routed.event, routed.row
            origin = Origin(row.correlation_id, row.traceparent)
            entries: list[Entry] = []
            try:
                for channel in routed.channels:
                    head = self._heads.get(channel)
                    offset = head.offset + 1 if head is not None else 1
                    frame = encode(event, channel, offset, origin, routed.data_json)
                    if len(frame) > MAX_FRAME_BYTES:
                        raise ValueError(f"a frame of {len(frame)} bytes")  # parked, as above
                    sequence += 1
                    entries.append(Entry(channel, offset, sequence, event.event_class, event.key, frame, partition))
            except Exception as error:
                sequence -= len(entries)
                self._park(row, error)
                continue
            # Only an event that has all its frames moves the heads: a parked one must leave no gap.
            for entry in entries:
                assert entry.offset is not None
                head = self._heads.get(entry.channel)
                if head is None:
                    self._heads[entry.channel] = _Head(new_epoch(entry.channel), entry.offset, 0)
                else:
                    head.offset = entry.offset
            self.entries += entries
        self.newest = sequence

    def head_rows(self) -> list[JSON]:
        """The heads that moved, for an upsert in lock order."""
        return [
            {"channel": channel, "epoch": head.epoch, "offset": head.offset, "floor": head.floor}
            for channel in sorted({entry.channel for entry in self.entries})
            for head in (self._heads[channel],)
        ]

    def log_rows(self) -> list[JSON]:
        """The entries, for an insert."""
        return [
            {
                "partition": entry.partition,
                "sequence": entry.sequence,
                "channel": entry.channel,
                "offset": entry.offset,
                "event_class": entry.event_class.value,
                "key": entry.key,
                "frame": entry.frame,
                "written_at": self._now,
            }
            for entry in self.entries
        ]

    def _park(self, row: Row[Any], error: Exception) -> None:
        content = {name: getattr(row, name) for name in _PARKED_AS_IS}
        self.parked.append(
            {
                "id": row.id,
                "row": content | {"time": wire_time(row.time)},
                "error": f"{type(error).__name__}: {error}"[:_MAX_ERROR_LENGTH],
                "parked_at": self._now,
            }
        )


def _event(row: Row[Any]) -> Event:
    """The event of an outbox row, whose ``audience`` and ``data`` are JSON text."""
    audience = orjson.loads(row.audience)
    data = orjson.loads(row.data)
    return Event(
        id=row.event_id,
        type=row.type,
        time=row.time,
        source=row.source,
        data=data,
        audience=Audience(
            users=tuple(audience["users"]),
            providers=tuple(audience["providers"]),
            organisations=tuple(audience["organisations"]),
            booking=audience["booking"],
            conversation=audience["conversation"],
            zones=tuple(audience["zones"]),
            slots=tuple((service, zone) for service, zone in audience["slots"]),
        ),
        event_class=EventClass(row.event_class),
        key=row.key,
    )
