"""Register, find, promote and delete users, and check their roles."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, func, insert, or_, select, update
from sqlalchemy import delete as sql_delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.db import database, failures, ownership, search_index
from app.errors import Conflict, Forbidden, NotFound, Unauthenticated
from app.security.tokens import Claims
from models import (
    ApiKey,
    ArchivedKey,
    Conversation,
    Feedback,
    Message,
    MessageImage,
    ModelCategory,
    PasswordReset,
    Preferences,
    RefreshToken,
    RevokedToken,
    UsageAdjustment,
    User,
    UserDailyTokenUsage,
    UserMonthlyTokenUsage,
)
from models.users import IS_ACTIVE, ROLE
from services import stored_settings
from services.accounts import api_keys, old_tables, sessions, usernames
from services.accounts.api_keys import KeyClaims

_SUMS = (UserDailyTokenUsage, UserMonthlyTokenUsage, UsageAdjustment)
_OWNED = (RefreshToken, RevokedToken, ApiKey, PasswordReset, Preferences, ModelCategory, MessageImage, ArchivedKey)
_HIGHEST_DELETED = "highest_deleted_user_id"
_MAX_ID = 2**31 - 1
# Messages from which on SQLite fills its index for searches again sooner than it removes each of them.
_MANY = 5_000


@dataclass(frozen=True)
class Account:
    """Describe a user without secrets."""

    id: int
    username: str
    email: str
    role: str
    is_active: bool


class NewAccount(NamedTuple):
    """Hold the validated data of a new account."""

    username: str
    email: str
    hashed_password: str


async def register(session: AsyncSession, new: NewAccount, role: str = "user") -> Account:
    """Create an account, and store its address in lower case.

    Raises:
        Conflict: another account has the address or the username in any case. An old address or username counts only
            as it was given or in lower case.
    """
    key, address = usernames.key(new.username), new.email.lower()
    same_name = or_(User.username.in_((new.username, key)), User.username_key == key)
    same_address = User.email.in_((new.email, address))
    taken = (await session.scalars(select(same_name).where(same_name | same_address))).all()
    if taken:
        raise Conflict("This username is taken." if any(taken) else "This email address is taken.")
    values: dict[str, Any] = {**new._replace(email=address)._asdict(), "username_key": key, "role": role}
    if database.is_sqlite(session):
        values["id"] = await _never_given_id(session)
    statement = insert(User).values(is_active=True, created_at=clock.now(), **values).returning(User.id)
    try:
        user_id = (await session.execute(statement)).scalar_one()
    except IntegrityError as error:
        constraint = failures.constraint_of(error)
        if not ("username" in constraint or "email" in constraint):  # constraints of adopted databases have other names
            raise
        raise Conflict("This username or email address is taken.") from None  # by a concurrent registration
    return Account(user_id, new.username, address, role, True)


async def find(session: AsyncSession, username: str) -> Account | None:
    """Find a user; an exact name takes precedence over a normalized one."""
    columns = select(User.id, User.username, User.email, ROLE, IS_ACTIVE)
    named = columns.where(User.username.in_((username, usernames.normalize(username))))
    row = (await session.execute(named.order_by((User.username == username).desc()).limit(1))).one_or_none()
    return Account(row.id, row.username, row.email, row.role, bool(row.is_active)) if row else None


async def promote(session: AsyncSession, username: str, role: str) -> bool:
    """Give a role to a user, and activate the account.

    Returns:
        Whether there is such a user.

    Raises:
        Conflict: the user is an admin, and would lose that role.
    """
    present = await session.scalar(select(ROLE).where(User.username == username).with_for_update())
    if present == "admin" and role != "admin":
        raise Conflict(f"{username} is an admin already.")
    promoted = update(User).where(User.username == username).values(role=role, is_active=True)
    return await session.scalar(promoted.returning(User.id)) is not None


async def _never_given_id(session: AsyncSession) -> int:
    """Return an id that no user ever had.

    SQLite would assign the id of a deleted last user again. The next user would then have the tokens of that user,
    and the rows that an earlier backend did not delete.
    """
    owners = (table.user_id for table in (Conversation, Preferences, Feedback, ModelCategory))
    of_rows = (select(func.max(owner)).where(owner < _MAX_ID).scalar_subquery() for owner in owners)
    highest = (await session.execute(select(select(func.max(User.id)).scalar_subquery(), *of_rows))).one()
    return max(await _highest_deleted(session), *(user_id or 0 for user_id in highest)) + 1


async def _highest_deleted(session: AsyncSession) -> int:
    return int(await stored_settings.read(session, _HIGHEST_DELETED) or 0)


async def _note_deleted_id(session: AsyncSession, user_id: int) -> None:
    await stored_settings.store(session, _HIGHEST_DELETED, str(max(user_id, await _highest_deleted(session))))


async def delete(session: AsyncSession, user_id: int) -> None:
    """Delete a user with all messages, rollups and conversations.

    Waits for transactions that store data of the user; under heavy traffic deactivate the account first.

    Raises:
        NotFound: there is no such user.
        Conflict: a table of another product still references data of the user.
    """
    # The lock makes concurrent writers of this user's messages wait; afterwards they find no user.
    if await session.scalar(select(User.id).where(User.id == user_id).with_for_update()) is None:
        raise NotFound("There is no such user.")
    own = select(Conversation.id).where(Conversation.user_id == user_id)
    messages: ColumnElement[bool] = Message.user_id == user_id
    if not ownership.is_complete(session):
        messages = or_(messages, Message.conversation_id.in_(own))
    if database.is_sqlite(session):
        await _note_deleted_id(session, user_id)
        if len((await session.scalars(select(Message.id).where(messages).limit(_MANY))).all()) == _MANY:
            await search_index.clear(session)
    # The earlier backend stored whatever category a request named.
    categories = select(ModelCategory.id).where(ModelCategory.user_id == user_id)
    in_category = (
        Conversation.category_id.in_(categories),
        ownership.where_known(session, Conversation.user_id, user_id),
    )
    on_messages = Feedback.message_id.in_(select(Message.id).where(messages))
    by_user: ColumnElement[bool] = Feedback.user_id == user_id
    feedback = by_user if ownership.is_complete(session) else or_(by_user, on_messages)
    try:
        await old_tables.delete_rows(session, user_id)
        for statement in (
            sql_delete(Feedback).where(feedback),
            sql_delete(Message).where(messages),
            *(sql_delete(rollup).where(rollup.user_id == user_id) for rollup in _SUMS),
            sql_delete(Conversation).where(Conversation.user_id == user_id),
            update(Conversation).where(*in_category).values(category_id=None),
            *(sql_delete(table).where(table.user_id == user_id) for table in _OWNED),
            sql_delete(User).where(User.id == user_id),
        ):
            await session.execute(statement)
    except IntegrityError:  # a foreign key in a table of another product
        raise Conflict(
            "Other tables of the database still reference data of this user: remove these rows first."
        ) from None


async def require_role(session: AsyncSession, caller: Claims | KeyClaims, *roles: str) -> None:
    """Check a caller's token or key, and role, in one statement.

    Raises:
        Unauthenticated: the user is deleted or inactive, or the token or key is revoked.
        Forbidden: the user has none of these roles.
    """
    check_role(await session.scalar(valid(caller)), *roles)


def valid(caller: Claims | KeyClaims, *columns: Any) -> Select[*tuple[Any, ...]]:
    """Select the role of a valid caller, and more columns."""
    still_valid = api_keys.still_valid(caller) if isinstance(caller, KeyClaims) else sessions.still_valid(caller)
    return select(ROLE, *columns).select_from(User).where(User.id == caller.user_id, IS_ACTIVE, *still_valid)


def check_role(role: str | None, *roles: str) -> None:
    """Refuse a caller without any of these roles; raise as `require_role`."""
    if role is None:
        raise Unauthenticated("This token is no longer valid. Log in again.")
    if roles and role not in roles:
        raise Forbidden(f"This needs the role {' or '.join(roles)}.")
