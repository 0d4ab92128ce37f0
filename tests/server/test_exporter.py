"""Events to other systems: every one, in order, past crashes, throttling and poison."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs

from channels import protocol, topics
from domain.errors import Unavailable
from domain.events import Audience, Event, EventClass
from domain.log import Entry
from domain.types import JSON, Origin, new_id
from persistence.database import Database, DatabaseOptions
from persistence.export import Cursor, ExportStats, ExportStore, Superseded
from persistence.log import SqlEventLog, prune
from persistence.migrate import upgrade
from persistence.sequencer import Sequencer
from persistence.unit_of_work import Transactions, UnitOfWork
from server.aws import AwsRefusal
from server.aws_targets import EventBridge, Sqs, group_of
from server.clock import SystemClock
from server.exporter import (
    MOST_BYTES,
    TAKEN,
    Answer,
    Busy,
    Exporter,
    ExportMetrics,
    ExportOptions,
    Outgoing,
    Verdict,
    next_call,
    outgoing,
    tell_all,
)

ORIGIN = Origin("corr-1", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
OPTIONS = DatabaseOptions(tls="off")
QUICK = ExportOptions(tries=3, first_pause_seconds=0.0, batch_entries=100, measure_seconds=0.0)


class Partner:
    """Another system: keeps what it takes, and refuses or stays away as told.

    Attributes:
        refuses: ids by what it says of them.
        away: how many calls it does not answer.
    """

    name = "partner"

    def __init__(self) -> None:
        self.taken: list[JSON] = []
        self.calls: list[list[str]] = []
        self.refuses: Callable[[Outgoing], Answer] = lambda _: TAKEN
        self.away = 0

    async def send(self, events: Sequence[Outgoing]) -> Sequence[Answer]:
        self.calls.append([event.source for event in events])
        if self.away:
            self.away -= 1
            raise Unavailable
        answers = [self.refuses(event) for event in events]
        told = (orjson.loads(event.body) for event, answer in zip(events, answers, strict=True) if answer is TAKEN)
        self.taken += told
        return answers

    def numbers(self, source: str) -> list[int]:
        return [event["data"]["number"] for event in self.taken if event["source"] == f"booking/{source}"]


class Works:
    """A database with a log, and exporters on it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.partner = Partner()
        self.registry = CollectorRegistry()
        self.metrics = ExportMetrics(self.registry)
        self.store = ExportStore(database, Partner.name)
        self.sequencer = Sequencer(
            database, "sequencing", route=topics.route, encode=protocol.encode_event, publish=self._publish
        )
        self.transactions = Transactions(database, SystemClock(), UnitOfWork)

    async def _publish(self, entries: Sequence[Entry]) -> None: ...

    async def happen(self, *numbered: tuple[str, int], **traits: Any) -> list[str]:
        """Events of bookings, in the log; their ids."""
        now = datetime.now(UTC)
        defaults: JSON = {"type": "booking.created", "event_class": EventClass.DURABLE}
        events = [
            Event(
                id=new_id(now),
                time=now,
                source=f"booking/{source}",
                data={"number": number, **traits.get("data", {})},
                audience=Audience(users=("u1",), organisations=("o1",), booking=source),
                key=source if traits.get("event_class") is EventClass.LATEST else None,
                **defaults | {name: it for name, it in traits.items() if name != "data"},
            )
            for source, number in numbered
        ]

        async def work(unit: UnitOfWork) -> None:
            for event in events:
                unit.record(event)

        await self.transactions.write(work, ORIGIN)
        await self.sequencer.run_once()
        return [event.id for event in events]

    def exporter(self, holder: str = "node-1", options: ExportOptions = QUICK) -> Exporter:
        event_log = SqlEventLog(self.database)
        return Exporter(self.partner, self.database, event_log, holder, SystemClock(), self.metrics, options)

    async def started(self) -> Exporter:
        """An exporter whose target knows of nothing yet."""
        exporter = self.exporter()
        await exporter.run_once()
        return exporter

    def metric(self, name: str) -> float:
        return self.registry.get_sample_value(f"fixnado_{name}", {"target": "partner"}) or 0.0


async def works_on(url: str) -> AsyncIterator[Works]:
    await upgrade(url, OPTIONS)
    database = Database(url, OPTIONS)
    try:
        yield Works(database)
        assert database.in_use == 0
    finally:
        await database.close()


@pytest.fixture
async def works(sqlite_url: str) -> AsyncIterator[Works]:
    async for works in works_on(sqlite_url):
        yield works


