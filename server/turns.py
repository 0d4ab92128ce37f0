"""One node at a time: for what is done once per database while several nodes start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from persistence.database import Database
from persistence.leases import Leases

TURN_SECONDS = 30.0
"""After this a node that died in its turn is passed over."""

_LOOK_AGAIN_SECONDS = 0.1


@asynccontextmanager
async def turn(database: Database, name: str, node_id: str) -> AsyncIterator[None]:
    """Waits for the node's turn and gives it on at the end. What is inside must look before it makes anything."""
    leases = Leases(database)
    # Another node gives its turn on through the database; there is no event here to wait for.
    while (token := await leases.acquire(name, node_id, TURN_SECONDS)) is None:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
    try:
        yield
    finally:
        await leases.release(name, token)
