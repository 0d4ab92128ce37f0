"""What an operator reads when the database cannot be used: what is wrong, and which setting says otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import make_url

from domain.errors import Unavailable
from persistence.diagnosis import Fault, explain, fault_of
from server.settings import Settings

_SETTING = {
    Fault.PLAINTEXT: "FIXNADO_DATABASE_TLS=off would allow plain text",
    Fault.CERTIFICATE: "FIXNADO_DATABASE_CA_FILE names the authority to trust, and the host must be the certificate's",
    Fault.TLS_WANTED: "FIXNADO_DATABASE_TLS=required is what it wants",
}


def database_trouble(error: BaseException, settings: Settings) -> str:
    """One line without secrets."""
    url = make_url(settings.database_url)
    hint = _SETTING.get(fault_of(error), "FIXNADO_DATABASE_URL says where it is looked for") if url.host else ""
    return "; ".join(filter(None, (explain(error, url), hint)))


@contextmanager
def database_explained(settings: Settings) -> Iterator[None]:
    """Turns the general refusal of the database, which is for clients, into one for the operator.

    Raises:
        Unavailable: with the line; refusals that say something of their own pass through.
    """
    try:
        yield
    except Unavailable as error:
        if error.message != Unavailable.default_message:
            raise
        raise Unavailable(database_trouble(error, settings)) from error
