"""Reading usage: a user together with their months, in one statement."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, func, select, true, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.clock import Month
from app.tokens import Claims
from models import User, UserMonthlyTokenUsage
from models.users import IS_ACTIVE, ROLE
from services import sessions
from services.accounts import Account

Rollup = UserMonthlyTokenUsage


class Page(NamedTuple):
    """Which months: at most `limit`, only older than `before`, only `since` and newer."""

    limit: int = 12
    before: Month | None = None
    since: Month | None = None


class MonthStats(NamedTuple):
    """One month of one user."""

    month: Month
    input_tokens: int
    output_tokens: int
    total_tokens: int
    total_cost: Decimal
    message_count: int


@dataclass(frozen=True)
class TokenStats:
    """A page of months, newest first; the count of all months under `since`; whether an older one lies beyond."""

    months: list[MonthStats]
    total_months: int
    has_more: bool


async def account(session: AsyncSession, caller: Claims) -> Account | None:
    """The user alone; None where they are gone, or their token is not taken any more."""
    mine = (User.id == caller.user_id, *sessions.still_valid(caller))
    row = (await session.execute(select(*_ACCOUNT).where(*mine))).one_or_none()
    return None if row is None else _account(row)


async def account_with_stats(session: AsyncSession, caller: Claims, page: Page) -> tuple[Account, TokenStats] | None:
    """The user and a page of their months, of one moment; None where they are gone, or their token is not taken."""
    with_usage = [Rollup.user_id == caller.user_id, Rollup.message_count > 0]
    if page.since:
        with_usage.append(_year_month() >= _values(page.since))
    total = select(func.count()).select_from(Rollup).where(*with_usage).scalar_subquery().label("total_months")
    older = [*with_usage, _year_month() < _values(page.before)] if page.before else with_usage
    months = (
        select(Rollup)
        .where(*older)
        .order_by(Rollup.year.desc(), Rollup.month.desc())
        .limit(page.limit + 1)
        .subquery("months")
    )
    figures = [
        months.c[name] for name in ("input_tokens", "output_tokens", "total_tokens", "total_cost", "message_count")
    ]
    statement = (
        select(*_ACCOUNT, total, months.c.year, months.c.month, *figures)
        .select_from(User)
        .outerjoin(months, true())
        .where(User.id == caller.user_id, *sessions.still_valid(caller))
        .order_by(months.c.year.desc(), months.c.month.desc())
    )
    rows = (await session.execute(statement)).all()
    if not rows:
        return None
    found = [
        MonthStats(
            Month(row.year, row.month),
            row.input_tokens,
            row.output_tokens,
            row.total_tokens,
            row.total_cost,
            row.message_count,
        )
        for row in rows
        if row.year is not None
    ]
    return _account(rows[0]), TokenStats(found[: page.limit], rows[0].total_months, len(found) > page.limit)


_ACCOUNT = (User.id, User.username, User.email, ROLE, IS_ACTIVE)


def _account(row: Row[*tuple[Any, ...]]) -> Account:
    return Account(row.id, row.username, row.email, row.role, bool(row.is_active))


def _year_month() -> ColumnElement[tuple[int, int]]:
    return tuple_(Rollup.year, Rollup.month)


def _values(month: Month) -> ColumnElement[tuple[int, int]]:
    return tuple_(month.year, month.month)
