"""The courier: to all devices at once, within its claim, past defects, and not past its process's end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from domain import reaching
from domain.errors import Unavailable
from domain.letters import Medium
from domain.notifications import MOST_DEVICES, Category, Delivery, DeliveryStatus, Notification, PushToken
from domain.reaching import CLAIM_SECONDS, Errand, Report
from server import courier as courier_module
from server.aws import AwsOptions
from server.carriers import CALL_SECONDS, MOST_CARRIERS, Parcel, Route, Undeliverable
from server.clock import SystemClock
from server.courier import DELIVERY_SECONDS, Courier
from server.fcm import Gone
from server.telemetry import Metrics
from server.workers import Workers

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)


class Carrier:
    """Says of each device what it is told to; hangs without it.

    Attributes:
        at_once: how many calls were under way together, at most.
    """

    name = "stub"

    def __init__(self, says: dict[str, str | Exception] | None = None) -> None:
        self.says = says or {}
        self.asked: list[str] = []
        self.at_once = 0
        self._calls = 0

    async def carry(self, parcel: Parcel) -> str | None:
        self.asked.append(parcel.to)
        self._calls += 1
        self.at_once = max(self.at_once, self._calls)
        try:
            await (asyncio.sleep(0) if parcel.to in self.says else asyncio.Event().wait())
        finally:
            self._calls -= 1
        said = self.says[parcel.to]
        if isinstance(said, Exception):
            raise said
        return said


class Office:
    """The desk of a courier: hands out errands once, and keeps what is noted.

    Attributes:
        broken: what notes of these notifications raise.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errands: Errand) -> None:
        self.errands = list(errands)
        self.noted: dict[str, Report | None] = {}
        self.forgotten: list[str] = []
        self.broken: dict[str, Exception] = {}
        monkeypatch.setattr(reaching, "claim", self._claim)
        monkeypatch.setattr(reaching, "note", self._note)
        self.uow = self.notifications = self

    async def run_as_system(self, work: Any, _: Any) -> Any:
        return await work(self)

    async def read(self, _: Any) -> datetime | None:
        return NOW if self.errands else None

    async def remove_push_token(self, token_hash: str) -> None:
        self.forgotten.append(token_hash)

    async def _claim(self, _: Any, limit: int) -> tuple[int, list[Errand]]:
        taken, self.errands = self.errands[:limit], self.errands[limit:]
        return len(taken), taken

    async def _note(self, _: Any, notification_id: str, __: Medium, report: Report | None) -> None:
        if notification_id in self.broken:
            raise self.broken[notification_id]
        self.noted[notification_id] = report


def errand(notification_id: str, devices: Sequence[str]) -> Errand:
    expires_at = NOW + timedelta(hours=1)
    about = Notification(
        notification_id, "u1", Category.MESSAGE, "message/1", "conversation/1", "T", "x", {}, NOW, expires_at
    )
    tokens = [PushToken(f"hash of {device}", "u1", "s1", "web", device, NOW) for device in devices]
    return Errand(about, Delivery(notification_id, Medium.PUSH, DeliveryStatus.WAITING, NOW), tokens=tokens)


def courier(office: Office, carrier: Carrier) -> Courier:
    there: Any = office
    return Courier(there, there, {Medium.PUSH: Route([carrier])}, there, SystemClock(), Metrics())


def test_one_delivery_ends_while_it_is_its_couriers() -> None:
    longest = AwsOptions().call_seconds + MOST_CARRIERS * CALL_SECONDS
    assert longest < DELIVERY_SECONDS <= CLAIM_SECONDS / 2


async def test_all_devices_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.carriers.CALL_SECONDS", 0.1)
    devices = [f"d{number}" for number in range(MOST_DEVICES)]
    office, carrier = Office(monkeypatch, errand("n1", devices)), Carrier({"d3": "ref-3"})
    works = courier(office, carrier)
    started = time.monotonic()
    await works.run_once()
    await works.settled()
    assert time.monotonic() - started < 0.1 * 3, "not one after the other"
    assert (sorted(carrier.asked), carrier.at_once) == (devices, MOST_DEVICES)
    assert office.noted == {"n1": Report(DeliveryStatus.HANDED_OVER, "stub", "ref-3")}


@pytest.mark.parametrize(
    ("says", "report"),
    [
        ({"d1": Gone("unregistered"), "d2": "ref"}, Report(DeliveryStatus.HANDED_OVER, "stub", "ref")),
        ({"d1": Gone("unregistered"), "d2": Undeliverable("x")}, Report(DeliveryStatus.FAILED, reason="unregistered")),
        ({"d1": Gone("unregistered"), "d2": Unavailable()}, None),
    ],
)
async def test_what_the_devices_say_comes_to_one_report(
    says: dict[str, str | Exception], report: Report | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = Office(monkeypatch, errand("n1", list(says)))
    works = courier(office, Carrier(says))
    await works.run_once()
    await works.settled()
    assert office.noted == {"n1": report}
    assert office.forgotten == ["hash of d1"]


async def test_delivery_that_takes_too_long_or_breaks_is_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier_module, "DELIVERY_SECONDS", 0.05)
    office = Office(monkeypatch, errand("slow", ["silent"]), errand("broken", ["d1"]))
    works = courier(office, Carrier({"d1": ValueError("a defect")}))
    with capture_logs() as lines:
        await works.run_once()
        await works.settled()
    assert office.noted == {"slow": None, "broken": None}
    assert [line["event"] for line in lines] == ["delivery_failed"] * 2


async def test_note_that_cannot_be_written_is_told_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    office = Office(monkeypatch, errand("bad", ["d1"]), errand("good", ["d1"]))
    office.broken["bad"] = ValueError("too long")
    works = courier(office, Carrier({"d1": "ref"}))
    with capture_logs() as lines:
        await works.run_once()
        await works.settled()
    assert list(office.noted) == ["good"]
    assert [(line["event"], line["log_level"]) for line in lines] == [("delivery_not_noted", "error")]


@pytest.mark.parametrize("patience", [0.02, 10.0])
async def test_nothing_is_on_its_way_once_the_courier_has_stopped(
    patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier_module, "STOP_SECONDS", patience)
    office, carrier = Office(monkeypatch, errand("n1", ["silent"])), Carrier()
    works, workers = courier(office, carrier), Workers()
    workers.start("courier", works.run)
    async with asyncio.timeout(5):
        while not carrier.asked:  # noqa: ASYNC110 — there is no event for it
            await asyncio.sleep(0.005)
        # With more patience than the process has, the worker itself is cancelled.
        await workers.stop(0.1)
    assert [task for task in asyncio.all_tasks() if task.get_name() == "delivery"] == []
    assert office.noted == {}, "left to the next courier"
