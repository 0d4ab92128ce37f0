"""A provider's jobs as an iCalendar text, for whoever has the token of a feed."""

from __future__ import annotations

import asyncio

from domain import calendar_sync
from domain.calendar_sync import FeedJobs
from domain.commands import Desk
from domain.context import SYSTEM
from persistence.icalendars import write_jobs
from persistence.repositories import SqlUnitOfWork
from persistence.unit_of_work import Transactions


class CalendarFeeds:
    """Answers calendar programs, which bring a token in the address and can show nothing else."""

    def __init__(self, transactions: Transactions[SqlUnitOfWork], desk: Desk) -> None:
        self._transactions = transactions
        self._desk = desk

    async def text(self, token: str) -> bytes:
        """The calendar behind a token.

        Raises:
            Forbidden: the token opens nothing (any more).
        """

        async def work(uow: SqlUnitOfWork) -> FeedJobs:
            return await calendar_sync.feed(self._desk.context(SYSTEM, uow), token)

        return await asyncio.to_thread(write_jobs, await self._transactions.read(work))
