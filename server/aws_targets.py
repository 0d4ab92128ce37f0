"""EventBridge and SQS as targets of the exporter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from domain.errors import Unavailable
from server.aws import Aws, AwsRefusal, is_throttling
from server.exporter import TAKEN, Answer, Busy, Outgoing, Verdict

POISON: Final = frozenset(
    {
        "ValidationException",
        "ValidationError",
        "InvalidMessageContents",
        "InvalidParameterValue",
        "InvalidParameterCombination",
        "InvalidAttributeValue",
        "MissingParameter",
        "MalformedDetail",
        "InvalidArgument",
        "BatchRequestTooLong",
        "AWS.SimpleQueueService.BatchRequestTooLong",
        "PutEventsEntryTooLarge",
        "SerializationException",
    }
)
"""Refusals of what is sent. Any other refusal of a whole call (no such queue, no rights, an unknown key) is the
target's trouble: nothing is put aside for it.
"""

TARGETS_TROUBLE: Final = frozenset(
    {
        "InternalFailure",
        "InternalError",
        "InternalException",
        "InternalServerError",
        "InternalServiceError",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "AccessDenied",
        "AccessDeniedException",
        "InvalidAccountIdException",
        "NotAuthorizedForSourceException",
    }
)
"""What is said of one event and is no fault of it: it is sent again, and never a dead letter for that. Besides
throttling, and whatever SQS does not call the sender's fault.
"""


class EventBridge:
    """A bus of Amazon EventBridge. ``Source`` is ``fixnado``, ``DetailType`` the event's type, ``Detail`` the event."""

    name = "eventbridge"

    def __init__(self, aws: Aws, bus: str) -> None:
        self._aws = aws
        self._bus = bus

    async def send(self, events: Sequence[Outgoing]) -> Sequence[Answer]:
        return await _sent(self._put, events)

    async def _put(self, events: Sequence[Outgoing]) -> Sequence[Answer]:
        entries = [
            {
                "EventBusName": self._bus,
                "Source": "fixnado",
                "DetailType": event.type,
                "Detail": event.body.decode(),
                "Resources": [event.source],
                "Time": datetime.fromisoformat(event.time),
            }
            for event in events
        ]
        said = (await self._aws.call("events", "put_events", Entries=entries))["Entries"]
        return [TAKEN if entry.get("EventId") else _answer(entry.get("ErrorCode")) for entry in said]


class Sqs:
    """A queue of Amazon SQS. In a FIFO queue the aggregate is the message group, and the event's id drops repeats."""

    name = "sqs"

    def __init__(self, aws: Aws, queue_url: str) -> None:
        self._aws = aws
        self._queue_url = queue_url
        self._fifo = queue_url.endswith(".fifo")

    async def send(self, events: Sequence[Outgoing]) -> Sequence[Answer]:
        return await _sent(self._put, events)

    async def _put(self, events: Sequence[Outgoing]) -> Sequence[Answer]:
        entries = [self._entry(str(place), event) for place, event in enumerate(events)]
        said = await self._aws.call("sqs", "send_message_batch", QueueUrl=self._queue_url, Entries=entries)
        failed: Mapping[str, Any] = {entry["Id"]: entry for entry in said.get("Failed", ())}
        taken = {entry["Id"] for entry in said.get("Successful", ())}
        answers = []
        for entry in entries:
            why = failed.get(entry["Id"], {})
            # What the answer does not name is not known to be there: it is sent again.
            answer = _answer(why.get("Code"), senders_fault=why.get("SenderFault", True))
            answers.append(TAKEN if entry["Id"] in taken else answer)
        return answers

    def _entry(self, place: str, event: Outgoing) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "Id": place,
            "MessageBody": event.body.decode(),
            "MessageAttributes": {
                "content-type": {"DataType": "String", "StringValue": "application/cloudevents+json"},
                "type": {"DataType": "String", "StringValue": event.type},
            },
        }
        if self._fifo:
            entry |= {"MessageGroupId": group_of(event.source), "MessageDeduplicationId": event.id}
        return entry


def group_of(source: str) -> str:
    """A message group: up to 128 letters, digits and punctuation."""
    if len(source) <= 128 and source.isascii() and source.isprintable() and " " not in source:
        return source
    return hashlib.sha256(source.encode()).hexdigest()


async def _sent(put: Any, events: Sequence[Outgoing]) -> Sequence[Answer]:
    """The answers; where a whole call is refused for what is in it, each event is judged by itself."""
    try:
        answers: Sequence[Answer] = await put(events)
        return answers
    except AwsRefusal as error:
        if error.throttled:
            raise Busy from error
        if error.reason not in POISON:
            raise Unavailable from error
        if len(events) == 1:
            return [Answer(Verdict.REFUSED, error.reason)]
    return [(await _sent(put, [event]))[0] for event in events]


def _answer(code: str | None, *, senders_fault: bool = True) -> Answer:
    """What is said of one event; without a code nothing is, and it is sent again.

    A code that nobody knows is a refusal: were it not, one event could hold up all others.
    """
    refused = code is not None and senders_fault and code not in TARGETS_TROUBLE and not is_throttling(code)
    return Answer(Verdict.REFUSED if refused else Verdict.BUSY, code or "unnamed")
