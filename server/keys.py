"""The keys that sign access tokens: made once per database, shared by all of its nodes, rotated while they serve.

A new key is announced first: every node verifies with it before any signs with it. The key before it then verifies
until the last token it signed has ended, and no longer. Nodes look for changes every few seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

from domain.errors import Unavailable
from persistence.database import Database
from persistence.signing_keys import StoredKey, add_key, open_key, read_keys
from persistence.vault import DatabaseVault
from server.telemetry import logger
from server.tokens import KeyRing, SigningKey
from server.turns import turn
from server.workers import pause

log = logger(__name__)

LOOK_SECONDS = 5.0
ANNOUNCE_SECONDS = 4 * LOOK_SECONDS
"""From adding a key to signing with it: time for every node to look, and to look once more if that failed."""


class KeyKeeper:
    """Keeps one process's ring as the database says."""

    def __init__(self, database: Database, vault: DatabaseVault, node_id: str) -> None:
        self._database = database
        self._vault = vault
        self._node_id = node_id
        self._opened: dict[str, SigningKey] = {}

    async def ring(self) -> KeyRing:
        """The ring as it is now; the database's first key is made here when there is none.

        Raises:
            Unavailable: the database or the master key is away.
        """
        keys, now = await read_keys(self._database)
        if not keys:
            async with turn(self._database, "first-signing-key", self._node_id):
                if not (await read_keys(self._database))[0]:
                    fresh = SigningKey.generate()
                    await add_key(self._database, self._vault, fresh.kid, fresh.pem())
            keys, now = await read_keys(self._database)
        signing = _signing(keys, now)
        for key in keys:
            if key.kid not in self._opened:
                self._opened[key.kid] = SigningKey.from_pem(await open_key(self._vault, key))
        self._opened = {key.kid: self._opened[key.kid] for key in keys}
        others = [self._opened[key.kid].public(key.retires_at) for key in keys if key.kid != signing.kid]
        return KeyRing(self._opened[signing.kid], others, until=signing.retires_at)

    async def follow(self, stop: asyncio.Event, use: Callable[[KeyRing], None]) -> None:
        """Hands over the ring again and again until told to stop; while it cannot be read, the last one stays."""
        while not stop.is_set():
            await pause(stop, LOOK_SECONDS)
            try:
                use(await self.ring())
            except Unavailable as error:
                log.warning("signing_keys_not_read", why=error.message)


async def rotate_signing_key(database: Database, vault: DatabaseVault, token_seconds: float) -> tuple[str, datetime]:
    """Announces a new signing key; returns its name and since when it signs.

    Args:
        token_seconds: life of an access token with its leeway: so long the keys before it still verify. A node that
            notices late signs with the old key a little longer, hence the time of an announcement on top.
    """
    fresh = SigningKey.generate()
    signs_from = await add_key(
        database,
        vault,
        fresh.kid,
        fresh.pem(),
        announce_seconds=ANNOUNCE_SECONDS,
        old_keys_seconds=token_seconds + ANNOUNCE_SECONDS,
    )
    return fresh.kid, signs_from


def _signing(keys: Sequence[StoredKey], now: datetime) -> StoredKey:
    """The newest that may sign. While the only one is still being announced, it signs: there is nobody else."""
    return next((key for key in keys if key.signs_from <= now), keys[-1])
