"""Carriers' reports: signed, or nothing; and the same one twice changes nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import urlencode

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID
from sqlalchemy import select
from starlette.applications import Starlette

from domain.catalogue import COMMANDS
from domain.commands import Desk
from domain.errors import Unavailable
from domain.identity import User
from domain.letters import Medium
from domain.notifications import Category, Delivery, DeliveryStatus, Notification
from domain.policy import Policy
from domain.types import JSON, Origin
from persistence import tables
from persistence.database import Database, DatabaseOptions
from persistence.geometry import ZoneIndex
from persistence.migrate import upgrade
from persistence.repositories import SqlUnitOfWork, Units
from persistence.unit_of_work import Transactions
from server.callbacks import BadSignature, Callbacks, CallbackSecrets, SigningCertificates
from server.clock import SystemClock
from server.http import middleware

TOPIC = "arn:aws:sns:eu-west-2:123456789012:mail"
PUBLIC = "https://live.example.test"
TOKEN = "t" * 32
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
CERTIFICATE = "https://sns.eu-west-2.amazonaws.com/SimpleNotificationService-abc.pem"
NOW = datetime.now(UTC)


def sendgrid_public_key(key: ec.EllipticCurvePrivateKey = EC_KEY) -> str:
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


class NotedAws:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str, JSON]] = []

    async def call(self, service: str, operation: str, **params: Any) -> Any:
        self.calls.append((service, operation, params))


class Desks:
    """The endpoints over a database with one notification that three carriers took."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.transactions: Transactions[SqlUnitOfWork] = Transactions(database, SystemClock(), Units(ZoneIndex()))
        self.aws = NotedAws()
        self.certificates: list[str] = []
        secrets = CallbackSecrets(frozenset({TOPIC}), TOKEN, sendgrid_public_key(), PUBLIC)
        desk = Desk(COMMANDS, self.transactions, Policy())
        callbacks = Callbacks(desk, secrets, self.aws, self._certificate)  # type: ignore[arg-type]
        app = Starlette(routes=callbacks.routes(), middleware=middleware(()))
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://inside")

    async def _certificate(self, url: str) -> rsa.RSAPublicKey:
        self.certificates.append(url)
        return RSA_KEY.public_key()

    async def fill(self) -> None:
        about = Notification(
            "n1", "u1", Category.SERVICE, "notice/n1", "notice/n1", "T", "T", {}, NOW, NOW + timedelta(days=1)
        )

        async def work(uow: SqlUnitOfWork) -> None:
            await uow.people.add_user(User("u1", "ann@example.test", "Ann", "-", frozenset()))
            await uow.notifications.add(about)
            taken = DeliveryStatus.HANDED_OVER
            await uow.notifications.add_deliveries(
                [
                    Delivery("n1", Medium.SMS, taken, NOW, 1, "twilio", "SM1"),
                    Delivery("n1", Medium.EMAIL, taken, NOW, 1, "ses", "ses-1"),
                ]
            )

        await self.transactions.write(work, Origin("test"))

    async def statuses(self) -> dict[str, tuple[str, str | None]]:
        async def work(connection: Any) -> Any:
            return (await connection.execute(select(tables.deliveries))).all()

        return {row.medium: (row.status, row.reason) for row in await self.database.read(work)}

    # --- what carriers send ---

    def sns(self, message: JSON | None = None, **changes: Any) -> JSON:
        envelope: JSON = {
            "Type": "Notification",
            "MessageId": "m1",
            "TopicArn": TOPIC,
            "Message": json.dumps(message or {"notificationType": "Delivery", "mail": {"messageId": "ses-1"}}),
            "Timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "SignatureVersion": "2",
            "SigningCertURL": CERTIFICATE,
        } | changes
        names = ["Message", "MessageId", "Timestamp", "TopicArn", "Type"]
        if envelope["Type"] == "SubscriptionConfirmation":
            names = sorted([*names, "SubscribeURL", "Token"])
        signed = "".join(f"{name}\n{envelope[name]}\n" for name in names)
        signature = RSA_KEY.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return envelope | {"Signature": base64.b64encode(signature).decode()}

    async def post_sns(self, envelope: JSON) -> int:
        return (await self.http.post("/callbacks/sns", json=envelope)).status_code

    async def twilio(self, query: str = "?notification=n1", token: str = TOKEN, **fields: str) -> int:
        fields = {"MessageSid": "SM1", "MessageStatus": "delivered", "To": "+447700900123"} | fields
        url = f"/callbacks/twilio{query}"
        signed = PUBLIC + url + "".join(f"{name}{value}" for name, value in sorted(fields.items()))
        signature = base64.b64encode(hmac.new(token.encode(), signed.encode(), hashlib.sha1).digest()).decode()
        headers = {"x-twilio-signature": signature, "content-type": "application/x-www-form-urlencoded"}
        return (await self.http.post(url, content=urlencode(fields), headers=headers)).status_code

    async def sendgrid(
        self, *events: Any, key: ec.EllipticCurvePrivateKey = EC_KEY, at: float | None = None, body: bytes | None = None
    ) -> int:
        stamp = str(int(at if at is not None else time.time()))
        content = json.dumps(events).encode()
        signature = base64.b64encode(key.sign(stamp.encode() + content, ec.ECDSA(hashes.SHA256()))).decode()
        headers = {
            "x-twilio-email-event-webhook-signature": signature,
            "x-twilio-email-event-webhook-timestamp": stamp,
        }
        return (await self.http.post("/callbacks/sendgrid", content=body or content, headers=headers)).status_code


