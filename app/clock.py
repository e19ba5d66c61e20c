"""Time: the present moment, the one rule that gives a message its day, months, and how instants are stored."""

import re
from calendar import monthrange
from datetime import UTC, date, datetime, tzinfo
from typing import Any, NamedTuple, Self

from sqlalchemy import DateTime, String
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


def now() -> datetime:
    """The present instant, in UTC."""
    return datetime.now(UTC)


def as_utc(instant: datetime) -> datetime:
    """The same instant in UTC; one without an offset is taken to be UTC already.

    Raises:
        OverflowError: near the years 1 and 9999, when UTC lies outside of what can be represented.
    """
    if instant.tzinfo is None:
        return instant.replace(tzinfo=UTC)
    return instant.astimezone(UTC)


def usage_date(created_at: datetime, zone: tzinfo) -> date:
    """The day to which a message of this instant belongs: its date in `USAGE_TIMEZONE`. The only such rule.

    Raises:
        OverflowError: the first or the last day of the calendar, which drivers take for the ends of time.
    """
    day = as_utc(created_at).astimezone(zone).date()
    if not date.min < day < date.max:
        raise OverflowError(f"{created_at} lies at the end of the calendar")
    return day


def parse_instant(text: str) -> datetime:
    """Reads ISO 8601 with a space or a `T`, with or without fraction, `Z` or offset; UTC where none is given.

    Raises:
        ValueError: it is not such a text.
    """
    try:
        return as_utc(datetime.fromisoformat(text.strip()))
    except OverflowError as error:
        raise ValueError(f"{text!r} lies outside of the calendar") from error


SECONDS_GLOB = "????-??-?? ??:??:??"
MICROSECONDS_GLOB = f"{SECONDS_GLOB}.{'[0-9]' * 6}"
"""The forms, as SQLite's patterns, whose texts sort by time; the second is the one in which SQLite stores instants."""


def stored_instant(text: Any) -> Any:
    """A text of `parse_instant` as SQLite stores it (`UtcDateTime`), so that it sorts by time; others as they are."""
    try:
        return _as_stored(parse_instant(text))
    except (ValueError, TypeError, AttributeError):
        return text


def _as_stored(instant: datetime) -> str:
    return instant.replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")


class Month(NamedTuple):
    """A calendar month; compares and sorts by time and prints as `YYYY-MM`."""

    year: int
    month: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `YYYY-MM`.

        Raises:
            ValueError: it is not a month of the years 0001 to 9999.
        """
        match = _MONTH.fullmatch(text)
        if match is None or match[1] == "0000" or not text.isascii():
            raise ValueError(f"{text!r} is not a month: use YYYY-MM")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of(cls, day: date) -> Self:
        """The month in which a day lies."""
        return cls(day.year, day.month)

    @property
    def first_day(self) -> date:
        """The first day of the month."""
        return date(self.year, self.month, 1)

    @property
    def last_day(self) -> date:
        """The last day of the month."""
        return date(self.year, self.month, monthrange(self.year, self.month)[1])

    def next(self) -> "Month":
        """The month after this one."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.month:02d}"


class UtcDateTime(TypeDecorator[datetime]):
    """An instant, aware and in UTC in Python.

    PostgreSQL: `timestamptz`; an adopted `timestamp` column is read as UTC, since sessions run with `TimeZone=UTC`.
    SQLite: text, `YYYY-MM-DD HH:MM:SS.ffffff` in UTC, as SQLAlchemy writes it; every ISO 8601 form is read, and what is
    none is None.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return String() if dialect.name == "sqlite" else DateTime(timezone=True)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        value = as_utc(value)
        if dialect.name == "sqlite":
            return _as_stored(value)
        return value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        try:
            return parse_instant(value) if isinstance(value, str) else as_utc(value)
        except (ValueError, AttributeError):  # an old row of SQLite may hold anything
            return None
