"""The checker: compares what every client did and saw with what the database says.

A :class:`History` is written while an experiment runs: each command as invoked, then ok, failed or unknown, and each
client's :class:`Recorder` with every event it heard. A :class:`Truth` is read from the database at the end.
:func:`check` holds the two against each other, one function per rule.

An **unknown** command, one whose answer never came (a timeout at COMMIT is unknown, never failed), may have had its
effect or not; but never twice. A failed one must have had none, one that is ok exactly one.
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

JSON = dict[str, Any]
Rows = Callable[[str], Awaitable[list[Any]]]
"""Runs one SELECT on the experiment's database."""

OCCUPYING = frozenset({"assigned", "scheduled", "en_route", "arrived", "in_progress", "paused", "completed"})
"""Statuses in which a booking has its provider's time."""


class Outcome(StrEnum):
    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(slots=True, eq=False)
class Command:
    """One command of one person, with all its retries under one key. Unknown until it is answered."""

    who: str
    method: str
    params: JSON
    outcome: Outcome = Outcome.UNKNOWN
    result: JSON = field(default_factory=dict)
    refusal: str = ""

    def ok(self, result: JSON) -> None:
        self.outcome, self.result = Outcome.OK, result

    def failed(self, refusal: str) -> None:
        self.outcome, self.refusal = Outcome.FAILED, refusal


@dataclass(slots=True, eq=False)
class Recorder:
    """What one client heard.

    Attributes:
        events: params of each event, as it came, live or replayed.
        times: when each came, in seconds of ``time.time()``.
        began: where it stood on each channel when it first joined; it is owed everything after that.
        ended: where it stood when it left a channel by its own choice.
        not_recovered: channels on which a resume was refused.
    """

    who: str
    events: list[JSON] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    began: dict[str, JSON] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    not_recovered: list[str] = field(default_factory=list)

    def judge(self, name: str, answer: JSON, stood: JSON | None) -> None:
        """Notes the answer to a subscription; ``stood`` is where the client asked to resume."""
        if stood is None:
            self.began.setdefault(name, {"epoch": answer["epoch"], "offset": answer["offset"]})
        elif not answer["recovered"] or answer["epoch"] != stood["epoch"]:
            self.not_recovered.append(name)

    def placed(self, channel: str) -> list[tuple[int, str]]:
        """Offset and id of each durable event heard on a channel, in the order they came."""
        return [(e["offset"], e["id"]) for e in self.events if e["channel"] == channel and "offset" in e]


