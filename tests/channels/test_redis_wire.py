from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.redis_wire import Beat, Unreadable, pack_beat, pack_entry, pack_message, unpack_beat, unpack_message
from domain.events import EventClass
from domain.log import Entry

entries = st.builds(
    Entry,
    channel=st.just("booking:1"),
    offset=st.none() | st.integers(1, 2**63),
    sequence=st.integers(0, 2**63),
    event_class=st.sampled_from(EventClass),
    key=st.none() | st.text(max_size=50),
    frame=st.binary(max_size=200),
    partition=st.integers(0, 65535),
)


@given(st.lists(entries, max_size=5))
def test_entries_survive_the_way(sent: list[Entry]) -> None:
    assert unpack_message("booking:1", pack_message(map(pack_entry, sent))) == sent


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        unpack_message("booking:1", data)
        unpack_beat(data)
    except Unreadable:
        pass


@given(entries, st.integers(1, 20))
def test_a_message_that_is_cut_off_is_refused(entry: Entry, cut: int) -> None:
    message = pack_message([pack_entry(entry)])
    with pytest.raises(Unreadable):
        unpack_message("booking:1", message[:-cut] or b"")


@given(st.text(max_size=60), st.dictionaries(st.integers(0, 65535), st.integers(0, 2**63), max_size=8))
def test_heartbeats_survive_the_way(node_id: str, positions: dict[int, int]) -> None:
    assert unpack_beat(pack_beat(Beat(node_id, positions))) == Beat(node_id, positions)
