"""Reads from the log what the broker did not bring.

A channel that misses something is *gapped* until everything up to its target has been accepted. One task reads for all
of them, ``control`` first, because everything else waits for it.

Concurrency: one event loop. The task is owned: made by :meth:`Healer.start`, ended by :meth:`Healer.stop`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from channels.held_channel import HeldChannel
from channels.lookups import Batch
from channels.ports import Metrics
from channels.topics import CONTROL
from domain.log import Entry, EventLog, Head

logger = logging.getLogger(__name__)

HEAL_CHANNELS = 200
"""Channels healed by one query."""

HEAL_ENTRIES = 500
"""Rows of one channel read at once."""

RETRY_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
"""Waits between failed reads of the log; the last one repeats."""


class Acceptor(Protocol):
    """Takes what was read: the hub."""

    def accept(self, channel: HeldChannel, entry: Entry, offset: int) -> None:
        """Take an entry of a channel, in whatever order."""

    def anchor(self, name: str, head: Head) -> None:
        """Say where a channel stands that has no offset here yet."""

    def gap(self, channel: HeldChannel) -> None:
        """The channel misses what leads up to its target."""

    def whole(self, channel: HeldChannel) -> None:
        """The channel has no gap any more."""

    def renumbered(self, channel: HeldChannel) -> None:
        """The channel cannot be continued."""


class Healer:
    """See the module.

    Attributes:
        gapped: channels that miss something, in the order in which they are read.
    """

    def __init__(
        self,
        log: EventLog,
        heads: Batch[str, Head],
        channels: Mapping[str, HeldChannel],
        acceptor: Acceptor,
        metrics: Metrics,
        call_seconds: float,
    ) -> None:
        self._log = log
        self._heads = heads
        self._channels = channels
        self._acceptor = acceptor
        self._metrics = metrics
        self._call_seconds = call_seconds
        self.gapped: dict[str, None] = {}
        self._audit_due = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to heal."""
        self._task = asyncio.create_task(self._heal_for_ever(), name="hub-heal")

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def heal(self, channel: HeldChannel) -> None:
        """Read what this channel misses, soon."""
        self.gapped[channel.name] = None
        self._wake.set()

    def audit_soon(self) -> None:
        """Something may have been missed anywhere: look at every channel's head."""
        self._audit_due = True
        self._wake.set()

    async def audit(self) -> None:
        """Compare every channel held here with the log and heal those behind: bounds how long a lost tail stays lost.

        Raises:
            Unavailable: the log is away.
        """
        names = list(self._channels)
        for start in range(0, len(names), HEAL_CHANNELS):
            heads = await self._heads.get(names[start : start + HEAL_CHANNELS])
            for name in names[start : start + HEAL_CHANNELS]:
                channel, head = self._channels.get(name), heads.get(name)
                if channel is None or head is None:
                    continue
                if channel.offset is None:
                    if name == CONTROL:
                        self._acceptor.anchor(name, head)
                        self._acceptor.whole(channel)
                elif channel.epoch != head.epoch:
                    self._acceptor.renumbered(channel)
                elif head.offset > channel.offset:
                    channel.target = max(channel.target, head.offset)
                    self._acceptor.gap(channel)

    async def _heal_for_ever(self) -> None:
        failures = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                if self._audit_due:
                    self._audit_due = False
                    await self.audit()
                while self.gapped:
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
        names = [CONTROL] if CONTROL in self.gapped else list(self.gapped)[:HEAL_CHANNELS]
        after = {
            name: channel.offset
            for name in names
            if (channel := self._channels.get(name)) is not None and channel.offset is not None
        }
        for name in names:
            if name not in after:
                self.gapped.pop(name, None)
        if not after:
            return
        async with asyncio.timeout(self._call_seconds):
            rows = await self._log.read_many(after, HEAL_ENTRIES)
        stuck: list[HeldChannel] = []
        for name, since in after.items():
            channel = self._channels.get(name)
            if channel is None or channel.offset is None:
                self.gapped.pop(name, None)
                continue
            for entry in rows.get(name, ()):
                if entry.offset is not None:
                    self._acceptor.accept(channel, entry, entry.offset)
            self._metrics.healed(channel.offset - since)
            if channel.offset >= channel.target:
                self._acceptor.whole(channel)
            elif channel.offset == since:
                stuck.append(channel)
        if stuck:
            await self._unstick(stuck)

    async def _unstick(self, channels: Sequence[HeldChannel]) -> None:
        """The log has no row after our offset although a later one was heard of."""
        heads = await self._heads.get([channel.name for channel in channels])
        tries = 0
        for channel in channels:
            head = heads.get(channel.name)
            if head is None or channel.offset is None:
                continue
            if head.epoch != channel.epoch or head.floor > channel.offset:
                self._acceptor.renumbered(channel)
                continue
            channel.tries += 1
            tries = max(tries, channel.tries)
            # Behind the others, which may have rows.
            self.gapped.pop(channel.name, None)
            self.gapped[channel.name] = None
            if channel.tries > len(RETRY_SECONDS) and head.offset < channel.target:
                logger.error("%s was announced beyond the log's head", channel.name, extra={"offset": channel.target})
                channel.target = head.offset
                channel.waiting.clear()
                if channel.offset >= head.offset:
                    self._acceptor.whole(channel)
        if tries:
            await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS)) - 1])
