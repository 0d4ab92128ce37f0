"""What is generated from the catalogue: the two specification files, and the page about a booking's life.

``openapi/fixnado.v1.json`` (OpenAPI 3.1) describes REST, ``asyncapi/fixnado.v1.json`` (AsyncAPI 3.0) the socket. Both
are checked in, so that a change of the contract shows in review, and CI fails when they are stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

from channels.event_stream import MAX_PLACES_BYTES
from channels.protocol import SUBPROTOCOL, CloseCode
from domain import snapshots
from domain.catalogue import COMMANDS, EVENTS
from domain.commands import Command, Mode
from domain.events import EventClass
from domain.session import Position
from domain.types import JSON
from domain.views import Params, View
from server import lifecycle_page
from server.operations import OPERATIONS, Operation
from server.requests import EVENTS_PATH

API_VERSION = "1.0.0"
ROOT = Path(__file__).parent.parent
PATHS = {"/openapi/fixnado.v1.json": "openapi", "/asyncapi/fixnado.v1.json": "asyncapi"}

_REF = "#/components/schemas/{model}"


class Problem(View):
    """A problem document (RFC 9457). ``type`` is a stable code, the same as in errors on the socket. Some types bring
    members of their own: ``invalid_params`` has ``errors`` ([{where, why}]), ``too_many_requests`` has
    ``retry_after_seconds``, ``conflict`` has ``version``.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    title: str
    status: int
    detail: str
    retryable: bool
    correlation_id: str


class Health(View):
    """``dependencies`` names each dependency and how it is; only readiness has it."""

    status: Literal["live", "ready", "not_ready"]
    dependencies: dict[str, dict[str, str]] | None = None


class StreamParams(Params):
    """Where a client of an event stream stands; what it asks for without a place begins with a snapshot."""

    client: str | None = None
    resume: dict[str, Position | None] | None = None


def documents() -> dict[str, Callable[[], JSON]]:
    """What makes each specification, by the path under which it is served. Making one takes a fifth of a second."""
    makers = {"openapi": openapi, "asyncapi": asyncapi}
    return {path: makers[name] for path, name in PATHS.items()}


def write() -> list[Path]:
    """Writes both files into the checkout; returns those that changed."""
    return [file for file, text in _files() if _replaced(file, text)]


def stale() -> list[Path]:
    """The files that are not what the catalogue says now."""
    return [file for file, text in _files() if not file.is_file() or file.read_bytes() != text]