@pytest.fixture
async def desks(sqlite_url: str) -> AsyncIterator[Desks]:
    await upgrade(sqlite_url, DatabaseOptions())
    database = Database(sqlite_url, DatabaseOptions())
    desks = Desks(database)
    await desks.fill()
    yield desks
    await desks.http.aclose()
    await database.close()


# --- SNS --------------------------------------------------------------------------------------------------------------


async def test_mail_that_ses_delivered_and_that_bounced_later(desks: Desks) -> None:
    assert await desks.post_sns(desks.sns()) == 204
    assert (await desks.statuses())["email"] == ("delivered", None)
    bounce = {"notificationType": "Bounce", "mail": {"messageId": "ses-1"}, "bounce": {"bounceType": "Permanent"}}
    assert await desks.post_sns(desks.sns(bounce)) == 204
    assert await desks.post_sns(desks.sns()) == 204, "the first one comes again"
    assert (await desks.statuses())["email"] == ("failed", "Permanent")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda it: it | {"Message": it["Message"].replace("ses-1", "ses-2")},
        lambda it: it | {"TopicArn": TOPIC + "-of-somebody-else"},
        lambda it: it | {"SignatureVersion": "3"},
        lambda it: it | {"SignatureVersion": "1"},
        lambda it: it | {"Signature": "AAAA"},
        lambda it: it | {"Signature": "not base64"},
        lambda it: it | {"Type": "Invitation"},
        lambda it: {name: value for name, value in it.items() if name != "Timestamp"},
        lambda it: it | {"Message": 7},
    ],
)
async def test_sns_message_that_is_not_signed_as_it_is_counts_for_nothing(
    desks: Desks, spoil: Callable[[JSON], JSON]
) -> None:
    assert await desks.post_sns(spoil(desks.sns())) == 403
    assert (await desks.statuses())["email"] == ("handed_over", None)


async def test_sns_message_of_another_topic_and_an_old_one_are_refused(desks: Desks) -> None:
    assert await desks.post_sns(desks.sns(TopicArn=TOPIC + "-other")) == 403
    assert desks.certificates == [], "nothing is fetched for strangers"
    old = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    assert await desks.post_sns(desks.sns(Timestamp=old)) == 403
    assert (await desks.statuses())["email"] == ("handed_over", None)


async def test_report_that_overtakes_its_own_note_is_asked_for_again(desks: Desks) -> None:
    unknown = {"notificationType": "Delivery", "mail": {"messageId": "ses-9"}}
    assert await desks.post_sns(desks.sns(unknown)) == 503
    earlier = (datetime.now(UTC) - timedelta(minutes=10)).isoformat()
    assert await desks.post_sns(desks.sns(unknown, Timestamp=earlier)) == 204, "it is nobody's"


async def test_subscription_is_confirmed_by_the_api_and_not_by_the_address_in_the_message(desks: Desks) -> None:
    asked: dict[str, Any] = {
        "Type": "SubscriptionConfirmation",
        "SubscribeURL": "https://evil.example/",
        "Token": "tok",
    }
    assert await desks.post_sns(desks.sns(**asked)) == 204
    assert desks.aws.calls == [("sns", "confirm_subscription", {"TopicArn": TOPIC, "Token": "tok"})]


@pytest.mark.parametrize(
    "url",
    [
        "http://sns.eu-west-2.amazonaws.com/SimpleNotificationService-abc.pem",
        "https://sns.eu-west-2.amazonaws.com.evil.example/a.pem",
        "https://evil.example/sns.eu-west-2.amazonaws.com/a.pem",
        "https://sns.eu-west-2.amazonaws.com:8443/a.pem",
        "https://user@sns.eu-west-2.amazonaws.com/a.pem",
        "https://sns.eu-west-2.amazonaws.com/a.pem?x=1",
        "https://sns.eu-west-2.amazonaws.com/../a.pem",
        "https://s3.eu-west-2.amazonaws.com/a.pem",
    ],
)
async def test_certificates_come_from_aws_alone(url: str) -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError(request.url)

    async with httpx.AsyncClient(transport=httpx.MockTransport(never)) as http:
        with pytest.raises(BadSignature):
            await SigningCertificates(http)(url)