class History:
    """Everything that was tried and seen in one experiment.

    Attributes:
        name: marks what this experiment writes, so that others may use the same database.
        longest_away_seconds: the longest that a client took to be connected again.
    """

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex[:8]
        self.commands: list[Command] = []
        self.recorders: list[Recorder] = []
        self.connections = 0
        self.longest_away_seconds = 0.0
        self.began_at = time.time()

    def recorder(self, who: str) -> Recorder:
        made = Recorder(who)
        self.recorders.append(made)
        return made

    def invoked(self, who: str, method: str, params: JSON) -> Command:
        command = Command(who, method, params)
        self.commands.append(command)
        return command

    def of(self, method: str) -> list[Command]:
        return [command for command in self.commands if command.method == method]

    def count(self, outcome: Outcome) -> int:
        return sum(command.outcome is outcome for command in self.commands)


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the log. ``message_id`` is that of a ``message.sent``, else empty."""

    id: str
    event_class: str
    message_id: str = ""


@dataclass(frozen=True, slots=True)
class Booking:
    id: str
    status: str
    provider_id: str | None
    notes: str
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """An accepted offer."""

    id: str
    booking_id: str
    provider_id: str


@dataclass(frozen=True, slots=True)
class Message:
    id: str
    conversation_id: str
    offset: int
    text: str


@dataclass(slots=True)
class Truth:
    """What the database says at the end."""

    log: dict[str, dict[int, Entry]] = field(default_factory=dict)
    bookings: list[Booking] = field(default_factory=list)
    accepted: list[Offer] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    people: dict[str, set[str]] = field(default_factory=dict)
    live_leaves: dict[str, int] = field(default_factory=dict)
    unsequenced: int = 0

    @classmethod
    async def read(cls, rows: Rows) -> Truth:
        truth = cls()
        for channel, offset, event_class, frame in await rows(
            "SELECT channel, `offset`, event_class, frame FROM log ORDER BY channel, `offset`"
        ):
            params = json.loads(frame)["params"]
            assert (params["channel"], params["offset"]) == (channel, offset)
            message_id = params["data"]["message"]["id"] if params["type"] == "message.sent" else ""
            truth.log.setdefault(channel, {})[offset] = Entry(params["id"], event_class, message_id)
        booked = "SELECT id, status, provider_id, COALESCE(notes, ''), start, `end` FROM bookings"
        truth.bookings = [Booking(*row) for row in await rows(booked)]
        accepted = "SELECT id, booking_id, provider_id FROM offers WHERE status = 'accepted'"
        truth.accepted = [Offer(*row) for row in await rows(accepted)]
        said = "SELECT id, conversation_id, `offset`, text FROM messages"
        truth.messages = [Message(*row) for row in await rows(said)]
        members = (
            "SELECT p.id, u.email FROM providers p"
            " JOIN memberships m ON m.organisation_id = p.organisation_id JOIN users u ON u.id = m.user_id"
        )
        for provider_id, email in await rows(members):
            truth.people.setdefault(provider_id, set()).add(email)
        leaves = (
            "SELECT r.session_id, COUNT(*) FROM refresh_tokens r JOIN sessions s ON s.id = r.session_id"
            " WHERE r.used_at IS NULL AND s.revoked_at IS NULL GROUP BY r.session_id"
        )
        truth.live_leaves = dict(await rows(leaves))
        truth.unsequenced = (await rows("SELECT COUNT(*) FROM outbox"))[0][0]
        return truth


@dataclass(slots=True)
class Verdict:
    """What :func:`check` found. The events are the durable ones that clients were owed.

    Attributes:
        longest_gap_seconds: from an event's commit to when the last client heard it, at most.
    """

    tried: int = 0
    ok: int = 0
    failed: int = 0
    unknown: int = 0
    expected: int = 0
    seen: int = 0
    lost: int = 0
    duplicated: int = 0
    longest_gap_seconds: float = 0.0
    longest_away_seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"commands {self.tried} tried, {self.ok} ok, {self.failed} failed, {self.unknown} unknown; "
            f"events {self.expected} expected, {self.seen} seen, {self.lost} lost, {self.duplicated} duplicated; "
            f"longest gap {self.longest_gap_seconds:.2f} s"
        )

    def hold(self) -> None:
        """Nothing was violated.

        Raises:
            AssertionError: it was; the message says what.
        """
        shown = self.violations[:20]
        assert not shown, "\n".join([f"{len(self.violations)} violations; {self}", *shown])


def check(history: History, truth: Truth) -> Verdict:
    """Every rule, and the figures."""
    verdict = Verdict(
        tried=len(history.commands),
        ok=history.count(Outcome.OK),
        failed=history.count(Outcome.FAILED),
        unknown=history.count(Outcome.UNKNOWN),
        longest_away_seconds=history.longest_away_seconds,
    )
    for rule in RULES:
        verdict.violations += [f"{rule.__name__}: {text}" for text in rule(history, truth)]
    for recorder in history.recorders:
        for event, heard_at in zip(recorder.events, recorder.times, strict=True):
            happened_at = datetime.fromisoformat(event["time"]).timestamp()
            # What was committed before the experiment is replayed as it is: nobody waited for it.
            if "offset" in event and happened_at >= history.began_at:
                verdict.longest_gap_seconds = max(verdict.longest_gap_seconds, heard_at - happened_at)
        for channel in recorder.began:
            due, got = _due(recorder, channel, truth), Counter(recorder.placed(channel))
            verdict.expected += len(due)
            verdict.seen += len(due.items() & {place for place, _ in got.items()})
            verdict.lost += len(due.items() - {place for place, _ in got.items()})
            verdict.duplicated += sum(got.values()) - len(got)
    return verdict


def _due(recorder: Recorder, channel: str, truth: Truth) -> dict[int, str]:
    """What a client is owed on a channel: the durable events after it came and until it left."""
    entries = truth.log.get(channel, {})
    last = recorder.ended.get(channel, max(entries, default=0))
    first = recorder.began[channel]["offset"]
    return {
        offset: entry.id
        for offset, entry in entries.items()
        if first < offset <= last and entry.event_class == "durable"
    }


# --- rules ------------------------------------------------------------------------------------------------------------


def one_winner_per_booking(history: History, truth: Truth) -> Iterator[str]:
    """A booking has one accepted offer at most; whoever was told so has it, and whoever was refused does not."""
    winners: dict[str, set[str]] = defaultdict(set)
    for offer in truth.accepted:
        winners[offer.booking_id].add(offer.provider_id)
    for booking_id, provider_ids in winners.items():
        if len(provider_ids) > 1:
            yield f"{booking_id} was accepted by {sorted(provider_ids)}"
    owners = {booking.id: booking.provider_id for booking in truth.bookings}
    taken = {offer.id for offer in truth.accepted}
    told: dict[str, set[str]] = defaultdict(set)
    for command in history.of("offer.accept"):
        offer_id = command.params["offer_id"]
        if command.outcome is Outcome.OK:
            booking = command.result["booking"]
            told[booking["id"]].add(booking["provider_id"])
            if owners.get(booking["id"]) != booking["provider_id"] or offer_id not in taken:
                yield f"{command.who} was told that {booking['id']} is theirs; it is {owners.get(booking['id'])}'s"
            elif command.who not in truth.people.get(booking["provider_id"], {command.who}):
                yield f"{command.who} was told that they had won for {booking['provider_id']}, whose they are not"
        elif command.outcome is Outcome.FAILED and offer_id in taken:
            yield f"{command.who} was refused ({command.refusal}) the offer {offer_id}, which is accepted"
    for booking_id, provider_ids in told.items():
        if len(provider_ids) > 1:
            yield f"{sorted(provider_ids)} were all told that they have {booking_id}"


def no_overlapping_jobs(_: History, truth: Truth) -> Iterator[str]:
    """No provider is confirmed for two jobs at one time (half-open intervals)."""
    jobs: dict[str, list[tuple[datetime, datetime, str]]] = defaultdict(list)
    for booking in truth.bookings:
        if booking.provider_id and booking.status in OCCUPYING and booking.start and booking.end:
            jobs[booking.provider_id].append((booking.start, booking.end, booking.id))
    for provider_id, taken in jobs.items():
        for before, after in itertools.pairwise(sorted(taken)):
            if after[0] < before[1]:
                yield f"{provider_id} has {before[2]} until {before[1]} and {after[2]} from {after[0]}"


def bookings_made_once(history: History, truth: Truth) -> Iterator[str]:
    """Each wish became one booking if it was ok, none if it failed, one at most if that is unknown."""
    made: dict[str, list[str]] = defaultdict(list)
    for booking in truth.bookings:
        if booking.notes.startswith(history.name):
            made[booking.notes].append(booking.id)
    yield from _once(history.of("booking.create"), "notes", lambda result: result["booking"]["id"], made)


def messages_kept_once(history: History, truth: Truth) -> Iterator[str]:
    """As bookings, and each conversation's offsets are 1, 2, 3 …"""
    kept: dict[str, list[str]] = defaultdict(list)
    offsets: dict[str, list[int]] = defaultdict(list)
    for message in truth.messages:
        offsets[message.conversation_id].append(message.offset)
        if message.text.startswith(history.name):
            kept[message.text].append(message.id)
    yield from _once(history.of("message.send"), "text", lambda result: result["message"]["id"], kept)
    for conversation_id, places in offsets.items():
        if sorted(places) != list(range(1, len(places) + 1)):
            yield f"{conversation_id} has messages at {sorted(places)}"