def _files() -> Iterable[tuple[Path, bytes]]:
    for path, make in documents().items():
        yield ROOT / path.lstrip("/"), orjson.dumps(make(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    yield ROOT / "docs" / "booking-lifecycle.md", lifecycle_page.page().encode()


def _replaced(file: Path, text: bytes) -> bool:
    if file.is_file() and file.read_bytes() == text:
        return False
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text)
    return True


# --- REST -------------------------------------------------------------------------------------------------------------


def openapi() -> JSON:
    """OpenAPI 3.1 of the REST surface."""
    paths: JSON = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    paths[EVENTS_PATH] = {"get": _stream("events"), "post": _stream("eventsAfter")}
    for command in _commands():
        paths[f"/commands/{command.name}"] = {"post": _command(command)}
    paths["/health/live"] = {"get": _plain("Whether the process runs.", "live", Health)}
    ready = _plain("Whether it can serve: each dependency by name.", "ready", Health)
    ready["responses"]["503"] = _json("A dependency is failing.", _ref(Health))
    paths["/health/ready"] = {"get": ready}
    paths["/metrics"] = {
        "get": {
            "summary": "Prometheus metrics.",
            "operationId": "metrics",
            "tags": ["operations"],
            "responses": {
                "200": {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}
            },
        }
    }
    paths["/calendars/{token}.ics"] = {
        "get": {
            "summary": "A provider's jobs, for calendar programs; `calendar.issue_feed` gives the token.",
            "operationId": "calendarFeed",
            "tags": ["operations"],
            "parameters": [
                {
                    "name": "token",
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "pattern": "^fxc_[A-Za-z0-9_-]{43}$"},
                }
            ],
            "responses": {
                "200": {
                    "description": "An iCalendar text (RFC 5545).",
                    "content": {"text/calendar": {"schema": {"type": "string"}}},
                },
                "default": {"$ref": "#/components/responses/Problem"},
            },
        }
    }
    paths["/.well-known/jwks.json"] = {
        "get": {
            "summary": "The keys that verify access tokens (RFC 7517).",
            "operationId": "jwks",
            "tags": ["auth"],
            "responses": {"200": _json("A JWK Set.", {"type": "object"})},
        }
    }
    models: list[type[BaseModel]] = [Problem, Health, StreamParams]
    for operation in OPERATIONS:
        models += [model for model in (operation.params, operation.result) if model is not None]
    for command in _commands():
        models += [command.params, command.result]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Fixnado Realtime",
            "version": API_VERSION,
            "description": "Login, health, and every command of the socket for clients that have none.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": "auth"}, {"name": "commands"}, {"name": "events"}, {"name": "operations"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(models),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "responses": {
                "Problem": {
                    "description": "Refused; `type` says why.",
                    "headers": {"X-Correlation-ID": {"schema": {"type": "string"}}},
                    "content": {"application/problem+json": {"schema": _ref(Problem)}},
                }
            },
        },
    }


