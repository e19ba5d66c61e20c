"""Time: to which day and month an instant belongs, months, and how instants are read and stored."""

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, insert, select, text
from sqlalchemy.schema import CreateTable

from app import clock
from app.clock import Month, UtcDateTime
from app.db.database import Database

ZONES = sorted(available_timezones())
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
instants = st.datetimes(datetime(1970, 1, 2), datetime(2099, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
EDGES = [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
months = st.builds(Month, st.integers(1, 9999), st.integers(1, 12))


@pytest.fixture
def local_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose own time is far from UTC."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


_events = Table("events", MetaData(), Column("id", Integer, primary_key=True), Column("at", UtcDateTime()))


@given(instants, st.sampled_from(ZONES), OFFSETS)
def test_the_usage_date_is_the_local_date_of_the_instant(instant: datetime, name: str, offset: timezone) -> None:
    zone = ZoneInfo(name)
    offset_there = instant.astimezone(zone).utcoffset()
    assert offset_there is not None
    on_the_wall = (instant.replace(tzinfo=None) + offset_there).date()
    assert clock.usage_date(instant, zone) == on_the_wall
    assert clock.usage_date(instant.astimezone(offset), zone) == on_the_wall
    assert clock.usage_date(instant.replace(tzinfo=None), zone) == on_the_wall, "without an offset it is UTC"
    assert abs(on_the_wall - instant.date()) <= timedelta(days=1)


@pytest.mark.parametrize(
    ("zone", "instant", "day"),
    [
        ("UTC", "2024-02-29T23:59:59.999999+00:00", "2024-02-29"),
        ("UTC", "2024-03-01T00:00:00+00:00", "2024-03-01"),
        ("America/New_York", "2024-03-10T04:59:59+00:00", "2024-03-09"),
        ("America/New_York", "2024-03-10T05:00:00+00:00", "2024-03-10"),
        ("America/New_York", "2024-03-11T03:59:59+00:00", "2024-03-10"),
        ("America/New_York", "2024-03-11T04:00:00+00:00", "2024-03-11"),
        ("America/New_York", "2024-11-04T04:59:59+00:00", "2024-11-03"),
        ("America/New_York", "2024-11-04T05:00:00+00:00", "2024-11-04"),
        # In 2009 the clocks of St. John's went back from 0:01 on 1 November to 23:01 on 31 October.
        ("America/St_Johns", "2009-11-01T02:29:59+00:00", "2009-10-31"),
        ("America/St_Johns", "2009-11-01T02:30:59+00:00", "2009-11-01"),
        ("America/St_Johns", "2009-11-01T02:31:00+00:00", "2009-10-31"),
        ("America/St_Johns", "2009-11-01T03:30:00+00:00", "2009-11-01"),
        # Samoa had no 30 December 2011.
        ("Pacific/Apia", "2011-12-30T09:59:59+00:00", "2011-12-29"),
        ("Pacific/Apia", "2011-12-30T10:00:00+00:00", "2011-12-31"),
        ("Pacific/Kiritimati", "2023-12-31T10:00:00+00:00", "2024-01-01"),
        ("Etc/GMT+12", "2024-01-01T11:59:59+00:00", "2023-12-31"),
        ("Australia/Lord_Howe", "2024-01-31T13:00:00+00:00", "2024-02-01"),
    ],
)
def test_days_begin_when_they_begin_there(zone: str, instant: str, day: str) -> None:
    assert clock.usage_date(datetime.fromisoformat(instant), ZoneInfo(zone)) == date.fromisoformat(day)


@given(instants, OFFSETS)
def test_every_way_to_write_an_instant_is_read_as_the_same(instant: datetime, offset: timezone) -> None:
    plain = instant.replace(tzinfo=None)
    there = instant.astimezone(offset)
    ways = [
        plain.isoformat(sep=" "),
        plain.isoformat(),
        f"{plain.isoformat()}Z",
        there.isoformat(),
        there.isoformat(" "),
    ]
    for way in (*ways, f" {ways[0]} "):
        read = clock.parse_instant(way)
        assert read == instant
        assert read.utcoffset() == timedelta(0)


@given(st.text())
@example("0001-01-01T00:00:00+14:00")
@example("9999-12-31T23:59:59-14:00")
@example("2024-01-01T00:00:00+99:99")
@example("2024-02-30")
@example("")
@example("\x00")
def test_what_is_no_instant_is_a_value_error_and_nothing_else(written: str) -> None:
    try:
        read = clock.parse_instant(written)
    except ValueError:
        return
    assert read.utcoffset() == timedelta(0)


def test_now_is_utc(local_time: None) -> None:
    before, now, after = datetime.now(UTC), clock.now(), datetime.now(UTC)
    assert before <= now <= after
    assert now.utcoffset() == timedelta(0)


@given(months)
def test_a_month_is_read_as_it_is_printed(month: Month) -> None:
    printed = str(month)
    assert Month.parse(printed) == month
    assert len(printed) == 7
    assert printed == month.first_day.isoformat()[:7]


@given(months, months)
def test_months_are_ordered_as_time_and_as_text(one: Month, other: Month) -> None:
    assert (one < other) == (one.first_day < other.first_day) == (str(one) < str(other))
    assert (one == other) == (one.first_day == other.first_day) == (str(one) == str(other))


@given(st.dates())
@example(date(1, 1, 1))
@example(date(9999, 12, 31))
@example(date(2024, 2, 29))
@example(date(2100, 2, 28))
def test_a_month_holds_its_days_and_no_other(day: date) -> None:
    month = Month.of(day)
    assert month.first_day <= day <= month.last_day
    assert month.first_day.day == 1
    assert Month.of(month.first_day) == Month.of(month.last_day) == month
    if month.last_day < date.max:
        assert month.last_day + timedelta(days=1) == Month.of(month.last_day + timedelta(days=1)).first_day
        assert Month.of(month.last_day + timedelta(days=1)) > month


@given(st.one_of(st.text(), st.from_regex(r"\A[0-9-]{5,8}\Z"), st.from_regex(r"\A\d{4}-\d{2}\Z")))
@example("2024-13")
@example("2024-00")
@example("0000-01")
@example("2024-1")
@example("2024-01\n")
@example("\u0662\u0660\u0662\u0664-\u0660\u0661")
def test_what_is_no_month_is_a_value_error_and_nothing_else(written: str) -> None:
    try:
        month = Month.parse(written)
    except ValueError:
        month = None
    assert month is None or str(month) == written


@given(st.sampled_from(EDGES), OFFSETS)
def test_near_the_ends_of_the_calendar_an_overflow_is_said(edge: datetime, offset: timezone) -> None:
    instant = edge.replace(tzinfo=offset)
    ahead = offset.utcoffset(None) > timedelta(0)
    if offset.utcoffset(None) == timedelta(0) or ahead == (edge == EDGES[1]):
        assert clock.as_utc(instant) == instant
    else:
        with pytest.raises(OverflowError):
            clock.as_utc(instant)


@given(written=st.lists(st.tuples(instants, OFFSETS), min_size=1, max_size=5))
async def test_instants_return_from_the_database_in_utc_and_order(
    database: Database, written: list[tuple[datetime, timezone]]
) -> None:
    async with database.sessions() as session:
        await session.execute(CreateTable(_events))
        rows = [{"id": i, "at": instant.astimezone(offset)} for i, (instant, offset) in enumerate(written)]
        await session.execute(insert(_events), [*rows, {"id": len(rows), "at": None}])
        back = list(await session.scalars(select(_events.c.at).order_by(_events.c.id)))
        ordered = list(await session.scalars(select(_events.c.at).where(_events.c.at.is_not(None)).order_by("at")))
        await session.rollback()
    assert back == [*(instant for instant, _ in written), None]
    assert {instant.utcoffset() for instant in back if instant is not None} == {timedelta(0)}
    assert ordered == sorted(instant for instant, _ in written)


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_sqlite_stores_one_form_of_instants_and_reads_all(
    database: Database,
) -> None:
    instant = datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)
    other_forms = [
        "2024-02-29 23:59:59",
        "2024-02-29T23:59:59Z",
        "2024-03-01T00:59:59+01:00",
        "2024-02-29 23:59:59.000",
    ]
    async with database.sessions() as session:
        await session.execute(CreateTable(_events))
        await session.execute(insert(_events).values(id=0, at=instant))
        kept = (await session.execute(text("SELECT at FROM events"))).scalar_one()
        assert kept == "2024-02-29 23:59:59.000000"
        for i, form in enumerate(other_forms, start=1):
            await session.execute(text("INSERT INTO events VALUES (:id, :at)"), {"id": i, "at": form})
        assert set(await session.scalars(select(_events.c.at))) == {instant}
        await session.rollback()
