"""What the use cases need from outside. Real adapters live in persistence and server; fakes only in tests.

A :class:`UnitOfWork` is one database transaction. Its rules:

* lock the aggregate first (``lock_*``), decide, save, and record events last; the outbox is written right before
  commit, so that for each aggregate the order in the outbox is the order of commits;
* lock in one order: series, booking, conversation, then providers by id, so that no two use cases wait for each other.
  A due timer is the exception: it is claimed before its aggregate, and a deadlock with whoever cancels it is retried;
* a use case may run more than once (deadlock, lost race): it must not touch the outside world. Ephemeral announcements
  are collected in the context and sent after commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from domain.events import Event
from domain.identity import Actor, Membership, MembershipRole, RefreshToken, Role, SignIn, User
from domain.types import JSON, Interval, Origin, Point

if TYPE_CHECKING:
    from domain.bookings import Booking, Status
    from domain.calendar_sync import CalendarReader, Source
    from domain.calendars import Calendar, CalendarException, Hold, Plan
    from domain.deadlines import SlaPolicy
    from domain.factors import Challenge, CodeGuard, Factor, FactorKind, KnownDevice
    from domain.flags import Flag
    from domain.invitations import Invitation
    from domain.letters import Letter, Medium
    from domain.limits import Delays, Rate
    from domain.messaging import Conversation, Message
    from domain.notifications import Delivery, Notification, Preferences, PushToken
    from domain.offers import Offer
    from domain.organisations import Member, Organisation
    from domain.providers import Provider, Service, Zone
    from domain.recurrence import Recurrences
    from domain.security import AuditEntry, SecurityFact, SecurityKind
    from domain.series import Instance, Series
    from domain.zones import Counted, Figures, Imported

T = TypeVar("T")


class Clock(Protocol):
    """The time of day."""

    def now(self) -> datetime:
        """Aware UTC."""


class People(Protocol):
    """Accounts, sign-ins and memberships."""

    async def by_email(self, email: str) -> User | None: ...
    async def user(self, user_id: str) -> User | None: ...
    async def add_user(self, user: User) -> None:
        """Raises ``EmailTaken`` when the address is registered already, even by a transaction that just won."""

    async def add_organisation(self, organisation_id: str, name: str) -> None: ...
    async def add_membership(self, organisation_id: str, user_id: str, role: MembershipRole) -> None: ...
    async def actors(self, sign_ins: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], Actor]:
        """The people behind ``(user id, session id)``, with all their hats, in one query. Those whose account or
        sign-in has ended are left out.
        """

    async def actor(self, user_id: str, session_id: str) -> Actor | None:
        """One of them."""

    async def lock_user(self, user_id: str) -> User | None:
        """Sign-ins that begin and the change of what they began with take turns at this."""

    async def disable(self, user_id: str, disabled_at: datetime | None) -> None: ...
    async def memberships(self, user_id: str) -> tuple[Membership, ...]:
        """The person's places as they are now, by the organisation's id."""

    async def save_roles(self, user_id: str, roles: frozenset[Role]) -> None: ...
    async def federated_user(self, issuer: str, subject: str) -> str | None:
        """The id of the account that stands for an identity elsewhere."""

    async def add_federated(self, issuer: str, subject: str, user: User) -> None:
        """Adds the account that stands for an identity; when another transaction did so meanwhile, the whole
        transaction starts over.
        """

    async def save_password(self, user_id: str, password_hash: str) -> None: ...
    async def add_sign_in(self, sign_in: SignIn) -> None:
        """When another transaction added one of this id meanwhile, the whole transaction starts over."""

    async def lock_sign_in(self, session_id: str) -> SignIn | None: ...
    async def sign_ins(self, user_id: str) -> Sequence[SignIn]:
        """Those that have not ended, newest first."""

    async def latest_sign_ins(self, user_id: str, limit: int) -> Sequence[SignIn]:
        """The newest, ended ones included."""

    async def save_sign_in(self, sign_in: SignIn) -> None: ...
    async def add_refresh_token(self, token: RefreshToken) -> None: ...
    async def refresh_token(self, token_hash: str) -> RefreshToken | None: ...
    async def save_refresh_token(self, token: RefreshToken) -> None: ...


class Factors(Protocol):
    """Second factors, recovery codes, and what was guessed at them."""

    async def of(self, user_id: str) -> Sequence[Factor]:
        """Confirmed ones and those that are being enrolled."""

    async def put(self, factor: Factor) -> None:
        """Adds the factor, or takes the place of one of its kind."""

    async def confirm(self, user_id: str, kind: FactorKind, confirmed_at: datetime) -> None: ...
    async def remove_all(self, user_id: str) -> None:
        """Factors and recovery codes."""

    async def use_step(self, user_id: str, step: int) -> bool:
        """One conditional write: whether this TOTP step is newer than any that was used. Of two at once one wins."""

    async def replace_recovery_codes(self, user_id: str, code_hashes: Sequence[str]) -> None: ...
    async def use_recovery_code(self, user_id: str, code_hash: str, now: datetime) -> bool:
        """One conditional write: whether this code is there and was not used."""

    async def recovery_codes_left(self, user_id: str) -> int: ...
    async def guard(self, user_id: str, *, lock: bool) -> CodeGuard: ...
    async def save_guard(self, guard: CodeGuard) -> None: ...


class Challenges(Protocol):
    """Opaque tokens of one purpose, by hash."""

    async def add(self, challenge: Challenge) -> None: ...
    async def get(self, token_hash: str) -> Challenge | None: ...
    async def lock(self, token_hash: str) -> Challenge | None: ...
    async def save(self, challenge: Challenge) -> None:
        """Attempts, the code that was sent, and whether it is used."""

    async def end_all(self, user_id: str, now: datetime) -> None:
        """What the person still had to answer counts no longer."""


class Devices(Protocol):
    """Devices that people sign in from."""

    async def find(self, user_id: str, key: str) -> KnownDevice | None: ...
    async def get(self, device_id: str) -> KnownDevice | None: ...
    async def of(self, user_id: str) -> Sequence[KnownDevice]:
        """Latest first."""

    async def put(self, device: KnownDevice) -> None: ...
    async def remove(self, device_id: str) -> None: ...


class Organisations(Protocol):
    """Organisations, their members and invitations. What changes them holds the organisation's lock."""

    async def get(self, organisation_id: str) -> Organisation | None: ...
    async def lock(self, organisation_id: str) -> Organisation | None: ...
    async def members(self, organisation_id: str) -> Sequence[Member]:
        """Everybody, the longest there first."""

    async def member(self, organisation_id: str, user_id: str) -> Member | None: ...
    async def size(self, organisation_id: str) -> int: ...
    async def owners(self, organisation_id: str) -> int: ...
    async def save_member(self, member: Member) -> None: ...
    async def remove_member(self, organisation_id: str, user_id: str) -> None: ...
    async def pending(self, organisation_id: str, now: datetime) -> Sequence[Invitation]:
        """Invitations that wait and have not run out, newest first."""

    async def invitation(self, invitation_id: str) -> Invitation | None: ...
    async def invitation_by_token(self, token_hash: str) -> Invitation | None: ...
    async def add_invitation(self, invitation: Invitation) -> None: ...
    async def save_invitation(self, invitation: Invitation) -> None: ...