def _operation(operation: Operation) -> JSON:
    shape: JSON = {
        "summary": operation.summary,
        "operationId": _identifier(f"{operation.method.lower()} {operation.path}"),
        "tags": ["auth"],
        "responses": {
            str(operation.status): _json("Done.", _ref(operation.result))
            if operation.result
            else {"description": "Done."},
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }
    if operation.params is not None:
        shape["requestBody"] = _body(_ref(operation.params))
    if operation.signed_in:
        shape["security"] = [{"bearer": []}]
    names = re.findall(r"\{(\w+)\}", operation.path)
    if names:
        shape["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return shape


def _commands() -> Iterable[Command]:
    """Those of REST: opening a session is what ``/events`` does."""
    return (command for command in COMMANDS.values() if command.name != "session.connect")


def _stream(name: str) -> JSON:
    """``/events``, with the place to resume from in a header (GET) or in the body (POST)."""
    shape: JSON = {
        "summary": "What a socket would say, as Server-Sent Events; docs/sse.md has the details.",
        "operationId": name,
        "tags": ["events"],
        "security": [{"bearer": []}],
        "responses": {
            "200": {
                "description": "A stream. Each event's data is one JSON-RPC message, as on the socket; the first "
                "is the answer to `session.connect`, and `close` is the last.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }
    if name == "events":
        shape["parameters"] = [
            {
                "name": "Last-Event-ID",
                "in": "header",
                "required": False,
                "description": "The newest `id` of each channel, one after the other.",
                "schema": {"type": "string", "maxLength": MAX_PLACES_BYTES},
            }
        ]
    else:
        shape["requestBody"] = _body(_ref(StreamParams))
    return shape


def _command(command: Command) -> JSON:
    shape: JSON = {
        "summary": command.summary,
        "operationId": _identifier(command.name),
        "tags": ["commands"],
        "security": [{"bearer": []}],
        "x-who": command.who.value,
        "requestBody": _body(_ref(command.params)),
        "responses": {
            "200": _json("Done.", _ref(command.result)),
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }
    if command.mode is Mode.SESSION:
        shape["parameters"] = [
            {
                "name": "X-Session",
                "in": "header",
                "required": True,
                "description": "The session of the event stream that this is about.",
                "schema": {"type": "string", "maxLength": 64},
            }
        ]
    if command.mode is Mode.KEYED:
        shape["parameters"] = [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "In place of `key` in the body: the effect happens once per key.",
                "schema": {"type": "string", "maxLength": 64},
            }
        ]
    return shape


def _plain(summary: str, name: str, model: type[BaseModel]) -> JSON:
    return {
        "summary": summary,
        "operationId": name,
        "tags": ["operations"],
        "responses": {"200": _json("Well.", _ref(model))},
    }


def _body(schema: JSON) -> JSON:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _json(description: str, schema: JSON) -> JSON:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


# --- the socket -------------------------------------------------------------------------------------------------------

CHANNELS = {
    "user": ("user:{id}", "One person: notifications, sessions, and what happens to their own bookings."),
    "provider": ("provider:{id}", "A provider's members: offers and live status."),
    "booking": ("booking:{id}", "A booking's people: its course, SLA, ETA and position."),
    "conversation": ("conversation:{id}", "A booking's conversation."),
    "organisation": ("organisation:{id}", "An organisation's managers: its bookings, crew, members and invitations."),
    "zone": ("zone:{id}", "A zone's providers and operations."),
    "availability": ("availability:{service_id}:{zone_id}", "Slots of a service in a zone."),
    "admin": ("admin:bookings", "Operations: every booking and offer."),
    "zones": ("admin:zones", "Operations who ask for it: where demand and supply of each zone are."),
    "security": ("admin:security", "Admins who ask for it: every row that the audit log gets."),
}
"""Logical channels that travel over the one socket, with their patterns."""


def asyncapi() -> JSON:
    """AsyncAPI 3.0 of the socket."""
    messages: JSON = {}
    operations: JSON = {}
    for command in COMMANDS.values():
        request, reply = f"{command.name}.request", f"{command.name}.reply"
        messages[request] = _request(command)
        messages[reply] = _reply(command)
        operations[_identifier(command.name)] = {
            "action": "receive",
            "summary": command.summary,
            "channel": {"$ref": "#/channels/socket"},
            "messages": [{"$ref": f"#/channels/socket/messages/{request}"}],
            "reply": {
                "channel": {"$ref": "#/channels/socket"},
                "messages": [
                    {"$ref": f"#/channels/socket/messages/{reply}"},
                    {"$ref": "#/channels/socket/messages/error"},
                ],
            },
        }
    messages["error"] = _error()
    for event in EVENTS.values():
        messages[event.name] = _event(event.name, event.summary, event.data, event.event_class)
    for method, summary, params in _NOTIFICATIONS:
        messages[method] = _notification(method, summary, params)
    sent = [*EVENTS, *(method for method, *_ in _NOTIFICATIONS)]
    operations["events"] = {
        "action": "send",
        "summary": "Events and notices the server sends by itself.",
        "channel": {"$ref": "#/channels/socket"},
        "messages": [{"$ref": f"#/channels/socket/messages/{name}"} for name in sent],
    }
    models: list[type[BaseModel]] = [command.params for command in COMMANDS.values()]
    models += [command.result for command in COMMANDS.values()]
    models += [event.data for event in EVENTS.values()]
    models += [snapshots.BookingState, snapshots.ConversationState, snapshots.ProviderState, snapshots.FeedState]
    models.append(snapshots.SecurityState)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Fixnado Realtime",
            "version": API_VERSION,
            "description": (
                f"JSON-RPC 2.0 in text frames, subprotocol `{SUBPROTOCOL}`. The first message is `session.connect`."
            ),
            "license": {"name": "MIT"},
        },
        "servers": {"local": {"host": "127.0.0.1:8000", "protocol": "ws", "description": "The demo."}},
        "defaultContentType": "application/json",
        "channels": {
            "socket": {
                "address": "/socket",
                "title": "The socket",
                "description": "Everything travels over one socket; events name their channel.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
            }
        },
        "operations": operations,
        "components": {"messages": messages, "schemas": _schemas(models)},
        "x-logical-channels": {
            name: {"pattern": pattern, "about": about} for name, (pattern, about) in CHANNELS.items()
        },
        "x-close-codes": {str(code.value): {"meaning": code.reason, "come_back": code.come_back} for code in CloseCode},
    }


_NOTIFICATIONS = (
    ("ping", "A sign of life; answer with `pong`.", None),
    ("session.expiring", "The access token ends soon: send `session.refresh`.", {"expires_in_seconds": "number"}),
    ("drain", "The server goes away: reconnect after this time.", {"reconnect_after_ms": "integer"}),
)


def _request(command: Command) -> JSON:
    properties = {"id": _ID, "method": {"const": command.name}, "params": _ref(command.params)}
    return _message(f"{command.name}.request", command.summary, properties)


def _reply(command: Command) -> JSON:
    properties = {"id": _ID, "result": _ref(command.result)}
    return _message(f"{command.name}.reply", f"The answer to `{command.name}`.", properties)


def _error() -> JSON:
    data = {
        "type": "object",
        "required": ["type", "status", "retryable", "correlation_id"],
        "properties": {
            "type": {"type": "string"},
            "status": {"type": "integer"},
            "retryable": {"type": "boolean"},
            "correlation_id": {"type": "string"},
        },
    }
    error = {
        "type": "object",
        "required": ["code", "message", "data"],
        "properties": {"code": {"type": "integer"}, "message": {"type": "string"}, "data": data},
    }
    return _message("error", "A refusal.", {"id": {"type": ["string", "integer", "null"]}, "error": error})


def _event(name: str, summary: str, data: type[BaseModel], event_class: EventClass) -> JSON:
    params: JSON = {
        "type": "object",
        "required": ["channel", "id", "type", "time", "source", "data"],
        "properties": {
            "channel": {"type": "string"},
            "offset": {"type": "integer", "minimum": 1},
            "id": {"type": "string"},
            "type": {"const": name},
            "time": {"type": "string", "format": "date-time"},
            "source": {"type": "string"},
            "correlationid": {"type": "string"},
            "traceparent": {"type": "string"},
            "data": _ref(data),
        },
    }
    if event_class is not EventClass.EPHEMERAL:
        params["required"].insert(1, "offset")
    message = _message(name, summary, {"method": {"const": "event"}, "params": params})
    message["x-event-class"] = event_class.value
    return message


def _notification(method: str, summary: str, params: dict[str, str] | None) -> JSON:
    properties: JSON = {"method": {"const": method}}
    if params:
        properties["params"] = {
            "type": "object",
            "required": list(params),
            "properties": {name: {"type": kind} for name, kind in params.items()},
        }
    return _message(method, summary, properties)


_ID: JSON = {"type": ["string", "integer"]}


def _message(name: str, summary: str, properties: JSON) -> JSON:
    properties = {"jsonrpc": {"const": "2.0"}, **properties}
    return {
        "name": name,
        "summary": summary,
        "payload": {"type": "object", "required": list(properties), "properties": properties},
    }


# --- schemas ----------------------------------------------------------------------------------------------------------


def _ref(model: type[BaseModel] | None) -> JSON:
    assert model is not None
    return {"$ref": _REF.format(model=model.__name__)}


def _schemas(models: Iterable[type[BaseModel]]) -> JSON:
    unique = dict.fromkeys(models)
    names = [model.__name__ for model in unique]
    assert len(names) == len(set(names)), "two shapes share a name; references would mix them up"
    _, definitions = models_json_schema([(model, "validation") for model in unique], ref_template=_REF)
    schemas: JSON = definitions["$defs"]
    for model in unique:
        # On REST and on the socket alike a shape is known by its class; nested ones are there already.
        assert model.__name__ in schemas
    return schemas


def _identifier(name: str) -> str:
    parts: list[str] = [part for part in re.split(r"[^A-Za-z0-9]+", name) if part]
    return parts[0] + "".join(part.capitalize() for part in parts[1:])
