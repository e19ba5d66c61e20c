"""Accounts: registration, login, and what one is allowed to do."""

import asyncio
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, insert, or_, select, update
from sqlalchemy import delete as sql_delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock, database, passwords
from app.errors import Conflict, Forbidden, NotFound, Unauthenticated
from app.tokens import Claims
from models import (
    ApiKey,
    Conversation,
    ConversationDailyTokenUsage,
    FoundationSetting,
    Message,
    RefreshToken,
    RevokedToken,
    User,
    UserDailyTokenUsage,
    UserMonthlyTokenUsage,
)
from models.users import IS_ACTIVE, ROLE, TOKEN_VERSION
from services import sessions

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
    token_version: int


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
    return await _credentials(session, User.username == username)


async def credentials_of(session: AsyncSession, user_id: int) -> Credentials | None:
    """The same, of the user with this id."""
    return await _credentials(session, User.id == user_id)


async def _credentials(session: AsyncSession, condition: ColumnElement[bool]) -> Credentials | None:
    columns = (User.id, User.hashed_password, IS_ACTIVE, TOKEN_VERSION)
    row = (await session.execute(select(*columns).where(condition))).one_or_none()
    if row is None:
        return None
    return Credentials(row.id, row.hashed_password, bool(row.is_active), row.token_version)


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


async def change_password(session: AsyncSession, found: Credentials, new_hash: str) -> int:
    """Stores the hash of a new password, and ends every login of the user.

    Returns:
        The version of the tokens that are taken from now on.

    Raises:
        Conflict: the password was changed meanwhile.
    """
    unchanged = (User.id == found.user_id, User.hashed_password == found.hashed_password)
    changed = update(User).where(*unchanged).values(hashed_password=new_hash).returning(User.id)
    if await session.scalar(changed) is None:
        raise Conflict("The password was changed by somebody else at this moment.")
    return await sessions.end_all(session, found.user_id)


async def delete(session: AsyncSession, user_id: int) -> None:
    """Removes a user and everything of theirs: messages, months, conversations.

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
            *(sql_delete(table).where(table.user_id == user_id) for table in (RefreshToken, RevokedToken, ApiKey)),
            sql_delete(User).where(User.id == user_id),
        ):
            await session.execute(statement)
    except IntegrityError:  # a foreign key of a table that is not ours
        raise Conflict("Other tables of the database still point to data of this user.") from None


async def require_role(session: AsyncSession, caller: Claims, *roles: str) -> None:
    """Checks that a caller's token is still taken, and their present role, in one statement.

    Raises:
        Unauthenticated: the user is gone or not active, or the token was revoked.
        Forbidden: the user has none of these roles.
    """
    statement = select(ROLE).where(User.id == caller.user_id, IS_ACTIVE, *sessions.still_valid(caller))
    role = await session.scalar(statement)
    if role is None:
        raise Unauthenticated("This token is not taken any more: log in again.")
    if roles and role not in roles:
        raise Forbidden(f"This needs the role {' or '.join(roles)}.")
