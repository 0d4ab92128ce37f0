"""After a restored backup, offsets go out a second time: clients must not take new events for ones they have."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from tests.acceptance.client import CAMDEN, CUSTOMER, new_key, signed_in
from tests.acceptance.demo import Demo, environment


def restore(demo: Demo, copy: Path) -> None:
    """The copy takes the place of the database, and what belonged to the old one goes."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{demo.database}{suffix}").unlink(missing_ok=True)
    copy.rename(demo.database)


async def renew(demo: Demo) -> None:
    """`fixnado epochs renew`, as soon as the leases of the restored database have run out."""
    async with asyncio.timeout(20):
        while True:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "server", "epochs", "renew", "--yes"),
                cwd=demo.directory,
                env=environment(**demo.settings),
                stderr=asyncio.subprocess.PIPE,
            )
            _, errors = await process.communicate()
            if process.returncode == 0:
                return
            assert b"a node still runs" in errors


async def test_a_restored_backup_under_new_epochs_resumes_nobody_wrongly(tmp_path: Path) -> None:
    wish = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN}
    with Demo(tmp_path) as demo:
        async with signed_in(demo.base, CUSTOMER) as customer:
            own = customer.own("user")
            await customer.call("booking.create", wish | {"key": new_key()})
            await customer.event("booking.created", own)
        # What the sqlite3 program does at .backup.
        with closing(sqlite3.connect(demo.database)) as source, closing(sqlite3.connect(tmp_path / "copy")) as copy:
            source.backup(copy)
        async with signed_in(demo.base, CUSTOMER) as customer:
            await customer.call("booking.create", wish | {"key": new_key(), "notes": "undone by the restore"})
            await customer.event("booking.created", own)
            place = dict(customer.positions[own])
        demo.kill()
        restore(demo, tmp_path / "copy")
        await renew(demo)
        await asyncio.to_thread(demo.start)
        # Other events get the offsets that the client has seen.
        async with signed_in(demo.base, CUSTOMER) as customer:
            for _ in range(2):
                await customer.call("booking.create", wish | {"key": new_key(), "notes": "after the restore"})
            await customer.until(lambda: customer.positions[own]["offset"] >= place["offset"])
        async with signed_in(demo.base, CUSTOMER, resume={own: place}) as back:
            answer = back.connected["channels"][own]
        assert (answer["recovered"], answer["events"]) == (False, [])
        assert answer["epoch"] != place["epoch"]
