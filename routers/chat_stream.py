"""Stream a chat's answer as server-sent events, for two kinds of readers.

The frontend of the earlier backend reads only lines that begin with `data: `, and parses each of them by itself. It
loses a line that the network delivers in two parts. So each event is one line of ASCII in one write. Before a long last
event, a short delta ends the answer for that reader.
"""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

from fastapi.sse import format_sse_event
from pydantic import BaseModel, Field, RootModel
from pydantic.json_schema import SkipJsonSchema

from app.errors import CallerTooSlow
from routers import messages
from routers.http import problems
from routers.http.problems import Problem
from routers.messages import MessageView
from services.chat.runner import RunningTurn
from services.chat.turns import Answered

_KEEP_ALIVE = format_sse_event(comment="the model is working")

# Characters of the content of one delta, and of the data of a last event that a line-splitting reader gets whole.
MAX_DELTA = 1_000
MAX_LAST = 4_000

_END = {"content": "", "done": True}

_FOR_THE_FRONTEND = "For the frontend of the earlier backend"


class ChatAnswer(BaseModel):
    """The model's answer, and its conversation."""

    conversation_id: str
    message: MessageView


class ChatDone(ChatAnswer):
    """The complete answer, in the last event."""

    content: Literal[""] = Field("", description=_FOR_THE_FRONTEND)
    done: Literal[True] = Field(True, description=_FOR_THE_FRONTEND)


class ChatStart(BaseModel):
    """The ids of the conversation and of both messages."""

    conversation_id: str
    user_message_id: int | None = Field(description="The message that was sent; null if it is unknown")
    message_id: int = Field(description="The answer: the `message_id` of `POST /chat/{message_id}/stop`")
    content: Literal[""] = Field(description=_FOR_THE_FRONTEND)
    done: Literal[False] = Field(description=_FOR_THE_FRONTEND)


class ChatDelta(BaseModel):
    """The next piece of the answer."""

    content: str
    conversation_id: str
    done: bool = Field(description=f"{_FOR_THE_FRONTEND}; true in an empty delta before a long last event")
    error: str | SkipJsonSchema[None] = Field(None, description="With `done`: why the answer failed")


class ChatFailure(Problem):
    """Why the answer failed, and the usage counted."""

    conversation_id: str
    answer: MessageView | None = Field(
        description="The answer as stored and counted; null if it could not be stored yet"
    )
    content: Literal[""] = Field(description=_FOR_THE_FRONTEND)
    done: Literal[True] = Field(description=_FOR_THE_FRONTEND)


class StartEvent(BaseModel):
    """The question is stored, and the model is asked. The first event."""

    event: Literal["start"]
    data: ChatStart


class DeltaEvent(BaseModel):
    """More of the answer has come."""

    event: Literal["delta"]
    data: ChatDelta


class DoneEvent(BaseModel):
    """The answer is complete, stored and counted. The last event."""

    event: Literal["done"]
    data: ChatDone


class ErrorEvent(BaseModel):
    """The answer failed. The last event."""

    event: Literal["error"]
    data: ChatFailure


class ChatEvent(RootModel[Annotated[StartEvent | DeltaEvent | DoneEvent | ErrorEvent, Field(discriminator="event")]]):
    """An event of the stream with its `data` parsed."""


def _as_sent(event: str, data: type[BaseModel]) -> dict[str, Any]:
    """Describe an event on the wire (OpenAPI 3.2, section 4.14.4)."""
    content = {
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": f"#/components/schemas/{data.__name__}"},
    }
    properties = {"event": {"const": event}, "data": {"type": "string", **content}}
    return {"type": "object", "properties": properties, "required": ["event", "data"]}


DESCRIPTION = {
    "itemSchema": {
        "description": "`ChatEvent` is the same with its `data` parsed.",
        "oneOf": [
            _as_sent("start", ChatStart),
            _as_sent("delta", ChatDelta),
            _as_sent("done", ChatDone),
            _as_sent("error", ChatFailure),
        ],
    }
}


def answer(answered: Answered) -> ChatAnswer:
    """Show a stored answer as it is returned without a stream."""
    return ChatAnswer(conversation_id=answered.conversation_id, message=messages.view(answered.message))


async def events(run: RunningTurn) -> AsyncIterator[bytes]:
    """Stream an answer while the model gives it."""
    turn = run.turn
    try:
        yield _start(turn.conversation_id, turn.user_message_id, turn.message_id)
        async for piece in run.pieces.read():
            for event in _deltas(turn.conversation_id, piece) if piece else (_KEEP_ALIVE,):
                yield event
        try:
            if run.pieces.is_dropped:
                raise CallerTooSlow("The stream was not read for too long. The answer is in its conversation.")
            last = _done(await run.result())
        except Exception as error:  # the status was sent long ago: the stream reports the error
            last = _error(turn.conversation_id, error, run.answered)
        for event in last:
            yield event
    finally:
        run.abandon()


async def replayed(answered: Answered) -> AsyncIterator[bytes]:
    """Stream a stored answer."""
    yield _start(answered.conversation_id, answered.user_message_id, answered.message.id)
    for event in _deltas(answered.conversation_id, answered.message.content or ""):
        yield event
    for event in _done(answered):
        yield event


def _start(conversation_id: str, user_message_id: int | None, message_id: int) -> bytes:
    ids = {"conversation_id": conversation_id, "user_message_id": user_message_id, "message_id": message_id}
    return _event("start", {**ids, "content": "", "done": False})


def _deltas(conversation_id: str, text: str) -> Iterator[bytes]:
    for start in range(0, len(text), MAX_DELTA):
        piece = text[start : start + MAX_DELTA]
        yield _event("delta", {"content": piece, "conversation_id": conversation_id, "done": False})


def _error(conversation_id: str, error: Exception, answered: Answered | None) -> Iterator[bytes]:
    shown = None if answered is None else messages.view(answered.message).model_dump(mode="json")
    problem = problems.content_of(problems.as_problem(error))
    data = {**problem, "conversation_id": conversation_id, "answer": shown, **_END}
    return _last("error", conversation_id, data, error=problem["error"])


def _done(answered: Answered) -> Iterator[bytes]:
    return _last("done", answered.conversation_id, {**answer(answered).model_dump(mode="json"), **_END})


def _last(name: str, conversation_id: str, data: dict[str, Any], **error: str) -> Iterator[bytes]:
    """Yield the last event; before a long one, also a short end."""
    event = _event(name, data)
    if len(event) > MAX_LAST:
        yield _event("delta", {**_END, "conversation_id": conversation_id, **error})
    yield event


def _event(name: str, data: dict[str, Any]) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data, separators=(",", ":")))
