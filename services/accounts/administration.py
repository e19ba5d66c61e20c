"""List, activate and deactivate users for admins, with their monthly usage."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple, get_args

from sqlalchemy import Select, and_, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.clock import Month
from app.errors import Conflict, NotFound
from app.security.tokens import Claims
from models import User, UserMonthlyTokenUsage
from models.users import IS_ACTIVE, ROLE
from services.accounts import logins, sessions
from services.accounts.users import Account, require_role

Rollup = UserMonthlyTokenUsage
Sort = Literal["total_cost", "total_tokens", "input_tokens", "output_tokens", "message_count", "username", "user_id"]

_ROWS_AT_ONCE = 1_000


class UserView(NamedTuple):
    """Describe a user to an admin."""

    id: int
    username: str
    email: str
    role: str
    is_active: bool
    created_at: datetime | None


class UserUsage(NamedTuple):
    """Hold the usage of one user in a month."""

    user_id: int
    username: str
    input_tokens: int
    output_tokens: int
    total_tokens: int
    total_cost: Decimal
    message_count: int
    unpriced_count: int
    estimated_count: int


_USAGE: dict[str, Any] = {
    "user_id": User.id,
    "username": User.username,
    **{name: func.coalesce(getattr(Rollup, name), 0).label(name) for name in UserUsage._fields[2:]},
}
_SORTED_BY = {name: _USAGE[name] for name in get_args(Sort)}


class Wanted(NamedTuple):
    """Select a month, and users by a part of their name.

    Users whose sums are equal are ordered by id.
    """

    month: Month
    sort: Sort
    descending: bool
    search: str
    with_usage: bool


async def users(session: AsyncSession, after_id: int, limit: int, offset: int = 0) -> Sequence[UserView]:
    """Return the next users, ordered by id."""
    columns = (User.id, User.username, User.email, ROLE, IS_ACTIVE, User.created_at)
    page = select(*columns).where(User.id > after_id).order_by(User.id).offset(offset).limit(limit)
    rows = await session.execute(page)
    return [UserView(row.id, row.username, row.email, row.role, bool(row.is_active), row.created_at) for row in rows]


async def check_may_change(session: AsyncSession, caller: Claims, user_id: int) -> None:
    """Check that the caller is an admin and changes another user.

    Locks both accounts: of two admins who remove each other at once, the second is refused, so that one admin remains.

    Raises:
        Unauthenticated, Forbidden: as `users.require_role`.
        Conflict: this is the caller's own account.
    """
    both = select(User.id).where(User.id.in_((caller.user_id, user_id))).order_by(User.id)
    await session.execute(both.with_for_update(key_share=True))
    await require_role(session, caller, "admin")
    refuse_oneself(caller, user_id)


def refuse_oneself(caller: Claims, user_id: int) -> None:
    """Refuse to change the caller's own account."""
    if caller.user_id == user_id:
        raise Conflict("This is your own account: ask another admin.")


async def set_active(session: AsyncSession, user_id: int, active: bool) -> Account:
    """Activate or deactivate a user; deactivation ends every login.

    Raises:
        NotFound: there is no such user.
    """
    changed = update(User).where(User.id == user_id).values(is_active=active)
    row = (await session.execute(changed.returning(User.id, User.username, User.email, ROLE))).one_or_none()
    if row is None:
        raise NotFound("There is no such user.")
    if not active:
        await sessions.end_all(session, user_id)
    return Account(row.id, row.username, row.email, row.role, active)


async def change(session: AsyncSession, user_id: int, role: str | None, hashed_password: str | None) -> Account:
    """Give a user another role, or another password, which ends every login.

    Raises:
        NotFound: there is no such user.
    """
    if role is not None:
        await session.execute(update(User).where(User.id == user_id).values(role=role))
    if hashed_password is not None:
        await logins.set_password(session, user_id, hashed_password)
    return await account(session, user_id)


async def account(session: AsyncSession, user_id: int) -> Account:
    """Return a user.

    Raises:
        NotFound: there is no such user.
    """
    columns = select(User.id, User.username, User.email, ROLE, IS_ACTIVE).where(User.id == user_id)
    row = (await session.execute(columns)).one_or_none()
    if row is None:
        raise NotFound("There is no such user.")
    return Account(row.id, row.username, row.email, row.role, bool(row.is_active))


async def users_selected(session: AsyncSession, wanted: Wanted) -> int:
    """Count the selected users."""
    count = _joined(select(func.count()), wanted)
    return await session.scalar(count) or 0


async def usage(session: AsyncSession, wanted: Wanted, offset: int, limit: int) -> Sequence[UserUsage]:
    """Return one page of users with their usage in a month."""
    rows = await session.execute(_sorted(wanted).offset(offset).limit(limit))
    return [UserUsage(*row) for row in rows]


async def usage_of_all(session: AsyncSession, wanted: Wanted) -> AsyncIterator[UserUsage]:
    """Stream the usage of all users in a month, from one snapshot."""
    statement = _sorted(wanted).execution_options(yield_per=_ROWS_AT_ONCE)
    async for row in await session.stream(statement):
        yield UserUsage(*row)


def _sorted(wanted: Wanted) -> Select[*tuple[Any, ...]]:
    column = _SORTED_BY[wanted.sort]
    statement: Select[*tuple[Any, ...]] = _joined(select(*_USAGE.values()), wanted)
    return statement.order_by(column.desc() if wanted.descending else column.asc(), User.id)


def _joined(columns: Select[Any], wanted: Wanted) -> Select[Any]:
    month = (Rollup.year == wanted.month.year, Rollup.month == wanted.month.month)
    joined = columns.select_from(User).join(
        Rollup, and_(Rollup.user_id == User.id, *month), isouter=not wanted.with_usage
    )
    if wanted.with_usage:
        joined = joined.where(Rollup.message_count > 0)
    return joined.where(User.username.icontains(wanted.search, autoescape=True)) if wanted.search else joined
