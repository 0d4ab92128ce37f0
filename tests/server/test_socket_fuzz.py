"""Malformed and hostile frames against a running server: each is answered with a typed error, or the socket is closed
with a code that says why; the server lives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from channels.protocol import SUBPROTOCOL, CloseCode
from domain.catalogue import COMMANDS
from domain.types import JSON
from server import demo
from tests.server.fuzzed import FixnadoProcess

CODES = {-32700, -32600, -32601, -32602, -32000, -32001, -32003, -32029}
"""Every error but -32603: nothing a client sends is the server's fault."""

CLOSES = {code.value for code in CloseCode} | {1002, 1003, 1007, 1009}

QUICKLY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

# Commands that end what the other examples need.
METHODS = sorted(COMMANDS.keys() - {"user.sign_out"})
NAMES = sorted({name for command in COMMANDS.values() for name in command.params.model_fields} | {"__proto__", "", "x"})

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**62, 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=40)
    | st.sampled_from(["\ud800", "\x00", "a\r\nb", "plumbing", "online", "user:1", "admin:bookings"])
    | st.just("2026-11-24T09:00:00Z")
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
ids = st.integers() | st.text(max_size=20) | st.floats(allow_nan=False) | st.booleans() | st.lists(st.integers())
requests = st.fixed_dictionaries(
    {"jsonrpc": st.sampled_from(["2.0", "2.0", "2.0", "1.0", 2, None]), "method": st.sampled_from(METHODS) | scalars},
    optional={
        "id": ids | st.none(),
        "params": st.dictionaries(st.sampled_from(NAMES), values, max_size=8) | values,
        "extra": values,
    },
)
texts = (
    requests.map(json.dumps)
    | values.map(json.dumps)
    | st.text(max_size=200)
    | st.sampled_from(
        [
            "",
            "{",
            "NaN",
            '{"jsonrpc":"2.0","id":1,"method":"zone.list","params":{"x":NaN}}',
            '{"jsonrpc":"2.0","id":1,"method":"zone.list","method":"flag.set"}',
            '{"jsonrpc":"2.0","id":1e400,"method":"zone.list"}',
            '{"jsonrpc":"2.0","id":' + "9" * 400 + ',"method":"zone.list"}',
            '[{"jsonrpc":"2.0","id":1,"method":"zone.list"}]',
            "[" * 5_000 + "]" * 5_000,
            '{"params":' * 900 + "1" + "}" * 900,
            '{"jsonrpc":"2.0","id":1,"method":"' + "m" * 60_000 + '"}',
            '\ufeff{"jsonrpc":"2.0","id":1,"method":"zone.list"}',
        ]
    )
)


class Client:
    """A socket that is opened anew when the server has had enough of it."""

    def __init__(self, process: FixnadoProcess, token: str | None) -> None:
        self._url = f"ws://127.0.0.1:{process.port}/socket"
        self._token = token
        self._socket: ClientConnection | None = None
        self._life = ExitStack()
        self._number = 0

    def feed(self, frame: str | bytes) -> None:
        """Sends a frame and waits until it was dealt with."""
        socket = self._socket or self._open()
        self._number += 1
        probe = f"probe-{self._number}"
        # Surrogates cannot be sent as text; json.dumps writes them as escapes, which is what a client can do.
        frame = frame.encode(errors="surrogatepass").decode(errors="replace") if isinstance(frame, str) else frame
        try:
            socket.send(frame)
            socket.send(json.dumps({"jsonrpc": "2.0", "id": probe, "method": "zone.list", "params": {}}))
            while self._check(json.loads(socket.recv(timeout=10))) != probe:
                pass
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
        else:
            return
        self.close()
        assert code in CLOSES, f"closed with {code} after {frame[:200]!r}"

    def close(self) -> None:
        self._socket = None
        self._life.close()

    def _open(self) -> ClientConnection:
        opening = connect(self._url, subprotocols=[Subprotocol(SUBPROTOCOL)], compression=None, max_size=None)
        self._socket = self._life.enter_context(opening)
        if self._token is not None:
            hello = {"jsonrpc": "2.0", "id": "hello", "method": "session.connect", "params": {"token": self._token}}
            self._socket.send(json.dumps(hello))
            assert "result" in json.loads(self._socket.recv(timeout=10))
        return self._socket

    def _check(self, message: JSON) -> Any:
        assert message["jsonrpc"] == "2.0"
        if "error" in message:
            error = message["error"]
            assert error["code"] in CODES, message
            assert isinstance(error["data"]["type"], str)
            assert error["data"]["correlation_id"]
        else:
            assert "result" in message or message["method"] in {"event", "ping", "session.expiring"}
        return message.get("id")


@pytest.fixture(scope="module")
def process() -> Iterator[FixnadoProcess]:
    with FixnadoProcess() as process:
        yield process
        assert process.is_running()
        assert process.flaws() == []


@pytest.mark.parametrize("email", [demo.CUSTOMER, demo.PROVIDERS[0], demo.ADMIN])
def test_nothing_a_signed_in_client_sends_breaks_the_server(process: FixnadoProcess, email: str) -> None:
    client = Client(process, process.sign_in(email)["access_token"])

    @QUICKLY
    @given(texts)
    def attempt(text: str) -> None:
        client.feed(text)

    attempt()
    client.close()


@pytest.mark.parametrize("method", METHODS)
def test_no_params_of_a_command_break_the_server(process: FixnadoProcess, method: str) -> None:
    client = Client(process, process.sign_in(demo.ADMIN)["access_token"])
    fields = sorted(COMMANDS[method].params.model_fields)
    params = st.dictionaries(st.sampled_from([*fields, "x"]), values, max_size=len(fields) + 1)

    @settings(QUICKLY, max_examples=15)
    @given(params)
    def attempt(shape: JSON) -> None:
        client.feed(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": shape}))

    attempt()
    client.close()


def test_nothing_a_stranger_sends_has_an_effect_or_breaks_the_server(process: FixnadoProcess) -> None:
    client = Client(process, None)

    @QUICKLY
    @given(texts | st.binary(max_size=100))
    def attempt(frame: str | bytes) -> None:
        client.feed(frame)

    attempt()
    client.close()
