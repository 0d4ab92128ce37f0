"""Every durable event to other systems, from the log: at least once, in order for each aggregate.

One exporter per target works at a time, whichever node holds the lease ``export/{target}``. It reads the log past a
durable cursor, as a node does that tails; no request waits for it, and its memory is one bounded batch.

* **At least once.** The cursor moves after the target took the events. A crash in between sends them again, under the
  same ids, by which consumers (and FIFO queues, for five minutes) drop what they have.
* **In order per aggregate.** One call holds at most one event of a source, and the next one goes when it was taken; so
  a call of which only a part is taken cannot turn two of them round.
* **Poison stops nobody else.** What is refused is put aside with all that follows of its source
  (:mod:`persistence.export`) and tried again, each time later; after so many refusals it is a dead letter, and its
  source goes on.
* **A target that is away is not a refusal.** Then nothing is put aside or counted: the exporter waits, each time
  longer, and the log keeps the events.
* **What the log no longer has is not passed over in silence.** Sequences have no gaps, so entries that retention took
  before they were told are counted, and an error in the process's log says between which sequences they were.

Not told: entries of the nodes' own ``control`` channel, and events of class ``latest``, of which only the newest
matters.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge

from channels.protocol import read_event
from channels.topics import CONTROL
from domain.backoff import grown
from domain.errors import Unavailable
from domain.events import EventClass
from domain.log import Entry, EventLog
from domain.ports import Clock
from persistence.database import Database
from persistence.export import Cursor, ExportStore, Held, Superseded
from persistence.leases import Leases
from server.telemetry import logger
from server.workers import pause

log = logger(__name__)

MOST_IN_A_CALL = 10
"""Entries of PutEvents and of SendMessageBatch."""

MOST_BYTES = 240 * 1024
"""Of one call, and so of one event: below the 256 KiB that every region and queue takes."""


class Busy(Unavailable):
    """The target takes no more for now."""


class Verdict(StrEnum):
    """What a target says of one event of a call."""

    TAKEN = "taken"
    BUSY = "busy"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Answer:
    """``why`` is the target's code for a refusal."""

    verdict: Verdict
    why: str = ""


TAKEN = Answer(Verdict.TAKEN)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event on its way out.

    Attributes:
        source: the aggregate; events of one keep their order.
        time: when it happened.
        body: CloudEvents 1.0 in its structured JSON form.
    """

    sequence: int
    id: str
    type: str
    source: str
    time: str
    body: bytes


class Target(Protocol):
    """Another system."""

    name: str

    async def send(self, events: Sequence[Outgoing]) -> Sequence[Answer]:
        """Hands over at most :data:`MOST_IN_A_CALL` events, of as many sources; one answer for each, in order.

        Raises:
            Unavailable: the target is away; any of the events may have been taken.
        """


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How an exporter works.

    Attributes:
        tries: refusals after which an event is a dead letter.
        batch_entries: of the log, read at once.
        first_pause_seconds, longest_pause_seconds: between tries of a held event, and while the target is away.
        measure_seconds: between two counts of what is behind and held.
    """

    tries: int = 10
    batch_entries: int = 200
    poll_seconds: float = 0.5
    lease_seconds: float = 20.0
    takeover_seconds: float = 2.0
    first_pause_seconds: float = 1.0
    longest_pause_seconds: float = 300.0
    measure_seconds: float = 1.0


class ExportMetrics:
    """What is told, per target."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(name, meaning, ("target",), namespace="fixnado", registry=registry)

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(name, meaning, ("target", *labels), namespace="fixnado", registry=registry)

        self.events = counter("export_events", "Events for other systems, by what became of them.", "outcome")
        self.failures = counter("export_failures", "Runs that failed because the target, or the database, was away.")
        self.pruned = counter("export_pruned_entries", "Log entries that retention took before the target was told.")
        self.behind = gauge("export_behind_entries", "Log entries that the target has not been told.")
        self.lag_seconds = gauge("export_lag_seconds", "Age of the oldest event that is being told; 0 when none waits.")
        self.held = gauge("export_held_events", "Events that were refused, or wait behind one that was.")
        self.dead = gauge("export_dead_letters", "Events that were refused so often that they are no longer tried.")


def cloud_event(entry: Entry) -> Outgoing:
    """An entry of the log as other systems get it: what every channel's subscribers saw, without the channel."""
    params = read_event(entry.frame)
    shape: dict[str, Any] = {"specversion": "1.0", "datacontenttype": "application/json"}
    shape |= {name: params[name] for name in ("id", "type", "source", "time")}
    shape |= {name: params[name] for name in ("correlationid", "traceparent") if name in params}
    shape["data"] = params["data"]
    return Outgoing(entry.sequence, params["id"], params["type"], params["source"], params["time"], orjson.dumps(shape))


