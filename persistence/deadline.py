"""A timeout for code whose libraries swallow cancellations.

``asyncio.wait_for`` takes a cancellation that arrives together with its result for none, up to Python 3.11; drivers use
it while they connect. A task that was cancelled once then goes on to wait for a server that may be frozen, and nothing
is left that would end it.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

AGAIN_SECONDS = 5.0
"""Between two cancellations: longer than an orderly retreat takes, which the second one would cut short."""


class Deadline:
    """Like :func:`asyncio.timeout`, but it cancels again until the block has ended.

    Raises:
        TimeoutError: from the block's end, when it was this deadline that ended it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._cancellations = 0

    def expired(self) -> bool:
        """Whether the time was up before the block ended."""
        return self._cancellations > 0

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "a deadline is for a task"
        self._task = task
        self._cancelling = task.cancelling()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._seconds, self._cancel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if not self._cancellations:
            return
        for _ in range(self._cancellations):
            self._task.uncancel()
        # If there are more than ours, somebody else wants the task to end.
        if self._task.cancelling() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error

    def _cancel(self) -> None:
        self._cancellations += 1
        self._task.cancel()
        self._timer = self._loop.call_later(AGAIN_SECONDS, self._cancel)
