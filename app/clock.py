"""Handle time: the current instant, the usage date, months, and stored instants."""

import re
from calendar import monthrange
from datetime import UTC, date, datetime, tzinfo
from typing import Any, NamedTuple, Self

from sqlalchemy import DateTime, String
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


def now() -> datetime:
    """Return the current instant, in UTC."""
    return datetime.now(UTC)


def as_utc(instant: datetime) -> datetime:
    """Convert an instant to UTC; one without an offset is UTC already.

    Raises:
        OverflowError: the instant in UTC is before the year 1 or after 9999.
    """
    if instant.tzinfo is None:
        return instant.replace(tzinfo=UTC)
    return instant.astimezone(UTC)


def usage_date(created_at: datetime, zone: tzinfo) -> date:
    """Return the day to which a message belongs: its date in `USAGE_TIMEZONE`.

    Raises:
        OverflowError: the date is the first or last of the calendar, which drivers read as infinite.
    """
    day = as_utc(created_at).astimezone(zone).date()
    if not date.min < day < date.max:
        raise OverflowError(f"{created_at} is at the end of the calendar")
    return day


def parse_instant(text: str) -> datetime:
    """Parse ISO 8601, in UTC if it has no offset.

    The separator is a space or a `T`; fraction, `Z` and offset are optional.

    Raises:
        ValueError: the text has another form.
    """
    try:
        return as_utc(datetime.fromisoformat(text.strip()))
    except OverflowError as error:
        raise ValueError(f"{text!r} is outside of the calendar") from error


SECONDS_GLOB = "????-??-?? ??:??:??"
MICROSECONDS_GLOB = f"{SECONDS_GLOB}.{'[0-9]' * 6}"
"""SQLite's patterns of the forms whose texts sort by time. Instants are stored in the second form."""


def stored_instant(text: Any) -> Any:
    """Convert a text to the form that SQLite stores and sorts.

    Texts that `parse_instant` refuses are returned unchanged.
    """
    try:
        return _as_stored(parse_instant(text))
    except (ValueError, TypeError, AttributeError):
        return text


def _as_stored(instant: datetime) -> str:
    return instant.replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")


class Month(NamedTuple):
    """Represent a calendar month, which sorts by time and prints as `YYYY-MM`."""

    year: int
    month: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `YYYY-MM`.

        Raises:
            ValueError: the text is not a month of the years 0001 to 9999.
        """
        match = _MONTH.fullmatch(text)
        if match is None or match[1] == "0000" or not text.isascii():
            raise ValueError(f"{text!r} is not a month: use YYYY-MM")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of(cls, day: date) -> Self:
        """Return the month that contains a day."""
        return cls(day.year, day.month)

    @property
    def first_day(self) -> date:
        """Return the first day of the month."""
        return date(self.year, self.month, 1)

    @property
    def last_day(self) -> date:
        """Return the last day of the month."""
        return date(self.year, self.month, monthrange(self.year, self.month)[1])

    def next(self) -> "Month":
        """Return the month after this one."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.month:02d}"


class UtcDateTime(TypeDecorator[datetime]):
    """Store an instant; in Python it is aware and in UTC.

    PostgreSQL: `timestamptz`. An adopted `timestamp` column is read as UTC, since sessions run with `TimeZone=UTC`.
    SQLite: text, `YYYY-MM-DD HH:MM:SS.ffffff` in UTC, as SQLAlchemy writes it. Every ISO 8601 form is read; any other
    value is None.
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
        except (ValueError, AttributeError):  # an old row of SQLite may contain any value
            return None
