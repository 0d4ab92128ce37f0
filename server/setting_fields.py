"""How a setting is declared: default, meaning and bounds, with a unit in its name."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pydantic import Field


def number(default: float, meaning: str, *, least: float, most: float) -> Any:
    """A field with bounds, both allowed."""
    return Field(default=default, description=meaning, ge=least, le=most, allow_inf_nan=False)


def count(default: int, meaning: str, *, least: int = 1, most: int) -> Any:
    """A whole number with bounds, both allowed."""
    return Field(default=default, description=meaning, ge=least, le=most)


def text(default: Any, meaning: str, *, allowed: str, secret: bool = False) -> Any:
    """A field whose check is a validator; ``allowed`` is the end of the sentence "must be …"."""
    return Field(default=default, description=meaning, json_schema_extra={"allowed": allowed, "secret": secret})


def choice(default: str, meaning: str) -> Any:
    """A field whose type lists what is allowed."""
    return Field(default=default, description=meaning)


def is_web(url: str) -> bool:
    """Whether it is an http or https URL."""
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