class Flags(Protocol):
    """Feature flags."""

    async def all(self) -> Sequence[Flag]:
        """Every flag, by name."""

    async def lock(self, name: str) -> Flag | None: ...
    async def add(self, flag: Flag) -> None:
        """Makes a flag; when another transaction made it meanwhile, the whole transaction starts over."""

    async def save(self, flag: Flag) -> None: ...


class AuditLog(Protocol):
    """Reads of the audit log; :meth:`UnitOfWork.attest` writes it."""

    async def newest(self, before: int | None, limit: int) -> Sequence[AuditEntry]:
        """Newest rows with ``number < before``, newest first."""


class Post(Protocol):
    """Sends letters. Called after the commit: returns at once, never raises, and may lose one."""

    def invite(self, email: str, organisation: str, inviter: str, token: str, expires_at: datetime) -> None:
        """Somebody is invited; the token must be told to nobody else."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider that may be asked, and what the choice needs to know."""

    provider: Provider
    jobs_today: int
    already_asked: bool
    has_calendar: bool = False


class Market(Protocol):
    """Services, zones and providers."""

    async def service(self, service_id: str) -> Service | None: ...
    async def services(self) -> Sequence[Service]: ...
    async def add_service(self, service: Service) -> None: ...
    async def zone(self, zone_id: str) -> Zone | None: ...
    async def zones(self) -> Sequence[Zone]: ...
    async def add_zone(self, zone: Zone) -> None:
        """Raises ``InvalidParams`` when the geometry is not a valid (Multi)Polygon."""

    async def zone_at(self, place: Point) -> Zone | None:
        """The smallest zone that covers the place; a boundary counts as inside."""

    async def add_provider(self, provider: Provider, skills: Collection[str], zones: Collection[str]) -> None: ...
    async def provider(self, provider_id: str) -> Provider | None: ...
    async def lock_provider(self, provider_id: str) -> Provider | None: ...
    async def providers(self) -> Sequence[Provider]: ...
    async def save_provider(self, provider: Provider) -> None: ...
    async def candidates(self, booking: Booking, during: Interval, *, soon: bool) -> Sequence[Candidate]:
        """Verified, skilled, covering the zone, available, free in the slot, not having declined this booking.

        Available is: ``online`` for work on demand; not ``offline`` by choice for scheduled work.
        """

    async def hold_socket(self, provider_id: str, node_id: str, until: datetime) -> None:
        """This node holds a socket of the provider; the claim runs out unless renewed."""

    async def release_socket(self, provider_id: str, node_id: str) -> None: ...
    async def renew_sockets(self, node_id: str, until: datetime) -> None: ...
    async def has_socket(self, provider_id: str, now: datetime) -> bool: ...
    async def unreachable(self, now: datetime) -> Sequence[str]:
        """Providers whose status is not offline although no node holds a socket of theirs and no linger timer runs."""


