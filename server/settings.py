"""Everything an operator can set, in one frozen model, read once at start.

Values come from AWS Secrets Manager when ``FIXNADO_SECRETS_ID`` names a secret (:mod:`server.secrets`), then from the
environment (``FIXNADO_PORT``), then from ``.env.local`` in the working directory, then from the defaults below. A name
or a value that means nothing stops the start with one line (:class:`SettingsError`): a misspelt limit that is silently
ignored is worse than no server. An empty value counts as unset, as compose files produce it.

Only :mod:`server` reads settings; the other rooms get the numbers they need as arguments.
"""

from __future__ import annotations

import difflib
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from channels.redis_address import RedisAddress
from domain.identity import Role
from persistence.vault import master_key_from
from server.federation import may_fetch
from server.outbound_settings import OutboundSettings
from server.setting_fields import choice as _choice
from server.setting_fields import count as _count
from server.setting_fields import is_web as _is_web
from server.setting_fields import number as _number
from server.setting_fields import text as _text

PREFIX = "FIXNADO_"
ENV_FILE = Path(".env.local")

_DAY_SECONDS = 86_400
_UNITS = {"seconds": "s", "bytes": "bytes", "hours": "h", "per_second": "1/s"}


class SettingsError(Exception):
    """The process cannot start with these settings. The message is one line for the operator, without secrets."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of ``fixnado settings``. ``unit`` is empty for what has none; ``default`` is as one would type it."""

    name: str
    unit: str
    default: str
    meaning: str


