"""Letters to people: written here, posted by the carriers of :mod:`server.carriers`, or kept on this machine while
nothing is configured.

A letter is handed over to a bounded queue and posted by one worker: nobody's request waits for a post office. What
cannot be posted after a few tries is counted and dropped; the person asks again, as they would for a code that is late.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from domain.errors import Unavailable
from domain.letters import Letter, LetterKind, Medium
from server.carriers import Parcel, Refused, Route, Undeliverable
from server.telemetry import Metrics, logger

log = logger(__name__)

MOST_WAITING = 1_000
TRIES = 3
FIRST_PAUSE_SECONDS = 0.5
AWAY_AFTER_FAILURES = 3
AWAY_SECONDS = 15.0

SUBJECTS: Mapping[LetterKind, str] = {
    LetterKind.CODE: "Your Fixnado code",
    LetterKind.PASSWORD_RESET: "Reset your Fixnado password",
    LetterKind.PASSWORD_CHANGED: "Your Fixnado password was changed",
    LetterKind.MFA_CHANGED: "Your Fixnado sign-in was changed",
}
_TEXTS: Mapping[LetterKind, str] = {
    LetterKind.CODE: "Your code is {secret}. It is good for ten minutes. Nobody from Fixnado will ever ask you for it.",
    LetterKind.PASSWORD_RESET: (
        "Somebody, probably you, asked to reset the password of your account. This token does it, once, within half an"
        " hour:\n\n{secret}\n\nIf it was not you, nothing has changed and there is nothing to do."
    ),
    LetterKind.PASSWORD_CHANGED: (
        "The password of your account was changed, and other devices were signed out."
        " If it was not you, reset your password now and write to support."
    ),
    LetterKind.MFA_CHANGED: (
        "The second step of signing in to your account was turned on or off, and other devices were signed out."
        " If it was not you, reset your password now and write to support."
    ),
}


def text_of(letter: Letter) -> str:
    """What the letter says."""
    return _TEXTS[letter.kind].format(secret=letter.secret)


class PostOffice(Protocol):
    """Carries one letter."""

    async def post(self, letter: Letter) -> None:
        """Returns when it was taken.

        Raises:
            Unavailable: it was not, this time.
            Undeliverable, Refused: not this letter; others are taken.
        """


class QueuedMessenger:
    """See :class:`domain.ports.Messenger`. :meth:`run` posts; its owner is the process's list of workers."""

    def __init__(self, office: PostOffice, metrics: Metrics) -> None:
        self._office = office
        self._metrics = metrics
        self._queue: asyncio.Queue[Letter] = asyncio.Queue(MOST_WAITING)
        self._failures: dict[Medium, int] = {}
        self._away_until: dict[Medium, float] = {}

    async def send(self, letter: Letter) -> None:
        # While the office is known to be away, codes would come too late to be of use: better to say so, and the person
        # takes another way in. One letter per pause is let through, to see.
        now = asyncio.get_running_loop().time()
        if now < self._away_until.get(letter.medium, 0.0):
            raise Unavailable("Messages cannot be sent now. Use another way to confirm that it is you.")
        try:
            self._queue.put_nowait(letter)
        except asyncio.QueueFull:
            raise Unavailable("Messages cannot be sent now. Use another way to confirm that it is you.") from None

    async def run(self, stop: asyncio.Event) -> None:
        """Posts one letter after the other until told to stop; what still waits then is dropped."""
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                taking = asyncio.ensure_future(self._queue.get())
                await asyncio.wait({taking, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not taking.done():
                    taking.cancel()
                    return
                await self._post(taking.result())
        finally:
            stopped.cancel()

    async def _post(self, letter: Letter) -> None:
        for tried in range(1, TRIES + 1):
            try:
                await self._office.post(letter)
            except (Undeliverable, Refused):
                # One wrong number must not take everybody else's codes away.
                self._note(letter.medium, well=True)
                break
            except Unavailable:
                self._note(letter.medium, well=False)
                if tried < TRIES:
                    await asyncio.sleep(FIRST_PAUSE_SECONDS * 2 ** (tried - 1))
                continue
            self._note(letter.medium, well=True)
            self._metrics.letter(letter.medium.value, "posted")
            return
        self._metrics.letter(letter.medium.value, "dropped")
        log.warning("letter_dropped", kind=letter.kind.value, medium=letter.medium.value)

    def _note(self, medium: Medium, *, well: bool) -> None:
        self._failures[medium] = 0 if well else self._failures.get(medium, 0) + 1
        if well:
            self._away_until.pop(medium, None)
        elif self._failures[medium] >= AWAY_AFTER_FAILURES:
            self._away_until[medium] = asyncio.get_running_loop().time() + AWAY_SECONDS


class RoutedPost:
    """By the carriers of each medium."""

    def __init__(self, routes: Mapping[Medium, Route]) -> None:
        self._routes = routes

    async def post(self, letter: Letter) -> None:
        route = self._routes.get(letter.medium)
        if route is None:
            raise Unavailable
        await route.carry(Parcel(letter.to, SUBJECTS[letter.kind], text_of(letter)))


class LocalPost:
    """For a server by itself: says in the log that there was a letter, but neither to whom nor what it said.

    Args:
        directory: where letters are put, one file each that its owner alone can read; none are kept without it.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory

    async def post(self, letter: Letter) -> None:
        if self._directory is not None:
            try:
                await asyncio.to_thread(self._write, letter, self._directory)
            except OSError as error:
                raise Unavailable from error
        kept = "" if self._directory is None else str(self._directory)
        log.info("letter_not_sent", kind=letter.kind.value, medium=letter.medium.value, kept_in=kept)

    @staticmethod
    def _write(letter: Letter, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = directory / f"{letter.kind.value}-{secrets.token_hex(8)}.txt"
        # Whole or not at all: somebody waits for the name to appear, and reads.
        aside = file.with_suffix(".part")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(f"To: {letter.to}\nSubject: {SUBJECTS[letter.kind]}\n\n{text_of(letter)}\n")
        aside.rename(file)
