from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.security import GENESIS, SecurityEvents, SecurityFact, SecurityKind, chained
from domain.types import Origin
from persistence import audit_log as under_test
from persistence.audit_log import Verdict, verify_audit_log
from persistence.database import Database, DatabaseOptions
from persistence.geometry import ZoneIndex
from persistence.repositories import SqlUnitOfWork, Units
from persistence.tables import audit_head, audit_log, outbox
from persistence.unit_of_work import Transactions
from tests.domain.marketplace import START, SettableClock

OPTIONS = DatabaseOptions(tls="off")
security = SecurityEvents()


class Bench:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.attested: list[int] = []
        self.transactions: Transactions[SqlUnitOfWork] = Transactions(
            database,
            SettableClock(),
            Units(ZoneIndex()),
            on_attested=lambda entries: self.attested.extend(entry.number for entry in entries),
        )

    async def attest(self, *subjects: str, fail: bool = False) -> None:
        async def work(uow: SqlUnitOfWork) -> None:
            for subject in subjects:
                details = {"z": [1, True, None, "ü"], "a": {"percentage": 12.5}}
                await security.record(uow, SecurityKind.ROLE_CHANGED, "ada", subject, details)
            if fail:
                raise RuntimeError("changed its mind")

        await self.transactions.write(work, Origin("corr-7"))

    async def execute(self, statement: Any) -> None:
        async def work(connection: AsyncConnection) -> None:
            await connection.execute(statement)

        await self.database.write(work)

    async def rows(self, query: Any) -> list[Any]:
        async def work(connection: AsyncConnection) -> list[Any]:
            return list((await connection.execute(query)).all())

        return await self.database.read(work)

    async def verify(self, **options: Any) -> Verdict:
        return await verify_audit_log(self.database, **options)


@pytest.fixture
def bench(database: Database) -> Bench:
    return Bench(database)


async def test_an_empty_log_is_whole(bench: Bench) -> None:
    assert await bench.verify() == Verdict(0, GENESIS)


async def test_facts_are_chained_in_order_and_told_on_the_security_channel(bench: Bench) -> None:
    await bench.attest("u1", "u2")
    await bench.attest("u3")
    rows = await bench.rows(select(audit_log).order_by(audit_log.c.number))
    assert [(row.number, row.subject_id, row.actor_id, row.correlation_id) for row in rows] == [
        (number, f"u{number}", "ada", "corr-7") for number in (1, 2, 3)
    ]
    assert [row.previous_hash for row in rows] == [GENESIS, rows[0].hash, rows[1].hash]
    told = await bench.rows(select(outbox.c.type, outbox.c.data).order_by(outbox.c.id))
    assert [(row.type, row.data["number"], row.data["event"]["hash"]) for row in told] == [
        ("security.event_recorded", row.number, row.hash) for row in rows
    ]
    assert bench.attested == [1, 2, 3]
    assert await bench.verify() == Verdict(3, rows[2].hash)


async def test_what_did_not_commit_is_not_in_the_log(bench: Bench) -> None:
    with pytest.raises(RuntimeError):
        await bench.attest("u1", fail=True)
    assert await bench.verify() == Verdict(0, GENESIS)
    assert bench.attested == []


async def test_a_read_cannot_attest(bench: Bench) -> None:
    with pytest.raises(RuntimeError):
        await bench.transactions.read(lambda uow: security.record(uow, SecurityKind.ROLE_CHANGED, "ada", "u"))


async def test_transactions_at_once_make_one_chain_without_gaps(bench: Bench) -> None:
    await asyncio.gather(*(bench.attest(f"u{number}") for number in range(12)))
    verdict = await bench.verify()
    assert (verdict.rows, verdict.broken) == (12, None)
    assert sorted(bench.attested) == list(range(1, 13))


_TAMPERINGS: dict[str, tuple[Callable[[], Any], int]] = {
    "a changed detail": (lambda: update(audit_log).where(audit_log.c.number == 3).values(details={"z": 1}), 3),
    "another actor": (lambda: update(audit_log).where(audit_log.c.number == 2).values(actor_id="eve"), 2),
    "another time": (lambda: update(audit_log).where(audit_log.c.number == 2).values(at=START.replace(year=2020)), 2),
    "a changed hash": (lambda: update(audit_log).where(audit_log.c.number == 4).values(hash="f" * 64), 4),
    "a row taken out": (lambda: delete(audit_log).where(audit_log.c.number == 3), 3),
    "the first row taken out": (lambda: delete(audit_log).where(audit_log.c.number == 1), 1),
    "the tail cut off": (lambda: delete(audit_log).where(audit_log.c.number == 5), 5),
    "another head": (lambda: update(audit_head).values(hash="f" * 64), 5),
}


@pytest.mark.parametrize("what", _TAMPERINGS)
async def test_the_first_row_that_was_tampered_with_is_named(
    bench: Bench, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "VERIFY_ROWS", 2)
    await bench.attest("u1", "u2", "u3", "u4", "u5")
    tamper, broken = _TAMPERINGS[what]
    await bench.execute(tamper())
    verdict = await bench.verify()
    assert verdict.broken == broken
    assert verdict.why


async def test_a_rewritten_row_breaks_the_one_after_it(bench: Bench) -> None:
    await bench.attest("u1", "u2", "u3")
    first, second, _ = await bench.rows(select(audit_log).order_by(audit_log.c.number))
    (forged,) = chained([SecurityFact(SecurityKind.ROLE_CHANGED, "eve", "u2")], 1, first.hash, second.at, "corr-7")
    values = {"actor_id": "eve", "details": {}, "hash": forged.hash}
    await bench.execute(update(audit_log).where(audit_log.c.number == 2).values(values))
    assert (await bench.verify()).broken == 3


async def test_a_row_put_behind_the_head_is_noticed(bench: Bench) -> None:
    await bench.attest("u1")
    verdict = await bench.verify()
    (forged,) = chained([SecurityFact(SecurityKind.ROLE_CHANGED, "eve", "u2")], 1, verdict.head_hash, START, "c")
    row = {name: getattr(forged, name) for name in audit_log.c.keys()}  # noqa: SIM118 — columns, not a dict
    await bench.execute(insert(audit_log).values(row))
    assert (await bench.verify()).broken == 2


async def test_the_walk_tells_how_far_it_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "VERIFY_ROWS", 2)
    await bench.attest("u1", "u2", "u3", "u4", "u5")
    told: list[tuple[int, int]] = []
    await bench.verify(progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 5), (4, 5), (5, 5)]
