"""Where something cannot be summed, all else is: its range is halved until it is one month of one user."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.clock import Month
from app.db import failures
from services.backfill.deficits import KeyRange
from services.usage.rollups import UserMonth

Result = TypeVar("Result")
_FIRST, _LAST = Month(1, 1), Month(9999, 12)


async def work_on(
    key_range: KeyRange, work: Callable[[KeyRange], Awaitable[Result]], leave: Callable[[UserMonth, str], None]
) -> list[Result]:
    """Works on a range; where its data breaks the work, on the halves of it.

    Args:
        key_range: all that is to be worked on.
        work: is safe to be done again after it raised.
        leave: is told of a month that cannot be worked on, and why.

    Returns:
        What came of each part.

    Raises:
        Exception: what the work raised, if not because of the data.
    """
    try:
        return [await work(key_range)]
    except Exception as error:
        if not failures.is_of_data(error):
            raise
        parts = _halves(key_range)
        if not parts:
            leave(
                (key_range.first_user, key_range.since or _FIRST),
                f"it cannot be summed: {failures.describe(error)}",
            )
            return []
    return [result for part in parts for result in await work_on(part, work, leave)]


def _halves(key_range: KeyRange) -> tuple[KeyRange, ...]:
    first, last, since, until = key_range
    if first < last:
        middle = (first + last) // 2
        return key_range._replace(last_user=middle), key_range._replace(first_user=middle + 1)
    low, high = (12 * month.year + month.month - 1 for month in (since or _FIRST, until or _LAST))
    if low == high:
        return ()
    months = [Month(number // 12, number % 12 + 1) for number in (low, (low + high) // 2, (low + high) // 2 + 1, high)]
    return key_range._replace(since=months[0], until=months[1]), key_range._replace(since=months[2], until=months[3])