class Settings(OutboundSettings):
    """The process's settings. Durations are in seconds (fractions allowed unless whole), sizes in bytes.

    Raises:
        SettingsError: from :meth:`load` alone; making an instance directly raises pydantic's ``ValidationError``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = _text("127.0.0.1", "Address to listen on.", allowed="a host name or an IP address")
    port: int = _count(8000, "TCP port to listen on; 0 takes a free one.", least=0, most=65_535)
    workers: int = _count(1, "Processes that serve; more than one needs FIXNADO_REDIS_URL.", most=256)
    public_url: str | None = _text(
        None,
        "Where browsers reach the server, when it is behind a proxy; its origin may open sockets.",
        allowed="an http or https URL such as https://live.example.org",
    )
    allowed_origins: tuple[str, ...] = _text(
        (),
        "Origins of other web applications that may open sockets, separated by commas.",
        allowed="origins such as https://app.example.org, separated by commas, without paths",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = _text(
        (),
        "Addresses or networks of proxies whose X-Forwarded-For counts, separated by commas.",
        allowed="IP addresses or networks such as 10.0.0.0/8, separated by commas",
    )

    database_url: str = _text(
        "sqlite+aiosqlite:///var/fixnado.db",
        "Where everything durable is kept: SQLite (embedded) or MySQL (production).",
        allowed="sqlite+aiosqlite:///PATH or mysql+asyncmy://USER:PASSWORD@HOST/DATABASE",
        secret=True,
    )
    database_tls: Literal["required", "off"] = _choice(
        "required", "Whether connections to MySQL must be encrypted and the server's certificate valid."
    )
    database_ca_file: str | None = _text(
        None,
        "PEM file with the authority of MySQL's certificate; without it the system's authorities count.",
        allowed="the path of a readable PEM file with a certificate",
    )
    database_pool_size: int = _count(10, "Connections to MySQL that one process keeps.", most=500)
    database_timeout_seconds: float = _number(
        5, "Longest wait for a connection or an answer of the database.", least=0.1, most=120
    )
    redis_url: str | None = _text(
        None,
        "Redis that carries events between processes; without it everything stays in this one.",
        allowed="redis://HOST:PORT/DATABASE, rediss://…, unix://PATH, redis+sentinel://HOST,HOST/SERVICE or "
        "redis+cluster://HOST,HOST",
        secret=True,
    )

    access_token_seconds: int = _count(900, "Life of an access token.", least=10, most=_DAY_SECONDS)
    access_token_leeway_seconds: float = _number(
        10, "How long past its end a token still counts, for clocks that differ.", least=0, most=300
    )
    refresh_token_seconds: int = _count(
        30 * _DAY_SECONDS, "Life of a refresh token that is not used.", least=60, most=366 * _DAY_SECONDS
    )
    refresh_absolute_seconds: int = _count(
        90 * _DAY_SECONDS, "Longest life of a sign-in, however often refreshed.", least=60, most=3 * 366 * _DAY_SECONDS
    )
    refresh_retry_seconds: float = _number(
        10, "How long a refresh whose reply was lost may be repeated.", least=0, most=60
    )

    challenge_seconds: float = _number(
        600, "Time to answer for the second factor, and life of a code that was sent.", least=10, most=3_600
    )
    password_reset_seconds: float = _number(1_800, "Life of a token that resets a password.", least=60, most=86_400)
    step_up_seconds: float = _number(
        600, "How recently one must have signed in for sensitive changes.", least=10, most=86_400
    )
    auth_requests_per_second: float = _number(
        20, "Requests to /auth from one address in the long run.", least=0.1, most=100_000
    )
    auth_requests_burst: int = _count(300, "Requests to /auth from one address at once.", most=1_000_000)
    master_key: str | None = _text(
        None,
        "What stored secrets are encrypted under: base64 of 32 bytes; after a comma, the one before. Without it and"
        " without FIXNADO_KMS_KEY_ID one is made in a file beside the embedded database; any other needs one.",
        allowed="base64 of 32 random bytes, such as `openssl rand -base64 32` prints; several separated by commas",
        secret=True,
    )
    kms_key_id: str | None = _text(
        None,
        "Key in AWS KMS that stored secrets are encrypted under: id, ARN or alias.",
        allowed="a key's id, its ARN, or alias/NAME",
    )
    data_key_seconds: float = _number(
        1,
        "How long an opened data key stays in memory. While KMS is away for longer, authenticator codes let nobody in.",
        least=1,
        most=86_400,
    )
    aws_region: str | None = _text(
        None, "AWS region; by default what the machine's AWS configuration says.", allowed="a region such as eu-west-2"
    )
    aws_endpoint_url: str | None = _text(
        None, "Another place that speaks AWS's protocols.", allowed="an http or https URL"
    )
    mail_from: str | None = _text(
        None,
        "Sender of e-mail through AWS SES, with text messages through SNS; without it nothing is sent.",
        allowed="an e-mail address",
    )
    mail_directory: str | None = _text(
        None,
        "Directory that keeps messages while nothing is sent, for trying things out: they hold codes in clear.",
        allowed="a path",
    )

    oidc_issuer: str | None = _text(
        None,
        "OpenID Connect issuer whose access tokens count too, such as a Cognito user pool.",
        allowed="an https URL such as https://cognito-idp.eu-west-2.amazonaws.com/eu-west-2_example",
    )
    oidc_client_ids: tuple[str, ...] = _text(
        (),
        "Audiences or client ids for which that issuer's tokens must be, separated by commas.",
        allowed="identifiers separated by commas",
    )
    oidc_algorithms: Literal["RS256", "ES256", "RS256,ES256"] = _choice(
        "RS256", "Signature algorithms taken from that issuer."
    )
    oidc_groups_claim: str = _text(
        "cognito:groups", "Claim that holds a person's groups at that issuer.", allowed="the name of a claim"
    )
    oidc_group_roles: tuple[str, ...] = _text(
        (),
        "Which groups there are which roles here, separated by commas.",
        allowed="pairs such as field-ops=operations, separated by commas; the roles are customer, provider, "
        "operations and admin",
    )
    oidc_new_users: Literal["create", "refuse"] = _choice(
        "create", "Whether somebody unknown with a token of that issuer gets an account."
    )
    oidc_timeout_seconds: float = _number(3, "Longest wait for a document of that issuer.", least=0.1, most=30)

    max_sockets: int = _count(20_000, "Sockets that one process holds.", most=1_000_000)
    max_sockets_per_user: int = _count(20, "Sockets of one user on one process.", most=10_000)
    max_sockets_per_ip: int = _count(1_000, "Sockets from one address on one process.", most=1_000_000)
    handshake_deadline_seconds: float = _number(
        5, "Time to finish the headers of a request before the connection is closed.", least=0.05, most=60
    )
    connect_deadline_seconds: float = _number(10, "Time to send session.connect on a new socket.", least=0.05, most=60)
    heartbeat_seconds: float = _number(
        25, "Time between pings to a client, with a little jitter.", least=0.05, most=300
    )
    heartbeat_grace_seconds: float = _number(
        10, "Silence past the heartbeat after which a socket is closed.", least=0.05, most=300
    )
    token_grace_seconds: float = _number(
        25, "Time to send session.refresh before a socket whose token ends is closed.", least=0.05, most=300
    )
    max_frame_bytes: int = _count(65_536, "Largest message a client may send.", least=1_024, most=1_048_576)
    max_buffered_bytes: int = _count(
        1_048_576, "Unsent bytes of one socket after which it is too slow and closed.", least=16_384, most=67_108_864
    )
    compression: Literal["none", "deflate"] = _choice(
        "none", "Events leave deflated, in half the bytes, for clients that offer permessage-deflate."
    )
    commands_per_second: float = _number(
        20, "Commands that one user may send in the long run.", least=0.1, most=100_000
    )
    commands_burst: int = _count(60, "Commands that one user may send at once.", most=100_000)
    linger_seconds: float = _number(
        45, "How long a provider stays online after the last socket is gone.", least=0, most=3_600
    )
    typing_seconds: float = _number(6, "Time after which a typing mark that is not renewed goes.", least=0.05, most=60)

    offer_on_demand_seconds: float = _number(30, "Life of an offer for a job that starts now.", least=0.2, most=3_600)
    offer_scheduled_seconds: float = _number(90, "Life of an offer for a job at a set time.", least=0.2, most=86_400)
    idempotency_hours: int = _count(24, "How long the result of a command is kept for its key.", most=24 * 30)
    log_retention_hours: int = _count(72, "How long events are kept for clients that were away.", most=24 * 366)
    log_retention_entries: int = _count(
        10_000, "Newest events of each channel that are kept.", least=100, most=10_000_000
    )

    secrets_id: str | None = _text(
        None,
        "Secret in AWS Secrets Manager whose values win over the environment; read again while the process runs.",
        allowed="the name or ARN of a secret",
    )
    secrets_poll_seconds: float = _number(30, "Time between looks at the secret.", least=0.1, most=86_400)
    secrets_timeout_seconds: float = _number(3, "Longest wait for AWS to connect, and to answer.", least=0.1, most=60)

    drain_seconds: float = _number(10, "Window over which sockets are sent away at shutdown.", least=0, most=600)
    shutdown_deadline_seconds: float = _number(
        20, "Time after which a shutdown ends, whatever still hangs.", least=0.1, most=900
    )
    log_format: Literal["auto", "json", "console"] = _choice(
        "auto", "JSON lines, or readable lines; auto is readable on a terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = _choice("info", "The least severe lines that are logged.")

    @property
    def base_url(self) -> str:
        """Where a browser on this machine, or behind the proxy, finds the server; no slash at the end."""
        if self.public_url is not None:
            return self.public_url
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def deflates(self) -> bool:
        """Whether permessage-deflate is taken up."""
        return self.compression == "deflate"

    @property
    def embedded(self) -> bool:
        """Whether the database is SQLite."""
        return self.database_url.startswith("sqlite")

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str] | None = None,
        env_file: Path | None = ENV_FILE,
        overrides: Mapping[str, object] | None = None,
        secrets: Callable[[str], Mapping[str, str]] | None = None,
    ) -> Settings:
        """Reads the settings of this process.

        Args:
            environ: the environment; by default the process's own.
            env_file: lines ``NAME=value`` that count where the environment says nothing; it need not exist.
            secrets: reads the secret that ``FIXNADO_SECRETS_ID`` names, as settings by environment name; they win over
                both. Without it no secret is read.
            overrides: values by field name that win over all (command-line options); ``None`` values do not count.

        Raises:
            SettingsError: an unknown name, a value that is not allowed, or values that exclude each other.
        """
        given = {name: value for name, value in (os.environ if environ is None else environ).items() if _ours(name)}
        if env_file is not None and env_file.is_file():
            given = {name: value for name, value in _read_env_file(env_file) if _ours(name)} | given
        secret_id = given.get(variable("secrets_id"), "").strip()
        if secrets is not None and secret_id:
            given |= {name: value for name, value in secrets(secret_id).items() if value.strip()}
        values = cls._fields(given)
        values |= {name: value for name, value in (overrides or {}).items() if value is not None}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError(_one_line(error, values)) from None

    def updated(self, given: Mapping[str, str]) -> Settings:
        """These settings with some replaced, by environment name; what is empty stays.

        Raises:
            SettingsError: as for :meth:`load`.
        """
        values = self._fields(given)
        try:
            return type(self).model_validate(self.model_dump() | values)
        except ValidationError as error:
            raise SettingsError(_one_line(error, values)) from None

    @classmethod
    def _fields(cls, given: Mapping[str, str]) -> dict[str, object]:
        values: dict[str, object] = {}
        for name, value in sorted(given.items()):
            field = name.removeprefix(PREFIX).lower()
            if field not in cls.model_fields or name != variable(field):
                raise SettingsError(f"{name}: there is no such setting{_suggestion(name, cls)}")
            if value.strip():
                values[field] = value.strip()
        return values

    @classmethod
    def describe(cls) -> list[Row]:
        """Every setting, for people: in the order of this model, then of those that it takes over."""
        own = sorted(cls.model_fields.items(), key=lambda field: field[0] in OutboundSettings.model_fields)
        return [Row(variable(name), _unit(name), _typed(info.default), info.description or "") for name, info in own]

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Keeps passwords out of ``repr`` and ``str``, and so out of logs and tracebacks."""
        for name, value in super().__repr_args__():
            secret = name is not None and _extra(type(self).model_fields[name], "secret")
            yield name, masked(value) if secret and isinstance(value, str) else value

    @property
    def group_roles(self) -> dict[str, Role]:
        """``oidc_group_roles``, understood."""
        pairs = (pair.rpartition("=") for pair in self.oidc_group_roles)
        return {group.strip(): Role(role.strip()) for group, _, role in pairs}

    @field_validator(
        "allowed_origins", "trusted_proxies", "oidc_client_ids", "oidc_group_roles", "sns_topics", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            # RFC 6454, section 6.2: scheme, host and port, nothing else. `*` would open the sockets to every page.
            if not _is_web(origin) or origin != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
                raise ValueError
        return tuple(origin.lower() for origin in value)

    @field_validator("master_key")
    @classmethod
    def _master_key(cls, value: str | None) -> str | None:
        if value is not None:
            master_key_from(value)
        return value

    @field_validator("kms_key_id")
    @classmethod
    def _kms_key(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9:/_-]{1,256}", value):
            raise ValueError
        return value

    @field_validator("aws_region")
    @classmethod
    def _region(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[a-z0-9-]{2,32}", value):
            raise ValueError
        return value

    @field_validator("mail_from")
    @classmethod
    def _sender(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[^@\s<>]+@[^@\s<>]+", value):
            raise ValueError
        return value

    @field_validator("aws_endpoint_url")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is not None and not _is_web(value):
            raise ValueError
        return value

    @field_validator("public_url")
    @classmethod
    def _public(cls, value: str | None) -> str | None:
        if value is not None and not _is_web(value):
            raise ValueError
        return value and value.rstrip("/")

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._:-]{1,253}", value):
            raise ValueError
        return value

    @field_validator("database_url")
    @classmethod
    def _database(cls, value: str) -> str:
        if not re.fullmatch(r"sqlite\+aiosqlite:///.+|mysql\+asyncmy://[^/]+/[^/?]+(\?.*)?", value):
            raise ValueError
        return value

    @field_validator("oidc_issuer")
    @classmethod
    def _issuer(cls, value: str | None) -> str | None:
        if value is not None and not (_is_web(value) and may_fetch(value) and "?" not in value and "#" not in value):
            raise ValueError
        return value

    @field_validator("oidc_client_ids")
    @classmethod
    def _client_ids(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(r"[\x21-\x7e]{1,256}", each) for each in value):
            raise ValueError
        return value

    @field_validator("oidc_groups_claim")
    @classmethod
    def _claim(cls, value: str) -> str:
        if not re.fullmatch(r"[\x21-\x7e]{1,128}", value):
            raise ValueError
        return value

    @field_validator("oidc_group_roles")
    @classmethod
    def _roles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pair in value:
            group, _, role = pair.rpartition("=")
            if not group.strip() or role.strip() not in set(Role):
                raise ValueError
        return value

    @field_validator("secrets_id")
    @classmethod
    def _secret(cls, value: str | None) -> str | None:
        # https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_CreateSecret.html: names and ARNs.
        if value is not None and not re.fullmatch(r"[A-Za-z0-9/_+=.@:!-]{1,2048}", value):
            raise ValueError
        return value

    @field_validator("database_ca_file")
    @classmethod
    def _ca_file(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ssl.create_default_context(cafile=value)
            except OSError:  # not there, not readable, or no certificate in it
                raise ValueError from None
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str | None) -> str | None:
        if value is not None:
            RedisAddress.parse(value)
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.workers > 1 and self.redis_url is None:
            raise ValueError(
                f"{variable('workers')}={self.workers}: more than one process needs {variable('redis_url')}, "
                "which carries events between them"
            )
        self.check_outbound()
        if self.oidc_issuer is not None and not self.oidc_client_ids:
            raise ValueError(
                f"{variable('oidc_issuer')}: needs {variable('oidc_client_ids')}, or tokens for any client would count"
            )
        for less, more in (
            ("drain_seconds", "shutdown_deadline_seconds"),
            ("refresh_token_seconds", "refresh_absolute_seconds"),
            ("max_frame_bytes", "max_buffered_bytes"),
        ):
            if getattr(self, less) > getattr(self, more):
                raise ValueError(
                    f"{variable(less)}={_typed(getattr(self, less))}: must not be more than "
                    f"{variable(more)}={_typed(getattr(self, more))}"
                )
        return self


def variable(field: str) -> str:
    """The environment variable of a field."""
    return PREFIX + field.upper()


def masked(url: str) -> str:
    """The URL without its password and query, for people and logs. What does not look like a URL becomes ``***``."""
    if not re.match(r"[a-z][a-z0-9+.-]*://", url, re.IGNORECASE):
        return "***" if url else url
    url = re.sub(r"\?.*", "?***", url, flags=re.DOTALL)
    # Greedy to the last @: a password may itself contain one, unescaped.
    return re.sub(r"://([^:/@]*):.*@", r"://\1:***@", url, flags=re.DOTALL)


def _ours(name: str) -> bool:
    return name.startswith(PREFIX)


def _read_env_file(path: Path) -> Iterator[tuple[str, str]]:
    """Lines ``NAME=value`` or ``export NAME="value"``; blank lines and lines that start with ``#`` do not count."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = re.fullmatch(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", text)
        if match is None:
            raise SettingsError(f"{path}, line {number}: expected NAME=value")
        name, value = match.groups()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        yield name, value


def _suggestion(name: str, model: type[Settings]) -> str:
    close = difflib.get_close_matches(name.upper(), [variable(field) for field in model.model_fields], n=1)
    return f"; did you mean {close[0]}?" if close else "; `fixnado settings` lists them all"


def _one_line(error: ValidationError, values: Mapping[str, object]) -> str:
    """The first problem as ``FIXNADO_PORT='x': must be …``; pydantic's own text would quote secrets."""
    first = error.errors(include_url=False, include_context=True)[0]
    if not first["loc"]:
        return str(first["msg"]).removeprefix("Value error, ")
    field = str(first["loc"][0])
    info = Settings.model_fields.get(field)
    if info is None:
        return f"{variable(field)}: there is no such setting{_suggestion(variable(field), Settings)}"
    value = str(values.get(field, ""))
    shown = masked(value) if _extra(info, "secret") else value
    return f"{variable(field)}={_printable(shown)}: must be {_allowed(info)}"


def _printable(value: str) -> str:
    short = value if len(value) <= 80 else f"{value[:77]}..."
    return repr(short)


def _allowed(info: FieldInfo) -> str:
    """What the field takes, as the end of the sentence "must be …"."""
    if text := _extra(info, "allowed"):
        return str(text)
    if choices := getattr(info.annotation, "__args__", None):
        return "one of " + ", ".join(map(str, choices))
    bounds = {type(bound).__name__: bound for bound in info.metadata}
    kind = "a whole number" if info.annotation is int else "a number"
    return f"{kind} from {_typed(bounds['Ge'].ge)} to {_typed(bounds['Le'].le)}"


def _extra(info: FieldInfo, key: str) -> object:
    return info.json_schema_extra.get(key) if isinstance(info.json_schema_extra, dict) else None


def _unit(field: str) -> str:
    return next((unit for suffix, unit in _UNITS.items() if field.endswith(suffix)), "")


def _typed(value: object) -> str:
    """A value as one would type it into the environment."""
    match value:
        case None:
            return ""
        case tuple():
            return ",".join(map(str, value))
        case float():
            return f"{value:g}"
        case _:
            return str(value)