@pytest.fixture
async def both(database_url: str) -> AsyncIterator[Works]:
    async for works in works_on(database_url):
        yield works


async def drain(exporter: Exporter) -> None:
    while await exporter.run_once():
        pass


async def test_every_durable_event_is_told_once_as_a_cloud_event(both: Works) -> None:
    await both.happen(("before", 0))
    exporter = await both.started()
    ids = await both.happen(*((source, number) for number in range(3) for source in "abc"))
    await both.happen(("a", 9), type="session.revoked")
    await both.happen(("a", 9), type="eta.updated", event_class=EventClass.LATEST)
    await drain(exporter)
    assert [event["id"] for event in both.partner.taken] == ids, "what was there before is not told"
    assert all(both.partner.numbers(source) == [0, 1, 2] for source in "abc")
    first = both.partner.taken[0]
    assert first.pop("time").endswith("Z")
    assert first == {
        "specversion": "1.0",
        "datacontenttype": "application/json",
        "id": ids[0],
        "type": "booking.created",
        "source": "booking/a",
        "correlationid": ORIGIN.correlation_id,
        "traceparent": ORIGIN.traceparent,
        "data": {"number": 0},
    }
    assert (await both.store.stats()).behind == 0
    assert (both.metric("export_behind_entries"), both.metric("export_lag_seconds")) == (0, 0)


async def test_event_whose_entries_two_batches_share_is_told_once(works: Works) -> None:
    exporter = works.exporter(options=ExportOptions(batch_entries=1))
    await exporter.run_once()
    ids = await works.happen(("a", 0), ("a", 1))
    await drain(exporter)
    assert [event["id"] for event in works.partner.taken] == ids
    again = works.exporter(options=ExportOptions(batch_entries=1))
    await drain(again)
    assert len(works.partner.taken) == 2, "a restart in between knows it too"


