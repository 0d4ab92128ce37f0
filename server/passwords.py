"""Passwords: Argon2id off the loop, with a bound on threads and on who may wait for them.

The algorithm is RFC 9106's; the parameters are the least that OWASP's Password Storage Cheat Sheet asks for
(m = 19 MiB, t = 2, p = 1). A hash carries its parameters, so raising them later rehashes people as they sign in.

Concurrency: argon2 releases the interpreter lock, so hashing takes place in threads of a pool of its own. At most
``threads`` hashes run and ``waiting`` more stand in line: a flood of sign-ins costs threads × 19 MiB and is told
``unavailable``, while everybody else's loop goes on. A cancelled caller gives up a place in line at once, but a hash
that runs keeps its place to the end: cancelling cannot be used to get past the bound.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type

from domain.errors import Unavailable

MEMORY_KIB: Final = 19 * 1024
TIME_COST: Final = 2
PARALLELISM: Final = 1

T = TypeVar("T")


class Passwords:
    """Hashes and checks passwords. Made by the process that owns it, ended by :meth:`close`.

    Args:
        threads: hashes at once; each takes 19 MiB and one core for some tens of milliseconds.
        waiting: callers that may stand in line behind them.
        memory_kib: tests may go lower; the product never does.
    """

    def __init__(self, *, threads: int = 2, waiting: int = 64, memory_kib: int = MEMORY_KIB) -> None:
        self._hasher = PasswordHasher(
            time_cost=TIME_COST, memory_cost=memory_kib, parallelism=PARALLELISM, type=Type.ID
        )
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="passwords")
        self._places = threading.BoundedSemaphore(threads + waiting)
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        """The hash to store, in PHC string format with a fresh salt.

        Raises:
            Unavailable: the line is full.
        """
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether this is the password behind the hash.

        Args:
            stored: ``None`` for a user that does not exist: the same work is done, and the answer is no.

        Raises:
            Unavailable: the line is full, for known and unknown users alike.
        """
        return await self._run(lambda: self._check(stored, password))

    def needs_rehash(self, stored: str) -> bool:
        """Whether the hash has other parameters than today's; if so, store a new one after a good sign-in."""
        return self._hasher.check_needs_rehash(stored)

    def close(self) -> None:
        """Lets running hashes end (tens of milliseconds) and drops those in line."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _check(self, stored: str | None, password: str) -> bool:
        if stored is None:
            # Made once and on a pool thread. Two threads may both make it; either will do.
            self._nobody = self._nobody or self._hasher.hash(secrets.token_urlsafe(16))
        try:
            self._hasher.verify(stored or self._nobody or "", password)
        except (VerificationError, InvalidHashError):
            return False
        return stored is not None

    async def _run(self, work: Callable[[], T]) -> T:
        if not self._places.acquire(blocking=False):
            raise Unavailable("Too many people are signing in at once. Try again in a moment.")
        try:
            future = self._pool.submit(work)
        except RuntimeError:
            self._places.release()
            raise
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)
