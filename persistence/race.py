"""Rows that two transactions may make at once: the later one starts over, and finds the row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import IntegrityError

from persistence.database import RetryTransaction
from persistence.driver_errors import Trouble, trouble_of


@contextmanager
def start_over_if_taken(what: str) -> Iterator[None]:
    """Around the statement that adds the row.

    Args:
        what: was added by somebody else, for the log.

    Raises:
        RetryTransaction: there is such a row by now. Let it through: the whole transaction is run again.
    """
    try:
        yield
    except IntegrityError as error:
        if trouble_of(error) is Trouble.DUPLICATE:
            raise RetryTransaction(f"somebody else added {what}") from error
        raise