def outgoing(sequence: int, body: bytes) -> Outgoing:
    """A held event as it is sent again."""
    shape = orjson.loads(body)
    return Outgoing(sequence, shape["id"], shape["type"], shape["source"], shape["time"], body)


def events_of(entries: Iterable[Entry], last_id: str = "") -> list[Outgoing]:
    """The durable events among entries, each once: an event's entries follow one another, one per channel.

    Args:
        last_id: the event before the first entry.
    """
    events: list[Outgoing] = []
    for entry in entries:
        if entry.channel == CONTROL or entry.event_class is not EventClass.DURABLE:
            continue
        event = cloud_event(entry)
        if event.id != last_id:
            events.append(event)
            last_id = event.id
    return events


def next_call(waiting: Sequence[Outgoing]) -> list[Outgoing]:
    """The events of the next call: the first of each source, in order, as many as fit."""
    call: list[Outgoing] = []
    sources: set[str] = set()
    size = 0
    for event in waiting:
        if event.source in sources:
            continue
        # Also when it does not fit: what follows of its source must not overtake it.
        sources.add(event.source)
        if len(call) < MOST_IN_A_CALL and size + len(event.body) <= MOST_BYTES:
            call.append(event)
            size += len(event.body)
    return call


class Exporter:
    """Tells one target.

    Args:
        holder: the node's name; see :class:`persistence.sequencer.Sequencer`.

    Concurrency: :meth:`run` is one task.
    """

    def __init__(
        self,
        target: Target,
        database: Database,
        event_log: EventLog,
        holder: str,
        clock: Clock,
        metrics: ExportMetrics,
        options: ExportOptions | None = None,
    ) -> None:
        self._target = target
        self._store = ExportStore(database, target.name)
        self._leases = Leases(database)
        self._lease = f"export/{target.name}"
        self._log = event_log
        self._holder = holder
        self._clock = clock
        self._metrics = metrics
        self._options = options or ExportOptions()
        self._token: int | None = None
        self._renew_at = 0.0
        self._cursor = Cursor(0, "")
        self._read_to = self._cursor
        self._waiting: list[Outgoing] = []
        self._aside: list[Held] = []
        self._pruned = 0
        self._measure_at = 0.0

    @property
    def leading(self) -> bool:
        return self._token is not None

    async def run(self, stop: asyncio.Event) -> None:
        failed_in_a_row = 0
        options = self._options
        try:
            while not stop.is_set():
                try:
                    more = await self.run_once()
                    failed_in_a_row = 0
                    rest = 0.0 if more else options.poll_seconds if self.leading else options.takeover_seconds
                except Unavailable as error:
                    self._metrics.failures.labels(self._target.name).inc()
                    if isinstance(error, Superseded):
                        self._forget()
                    longest = grown(0.2, failed_in_a_row, options.longest_pause_seconds / 10)
                    rest = random.uniform(longest / 2, longest)
                    failed_in_a_row += 1
                    log.warning("export_failed", target=self._target.name, again_in_seconds=round(rest, 2))
                if rest:
                    await pause(stop, rest)
        finally:
            await self._release()

    async def run_once(self) -> bool:
        """Takes the lead if it is free, and tells what there is, one batch; whether there may be more.

        Raises:
            Unavailable: the target or the database is away. What was told is remembered, the rest is told next time.
        """
        token = await self._lead()
        if token is None:
            return False
        more = False
        if not self._waiting and not self._aside and self._read_to == self._cursor:
            more = await self._retry(token)
            await self._read()
        try:
            await self._tell(token)
        finally:
            await self._measure()
        if self._read_to == self._cursor:
            return more
        try:
            await self._store.commit(token, self._read_to, self._aside)
        except Unavailable:
            # It may be done or not: the database knows, so it is asked before anything else is told.
            self._forget()
            raise
        if self._pruned:
            after, up_to = self._cursor.sequence, self._read_to.sequence
            log.error("export_pruned", target=self._target.name, entries=self._pruned, after=after, up_to=up_to)
            self._metrics.pruned.labels(self._target.name).inc(self._pruned)
        self._cursor = self._read_to
        self._aside, self._pruned = [], 0
        return True

    # --- leading ------------------------------------------------------------------------------------------------------

    async def _lead(self) -> int | None:
        now = asyncio.get_running_loop().time()
        seconds = self._options.lease_seconds
        if self._token is not None:
            if now < self._renew_at:
                return self._token
            if await self._leases.renew(self._lease, self._token, seconds):
                self._renew_at = now + seconds / 3
                return self._token
            self._forget()
        token = await self._leases.acquire(self._lease, self._holder, seconds)
        if token is None:
            return None
        self._cursor = self._read_to = await self._store.take_over(token)
        self._token = token
        self._renew_at = now + seconds / 3
        log.info("export_leading", target=self._target.name, after=self._cursor.sequence)
        return token

    def _forget(self) -> None:
        """Somebody else leads now, and knows from the database where to go on."""
        self._token = None
        self._waiting, self._aside, self._pruned = [], [], 0
        self._read_to = self._cursor
        for gauge in (self._metrics.behind, self._metrics.lag_seconds):
            gauge.labels(self._target.name).set(0)

    async def _release(self) -> None:
        if self._token is not None:
            token, self._token = self._token, None
            try:
                await self._leases.release(self._lease, token)
            except Unavailable:
                log.warning("export_lease_kept", target=self._target.name)

    # --- telling ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        entries = await self._log.tail({0: self._cursor.sequence}, self._options.batch_entries)
        if not entries:
            return
        events = events_of(entries, self._cursor.event_id)
        last_id = events[-1].id if events else self._cursor.event_id
        self._read_to = Cursor(entries[-1].sequence, last_id)
        self._pruned = self._read_to.sequence - self._cursor.sequence - len(entries)
        blocked = await self._store.blocked({event.source for event in events})
        for event in events:
            if event.source in blocked:
                self._put_aside(event)
            elif len(event.body) > MOST_BYTES:
                # It will never fit, so there is nothing to wait for.
                self._put_aside(event, "too_large", dead=True)
            else:
                self._waiting.append(event)

    async def _tell(self, token: int) -> None:
        while self._waiting:
            call = next_call(self._waiting)
            answers = await self._target.send(call)
            gone: set[int] = set()
            blocked: set[str] = set()
            for event, answer in zip(call, answers, strict=True):
                if answer.verdict is Verdict.TAKEN:
                    gone.add(event.sequence)
                elif answer.verdict is Verdict.REFUSED:
                    blocked.add(event.source)
                    log.warning("export_refused", target=self._target.name, id=event.id, why=answer.why)
                    self._put_aside(event, answer.why)
                    gone.add(event.sequence)
            self._count("sent", len(gone) - len(blocked))
            for event in self._waiting:
                if event.source in blocked and event.sequence not in gone:
                    self._put_aside(event)
                    gone.add(event.sequence)
            self._waiting = [event for event in self._waiting if event.sequence not in gone]
            if any(answer.verdict is Verdict.BUSY for answer in answers):
                raise Busy
            if asyncio.get_running_loop().time() >= self._renew_at and await self._lead() != token:
                raise Superseded

    def _put_aside(self, event: Outgoing, error: str | None = None, *, dead: bool = False) -> None:
        now = self._clock.now()
        attempts = 1 if error is not None else 0
        held = Held(event.sequence, event.source, event.body, attempts, now, error)
        self._aside.append(self._judged(held, now) if not dead else replace(held, dead_at=now))
        self._count("dead" if dead else "held", 1)

    async def _retry(self, token: int) -> bool:
        """One call with held events that are due, the first of each source; whether there is something behind one of
        them that may go now.
        """
        now = self._clock.now()
        due = {event.sequence: event for event in await self._store.due(now, MOST_IN_A_CALL)}
        call = next_call([outgoing(event.sequence, event.event) for event in due.values()])
        if not call:
            return False
        answers = await self._target.send(call)
        told: list[Held] = []
        again: list[Held] = []
        for event, answer in zip(call, answers, strict=True):
            held = due[event.sequence]
            if answer.verdict is Verdict.TAKEN:
                told.append(held)
            elif answer.verdict is Verdict.REFUSED:
                again.append(self._judged(replace(held, attempts=held.attempts + 1, error=answer.why), now))
        await self._store.settle(token, told, again)
        self._count("sent", len(told))
        for held in again:
            if held.dead_at is not None:
                self._count("dead", 1)
                log.error("export_dead_letter", target=self._target.name, sequence=held.sequence, why=held.error)
        if any(answer.verdict is Verdict.BUSY for answer in answers):
            raise Busy
        return bool(told) or any(held.dead_at is not None for held in again)

    def _judged(self, held: Held, now: datetime) -> Held:
        """When it is tried again, or that it is not."""
        if held.attempts >= self._options.tries:
            return replace(held, dead_at=now)
        if not held.attempts:
            return held
        longest = grown(self._options.first_pause_seconds, held.attempts - 1, self._options.longest_pause_seconds)
        return replace(held, due_at=now + timedelta(seconds=random.uniform(longest / 2, longest)))

    def _count(self, outcome: str, number: int) -> None:
        if number:
            self._metrics.events.labels(self._target.name, outcome).inc(number)

    async def _measure(self) -> None:
        name = self._target.name
        oldest = min((datetime.fromisoformat(event.time) for event in self._waiting[:1]), default=None)
        lag_seconds = (self._clock.now() - oldest).total_seconds() if oldest is not None else 0.0
        self._metrics.lag_seconds.labels(name).set(max(0.0, lag_seconds))
        now = asyncio.get_running_loop().time()
        if now < self._measure_at:
            return
        self._measure_at = now + self._options.measure_seconds
        stats = await self._store.stats()
        self._metrics.behind.labels(name).set(stats.behind)
        self._metrics.held.labels(name).set(stats.held)
        self._metrics.dead.labels(name).set(stats.dead)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay did: events taken, and those refused by id with the reason."""

    taken: int
    refused: Mapping[str, str]


async def tell_all(
    target: Target, events: Sequence[Outgoing], patience: int = 8, told: Callable[[Outgoing], None] = lambda _: None
) -> Replayed:
    """Tells a target these events now, in order for each source; refusals are passed over and reported.

    Args:
        patience: how often a target that is away or busy is tried again, each time later.
        told: called for each event that is done with.

    Raises:
        Unavailable: it stayed away.
    """
    waiting, taken, refused = list(events), 0, dict[str, str]()
    failed_in_a_row = 0
    while waiting:
        call = next_call(waiting)
        if not call:
            event = waiting.pop(0)
            refused[event.id] = "too_large"
            told(event)
            continue
        answers: Sequence[Answer] = ()
        try:
            answers = await target.send(call)
        except Unavailable:
            if failed_in_a_row >= patience:
                raise
        done = set()
        for event, answer in zip(call, answers, strict=False):
            if answer.verdict is Verdict.BUSY:
                continue
            done.add(event.sequence)
            taken += answer.verdict is Verdict.TAKEN
            if answer.verdict is Verdict.REFUSED:
                refused[event.id] = answer.why
            told(event)
        waiting = [event for event in waiting if event.sequence not in done]
        if done:
            failed_in_a_row = 0
        else:
            if failed_in_a_row >= patience:
                raise Busy
            await asyncio.sleep(random.uniform(0.1, 0.2) * 2**failed_in_a_row)
            failed_in_a_row += 1
    return Replayed(taken, refused)
