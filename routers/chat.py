"""Serve chat over HTTP: messages and answers, streamed or whole."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.db.database import Session
from app.errors import BlankMessage, UpstreamError
from app.security.tokens import Claims
from models import ModelCategory
from routers import chat_stream
from routers.chat_stream import ChatAnswer
from routers.http.dependencies import CallerDep, State, StateDep
from routers.http.forms import Form, accepts_forms, forms_of
from routers.http.problems import documented
from routers.http.requests import Digits, ExactRoute, StorableText, examples, files_of, largest_body
from services.accounts import preferences, users
from services.chat import images, model_categories, requested_models, runner, stops, turns
from services.chat.images import Image
from services.chat.runner import RunningTurn
from services.chat.turns import Answered, Options, Question, Turn

router = APIRouter(tags=["chat"], route_class=ExactRoute)

LARGEST_BODY_BYTES = 2_621_440
"""Enough for a message of 100,000 characters, each of at most 12 bytes in JSON, and for a system text of as many."""

_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_EVENTS = """The answer. With `stream` (the default) server-sent events: `start` with the \
ids, `delta` with `{"content": …}` repeatedly, then `done` with the same object as without `stream`, or `error` with a \
problem and the answer as counted. An answer that was stopped ends with `done`, too."""


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("it must be a number")
    return value


_IGNORED: Any = Field(None, description="Accepted from the frontend of the earlier backend, and ignored.")


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
    model_id: Annotated[StorableText, Field(min_length=1, max_length=255)] | None = Field(
        None, description="OpenRouter's name of a model; another service is asked for its own one: see `MODEL_NAMES`."
    )
    category_id: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = Field(
        None,
        description="A model category of the caller's: its model answers, unless `model` or `model_id` names another."
        " Its name becomes the `model_type` of a new conversation. An unknown id is ignored.",
    )
    document_contexts: Any = _IGNORED
    context_collection: Any = _IGNORED
    max_context_chunks: Any = _IGNORED
    context_relevance_threshold: Any = _IGNORED

    @property
    def options(self) -> Options:
        """The parameters that are passed to the model's service unchanged."""
        return self.model_dump(include={"temperature", "max_tokens", "reasoning_effort"}, exclude_none=True)


_TEXT = {"type": "string"}
_FORM = {
    "type": "object",
    "properties": {
        "message": _TEXT,
        "model_id": _TEXT,
        "model": _TEXT,
        "conversation_id": _TEXT,
        "stream": {"type": "boolean", "default": True},
        "category_id": _TEXT,
        "images": {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": images.MAX_IMAGES},
    },
    "required": ["message"],
    "examples": [{"message": "What is a token?", "model_id": "anthropic/claude-sonnet-4"}],
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
    openapi_extra=forms_of(_FORM),
    response_model=ChatAnswer,
    responses={
        200: {"description": _EVENTS, "content": {"text/event-stream": chat_stream.DESCRIPTION}},
        **documented(400, 401, 404, 409, 410, 422, 429, 502, 503, 504),
    },
)
@largest_body(lambda _: LARGEST_BODY_BYTES)
@accepts_forms(Form("message", "images", images.MAX_IMAGES, images.MAX_TOTAL_BYTES))
async def post_chat(
    body: ChatRequest, caller: CallerDep, state: StateDep, request: Request, idempotency_key: IdempotencyKey = None
) -> Any:
    """Send a message to the model.

    The answer is stored and counted before `done` is sent.
    """
    if not body.message.strip():
        raise BlankMessage("The message is blank: send some text.")
    begun = await _begin(state, caller, body, await images.check(files_of(request)), idempotency_key)
    if not body.stream:
        return chat_stream.answer(await whole(state, begun, request))
    if isinstance(begun, Turn):
        events = chat_stream.events(state.runner.start(begun, stream=True))
    else:
        events = chat_stream.replayed(_stored(begun))
    return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM_HEADERS)


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
    """Stop one of the caller's answers.

    The part that has arrived is stored as `interrupted` and counted.
    """

    async def work(session: Session) -> str | None:
        await users.require_role(session, caller)
        return await stops.request(session, caller.user_id, message_id)

    turn = await state.database.transaction(work, repeatable=True)
    if turn is None:
        return Response(status_code=204)
    state.runner.stop(turn)  # other processes look for the mark themselves
    return Response(status_code=202)


async def whole(state: State, begun: Turn | Answered, request: Request) -> Answered:
    """Return the whole answer of a turn.

    If the idempotency key already has an answer, return that one.

    Raises:
        UpstreamError: the model failed in this or the earlier request.
    """
    if isinstance(begun, Answered):
        return _stored(begun)
    run = state.runner.start(begun, stream=False)
    return await _result(run, request, may_stop=state.settings.stop_on_hangup)


def _stored(answered: Answered) -> Answered:
    if answered.message.status != "complete" and not runner.is_stopped(answered.message):
        raise UpstreamError("The answer to this Idempotency-Key failed; ask again with a new one.")
    return answered


async def _result(run: RunningTurn, request: Request, *, may_stop: bool) -> Answered:
    """Wait for an answer; with `may_stop`, stop the model on a disconnect."""
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


async def _begin(
    state: State, caller: Claims, body: ChatRequest, sent: Sequence[Image], idempotency_key: str | None
) -> Turn | Answered:
    async def question(session: Session) -> Question:
        category = None
        if body.category_id is not None:
            category = await model_categories.find(session, caller.user_id, body.category_id)
        return _question(state, caller, body, category)._replace(images=sent, idempotency_key=idempotency_key)

    return await begin(state, caller, question)


async def begin(state: State, caller: Claims, question: Callable[[Session], Awaitable[Question]]) -> Turn | Answered:
    """Check the caller and begin the turn of a question.

    The question receives the preferences of the user.

    Args:
        state: the state of the process.
        caller: the user.
        question: returns the question in the transaction that begins the turn; called again if that is retried.
    """
    name = state.runner.lease.new_turn()
    attempts = itertools.count()

    async def work(session: Session) -> Turn | Answered:
        is_first = next(attempts) == 0
        prompt = await preferences.prompt_of(session, caller)
        asked = (await question(session))._replace(preferences=prompt)
        return await turns.begin(session, asked, name, state.settings.usage_timezone, is_first=is_first)

    return await state.runner.begin(name, caller.user_id, work)


def _question(state: State, caller: Claims, body: ChatRequest, category: ModelCategory | None) -> Question:
    model_id = body.model_id or (category.model_id if category else None)
    return Question(
        caller.user_id,
        body.message,
        model_of(state, body.model, model_id),
        body.conversation_id,
        system=body.system,
        options=body.options,
        model_type=category.display_name if category else requested_models.category(body.model),
        category_id=category.id if category else None,
        chosen_by=None if body.model or body.model_id else body.category_id,
        is_named=bool(body.model or model_id),
    )


def model_of(state: State, model: str | None, model_id: str | None) -> str:
    """Return the model to ask for the two names in a request."""
    settings = state.settings
    requested = requested_models.resolve(model, model_id, settings.model_names, state.upstream.api_url)
    return state.upstream.model_for(requested or settings.llm_model or model or model_id)
