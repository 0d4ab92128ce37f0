"""A fair and bounded wait for one of a few connections.

The pool of SQLAlchemy lets newcomers overtake those who wait, so under load a waiter can starve: with 16 writers on 10
connections the sequencer was seen to wait for more than a second. Here it is first come, first served, but for urgent
work (the sequencer's and the leases'), which goes next: everybody's events wait for it.
"""

from __future__ import annotations

import asyncio
from collections import deque

from domain.errors import Unavailable


class Turns:
    """A semaphore with two lanes.

    Args:
        count: turns that may be taken at the same time.
        most_waiting: how many may wait; one more is refused at once.
        timeout_seconds: how long one may wait.
    """

    def __init__(self, count: int, most_waiting: int, timeout_seconds: float) -> None:
        self._free = count
        self._most_waiting = most_waiting
        self._timeout_seconds = timeout_seconds
        self._ordinary: deque[asyncio.Future[None]] = deque()
        self._urgent: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._ordinary) + len(self._urgent)

    async def take(self, *, urgent: bool = False) -> None:
        """Wait for a turn. Who got one gives it back with :meth:`give`.

        Raises:
            Unavailable: the wait was too long, or too many wait.
        """
        # Nobody waits while a turn is free: giving back hands it to the next.
        if self._free:
            self._free -= 1
            return
        if self.waiting >= self._most_waiting and not urgent:
            raise Unavailable("Too many are waiting for the database.")
        queue = self._urgent if urgent else self._ordinary
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give()  # it came at the very moment we gave up
            elif turn in queue:  # else `give` has passed over it
                queue.remove(turn)
            if isinstance(error, TimeoutError):
                raise Unavailable("The wait for the database was too long.") from error
            raise

    def give(self) -> None:
        """Hand the turn to the next who waits."""
        for queue in (self._urgent, self._ordinary):
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._free += 1
