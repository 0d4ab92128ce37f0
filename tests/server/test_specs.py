from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from channels.protocol import CloseCode
from domain.catalogue import COMMANDS, EVENTS
from domain.commands import Mode
from domain.types import JSON
from server import specs
from server.operations import OPERATIONS

DOCUMENTS = {path: make() for path, make in specs.documents().items()}
OPENAPI = DOCUMENTS["/openapi/fixnado.v1.json"]
ASYNCAPI = DOCUMENTS["/asyncapi/fixnado.v1.json"]


def test_the_checked_in_files_are_current() -> None:
    assert specs.stale() == [], "run `make specs`"
    for path, document in DOCUMENTS.items():
        assert json.loads((specs.ROOT / path.lstrip("/")).read_bytes()) == document


def test_a_stale_or_missing_file_is_noticed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs, "ROOT", tmp_path)
    files = {tmp_path / "openapi" / "fixnado.v1.json", tmp_path / "asyncapi" / "fixnado.v1.json"}
    (tmp_path / "docs").mkdir()
    assert files <= set(specs.stale())
    assert files <= set(specs.write())
    assert specs.stale() == []
    assert specs.write() == []
    changed = tmp_path / "asyncapi" / "fixnado.v1.json"
    changed.write_bytes(changed.read_bytes().replace(b"booking.created", b"booking.made"))
    assert specs.stale() == [changed]
    assert specs.write() == [changed]


def test_openapi_is_valid() -> None:
    errors = list(OpenAPIV31SpecValidator(OPENAPI).iter_errors())
    assert errors == []


def test_openapi_has_every_operation_and_every_command() -> None:
    for operation in OPERATIONS:
        described = OPENAPI["paths"][operation.path][operation.method.lower()]
        assert ("security" in described) is operation.signed_in
        assert str(operation.status) in described["responses"]
    commands = {path.removeprefix("/commands/") for path in OPENAPI["paths"] if path.startswith("/commands/")}
    assert commands == COMMANDS.keys() - {"session.connect"}
    for name in commands:
        described = OPENAPI["paths"][f"/commands/{name}"]["post"]
        assert described["security"] == [{"bearer": []}]
        assert described["x-who"] == COMMANDS[name].who.value
        headers = [parameter["name"] for parameter in described.get("parameters", [])]
        wanted = {Mode.KEYED: ["Idempotency-Key"], Mode.SESSION: ["X-Session"]}
        assert headers == wanted.get(COMMANDS[name].mode, [])
    assert OPENAPI["paths"]["/events"]["get"]["responses"]["200"]["content"].keys() == {"text/event-stream"}


def test_names_of_operations_are_unique() -> None:
    names = [described["operationId"] for path in OPENAPI["paths"].values() for described in path.values()]
    assert len(names) == len(set(names))


def test_asyncapi_has_every_command_every_event_and_every_close_code() -> None:
    assert ASYNCAPI["asyncapi"] == "3.0.0"
    messages = ASYNCAPI["components"]["messages"]
    for name in COMMANDS:
        assert {f"{name}.request", f"{name}.reply"} <= messages.keys()
    for name, event in EVENTS.items():
        assert messages[name]["x-event-class"] == event.event_class.value
        required = messages[name]["payload"]["properties"]["params"]["required"]
        assert ("offset" in required) is (event.event_class.value != "ephemeral")
    assert {"error", "ping", "drain", "session.expiring"} <= messages.keys()
    assert ASYNCAPI["x-close-codes"].keys() == {str(code.value) for code in CloseCode}
    for code, described in ASYNCAPI["x-close-codes"].items():
        assert described["come_back"] is (int(code) < 4500)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


@pytest.mark.parametrize("document", [OPENAPI, ASYNCAPI], ids=["openapi", "asyncapi"])
def test_every_reference_leads_somewhere(document: JSON) -> None:
    for reference in set(references(document)):
        assert reference.startswith("#/")
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part.replace("~1", "/").replace("~0", "~")]


@pytest.mark.parametrize("document", [OPENAPI, ASYNCAPI], ids=["openapi", "asyncapi"])
def test_every_schema_is_a_schema(document: JSON) -> None:
    for name, schema in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert schema.get("description"), f"{name} says nothing of itself"
    for message in document["components"].get("messages", {}).values():
        Draft202012Validator.check_schema(message["payload"])


def test_every_operation_of_the_socket_uses_messages_of_the_socket() -> None:
    known = ASYNCAPI["channels"]["socket"]["messages"]
    for operation in ASYNCAPI["operations"].values():
        used = [*operation["messages"], *operation.get("reply", {}).get("messages", [])]
        for reference in used:
            assert reference["$ref"].removeprefix("#/channels/socket/messages/") in known


def test_params_refuse_what_they_do_not_know() -> None:
    for command in COMMANDS.values():
        if command.name == "session.ack":
            continue  # its params are channel names
        schema = ASYNCAPI["components"]["schemas"][command.params.__name__]
        assert schema["additionalProperties"] is False, command.name