def _once(
    commands: Sequence[Command], name: str, id_of: Callable[[JSON], str], found: dict[str, list[str]]
) -> Iterator[str]:
    asked = {command.params[name]: command for command in commands}
    for wish, ids in found.items():
        if wish not in asked:
            yield f"{wish!r} is there and nobody asked for it"
        elif len(ids) > 1:
            yield f"{wish!r} is there {len(ids)} times"
    for wish, command in asked.items():
        ids = found.get(wish, [])
        if command.outcome is Outcome.OK and ids[:1] != [id_of(command.result)]:
            yield f"{wish!r} was acknowledged and is {ids or 'not there'}"
        elif command.outcome is Outcome.FAILED and ids:
            yield f"{wish!r} was refused ({command.refusal}) and is there"


def messages_seen_by_participants(history: History, truth: Truth) -> Iterator[str]:
    """A message that was acknowledged is told once to each who was in the conversation, in the order of its offsets."""
    for command in history.of("message.send"):
        if command.outcome is not Outcome.OK:
            continue
        message = command.result["message"]
        channel = f"conversation:{message['conversation_id']}"
        places = [place for place, entry in truth.log.get(channel, {}).items() if entry.message_id == message["id"]]
        if len(places) != 1:
            yield f"{message['text']!r} was acknowledged and is {len(places)} times in the log of {channel}"
            continue
        for recorder in history.recorders:
            if channel in recorder.began and places[0] in _due(recorder, channel, truth):
                heard = [e for e in recorder.events if e["channel"] == channel and e["type"] == "message.sent"]
                times = sum(event["data"]["message"]["id"] == message["id"] for event in heard)
                if times != 1:
                    yield f"{recorder.who} saw {message['text']!r} {times} times"
    for recorder in history.recorders:
        last: dict[str, int] = {}
        for event in recorder.events:
            if event["type"] == "message.sent" and event["channel"].startswith("conversation:"):
                offset = event["data"]["message"]["offset"]
                if offset <= last.get(event["channel"], 0):
                    yield f"{recorder.who} saw message {offset} of {event['channel']} after {last[event['channel']]}"
                last[event["channel"]] = offset


