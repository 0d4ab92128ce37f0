"""Events that are worth telling now and not worth keeping: typing, positions, presence.

They skip the outbox and the log: no offset, no replay, lost when the broker or a slow socket loses them.
:class:`Announcer` sends them without making anybody wait; :class:`Typing` sees to it that nobody types for ever.

Concurrency: one event loop. :meth:`Announcer.announce` and everything of :class:`Typing` is synchronous; the broker is
spoken to by one owned task, from a bounded queue whose oldest entries give way.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from channels.broker import Broker
from channels.limits import Limits
from channels.ports import Metrics, NoMetrics
from channels.protocol import encode_data, encode_event
from channels.topics import route
from domain.events import Event, EventClass
from domain.log import Entry
from domain.ports import Clock
from domain.types import Origin, new_id

logger = logging.getLogger(__name__)

TYPING_STARTED = "typing.started"
TYPING_STOPPED = "typing.stopped"


class Announcer:
    """Sends ephemeral events to whoever listens."""

    def __init__(self, broker: Broker, clock: Clock, limits: Limits, metrics: Metrics | None = None) -> None:
        self._broker = broker
        self._limits = limits
        self._metrics: Metrics = metrics or NoMetrics()
        self._waiting: deque[Entry] = deque()
        self._wake = asyncio.Event()
        self._typing = Typing(self, clock, limits)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the task that speaks to the broker."""
        self._task = asyncio.create_task(self._publish_for_ever(), name="announcer")

    async def stop(self) -> None:
        """End it; what waits is dropped."""
        self._typing.forget()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def announce(self, events: Sequence[Event], origin: Origin) -> None:
        """Send events on their way. Never waits and never fails for the broker's sake.

        Raises:
            ValueError: no channel carries such an event; see :func:`channels.topics.route`.
        """
        for event in events:
            self._send(event, origin)
            if event.type in (TYPING_STARTED, TYPING_STOPPED):
                self._typing.heard(event, origin)

    def _send(self, event: Event, origin: Origin) -> None:
        data = encode_data(event.data)
        for channel in route(event):
            if len(self._waiting) >= self._limits.announcements:
                self._waiting.popleft()
                self._metrics.dropped(1)
            frame = encode_event(event, channel, None, origin, data)
            self._waiting.append(Entry(channel, None, 0, EventClass.EPHEMERAL, event.key, frame))
        self._wake.set()

    async def _publish_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            entries = list(self._waiting)
            self._waiting.clear()
            try:
                async with asyncio.timeout(self._limits.call_seconds):
                    await self._broker.publish(entries)
            except Exception:
                logger.warning("%d ephemeral entries were lost on the way to the broker", len(entries), exc_info=True)


@dataclass(frozen=True, slots=True)
class _Typer:
    ends: float
    event: Event
    origin: Origin


class Typing:
    """Follows each ``typing.started`` by a ``typing.stopped`` after ``typing_seconds``, unless renewed or stopped
    before.

    All wait equally long, so the order in which they started is the order in which they end, and one timer is enough.
    """

    def __init__(self, announcer: Announcer, clock: Clock, limits: Limits) -> None:
        self._announcer = announcer
        self._clock = clock
        self._limits = limits
        self._typers: OrderedDict[tuple[str, str], _Typer] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def heard(self, event: Event, origin: Origin) -> None:
        """Take note of an announced typing event; its data names ``conversation_id`` and ``user_id``."""
        who = (str(event.data["conversation_id"]), str(event.data["user_id"]))
        self._typers.pop(who, None)
        if event.type == TYPING_STARTED:
            loop = asyncio.get_running_loop()
            self._typers[who] = _Typer(loop.time() + self._limits.typing_seconds, event, origin)
            if len(self._typers) > self._limits.typers:
                _, oldest = self._typers.popitem(last=False)
                self._stop(oldest)
        self._set_timer()

    def forget(self) -> None:
        """Stop watching, without telling anybody."""
        self._typers.clear()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._typers:
            first = next(iter(self._typers.values()))
            self._timer = asyncio.get_running_loop().call_at(first.ends, self._expire)

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._typers and next(iter(self._typers.values())).ends <= now:
            _, typer = self._typers.popitem(last=False)
            self._stop(typer)
        self._set_timer()

    def _stop(self, typer: _Typer) -> None:
        now = self._clock.now()
        stopped = replace(typer.event, id=new_id(now), type=TYPING_STOPPED, time=now)
        self._announcer.announce([stopped], typer.origin)
