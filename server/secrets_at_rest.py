"""Which master key the settings mean."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import make_url

from persistence.vault import MasterKey, MasterKeys, master_key_from, master_key_in
from server.aws import Aws, KmsMasterKey
from server.settings import Settings, SettingsError
from server.telemetry import logger

log = logger(__name__)

FILE_NAME = "master.key"


def master_key_of(settings: Settings, aws: Aws) -> MasterKey:
    """KMS if it is set, else the key that is set, else one in a file of this machine. Blocking, and quick.

    With both set, KMS wraps and the other still unwraps: that is how one moves to KMS.

    Raises:
        SettingsError: the file cannot be made, or others can read it.
    """
    kms = KmsMasterKey(aws, settings.kms_key_id) if settings.kms_key_id else None
    local = master_key_from(settings.master_key) if settings.master_key else None
    if kms is not None:
        return kms if local is None else MasterKeys(kms, local)
    if local is not None:
        return local
    file = key_file(settings)
    if not settings.embedded:
        # Fine for several processes on one machine; a second machine would make another key and stop at the start.
        log.warning("master_key_in_a_file", file=str(file))
    try:
        return master_key_in(file)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds no master key"
        raise SettingsError(f"FIXNADO_MASTER_KEY is not set, and {file} cannot be used: {why}") from error


def key_file(settings: Settings) -> Path:
    """Beside the embedded database, so that both are kept, and lost, together; ``var`` otherwise."""
    database = make_url(settings.database_url).database if settings.embedded else None
    return (Path(database).parent if database else Path("var")) / FILE_NAME
