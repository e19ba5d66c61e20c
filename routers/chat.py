"""Chat over HTTP: a message to a model and its answer, streamed or whole."""

import itertools
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel, Field, RootModel

from app.database import Session
from app.errors import UpstreamError
from app.tokens import Claims
from routers import messages, problems
from routers.dependencies import CallerDep, State, StateDep
from routers.messages import MessageView
from routers.problems import Problem, documented
from routers.requests import ExactRoute, StorableText, examples, largest_body
from services import accounts, chat
from services.chat import Answered, Question, Turn
from services.turns import Run

router = APIRouter(tags=["chat"], route_class=ExactRoute)

LARGEST_BODY_BYTES = 1_310_720
"""A message of 100,000 characters takes up to 12 bytes for each of them in JSON."""

_KEEP_ALIVE = format_sse_event(comment="the model is at it")
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_EVENTS = """The answer. With `stream` (the default) server-sent events: `delta` with `{"content": …}` again and \
again, then `done` with the same object as without `stream`, or `error` with a problem."""


class ChatRequest(BaseModel):
    """A message to the model."""

    model_config = examples({"message": "What is a token?", "stream": False}, {"message": "And what is a model?"})

    message: Annotated[StorableText, Field(min_length=1, max_length=100_000)]
    conversation_id: Annotated[StorableText, Field(min_length=1, max_length=255)] | None = None
    model: Annotated[StorableText, Field(min_length=1, max_length=255)] | None = None
    stream: bool = True


class ChatAnswer(BaseModel):
    """The model's answer, and where it stands."""

    conversation_id: str
    message: MessageView


class ChatDelta(BaseModel):
    """The next piece of the answer."""

    content: str


class DeltaEvent(BaseModel):
    """More of the answer has come."""

    event: Literal["delta"]
    data: ChatDelta


class DoneEvent(BaseModel):
    """The answer is complete, stored and counted. The last event."""

    event: Literal["done"]
    data: ChatAnswer


class ErrorEvent(BaseModel):
    """The answer failed. The last event."""

    event: Literal["error"]
    data: Problem


class ChatEvent(RootModel[Annotated[DeltaEvent | DoneEvent | ErrorEvent, Field(discriminator="event")]]):
    """An event of the stream, once its `data` is parsed as JSON."""


def _as_sent(event: str, data: type[BaseModel]) -> dict[str, Any]:
    """Describe an event on the wire, where its data is a text (OpenAPI 3.2, section 4.14.4)."""
    content = {
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": f"#/components/schemas/{data.__name__}"},
    }
    properties = {"event": {"const": event}, "data": {"type": "string", **content}}
    return {"type": "object", "properties": properties, "required": ["event", "data"]}


_STREAM = {
    "itemSchema": {
        "description": "`ChatEvent` is the same with its `data` parsed.",
        "oneOf": [_as_sent("delta", ChatDelta), _as_sent("done", ChatAnswer), _as_sent("error", Problem)],
    }
}

IdempotencyKey = Annotated[
    Annotated[StorableText, Field(min_length=1, max_length=255)] | None,
    Header(
        alias="Idempotency-Key",
        description="The caller's own name of this request: sent again, it is answered with the same message.",
    ),
]


@router.post(
    "/chat",
    operation_id="chat",
    response_model=ChatAnswer,
    responses={
        200: {"description": _EVENTS, "content": {"text/event-stream": _STREAM}},
        **documented(401, 404, 409, 422, 502, 503, 504),
    },
)
@largest_body(lambda _: LARGEST_BODY_BYTES)
async def post_chat(
    body: ChatRequest, caller: CallerDep, state: StateDep, idempotency_key: IdempotencyKey = None
) -> Any:
    """Sends a message to the model; its answer is stored and counted before `done` is sent."""
    begun = await _begin(state, caller, body, idempotency_key)
    if isinstance(begun, Turn):
        run = state.turns.start(begun, stream=body.stream)
        if body.stream:
            return StreamingResponse(_events(run), media_type="text/event-stream", headers=_STREAM_HEADERS)
        return _answer(await run.result())
    if begun.message.status != "complete":
        raise UpstreamError("The answer to this Idempotency-Key failed; ask again with a new one.")
    if body.stream:
        return StreamingResponse(_replayed(begun), media_type="text/event-stream", headers=_STREAM_HEADERS)
    return _answer(begun)


async def _begin(state: State, caller: Claims, body: ChatRequest, idempotency_key: str | None) -> Turn | Answered:
    model = state.upstream.model_for(body.model)
    question = Question(caller.user_id, body.message, model, body.conversation_id, idempotency_key)
    name = state.turns.lease.new_turn()
    attempts = itertools.count()

    async def work(session: Session) -> Turn | Answered:
        is_first = next(attempts) == 0
        await accounts.require_role(session, caller)
        return await chat.begin(session, question, name, state.settings.usage_timezone, is_first=is_first)

    return await state.turns.begin(name, work)


def _answer(answered: Answered) -> ChatAnswer:
    return ChatAnswer(conversation_id=answered.conversation_id, message=messages.view(answered.message))


async def _events(run: Run) -> AsyncIterator[bytes]:
    try:
        async for piece in run.pieces():
            yield _delta(piece) if piece else _KEEP_ALIVE
        try:
            yield _done(await run.result())
        except Exception as error:  # the status was sent long ago: the caller is told in the stream
            yield _event("error", problems.content_of(problems.as_problem(error)))
    finally:
        run.abandon()


async def _replayed(answered: Answered) -> AsyncIterator[bytes]:
    if answered.message.content:
        yield _delta(answered.message.content)
    yield _done(answered)


def _delta(piece: str) -> bytes:
    return _event("delta", {"content": piece})


def _done(answered: Answered) -> bytes:
    return format_sse_event(event="done", data_str=_answer(answered).model_dump_json())


def _event(name: str, data: dict[str, Any]) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data))