class Zones(Protocol):
    """Zones as sets, and the figures counted for each."""

    async def put_all(self, collection: Mapping[str, Any], organisation_id: str | None) -> Imported:
        """Adds and changes the zones of a GeoJSON FeatureCollection, in one organisation's set or the marketplace's.

        Raises ``InvalidParams`` with a problem per feature that is unfit or overlaps another of the set.
        """

    async def covered_by(self, zone_id: str, provider_ids: Collection[str]) -> bool: ...
    async def of_providers(self, provider_ids: Collection[str]) -> Collection[str]:
        """Zones that any of them covers."""

    async def count(self, zone_id: str) -> Counted: ...
    def cells(self, counted: Counted, resolution: int) -> list[JSON]:
        """H3 cells with demand or supply, by id."""

    async def figures(self, zone_id: str) -> Figures | None: ...
    async def lock_figures(self, zone_id: str) -> Figures | None: ...
    async def save_figures(self, zone_id: str, figures: Figures) -> None:
        """Adds version 1, or takes the place of the version before; two that add at once start over."""

    async def drifted(self) -> Collection[str]:
        """Zones whose demand or supply is not what was told: somebody had no time to tell."""


class Calendars(Protocol):
    """Providers' calendars and the holds on their time. What changes them holds the provider's lock."""

    async def get(self, provider_id: str) -> Calendar | None: ...
    async def save(self, calendar: Calendar) -> None:
        """Adds the calendar, or takes the place of the one before."""

    async def exception(self, exception_id: str) -> CalendarException | None: ...
    async def add_exception(self, exception: CalendarException) -> None: ...
    async def remove_exception(self, exception_id: str) -> None: ...
    async def exceptions_to_come(self, provider_id: str, now: datetime) -> int: ...
    async def plans(
        self, provider_ids: Collection[str], within: Interval, now: datetime, *, everybody: bool = False
    ) -> Mapping[str, Plan]:
        """Everything in the calendars of those that have one, or of ``everybody``, from a day before to a day after
        this time.
        """

    async def planned(self, service_id: str, zone_id: str, limit: int) -> Sequence[Provider]:
        """Verified providers with the skill, the zone and rules, the best rated first."""

    async def offers(self, provider_id: str, service_id: str, zone_id: str) -> bool:
        """Whether the provider is verified and offers the service in the zone."""

    async def reach(self, provider_id: str, limit: int) -> Sequence[tuple[str, str]]:
        """Pairs of service and zone that this provider works in."""

    async def hold(self, hold_id: str) -> Hold | None: ...
    async def add_hold(self, hold: Hold) -> None: ...
    async def remove_hold(self, hold_id: str) -> None: ...
    async def holds_of(self, customer_id: str, now: datetime) -> int:
        """How many a customer has that count."""


