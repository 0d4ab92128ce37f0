from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.low_level import Type

from domain.errors import Unavailable
from server.passwords import Passwords


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    passwords = Passwords(threads=2, waiting=2)
    yield passwords
    passwords.close()


@pytest.fixture
def held(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hashing waits until the event is set."""
    release = threading.Event()
    monkeypatch.setattr(PasswordHasher, "hash", lambda self, password: str(release.wait(5)))
    yield release
    release.set()


async def test_the_right_password_is_recognised_and_a_wrong_one_is_not(passwords: Passwords) -> None:
    stored = await passwords.hash("correct horse")
    assert await passwords.verify(stored, "correct horse")
    assert not await passwords.verify(stored, "correct horse ")
    assert not await passwords.verify(stored, "")


async def test_the_same_password_has_another_hash_each_time(passwords: Passwords) -> None:
    assert await passwords.hash("x") != await passwords.hash("x")


async def test_parameters_are_at_least_what_owasp_asks_for(passwords: Passwords) -> None:
    parameters = extract_parameters(await passwords.hash("x"))
    assert parameters.type is Type.ID
    assert parameters.memory_cost >= 19 * 1024
    assert parameters.time_cost >= 2
    assert parameters.parallelism >= 1


async def test_an_unknown_user_costs_the_same_work(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    verify = PasswordHasher.verify

    def counting(self: PasswordHasher, stored: str, password: str) -> bool:
        checked.append(stored)
        return verify(self, stored, password)

    monkeypatch.setattr(PasswordHasher, "verify", counting)
    known = await passwords.hash("x")
    assert not await passwords.verify(known, "y")
    assert not await passwords.verify(None, "y")
    assert extract_parameters(checked[0]) == extract_parameters(checked[1])


async def test_a_damaged_hash_never_matches(passwords: Passwords) -> None:
    assert not await passwords.verify("$argon2id$damaged", "x")
    assert not await passwords.verify("", "x")


async def test_a_hash_with_older_parameters_asks_for_a_new_one(passwords: Passwords) -> None:
    older = PasswordHasher(time_cost=1, memory_cost=8 * 1024, parallelism=1).hash("x")
    assert passwords.needs_rehash(older)
    assert await passwords.verify(older, "x")
    assert not passwords.needs_rehash(await passwords.hash("x"))


async def test_the_loop_goes_on_while_passwords_are_hashed(passwords: Passwords, held: threading.Event) -> None:
    hashing = asyncio.ensure_future(passwords.hash("x"))
    await asyncio.sleep(0.01)
    assert not hashing.done()
    held.set()
    assert await hashing


async def test_past_the_bound_callers_are_refused_at_once(passwords: Passwords, held: threading.Event) -> None:
    accepted = [asyncio.ensure_future(passwords.hash("x")) for _ in range(4)]
    await asyncio.sleep(0)
    for attempt in (passwords.hash("x"), passwords.verify(None, "x"), passwords.verify("$argon2id$x", "x")):
        with pytest.raises(Unavailable):
            await attempt
    held.set()
    assert len(await asyncio.gather(*accepted)) == 4
    assert await passwords.hash("x")


async def test_cancelling_does_not_get_past_the_bound(passwords: Passwords, held: threading.Event) -> None:
    running = [asyncio.ensure_future(passwords.hash("x")) for _ in range(2)]
    await asyncio.sleep(0.01)
    for caller in running:
        caller.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    # Both threads are still at work; only the two places in line are free.
    waiting = [asyncio.ensure_future(passwords.hash("x")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await passwords.hash("x")
    held.set()
    await asyncio.gather(*waiting)


async def test_a_cancelled_caller_gives_up_a_place_in_line(passwords: Passwords, held: threading.Event) -> None:
    running = [asyncio.ensure_future(passwords.hash("x")) for _ in range(2)]
    waiting = [asyncio.ensure_future(passwords.hash("x")) for _ in range(2)]
    await asyncio.sleep(0.01)
    waiting[0].cancel()
    await asyncio.sleep(0.01)
    another = asyncio.ensure_future(passwords.hash("x"))
    await asyncio.sleep(0)
    held.set()
    assert len(await asyncio.gather(*running, waiting[1], another)) == 4
