"""Carriers: what each is sent, who takes over, and what is not tried again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx
import pytest

from domain.errors import Unavailable
from domain.letters import Letter, LetterKind, Medium
from domain.types import JSON
from domain.wording import WORDINGS, harmless_word, worded
from server.aws import AwsRefusal
from server.carriers import (
    FAILURES_TO_OPEN,
    Parcel,
    Refused,
    Route,
    SendGridMail,
    SesMail,
    SnsText,
    TwilioAccount,
    TwilioText,
    Undeliverable,
    client,
)
from server.fcm import FcmPush, Gone, ServiceAccount
from server.messengers import RoutedPost
from tests.server.carrier_stubs import (
    PRIVATE_KEY,
    SENDER,
    SENDGRID_KEY,
    TWILIO_SID,
    TWILIO_TOKEN,
    Carriers,
    carriers_running,
)

PHONE = "+447700900123"


def parcel(to: str, **more: str) -> Parcel:
    expires_at = datetime.now(UTC) + timedelta(seconds=30)
    ids = {"offer_id": "o1", "offset": 3}
    return Parcel(to, "Title", "Text", ids, more.get("notification_id", "n1"), "booking/b1", expires_at)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with client() as http:
        yield http


@pytest.fixture
async def stubs() -> AsyncIterator[Carriers]:
    async with carriers_running() as stubs:
        yield stubs


def twilio(http: httpx.AsyncClient, stubs: Carriers, **more: str) -> TwilioText:
    return TwilioText(http, TwilioAccount(TWILIO_SID, TWILIO_TOKEN, "+447700900000", url=stubs.url, **more))


def sendgrid(http: httpx.AsyncClient, stubs: Carriers) -> SendGridMail:
    return SendGridMail(http, SENDGRID_KEY, SENDER, stubs.url)


def fcm(http: httpx.AsyncClient, stubs: Carriers) -> FcmPush:
    return FcmPush(http, ServiceAccount.read(stubs.service_account), stubs.url)


async def test_push_message_is_urgent_expires_and_shares_one_access_token(
    http: httpx.AsyncClient, stubs: Carriers
) -> None:
    push = fcm(http, stubs)
    references = await asyncio.gather(*(push.carry(parcel(f"device-{n}")) for n in range(5)))
    assert len(set(references)) == 5
    assert stubs.tokens_issued == 1
    message = stubs.pushes[0]
    assert message["notification"] == {"title": "Title", "body": "Text"}
    assert message["data"] == {"offer_id": "o1", "offset": "3", "notification_id": "n1", "thread": "booking/b1"}
    assert 25 <= int(message["android"]["ttl"].removesuffix("s")) <= 30
    assert message["apns"]["headers"]["apns-collapse-id"] == "booking/b1"


async def test_access_token_that_is_refused_is_replaced(http: httpx.AsyncClient, stubs: Carriers) -> None:
    push = fcm(http, stubs)
    await push.carry(parcel("device"))
    stubs.tokens_issued += 1  # the one it has counts no longer
    with pytest.raises(Unavailable):
        await push.carry(parcel("device"))
    await push.carry(parcel("device"))
    assert len(stubs.pushes) == 2


async def test_device_that_is_gone_is_told_apart_from_a_service_that_is_away(
    http: httpx.AsyncClient, stubs: Carriers
) -> None:
    push = fcm(http, stubs)
    stubs.gone.add("old")
    with pytest.raises(Gone):
        await push.carry(parcel("old"))
    stubs.well.clear()
    with pytest.raises(Unavailable):
        await push.carry(parcel("old"))


async def test_text_message_by_twilio_says_where_to_report(http: httpx.AsyncClient, stubs: Carriers) -> None:
    carrier = twilio(http, stubs, callback_url="https://live.example.test/callbacks/twilio")
    assert await carrier.carry(parcel(PHONE)) == "SM1"
    assert stubs.texts == [
        {
            "To": PHONE,
            "From": "+447700900000",
            "Body": "Text",
            "StatusCallback": "https://live.example.test/callbacks/twilio?notification=n1",
        }
    ]
    with pytest.raises(Undeliverable, match="twilio 21211") as caught:
        await carrier.carry(parcel("+440000000000"))
    assert "+44" not in str(caught.value)


async def test_mail_by_sendgrid_is_plain_and_names_the_notification(http: httpx.AsyncClient, stubs: Carriers) -> None:
    assert await sendgrid(http, stubs).carry(parcel("ann@example.test")) == "sg-1"
    (mail,) = stubs.mails
    assert mail["personalizations"] == [{"to": [{"email": "ann@example.test"}], "custom_args": {"notification": "n1"}}]
    assert (mail["subject"], mail["content"][0]["value"]) == ("Title", "Text")


class Broken:
    """A carrier that fails, or hangs, and counts how often it was asked."""

    name = "broken"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked = 0

    async def carry(self, parcel: Parcel) -> str | None:
        self.asked += 1
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()
        return None


async def test_second_carrier_takes_over_and_the_first_is_soon_passed_over(
    http: httpx.AsyncClient, stubs: Carriers
) -> None:
    first = Broken(Unavailable())
    route = Route([first, sendgrid(http, stubs)], open_seconds=60)
    for _ in range(10):
        assert (await route.carry(parcel("ann@example.test"))).carrier == "sendgrid"
    assert first.asked == 3, "after three failures nobody asks it until its pause is over; see test_aws"


async def test_carrier_that_hangs_is_left_within_the_bound(
    http: httpx.AsyncClient, stubs: Carriers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.carriers.CALL_SECONDS", 0.1)
    started = time.monotonic()
    taken = await Route([Broken(), twilio(http, stubs)]).carry(parcel(PHONE))
    assert taken.carrier == "twilio"
    assert time.monotonic() - started < 2


async def test_recipient_that_is_not_there_is_nobody_elses_to_try(http: httpx.AsyncClient, stubs: Carriers) -> None:
    second = Broken(Unavailable())
    with pytest.raises(Undeliverable):
        await Route([twilio(http, stubs), second]).carry(parcel("+440000000000"))
    assert second.asked == 0


class RefusingAws:
    """AWS that says no with a code."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.asked = 0

    async def call(self, *_: str, **__: Any) -> Any:
        self.asked += 1
        raise AwsRefusal(self.code)


