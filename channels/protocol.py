"""The wire of subprotocol ``fixnado.v1``: JSON-RPC 2.0 in WebSocket text frames, without any I/O.

Invariants:

* :func:`decode` never raises anything but :class:`NotJson` and :class:`InvalidRequest`, whatever a client sends;
* an event is serialised once per channel (:func:`encode_event`), framed once per node and form (:func:`text_frame`, or
  deflated), and the same bytes go to every socket of that form; replays splice what was serialised into replies
  without decoding it (:func:`event_params`);
* an error that is not a :class:`domain.errors.FixnadoError` leaves as ``internal`` with a correlation id and nothing
  else.

Sources: JSON-RPC 2.0 (jsonrpc.org/specification), RFC 6455 (WebSocket), CloudEvents 1.0 attribute names in events.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

import orjson

from domain.errors import FixnadoError
from domain.events import Event
from domain.types import JSON, Origin, wire_time

SUBPROTOCOL = "fixnado.v1"

MAX_FRAME_BYTES = 64 * 1024
"""The longest message a client may send, fragments together."""

MAX_DEPTH = 32
"""Arrays and objects within each other; no command needs more than four."""

MAX_ID_CHARACTERS = 64
MAX_METHOD_CHARACTERS = 64

RequestId = str | int


class CloseCode(IntEnum):
    """Why the server closes a socket. 4000–4499 ask the client to come back, 4500–4999 to stay away (RFC 6455
    §7.4.2).
    """

    DRAIN = 4000
    SERVER_ERROR = 4001
    TOKEN_EXPIRED = 4002
    TOO_SLOW = 4003
    NO_SIGN_OF_LIFE = 4005
    FLOODING = 4006
    INVALID_TOKEN = 4500
    BAD_FRAME = 4501
    NO_CONNECT = 4502
    REVOKED = 4503
    TOO_MANY_SOCKETS = 4504
    UNSUPPORTED_SUBPROTOCOL = 4506

    @property
    def come_back(self) -> bool:
        """Whether the client reconnects by itself."""
        return self < CloseCode.INVALID_TOKEN

    @property
    def reason(self) -> str:
        """Words for the close frame; at most 123 bytes fit (RFC 6455 §5.5)."""
        return _REASONS[self]


_REASONS: Mapping[CloseCode, str] = {
    CloseCode.DRAIN: "the server is moving connections elsewhere",
    CloseCode.SERVER_ERROR: "something went wrong on our side",
    CloseCode.TOKEN_EXPIRED: "the token expired",
    CloseCode.TOO_SLOW: "too slow for what is sent",
    CloseCode.NO_SIGN_OF_LIFE: "no sign of life",
    CloseCode.FLOODING: "too many messages",
    CloseCode.INVALID_TOKEN: "the token is not valid",
    CloseCode.BAD_FRAME: "frames that are not fixnado.v1",
    CloseCode.NO_CONNECT: "no session.connect in time",
    CloseCode.REVOKED: "signed out",
    CloseCode.TOO_MANY_SOCKETS: "too many sockets",
    CloseCode.UNSUPPORTED_SUBPROTOCOL: "ask for subprotocol fixnado.v1",
}


class NotJson(FixnadoError):
    """The frame is not JSON (RFC 8259): syntax, NaN or Infinity, a lone surrogate, or nested beyond sense."""

    type: ClassVar[str] = "parse_error"
    status: ClassVar[int] = 400
    code: ClassVar[int] = -32700
    default_message: ClassVar[str] = "The frame is not valid JSON."


class InvalidRequest(FixnadoError):
    """The frame is JSON, but not one JSON-RPC 2.0 request.

    Attributes:
        id: the request's id when it could be told, so that the error reaches its sender's promise.
    """

    type: ClassVar[str] = "invalid_request"
    status: ClassVar[int] = 400
    code: ClassVar[int] = -32600
    default_message: ClassVar[str] = "The frame is not a JSON-RPC 2.0 request."

    def __init__(self, message: str | None = None, request_id: RequestId | None = None) -> None:
        super().__init__(message)
        self.id = request_id


class NoSuchSession(FixnadoError):
    """The connection that a request names is gone, or is somebody else's. The client opens a new one and resumes."""

    type: ClassVar[str] = "no_such_session"
    status: ClassVar[int] = 404
    code: ClassVar[int] = -32003
    default_message: ClassVar[str] = "This session is over."


@dataclass(frozen=True, slots=True)
class Request:
    """One call from a client. ``id`` is ``None`` for a notification, which gets no reply."""

    id: RequestId | None
    method: str
    params: JSON


_MEMBERS = frozenset({"jsonrpc", "id", "method", "params"})


def decode(text: str) -> Request:
    """Read one client frame.

    Raises:
        NotJson: see there.
        InvalidRequest: a batch, a wrong ``jsonrpc``, an id that is neither a string nor an integer, an unknown
        member, a
            member given twice, nesting beyond :data:`MAX_DEPTH`, params by position.
    """
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise NotJson from None
    if type(message) is not dict:
        raise InvalidRequest("One request object per frame; batches are not supported.")
    request_id = message.get("id")
    if not _is_id(request_id):
        if "id" in message:
            raise InvalidRequest("The id must be a short string or an integer.")
        request_id = None
    if message.get("jsonrpc") != "2.0":
        raise InvalidRequest('The member jsonrpc must be "2.0".', request_id)
    if not message.keys() <= _MEMBERS:
        raise InvalidRequest("The request has a member that JSON-RPC 2.0 does not know.", request_id)
    method = message.get("method")
    if type(method) is not str or not 0 < len(method) <= MAX_METHOD_CHARACTERS:
        raise InvalidRequest("The method must be a name.", request_id)
    params = message.get("params", {})
    if type(params) is not dict:
        raise InvalidRequest("The params must be an object.", request_id)
    check_members(message, text, request_id)
    return Request(request_id, method, params)