class CalendarSync(Protocol):
    """Feeds of calendars, and sources of busy times."""

    async def put_feed(self, provider_id: str, user_id: str, token_hash: str) -> None:
        """Adds a person's feed, in place of the one before."""

    async def remove_feed(self, provider_id: str, user_id: str) -> None: ...
    async def provider_of_feed(self, token_hash: str) -> str | None:
        """Whose jobs a token shows, while the person it was given to is a member and not disabled."""

    async def jobs(self, provider_id: str, within: Interval, limit: int) -> Sequence[Booking]:
        """Those with an agreed time, cancelled ones too, the earliest first."""

    async def source(self, source_id: str) -> Source | None: ...
    async def sources(self, provider_id: str) -> Sequence[Source]:
        """By name."""

    async def add_source(self, source: Source) -> None: ...
    async def save_source(self, source: Source) -> None:
        """What was found there."""

    async def remove_source(self, source_id: str) -> None:
        """With its times."""

    async def replace_times(self, source: Source, times: Sequence[Interval]) -> bool:
        """Whether they differ from those before."""


class SeriesOfBookings(Protocol):
    """Series and what was made of them. Everything about a series happens under the lock of its row."""

    async def add(self, series: Series) -> None: ...
    async def get(self, series_id: str) -> Series | None: ...
    async def lock(self, series_id: str) -> Series | None: ...
    async def save(self, series: Series) -> None: ...
    async def of_customer(self, customer_id: str, limit: int) -> Sequence[Series]:
        """Active ones first, newest first."""

    async def active(self, customer_id: str) -> int: ...
    async def instances(self, series_id: str, since: datetime, limit: int) -> Sequence[Instance]:
        """Those whose recurrence id is not before, in order."""

    async def instance(self, series_id: str, recurrence_id: datetime) -> Instance | None: ...
    async def put_instance(self, instance: Instance) -> None:
        """Adds it, or takes the place of the one with its recurrence id."""

    async def remove_instance(self, instance: Instance) -> None: ...