async def test_crash_between_the_call_and_the_cursor_tells_again_and_loses_nothing(
    both: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = await both.started()
    ids = await both.happen(("a", 0), ("a", 1), ("b", 0))

    async def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ExportStore, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            await exporter.run_once()
    assert len(both.partner.taken) == 3
    await drain(both.exporter())  # the same node, started again
    told = [event["id"] for event in both.partner.taken]
    assert (sorted(set(told)), len(told)) == (sorted(ids), 6), "the same ids again, for consumers to drop"
    assert both.partner.numbers("a") == [0, 1, 0, 1]
    await drain(both.exporter())
    assert len(both.partner.taken) == 6


async def test_commit_whose_outcome_is_unknown_is_looked_up(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = await works.started()
    await works.happen(("bad", 0), ("a", 0))
    works.partner.refuses = lambda event: Answer(Verdict.REFUSED, "no") if event.source.endswith("bad") else TAKEN
    commit = ExportStore.commit

    async def broken(self: ExportStore, *arguments: Any) -> None:
        await commit(self, *arguments)
        raise Unavailable

    with monkeypatch.context() as patch:
        patch.setattr(ExportStore, "commit", broken)
        with pytest.raises(Unavailable):
            await exporter.run_once()
    works.partner.refuses = lambda _: TAKEN
    await drain(exporter)
    await drain(exporter)
    assert (works.partner.numbers("a"), works.partner.numbers("bad")) == ([0], [0])


async def test_poison_becomes_a_dead_letter_and_holds_up_its_own_aggregate_alone(both: Works) -> None:
    exporter = await both.started()
    (bad, *_) = await both.happen(("a", 0), ("b", 0), ("a", 1), ("b", 1))
    both.partner.refuses = lambda event: Answer(Verdict.REFUSED, "Malformed") if event.id == bad else TAKEN
    await exporter.run_once()
    assert (both.partner.numbers("a"), both.partner.numbers("b")) == ([], [0, 1])
    await both.happen(("a", 2), ("b", 2))
    await exporter.run_once()
    assert (both.partner.numbers("a"), both.partner.numbers("b")) == ([], [0, 1, 2]), "what follows waits behind it"
    assert (await both.store.stats()).held == 3
    for _ in range(6):
        await exporter.run_once()
    assert both.partner.numbers("a") == [1, 2], "in order, once the poison was put away"
    (dead,) = await both.store.dead(0, 10)
    assert (outgoing(dead.sequence, dead.event).id, dead.attempts, dead.error) == (bad, 3, "Malformed")
    assert (await both.store.stats()).held == 0
    assert both.metric("export_dead_letters") == 1
    await both.happen(("a", 3))
    await exporter.run_once()
    assert both.partner.numbers("a") == [1, 2, 3]


async def test_refused_event_is_tried_again_later_and_later(works: Works) -> None:
    exporter = works.exporter(options=ExportOptions(tries=10, first_pause_seconds=60))
    await exporter.run_once()
    await works.happen(("a", 0))
    works.partner.refuses = lambda _: Answer(Verdict.REFUSED, "no")
    await exporter.run_once()
    calls = len(works.partner.calls)
    await exporter.run_once()
    assert len(works.partner.calls) == calls, "not yet"
    now = datetime.now(UTC)
    assert await works.store.due(now + timedelta(seconds=25), 10) == []
    (due,) = await works.store.due(now + timedelta(seconds=61), 10)
    assert due.attempts == 1


async def test_held_events_follow_one_another_without_a_pause(works: Works) -> None:
    exporter = await works.started()
    (bad, *_) = await works.happen(*(("a", number) for number in range(8)))
    works.partner.refuses = lambda event: Answer(Verdict.REFUSED, "no") if event.id == bad else TAKEN
    await exporter.run_once()
    assert (await works.store.stats()).held == 8
    works.partner.refuses = lambda _: TAKEN
    rounds = [await exporter.run_once() for _ in range(9)]
    assert rounds == [True] * 8 + [False], "each round says that there may be more, until there is not"
    assert works.partner.numbers("a") == list(range(8))


async def test_dead_letter_lets_its_source_go_on_at_once(works: Works) -> None:
    exporter = works.exporter(options=replace(QUICK, tries=2))
    await exporter.run_once()
    (bad, *_) = await works.happen(("a", 0), ("a", 1))
    works.partner.refuses = lambda event: Answer(Verdict.REFUSED, "no") if event.id == bad else TAKEN
    await exporter.run_once()
    await drain(exporter)
    assert works.partner.numbers("a") == [1]


async def test_what_is_behind_is_counted_once_a_second_at_most(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = works.exporter(options=replace(QUICK, measure_seconds=60.0))
    counted = 0
    stats = ExportStore.stats

    async def counting(self: ExportStore) -> ExportStats:
        nonlocal counted
        counted += 1
        return await stats(self)

    monkeypatch.setattr(ExportStore, "stats", counting)
    for _ in range(5):
        await exporter.run_once()
    assert counted == 1
    assert ExportOptions().measure_seconds == 1.0


async def test_what_was_pruned_before_it_was_told_is_counted_and_logged(works: Works) -> None:
    exporter = await works.started()
    await works.happen(("a", 0), ("b", 0))
    await drain(exporter)
    assert works.metric("export_pruned_entries_total") == 0
    at = (await works.store.take_over(1)).sequence
    await works.happen(("a", 1), ("b", 1))
    written = (await works.store.stats()).behind
    await prune(works.database, datetime.now(UTC) + timedelta(minutes=1), keep=0)
    await works.happen(("a", 2))
    with capture_logs() as lines:
        await drain(exporter)
    assert (works.partner.numbers("a"), works.partner.numbers("b")) == ([0, 2], [0])
    assert works.metric("export_pruned_entries_total") == written > 0
    (line,) = [line for line in lines if line["event"] == "export_pruned"]
    assert (line["log_level"], line["entries"], line["after"]) == ("error", written, at)


async def test_outage_may_last_longer_than_numbers_grow(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, stop, failures = works.exporter(), asyncio.Event(), 0

    async def away(_: Exporter) -> bool:
        nonlocal failures
        failures += 1
        raise Unavailable

    async def no_pause(_: asyncio.Event, seconds: float) -> None:
        assert 0 < seconds <= 30
        if failures > 1_100:
            stop.set()

    monkeypatch.setattr(Exporter, "run_once", away)
    monkeypatch.setattr("server.exporter.pause", no_pause)
    with capture_logs():
        await exporter.run(stop)
    assert failures == 1_101


async def test_target_that_is_away_counts_as_no_refusal(works: Works) -> None:
    exporter = await works.started()
    await works.happen(*(("a", number) for number in range(3)), ("b", 0))
    works.partner.away = 20
    for _ in range(20):
        with pytest.raises(Unavailable):
            await exporter.run_once()
    assert works.metric("export_behind_entries") > 0
    assert works.metric("export_lag_seconds") > 0
    await drain(exporter)
    assert (works.partner.numbers("a"), works.partner.numbers("b")) == ([0, 1, 2], [0])
    assert (await works.store.stats()).held == (await works.store.stats()).dead == 0


async def test_throttled_events_of_a_call_come_again_in_their_order(works: Works) -> None:
    exporter = await works.started()
    await works.happen(*((source, number) for number in range(4) for source in "abcd"))
    calls = 0

    def throttles(event: Outgoing) -> Answer:
        nonlocal calls
        calls += 1
        return Answer(Verdict.BUSY, "ThrottlingException") if calls % 3 == 0 else TAKEN

    works.partner.refuses = throttles
    for _ in range(50):
        try:
            if not await exporter.run_once():
                break
        except Busy:
            continue
    assert all(works.partner.numbers(source) == [0, 1, 2, 3] for source in "abcd")
    assert len(works.partner.taken) == 16, "what was taken is not told again"
    assert (await works.store.stats()).held == 0


async def test_worker_backs_off_and_goes_on_by_itself(works: Works) -> None:
    exporter, stop = works.exporter(options=ExportOptions(poll_seconds=0.02)), asyncio.Event()
    running = asyncio.create_task(exporter.run(stop))
    async with asyncio.timeout(10):
        while not exporter.leading:  # noqa: ASYNC110 — there is no event for it
            await asyncio.sleep(0.01)
        works.partner.away = 2
        await works.happen(("a", 0), ("a", 1))
        while works.partner.numbers("a") != [0, 1]:  # noqa: ASYNC110 — as above
            await asyncio.sleep(0.01)
    stop.set()
    await running
    assert works.metric("export_failures_total") == 2
    assert await works.exporter("node-2").run_once() is False, "it gave its lease back"


async def test_only_one_node_tells_and_one_that_was_replaced_cannot_move_the_cursor(both: Works) -> None:
    first = await both.started()
    second = both.exporter("node-2")
    assert await second.run_once() is False
    assert not second.leading
    await both.happen(("a", 0))
    successor = both.exporter("node-1")  # the first one's node was restarted
    await drain(successor)
    with pytest.raises(Superseded):
        await first.run_once()
    with pytest.raises(Superseded):
        await both.store.settle(1, [], [])
    await drain(successor)
    assert both.partner.numbers("a")[:1] == [0]
    assert (await both.store.stats()).behind == 0


async def test_cursor_is_where_it_was_after_take_over(works: Works) -> None:
    exporter = await works.started()
    await works.happen(("a", 0))
    await drain(exporter)
    at = await works.store.take_over(99)
    assert at.sequence > 0
    with pytest.raises(Superseded):
        await works.store.take_over(98)
    with pytest.raises(Superseded):
        await works.store.commit(98, Cursor(0, ""), [])


def event(source: str, sequence: int, size: int = 100) -> Outgoing:
    return Outgoing(sequence, f"id-{sequence}", "t", source, "2026-11-24T09:00:00Z", b"x" * size)


def test_call_has_the_first_of_each_source_and_is_bounded() -> None:
    waiting = [event(f"s{number % 12}", number) for number in range(40)]
    assert [each.sequence for each in next_call(waiting)] == list(range(10))
    assert [each.sequence for each in next_call([event("a", 1), event("a", 2), event("b", 3)])] == [1, 3]
    large = [event("a", 1), event("b", 2, MOST_BYTES), event("b", 3), event("c", 4)]
    assert [each.sequence for each in next_call(large)] == [1, 4], "what follows the large one waits with it"


async def test_event_that_can_never_fit_is_a_dead_letter_at_once(works: Works) -> None:
    exporter = await works.started()
    await works.happen(("a", 0), data={"text": "x" * MOST_BYTES})
    await works.happen(("a", 1), ("b", 0))
    await drain(exporter)
    assert (works.partner.numbers("a"), works.partner.numbers("b")) == ([1], [0])
    (dead,) = await works.store.dead(0, 10)
    assert dead.error == "too_large"


async def test_replay_keeps_order_waits_for_a_busy_target_and_reports_refusals() -> None:
    partner = Partner()
    bodies = [
        Outgoing(n, f"id-{n}", "t", f"booking/{n % 3}", "2026-11-24T09:00:00Z", orjson.dumps(
            {"source": f"booking/{n % 3}", "data": {"number": n}}
        ))
        for n in range(30)
    ]  # fmt: skip
    partner.away = 2
    partner.refuses = lambda it: Answer(Verdict.REFUSED, "no") if it.id == "id-4" else TAKEN
    done = await tell_all(partner, bodies)
    assert (done.taken, done.refused) == (29, {"id-4": "no"})
    assert partner.numbers("1") == [n for n in range(1, 30, 3) if n != 4]
    partner.away = 100
    with pytest.raises(Unavailable):
        await tell_all(partner, bodies[:1], patience=1)


# --- AWS's answers ----------------------------------------------------------------------------------------------------


class ScriptedAws:
    """Answers in turn; raises what is an error."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[JSON] = []

    async def call(self, service: str, operation: str, **params: Any) -> Any:
        self.asked.append(params)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


EVENTS = [event("booking/1", 1), event("booking/2", 2), event("booking/3", 3)]
BUSY = Answer(Verdict.BUSY, "ThrottlingException")


async def test_eventbridge_answers_entry_by_entry() -> None:
    entries = [{"EventId": "e"}, {"ErrorCode": "ThrottlingException"}, {"ErrorCode": "MalformedDetail"}]
    aws: Any = ScriptedAws({"FailedEntryCount": 2, "Entries": entries})
    answers = await EventBridge(aws, "bus").send(EVENTS)
    assert answers == [TAKEN, BUSY, Answer(Verdict.REFUSED, "MalformedDetail")]
    assert aws.asked[0]["Entries"][0]["DetailType"] == "t"


@pytest.mark.parametrize("code", ["InternalFailure", "ServiceUnavailable", "AccessDeniedException", None])
async def test_event_that_eventbridge_could_not_take_now_is_not_refused(code: str | None) -> None:
    aws: Any = ScriptedAws({"FailedEntryCount": 1, "Entries": [{"ErrorCode": code}]})
    assert [answer.verdict for answer in await EventBridge(aws, "bus").send(EVENTS[:1])] == [Verdict.BUSY]


async def test_sqs_answers_by_id_and_what_it_does_not_name_is_sent_again() -> None:
    said = {"Failed": [{"Id": "0", "Code": "InvalidMessageContents", "SenderFault": True}], "Successful": [{"Id": "2"}]}
    aws: Any = ScriptedAws(said)
    answers = await Sqs(aws, "https://sqs/q.fifo").send(EVENTS)
    assert answers == [
        Answer(Verdict.REFUSED, "InvalidMessageContents"),
        Answer(Verdict.BUSY, "unnamed"),
        TAKEN,
    ]
    entry = aws.asked[0]["Entries"][1]
    assert (entry["MessageGroupId"], entry["MessageDeduplicationId"]) == ("booking/2", "id-2")


@pytest.mark.parametrize("failed", [{"Code": "Odd", "SenderFault": False}, {"Code": "InternalError"}])
async def test_what_is_no_fault_of_the_sender_is_sent_to_sqs_again(failed: JSON) -> None:
    aws: Any = ScriptedAws({"Failed": [{"Id": "0", **failed}]})
    assert [answer.verdict for answer in await Sqs(aws, "https://sqs/q").send(EVENTS[:1])] == [Verdict.BUSY]


async def test_call_refused_for_one_event_in_it_is_taken_apart() -> None:
    poison, taken = AwsRefusal("ValidationException"), {"Entries": [{"EventId": "e"}]}
    aws: Any = ScriptedAws(poison, taken, poison, taken)
    answers = await EventBridge(aws, "bus").send(EVENTS)
    assert answers == [TAKEN, Answer(Verdict.REFUSED, "ValidationException"), TAKEN]


@pytest.mark.parametrize("code", ["AccessDeniedException", "ResourceNotFoundException", "InvalidClientTokenId", "Odd"])
async def test_trouble_of_the_target_is_not_blamed_on_the_events(code: str) -> None:
    aws: Any = ScriptedAws(AwsRefusal(code))
    with pytest.raises(Unavailable):
        await Sqs(aws, "https://sqs/q").send(EVENTS[:1])


def test_message_group_fits_whatever_the_source_is() -> None:
    assert group_of("booking/01J") == "booking/01J"
    assert all(len(group_of(odd)) == 64 for odd in ("x" * 129, "with space", "ü"))


def test_metrics_have_names_and_a_target() -> None:
    registry = CollectorRegistry()
    ExportMetrics(registry).behind.labels("sqs").set(3)
    assert 'fixnado_export_behind_entries{target="sqs"} 3.0' in generate_latest(registry).decode()
