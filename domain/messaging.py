"""The conversation of a booking: messages in a dense order, read marks that only move forward, typing that is never
stored.

A conversation has the id of its booking. Its people follow the booking's: the customer, the crew of whoever is
assigned now, and operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from domain import bookings, reaching
from domain.context import Context
from domain.events import Audience, Event, EventClass
from domain.types import JSON, new_id, wire_time
from domain.views import MAX_OFFSET, Key, Params, View


@dataclass(frozen=True, slots=True)
class Conversation:
    """``last_offset`` is the number of its newest message; 0 while it is empty."""

    id: str
    last_offset: int


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``offset`` counts from 1 within the conversation, without gaps."""

    id: str
    conversation_id: str
    offset: int
    sender_id: str
    sender_name: str
    text: str
    sent_at: datetime


class SendMessage(Params):
    """A message to the booking's people."""

    conversation_id: Annotated[str, Field(max_length=64)]
    text: Annotated[str, StringConstraints(min_length=1, max_length=4000)]
    key: Key


class ReadMessages(Params):
    """Everything up to ``offset`` was read; past the newest message means all of it."""

    conversation_id: Annotated[str, Field(max_length=64)]
    offset: Annotated[int, Field(ge=0, le=MAX_OFFSET)]


class History(Params):
    """``before`` is a message offset; without it, the newest messages."""

    conversation_id: Annotated[str, Field(max_length=64)]
    before: Annotated[int, Field(ge=1, le=MAX_OFFSET)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50


class SetTyping(Params):
    """Typing, or no longer."""

    conversation_id: Annotated[str, Field(max_length=64)]
    typing: bool


class MessageView(View):
    """A message; ``offset`` is its place in the conversation, from 1."""

    id: str
    conversation_id: str
    offset: int
    sender_id: str
    sender_name: str
    text: str
    sent_at: str


class MessageResult(View):
    """The message as stored."""

    message: MessageView


class ReadResult(View):
    """Where the caller's read mark stands now."""

    conversation_id: str
    read_offset: int
    unread: int


class ConversationView(View):
    """Messages oldest first; ``read`` maps people to how far they have read."""

    messages: list[MessageView]
    read: dict[str, int]
    unread: int
    has_more: bool


class MessageSentData(View):
    """A new message."""

    conversation_id: str
    message: MessageView


class ReceiptUpdatedData(View):
    """Somebody's read mark moved forward."""

    conversation_id: str
    user_id: str
    read_offset: int


class TypingData(View):
    """Who is typing, or no longer."""

    conversation_id: str
    user_id: str
    name: str


class TypingResult(View):
    """What was told to the others."""

    conversation_id: str
    typing: bool


async def send(ctx: Context, params: SendMessage) -> JSON:
    """Adds a message; its order among the others is settled where it takes its offset."""
    await _check_member(ctx, params.conversation_id)
    message = Message(
        id=new_id(ctx.now),
        conversation_id=params.conversation_id,
        offset=await ctx.uow.conversations.advance(params.conversation_id),
        sender_id=ctx.actor.user_id,
        sender_name=ctx.actor.name,
        text=params.text,
        sent_at=ctx.now,
    )
    await ctx.uow.conversations.append(message)
    ctx.uow.record(_event(ctx, "message.sent", {"conversation_id": message.conversation_id, "message": view(message)}))
    await reaching.watch_message(ctx, message)
    ctx.announce(_typing(ctx, message.conversation_id, typing=False))
    return {"message": view(message)}


async def read(ctx: Context, params: ReadMessages) -> JSON:
    """Moves the caller's read mark forward, never back."""
    await _check_member(ctx, params.conversation_id)
    conversation = await ctx.uow.conversations.lock(params.conversation_id)
    user_id = ctx.actor.user_id
    marked = (await ctx.uow.conversations.read_marks(params.conversation_id)).get(user_id, 0)
    wanted = min(params.offset, conversation.last_offset if conversation else 0)
    if wanted > marked:
        marked = wanted
        await ctx.uow.conversations.set_read_mark(params.conversation_id, user_id, marked)
        ctx.uow.record(
            _event(
                ctx,
                "receipt.updated",
                {"conversation_id": params.conversation_id, "user_id": user_id, "read_offset": marked},
            )
        )
    unread = await ctx.uow.conversations.unread(params.conversation_id, user_id)
    return {"conversation_id": params.conversation_id, "read_offset": marked, "unread": unread}


async def history(ctx: Context, params: History) -> JSON:
    """A page of the conversation, with everybody's read marks and the caller's unread count."""
    await _check_member(ctx, params.conversation_id)
    return await page(ctx, params.conversation_id, params.before, params.limit)


async def page(ctx: Context, conversation_id: str, before: int | None, limit: int) -> JSON:
    """Also the snapshot of a conversation's channel."""
    messages = await ctx.uow.conversations.page(conversation_id, before, limit)
    return {
        "messages": [view(message) for message in messages],
        "read": dict(await ctx.uow.conversations.read_marks(conversation_id)),
        "unread": await ctx.uow.conversations.unread(conversation_id, ctx.actor.user_id),
        "has_more": bool(messages) and messages[0].offset > 1,
    }


async def set_typing(ctx: Context, params: SetTyping) -> JSON:
    """Tells the others; it ends by itself after a few seconds."""
    await _check_member(ctx, params.conversation_id)
    ctx.announce(_typing(ctx, params.conversation_id, typing=params.typing))
    return {"conversation_id": params.conversation_id, "typing": params.typing}


def view(message: Message) -> JSON:
    """The message on the wire."""
    return {
        "id": message.id,
        "conversation_id": message.conversation_id,
        "offset": message.offset,
        "sender_id": message.sender_id,
        "sender_name": message.sender_name,
        "text": message.text,
        "sent_at": wire_time(message.sent_at),
    }


async def _check_member(ctx: Context, conversation_id: str) -> None:
    bookings.visible_to(ctx.actor, await ctx.uow.bookings.get(conversation_id))


def _event(ctx: Context, type_: str, data: JSON) -> Event:
    conversation_id = data["conversation_id"]
    return Event(
        id=new_id(ctx.now),
        type=type_,
        time=ctx.now,
        source=f"conversation/{conversation_id}",
        data=data,
        audience=Audience(conversation=conversation_id),
    )


def _typing(ctx: Context, conversation_id: str, *, typing: bool) -> Event:
    return Event(
        id=new_id(ctx.now),
        type="typing.started" if typing else "typing.stopped",
        time=ctx.now,
        source=f"conversation/{conversation_id}",
        data={"conversation_id": conversation_id, "user_id": ctx.actor.user_id, "name": ctx.actor.name},
        audience=Audience(conversation=conversation_id),
        event_class=EventClass.EPHEMERAL,
        key=f"{conversation_id}:{ctx.actor.user_id}",
    )