def check_members(message: JSON, text: str, request_id: RequestId | None = None) -> None:
    """What no JSON parser minds, and two of them may read differently.

    Args:
        message: what ``text`` was read as.

    Raises:
        InvalidRequest: a member given twice, nesting beyond :data:`MAX_DEPTH`.
    """
    members = _count_members(message, request_id)
    # Every member brings one colon outside strings, so as many colons as members leave no room for a member given
    # twice. More colons mean a colon in a string (a time, a URL) or a duplicate: only then a slower parser looks at
    # the pairs.
    if text.count(":") != members:
        _refuse_duplicates(text, request_id)


def _is_id(request_id: object) -> bool:
    # bool is an int to Python and not to JSON-RPC.
    return type(request_id) is int or (type(request_id) is str and len(request_id) <= MAX_ID_CHARACTERS)


def _count_members(message: JSON, request_id: RequestId | None) -> int:
    """How many object members the message has, level by level."""
    members = 0
    level: list[Any] = [message]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if type(value) is dict:
                members += len(value)
                below += [inner for inner in value.values() if type(inner) in (dict, list)]
            else:
                below += [inner for inner in value if type(inner) in (dict, list)]
        if not below:
            return members
        level = below
    raise InvalidRequest("The request is nested too deeply.", request_id)


def _refuse_duplicates(text: str, request_id: RequestId | None) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) != len(pairs):
            raise InvalidRequest("A member is given twice.", request_id)

    json.loads(text, object_pairs_hook=unique)


def encode_result(request_id: RequestId, result: Any) -> bytes:
    """A reply. ``result`` is plain JSON; :class:`orjson.Fragment` inside it is spliced as it is."""
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "result": result})


def encode_error(request_id: RequestId | None, error: BaseException, correlation_id: str) -> bytes:
    """An error reply. Whatever is not a :class:`domain.errors.FixnadoError` shows nothing of itself."""
    try:
        return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "error": error_object(error, correlation_id)})
    except orjson.JSONEncodeError:
        # Details that JSON cannot carry are a defect of the thrower, no reason to stay silent.
        return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "error": error_object(FixnadoError(), correlation_id)})


def error_object(error: BaseException, correlation_id: str) -> JSON:
    """``{code, message, data: {type, status, retryable, correlation_id, …details}}``."""
    shown = error if isinstance(error, FixnadoError) else FixnadoError()
    return {
        "code": shown.code,
        "message": shown.message,
        "data": {
            **shown.details,
            "type": shown.type,
            "status": shown.status,
            "retryable": shown.retryable,
            "correlation_id": correlation_id,
        },
    }


def encode_notification(method: str, params: Any = None) -> bytes:
    """A server → client notification other than an event (``ping``, ``drain``, ``session.expiring``)."""
    message: JSON = {"jsonrpc": "2.0", "method": method}
    if params is not None:
        message["params"] = params
    return orjson.dumps(message)


_EVENT_HEAD = b'{"jsonrpc":"2.0","method":"event","params":'


def encode_data(data: Mapping[str, Any]) -> bytes:
    """An event's ``data`` as JSON: once per event, however many channels carry it."""
    return orjson.dumps(data)


def encode_event(event: Event, channel: str, offset: int | None, origin: Origin | None, data_json: bytes) -> bytes:
    """The exact text every subscriber of ``channel`` gets.

    Args:
        offset: position on the channel; ``None`` for an ephemeral event, which then has no such member.
        origin: of the request behind the event; gives ``correlationid`` and ``traceparent`` (CloudEvents extensions).
        data_json: from :func:`encode_data`, spliced.
    """
    params: JSON = {"channel": channel}
    if offset is not None:
        params["offset"] = offset
    params["id"] = event.id
    params["type"] = event.type
    params["time"] = wire_time(event.time)
    params["source"] = event.source
    if origin is not None:
        params["correlationid"] = origin.correlation_id
        if origin.traceparent is not None:
            params["traceparent"] = origin.traceparent
    params["data"] = orjson.Fragment(data_json)
    return b"%s%s}" % (_EVENT_HEAD, orjson.dumps(params))


def event_params(frame: bytes) -> bytes:
    """The params of an event frame, as JSON: what a reply's ``events`` holds for a missed event."""
    if frame.startswith(_EVENT_HEAD):
        return frame[len(_EVENT_HEAD) : -1]
    # A frame that an older version stored with another head.
    return orjson.dumps(orjson.loads(frame)["params"])


def read_event(frame: bytes) -> JSON:
    """The params of an event frame, decoded: for nodes that act on ``control`` entries."""
    params = orjson.loads(event_params(frame))
    if not isinstance(params, dict):
        raise ValueError("an event's params are an object")
    return params


def text_frame(payload: bytes) -> bytes:
    """One final, unmasked text frame (RFC 6455 §5.2): what a server writes."""
    length = len(payload)
    if length < 126:
        return b"\x81%c%s" % (length, payload)
    if length < 65536:
        return b"\x81\x7e%s%s" % (struct.pack("!H", length), payload)
    return b"\x81\x7f%s%s" % (struct.pack("!Q", length), payload)


def deflated_frame(deflated: bytes) -> bytes:
    """The same around a deflated payload: with the bit RSV1 set (RFC 7692 §6)."""
    return b"\xc1" + text_frame(deflated)[1:]


PING = text_frame(encode_notification("ping"))
PONG = text_frame(encode_notification("pong"))
