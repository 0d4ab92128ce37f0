"""What identity needs: accounts and sign-ins, second factors, and the outside world around them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from domain.factors import Challenge, CodeGuard, Factor, FactorKind, KnownDevice
    from domain.identity import Actor, Membership, MembershipRole, RefreshToken, Role, SignIn, User
    from domain.letters import Letter
    from domain.limits import Delays, Rate
    from domain.security import SecurityKind
    from domain.types import JSON


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
        """Sign-ins that begin and the change of what they began with take turns at this, and whatever is counted per
        person.
        """

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
