"""What a dependency says of itself, for readiness."""

from __future__ import annotations

from domain.errors import FixnadoError


class Degraded(FixnadoError):
    """Something is not well, but the node can serve: readiness names it and stays ready."""

    type = "degraded"
    status = 200
    default_message = "Not well, but serving."