class Bookings(Protocol):
    """Bookings, and who declined them."""

    async def add(self, booking: Booking) -> None: ...
    async def get(self, booking_id: str) -> Booking | None: ...
    async def lock(self, booking_id: str) -> Booking | None: ...
    async def save(self, booking: Booking) -> None:
        """One conditional write: succeeds only over the version before; raises ``Conflict`` otherwise."""

    async def save_wave(self, booking: Booking) -> None:
        """Notes how far dispatch is. Nobody outside sees it, so the version stays."""

    async def of(self, actor: Actor, status: Status | None, before: str | None, limit: int) -> Sequence[Booking]:
        """What this person may see, newest first."""

    async def clashes(self, provider_id: str, during: Interval, *, soon: bool, except_id: str) -> bool:
        """Whether the provider has a confirmed job in this time; for work that is soon, also any job under way."""

    async def under_way(self, provider_id: str) -> Sequence[Booking]: ...
    async def busy(self, provider_ids: Sequence[str]) -> set[str]:
        """Those of the providers that have a job under way."""

    async def committed(self, provider_id: str) -> Sequence[Booking]:
        """Jobs under way and confirmed ones to come, oldest first, at most 100."""

    async def waiting_in_reach_of(self, provider_id: str) -> Sequence[str]:
        """Bookings awaiting assignment without a live offer that this provider has the skill and zone for."""

    async def decline(self, booking_id: str, provider_id: str) -> None:
        """This provider is not asked again for this booking."""

    async def save_sla(self, booking: Booking) -> None:
        """Writes the clocks alone; their own version rises, the booking's stays."""

    async def soonest_due(self, zone_id: str | None, now: datetime, limit: int) -> Sequence[Booking]:
        """Bookings with a deadline to come, the soonest first."""

    async def sla_policies(self, service_id: str | None = None, zone_id: str | None = None) -> Sequence[SlaPolicy]:
        """Every policy, or those that hold for a service in a zone."""

    async def put_sla_policy(self, policy: SlaPolicy) -> SlaPolicy:
        """Adds the policy, or takes the place of the one for the same service and zone, raising its version."""


class Offers(Protocol):
    """Offers of bookings to providers."""

    async def add_all(self, offers: Sequence[Offer]) -> None: ...
    async def get(self, offer_id: str) -> Offer | None: ...
    async def live_of_booking(self, booking_id: str) -> Sequence[Offer]: ...
    async def accepted_of_booking(self, booking_id: str) -> Sequence[Offer]:
        """The offer that won, if the booking is taken."""

    async def live_of_providers(self, provider_ids: Collection[str], now: datetime) -> Sequence[Offer]: ...
    async def close_all(self, offers: Sequence[Offer]) -> None:
        """Writes the status, the time and the reason of offers that are live no longer."""

    async def delivered(self, offer_ids: Collection[str], now: datetime) -> None:
        """Marks those that are only ``sent``."""


class Conversations(Protocol):
    """Messages and read marks."""

    async def open(self, conversation_id: str) -> None: ...
    async def lock(self, conversation_id: str) -> Conversation | None: ...
    async def get(self, conversation_id: str) -> Conversation | None: ...
    async def append(self, message: Message) -> None:
        """Adds the message and moves the conversation's last offset to it."""

    async def page(self, conversation_id: str, before: int | None, limit: int) -> Sequence[Message]:
        """Newest messages with ``offset < before``, oldest first."""

    async def read_marks(self, conversation_id: str) -> Mapping[str, int]: ...
    async def set_read_mark(self, conversation_id: str, user_id: str, offset: int) -> None: ...
    async def unread(self, conversation_id: str, user_id: str) -> int:
        """Messages by others past the person's read mark."""


