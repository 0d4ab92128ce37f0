"""What carriers report later, at addresses of ours, signed.

========================  ====================================================================  ==================
``POST /callbacks/sns``     SES's deliveries, bounces and complaints, by way of an SNS topic       RSA, X.509
``POST /callbacks/twilio``  what became of a text message                                          HMAC-SHA1
``POST /callbacks/sendgrid``  what became of mails, several at once                                ECDSA
========================  ====================================================================  ==================

Nothing in a body counts before its signature is verified, and an address whose secret is not configured is not there.
A report that comes twice, late, or recorded by somebody and sent again, changes nothing: a delivery's status only moves
forward (:data:`domain.notifications.ORDER`), and what is older than a day is refused where the signature covers a time.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import httpx
import orjson
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from domain import reaching
from domain.commands import Desk
from domain.context import Context
from domain.errors import FixnadoError, Unavailable
from domain.letters import Medium
from domain.notifications import DeliveryStatus
from domain.reaching import Report
from server.aws import Aws
from server.telemetry import logger

log = logger(__name__)

MAX_BODY_BYTES: Final = 1 << 20
MOST_REPORTS: Final = 1_000
"""In one call; SendGrid sends fewer."""

OLDEST_SECONDS: Final = 86_400.0
"""Carriers repeat a call for a day at most."""

AHEAD_SECONDS: Final = 300.0

_SNS_HOST: Final = re.compile(r"sns\.[a-z0-9-]{2,32}\.amazonaws\.com(\.cn)?")
_SNS_SIGNED: Final = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
}
"""https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html; a Subject may be absent."""

_TWILIO: Final[Mapping[str, DeliveryStatus]] = {
    "delivered": DeliveryStatus.DELIVERED,
    "read": DeliveryStatus.DELIVERED,
    "undelivered": DeliveryStatus.FAILED,
    "failed": DeliveryStatus.FAILED,
}
_SENDGRID: Final[Mapping[str, DeliveryStatus]] = {
    "delivered": DeliveryStatus.DELIVERED,
    "bounce": DeliveryStatus.FAILED,
    "dropped": DeliveryStatus.FAILED,
    "spamreport": DeliveryStatus.FAILED,
}
_SES: Final[Mapping[str, DeliveryStatus]] = {
    "Delivery": DeliveryStatus.DELIVERED,
    "Bounce": DeliveryStatus.FAILED,
    "Complaint": DeliveryStatus.FAILED,
}


class BadSignature(FixnadoError):
    """Nobody we know has signed this."""

    type = "bad_signature"
    status = 403
    code = -32003
    default_message = "The signature is not right."


class BadReport(FixnadoError):
    """It is signed, and means nothing."""

    type = "bad_report"
    status = 400
    code = -32600
    default_message = "The report cannot be understood."


@dataclass(frozen=True, slots=True)
class CallbackSecrets:
    """By what callbacks are verified; what is not set is not served.

    Attributes:
        topics: ARNs of the SNS topics whose messages count.
        twilio_token: the account's.
        sendgrid_key: the verification key of the signed event webhook: base64 of a DER public key.
        public_url: our address as carriers see it; Twilio signs it.
    """

    topics: frozenset[str] = frozenset()
    twilio_token: str | None = field(default=None, repr=False)
    sendgrid_key: str | None = None
    public_url: str = ""


class SigningCertificates:
    """AWS's certificates for SNS, fetched from AWS alone and kept."""

    MOST = 20

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._known: dict[str, rsa.RSAPublicKey] = {}

    async def __call__(self, url: str) -> rsa.RSAPublicKey:
        """The public key of the certificate at this address.

        Raises:
            BadSignature: it is not AWS's address, or no certificate.
            Unavailable: AWS does not answer.
        """
        parts = urlsplit(url)
        if (
            parts.scheme != "https"
            or not _SNS_HOST.fullmatch(parts.netloc)
            or not re.fullmatch(r"/[A-Za-z0-9_-]+\.pem", parts.path)
            or parts.query
        ):
            raise BadSignature
        if url not in self._known:
            try:
                answer = await self._http.get(url)
            except httpx.HTTPError as error:
                raise Unavailable from error
            if not answer.is_success:
                raise Unavailable
            if len(self._known) >= self.MOST:
                self._known.clear()
            self._known[url] = public_key_of(answer.content)
        return self._known[url]


