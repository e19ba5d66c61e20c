"""Serve conversations over HTTP."""

import asyncio
from collections.abc import Collection
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, status
from pydantic import BaseModel, Field, StringConstraints

from app.db.database import Session
from routers import messages
from routers.http.dependencies import CallerDep, StateDep
from routers.http.problems import documented
from routers.http.requests import Digits, ExactRoute, StorableText
from routers.messages import ConversationMessage
from services.accounts import users
from services.chat import conversation_lists, conversations, images
from services.chat.conversation_lists import Page, Related
from services.chat.conversations import StoredConversation

router = APIRouter(prefix="/conversations", tags=["conversations"], route_class=ExactRoute)

ConversationId = Annotated[StorableText, Path(min_length=1, max_length=255)]


class ConversationView(BaseModel):
    """A conversation."""

    id: str
    title: str
    model_type: str
    created_at: datetime | None
    updated_at: datetime | None
    category_name: str | None = Field(description="The name today of the model category in which it began")
    parent_conversation_id: str | None = Field(description="Of a branch: the conversation that it was copied from")
    edited_message_id: int | None = Field(description="Of a branch: the question there that was edited")
    is_branch: bool


class RelatedMessage(BaseModel):
    """A message that contains the keyword."""

    id: int
    role: str
    content: str = Field(description=f"At most {conversation_lists.EXCERPT} characters around the keyword")
    document_context: None = None
    created_at: datetime | None


class ListedConversation(ConversationView):
    """A conversation in a list."""

    message_count: int
    related_chats: list[RelatedMessage] | None = Field(
        description=f"With `keyword`: the newest {conversation_lists.RELATED} messages that contain it"
    )


class Pagination(BaseModel):
    """The page, in the form that the earlier backend's frontend reads."""

    page: int
    limit: int
    total_count: int
    total_pages: int
    has_next: bool
    has_prev: bool


class ConversationPage(BaseModel):
    """Some of the caller's conversations, the latest first."""

    conversations: list[ListedConversation]
    page: int
    limit: int
    total: int
    has_more: bool
    data: list[ListedConversation] = Field(description="The same as `conversations`.")
    pagination: Pagination


class ConversationWithMessages(ConversationView):
    """A conversation and its newest messages, oldest first.

    These are all messages, unless there are too many for one response.
    """

    messages: list[ConversationMessage]
    has_more: bool = Field(description="Whether the conversation has older messages than these.")
    next_before: int | None = Field(
        description="The value of `before` that returns the next older page; null on the last one."
    )


class PageQuery(BaseModel):
    """Which page."""

    page: Annotated[int, Digits] = Field(1, ge=1, le=1_000_000)
    limit: Annotated[int, Digits] = Field(20, ge=1, le=100)
    keyword: Annotated[StorableText, StringConstraints(strip_whitespace=True, max_length=200)] = Field(
        "", description="Only conversations with it in their title or in a message, in upper or lower case."
    )


class MessagesQuery(BaseModel):
    """Which messages."""

    before: Annotated[int, Digits] | None = Field(
        None, ge=1, le=2**63 - 1, description="Only messages with a smaller id: the next older page."
    )
    limit: Annotated[int, Digits] = Field(
        conversations.MAX_MESSAGES,
        ge=1,
        le=conversations.MAX_MESSAGES,
        description="At most this many messages. A page also ends at"
        f" {conversations.MAX_BYTES // 2**20} MiB of content; it holds at least one message.",
    )


@router.get("", operation_id="list_conversations", responses=documented(401, 422, 503))
async def get_conversations(
    caller: CallerDep, query: Annotated[PageQuery, Query()], state: StateDep
) -> ConversationPage:
    """List the caller's conversations, the latest first."""

    async def work(session: Session) -> Page:
        await users.require_role(session, caller)
        return await conversation_lists.listed(session, caller.user_id, query.page, query.limit, query.keyword)

    found = await state.database.read(work)
    shown = [_listed(conversation, found, is_search=bool(query.keyword)) for conversation in found.conversations]
    has_more = query.page * query.limit < found.total
    pagination = Pagination(
        page=query.page,
        limit=query.limit,
        total_count=found.total,
        total_pages=-(-found.total // query.limit),
        has_next=has_more,
        has_prev=query.page > 1,
    )
    return ConversationPage(
        conversations=shown,
        page=query.page,
        limit=query.limit,
        total=found.total,
        has_more=has_more,
        data=shown,
        pagination=pagination,
    )


@router.get("/{conversation_id}", responses=documented(401, 404, 422, 503))
async def get_conversation(
    conversation_id: ConversationId, query: Annotated[MessagesQuery, Query()], caller: CallerDep, state: StateDep
) -> ConversationWithMessages:
    """Return one of the caller's conversations with its newest messages."""

    async def work(session: Session) -> ConversationWithMessages:
        await users.require_role(session, caller)
        conversation, found = await conversations.read(
            session, caller.user_id, conversation_id, query.before, query.limit
        )
        views = [
            messages.view_in_conversation(message, has_branches=message.id in found.edited)
            for message in found.messages
        ]
        return ConversationWithMessages(
            **_view(conversation).model_dump(),
            messages=views,
            has_more=found.has_more,
            next_before=views[0].id if found.has_more else None,
        )

    return await state.database.read(work)


@router.delete("/{conversation_id}", status_code=status.HTTP_204_NO_CONTENT, responses=documented(401, 404, 422, 503))
async def delete_conversation(conversation_id: ConversationId, caller: CallerDep, state: StateDep) -> None:
    """Erase the content permanently. The usage stays counted."""

    async def work(session: Session) -> Collection[str]:
        await users.require_role(session, caller)
        return await conversations.delete(session, caller.user_id, conversation_id)

    unused = await state.database.transaction(work)
    await asyncio.to_thread(images.delete_files, state.settings.uploads_dir, unused)


def _listed(conversation: StoredConversation, page: Page, *, is_search: bool) -> ListedConversation:
    related = [_related(message) for message in page.related.get(conversation.id, ())]
    return ListedConversation(
        **vars(_view(conversation)),
        message_count=page.message_counts.get(conversation.id, 0),
        related_chats=related if is_search else None,
    )


def _related(message: Related) -> RelatedMessage:
    return RelatedMessage(
        id=message.id,
        role=message.role or messages.UNKNOWN_ROLE,
        content=message.content or "",
        created_at=message.created_at,
    )


def _view(conversation: StoredConversation) -> ConversationView:
    parent, edited = conversation.parent_conversation_id, conversation.edited_message_id
    return ConversationView(
        id=conversation.id,
        title=conversation.title or "",
        model_type=conversation.model_type or "",
        created_at=conversation.created_at,
        updated_at=conversation.updated_at,
        category_name=conversation.category_name,
        parent_conversation_id=parent,
        edited_message_id=edited if isinstance(edited, int) else None,
        is_branch=parent is not None,
    )
