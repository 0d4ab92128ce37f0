"""The composition root: every part of one process is made here and wired to the others, in reading order.

:class:`Application` owns their lives: it starts them before the first connection, and stops them after the last one,
in the opposite order.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.types import ASGIApp

from channels import protocol, topics
from channels.broker import InProcessBroker
from channels.flags import FlagNews
from channels.limits import Limits
from channels.protocol import CloseCode
from channels.realtime import Ports, Realtime
from domain.accounts import Accounts, SessionPolicy
from domain.catalogue import COMMANDS, TIMERS
from domain.commands import Desk
from domain.errors import Unavailable
from domain.federation import Federation, FederationPolicy
from domain.flags import take_over
from domain.policy import Policy
from domain.security import AuditEntry, SecurityKind
from domain.types import Origin, new_id
from persistence.database import Database, DatabaseOptions
from persistence.geometry import ZoneIndex
from persistence.log import SqlEventLog
from persistence.migrate import is_current
from persistence.repositories import SqlUnitOfWork, Units
from persistence.sequencer import Sequencer
from persistence.unit_of_work import Transactions
from server import specs
from server.clock import SystemClock
from server.federation import IssuerKeys, IssuerOptions, IssuerTokens, JsonFetcher
from server.http import Surface, middleware
from server.keys import load_key_ring
from server.live import (
    DatabaseAccess,
    DatabaseSnapshots,
    LiveMetrics,
    OfferAcknowledgements,
    ProviderConnections,
    TokenDoorman,
    TrustedIssuer,
    trace,
)
from server.passwords import Passwords
from server.secrets import Secret, SecretReader, SecretWatch
from server.settings import Settings
from server.telemetry import Metrics, logger, watch_loop_lag
from server.tokens import KeyRing, SigningKey, Tokens
from server.websocket import DoorPolicy, SocketEndpoint, WithSocket
from server.workers import FlagWatch, HubAudit, OutboxWatch, Pruner, SocketSweep, TimerWorker, Workers

log = logger(__name__)


def database_options(settings: Settings) -> DatabaseOptions:
    """How the database of these settings is reached."""
    ca_file = settings.database_ca_file
    return DatabaseOptions(
        pool_size=settings.database_pool_size,
        transaction_timeout_seconds=settings.database_timeout_seconds,
        tls=settings.database_tls,
        tls_ca_file=Path(ca_file) if ca_file else None,
    )


def limits_of(settings: Settings) -> Limits:
    """The live side's bounds."""
    return Limits(
        connect_seconds=settings.connect_deadline_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        heartbeat_grace_seconds=settings.heartbeat_grace_seconds,
        token_grace_seconds=settings.token_grace_seconds,
        user_requests_per_second=settings.commands_per_second,
        user_burst_requests=settings.commands_burst,
        sockets_per_user=settings.max_sockets_per_user,
        max_buffered_bytes=settings.max_buffered_bytes,
        replay_bytes=min(512 * 1024, settings.max_buffered_bytes // 2),
        typing_seconds=settings.typing_seconds,
    )


def policy_of(settings: Settings) -> Policy:
    """The marketplace's numbers."""
    return Policy(
        offer_on_demand_seconds=settings.offer_on_demand_seconds,
        offer_scheduled_seconds=settings.offer_scheduled_seconds,
        linger_seconds=settings.linger_seconds,
        typing_seconds=settings.typing_seconds,
        idempotency_hours=settings.idempotency_hours,
    )


class Application:
    """One process of the product.

    Attributes:
        asgi: what the HTTP server runs, between :meth:`start` and :meth:`stop`.
        accounts, desk, transactions: for seeds and the command line.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.node_id = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(3)}"
        clock = SystemClock()
        self.metrics = Metrics(COMMANDS, list(CloseCode), list(SecurityKind))
        self.workers = Workers()

        # What survives.
        self.database = Database(settings.database_url, database_options(settings))
        self.log = SqlEventLog(self.database)
        zones = ZoneIndex()
        self.transactions: Transactions[SqlUnitOfWork] = Transactions(
            self.database,
            clock,
            Units(zones, self._timer_is_set),
            self._events_are_committed,
            on_attested=self._facts_are_attested,
        )

        # What is allowed.
        self.policy = policy_of(settings)
        self.desk = Desk(COMMANDS, self.transactions, self.policy)
        self.passwords = Passwords()
        self.tokens = Tokens(
            # Replaced by the database's ring in start(), before anything is verified.
            KeyRing(SigningKey.generate()),
            life_seconds=settings.access_token_seconds,
            leeway_seconds=settings.access_token_leeway_seconds,
        )
        self.accounts = Accounts(
            self.transactions,
            self.passwords,
            self.tokens,
            clock,
            SessionPolicy(
                settings.refresh_token_seconds, settings.refresh_absolute_seconds, settings.refresh_retry_seconds
            ),
        )

        # What is live.
        self.broker = InProcessBroker()
        self._issuer_documents: JsonFetcher | None = None
        self._issuer_keys: IssuerKeys | None = None
        doorman = TokenDoorman(self.tokens, self.accounts, clock, self._trusted_issuer())
        self.realtime = Realtime(
            Ports(
                log=self.log,
                broker=self.broker,
                desk=self.desk,
                doorman=doorman,
                access=DatabaseAccess(self.database),
                snapshots=DatabaseSnapshots(self.transactions, self.desk),
                connections=ProviderConnections(self.desk, self.node_id, clock),
                acknowledgements=OfferAcknowledgements(self.desk, self.log, clock),
                clock=clock,
            ),
            limits_of(settings),
            metrics=LiveMetrics(self.metrics),
            trace=trace,
        )
        self.desk.announcer = self.realtime.announcer
        self.flags = FlagNews(self.realtime.hub, clock)

        # What works in the background.
        self.sequencer = Sequencer(
            self.database,
            # Nobody else can be the holder of an embedded database's lease, so a restart need not wait
            # for it to run out.
            "embedded" if settings.embedded else self.node_id,
            route=topics.route,
            encode=protocol.encode_event,
            publish=self.broker.publish,
        )
        self.timers = TimerWorker(self.desk, self.transactions, clock, TIMERS)
        self._sweep = SocketSweep(self.desk, self.node_id, clock)
        self._pruner = Pruner(
            self.database,
            clock,
            log_hours=settings.log_retention_hours,
            log_entries=settings.log_retention_entries,
            key_hours=settings.idempotency_hours,
        )
        self._flag_watch = FlagWatch(self.transactions, self.flags)
        self._secrets: SecretReader | None = None
        self.secret_watch: SecretWatch | None = None
        if settings.secrets_id is not None:
            self._secrets = SecretReader(settings.secrets_id, settings.secrets_timeout_seconds)
            self.secret_watch = SecretWatch(self._secrets, self._apply_secret, settings.secrets_poll_seconds)
        self._outbox_watch = OutboxWatch(self.database, self.sequencer, self.metrics)

        # What faces the network.
        self.surface = Surface(
            accounts=self.accounts,
            desk=self.desk,
            doorman=doorman,
            tokens=self.tokens,
            metrics=self.metrics,
            checks=self.checks(),
            documents=specs.documents(),
        )
        self.asgi = self._asgi()

    def _trusted_issuer(self) -> TrustedIssuer | None:
        settings = self.settings
        if settings.oidc_issuer is None:
            return None
        options = IssuerOptions(
            issuer=settings.oidc_issuer,
            audiences=frozenset(settings.oidc_client_ids),
            algorithms=tuple(settings.oidc_algorithms.split(",")),
            groups_claim=settings.oidc_groups_claim,
            leeway_seconds=settings.access_token_leeway_seconds,
        )
        policy = FederationPolicy(
            settings.group_roles, settings.oidc_new_users == "create", settings.refresh_absolute_seconds
        )
        self._issuer_documents = JsonFetcher(settings.oidc_timeout_seconds)
        self._issuer_keys = IssuerKeys(options, self._issuer_documents)
        return TrustedIssuer(IssuerTokens(options, self._issuer_keys), Federation(self.transactions, policy))

    def _asgi(self) -> ASGIApp:
        app = Starlette(
            routes=self.surface.routes(),
            middleware=middleware(self.settings.allowed_origins),
        )
        policy = DoorPolicy(
            allowed_origins=frozenset(self.settings.allowed_origins)
            | frozenset(filter(None, [self.settings.public_url])),
            trusted_proxies=self.settings.trusted_proxies,
            max_sockets=self.settings.max_sockets,
            max_sockets_per_address=self.settings.max_sockets_per_ip,
        )
        return WithSocket(app, SocketEndpoint(self.realtime, policy))

    async def start(self) -> None:
        """Everything runs when this returns.

        Raises:
            Unavailable: the database is away, or its schema is not the one this version needs.
        """
        await self._check_schema()
        self.tokens.ring = await load_key_ring(self.database, self.node_id)
        await self.realtime.start()
        await self._flag_watch.run_once()
        self.workers.start("sequencer", self.sequencer.run)
        self.workers.start("timers", self.timers.run)
        self.workers.start("sockets", self._sweep.run)
        self.workers.start("pruner", self._pruner.run)
        self.workers.start("audit", HubAudit(self.realtime.hub).run)
        self.workers.start("flags", self._flag_watch.run)
        if self.secret_watch is not None:
            await self.secret_watch.look()
            self.workers.start("secrets", self.secret_watch.run)
        self.workers.start("outbox-watch", self._outbox_watch.run)
        self.workers.start("loop-lag", self._until_stopped(partial(watch_loop_lag, self.metrics)))

    async def stop(self) -> None:
        """Ends what :meth:`start` began, last first."""
        await self.realtime.stop()
        await self.workers.stop()
        if self._secrets is not None:
            self._secrets.close()
        if self._issuer_documents is not None:
            self._issuer_documents.close()
        self.passwords.close()
        await self.database.close()

    async def drain(self) -> None:
        """Sends the sockets away before the process ends; see :meth:`channels.realtime.Realtime.drain`."""
        await self.realtime.drain(self.settings.drain_seconds, self.settings.shutdown_deadline_seconds)

    def checks(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """What readiness asks, by name."""
        checks: dict[str, Callable[[], Awaitable[None]]] = {
            "database": self.database.ping,
            "schema": self._check_schema,
            "broker": self._check_broker,
        }
        if self.secret_watch is not None:
            checks["secrets"] = self.secret_watch.check
        if self._issuer_keys is not None:
            checks["issuer"] = self._issuer_keys.check
        return checks

    async def _check_schema(self) -> None:
        if not await is_current(self.database):
            raise Unavailable("The database schema is not up to date: run `fixnado migrate`.")

    async def _check_broker(self) -> None:
        """The in-process broker lives as long as the process."""

    async def _apply_secret(self, secret: Secret) -> None:
        """Takes over what can change while the process runs: the database's credentials, and flags."""
        fresh = self.settings.updated(secret.settings)
        taken: dict[str, object] = {}
        if fresh.database_url != self.settings.database_url:
            try:
                await self.database.rotate(fresh.database_url)
                taken["database_url"] = fresh.database_url
                log.info("database_credentials_rotated")
            except ValueError:
                pass  # another database: named below, with all that needs a new process
        self.settings = self.settings.model_copy(update=taken)
        waiting = sorted(name for name in Settings.model_fields if getattr(fresh, name) != getattr(self.settings, name))
        if waiting:
            log.warning("settings_need_a_restart", settings=waiting)
        if secret.flags or self.flags.board.managed:
            origin = Origin(new_id(datetime.now(UTC)))
            changed = await self.desk.run_as_system(lambda ctx: take_over(ctx, secret.flags), origin)
            self.flags.take(changed)

    def _events_are_committed(self) -> None:
        self.sequencer.nudge()

    def _facts_are_attested(self, entries: Sequence[AuditEntry]) -> None:
        for entry in entries:
            self.metrics.attested(entry.kind)
            # The hash in a log that is kept elsewhere is what the chain can be held against.
            log.warning(
                "security_event",
                kind=entry.kind,
                number=entry.number,
                hash=entry.hash,
                actor=entry.actor_id,
                subject=entry.subject_id,
                correlation_id=entry.correlation_id,
            )

    def _timer_is_set(self, due_at: datetime) -> None:
        self.timers.note(due_at)

    @staticmethod
    def _until_stopped(run: Callable[[], Awaitable[None]]) -> Callable[[asyncio.Event], Awaitable[None]]:
        async def worker(stop: asyncio.Event) -> None:
            running = asyncio.ensure_future(run())
            try:
                await stop.wait()
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

        return worker
