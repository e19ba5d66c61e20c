"""Read a user and the user's months in one statement."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Integer, Select, bindparam, func, select, true, tuple_

from app.clock import Month
from app.db.database import Database
from app.security.tokens import Claims
from models import User, UserMonthlyTokenUsage
from models.users import IS_ACTIVE, ROLE
from services.accounts import sessions
from services.accounts.users import Account

Rollup = UserMonthlyTokenUsage


class Page(NamedTuple):
    """Select months: at most `limit`, older than `before`, not older than `since`."""

    limit: int = 12
    before: Month | None = None
    since: Month | None = None


class MonthStats(NamedTuple):
    """Hold the usage of one user in one month."""

    month: Month
    input_tokens: int
    output_tokens: int
    total_tokens: int
    total_cost: Decimal
    message_count: int


@dataclass(frozen=True)
class TokenStats:
    """Hold a page of months, newest first.

    `total_months` counts all months of the selection, whatever the page. `has_more` is true if there is an older one.
    """

    months: list[MonthStats]
    total_months: int
    has_more: bool


async def account(database: Database, caller: Claims) -> Account | None:
    """Return the user; None if deleted, or if the token is invalid."""
    rows = await database.fetch(_ALONE, **sessions.parameters(caller))
    return _account(rows[0]) if rows else None


async def account_with_stats(database: Database, caller: Claims, page: Page) -> tuple[Account, TokenStats] | None:
    """Return the user and a page of months, or None as `account`."""
    values = {**sessions.parameters(caller), "months": page.limit + 1}
    if page.since:
        values |= {"since_year": page.since.year, "since_month": page.since.month}
    if page.before:
        values |= {"before_year": page.before.year, "before_month": page.before.month}
    rows = await database.fetch(_with_stats(page.since is not None, page.before is not None), **values)
    if not rows:
        return None
    found = [MonthStats(Month(row[6], row[7]), *row[8:]) for row in rows if row[6] is not None]
    return _account(rows[0]), TokenStats(found[: page.limit], rows[0][5], len(found) > page.limit)


_ACCOUNT = (User.id, User.username, User.email, ROLE, IS_ACTIVE)
_ALONE = select(*_ACCOUNT).where(User.id == bindparam("user_id"), *sessions.STILL_VALID)


@functools.cache
def _with_stats(since: bool, before: bool) -> Select[*tuple[Any, ...]]:
    """Select the account and count of months with each month."""
    with_usage = [Rollup.user_id == bindparam("user_id"), Rollup.message_count > 0]
    if since:
        with_usage.append(_year_month() >= _values("since"))
    total = select(func.count()).select_from(Rollup).where(*with_usage).scalar_subquery().label("total_months")
    older = [*with_usage, _year_month() < _values("before")] if before else with_usage
    months = (
        select(Rollup)
        .where(*older)
        .order_by(Rollup.year.desc(), Rollup.month.desc())
        .limit(bindparam("months", type_=Integer))
        .subquery("months")
    )
    figures = [months.c[name] for name in MonthStats._fields[1:]]
    return (
        select(*_ACCOUNT, total, months.c.year, months.c.month, *figures)
        .select_from(User)
        .outerjoin(months, true())
        .where(User.id == bindparam("user_id"), *sessions.STILL_VALID)
        .order_by(months.c.year.desc(), months.c.month.desc())
    )


def _account(row: Sequence[Any]) -> Account:
    return Account(*row[:5])


def _year_month() -> ColumnElement[tuple[int, int]]:
    return tuple_(Rollup.year, Rollup.month)


def _values(name: str) -> ColumnElement[tuple[int, int]]:
    return tuple_(bindparam(f"{name}_year", type_=Integer), bindparam(f"{name}_month", type_=Integer))
