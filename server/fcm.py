"""Push messages by Firebase Cloud Messaging, HTTP v1: https://firebase.google.com/docs/cloud-messaging.

A service account signs a short assertion (RFC 7523) and gets an access token for an hour, which all messages share.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import jwt

from server.carriers import Parcel, Refused, Undeliverable, asked, json_of, refused

FCM: Final = "https://fcm.googleapis.com"
SCOPE: Final = "https://www.googleapis.com/auth/firebase.messaging"
ASSERTION_SECONDS: Final = 600
EARLY_SECONDS: Final = 120.0
"""A token is replaced so long before its end."""


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """What Google's console gives for a service account."""

    project_id: str
    client_email: str
    private_key: str = field(repr=False)
    private_key_id: str
    token_uri: str

    @classmethod
    def read(cls, text: str) -> ServiceAccount:
        """From the JSON document, or the path of one.

        Raises:
            ValueError: it is not one. The message quotes nothing.
        """
        try:
            shape = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
            account = cls(*(str(shape[name]) for name in cls.__slots__))
            jwt.encode({}, account.private_key, algorithm="RS256")
        except (OSError, ValueError, KeyError, TypeError, jwt.PyJWTError):
            raise ValueError("not a service account") from None
        if urlsplit(account.token_uri).scheme not in {"https", "http"}:
            raise ValueError("not a service account")
        return account


class Gone(Undeliverable):
    """The device takes no more messages: its token is to be forgotten."""


class FcmPush:
    """Carries to one device per parcel; see :class:`server.carriers.Carrier`."""

    name = "fcm"

    def __init__(
        self,
        http: httpx.AsyncClient,
        account: ServiceAccount,
        url: str = FCM,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = http
        self._account = account
        self._url = url
        self._monotonic = monotonic
        self._token = ""
        self._token_until = 0.0
        self._turn = asyncio.Lock()

    async def carry(self, parcel: Parcel) -> str | None:
        token = await self._access_token()
        answer = await asked(
            self._http,
            "POST",
            f"{self._url}/v1/projects/{self._account.project_id}/messages:send",
            headers={"authorization": f"Bearer {token}"},
            json={"message": message_of(parcel, datetime.now(UTC))},
        )
        shape = json_of(answer)
        if answer.is_success:
            return str(shape.get("name", ""))
        code = _error_code(shape)
        if code == "THIRD_PARTY_AUTH_ERROR":
            # A certificate for Apple's or the browsers' service is missing: other devices are pushed to nevertheless.
            raise Refused
        if answer.status_code == 401:
            self._token_until = 0.0
        if code in {"UNREGISTERED", "SENDER_ID_MISMATCH"}:
            raise Gone(code.lower())
        if answer.status_code == 400:
            raise Undeliverable(f"fcm {code.lower() or 400}")
        raise refused(self.name, answer)

    async def _access_token(self) -> str:
        async with self._turn:
            if self._monotonic() < self._token_until:
                return self._token
            now = int(time.time())
            claims = {
                "iss": self._account.client_email,
                "scope": SCOPE,
                "aud": self._account.token_uri,
                "iat": now,
                "exp": now + ASSERTION_SECONDS,
            }
            assertion = jwt.encode(
                claims, self._account.private_key, algorithm="RS256", headers={"kid": self._account.private_key_id}
            )
            answer = await asked(
                self._http,
                "POST",
                self._account.token_uri,
                data={"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion},
            )
            shape = json_of(answer)
            token, seconds = shape.get("access_token"), shape.get("expires_in", 0)
            if not answer.is_success or not isinstance(token, str) or not isinstance(seconds, int):
                raise refused(self.name, answer)
            self._token, self._token_until = token, self._monotonic() + max(0.0, seconds - EARLY_SECONDS)
            return token


def message_of(parcel: Parcel, now: datetime) -> Mapping[str, Any]:
    """The message, urgent, shown once: one that comes twice takes the place of its twin."""
    seconds = max(0, int((parcel.expires_at - now).total_seconds())) if parcel.expires_at else 0
    expires = int(parcel.expires_at.timestamp()) if parcel.expires_at else 0
    data = {name: str(value) for name, value in parcel.data.items()}
    return {
        "token": parcel.to,
        "notification": {"title": parcel.title, "body": parcel.text},
        "data": data | {"notification_id": parcel.notification_id, "thread": parcel.thread},
        "android": {
            "priority": "HIGH",
            "ttl": f"{seconds}s",
            "notification": {"tag": parcel.thread},
        },
        "apns": {
            "headers": {
                "apns-priority": "10",
                "apns-expiration": str(expires),
                # At most 64 bytes.
                "apns-collapse-id": parcel.thread[:64],
            },
            "payload": {"aps": {"thread-id": parcel.thread}},
        },
        "webpush": {"headers": {"TTL": str(seconds), "Urgency": "high"}, "notification": {"tag": parcel.thread}},
    }


def _error_code(shape: Mapping[str, Any]) -> str:
    error = shape.get("error")
    if not isinstance(error, dict):
        return ""
    for detail in error.get("details") or ():
        if isinstance(detail, dict) and "errorCode" in detail:
            return str(detail["errorCode"])
    return str(error.get("status", ""))
