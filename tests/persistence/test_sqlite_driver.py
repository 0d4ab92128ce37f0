"""Connections to a SQLite file that others open at the same moment."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from persistence.sqlite_driver import SqliteConnection

WAL = ["PRAGMA journal_mode=WAL"]


async def test_all_who_open_a_new_file_at_once_get_in(tmp_path: Path) -> None:
    """Without patience of our own some of these are refused at once, however long SQLite was told to wait."""
    for number in range(60):
        path = str(tmp_path / f"{number}.db")
        connections = [SqliteConnection(path, "BEGIN", WAL, busy_seconds=20) for _ in range(6)]
        await asyncio.gather(*connections)
        for connection in connections:
            await connection.close()


async def test_patience_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "held.db"
    with sqlite3.connect(path, isolation_level=None) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            async with asyncio.timeout(10):
                await SqliteConnection(str(path), "BEGIN", WAL, busy_seconds=0.1)
        holder.execute("ROLLBACK")
    holder.close()
