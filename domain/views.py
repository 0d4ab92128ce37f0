"""Shapes at the edges: what comes in is a :class:`Params`, what goes out is described by a :class:`View`.

Params are validated strictly and refuse what they do not know, so that nobody can slip in an owner, a status or a
price. Views describe results and event data for the specifications; the use cases build plain dictionaries of that
shape, because nothing on the way out needs validating, and a test holds the two together.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d")


_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


def _written_out(value: object) -> object:
    # Left alone, pydantic would take a number, even in a string, for seconds since 1970.
    if not isinstance(value, datetime) and not (isinstance(value, str) and _RFC_3339.match(value)):
        raise ValueError("must be RFC 3339 with an offset")
    return value


def _within_reason(value: datetime) -> datetime:
    # Near the ends of the calendar, adding a duration or an offset raises.
    if not _EARLIEST <= value < _LATEST:
        raise ValueError("must be between the years 1970 and 2200")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_within_reason), Field(strict=False)]
"""RFC 3339 with an offset."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True)]
"""A short free text, such as a reason."""

Key = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,64}$"),
    Field(description="Idempotency key, a UUID made by the client; kept 24 hours per user."),
]


MAX_OFFSET = 2**53 - 1
"""Largest offset a client may name: what JavaScript counts exactly, and well within a database's integers."""


class Params(BaseModel):
    """Base of every command's parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


class NoParams(Params):
    """A command that takes none."""


class View(BaseModel):
    """Base of every result's and event's shape."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class MoneyView(View):
    """Integer minor units of an ISO 4217 currency."""

    amount_minor: int
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]


class PointView(View):
    """WGS 84 degrees."""

    lat: float
    lon: float


class Nothing(View):
    """An empty object."""
