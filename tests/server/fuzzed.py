"""The product as a process of its own, to be fed with what no client would send."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx

from domain.types import JSON
from server import demo
from tests.services import Server

ROOT = Path(__file__).parent.parent.parent


class FixnadoProcess(Server):
    """The demo without limits on how much one person may ask."""

    name = "fixnado"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        settings = {
            "PYTHONPATH": str(ROOT),
            "FIXNADO_DATABASE_URL": f"sqlite+aiosqlite:///{self.directory / 'fuzz.db'}",
            "FIXNADO_COMMANDS_PER_SECOND": "100000",
            "FIXNADO_COMMANDS_BURST": "100000",
            "FIXNADO_MAX_SOCKETS_PER_USER": "1000",
            "FIXNADO_LOG_FORMAT": "json",
        }
        given = [f"{name}={value}" for name, value in settings.items()]
        return ["env", *given, sys.executable, "-m", "server", "demo", "--port", str(self.port)]

    def answers(self) -> bool:
        return b"200 OK" in self._ask(b"GET /health/ready HTTP/1.1\r\nHost: fixnado\r\nConnection: close\r\n\r\n")

    def sign_in(self, email: str) -> JSON:
        """Tokens of one of the demo's people."""
        body = {"email": email, "password": demo.PASSWORD}
        tokens: JSON = httpx.post(f"{self.url}/auth/login", json=body, timeout=10).raise_for_status().json()
        return tokens

    def flaws(self) -> list[str]:
        """Lines of its log that tell of a crash, and counters of answers that were nobody's fault but the server's."""
        metrics = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        return [
            *(line for line in self._log.read_text(errors="replace").splitlines() if "Traceback" in line),
            *(line for line in metrics if 'outcome="internal"' in line),
        ]
