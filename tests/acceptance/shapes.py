"""The shapes of refusals, ids and times that every part of the contract shares."""

from __future__ import annotations

import re

from tests.acceptance.client import JSON, Answer

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")

NOBODY = "01J00000000000000000000000"
"""An id that belongs to nothing."""


def assert_problem(answer: Answer, status: int, type_: str) -> None:
    """A refusal on REST is a problem document (RFC 9457) of that type."""
    assert answer.status == status, answer
    assert answer.type == "application/problem+json", answer
    body = answer.body
    assert body["type"] == type_, body
    assert body["status"] == status
    assert isinstance(body["title"], str)
    assert isinstance(body["detail"], str)
    assert isinstance(body["retryable"], bool)
    assert body["correlation_id"] == answer.headers["X-Correlation-ID"]


def assert_error(error: JSON, code: int, type_: str, status: int, *more: str) -> None:
    """A refusal on the socket has exactly these members, and in its data ``more``."""
    assert error.keys() == {"code", "message", "data"}, error
    assert error["data"].keys() == {"type", "status", "retryable", "correlation_id", *more}, error
    assert (error["code"], error["data"]["type"], error["data"]["status"]) == (code, type_, status), error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert ULID.fullmatch(error["data"]["correlation_id"])
