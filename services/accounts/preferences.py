"""Read and store a user's preferences, which every model receives."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.db.sqlite_connections import BY_KEY
from app.security.tokens import Claims
from models import Preferences, User
from models.users import IS_ACTIVE, ROLE
from services.accounts import sessions, users

MAX_LENGTH = 10_000
"""Characters of each preference that a model receives; an earlier backend had no limit."""


class Sent(NamedTuple):
    """The preferences that a model receives."""

    nickname: str | None
    job: str | None
    chatbot_preference: str | None

    @property
    def prompt(self) -> str | None:
        """Return the text for the model, or None if there is none."""
        nickname, job, preference = (_sendable(text) for text in self)
        lines = (
            nickname and f"The user likes to be called {nickname}.",
            job and f"The user's job: {job}",
            preference and f"The user's wishes for your answers: {preference}",
        )
        return "\n".join(line for line in lines if line) or None


def _sendable(text: str | None) -> str:
    return (text or "").replace("\x00", "\ufffd").strip()[:MAX_LENGTH]


async def prompt_of(session: AsyncSession, caller: Claims) -> str | None:
    """Check a caller as `users.require_role` does; return the preferences.

    They are returned as text for the model; None if there are none.

    Raises:
        Unauthenticated: the user is deleted or inactive, or the token is revoked.
    """
    row = (await session.execute(_SENT, sessions.parameters(caller))).one_or_none()
    users.check_role(None if row is None else row[0])
    return None if row is None else Sent(*row[1:]).prompt


_SENT = (
    select(ROLE, Preferences.nickname, Preferences.job, Preferences.chatbot_preference)
    .select_from(User)
    .outerjoin(Preferences, Preferences.user_id == User.id)
    .where(User.id == bindparam("user_id"), IS_ACTIVE, *sessions.STILL_VALID)
    .order_by(Preferences.id)
    .limit(1)
    .execution_options(**BY_KEY)
)


async def read(session: AsyncSession, user_id: int) -> Preferences | None:
    """Return the preferences of a user; None until they are stored.

    An adopted table may hold several rows of one user: the first counts, which the earlier backend changed, too.
    """
    own = select(Preferences).where(Preferences.user_id == user_id)
    return await session.scalar(own.order_by(Preferences.id).limit(1))


async def store(session: AsyncSession, user_id: int, changed: Mapping[str, Any]) -> Preferences:
    """Change some preferences of a user; the others stay as they are.

    Raises:
        Unauthenticated: the user is deleted.
    """
    users.check_role(await session.scalar(select(ROLE).where(User.id == user_id).with_for_update(key_share=True)))
    found, now = await read(session, user_id), clock.now()
    if found is None:
        values = {"user_id": user_id, "created_at": now, "updated_at": now, **changed}
        statement: Any = insert(Preferences).values(values)
    else:
        statement = update(Preferences).where(Preferences.id == found.id, Preferences.user_id == user_id)
        statement = statement.values(updated_at=now, **changed)
    stored = await session.scalars(statement.returning(Preferences), execution_options={"populate_existing": True})
    preferences: Preferences = stored.one()
    return preferences