def public_key_of(pem: bytes) -> rsa.RSAPublicKey:
    """The key of a certificate that counts now.

    Raises:
        BadSignature: it does not, or is none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise BadSignature from None
    key = certificate.public_key()
    now = datetime.now(UTC)
    if not isinstance(key, rsa.RSAPublicKey):
        raise BadSignature
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise BadSignature
    return key


class Callbacks:
    """The endpoints."""

    def __init__(
        self,
        desk: Desk,
        secrets: CallbackSecrets,
        aws: Aws,
        certificate: Callable[[str], Awaitable[rsa.RSAPublicKey]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._desk = desk
        self._secrets = secrets
        self._aws = aws
        self._certificate = certificate
        self._clock = clock

    def routes(self) -> list[BaseRoute]:
        """Those whose secrets are there."""
        routes: list[BaseRoute] = []
        if self._secrets.topics:
            routes.append(Route("/callbacks/sns", self._sns, methods=["POST"]))
        if self._secrets.twilio_token is not None:
            routes.append(Route("/callbacks/twilio", self._twilio, methods=["POST"]))
        if self._secrets.sendgrid_key is not None:
            routes.append(Route("/callbacks/sendgrid", self._sendgrid, methods=["POST"]))
        return routes

    # --- SNS ----------------------------------------------------------------------------------------------------------

    async def _sns(self, request: Request) -> Response:
        envelope = _object(await _body(request))
        if envelope.get("TopicArn") not in self._secrets.topics:
            raise BadSignature
        await self._verify_sns(envelope)
        self._check_age(_seconds(envelope["Timestamp"]))
        if envelope["Type"] == "SubscriptionConfirmation":
            # By the API, not by the address in the message: we fetch nothing that a message names.
            await self._aws.call("sns", "confirm_subscription", TopicArn=envelope["TopicArn"], Token=envelope["Token"])
            return _thanks()
        about = _object(str(envelope["Message"]).encode())
        mail = about.get("mail")
        status = _SES.get(str(about.get("notificationType") or about.get("eventType")))
        if not isinstance(mail, dict) or status is None:
            return _thanks()
        reason = str(about["bounce"].get("bounceType", "bounce")) if isinstance(about.get("bounce"), dict) else None
        report = Report(status, "ses", str(mail.get("messageId")), _short(reason))
        fresh = self._clock() - _seconds(envelope["Timestamp"]) < AHEAD_SECONDS
        if not await self._note_reference(report, request) and fresh:
            # It may have overtaken the note of its own hand-over: SNS comes again.
            raise Unavailable
        return _thanks()

    async def _verify_sns(self, envelope: Mapping[str, Any]) -> None:
        signed = _SNS_SIGNED.get(str(envelope.get("Type")))
        if signed is None or not all(
            isinstance(envelope.get(name), str) for name in {*signed, "SigningCertURL", "Signature"} - {"Subject"}
        ):
            raise BadSignature
        lines = [f"{name}\n{envelope[name]}\n" for name in signed if name in envelope]
        # Version 1 is SHA-1; topics can be told to sign by version 2.
        if envelope.get("SignatureVersion") != "2":
            raise BadSignature
        key = await self._certificate(envelope["SigningCertURL"])
        try:
            key.verify(_decoded(envelope["Signature"]), "".join(lines).encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            raise BadSignature from None

    # --- Twilio -------------------------------------------------------------------------------------------------------

    async def _twilio(self, request: Request) -> Response:
        """https://www.twilio.com/docs/usage/security: the address and the sorted fields, by HMAC with the token."""
        body = await _body(request)
        try:
            fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=200, strict_parsing=bool(body))
        except (UnicodeDecodeError, ValueError):
            raise BadSignature from None
        query = f"?{request.url.query}" if request.url.query else ""
        signed = f"{self._secrets.public_url}{request.url.path}{query}" + "".join(
            f"{name}{value}" for name, value in sorted(set(fields))
        )
        token = (self._secrets.twilio_token or "").encode()
        right = base64.b64encode(hmac.new(token, signed.encode(), hashlib.sha1).digest()).decode()
        if not hmac.compare_digest(right.encode(), request.headers.get("x-twilio-signature", "").encode()):
            raise BadSignature
        told = dict(fields)
        status = _TWILIO.get(told.get("MessageStatus", ""))
        if status is not None:
            error = told.get("ErrorCode")
            report = Report(status, "twilio", told.get("MessageSid"), _short(f"twilio {error}" if error else None))
            about = request.query_params.get("notification", "")
            await self._note([(about, Medium.SMS, report)], request)
        return _thanks()

    # --- SendGrid -----------------------------------------------------------------------------------------------------

    async def _sendgrid(self, request: Request) -> Response:
        """https://www.twilio.com/docs/sendgrid/for-developers/tracking-events: ECDSA over the time and the body."""
        body = await _body(request)
        stamp = request.headers.get("x-twilio-email-event-webhook-timestamp", "")
        signature = _decoded(request.headers.get("x-twilio-email-event-webhook-signature", ""))
        key = sendgrid_key(self._secrets.sendgrid_key or "")
        try:
            key.verify(signature, stamp.encode() + body, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise BadSignature from None
        if not re.fullmatch(r"[0-9]{1,12}", stamp):
            raise BadSignature
        self._check_age(float(stamp))
        try:
            events = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise BadReport from None
        if not isinstance(events, list) or len(events) > MOST_REPORTS:
            raise BadReport
        reports: list[tuple[str, Medium, Report]] = []
        for event in events:
            status = _SENDGRID.get(str(event.get("event"))) if isinstance(event, dict) else None
            if status is not None and isinstance(event.get("notification"), str):
                reference = str(event.get("sg_message_id", "")).partition(".")[0] or None
                reason = str(event.get("event")) if status is DeliveryStatus.FAILED else None
                reports.append((event["notification"], Medium.EMAIL, Report(status, "sendgrid", reference, reason)))
        await self._note(reports, request)
        return _thanks()

    # --- all ----------------------------------------------------------------------------------------------------------

    async def _note(self, reports: Sequence[tuple[str, Medium, Report]], request: Request) -> None:
        async def work(ctx: Context) -> None:
            # In one order, so that two calls about the same deliveries do not wait for each other.
            for notification_id, medium, report in sorted(reports, key=lambda each: each[0]):
                await reaching.note(ctx, notification_id, medium, report)

        if reports:
            await self._desk.run_as_system(work, request.state.origin)

    async def _note_reference(self, report: Report, request: Request) -> bool:
        async def work(ctx: Context) -> bool:
            return await reaching.note_by_reference(ctx, report.carrier or "", report.reference or "", report)

        return await self._desk.run_as_system(work, request.state.origin)

    def _check_age(self, seconds: float) -> None:
        if not -AHEAD_SECONDS <= self._clock() - seconds <= OLDEST_SECONDS:
            raise BadSignature


def sendgrid_key(text: str) -> ec.EllipticCurvePublicKey:
    """The verification key that SendGrid shows.

    Raises:
        BadSignature: it is none.
    """
    try:
        key = serialization.load_der_public_key(_decoded(text))
    except (ValueError, UnsupportedAlgorithm):
        raise BadSignature from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise BadSignature
    return key


async def _body(request: Request) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise BadReport
        chunks.append(chunk)
    return b"".join(chunks)


def _object(text: bytes) -> dict[str, Any]:
    try:
        shape = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadReport from None
    if not isinstance(shape, dict):
        raise BadReport
    return shape


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadSignature from None


def _seconds(timestamp: str) -> float:
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        raise BadSignature from None


def _short(reason: str | None) -> str | None:
    return reason and reason[:200]


def _thanks() -> Response:
    return Response(status_code=204)
