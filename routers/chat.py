"""Chat over HTTP: a message to a model and its answer, streamed or whole."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, RootModel

from app.db.database import Session
from app.errors import CallerTooSlow, UpstreamError
from app.security.tokens import Claims
from routers import messages
from routers.http import problems
from routers.http.dependencies import CallerDep, State, StateDep
from routers.http.problems import Problem, documented
from routers.http.requests import Digits, ExactRoute, StorableText, examples, largest_body
from routers.messages import MessageView
from services.accounts import users
from services.chat import runner, turns
from services.chat.runner import RunningTurn
from services.chat.turns import Answered, Options, Question, Turn

router = APIRouter(tags=["chat"], route_class=ExactRoute)

LARGEST_BODY_BYTES = 2_621_440
"""A message of 100,000 characters takes up to 12 bytes for each of them in JSON."""

_KEEP_ALIVE = format_sse_event(comment="the model is at it")
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_EVENTS = """The answer. With `stream` (the default) server-sent events: `start` with the \
ids, `delta` with `{"content": …}` repeatedly, then `done` with the same object as without `stream`, or `error` with a \
problem and the answer as counted. An answer that was stopped ends with `done`, too."""


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("it must be a number")
    return value


class ChatRequest(BaseModel):
    """A message to the model. A field of another name is refused."""

    model_config = examples(
        {"message": "What is a token?", "stream": False}, {"message": "And what is a model?"}
    ) | ConfigDict(extra="forbid")

    message: Annotated[StorableText, Field(min_length=1, max_length=100_000)]
    conversation_id: Annotated[StorableText, Field(min_length=1, max_length=255)] | None = None
    model: Annotated[StorableText, Field(min_length=1, max_length=255)] | None = None
    stream: bool = True
    system: Annotated[StorableText, Field(min_length=1, max_length=100_000)] | None = Field(
        None, description="Sent to the model first, with this request alone; counts as input."
    )
    temperature: Annotated[float, BeforeValidator(_number), Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None

    @property
    def options(self) -> Options:
        """What is passed on to the model's service as it is."""
        return self.model_dump(include={"temperature", "max_tokens", "reasoning_effort"}, exclude_none=True)


class ChatAnswer(BaseModel):
    """The model's answer, and where it stands."""

    conversation_id: str
    message: MessageView


class ChatStart(BaseModel):
    """Where the answer will stand, and the names by which it is stored."""

    conversation_id: str
    user_message_id: int | None = Field(description="The message that was sent; null where it is not known any more")
    message_id: int = Field(description="The answer, as `POST /chat/{message_id}/stop` wants it")


class ChatDelta(BaseModel):
    """The next piece of the answer."""

    content: str
    conversation_id: str


class ChatFailure(Problem):
    """Why the answer failed, and what it used all the same."""

    conversation_id: str
    answer: MessageView | None = Field(
        description="The answer as stored and counted, as far as it came; null where it could not be stored yet"
    )


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
    data: ChatAnswer


class ErrorEvent(BaseModel):
    """The answer failed. The last event."""

    event: Literal["error"]
    data: ChatFailure


class ChatEvent(RootModel[Annotated[StartEvent | DeltaEvent | DoneEvent | ErrorEvent, Field(discriminator="event")]]):
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
        "oneOf": [
            _as_sent("start", ChatStart),
            _as_sent("delta", ChatDelta),
            _as_sent("done", ChatAnswer),
            _as_sent("error", ChatFailure),
        ],
    }
}

MessageId = Annotated[int, Path(ge=1, le=2**63 - 1), Digits]
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
    body: ChatRequest, caller: CallerDep, state: StateDep, request: Request, idempotency_key: IdempotencyKey = None
) -> Any:
    """Send a message to the model; its answer is stored and counted before `done` is sent."""
    begun = await _begin(state, caller, body, idempotency_key)
    if isinstance(begun, Turn):
        run = state.runner.start(begun, stream=body.stream)
        if body.stream:
            return StreamingResponse(_events(run), media_type="text/event-stream", headers=_STREAM_HEADERS)
        return _answer(await _result(run, request, may_stop=state.settings.stop_on_hangup))
    if begun.message.status != "complete" and not runner.is_stopped(begun.message):
        raise UpstreamError("The answer to this Idempotency-Key failed; ask again with a new one.")
    if body.stream:
        return StreamingResponse(_replayed(begun), media_type="text/event-stream", headers=_STREAM_HEADERS)
    return _answer(begun)


