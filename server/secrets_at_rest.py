"""Which master key the settings mean."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import make_url

from persistence.vault import MasterKey, MasterKeys, master_key_from, master_key_in
from server.aws import Aws, KmsMasterKey
from server.settings import Settings, SettingsError

FILE_NAME = "master.key"


def master_key_of(settings: Settings, aws: Aws) -> MasterKey:
    """KMS if it is set, else the key that is set, else one in a file beside an embedded database. Blocking, and quick.

    With both set, KMS wraps and the other still unwraps: that is how one moves to KMS.

    Raises:
        SettingsError: as for :func:`require_master_key`; or the file cannot be made, or others can read it.
    """
    kms = KmsMasterKey(aws, settings.kms_key_id) if settings.kms_key_id else None
    local = master_key_from(settings.master_key) if settings.master_key else None
    if kms is not None:
        return kms if local is None else MasterKeys(kms, local)
    if local is not None:
        return local
    require_master_key(settings)
    file = key_file(settings)
    try:
        return master_key_in(file)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds no master key"
        raise SettingsError(f"FIXNADO_MASTER_KEY is not set, and {file} cannot be used: {why}") from error


def require_master_key(settings: Settings) -> None:
    """A database that machines share needs a key that they share: each would make another file.

    Raises:
        SettingsError: none is set.
    """
    if not (settings.embedded or settings.master_key or settings.kms_key_id):
        raise SettingsError(
            "FIXNADO_MASTER_KEY or FIXNADO_KMS_KEY_ID must be set, the same on every node: what stored secrets are"
            " encrypted under. `openssl rand -base64 32` makes a master key; keep it as you keep the database"
        )


def key_file(settings: Settings) -> Path:
    """Beside the embedded database, so that both are kept, and lost, together."""
    return Path(make_url(settings.database_url).database or "var/fixnado.db").parent / FILE_NAME
