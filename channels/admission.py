"""The line before the door: how many clients one node lets in at once.

When ten thousand sockets come back in the same moment and all are begun at once, each waits behind all others at every
step: nobody is done before nearly everybody is, clients give up and come back, and the work done for them is lost. So
a number of them is let in at a time, first come, first served, and the rest wait without costing anything. Whoever has
gone meanwhile is passed over.
"""

from __future__ import annotations

import asyncio

from domain.errors import Unavailable


class Admission:
    """Places for clients that are being let in.

    Args:
        places: at once.
        patience_seconds: in line; a client that has waited so long has given up, or soon will.
    """

    def __init__(self, places: int, patience_seconds: float) -> None:
        self._places = asyncio.Semaphore(places)
        self._patience_seconds = patience_seconds

    async def enter(self) -> None:
        """Wait for a place; give it back by :meth:`leave`.

        Raises:
            Unavailable: it took too long.
        """
        if not self._places.locked():
            await self._places.acquire()
            return
        try:
            async with asyncio.timeout(self._patience_seconds):
                await self._places.acquire()
        except TimeoutError:
            raise Unavailable from None

    def leave(self) -> None:
        """The next one, please."""
        self._places.release()
