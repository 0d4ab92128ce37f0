"""Reads the params of the methods that a session answers itself; those of commands are the desk's.

Everything here raises :class:`domain.errors.InvalidParams`, which says where and why.
"""

from __future__ import annotations

from collections.abc import Sequence

from channels.subscriptions import Resume
from domain.errors import InvalidParams
from domain.types import JSON

MAX_TOKEN_CHARACTERS = 8192
MAX_CLIENT_CHARACTERS = 100
MAX_EPOCH_CHARACTERS = 64
MAX_NAMED_CHANNELS = 200
"""Channels that one ``resume`` or ``session.ack`` may name."""


def expect_only(params: JSON, known: Sequence[str]) -> None:
    """Refuse params that name something this method does not have.

    Raises:
        InvalidParams: with one problem for each unknown name.
    """
    unknown = [name for name in params if name not in known]
    if unknown:
        raise InvalidParams([{"where": name[:64], "why": "unknown parameter"} for name in unknown[:8]])


def read_text(params: JSON, name: str, max_characters: int) -> str | None:
    """A short text, or ``None`` when it is not there."""
    value = params.get(name)
    if value is not None and (type(value) is not str or len(value) > max_characters):
        raise InvalidParams.at(name, f"a text of at most {max_characters} characters")
    return value


def read_token(params: JSON) -> str:
    """The access token: required."""
    token = read_text(params, "token", MAX_TOKEN_CHARACTERS)
    if not token:
        raise InvalidParams.at("token", "required")
    return token


def read_channel(params: JSON) -> str:
    """The name of a channel: required, not yet checked against the grammar."""
    name = params.get("channel")
    if type(name) is not str or not name:
        raise InvalidParams.at("channel", "required")
    return name


def read_resumes(params: JSON) -> dict[str, Resume | None]:
    """``resume`` of ``session.connect``: ``{channel: {epoch, offset}}``."""
    resumes = params.get("resume")
    if resumes is None:
        return {}
    if type(resumes) is not dict or len(resumes) > MAX_NAMED_CHANNELS:
        raise InvalidParams.at("resume", f"an object of at most {MAX_NAMED_CHANNELS} channels")
    return {name: read_resume(value, f"resume.{name[:128]}") for name, value in resumes.items()}


def read_resume(value: object, where: str) -> Resume | None:
    """``{epoch, offset}``, or ``None`` when a client has nothing to resume. ``where`` is its path in the params."""
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() != {"epoch", "offset"}:
        raise InvalidParams.at(where, "an object {epoch, offset}")
    epoch, offset = value["epoch"], value["offset"]
    if type(epoch) is not str or len(epoch) > MAX_EPOCH_CHARACTERS:
        raise InvalidParams.at(f"{where}.epoch", f"a text of at most {MAX_EPOCH_CHARACTERS} characters")
    if type(offset) is not int or offset < 0:
        raise InvalidParams.at(f"{where}.offset", "an integer from 0")
    return Resume(epoch, offset)


def read_acknowledged(params: JSON) -> dict[str, int]:
    """``{channel: offset}``: the params of ``session.ack`` as a whole."""
    if len(params) > MAX_NAMED_CHANNELS:
        raise InvalidParams.at("", f"at most {MAX_NAMED_CHANNELS} channels")
    for name, offset in params.items():
        if type(offset) is not int or offset < 0:
            raise InvalidParams.at(name[:128], "an integer from 0")
    return params
