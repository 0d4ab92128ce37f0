"""Every way the product refuses, in one tree.

    FixnadoError
    ├── InvalidParams            the request does not fit its schema              422  -32602
    ├── UnknownMethod            no such command                                  404  -32601
    ├── NotAuthenticated         nobody is signed in, or the proof is no good     401  -32001
    │   ├── InvalidToken         malformed, expired, revoked or not for this use
    │   ├── InvalidCode          of a second factor
    │   └── SignInRefused · StepUpRequired · CodeRequired                         403
    ├── Forbidden                not yours, or not there: one shape for both      404  -32003
    ├── TooManyRequests          slow down                                        429  -32029
    ├── Unavailable              a dependency is away; try again                  503  -32603
    └── Refused                  the rules of the domain say no                   409  -32000
        ├── Conflict             somebody else changed it first
        ├── IllegalTransition    the table does not lead there
        ├── KeyReused            idempotency key with other params                422
        ├── OfferTaken · OfferExpired · OfferWithdrawn
        └── …

``type`` is the stable code for machines, the same on the socket and on REST. Only :mod:`channels.protocol` and
:mod:`server.http` turn these into wire shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class FixnadoError(Exception):
    """Root of the tree.

    Attributes:
        type: stable machine code, snake case.
        status: HTTP status of the same refusal on REST.
        code: JSON-RPC 2.0 error code on the socket.
        retryable: whether the same request may succeed later without a change.
        details: extra members for the wire; never secrets.
    """

    type: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    code: ClassVar[int] = -32603
    retryable: ClassVar[bool] = False
    default_message: ClassVar[str] = "Something went wrong on our side."

    def __init__(self, message: str | None = None, **details: Any) -> None:
        self.message = message or self.default_message
        self.details: Mapping[str, Any] = details
        super().__init__(self.message)


class InvalidParams(FixnadoError):
    """The params do not fit the command's schema; ``errors`` says where and why."""

    type = "invalid_params"
    status = 422
    code = -32602
    default_message = "The parameters are not valid."

    def __init__(self, errors: Sequence[Mapping[str, str]], message: str | None = None) -> None:
        super().__init__(message, errors=list(errors))

    @classmethod
    def at(cls, where: str, why: str) -> InvalidParams:
        """One problem at one dotted path, e.g. ``at("location.lat", "outside every zone")``."""
        return cls([{"where": where, "why": why}])


class UnknownMethod(FixnadoError):
    """The catalogue has no such command."""

    type = "unknown_method"
    status = 404
    code = -32601
    default_message = "There is no such method."


class NotAuthenticated(FixnadoError):
    """Nobody is signed in."""

    type = "not_authenticated"
    status = 401
    code = -32001
    default_message = "Sign in first."


class InvalidCredentials(NotAuthenticated):
    """Wrong e-mail or password: the same answer whichever it was."""

    type = "invalid_credentials"
    default_message = "The e-mail address or the password is not right."


class InvalidToken(NotAuthenticated):
    """A token that is malformed, expired, revoked, or meant for something else."""

    type = "invalid_token"
    default_message = "The token is not valid."


class InvalidCode(NotAuthenticated):
    """A one-time or recovery code that is wrong, spent, or late."""

    type = "invalid_code"
    default_message = "The code is not right, or was used before."


class SignInRefused(NotAuthenticated):
    """The password was right, but next to nothing else speaks for this being its owner."""

    type = "sign_in_refused"
    status = 403
    default_message = "This sign-in looks unusual and was refused. Use a device that you have used before."


class StepUpRequired(NotAuthenticated):
    """The person proved who they are too long ago for this; ``POST /auth/step-up`` does it again."""

    type = "step_up_required"
    status = 403
    default_message = "Confirm that it is you first."


class CodeRequired(NotAuthenticated):
    """The account has a second factor, so the password alone is not enough; ``methods`` says what there is."""

    type = "code_required"
    status = 403
    default_message = "A code of your second factor is needed as well."


