"""What every event log must answer. A test module subclasses :class:`LogContract` and gives it the fixture."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from domain.log import Entry, EventLog


@dataclass
class Written:
    """A log and the way to write to it; ``append`` makes one entry on a channel and returns it as it was published."""

    log: EventLog
    append: Callable[[str], Awaitable[Entry]]


class LogContract:
    async def test_entries_after_an_offset_in_order(self, written: Written) -> None:
        entries = [await written.append("booking:1") for _ in range(10)]
        await written.append("booking:2")
        assert list(await written.log.read("booking:1", 0, 100)) == entries
        assert list(await written.log.read("booking:1", 6, 100)) == entries[6:]
        assert list(await written.log.read("booking:1", 6, 2)) == entries[6:8]
        assert list(await written.log.read("booking:1", 10, 100)) == []
        assert list(await written.log.read("booking:1", 99, 100)) == []
        assert list(await written.log.read("booking:none", 0, 100)) == []

    async def test_several_channels_at_once_each_with_its_offset(self, written: Written) -> None:
        ones = [await written.append("booking:1") for _ in range(5)]
        twos = [await written.append("booking:2") for _ in range(5)]
        found = await written.log.read_many({"booking:1": 2, "booking:2": 0, "booking:3": 0, "booking:4": 7}, 4)
        assert {channel: list(entries) for channel, entries in found.items() if entries} == {
            "booking:1": ones[2:],
            "booking:2": twos[:4],
        }

    async def test_what_was_just_written_is_read(self, written: Written) -> None:
        for n in range(30):
            entry = await written.append("booking:1")
            assert list(await written.log.read("booking:1", n, 100)) == [entry]

    async def test_the_tail_holds_every_channel_in_sequence(self, written: Written) -> None:
        before = dict(await written.log.cursor())
        entries = [await written.append(f"booking:{n % 3}") for n in range(9)]
        tail = list(await written.log.tail(before, 100))
        assert tail == entries
        assert list(await written.log.tail(await written.log.cursor(), 100)) == []

    async def test_heads_name_the_newest_offset_and_keep_their_epoch(self, written: Written) -> None:
        before = await written.log.heads(["booking:1"])
        await written.append("booking:1")
        after = await written.log.heads(["booking:1", "booking:2"])
        assert (before["booking:1"].offset, after["booking:1"].offset, after["booking:2"].offset) == (0, 1, 0)
        assert before["booking:1"].epoch == after["booking:1"].epoch
