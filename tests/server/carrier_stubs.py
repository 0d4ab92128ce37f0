"""FCM, Twilio and SendGrid on a free port: they check what they get, as the real ones do, and can be told to fail."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from domain.types import JSON

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PRIVATE_KEY = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
TWILIO_SID, TWILIO_TOKEN = f"AC{'0' * 32}", "t" * 32
SENDGRID_KEY = "SG.test.key"
SENDER = "no-reply@fixnado.test"


class Carriers:
    """What they took, in order.

    Attributes:
        well: which of ``fcm``, ``twilio`` and ``sendgrid`` work; others answer 503.
        gone: device tokens that FCM no longer knows.
        uncertified: device tokens of a service that FCM may not send to.
        wrong: what was wrong with requests; a test ends with it empty.
    """

    def __init__(self) -> None:
        self.url = ""
        self.well = {"fcm", "twilio", "sendgrid"}
        self.gone: set[str] = set()
        self.uncertified: set[str] = set()
        self.tokens_issued = 0
        self.pushes: list[JSON] = []
        self.texts: list[dict[str, str]] = []
        self.mails: list[JSON] = []
        self.asked: list[str] = []
        self.wrong: list[str] = []

    @property
    def service_account(self) -> str:
        return json.dumps(
            {
                "type": "service_account",
                "project_id": "fixnado-test",
                "client_email": "push@fixnado-test.iam.gserviceaccount.com",
                "private_key": PRIVATE_KEY,
                "private_key_id": "key-1",
                "token_uri": f"{self.url}/token",
            }
        )

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/token", self._token)
        app.router.add_post("/v1/projects/fixnado-test/messages:send", self._fcm)
        app.router.add_post(f"/2010-04-01/Accounts/{TWILIO_SID}/Messages.json", self._twilio)
        app.router.add_post("/v3/mail/send", self._sendgrid)
        return app

    def _check(self, right: bool, what: str) -> None:
        if not right:
            self.wrong.append(what)

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        self._check(form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer", "grant type")
        assertion = str(form["assertion"])
        claims = jwt.decode(assertion, KEY.public_key(), algorithms=["RS256"], audience=f"{self.url}/token")
        self._check(claims["iss"] == "push@fixnado-test.iam.gserviceaccount.com", "issuer")
        self._check(claims["scope"] == "https://www.googleapis.com/auth/firebase.messaging", "scope")
        self._check(0 < claims["exp"] - claims["iat"] <= 3600, "life of the assertion")
        self._check(jwt.get_unverified_header(assertion)["kid"] == "key-1", "key id")
        self.tokens_issued += 1
        return web.json_response({"access_token": f"ya29.{self.tokens_issued}", "expires_in": 3600})

    async def _fcm(self, request: web.Request) -> web.Response:
        self.asked.append("fcm")
        if "fcm" not in self.well:
            return web.json_response({"error": {"status": "UNAVAILABLE"}}, status=503)
        if request.headers.get("Authorization") != f"Bearer ya29.{self.tokens_issued}":
            return web.json_response({"error": {"status": "UNAUTHENTICATED"}}, status=401)
        message = (await request.json())["message"]
        self._check(all(isinstance(value, str) for value in message["data"].values()), "data values are strings")
        self._check(message["android"]["priority"] == "HIGH", "priority")
        self._check(message["android"]["ttl"].removesuffix("s").isdigit(), "time to live")
        self._check(len(message["apns"]["headers"]["apns-collapse-id"]) <= 64, "collapse id")
        if message["token"] in self.gone:
            return _fcm_error("NOT_FOUND", "UNREGISTERED", 404)
        if message["token"] in self.uncertified:
            return _fcm_error("UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR", 401)
        self.pushes.append(message)
        return web.json_response({"name": f"projects/fixnado-test/messages/{len(self.pushes)}"})

    async def _twilio(self, request: web.Request) -> web.Response:
        self.asked.append("twilio")
        if "twilio" not in self.well:
            return web.json_response({"code": 20500}, status=503)
        right = f"Basic {base64.b64encode(f'{TWILIO_SID}:{TWILIO_TOKEN}'.encode()).decode()}"
        if request.headers.get("Authorization") != right:
            return web.json_response({"code": 20003}, status=401)
        form = {name: str(value) for name, value in (await request.post()).items()}
        if form["To"] == "+440000000000":
            return web.json_response({"code": 21211, "message": f"{form['To']} is not valid"}, status=400)
        self.texts.append(form)
        return web.json_response({"sid": f"SM{len(self.texts)}", "status": "queued"}, status=201)

    async def _sendgrid(self, request: web.Request) -> web.Response:
        self.asked.append("sendgrid")
        if "sendgrid" not in self.well:
            return web.Response(status=503)
        if request.headers.get("Authorization") != f"Bearer {SENDGRID_KEY}":
            return web.Response(status=401)
        mail: JSON = await request.json()
        self._check(mail["from"] == {"email": SENDER}, "sender")
        self._check([part["type"] for part in mail["content"]] == ["text/plain"], "plain text alone")
        self._check(not mail["tracking_settings"]["click_tracking"]["enable"], "no tracking")
        self.mails.append(mail)
        return web.Response(status=202, headers={"X-Message-Id": f"sg-{len(self.mails)}"})


def _fcm_error(status: str, code: str, http_status: int) -> web.Response:
    details = [{"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}]
    return web.json_response({"error": {"status": status, "details": details}}, status=http_status)


@asynccontextmanager
async def carriers_running() -> AsyncIterator[Carriers]:
    """Serves; what was wrong with any request fails the test at the end."""
    carriers = Carriers()
    runner = web.AppRunner(carriers.app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    addresses: Any = runner.addresses
    carriers.url = f"http://127.0.0.1:{addresses[0][1]}"
    try:
        yield carriers
    finally:
        await runner.cleanup()
    assert carriers.wrong == []
