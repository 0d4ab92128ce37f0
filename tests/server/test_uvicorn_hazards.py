"""Probes of what uvicorn does by itself and must not do here; docs/uvicorn-hazards.md has the whole list."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sqlite3
import tomllib
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import FunctionType

import aiohttp
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import Server

from server.uvicorn_protocol import DrainingServer, HttpProtocol, SocketProtocol, server_options
from tests.acceptance.demo import Demo
from tests.channels.fakes import until
from tests.server.live_server import LiveServer, RawSocket, client_frame, live_server

PROBED = "0.54.0"
"""The version whose behaviour these tests were written against."""

ROOT = Path(__file__).parents[2]
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA


@pytest.fixture(autouse=True)
async def _no_connection_left() -> AsyncIterator[None]:
    yield
    await RawSocket.close_all()


async def connected(live: LiveServer, who: str = "customer:ada") -> RawSocket:
    raw = await RawSocket.open(live.port)
    raw.send_json({"jsonrpc": "2.0", "id": 1, "method": "session.connect", "params": {"token": who}})
    assert b'"result"' in (await raw.frame())[1]
    return raw


# --- the version ------------------------------------------------------------------------------------------------------


def test_the_pin_is_the_version_that_was_probed() -> None:
    assert uvicorn.__version__ == PROBED
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"uvicorn=={PROBED.rpartition('.')[0]}.*" in project["dependencies"]
    for lock in ("requirements.lock", "requirements-dev.lock"):
        assert re.search(rf"^uvicorn=={re.escape(PROBED)} ", (ROOT / lock).read_text(), re.MULTILINE), lock


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(SocketProtocol, WebSocketsSansIOProtocol), (HttpProtocol, HttpToolsProtocol), (DrainingServer, Server)],
)
def test_what_the_cures_lean_on_is_still_there(ours: type, theirs: type) -> None:
    """A method that uvicorn calls by another name would simply never be ours again."""
    names = set(dir(theirs)) | set(re.findall(r"self\.(\w+)\b.* = ", inspect.getsource(theirs)))
    own = {name for name, member in vars(ours).items() if isinstance(member, FunctionType)}
    overridden = {name for name in own if name in vars(theirs)}
    for name in overridden - {"__init__"}:
        mine, base = (inspect.signature(getattr(owner, name)) for owner in (ours, theirs))
        assert len(mine.parameters) == len(base.parameters), name
    assert overridden == EXPECTED[ours]
    made_here = own | set(re.findall(r"self\.(\w+)(?:: [^=]+)? = ", inspect.getsource(ours)))
    used = set(re.findall(r"self\.([a-z]\w*)", inspect.getsource(ours)))
    assert used - made_here - set(ours.__annotations__) <= names


EXPECTED = {
    SocketProtocol: {
        "__init__",
        "connection_lost",
        "connection_made",
        "data_received",
        "eof_received",
        "handle_close",
        "handle_connect",
        "handle_events",
        "handle_parser_exception",
        "pause_writing",
        "resume_writing",
        "run_asgi",
        "send_receive_event_to_app",
        "shutdown",
    },
    HttpProtocol: {
        "__init__",
        "connection_made",
        "connection_lost",
        "data_received",
        "eof_received",
        "pause_writing",
        "resume_writing",
        "on_message_begin",
        "on_headers_complete",
        "on_message_complete",
        "handle_websocket_upgrade",
    },
    DrainingServer: {"__init__", "shutdown"},
}


def test_what_is_not_left_to_uvicorn_when_http_hands_over_is_all_it_does_there() -> None:
    """Ours does it without asking the socket for its addresses again, and does not call theirs."""
    sources = (inspect.getsource(owner.connection_made) for owner in (SocketProtocol, WebSocketsSansIOProtocol))
    ours, theirs = (set(re.findall(r"self\.(\w+)(?=[^=\n(]* = )", source)) for source in sources)
    assert ours == theirs == {"transport", "server", "client", "scheme"}


def test_options_turn_down_what_is_open_by_default() -> None:
    config = uvicorn.Config("app:app", **server_options())
    plain = uvicorn.Config("app:app")
    assert (plain.ws_per_message_deflate, config.ws_per_message_deflate) == (True, False)
    assert (plain.ws_max_size, config.ws_max_size) == (16 * 1024 * 1024, 64 * 1024)
    assert (plain.proxy_headers, config.proxy_headers) == (True, False)
    assert (plain.access_log, config.access_log) == (True, False)
    # The product's own heartbeat does it, which browsers see too.
    assert (plain.ws_ping_interval, config.ws_ping_interval) == (20.0, None)
    # Waiting for ever is the default.
    assert (plain.timeout_graceful_shutdown, config.timeout_graceful_shutdown) == (None, 5)


# --- behaviour --------------------------------------------------------------------------------------------------------


async def test_a_socket_is_read_while_a_command_runs() -> None:
    async with live_server() as live:
        raw = await connected(live)
        raw.send_json({"jsonrpc": "2.0", "id": 2, "method": "test.wait"})
        await live.house.desk.started.wait()
        for number in range(20):
            raw.send_json({"jsonrpc": "2.0", "method": "pong"})
            raw.send(client_frame(PING, f"{number}".encode()))
            # Answered one by one, so nothing of it was left standing behind the command.
            assert await raw.frame() == (PONG, f"{number}".encode())
        (session,) = live.house.realtime._node.sessions
        assert not session.closed
        live.house.desk.gate.set()
        opcode, payload = await raw.frame()
        assert (opcode, b'"id":2' in payload) == (TEXT, True)


async def test_the_limit_that_uvicorn_offers_does_not_count_sockets() -> None:
    """Why places are counted at the door. When this fails, uvicorn counts them too, and its limit must stay unset."""

    async def accept(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    config = uvicorn.Config(accept, host="127.0.0.1", port=0, log_config=None, lifespan="off", limit_concurrency=2)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    await until(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    async with aiohttp.ClientSession() as http:
        sockets = [await http.ws_connect(url) for _ in range(5)]
        assert not any(socket.closed for socket in sockets)
        for socket in sockets:
            await socket.close()
    server.should_exit = True
    await serving
    assert uvicorn.Config(accept, **server_options()).limit_concurrency is None


async def test_nobody_is_sent_away_before_draining_says_so() -> None:
    draining, drained = asyncio.Event(), asyncio.Event()

    async def drain() -> None:
        draining.set()
        await drained.wait()

    async with live_server() as live:
        live.server._drain = drain
        raw = await connected(live)
        live.server.should_exit = True
        await draining.wait()
        raw.send(client_frame(PING, b"still there?"))
        assert await raw.frame() == (PONG, b"still there?")
        drained.set()
        # What draining left behind goes with the product's own code, not with 1012.
        assert await raw.close_code() == 4000


async def test_sigterm_ends_in_order_and_gives_the_lease_back(tmp_path: Path) -> None:
    demo = Demo(tmp_path, command="serve")
    await asyncio.to_thread(demo.start)
    assert await asyncio.to_thread(demo.terminate) == 0
    with closing(sqlite3.connect(demo.database)) as connection:
        ends = [datetime.fromisoformat(row[0]) for row in connection.execute("SELECT expires_at FROM leases")]
    assert ends
    assert all(end.replace(tzinfo=UTC) <= datetime.now(UTC) for end in ends)


# --- the list ---------------------------------------------------------------------------------------------------------


def test_every_hazard_on_the_list_has_a_probe() -> None:
    document = (ROOT / "docs" / "uvicorn-hazards.md").read_text()
    rows = [line.split("|")[1:-1] for line in document.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 14
    for hazard, *_, probes in rows:
        assert re.findall(r"`(tests/\S+?)::(\w+)`", probes), hazard
    for file, name in re.findall(r"`(tests/\S+?)::(\w+)`", document):
        tree = ast.parse((ROOT / file).read_text())
        tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in tests, f"{file} has no {name}"
