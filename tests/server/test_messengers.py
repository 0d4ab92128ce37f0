"""Letters: handed over at once, posted in the background, and never in a log."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from domain.errors import Unavailable
from domain.letters import Letter, LetterKind, Medium
from server import messengers
from server.carriers import Refused, Undeliverable
from server.messengers import SUBJECTS, LocalPost, QueuedMessenger, text_of
from server.telemetry import Metrics
from tests.channels.fakes import until

CODE = Letter(LetterKind.CODE, Medium.EMAIL, "ann@example.test", "314159")


class Office:
    """Takes letters, or fails, or hangs."""

    def __init__(self) -> None:
        self.taken: list[Letter] = []
        self.says: dict[str, Exception] = {}
        self.asked = 0
        self.well = True
        self.open = asyncio.Event()
        self.open.set()

    async def post(self, letter: Letter) -> None:
        await self.open.wait()
        self.asked += 1
        if letter.to in self.says:
            raise self.says[letter.to]
        if not self.well:
            raise Unavailable
        self.taken.append(letter)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messengers, "FIRST_PAUSE_SECONDS", 0.001)


async def test_nobody_waits_for_the_post_office_and_the_line_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messengers, "MOST_WAITING", 5)
    office, stop = Office(), asyncio.Event()
    office.open.clear()
    messenger = QueuedMessenger(office, Metrics())
    for _ in range(5):
        await messenger.send(CODE)
    with pytest.raises(Unavailable):
        await messenger.send(CODE)
    worker = asyncio.ensure_future(messenger.run(stop))
    office.open.set()
    await until(lambda: len(office.taken) == 5)
    stop.set()
    await worker


async def test_office_that_is_away_is_said_to_be_and_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messengers, "AWAY_SECONDS", 0.1)
    office, stop, metrics = Office(), asyncio.Event(), Metrics()
    office.well = False
    messenger = QueuedMessenger(office, metrics)
    worker = asyncio.ensure_future(messenger.run(stop))
    await messenger.send(CODE)
    await until(lambda: b'fixnado_letters_total{medium="email",outcome="dropped"} 1.0' in metrics.render())
    with pytest.raises(Unavailable, match="another way"):
        await messenger.send(CODE)
    await messenger.send(Letter(LetterKind.CODE, Medium.SMS, "+447700900123", "1"))  # another office
    office.well = True
    await asyncio.sleep(0.15)  # the pause itself is what is tested
    await messenger.send(CODE)
    await until(lambda: CODE in office.taken)
    await messenger.send(CODE)
    stop.set()
    await worker


@pytest.mark.parametrize("error", [Undeliverable("no such number"), Refused()])
async def test_letter_to_a_wrong_number_keeps_nobody_elses_back(error: Exception) -> None:
    office, stop, metrics = Office(), asyncio.Event(), Metrics()
    office.says[CODE.to] = error
    messenger = QueuedMessenger(office, metrics)
    worker = asyncio.ensure_future(messenger.run(stop))
    for _ in range(messengers.AWAY_AFTER_FAILURES):
        await messenger.send(CODE)
    await until(lambda: b'fixnado_letters_total{medium="email",outcome="dropped"} 3.0' in metrics.render())
    assert office.asked == 3, "none of them is tried again"
    other = Letter(LetterKind.CODE, Medium.EMAIL, "bob@example.test", "1")
    await messenger.send(other)
    await until(lambda: other in office.taken)
    stop.set()
    await worker


async def test_local_post_logs_neither_the_code_nor_the_person(tmp_path: Path) -> None:
    with capture_logs() as lines:
        for office in (LocalPost(), LocalPost(tmp_path / "mail")):
            await office.post(CODE)
    assert [line["event"] for line in lines] == ["letter_not_sent"] * 2
    assert CODE.secret not in str(lines)
    assert CODE.to not in str(lines)
    (file,) = (tmp_path / "mail").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert CODE.secret in file.read_text()


@pytest.mark.parametrize("kind", list(LetterKind))
def test_every_letter_has_words(kind: LetterKind) -> None:
    letter = Letter(kind, Medium.EMAIL, "ann@example.test", "SECRET")
    assert SUBJECTS[kind]
    assert ("SECRET" in text_of(letter)) is (kind in {LetterKind.CODE, LetterKind.PASSWORD_RESET})
    assert "SECRET" not in SUBJECTS[kind]
