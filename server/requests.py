"""Reading a request: who sends it and what it says; and how what cannot be read is refused."""

from __future__ import annotations

import orjson
from starlette.requests import Request

from channels.protocol import InvalidRequest, check_members
from domain.errors import FixnadoError, NotAuthenticated
from domain.types import JSON

EVENTS_PATH = "/events"

MAX_BODY_BYTES = 65_536


class BadRequest(FixnadoError):
    """The body is not JSON, no object, or one that two parsers may read differently."""

    type = "bad_request"
    status = 400
    code = -32600
    default_message = "The body must be a JSON object."


class TooLarge(FixnadoError):
    """The body is over the limit."""

    type = "too_large"
    status = 413
    code = -32600
    default_message = "The body is too large."


class NoSuchPage(FixnadoError):
    """Nothing is served there."""

    type = "no_such_page"
    status = 404
    code = -32601
    default_message = "There is nothing here."


class MethodNotAllowed(FixnadoError):
    """Something is served there, but not for that method."""

    type = "method_not_allowed"
    status = 405
    code = -32601
    default_message = "This address does not take that method."


def bearer_token(request: Request) -> str:
    """The token in ``Authorization``, not yet checked.

    Raises:
        NotAuthenticated: there is none.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise NotAuthenticated
    return token.strip()


async def read_body(request: Request, max_bytes: int = MAX_BODY_BYTES) -> JSON:
    """The JSON object in the body; no body is an empty one.

    Raises:
        TooLarge: noticed while it comes.
        BadRequest: it is no JSON object, or one that two parsers may read differently.
    """
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge
        chunks.append(chunk)
    if not size:
        return {}
    text = b"".join(chunks)
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadRequest from None
    if not isinstance(body, dict):
        raise BadRequest
    try:
        check_members(body, text.decode())
    except InvalidRequest as error:
        raise BadRequest(error.message) from None
    return body
