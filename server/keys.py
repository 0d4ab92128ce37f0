"""The key that signs access tokens: made once per database, shared by all of its nodes."""

from __future__ import annotations

from persistence.database import Database
from persistence.signing_keys import add_key, read_keys
from server.tokens import KeyRing, SigningKey
from server.turns import turn


async def load_key_ring(database: Database, node_id: str) -> KeyRing:
    """The ring of this database; its first key is made here when there is none."""
    rows = await read_keys(database)
    if not rows:
        async with turn(database, "first-signing-key", node_id):
            if not await read_keys(database):
                fresh = SigningKey.generate()
                await add_key(database, fresh.kid, fresh.pem().decode())
        rows = await read_keys(database)
    keys = [(SigningKey.from_pem(row.private_pem.encode()), row.retires_at) for row in rows]
    signing = next(key for key, retires_at in keys if retires_at is None)
    return KeyRing(signing, [key.public(retires_at) for key, retires_at in keys if key.kid != signing.kid])