class Notifications(Protocol):
    """What people are told outside their sockets. A delivery is locked before its notification."""

    async def add(self, notification: Notification) -> None: ...
    async def lock(self, notification_id: str) -> Notification | None: ...
    async def save(self, notification: Notification) -> None:
        """Writes when and why it ended."""

    async def of(self, user_id: str, before: str | None, limit: int) -> Sequence[Notification]:
        """The person's, newest first."""

    async def open_in(self, user_id: str, thread: str) -> Sequence[Notification]: ...
    async def add_deliveries(self, deliveries: Sequence[Delivery]) -> None: ...
    async def due(self, now: datetime, limit: int) -> Sequence[Delivery]:
        """Locks waiting deliveries due at ``now``, oldest first; others skip them until the transaction ends."""

    async def lock_delivery(self, notification_id: str, medium: Medium) -> Delivery | None: ...
    async def save_delivery(self, delivery: Delivery) -> None: ...
    async def by_reference(self, carrier: str, reference: str) -> Delivery | None: ...
    async def heard(self, conversation_id: str) -> Mapping[str, int]:
        """How far each person's sockets have acked, or the person has read, the conversation: message offsets."""

    async def mark_heard(self, conversation_id: str, user_id: str, offset: int) -> None:
        """Only ever moves forward."""

    async def preferences(self, user_id: str) -> Preferences: ...
    async def save_preferences(self, preferences: Preferences) -> None: ...
    async def put_push_token(self, token: PushToken) -> None: ...
    async def push_tokens(self, user_id: str) -> Sequence[PushToken]:
        """Those registered from sign-ins that have not ended, oldest first."""

    async def remove_push_token(self, token_hash: str) -> None: ...


class Timers(Protocol):
    """Things to do at a time, in the transaction, surviving restarts."""

    async def set(self, name: str, due_at: datetime, kind: str, data: JSON) -> None:
        """Sets or moves the timer of this name."""

    async def cancel(self, name: str) -> None: ...
    async def due(self, now: datetime, limit: int) -> Sequence[Timer]:
        """Claims timers due at ``now``, oldest first, until the transaction ends; other workers skip them meanwhile."""

    async def done(self, timer: Timer) -> None:
        """Removes a claimed timer. One that its own handler has moved to another time stays."""


@dataclass(frozen=True, slots=True)
class Timer:
    """A timer that is set; ``attempts`` counts its failures so far."""

    name: str
    kind: str
    due_at: datetime
    data: JSON
    attempts: int


class UnitOfWork(Protocol):
    """One transaction; see the module's rules."""

    @property
    def now(self) -> datetime:
        """The instant of this transaction; one for all that happens in it."""

    @property
    def origin(self) -> Origin: ...
    @property
    def people(self) -> People: ...
    @property
    def factors(self) -> Factors: ...
    @property
    def challenges(self) -> Challenges: ...
    @property
    def devices(self) -> Devices: ...
    @property
    def organisations(self) -> Organisations: ...
    @property
    def flags(self) -> Flags: ...
    @property
    def audit(self) -> AuditLog: ...
    @property
    def market(self) -> Market: ...
    @property
    def zones(self) -> Zones: ...
    @property
    def calendars(self) -> Calendars: ...
    @property
    def calendar_sync(self) -> CalendarSync: ...
    @property
    def calendar_reader(self) -> CalendarReader: ...
    @property
    def series(self) -> SeriesOfBookings: ...
    @property
    def recurrences(self) -> Recurrences: ...
    @property
    def bookings(self) -> Bookings: ...
    @property
    def offers(self) -> Offers: ...
    @property
    def conversations(self) -> Conversations: ...
    @property
    def notifications(self) -> Notifications: ...
    @property
    def timers(self) -> Timers: ...
    @property
    def keys(self) -> IdempotencyKeys: ...
    def attest(self, fact: SecurityFact) -> None:
        """The fact is in the audit log if, and only if, this transaction commits. It is written right before the commit
        and told on the admins' security channel.
        """

    def record(self, event: Event) -> None:
        """The event reaches its subscribers if, and only if, this transaction commits."""


class IdempotencyKeys(Protocol):
    """Results of commands by the caller's key."""

    async def once(
        self, user_id: str, key: str, fingerprint: str, now: datetime, work: Callable[[], Awaitable[JSON]]
    ) -> JSON:
        """Does the work and keeps its result, or returns what an earlier attempt with this key has kept.

        Raises:
            KeyReused: the key was used with another fingerprint.
            FixnadoError: what the work refuses; refusals are not kept, so a retry is judged anew.
        """


