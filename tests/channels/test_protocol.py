from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Opcode
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

from channels.protocol import (
    CloseCode,
    InvalidRequest,
    NotJson,
    Request,
    decode,
    encode_data,
    encode_error,
    encode_event,
    encode_notification,
    encode_result,
    event_params,
    read_event,
    text_frame,
)
from domain.errors import InvalidParams, OfferTaken, TooManyRequests
from domain.events import Event
from domain.types import Origin

EVENT = Event(
    "01J0", "offer.made", datetime(2026, 11, 24, 2, 0, 1, 4000, UTC), "booking/01J", {"offer_id": "o1", "n": [1]}
)


def call(**members: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "offer.accept", **members})


def test_a_request_is_read() -> None:
    assert decode(call(params={"offer_id": "o1"})) == Request(1, "offer.accept", {"offer_id": "o1"})


def test_a_frame_without_id_is_a_notification() -> None:
    assert decode('{"jsonrpc":"2.0","method":"pong"}') == Request(None, "pong", {})


def test_colons_in_strings_are_not_taken_for_members() -> None:
    params = {"start": "2026-11-24T02:00:00Z", "notes": 'a":"b', "deep": [{"a:b": {"c": "::"}}]}
    assert decode(call(params=params)).params == params


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "NaN",
        '{"jsonrpc":"2.0","id":1,"method":"x","params":{"lat":NaN}}',
        '{"jsonrpc":"2.0","id":1,"method":"x","params":{"lat":-Infinity}}',
        '{"jsonrpc":"2.0","id":1,"method":"x","params":{"lat":1e999}}',
        "{'jsonrpc':'2.0'}",
        '{"jsonrpc":"2.0",}',
        '"\\ud800"',
        "\x00",
        "[" * 30_000,
        '{"a":' * 10_000 + "1" + "}" * 10_000,
    ],
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(NotJson) as refused:
        decode(text)
    assert refused.value.code == -32700


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[" + call() + "]",
        "1",
        "null",
        '"session.connect"',
        "{}",
        call(jsonrpc="1.0"),
        call(jsonrpc=2.0),
        '{"id":1,"method":"x"}',
        call(id=None),
        call(id=True),
        call(id=1.5),
        call(id=[1]),
        call(id="x" * 65),
        call(method=7),
        call(method=""),
        call(method="m" * 65),
        call(params=[1]),
        call(params=None),
        call(result={}),
        call(extra=1),
    ],
)
def test_json_that_is_not_a_request_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(text)
    assert refused.value.code == -32600


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":7,"method":"a","method":"b"}',
        '{"jsonrpc":"2.0","id":7,"method":"a","params":{"price":1,"price":2}}',
        '{"jsonrpc":"2.0","id":7,"method":"a","params":{"l":[{"x":1,"\\u0078":2}]}}',
        '{"jsonrpc":"2.0","id":7,"method":"a","params":{"x":"::","x":"::"}}',
    ],
)
def test_a_member_given_twice_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="twice") as refused:
        decode(text)
    assert refused.value.id == 7


@pytest.mark.parametrize(("depth", "fine"), [(28, True), (40, False), (900, False)])
def test_deep_nesting_is_refused(depth: int, fine: bool) -> None:
    text = '{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":' + "[" * depth + "]" * depth + "}}"
    if fine:
        decode(text)
    else:
        with pytest.raises(InvalidRequest, match="deep"):
            decode(text)


def test_an_error_carries_the_id_it_belongs_to_when_it_can_be_told() -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(call(id="q1", params=3))
    assert refused.value.id == "q1"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=6), st.booleans())
def test_any_params_are_read_as_any_json_parser_reads_them(params: dict[str, Any], spaced: bool) -> None:
    request = {"jsonrpc": "2.0", "id": 1, "method": "x", "params": params}
    text = json.dumps(request, indent=1 if spaced else None, ensure_ascii=spaced)
    assert decode(text).params == params


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_no_text_makes_decoding_fail_otherwise(text: str) -> None:
    try:
        decode(text)
    except (NotJson, InvalidRequest):
        pass


def test_an_error_reply_is_that_of_the_contract() -> None:
    assert orjson.loads(encode_error(9, OfferTaken(), "c1")) == {
        "jsonrpc": "2.0",
        "id": 9,
        "error": {
            "code": -32000,
            "message": "Another provider has taken this job.",
            "data": {"type": "offer_taken", "status": 409, "retryable": False, "correlation_id": "c1"},
        },
    }


