"""The composition root: every part of one process is made here and wired to the others, in reading order.

:class:`Application` owns their lives: it starts them before the first connection, and stops them after the last one,
in the opposite order.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.types import ASGIApp

from channels import protocol, topics
from channels.broker import Broker, InProcessBroker
from channels.broker_redis import RedisBroker
from channels.failover import Follower, State
from channels.flags import FlagNews
from channels.limits import Limits
from channels.limits_redis import RedisTokenBuckets
from channels.log_cache import CachedLog
from channels.presence import NodePresence
from channels.presence_redis import RedisPresence
from channels.protocol import CloseCode
from channels.realtime import Ports, Realtime
from channels.redis_address import RedisAddress
from channels.redis_client import RedisClient
from channels.streams import Streams
from channels.throttle import InProcessLimiter
from channels.throttle_redis import RedisLimiter
from domain.accounts import Accounts
from domain.catalogue import COMMANDS, TIMERS
from domain.commands import Desk
from domain.credentials import Credentials
from domain.errors import Unavailable
from domain.federation import Federation, FederationPolicy
from domain.flags import take_over
from domain.limits import LimitPolicy, Rate
from domain.log import Entry, EventLog
from domain.policy import Policy
from domain.second_factor import SecondFactor
from domain.security import AuditEntry, SecurityKind
from domain.sign_ins import IdentityPorts, SessionPolicy, SignIns
from domain.types import Origin, new_id
from persistence.database import Database, DatabaseOptions, database_now
from persistence.geometry import ZoneIndex
from persistence.log import SqlEventLog
from persistence.migrate import is_current
from persistence.repositories import SqlUnitOfWork, Units
from persistence.sequencer import Sequencer
from persistence.unit_of_work import Transactions
from persistence.vault import DatabaseVault
from server import fanout, specs
from server.aws import Aws, AwsOptions
from server.calendar_feed import CalendarFeeds
from server.calendar_fetch import CalendarFetcher, CalendarSync
from server.clock import ClockWatch, SystemClock
from server.courier import Courier, NotificationPruner
from server.diagnosis import database_trouble
from server.door import Door, DoorPolicy
from server.events import EventsEndpoint
from server.federation import IssuerKeys, IssuerOptions, IssuerTokens, JsonFetcher
from server.http import Check, Surface, middleware
from server.keys import KeyKeeper
from server.live import (
    DatabaseAccess,
    DatabaseSnapshots,
    LiveMetrics,
    ProviderConnections,
    SocketAcknowledgements,
    TokenDoorman,
    TrustedIssuer,
    trace,
)
from server.messengers import LocalPost, QueuedMessenger, RoutedPost
from server.one_time_codes import TimeBasedCodes
from server.outbound import Outbound, reach_of
from server.passwords import Passwords
from server.readings import Readings
from server.secrets import Secret, SecretReader, SecretWatch
from server.secrets_at_rest import master_key_of
from server.security_events import AttestedSecurityEvents
from server.settings import Settings
from server.telemetry import Metrics, logger, watch_loop_lag
from server.tokens import KeyRing, SigningKey, Tokens
from server.websocket import SocketEndpoint, WithSocket
from server.workers import FlagWatch, HubAudit, OutboxWatch, Pruner, SocketSweep, TimerWorker, Workers
from server.zone_meter import ZoneMeter, follow_zones

log = logger(__name__)

SEQUENCING_LATE_SECONDS = 10.0
"""A sequencer that died is replaced within five seconds; an event that waits for longer is a sign of trouble."""

NUDGE = "nudge"
"""What nodes tell the one that sequences: events were committed."""


def database_options(settings: Settings) -> DatabaseOptions:
    """How the database of these settings is reached."""
    ca_file = settings.database_ca_file
    return DatabaseOptions(
        pool_size=settings.database_pool_size,
        transaction_timeout_seconds=settings.database_timeout_seconds,
        statement_timeout_seconds=settings.database_timeout_seconds,
        tls=settings.database_tls,
        tls_ca_file=Path(ca_file) if ca_file else None,
    )


async def check_schema(database: Database) -> None:
    """Make sure that the database is at the migration this version needs.

    Raises:
        Unavailable: it is not, or is away.
    """
    if not await is_current(database):
        raise Unavailable("The database schema is not up to date: run `fixnado migrate`.")


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
        reach=reach_of(settings),
    )


def session_policy_of(settings: Settings) -> SessionPolicy:
    """How long sign-ins, and the proofs in them, count."""
    return SessionPolicy(
        refresh_seconds=settings.refresh_token_seconds,
        absolute_seconds=settings.refresh_absolute_seconds,
        retry_seconds=settings.refresh_retry_seconds,
        challenge_seconds=settings.challenge_seconds,
        reset_seconds=settings.password_reset_seconds,
        step_up_seconds=settings.step_up_seconds,
    )


def limit_policy_of(settings: Settings) -> LimitPolicy:
    """How often one may knock."""
    requests = Rate("auth-requests", settings.auth_requests_per_second, settings.auth_requests_burst)
    return LimitPolicy(requests=requests)


class Application:
    """One process of the product.

    Attributes:
        asgi: what the HTTP server runs, between :meth:`start` and :meth:`stop`.
        accounts, desk, transactions: for seeds and the command line.
        doorman: tells who presents a token.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.node_id = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(3)}"
        # Nobody else can hold an embedded database's leases, so a restart need not wait for them to run out.
        self.holder = "embedded" if settings.embedded else self.node_id
        clock = SystemClock()
        self.metrics = Metrics(methods=COMMANDS, close_codes=list(CloseCode), security_kinds=SecurityKind)
        self.workers = Workers()

        # What survives.
        self.database = Database(settings.database_url, database_options(settings))
        self.log: EventLog = SqlEventLog(self.database)
        self._clock_watch = ClockWatch(partial(self.database.read, database_now), clock, self.metrics)
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
        self.aws = Aws(AwsOptions(region=settings.aws_region, endpoint_url=settings.aws_endpoint_url))
        self.vault = DatabaseVault(
            self.database, master_key_of(settings, self.aws), keep_seconds=settings.data_key_seconds
        )
        self._keys = KeyKeeper(self.database, self.vault, self.holder)
        kept_in = Path(settings.mail_directory) if settings.mail_directory else None
        self.outbound = Outbound(settings, self.aws)
        routes = self.outbound.routes
        self.messenger = QueuedMessenger(RoutedPost(routes) if settings.mail_from else LocalPost(kept_in), self.metrics)
        self._courier = Courier(self.desk, self.transactions, routes, self.vault, clock, self.metrics)
        self._notification_pruner = NotificationPruner(self.database, clock)
        self.exporters = self.outbound.exporters(self.database, self.holder, clock, self.metrics)
        self.redis: RedisClient | None = None
        if settings.redis_url is not None:
            self.redis = RedisClient(RedisAddress.parse(settings.redis_url))
            self.redis.on_change(self._note_redis)
        identity = IdentityPorts(
            transactions=self.transactions,
            passwords=self.passwords,
            tokens=self.tokens,
            clock=clock,
            vault=self.vault,
            codes=TimeBasedCodes(),
            messenger=self.messenger,
            limiter=InProcessLimiter() if self.redis is None else RedisLimiter(self.redis),
            security=AttestedSecurityEvents(self.transactions),
            limits=limit_policy_of(settings),
        )
        sign_ins = SignIns(self.tokens, session_policy_of(settings))
        self.second_factor = SecondFactor(identity, sign_ins)
        self.accounts = Accounts(identity, sign_ins, self.second_factor)
        self.credentials = Credentials(identity, sign_ins)

        # What is live.
        limits = limits_of(settings)
        self.broker: Broker = InProcessBroker()
        self._redis_was_well = False
        self.buckets: RedisTokenBuckets | None = None
        self.presence: RedisPresence | None = None
        self.cache: CachedLog | None = None
        if self.redis is not None:
            self.broker = RedisBroker(self.redis)
            self.log = self.cache = CachedLog(self.log, self.redis)
            self.presence = RedisPresence(self.node_id, self.broker, lambda: self._nodes())
            self.buckets = RedisTokenBuckets(
                self.redis,
                limits.user_requests_per_second,
                limits.user_burst_requests,
                limits.user_debt_requests,
                limits.buckets,
            )
        self._issuer_documents: JsonFetcher | None = None
        self._issuer_keys: IssuerKeys | None = None
        self.doorman = TokenDoorman(self.tokens, self.accounts, clock, self._trusted_issuer())
        connections = ProviderConnections(self.desk, self.node_id, clock)
        # In session ids, where other nodes look for who holds an event stream. It says nothing about the machine.
        tag = secrets.token_hex(4)
        self.realtime = Realtime(
            Ports(
                log=self.log,
                broker=self.broker,
                desk=self.desk,
                doorman=self.doorman,
                access=DatabaseAccess(self.database),
                snapshots=DatabaseSnapshots(self.transactions, self.desk),
                connections=connections,
                acknowledgements=SocketAcknowledgements(self.desk, self.log, clock, messages=bool(self.policy.reach)),
                clock=clock,
            ),
            limits,
            metrics=LiveMetrics(self.metrics, clock),
            presence=self.presence,
            write_each=fanout.load(),
            deflate=settings.deflates,
            buckets=self.buckets,
            trace=trace,
        )
        exchange = self.broker if isinstance(self.broker, RedisBroker) else None
        self.streams = Streams(tag, exchange, limits.call_seconds)
        self.desk.announcer = self.realtime.announcer
        self.flags = FlagNews(self.realtime.hub, clock)
        self.realtime.hub.listen(partial(follow_zones, zones))

        # What works in the background.
        self.sequencer = Sequencer(
            self.database,
            self.holder,
            route=topics.route,
            encode=protocol.encode_event,
            publish=self._publish,
        )
        self.follower: Follower | None = None
        if isinstance(self.broker, RedisBroker):
            self.follower = Follower(
                self.node_id,
                self.realtime.hub,
                self.log,
                self.broker,
                lambda: {0} if self.sequencer.leading else (),
            )
        self.timers = TimerWorker(self.desk, self.transactions, clock, TIMERS)
        self._sweep = SocketSweep(self.desk, self.node_id, clock, connections.catch_up)
        self._pruner = Pruner(
            self.database,
            clock,
            log_hours=settings.log_retention_hours,
            log_entries=settings.log_retention_entries,
            key_hours=settings.idempotency_hours,
        )
        self._zone_meter = ZoneMeter(self.desk, self.transactions, clock)
        self._calendar_sync = CalendarSync(self.desk, self.transactions, CalendarFetcher())
        self._flag_watch = FlagWatch(self.transactions, self.flags)
        self._secrets: SecretReader | None = None
        self.secret_watch: SecretWatch | None = None
        if settings.secrets_id is not None:
            self._secrets = SecretReader(settings.secrets_id, settings.secrets_timeout_seconds)
            self.secret_watch = SecretWatch(self._secrets, self._apply_secret, settings.secrets_poll_seconds)
        self._outbox_watch = OutboxWatch(self.database, self.sequencer, self.metrics)

        self.metrics.registry.register(
            Readings(
                database=self.database,
                sequencer=self.sequencer,
                follower=self.follower,
                redis=self.redis,
                cache=self.cache,
            )
        )

        # What faces the network.
        policy = DoorPolicy(
            allowed_origins=self._origins(),
            trusted_proxies=settings.trusted_proxies,
            max_sockets=settings.max_sockets,
            max_sockets_per_address=settings.max_sockets_per_ip,
        )
        self._door = Door(policy, lambda: self.realtime.draining)
        self.surface = Surface(
            accounts=self.accounts,
            second_factor=self.second_factor,
            credentials=self.credentials,
            desk=self.desk,
            doorman=self.doorman,
            feeds=CalendarFeeds(self.transactions, self.desk),
            tokens=self.tokens,
            metrics=self.metrics,
            checks=self.checks(),
            documents=specs.documents(),
            streams=self.streams,
            events=EventsEndpoint(self.realtime, self.streams, self._door, limits),
            callbacks=self.outbound.callbacks(self.desk),
            spend=self.realtime.spend,
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
            middleware=middleware(self.settings.allowed_origins, self.settings.trusted_proxies),
        )
        return WithSocket(app, SocketEndpoint(self.realtime, self._door))

    def _origins(self) -> frozenset[str]:
        origins = set(self.settings.allowed_origins)
        if self.settings.public_url:
            public = urlsplit(self.settings.public_url)
            origins.add(f"{public.scheme}://{public.netloc}")
        return frozenset(origins)

    async def start(self) -> None:
        """Everything runs when this returns.

        Raises:
            Unavailable: the database is away, or its schema is not the one this version needs.
        """
        await self.check_schema()
        if not self.settings.embedded:  # there it is one clock
            await self._clock_watch.look()
            self.workers.start("clock", self._clock_watch.run)
        try:
            await self.vault.check()
        except Unavailable as error:
            raise Unavailable("The master key that stored secrets are encrypted under cannot be used now.") from error
        self._use_keys(await self._keys.ring())
        if self.redis is not None:
            # The epoch of `control` is different for every database, so nodes of two that share a Redis never meet.
            await self.redis.start((await self.log.heads([topics.CONTROL]))[topics.CONTROL].epoch)
        await self.realtime.start()
        await self._flag_watch.run_once()
        if isinstance(self.broker, RedisBroker):
            await self.broker.hear(NUDGE, lambda _: self.sequencer.nudge())
        await self.streams.start()
        if self.presence is not None:
            await self.presence.start(NodePresence(self.realtime.hub))
        if self.buckets is not None:
            await self.buckets.start()
        if self.follower is not None:
            self.workers.start("follower", self.follower.run)
        else:
            self.workers.start("audit", HubAudit(self.realtime.hub).run)
        self.workers.start("sequencer", self.sequencer.run)
        self.workers.start("timers", self.timers.run)
        self.workers.start("sockets", self._sweep.run)
        self.workers.start("pruner", self._pruner.run)
        self.workers.start("flags", self._flag_watch.run)
        self.workers.start("zones", self._zone_meter.run)
        self.workers.start("calendars", self._calendar_sync.run)
        if self.secret_watch is not None:
            await self.secret_watch.look()
            self.workers.start("secrets", self.secret_watch.run)
        self.workers.start("outbox-watch", self._outbox_watch.run)
        self.workers.start("signing-keys", partial(self._keys.follow, use=self._use_keys))
        self.workers.start("messenger", self.messenger.run)
        if self.policy.reach:
            self.workers.start("courier", self._courier.run)
        self.workers.start("notification-pruner", self._notification_pruner.run)
        for exporter in self.exporters:
            self.workers.start("exporter", exporter.run)
        self.workers.start("loop-lag", self._until_stopped(partial(watch_loop_lag, self.metrics)))

    async def stop(self) -> None:
        """Ends what :meth:`start` began, last first."""
        await self.realtime.stop()
        await self.streams.stop()
        await self.doorman.close()
        await self.workers.stop()
        if self.presence is not None:
            await self.presence.stop()
        if self.buckets is not None:
            await self.buckets.stop()
        if self.redis is not None:
            await self.redis.stop()
        if self._secrets is not None:
            self._secrets.close()
        if self._issuer_documents is not None:
            self._issuer_documents.close()
        self.passwords.close()
        self.aws.close()
        await self.outbound.close()
        await self.database.close()

    async def drain(self) -> None:
        """Sends the sockets away before the process ends; see :meth:`channels.realtime.Realtime.drain`."""
        await self.realtime.drain(self.settings.drain_seconds, self.settings.shutdown_deadline_seconds)

    def checks(self) -> Mapping[str, Check]:
        """What readiness asks, by name."""
        checks: dict[str, Check] = {
            "database": self._check_database,
            "schema": self.check_schema,
            "broker": self._check_broker,
            "sequencing": self._check_sequencing,
            "node": self._check_node,
        }
        if self.secret_watch is not None:
            checks["secrets"] = self.secret_watch.check
        if self._issuer_keys is not None:
            checks["issuer"] = self._issuer_keys.check
        return checks

    async def check_schema(self) -> None:
        """See :func:`check_schema`."""
        await check_schema(self.database)

    def _use_keys(self, ring: KeyRing) -> None:
        self.tokens.ring = ring

    async def _check_database(self) -> None:
        try:
            await self.database.ping()
        except Unavailable as error:
            raise Unavailable(database_trouble(error, self.settings)) from error

    async def _check_broker(self) -> str | None:
        """Redis may be away: then events come from the log, a little later, and the node is as ready as before.

        One that will never do keeps a new node out of service, so that a rollout with a wrong setting stops by itself.
        A node that was well once stays: were all to leave because a certificate ran out, nobody would serve.
        """
        if self.redis is None or self.follower is None:
            return None
        if self.follower.state is State.BLIND:
            why = self.redis.problem or "heartbeats are overdue"
            raise Unavailable(f"{why}; and events cannot be read from the database either")
        if not self._redis_was_well and (self.redis.misconfigured or self.redis.problem is None):
            raise Unavailable(self.redis.problem or "the first attempt to reach Redis has not ended yet")
        if self.redis.problem is not None:
            return f"tailing: {self.redis.problem}; events come from the database, a little later"
        if self.follower.state is State.TAILING:
            return "tailing: heartbeats are overdue; events come from the database, a little later"
        return None

    async def _check_sequencing(self) -> str | None:
        waiting = self._outbox_watch.oldest_seconds
        if waiting > SEQUENCING_LATE_SECONDS:
            return f"the oldest event has waited for {waiting:.0f} s to be sequenced"
        return None

    async def _check_node(self) -> None:
        if self.realtime.draining:
            raise Unavailable("draining: this node is about to end")

    def _note_redis(self) -> None:
        self._redis_was_well = self._redis_was_well or (self.redis is not None and self.redis.connected)

    async def _publish(self, entries: Sequence[Entry]) -> None:
        await self.broker.publish(entries)
        if self.cache is not None:
            self.cache.add(entries)

    def _nodes(self) -> Collection[str]:
        return () if self.follower is None else self.follower.nodes

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
        if isinstance(self.broker, RedisBroker) and not self.sequencer.leading:
            # The node that sequences is another one, and would find the events at its next poll only.
            self.broker.tell(NUDGE, b"")

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