class Transactions(Protocol):
    """Runs use cases in transactions."""

    async def write(self, work: Callable[[UnitOfWork], Awaitable[T]], origin: Origin) -> T:
        """Runs ``work`` and commits; runs it again, whole, when it lost to a deadlock or a duplicate key.

        Raises:
            Unavailable: the database is away, or collisions went on; at COMMIT the outcome is unknown, and a retry with
                the same idempotency key finds out.
        """

    async def read(self, work: Callable[[UnitOfWork], Awaitable[T]]) -> T:
        """Runs ``work`` in a read-only transaction."""


class Passwords(Protocol):
    """Hashes and checks passwords off the loop."""

    async def hash(self, password: str) -> str: ...
    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Does the same work when there is no hash to check against."""

    def needs_rehash(self, password_hash: str) -> bool: ...


class AccessTokens(Protocol):
    """Makes short-lived access tokens."""

    def issue(self, user_id: str, session_id: str, now: datetime) -> tuple[str, datetime]:
        """The token and when it ends."""


class Vault(Protocol):
    """Keeps small secrets so that the database alone gives none away."""

    async def seal(self, plain: bytes, *, owner: str, purpose: str) -> str:
        """Text that :meth:`open` turns back, for the same owner and purpose alone.

        Raises:
            Unavailable: the key is away.
        """

    async def open(self, sealed: str, *, owner: str, purpose: str) -> bytes:
        """What was sealed.

        Raises:
            Unavailable: the key is away, or the text was not sealed for this owner and purpose.
        """


class OneTimeCodes(Protocol):
    """Time-based one-time codes (RFC 6238)."""

    def new_secret(self) -> str:
        """160 random bits in base 32."""

    def matching_step(self, secret: str, code: str, now: datetime) -> int | None:
        """The time step whose code this is: the present one, the one before or the one after."""

    def uri(self, secret: str, account: str) -> str:
        """What authenticator apps read."""

    def qr_svg(self, uri: str) -> str:
        """The same as a picture."""


class Messenger(Protocol):
    """Messages to people outside the product."""

    async def send(self, letter: Letter) -> None:
        """Hands the letter over; it is on its way when this returns, not yet there. Never waits for a post office.

        Raises:
            Unavailable: letters are not being taken.
        """


class Limiter(Protocol):
    """Counts by subject; one process's, or shared by all. ``subject`` is an address or a hash, never an e-mail
    address.
    """

    async def take(self, rate: Rate, subject: str) -> float:
        """Takes one from the subject's bucket; 0, or seconds to wait when there was none."""

    async def attempt(self, delays: Delays, subject: str) -> float:
        """0 when the subject may try now, else seconds to wait; for what is counted only by :meth:`failed`. Past the
        free failures one attempt is let through per delay, however many come at once.
        """

    async def charge(self, delays: Delays, subject: str) -> float:
        """An attempt that counts as failed until :meth:`refund` or :meth:`forget` says otherwise: 0 when the subject
        may try now, else seconds to wait, and then nothing is counted. Asked and counted in one step, so that however
        many come at once, no more pass than would one after the other.
        """

    async def refund(self, delays: Delays, subject: str) -> None:
        """One charge was for nothing: the attempt never took place. A delay that has begun stays."""

    async def failed(self, delays: Delays, subject: str) -> None: ...
    async def forget(self, delays: Delays, subject: str) -> None: ...
    async def failures(self, delays: Delays, subject: str) -> int:
        """Failures that are not forgotten yet."""


class SecurityEvents(Protocol):
    """What people who watch over security want to know of what changes nothing: a wrong password, a refusal. What does
    change something is attested in its own transaction (:meth:`UnitOfWork.attest`).
    """

    async def record(self, kind: SecurityKind, user_id: str | None, details: JSON) -> None:
        """Called once what it tells has happened. ``details`` holds no secrets. Never fails its caller."""