class Forbidden(FixnadoError):
    """Not allowed, or not there: a stranger cannot tell which."""

    type = "not_found"
    status = 404
    code = -32003
    default_message = "There is no such thing here, or it is not yours."


class TooManyRequests(FixnadoError):
    """The caller is over a limit. ``retry_after_seconds`` says when to come back."""

    type = "too_many_requests"
    status = 429
    code = -32029
    retryable = True
    default_message = "Too many requests."

    def __init__(self, retry_after_seconds: float, message: str | None = None) -> None:
        super().__init__(message, retry_after_seconds=round(retry_after_seconds, 3))
        self.retry_after_seconds = retry_after_seconds


class Unavailable(FixnadoError):
    """A dependency did not answer in time, or a transaction kept colliding. Nothing was changed that a retry
    repeats.
    """

    type = "unavailable"
    status = 503
    retryable = True
    default_message = "The service is busy. Try again with the same key."


class Refused(FixnadoError):
    """The rules of the domain say no."""

    type = "refused"
    status = 409
    code = -32000
    default_message = "That is not possible now."


class Conflict(Refused):
    """The entity moved on since the caller saw it; ``version`` is what it has now."""

    type = "conflict"
    default_message = "Somebody changed this first. Look again."


class IllegalTransition(Refused):
    """The booking table has no such step from here, or not for this caller."""

    type = "illegal_transition"
    default_message = "The booking cannot go there from where it is."


class KeyReused(Refused):
    """The idempotency key was used with other parameters."""

    type = "key_reused"
    status = 422
    default_message = "This key was already used for a different request."


class EmailTaken(Refused):
    """Somebody registered this address."""

    type = "email_taken"
    default_message = "This e-mail address is already registered."


class AlreadyEnrolled(Refused):
    """The second factor is confirmed already; disable it before enrolling another."""

    type = "already_enrolled"
    default_message = "This second factor is in use. Disable it before you enrol another."


class NotEnrolled(Refused):
    """There is no such second factor, or none that waits to be confirmed."""

    type = "not_enrolled"
    default_message = "There is no such second factor."


class OfferTaken(Refused):
    """Another provider won the booking."""

    type = "offer_taken"
    default_message = "Another provider has taken this job."


class OfferExpired(Refused):
    """The offer ran out by the server's clock."""

    type = "offer_expired"
    default_message = "This offer has expired."


class OfferWithdrawn(Refused):
    """The offer was taken back (the booking was cancelled or reassigned) or declined."""

    type = "offer_withdrawn"
    default_message = "This offer is no longer open."


class SlotTaken(Refused):
    """The provider already has a job in that time."""

    type = "slot_taken"
    default_message = "The provider already has a job at that time."


class SlotHeld(SlotTaken):
    """Somebody holds that time: within minutes it is free again, or taken for good. To clients it is taken."""


class SlotClosed(Refused):
    """The provider does not work at that time by its calendar."""

    type = "slot_closed"
    default_message = "The provider does not work at that time."


class HoldExpired(Refused):
    """The hold ran out, was released, or became a booking."""

    type = "hold_expired"
    default_message = "The time is no longer held for you. Look for a free one again."


class TooManyHolds(Refused):
    """The customer has as many holds as one may have at a time."""

    type = "too_many_holds"
    default_message = "You are holding other times. Book or release them first."


class OutsideZones(Refused):
    """No zone covers the place."""

    type = "outside_zones"
    status = 422
    default_message = "We do not serve this place yet."


class NotOnAJob(Refused):
    """A position is shared only while a job is on the way or under way."""

    type = "not_on_a_job"
    default_message = "There is no job on which to share a position."


class StaleFix(Refused):
    """A position from the future, or older than 60 s."""

    type = "stale_fix"
    status = 422
    default_message = "The position is too old or from the future."