@router.post(
    "/chat/{message_id}/stop",
    operation_id="stop_chat",
    status_code=202,
    responses={
        202: {"description": "The answer is being stopped: its stream ends with `done`"},
        204: {"description": "The answer had ended already"},
        **documented(401, 404, 422, 503),
    },
)
async def post_stop(message_id: MessageId, caller: CallerDep, state: StateDep) -> Response:
    """Stop an answer of the caller's own; what came of it is stored as `interrupted` and counted."""

    async def work(session: Session) -> str | None:
        await users.require_role(session, caller)
        return await turns.request_stop(session, caller.user_id, message_id)

    turn = await state.database.transaction(work, repeatable=True)
    if turn is None:
        return Response(status_code=204)
    state.runner.stop(turn)  # another process looks for the mark by itself
    return Response(status_code=202)


async def _result(run: RunningTurn, request: Request, *, may_stop: bool) -> Answered:
    """Await an answer; where a hang-up stops the model, look for one."""
    if not may_stop:
        return await run.result()
    hanging_up = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait((run.task, hanging_up), return_when=asyncio.FIRST_COMPLETED)
        if not run.task.done():
            run.abandon()
        return await run.result()
    finally:
        hanging_up.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _begin(state: State, caller: Claims, body: ChatRequest, idempotency_key: str | None) -> Turn | Answered:
    model = state.upstream.model_for(body.model)
    question = Question(
        caller.user_id, body.message, model, body.conversation_id, idempotency_key, body.system, body.options
    )
    name = state.runner.lease.new_turn()
    attempts = itertools.count()

    async def work(session: Session) -> Turn | Answered:
        is_first = next(attempts) == 0
        await users.require_role(session, caller)
        return await turns.begin(session, question, name, state.settings.usage_timezone, is_first=is_first)

    return await state.runner.begin(name, work)


def _answer(answered: Answered) -> ChatAnswer:
    return ChatAnswer(conversation_id=answered.conversation_id, message=messages.view(answered.message))


async def _events(run: RunningTurn) -> AsyncIterator[bytes]:
    turn = run.turn
    try:
        yield _start(turn.conversation_id, turn.user_message_id, turn.message_id)
        async for piece in run.pieces.read():
            yield _delta(turn.conversation_id, piece) if piece else _KEEP_ALIVE
        try:
            if run.pieces.is_dropped:
                raise CallerTooSlow("The stream was not read for too long. The answer is in its conversation.")
            yield _done(await run.result())
        except Exception as error:  # the status was sent long ago: the stream reports the error
            yield _error(turn.conversation_id, error, run.answered)
    finally:
        run.abandon()


async def _replayed(answered: Answered) -> AsyncIterator[bytes]:
    yield _start(answered.conversation_id, answered.user_message_id, answered.message.id)
    if answered.message.content:
        yield _delta(answered.conversation_id, answered.message.content)
    yield _done(answered)


def _start(conversation_id: str, user_message_id: int | None, message_id: int) -> bytes:
    ids = {"user_message_id": user_message_id, "message_id": message_id}
    return _event("start", {"conversation_id": conversation_id, **ids})


def _delta(conversation_id: str, piece: str) -> bytes:
    return _event("delta", {"content": piece, "conversation_id": conversation_id})


def _error(conversation_id: str, error: Exception, answered: Answered | None) -> bytes:
    answer = None if answered is None else messages.view(answered.message).model_dump(mode="json")
    problem = problems.content_of(problems.as_problem(error))
    return _event("error", {**problem, "conversation_id": conversation_id, "answer": answer})


def _done(answered: Answered) -> bytes:
    return format_sse_event(event="done", data_str=_answer(answered).model_dump_json())


def _event(name: str, data: dict[str, Any]) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data))