def log_without_gaps(_: History, truth: Truth) -> Iterator[str]:
    """Offsets are 1, 2, 3 … on each channel, and everything that was committed has its place."""
    for channel, entries in truth.log.items():
        if list(entries) != list(range(1, len(entries) + 1)):
            yield f"the log of {channel} has the offsets {list(entries)[:20]} …"
    if truth.unsequenced:
        yield f"{truth.unsequenced} events have no place yet"


def events_seen_once_in_order(history: History, truth: Truth) -> Iterator[str]:
    """Each client heard each durable event that it was owed once, in order, and none that was never committed."""
    for recorder in history.recorders:
        for channel in recorder.not_recovered:
            yield f"{recorder.who} could not resume {channel}"
        for channel in recorder.began:
            due, got = _due(recorder, channel, truth), recorder.placed(channel)
            committed = {(offset, entry.id) for offset, entry in truth.log.get(channel, {}).items()}
            if missing := sorted(due.items() - set(got)):
                yield f"{recorder.who} never heard {missing[:5]} of {channel}"
            if doubled := [place for place, times in Counter(got).items() if times > 1]:
                yield f"{recorder.who} heard {doubled[:5]} of {channel} more than once"
            if phantoms := sorted(set(got) - committed):
                yield f"{recorder.who} heard {phantoms[:5]} of {channel}, which were never committed"
            if [offset for offset, _ in got] != sorted(offset for offset, _ in got):
                yield f"{recorder.who} heard {channel} out of order"


def one_live_refresh_token(_: History, truth: Truth) -> Iterator[str]:
    """A sign-in has one refresh token at most that would still be taken."""
    for session_id, leaves in truth.live_leaves.items():
        if leaves > 1:
            yield f"the sign-in {session_id} has {leaves} refresh tokens that live"


RULES: tuple[Callable[[History, Truth], Iterator[str]], ...] = (
    one_winner_per_booking,
    no_overlapping_jobs,
    bookings_made_once,
    messages_kept_once,
    messages_seen_by_participants,
    log_without_gaps,
    events_seen_once_in_order,
    one_live_refresh_token,
)
