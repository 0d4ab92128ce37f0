"""Who carries messages to people, and what happens when one of them does not.

A :class:`Route` is a medium's carriers in order of preference. Each has a circuit of its own: one that failed a few
times in a row is passed over at once, and tried again after a pause. So a parcel goes by the first carrier that takes
it, and a carrier that is away costs nobody more than its time-out, and that only a few times. What a carrier says of
one parcel is no failure of it: a number that nobody can send to keeps nobody else's text messages back.

Every carrier bounds its call; nothing here is on anybody's request path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import httpx

from domain.errors import Unavailable
from server.aws import Aws, AwsRefusal, Circuit
from server.telemetry import logger

log = logger(__name__)

MOST_CARRIERS = 2
"""Of one medium: each may take its whole time before the next is asked."""

CALL_SECONDS = 8.0
FAILURES_TO_OPEN = 3
OPEN_SECONDS = 15.0

TWILIO = "https://api.twilio.com"
SENDGRID = "https://api.sendgrid.com"

TWILIO_NO_SUCH_RECIPIENT = frozenset({21211, 21214, 21217, 21408, 21610, 21612, 21614})
"""Invalid, unreachable or unsubscribed numbers: https://www.twilio.com/docs/api/errors."""

AWS_NO_SUCH_RECIPIENT = frozenset({"InvalidParameter", "InvalidParameterValue", "InvalidParameterException"})
"""What SES says of an address that is none, and SNS of a number that is none or has opted out."""

AWS_NOT_THIS = frozenset({"MessageRejected", "ValidationError", "ValidationException"})
"""What it will not send, while it sends others."""

ABOUT_ONE = frozenset({400, 404, 409, 410, 413, 415, 422})
"""HTTP statuses that speak of the request; others of the account, the rate or the carrier."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """One message to one address. Neither the address nor the text shows in a ``repr``.

    Attributes:
        to: e-mail address, E.164 number, or a device's token.
        data: ids for the app that opens it.
        notification_id: which notification it is; carriers that can hand it back with their reports.
        thread: a device shows the newest of a thread.
        expires_at: of no use from then on.
    """

    to: str = field(repr=False)
    title: str = field(repr=False)
    text: str = field(repr=False)
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)
    notification_id: str = ""
    thread: str = ""
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """A carrier has it; ``reference`` is its own id for it."""

    carrier: str
    reference: str | None


class Undeliverable(Exception):
    """There is no such recipient: no other carrier and no later try would help. ``reason`` is short and has no
    address.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Refused(Unavailable):
    """The carrier is there, and does not take this parcel. Another one may."""


class Carrier(Protocol):
    """Takes parcels of one medium."""

    name: str

    async def carry(self, parcel: Parcel) -> str | None:
        """Hands it over; returns the carrier's id for it.

        Raises:
            Refused: not this one.
            Unavailable: not this time.
            Undeliverable: not to this address, ever.
        """


class Route:
    """The carriers of one medium, the preferred one first; :data:`MOST_CARRIERS` at most."""

    def __init__(self, carriers: Sequence[Carrier], *, open_seconds: float | None = None) -> None:
        assert len(carriers) <= MOST_CARRIERS, "more would outlast a courier's claim"
        self._carriers = [(carrier, Circuit(FAILURES_TO_OPEN, open_seconds or OPEN_SECONDS)) for carrier in carriers]

    async def carry(self, parcel: Parcel) -> Taken:
        """Hands the parcel to the first carrier that takes it.

        Raises:
            Refused: none does, and at least one is there.
            Unavailable: none does, now.
            Undeliverable: one that answers says that nobody is there.
        """
        none_takes_it = Unavailable()
        for carrier, circuit in self._carriers:
            if not circuit.lets_through():
                continue
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    reference = await carrier.carry(parcel)
            except Refused as error:
                circuit.note(well=True)
                none_takes_it = error
            except (Unavailable, TimeoutError):
                circuit.note(well=False)
                log.warning("carrier_failed", carrier=carrier.name)
            except Undeliverable:
                circuit.note(well=True)
                raise
            else:
                circuit.note(well=True)
                return Taken(carrier.name, reference)
        raise none_takes_it


class SesMail:
    """E-mail by AWS SES."""

    name = "ses"

    def __init__(self, aws: Aws, sender: str) -> None:
        self._aws = aws
        self._sender = sender

    async def carry(self, parcel: Parcel) -> str | None:
        answer = await _sent(
            self._aws,
            "ses",
            "send_email",
            Source=self._sender,
            Destination={"ToAddresses": [parcel.to]},
            Message={
                "Subject": {"Data": parcel.title, "Charset": "UTF-8"},
                "Body": {"Text": {"Data": parcel.text, "Charset": "UTF-8"}},
            },
        )
        return str(answer["MessageId"])


class SnsText:
    """Text messages by AWS SNS."""

    name = "sns"

    def __init__(self, aws: Aws) -> None:
        self._aws = aws

    async def carry(self, parcel: Parcel) -> str | None:
        kind = {"AWS.SNS.SMS.SMSType": {"DataType": "String", "StringValue": "Transactional"}}
        answer = await _sent(
            self._aws, "sns", "publish", PhoneNumber=parcel.to, Message=parcel.text, MessageAttributes=kind
        )
        return str(answer["MessageId"])


