"""What travels through Redis, as bytes: entries with a short header, and heartbeats.

A message is a version byte and one or more records, all of one channel, whose name Redis itself carries. A record is a
header (big-endian), the conflation key in UTF-8, and the frame exactly as clients get it. Nothing is encoded again on
the way, neither here nor at the other end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from domain.events import EventClass
from domain.log import Entry

VERSION = 1

_HEADER = struct.Struct(">BHHQQI")
"""class, partition, length of the key, offset (0: none), sequence, length of the frame."""

_NO_KEY = 0xFFFF
_CLASSES = (EventClass.DURABLE, EventClass.LATEST, EventClass.EPHEMERAL)
_CODES = {event_class: code for code, event_class in enumerate(_CLASSES)}

_BEAT = struct.Struct(">BBH")
"""version, length of the node's name, number of positions."""

_POSITION = struct.Struct(">HQ")
"""partition, newest sequence."""


class Unreadable(ValueError):
    """Bytes of another version, or not ours."""


def pack_entry(entry: Entry) -> bytes:
    """One record."""
    key = b"" if entry.key is None else entry.key.encode()
    return b"".join(
        (
            _HEADER.pack(
                _CODES[entry.event_class],
                entry.partition,
                _NO_KEY if entry.key is None else len(key),
                entry.offset or 0,
                entry.sequence,
                len(entry.frame),
            ),
            key,
            entry.frame,
        )
    )


def pack_message(records: Iterable[bytes]) -> bytes:
    """A message of records."""
    return b"".join((bytes((VERSION,)), *records))


def unpack_message(channel: str, message: bytes) -> list[Entry]:
    """The entries of a message that came on this channel.

    Raises:
        Unreadable: another version, or cut off.
    """
    if not message or message[0] != VERSION:
        raise Unreadable("a message of another version")
    entries: list[Entry] = []
    at, end = 1, len(message)
    try:
        while at < end:
            code, partition, key_bytes, offset, sequence, frame_bytes = _HEADER.unpack_from(message, at)
            at += _HEADER.size
            key: str | None = None
            if key_bytes != _NO_KEY:
                key = message[at : at + key_bytes].decode()
                at += key_bytes
            frame = message[at : at + frame_bytes]
            at += frame_bytes
            entries.append(Entry(channel, offset or None, sequence, _CLASSES[code], key, frame, partition))
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise Unreadable(str(error)) from error
    if at != end:
        raise Unreadable("a message that is cut off")
    return entries


def unpack_record(channel: str, record: bytes) -> Entry:
    """The one entry of a record without a version byte.

    Raises:
        Unreadable: cut off.
    """
    (entry,) = unpack_message(channel, bytes((VERSION,)) + record)
    return entry


@dataclass(frozen=True, slots=True)
class Beat:
    """A node's sign of life, with the newest sequence of each partition that it sequences."""

    node_id: str
    positions: Mapping[int, int]


def pack_beat(beat: Beat) -> bytes:
    """A heartbeat as bytes."""
    name = beat.node_id.encode()[:255]
    positions: Sequence[tuple[int, int]] = sorted(beat.positions.items())
    return _BEAT.pack(VERSION, len(name), len(positions)) + name + b"".join(_POSITION.pack(*each) for each in positions)


def unpack_beat(data: bytes) -> Beat:
    """A heartbeat from bytes.

    Raises:
        Unreadable: another version, or not a heartbeat.
    """
    try:
        version, name_bytes, count = _BEAT.unpack_from(data)
        start = _BEAT.size + name_bytes
        if version != VERSION or len(data) != start + count * _POSITION.size:
            raise Unreadable("a heartbeat of another version")
        return Beat(data[_BEAT.size : start].decode(), dict(_POSITION.iter_unpack(data[start:])))
    except (struct.error, UnicodeDecodeError) as error:
        raise Unreadable(str(error)) from error