def certificate(*, days: int) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    begins = NOW - timedelta(days=10)
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(RSA_KEY.public_key())
    built = built.serial_number(1).not_valid_before(begins).not_valid_after(NOW + timedelta(days=days))
    return built.sign(RSA_KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


async def test_certificate_is_fetched_once_and_must_count_now() -> None:
    fetched: list[str] = []
    answers = {"/good.pem": certificate(days=1), "/old.pem": certificate(days=-1), "/odd.pem": b"<html>"}

    def answer(request: httpx.Request) -> httpx.Response:
        fetched.append(request.url.path)
        content = answers.get(request.url.path)
        return httpx.Response(200, content=content) if content else httpx.Response(500)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        certificates = SigningCertificates(http)
        host = "https://sns.eu-west-2.amazonaws.com"
        key, again = [await certificates(f"{host}/good.pem") for _ in range(2)]
        assert key is again
        assert key.public_numbers() == RSA_KEY.public_key().public_numbers()
        assert fetched == ["/good.pem"]
        for path in ("old", "odd"):
            with pytest.raises(BadSignature):
                await certificates(f"{host}/{path}.pem")
        with pytest.raises(Unavailable):
            await certificates(f"{host}/away.pem")


# --- Twilio -----------------------------------------------------------------------------------------------------------


async def test_twilio_reports_only_move_a_text_message_forward(desks: Desks) -> None:
    assert await desks.twilio(MessageStatus="sent") == 204
    assert (await desks.statuses())["sms"] == ("handed_over", None)
    assert await desks.twilio() == 204
    assert await desks.twilio(MessageStatus="sent") == 204
    assert (await desks.statuses())["sms"] == ("delivered", None)
    assert await desks.twilio(MessageStatus="undelivered", ErrorCode="30003") == 204
    assert (await desks.statuses())["sms"] == ("failed", "twilio 30003")


async def test_twilio_report_with_another_key_query_or_body_counts_for_nothing(desks: Desks) -> None:
    assert await desks.twilio(token="x" * 32) == 403
    plain = {"MessageStatus": "delivered"}
    for headers in ({}, {"x-twilio-signature": "AAAA"}, {"x-twilio-signature": "é".encode()}):
        url = "/callbacks/twilio?notification=n1"
        answer = await desks.http.post(url, data=plain, headers=cast(dict[str, str], headers))
        assert (answer.status_code, answer.json()["type"]) == (403, "bad_signature")
    assert (await desks.statuses())["sms"] == ("handed_over", None)


async def test_twilio_report_about_nothing_of_ours_is_taken_and_forgotten(desks: Desks) -> None:
    assert await desks.twilio(query="?notification=unknown") == 204
    assert await desks.twilio(query="") == 204


# --- SendGrid ---------------------------------------------------------------------------------------------------------


def event(kind: str, **more: Any) -> JSON:
    return {"event": kind, "notification": "n1", "sg_message_id": "sg-1.filter-7", "email": "ann@example.test"} | more


async def test_sendgrid_reports_come_in_batches_with_things_that_do_not_matter(desks: Desks) -> None:
    batch = (event("processed"), event("open"), 7, event("delivered", notification=5), event("delivered"))
    assert await desks.sendgrid(*batch) == 204
    assert (await desks.statuses())["email"] == ("delivered", None)
    assert await desks.sendgrid(event("bounce"), event("delivered")) == 204
    assert (await desks.statuses())["email"] == ("failed", "bounce")


async def test_sendgrid_report_with_another_key_body_or_time_counts_for_nothing(desks: Desks) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    assert await desks.sendgrid(event("delivered"), key=other) == 403
    assert await desks.sendgrid(event("processed"), body=json.dumps([event("delivered")]).encode()) == 403
    assert await desks.sendgrid(event("delivered"), at=time.time() - 2 * 86_400) == 403
    assert await desks.sendgrid(event("delivered"), at=time.time() + 3_600) == 403
    assert (await desks.http.post("/callbacks/sendgrid", content=b"[]")).status_code == 403
    assert (await desks.statuses())["email"] == ("handed_over", None)


async def test_body_is_bounded(desks: Desks) -> None:
    assert (await desks.http.post("/callbacks/sendgrid", content=b"x" * (2 << 20))).status_code == 400


def test_address_without_a_secret_is_not_there() -> None:
    callbacks = Callbacks(Desk({}, None, Policy()), CallbackSecrets(), NotedAws(), SigningCertificates(None))  # type: ignore[arg-type]
    assert callbacks.routes() == []