@pytest.mark.parametrize(
    ("code", "error", "asked"),
    [
        ("InvalidParameter", Undeliverable, 9),
        ("InvalidParameterValue", Undeliverable, 9),
        ("MessageRejected", Refused, 9),
        ("AccessDenied", Unavailable, FAILURES_TO_OPEN),
        ("Throttling", Unavailable, FAILURES_TO_OPEN),
    ],
)
@pytest.mark.parametrize("make", [SnsText, partial(SesMail, sender=SENDER)])
async def test_what_aws_says_of_one_recipient_passes_nobody_elses_parcels_over(
    make: Any, code: str, error: type[Exception], asked: int
) -> None:
    aws = RefusingAws(code)
    route = Route([make(aws)])
    for _ in range(9):
        with pytest.raises(error):
            await route.carry(parcel("whoever"))
    assert aws.asked == asked


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, {"errors": [{"field": "personalizations.0.to.0.email", "message": "no address"}]}, Undeliverable),
        (400, {"errors": [{"field": "content.0.value", "message": "empty"}]}, Refused),
        (413, {}, Refused),
        (401, {}, Unavailable),
        (429, {}, Unavailable),
        (503, {}, Unavailable),
    ],
)
async def test_answer_of_sendgrid_speaks_of_the_parcel_or_of_the_carrier(
    status: int, body: JSON, error: type[Exception]
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json=body))
    async with httpx.AsyncClient(transport=transport) as http:
        with pytest.raises((Unavailable, Undeliverable)) as caught:
            await SendGridMail(http, SENDGRID_KEY, SENDER).carry(parcel("ann@example.test"))
    assert caught.type is error


async def test_parcel_that_the_first_refuses_goes_by_the_second(http: httpx.AsyncClient, stubs: Carriers) -> None:
    taken = await Route([Broken(Refused()), sendgrid(http, stubs)]).carry(parcel("ann@example.test"))
    assert taken.carrier == "sendgrid"


async def test_missing_certificate_of_apple_keeps_no_other_device_waiting(
    http: httpx.AsyncClient, stubs: Carriers
) -> None:
    route = Route([fcm(http, stubs)])
    stubs.uncertified.add("iphone")
    for _ in range(FAILURES_TO_OPEN):
        with pytest.raises(Refused):
            await route.carry(parcel("iphone"))
    assert (await route.carry(parcel("android"))).carrier == "fcm"
    assert stubs.tokens_issued == 1


async def test_all_away_is_unavailable(http: httpx.AsyncClient, stubs: Carriers) -> None:
    stubs.well.clear()
    with pytest.raises(Unavailable):
        await Route([twilio(http, stubs)]).carry(parcel(PHONE))


async def test_one_time_codes_take_the_same_routes(http: httpx.AsyncClient, stubs: Carriers) -> None:
    routes = {Medium.SMS: Route([Broken(Unavailable()), twilio(http, stubs)])}
    post = RoutedPost(routes)
    await post.post(Letter(LetterKind.CODE, Medium.SMS, PHONE, "314159"))
    assert "314159" in stubs.texts[0]["Body"]
    assert "StatusCallback" not in stubs.texts[0]
    with pytest.raises(Unavailable):
        await post.post(Letter(LetterKind.CODE, Medium.EMAIL, "ann@example.test", "1"))


def test_addresses_and_keys_are_in_no_representation() -> None:
    account = ServiceAccount("p", "e", PRIVATE_KEY, "k", "https://x")
    assert "PRIVATE KEY" not in repr(account)
    assert PHONE not in repr(parcel(PHONE))
    assert TWILIO_TOKEN not in repr(TwilioAccount(TWILIO_SID, TWILIO_TOKEN, "+1"))


@pytest.mark.parametrize("text", ["{}", "/nowhere.json", '{"project_id": 1}', "[1]"])
def test_what_is_no_service_account_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a service account"):
        ServiceAccount.read(text)


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "harmless"),
    [
        ("Ann", "Ann"),
        ("Ann\r\nBcc: x@y.test", "Ann Bcc x y test"),
        ("http://evil.example/win", "http evil example win"),
        ("evil.example", "evil example"),
        ("Dr. Müller", "Dr Müller"),
        ("\u202egnp.exe", "gnp exe"),
        ("{0.__class__}", "{0 __class__}"),
        ("x" * 100, "x" * 59 + "…"),
        ("\u0000\u0007", ""),
    ],
)
def test_name_cannot_become_a_line_or_a_link(word: str, harmless: str) -> None:
    assert harmless_word(word) == harmless
    assert worded("message", "en", sender=word).text == f"{harmless} has written to you. Open Fixnado to read it."


def test_every_language_has_every_text() -> None:
    kinds = {language: wordings.keys() for language, wordings in WORDINGS.items()}
    assert all(each == kinds["en"] for each in kinds.values())
    assert worded("message", "tlh", sender="K") == worded("message", "en", sender="K")
