"""Every REST operation of the OpenAPI file with what fits its schema and with what does not: an answer, never a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode

from domain.types import JSON
from server import demo, specs
from tests.server.fuzzed import FixnadoProcess

SCHEMA = schemathesis.openapi.from_dict(specs.openapi())
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)}

CASES = [
    pytest.param(label, mode, id=f"{mode.value} {label}")
    for label, operation in OPERATIONS.items()
    # A stream has no end to wait for; what is refused before it opens is in test_events.py.
    if not label.endswith(" /events")
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    # Without a body, a parameter or a token there is nothing to get wrong.
    if mode is GenerationMode.POSITIVE or operation.definition.raw.keys() & {"requestBody", "parameters", "security"}
]

EXAMPLES = 6
"""For each operation and each of the two ways; enough to be quick on every change."""


class Stage:
    """A running server, people of every kind, and ids of things that exist."""

    def __init__(self, process: FixnadoProcess) -> None:
        self.process = process
        people = [process.sign_in(email) for email in (demo.CUSTOMER, demo.PROVIDERS[0], demo.ADMIN)]
        self.tokens = [person["access_token"] for person in people]
        customer, provider, _ = self.tokens
        place = {"lat": demo.CENTRE.lat, "lon": demo.CENTRE.lon}
        wanted = {"service_id": "plumbing", "kind": "on_demand", "location": place, "key": "fuzz"}
        booking = self.command(customer, "booking.create", **wanted)["booking"]
        organisation = self.command(provider, "organisation.list")["organisations"][0]
        self.real: JSON = {
            "booking_id": booking["id"],
            "conversation_id": booking["id"],
            "provider_id": organisation["provider_id"],
            "organisation_id": organisation["id"],
            "service_id": "plumbing",
            "user_id": people[1]["user"]["id"],
            "refresh_token": people[0]["refresh_token"],
        }

    def command(self, token: str, method: str, **params: Any) -> JSON:
        answer = httpx.post(
            f"{self.process.url}/commands/{method}", json=params, headers={"Authorization": f"Bearer {token}"}
        )
        result: JSON = answer.raise_for_status().json()
        return result


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with FixnadoProcess() as process:
        yield Stage(process)
        assert process.is_running()
        assert process.flaws() == []


@pytest.mark.parametrize(("label", "mode"), CASES)
def test_no_request_makes_the_server_fail(stage: Stage, label: str, mode: GenerationMode) -> None:
    operation = OPERATIONS[label]
    # Nobody may sign the others out.
    tokens = ["fuzz"] if "logout" in label or label.startswith("DELETE") else stage.tokens

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), token=st.sampled_from(tokens), real=st.booleans())
    def attempt(case: Any, token: str, real: bool) -> None:
        if real and isinstance(case.body, dict):
            case.body = {name: stage.real.get(name, value) for name, value in case.body.items()}
        answer = case.call(base_url=stage.process.url, headers={"Authorization": f"Bearer {token}"}, timeout=10)
        assert answer.status_code < 500, answer.text
        assert answer.headers["x-correlation-id"]
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == ["application/problem+json"]
            problem = answer.json()
            assert problem["status"] == answer.status_code
            assert problem["type"] != "internal"

    attempt()
