"""Accounts: registration, login, and what one is allowed to do."""

import asyncio
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import delete as sql_delete
from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock, database, passwords
from app.errors import Conflict, Forbidden, NotFound, Unauthenticated
from models import (
    Conversation,
    ConversationDailyTokenUsage,
    FoundationSetting,
    Message,
    User,
    UserDailyTokenUsage,
    UserMonthlyTokenUsage,
)
from models.users import IS_ACTIVE, ROLE

_ROLLUPS = (ConversationDailyTokenUsage, UserDailyTokenUsage, UserMonthlyTokenUsage)
_HIGHEST_DELETED = "highest_deleted_user_id"
FAILED_LOGIN_SECONDS = 0.5
"""A failed login takes a whole multiple of this, so that its time does not tell why it failed."""


@dataclass(frozen=True)
class Account:
    """A user as others may see them."""

    id: int
    username: str
    email: str
    role: str
    is_active: bool


class Credentials(NamedTuple):
    """What a login is checked against."""

    user_id: int
    hashed_password: str
    is_active: bool


async def register(session: AsyncSession, username: str, email: str, hashed_password: str) -> Account:
    """Makes an account with the role `user`.

    Raises:
        Conflict: the username or the address is taken.
    """
    taken = await session.execute(
        select(User.username, User.email).where((User.username == username) | (User.email == email))
    )
    if row := taken.first():
        raise Conflict("This username is taken." if row.username == username else "This email address is taken.")
    values: dict[str, Any] = {"username": username, "email": email, "hashed_password": hashed_password}
    if database.is_sqlite(session):
        values["id"] = await _never_given_id(session)
    statement = insert(User).values(role="user", is_active=True, created_at=clock.now(), **values).returning(User.id)
    try:
        user_id = (await session.execute(statement)).scalar_one()
    except IntegrityError:  # unique username or email: someone else was faster
        raise Conflict("This username or email address is taken.") from None
    return Account(user_id, username, email, "user", True)


async def _never_given_id(session: AsyncSession) -> int:
    """SQLite by itself would give the id of a deleted last user to the next one, and their tokens with it."""
    deleted = await session.scalar(select(FoundationSetting.value).where(FoundationSetting.name == _HIGHEST_DELETED))
    present = await session.scalar(select(func.max(User.id)))
    return max(int(deleted or 0), present or 0) + 1


async def _note_deleted_id(session: AsyncSession, user_id: int) -> None:
    last = await session.scalar(select(FoundationSetting.value).where(FoundationSetting.name == _HIGHEST_DELETED))
    statement = database.insert(session, FoundationSetting)
    statement = statement.values(name=_HIGHEST_DELETED, value=str(max(user_id, int(last or 0))))
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[FoundationSetting.name], set_={"value": statement.excluded.value}
        )
    )


async def credentials(session: AsyncSession, username: str) -> Credentials | None:
    """What a login of this username is checked against; None where there is no such user."""
    row = (
        await session.execute(select(User.id, User.hashed_password, IS_ACTIVE).where(User.username == username))
    ).one_or_none()
    return None if row is None else Credentials(row.id, row.hashed_password, bool(row.is_active))


async def check_password(found: Credentials | None, password: str) -> tuple[Credentials, str | None]:
    """Checks a password, with no transaction open.

    Returns:
        The credentials, which are known now to be good, and the hash that should replace the stored one, if any.

    Raises:
        Unauthenticated: unknown user, wrong password, or an account that is not active: alike, and after the same time.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    verdict = await passwords.verify(password, found.hashed_password if found else None)
    if found is None or not verdict.valid or not found.is_active:
        elapsed = loop.time() - started
        await asyncio.sleep(FAILED_LOGIN_SECONDS - elapsed % FAILED_LOGIN_SECONDS)
        raise Unauthenticated("Wrong username or password.")
    return found, verdict.new_hash


async def replace_hash(session: AsyncSession, found: Credentials, new_hash: str) -> None:
    """Stores a newer hash of the same password, unless the password was changed meanwhile."""
    await session.execute(
        update(User)
        .where(User.id == found.user_id, User.hashed_password == found.hashed_password)
        .values(hashed_password=new_hash)
    )


async def delete(session: AsyncSession, user_id: int) -> None:
    """Removes a user and everything of theirs: messages, rollups, conversations.

    Waits until nobody is storing something of theirs; under heavy traffic deactivate the account before.

    Raises:
        NotFound: there is no such user.
        Conflict: another table of the database still points to something of theirs.
    """
    # Locked first: whoever stores a message of this user waits here, and then finds the user gone.
    if await session.scalar(select(User.id).where(User.id == user_id).with_for_update()) is None:
        raise NotFound("There is no such user.")
    if database.is_sqlite(session):
        await _note_deleted_id(session, user_id)
    own = select(Conversation.id).where(Conversation.user_id == user_id)
    try:
        for statement in (
            sql_delete(Message).where(or_(Message.user_id == user_id, Message.conversation_id.in_(own))),
            *(sql_delete(rollup).where(rollup.user_id == user_id) for rollup in _ROLLUPS),
            sql_delete(Conversation).where(Conversation.user_id == user_id),
            sql_delete(User).where(User.id == user_id),
        ):
            await session.execute(statement)
    except IntegrityError:  # a foreign key of a table that is not ours
        raise Conflict("Other tables of the database still point to data of this user.") from None


async def require_role(session: AsyncSession, user_id: int, *roles: str) -> None:
    """Checks a caller's present role.

    Raises:
        Unauthenticated: the user is gone or not active.
        Forbidden: the user has none of these roles.
    """
    role = await session.scalar(select(ROLE).where(User.id == user_id, IS_ACTIVE))
    if role is None:
        raise Unauthenticated("The account of this token is gone or not active.")
    if roles and role not in roles:
        raise Forbidden(f"This needs the role {' or '.join(roles)}.")
