"""Settings of what goes out: notifications to people, events to other systems. Part of :mod:`server.settings`."""

from __future__ import annotations

import re

from pydantic import BaseModel, field_validator

from server.callbacks import BadSignature, sendgrid_key
from server.fcm import ServiceAccount
from server.setting_fields import count, is_web, number, text


class OutboundSettings(BaseModel):
    """See :class:`server.settings.Settings`."""

    reach_push_seconds: float = number(
        5, "Time to ack an offer or a message on a socket before a push message is sent.", least=0.1, most=3_600
    )
    reach_sms_seconds: float = number(30, "The same for a text message.", least=0.1, most=86_400)
    reach_email_seconds: float = number(120, "The same for an e-mail.", least=0.1, most=86_400)
    fcm_service_account: str | None = text(
        None,
        "Service account of Firebase Cloud Messaging, for push messages: its JSON document, or the path of one.",
        allowed="a service account's JSON document, or the path of a file with one",
        secret=True,
    )
    twilio_account_sid: str | None = text(
        None, "Twilio account, for text messages that SNS does not take.", allowed="an account SID (AC…)"
    )
    twilio_auth_token: str | None = text(
        None,
        "Its auth token, which also signs its callbacks.",
        allowed="32 to 64 letters and digits",
        secret=True,
    )
    twilio_from: str | None = text(
        None,
        "Who text messages by Twilio come from.",
        allowed="a number such as +447700900000, or the SID of a messaging service (MG…)",
    )
    sendgrid_api_key: str | None = text(
        None,
        "SendGrid, for e-mail that SES does not take; FIXNADO_MAIL_FROM is the sender there too.",
        allowed="an API key",
        secret=True,
    )
    sendgrid_webhook_key: str | None = text(
        None,
        "Verification key of SendGrid's signed event webhook; opens /callbacks/sendgrid.",
        allowed="a public key as SendGrid shows it, in base64",
    )
    sns_topics: tuple[str, ...] = text(
        (),
        "SNS topics with SES's delivery notifications, separated by commas; opens /callbacks/sns.",
        allowed="topic ARNs separated by commas",
    )
    eventbridge_bus: str | None = text(
        None, "EventBridge bus that every durable event is put on.", allowed="the name or ARN of an event bus"
    )
    sqs_queue_url: str | None = text(
        None,
        "SQS queue that every durable event is sent to; best a FIFO queue.",
        allowed="the http or https URL of a queue",
    )
    export_tries: int = count(
        10, "Refusals by EventBridge or SQS after which an event is put aside for good.", most=1_000
    )

    def check_outbound(self) -> None:
        """What must be set together.

        Raises:
            ValueError: it is not.
        """
        twilio = (self.twilio_account_sid, self.twilio_auth_token, self.twilio_from)
        if any(twilio) and not all(twilio):
            raise ValueError("FIXNADO_TWILIO_ACCOUNT_SID, _AUTH_TOKEN and _FROM go together")
        if not self.reach_push_seconds <= self.reach_sms_seconds <= self.reach_email_seconds:
            raise ValueError(
                "FIXNADO_REACH_PUSH_SECONDS, FIXNADO_REACH_SMS_SECONDS and FIXNADO_REACH_EMAIL_SECONDS:"
                " must not be less than the one before"
            )

    @field_validator("fcm_service_account")
    @classmethod
    def _fcm(cls, value: str | None) -> str | None:
        if value is not None:
            ServiceAccount.read(value)
        return value

    @field_validator("twilio_account_sid")
    @classmethod
    def _twilio(cls, value: str | None) -> str | None:
        return _fits(value, r"AC[0-9a-fA-F]{32}")

    @field_validator("twilio_auth_token")
    @classmethod
    def _twilio_token(cls, value: str | None) -> str | None:
        return _fits(value, r"[A-Za-z0-9]{32,64}")

    @field_validator("twilio_from")
    @classmethod
    def _twilio_sender(cls, value: str | None) -> str | None:
        return _fits(value, r"\+[1-9][0-9]{6,14}|MG[0-9a-fA-F]{32}")

    @field_validator("sendgrid_api_key")
    @classmethod
    def _sendgrid(cls, value: str | None) -> str | None:
        return _fits(value, r"[\x21-\x7e]{8,256}")

    @field_validator("sendgrid_webhook_key")
    @classmethod
    def _sendgrid_key(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                sendgrid_key(value)
            except BadSignature:
                raise ValueError from None
        return value

    @field_validator("sns_topics")
    @classmethod
    def _topics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for topic in value:
            _fits(topic, r"arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_.-]{1,256}")
        return value

    @field_validator("eventbridge_bus")
    @classmethod
    def _bus(cls, value: str | None) -> str | None:
        return _fits(value, r"[A-Za-z0-9_.:/-]{1,1600}")

    @field_validator("sqs_queue_url")
    @classmethod
    def _queue(cls, value: str | None) -> str | None:
        if value is not None and not is_web(value):
            raise ValueError
        return value


def _fits(value: str | None, pattern: str) -> str | None:
    if value is not None and not re.fullmatch(pattern, value):
        raise ValueError
    return value