def test_details_of_an_error_stand_in_its_data() -> None:
    limited = orjson.loads(encode_error(1, TooManyRequests(1.5), "c"))["error"]
    assert limited["code"] == -32029
    assert (limited["data"]["retry_after_seconds"], limited["data"]["retryable"]) == (1.5, True)
    invalid = orjson.loads(encode_error(1, InvalidParams.at("location.lat", "required"), "c"))["error"]
    assert invalid["data"]["errors"] == [{"where": "location.lat", "why": "required"}]


def test_details_cannot_overwrite_what_every_error_has() -> None:
    error = OfferTaken(None, type="forged", correlation_id="forged")
    assert orjson.loads(encode_error(1, error, "c1"))["error"]["data"]["type"] == "offer_taken"
    assert orjson.loads(encode_error(1, error, "c1"))["error"]["data"]["correlation_id"] == "c1"


def test_an_unknown_exception_shows_its_correlation_id_and_nothing_else() -> None:
    reply = encode_error(1, RuntimeError("password=hunter2"), "c1")
    assert b"hunter2" not in reply
    error = orjson.loads(reply)["error"]
    assert error["code"] == -32603
    assert error["data"] == {"type": "internal", "status": 500, "retryable": False, "correlation_id": "c1"}


def test_details_that_json_cannot_carry_become_an_internal_error() -> None:
    reply = orjson.loads(encode_error(1, OfferTaken(None, odd=object()), "c1"))
    assert reply["error"]["data"]["type"] == "internal"


def test_a_result_is_spliced_from_fragments() -> None:
    assert encode_result("a", {"events": [orjson.Fragment(b'{"x":1}')]}) == (
        b'{"jsonrpc":"2.0","id":"a","result":{"events":[{"x":1}]}}'
    )


def test_an_event_has_the_members_and_order_of_the_contract() -> None:
    frame = encode_event(EVENT, "provider:7", 13, Origin("c1", "00-aa-bb-01"), encode_data(EVENT.data))
    assert frame == (
        b'{"jsonrpc":"2.0","method":"event","params":{"channel":"provider:7","offset":13,"id":"01J0",'
        b'"type":"offer.made","time":"2026-11-24T02:00:01.004Z","source":"booking/01J","correlationid":"c1",'
        b'"traceparent":"00-aa-bb-01","data":{"offer_id":"o1","n":[1]}}}'
    )


def test_an_ephemeral_event_has_no_offset() -> None:
    params = read_event(encode_event(EVENT, "booking:1", None, None, b"{}"))
    assert params.keys() == {"channel", "id", "type", "time", "source", "data"}


def test_a_replayed_event_is_its_frame_without_the_envelope() -> None:
    frame = encode_event(EVENT, "provider:7", 13, None, encode_data(EVENT.data))
    assert orjson.loads(event_params(frame)) == orjson.loads(frame)["params"]
    assert event_params(json.dumps(orjson.loads(frame)).encode()) == event_params(frame)


def test_notifications_are_those_of_the_contract() -> None:
    assert encode_notification("ping") == b'{"jsonrpc":"2.0","method":"ping"}'
    assert encode_notification("drain", {"reconnect_after_ms": 7300}) == (
        b'{"jsonrpc":"2.0","method":"drain","params":{"reconnect_after_ms":7300}}'
    )


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_a_text_frame_is_what_another_implementation_reads(length: int) -> None:
    from websockets.frames import Frame

    reader = StreamReader()
    reader.feed_data(text_frame(b"x" * length))
    parsing = Frame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as done:
        next(parsing)
    frame = done.value.value
    assert (frame.opcode, frame.fin, bytes(frame.data)) == (Opcode.TEXT, True, b"x" * length)


def test_close_codes_say_whether_to_come_back() -> None:
    assert [code.value for code in CloseCode if code.come_back] == [4000, 4001, 4002, 4003, 4005, 4006]
    assert [code.value for code in CloseCode if not code.come_back] == [4500, 4501, 4502, 4503, 4504, 4506]


@pytest.mark.parametrize("code", list(CloseCode))
def test_every_close_reason_fits_a_close_frame(code: CloseCode) -> None:
    protocol = ServerProtocol()
    protocol.state = protocol.state.__class__.OPEN
    protocol.send_close(code, code.reason)
