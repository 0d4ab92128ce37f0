"""Where Redis is, from a URL, and how a connection to it is opened.

    redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]                          one server; also Valkey, everywhere below
    rediss://…                                                              the same over TLS
    unix://[USER:PASSWORD@]/PATH[?db=DATABASE]                              the same over a local socket
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]/SERVICE[/DATABASE]   the primary that Sentinels name
    redis+cluster://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]                 Redis Cluster, found from any of its nodes
    rediss+sentinel://…   rediss+cluster://…                                these over TLS

Parameters after ``?``, all optional: ``ssl_ca_certs`` (PEM file of the authority; without it the system's count),
``ssl_certfile`` and ``ssl_keyfile`` (a client certificate), ``ssl_check_hostname=false`` (the certificate's name need
not fit, its authority must), ``sentinel_username`` and ``sentinel_password`` (where Sentinels have their own). The
names are those of redis-py. A user name or password with reserved characters is percent-encoded (RFC 3986 §2.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

REDIS_PORT = 6379
SENTINEL_PORT = 26379

_TLS_PARAMETERS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"})
_SENTINEL_PARAMETERS = frozenset({"sentinel_username", "sentinel_password"})


class Kind(Enum):
    """How the servers behind an address belong together."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server's TCP address; with port 0, ``host`` is the path of a local socket."""

    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A parsed URL. Passwords stay out of its ``repr``.

    Attributes:
        endpoints: the server; or the Sentinels to ask; or nodes from which a cluster is discovered.
        service: the name of the primary that Sentinels watch.
        tls: options of redis-py's TLS connection; ``None`` for plain text.
    """

    kind: Kind
    endpoints: tuple[Endpoint, ...]
    service: str = ""
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: Mapping[str, Any] | None = None

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Read a URL of the module's grammar.

        Raises:
            ValueError: it is something else. The message quotes no part that may hold a password.
        """
        parts = urlsplit(url)
        scheme, _, variant = parts.scheme.partition("+")
        try:
            kind = Kind(variant or "single")
        except ValueError:
            raise ValueError("the scheme after + must be sentinel or cluster") from None
        if scheme not in {"redis", "rediss"} and parts.scheme != "unix":
            raise ValueError("the scheme must be redis, rediss or unix")
        credentials, _, hosts = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":")
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        common: dict[str, Any] = {
            "username": unquote(username) or None,
            "password": unquote(password) or None,
            "tls": _tls(options) if scheme == "rediss" else None,
        }
        path = unquote(parts.path)
        if parts.scheme == "unix":
            database = options.pop("db", "0")
            _refuse_unknown(options)
            if not path.strip("/") or hosts:
                raise ValueError("unix:// needs an absolute path")
            return cls(Kind.SINGLE, (Endpoint(path, 0),), database=_database(database), **common)
        endpoints = tuple(
            _endpoint(host, SENTINEL_PORT if kind is Kind.SENTINEL else REDIS_PORT) for host in hosts.split(",")
        )
        segments = path.strip("/").split("/")
        if kind is Kind.SENTINEL:
            common |= {name: options.pop(name, None) or None for name in sorted(_SENTINEL_PARAMETERS)}
            service, *segments = segments
            if not service:
                raise ValueError("redis+sentinel:// needs the name of the service after the hosts")
            common["service"] = service
        elif kind is Kind.SINGLE and len(endpoints) != 1:
            raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
        _refuse_unknown(options)
        if len(segments) > 1 or (kind is Kind.CLUSTER and segments not in ([], [""], ["0"])):
            raise ValueError("the path must be the number of a database, and a cluster has only 0")
        return cls(kind, endpoints, database=_database(segments[0] if segments else "0"), **common)

    def connection(self, endpoint: Endpoint, connect_seconds: float) -> AbstractConnection:
        """A connection that is not open yet.

        It speaks RESP2 and repeats nothing by itself: a command whose answer was lost may have been carried out.
        Reads and writes are not bounded here; whoever awaits them does it (``asyncio.timeout``).
        """
        common: dict[str, Any] = {
            "db": self.database,
            "username": self.username,
            "password": self.password,
            # redis-py would bound writes by asyncio.wait_for, which in Python 3.11 may swallow a cancellation.
            "socket_timeout": None,
            "socket_connect_timeout": connect_seconds,
            "protocol": 2,
            "driver_info": None,
        }
        if not endpoint.port:
            return UnixDomainSocketConnection(path=endpoint.host, **common)
        common |= {"host": endpoint.host, "port": endpoint.port}
        return Connection(**common) if self.tls is None else SSLConnection(**self.tls, **common)

    def sentinel_options(self, timeout_seconds: float) -> Mapping[str, Any]:
        """How redis-py connects to the Sentinels."""
        return {
            "username": self.sentinel_username,
            "password": self.sentinel_password,
            "socket_timeout": timeout_seconds,
            "socket_connect_timeout": timeout_seconds,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "ssl": self.tls is not None,
            **(self.tls or {}),
        }


def _endpoint(text: str, default_port: int) -> Endpoint:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0:
        raise ValueError("each host must be HOST or HOST:PORT")
    return Endpoint(host, port or default_port)


def _database(text: str) -> int:
    if not (text or "0").isdecimal():
        raise ValueError("the database must be a number")
    return int(text or "0")


def _tls(options: dict[str, str]) -> dict[str, Any]:
    tls: dict[str, Any] = {name: options.pop(name) for name in sorted(_TLS_PARAMETERS) if name in options}
    if "ssl_check_hostname" in tls:
        tls["ssl_check_hostname"] = tls["ssl_check_hostname"].lower() not in {"false", "no", "off", "0"}
    return tls


def _refuse_unknown(options: Mapping[str, str]) -> None:
    if options:
        raise ValueError(f"unknown parameter {min(options)!r}")
