from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncmy
import pytest
import redis.asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.services import MariaDB, RedisServer, ServiceMissing, free_port, program


async def test_each_kind_of_database_takes_and_gives(database_url: str) -> None:
    engine = create_async_engine(database_url)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE things (id INTEGER PRIMARY KEY, name VARCHAR(20))"))
            await connection.execute(text("INSERT INTO things VALUES (1, 'ä€😀')"))
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT name FROM things"))).scalar_one() == "ä€😀"
    finally:
        await engine.dispose()


async def test_every_test_has_a_database_of_its_own(mariadb: MariaDB) -> None:
    started = time.monotonic()
    one, other = await mariadb.create_database(), await mariadb.create_database()
    await mariadb.execute(f"CREATE TABLE {one}.things (id INT)", f"CREATE TABLE {other}.things (id INT)")
    await mariadb.drop_database(one)
    await mariadb.execute(f"INSERT INTO {other}.things VALUES (1)")
    with pytest.raises(asyncmy.errors.ProgrammingError):
        await mariadb.execute(f"SELECT 1 FROM {one}.things")
    await mariadb.drop_database(other)
    assert time.monotonic() - started < 5


async def test_what_was_committed_survives_a_killed_mariadb() -> None:
    with MariaDB() as server:
        name = await server.create_database()
        await server.execute(f"CREATE TABLE {name}.things (id INT)", f"INSERT INTO {name}.things VALUES (7)")
        server.kill()
        assert not server.is_running()
        server.start()
        engine = create_async_engine(server.url(name))
        try:
            async with engine.connect() as connection:
                assert (await connection.execute(text("SELECT id FROM things"))).scalar_one() == 7
        finally:
            await engine.dispose()


async def test_a_killed_redis_comes_back_empty_on_the_same_port() -> None:
    with RedisServer() as server:
        async with redis.asyncio.from_url(server.url) as client:
            await client.set("a", "1")
        server.kill()
        server.start()
        async with redis.asyncio.from_url(server.url) as client:
            assert await client.get("a") is None


async def test_a_paused_redis_answers_when_it_is_resumed(redis_url: str, redis_server: RedisServer) -> None:
    async with redis.asyncio.from_url(redis_url, socket_timeout=0.2, retry=None) as client:
        redis_server.pause()
        try:
            with pytest.raises(redis.asyncio.TimeoutError):
                await client.get("a")
        finally:
            redis_server.resume()
    async with redis.asyncio.from_url(redis_url) as client:
        assert await client.get("a") is None


async def test_redis_is_empty_for_every_test(redis_server: RedisServer, request: pytest.FixtureRequest) -> None:
    async with redis.asyncio.from_url(redis_server.url) as client:
        await client.set("a", "1")
        request.getfixturevalue("redis_url")
        assert await client.get("a") is None


def test_leaving_removes_process_and_files() -> None:
    with RedisServer() as server:
        pid, directory = server.pid, server.directory
        assert directory.exists()
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_dies_with_a_test_run_that_is_killed() -> None:
    code = (
        "from tests.services import RedisServer\n"
        "server = RedisServer()\nserver.start()\nprint(server.pid, server.directory, flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        pid, directory = run.stdout.readline().split()
        run.kill()
    try:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
            time.sleep(0.02)
        assert not Path(f"/proc/{pid}").exists()
    finally:
        subprocess.run(["rm", "-rf", directory], check=True)


def test_a_server_that_cannot_start_says_why() -> None:
    with RedisServer() as server:
        second = RedisServer()
        second.port = server.port
        with pytest.raises(RuntimeError, match=r"redis ended at start:(?s:.*)in use"), second:
            pass
        assert not second.directory.exists()


def test_what_is_not_installed_is_an_error_that_says_what_to_type() -> None:
    with pytest.raises(ServiceMissing, match=r"no-such-server is not installed; .* apt-get install no-such-package"):
        program("no-such-server", "no-such-package")


def test_a_free_port_can_be_taken() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "http.server", str(free_port()), "--bind", "127.0.0.1"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as server:
        assert server.stdout is not None
        assert b"Serving HTTP" in server.stdout.readline()
        server.send_signal(signal.SIGTERM)
