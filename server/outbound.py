"""What goes out of the product, put together from the settings: carriers, the callbacks that they report to, and other
systems that are told events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import httpx
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.routing import BaseRoute

from domain.commands import Desk
from domain.letters import Medium
from domain.ports import Clock
from persistence.database import Database
from persistence.log import SqlEventLog
from server.aws import Aws
from server.aws_targets import EventBridge, Sqs
from server.callbacks import Callbacks, CallbackSecrets, SigningCertificates
from server.carriers import Carrier, Route, SendGridMail, SesMail, SnsText, TwilioAccount, TwilioText, client
from server.exporter import Exporter, ExportMetrics, ExportOptions, Target
from server.fcm import FcmPush, ServiceAccount
from server.settings import Settings
from server.telemetry import Metrics


class Outbound:
    """What one process talks to. Made by the process that owns it, ended by :meth:`close`."""

    def __init__(self, settings: Settings, aws: Aws) -> None:
        self._settings = settings
        self._aws = aws

    @cached_property
    def _http(self) -> httpx.AsyncClient:
        # Loading certificate authorities takes a while, and most embedded servers need none.
        return client()

    @cached_property
    def routes(self) -> Mapping[Medium, Route]:
        """The carriers of each medium that has any: AWS first, the other one when AWS does not take it."""
        settings = self._settings
        push: list[Carrier] = []
        texts: list[Carrier] = []
        mails: list[Carrier] = []
        if settings.fcm_service_account is not None:
            push.append(FcmPush(self._http, ServiceAccount.read(settings.fcm_service_account)))
        if settings.mail_from is not None:
            texts.append(SnsText(self._aws))
            mails.append(SesMail(self._aws, settings.mail_from))
        if settings.twilio_account_sid and settings.twilio_auth_token and settings.twilio_from:
            callback_url = f"{settings.public_url}/callbacks/twilio" if settings.public_url else None
            account = TwilioAccount(
                settings.twilio_account_sid, settings.twilio_auth_token, settings.twilio_from, callback_url
            )
            texts.append(TwilioText(self._http, account))
        if settings.mail_from is not None and settings.sendgrid_api_key is not None:
            mails.append(SendGridMail(self._http, settings.sendgrid_api_key, settings.mail_from))
        named = ((Medium.PUSH, push), (Medium.SMS, texts), (Medium.EMAIL, mails))
        return {medium: Route(carriers) for medium, carriers in named if carriers}

    def callbacks(self, desk: Desk) -> Sequence[BaseRoute]:
        """Addresses for carriers' reports: those whose secrets are set."""
        settings = self._settings
        secrets = CallbackSecrets(
            topics=frozenset(settings.sns_topics),
            # Twilio signs the address that it calls, and that is known from the public URL alone.
            twilio_token=settings.twilio_auth_token if settings.public_url else None,
            sendgrid_key=settings.sendgrid_webhook_key,
            public_url=settings.public_url or "",
        )

        async def certificate(url: str) -> rsa.RSAPublicKey:
            return await self._certificates(url)

        return Callbacks(desk, secrets, self._aws, certificate).routes()

    @cached_property
    def _certificates(self) -> SigningCertificates:
        return SigningCertificates(self._http)

    @cached_property
    def targets(self) -> Sequence[Target]:
        """Other systems that are told every durable event."""
        settings = self._settings
        targets: list[Target] = []
        if settings.eventbridge_bus is not None:
            targets.append(EventBridge(self._aws, settings.eventbridge_bus))
        if settings.sqs_queue_url is not None:
            targets.append(Sqs(self._aws, settings.sqs_queue_url))
        return targets

    def exporters(self, database: Database, holder: str, clock: Clock, metrics: Metrics) -> Sequence[Exporter]:
        """What tells them; ``holder`` as for :class:`persistence.sequencer.Sequencer`."""
        # Known to dashboards and alarms before there is a target.
        told = ExportMetrics(metrics.registry)
        if not self.targets:
            return ()
        options = ExportOptions(tries=self._settings.export_tries)
        # The database's own log: an exporter reads each entry once, so a cache has nothing for it.
        event_log = SqlEventLog(database)
        return [Exporter(target, database, event_log, holder, clock, told, options) for target in self.targets]

    async def close(self) -> None:
        """Closes connections, if there are any."""
        if "_http" in self.__dict__:
            await self._http.aclose()


def reach_of(settings: Settings) -> tuple[tuple[Medium, float], ...]:
    """By which media people are reached, and when; see :class:`domain.policy.Policy`."""
    twilio, mail = settings.twilio_account_sid is not None, settings.mail_from is not None
    steps = (
        (Medium.PUSH, settings.reach_push_seconds, settings.fcm_service_account is not None),
        (Medium.SMS, settings.reach_sms_seconds, mail or twilio),
        (Medium.EMAIL, settings.reach_email_seconds, mail),
    )
    return tuple((medium, seconds) for medium, seconds, there in steps if there)