async def _sent(aws: Aws, service: str, operation: str, **params: Any) -> Any:
    """What AWS says to one parcel.

    Raises:
        Undeliverable, Refused, Unavailable: as :meth:`Carrier.carry`.
    """
    try:
        return await aws.call(service, operation, **params)
    except AwsRefusal as error:
        if error.reason in AWS_NO_SUCH_RECIPIENT:
            raise Undeliverable(f"{service} {error.reason}") from error
        if error.reason in AWS_NOT_THIS:
            raise Refused from error
        raise


@dataclass(frozen=True, slots=True)
class TwilioAccount:
    """Where text messages go when SNS does not take them.

    Attributes:
        sender: a number in E.164 form, or the id of a messaging service (``MG…``).
        callback_url: where Twilio reports to; no reports without it.
        url: of its API.
    """

    sid: str
    token: str = field(repr=False)
    sender: str
    callback_url: str | None = None
    url: str = TWILIO


class TwilioText:
    """Text messages by Twilio."""

    name = "twilio"

    def __init__(self, http: httpx.AsyncClient, account: TwilioAccount) -> None:
        self._http = http
        self._account = account

    async def carry(self, parcel: Parcel) -> str | None:
        account = self._account
        sender = "MessagingServiceSid" if account.sender.startswith("MG") else "From"
        form = {"To": parcel.to, sender: account.sender, "Body": parcel.text}
        if account.callback_url is not None and parcel.notification_id:
            # Part of what Twilio signs, so a report finds its delivery even before the hand-over is noted.
            form["StatusCallback"] = f"{account.callback_url}?notification={parcel.notification_id}"
        answer = await asked(
            self._http,
            "POST",
            f"{account.url}/2010-04-01/Accounts/{account.sid}/Messages.json",
            data=form,
            auth=(account.sid, account.token),
        )
        shape = json_of(answer)
        if answer.status_code == 400 and shape.get("code") in TWILIO_NO_SUCH_RECIPIENT:
            raise Undeliverable(f"twilio {shape['code']}")
        if not answer.is_success:
            raise refused(self.name, answer)
        return str(shape.get("sid"))


class SendGridMail:
    """E-mail by SendGrid."""

    name = "sendgrid"

    def __init__(self, http: httpx.AsyncClient, key: str, sender: str, url: str = SENDGRID) -> None:
        self._http = http
        self._key = key
        self._sender = sender
        self._url = url

    async def carry(self, parcel: Parcel) -> str | None:
        to: dict[str, Any] = {"to": [{"email": parcel.to}]}
        if parcel.notification_id:
            to["custom_args"] = {"notification": parcel.notification_id}
        answer = await asked(
            self._http,
            "POST",
            f"{self._url}/v3/mail/send",
            headers={"authorization": f"Bearer {self._key}"},
            json={
                "personalizations": [to],
                "from": {"email": self._sender},
                "subject": parcel.title,
                "content": [{"type": "text/plain", "value": parcel.text}],
                # Links in our letters are ours, not a tracker's.
                "tracking_settings": {"click_tracking": {"enable": False}, "open_tracking": {"enable": False}},
            },
        )
        if answer.status_code == 400 and _names_recipient(json_of(answer)):
            raise Undeliverable("sendgrid 400")
        if not answer.is_success:
            raise refused(self.name, answer)
        reference: str | None = answer.headers.get("x-message-id")
        return reference


def _names_recipient(shape: Mapping[str, Any]) -> bool:
    """Whether what SendGrid finds wrong is the address; ours are all in ``personalizations.0.to.0``."""
    errors = shape.get("errors")
    fields = [str(error.get("field")) for error in errors or () if isinstance(error, dict)]
    return any(field.startswith("personalizations.0.to") for field in fields)


def client() -> httpx.AsyncClient:
    """For calls to carriers: bounded in time and connections, of which each device of a person takes one for a moment.
    Its owner closes it.
    """
    return httpx.AsyncClient(
        timeout=httpx.Timeout(5.0, connect=2.0),
        limits=httpx.Limits(max_connections=100, max_keepalive_connections=20),
        follow_redirects=False,
    )


async def asked(http: httpx.AsyncClient, method: str, url: str, **request: Any) -> httpx.Response:
    """The answer.

    Raises:
        Unavailable: there is none.
    """
    try:
        return await http.request(method, url, **request)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable from error


def json_of(answer: httpx.Response) -> Mapping[str, Any]:
    """The JSON object in an answer, or an empty one."""
    try:
        shape = answer.json()
    except ValueError:
        return {}
    return shape if isinstance(shape, dict) else {}


def refused(carrier: str, answer: httpx.Response) -> Unavailable:
    """The error for an answer that is none of the above. Its text may quote addresses, so it stays out of the log."""
    log.warning("carrier_refused", carrier=carrier, status=answer.status_code)
    return Refused() if answer.status_code in ABOUT_ONE else Unavailable()
