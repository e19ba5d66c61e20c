"""`USAGE_TIMEZONE`: to which day and month a message belongs, and what it takes to change it."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

import main
from app import BASE_DIR
from app.db.database import Database
from app.errors import ConfigurationError
from app.settings import Settings
from models import Message, UserMonthlyTokenUsage
from services import backfill
from services.chat import turns
from services.chat.tokenizer import TokenCounts
from services.chat.turns import Outcome, Question, Turn
from services.usage import time_zone, token_usage
from services.usage.pricing import PriceList
from services.usage.token_usage import Entry, Usage
from tests.support import accounts, commands, invariants, programs
from tests.support.commands import migrate
from tests.support.ledger_machine import Died, dying

TOKYO, NEW_YORK = ZoneInfo("Asia/Tokyo"), ZoneInfo("America/New_York")
COST = Decimal("0.0000000001")
DAYS = {
    "Europe/Berlin": {
        "2024-02-29T22:59:59.999999Z": "2024-02-29",
        "2024-02-29T23:00:00Z": "2024-03-01",
        "2024-03-30T23:00:00Z": "2024-03-31",  # on this day the clocks are put forward
        "2024-03-31T21:59:59.999999Z": "2024-03-31",
        "2024-03-31T22:00:00Z": "2024-04-01",
        "2024-10-31T22:59:59.999999Z": "2024-10-31",
        "2024-10-31T23:00:00Z": "2024-11-01",
    },
    "America/New_York": {  # where November 2026 begins on summer time and ends without it
        "2026-11-01T03:59:59.999999Z": "2026-10-31",
        "2026-11-01T04:00:00Z": "2026-11-01",
        "2026-11-01T05:30:00Z": "2026-11-01",  # half past one
        "2026-11-01T06:30:00Z": "2026-11-01",  # and half past one again
        "2026-12-01T04:59:59.999999Z": "2026-11-30",
        "2026-12-01T05:00:00Z": "2026-12-01",
    },
    "Africa/Cairo": {  # where the last hour of October 2024 came twice
        "2024-10-31T20:59:59.999999Z": "2024-10-31",
        "2024-10-31T21:00:00Z": "2024-10-31",
        "2024-10-31T21:59:59.999999Z": "2024-10-31",
        "2024-10-31T22:00:00Z": "2024-11-01",
    },
    "Asia/Beirut": {  # where the 31st of March 2024 began at one o'clock
        "2024-03-30T21:59:59.999999Z": "2024-03-30",
        "2024-03-30T22:00:00Z": "2024-03-31",
        "2024-03-31T20:59:59.999999Z": "2024-03-31",
        "2024-03-31T21:00:00Z": "2024-04-01",
    },
    "Pacific/Apia": {  # which left out the 30th of December 2011
        "2011-12-30T09:59:59.999999Z": "2011-12-29",
        "2011-12-30T10:00:00Z": "2011-12-31",
        "2011-12-31T10:00:00Z": "2012-01-01",
    },
}
EDGES = [datetime.fromisoformat(instant) for days in DAYS.values() for instant in days]


async def record(database: Database, owner: int, instants: Sequence[datetime], zone: ZoneInfo) -> None:
    """A message at each of these instants; each has its own figures."""
    entries = [
        Entry(
            user_id=owner,
            role="assistant",
            created_at=at,
            usage=Usage(input_tokens=2**i, output_tokens=i, cost=COST * 2**i),
        )
        for i, at in enumerate(instants)
    ]
    await database.transaction(lambda session: token_usage.record_all(session, entries, zone))


async def check(database: Database, zone: ZoneInfo) -> None:
    """As at a start."""
    await database.transaction(lambda session: time_zone.check(session, zone), repeatable=True)


async def redate(database: Database, zone: ZoneInfo) -> int:
    return await backfill.redate(database, zone, lambda _progress: None)


def tokens_by_month(instants: Sequence[datetime], zone: ZoneInfo) -> dict[str, int]:
    """What `record` stores, by month."""
    found: Counter[str] = Counter()
    for i, at in enumerate(instants):
        found[f"{at.astimezone(zone):%Y-%m}"] += 2**i
    return dict(found)


async def stored_by_month(database: Database, zone: ZoneInfo) -> dict[str, int]:
    months = await invariants.check(database, zone)
    return {month: totals.input_tokens for (_, month), totals in months.items()}


@pytest.mark.parametrize("name", DAYS)
async def test_a_message_belongs_to_its_local_day_and_month(database: Database, name: str) -> None:
    zone = ZoneInfo(name)
    owner = (await accounts.add(database, "ayu")).id
    instants = [datetime.fromisoformat(instant) for instant in DAYS[name]]
    await record(database, owner, instants, zone)
    async with database.reads() as session:
        days = await session.scalars(select(Message.usage_date).order_by(Message.created_at))
        assert [str(day) for day in days] == list(DAYS[name].values())
    expected: Counter[str] = Counter()
    for i, day in enumerate(DAYS[name].values()):
        expected[day[:7]] += 2**i
    assert await stored_by_month(database, zone) == expected


@pytest.mark.parametrize("edge", ["2024-02-29T14:59:59.999999Z", "2024-02-29T15:00:00Z"])
async def test_a_turn_counts_in_the_month_in_which_it_began(
    database: Database, monkeypatch: pytest.MonkeyPatch, edge: str
) -> None:
    owner = (await accounts.add(database, "ayu")).id
    monkeypatch.setattr("app.clock.now", lambda: datetime.fromisoformat(edge))
    question = Question(owner, "?", "a model")
    turn = await database.transaction(lambda session: turns.begin(session, question, "a turn", TOKYO))
    assert isinstance(turn, Turn)
    monkeypatch.setattr("app.clock.now", lambda: datetime(2024, 3, 1, 9, tzinfo=UTC))
    outcome = Outcome("complete", "!", "a model", TokenCounts(1, 1))
    await database.transaction(lambda session: turns.settle(session, turn.pending, outcome, None, PriceList(), TOKYO))
    [month] = await stored_by_month(database, TOKYO)
    assert month == ("2024-02" if edge.startswith("2024-02-29T14") else "2024-03")


def check_refused(ended: programs.Ended, *said: str) -> None:
    """Exit code 2, and one line on standard error that says all this."""
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.err.strip().splitlines()) == 1, ended.err
    for words in (*said, "USAGE_TIMEZONE"):
        assert words in ended.err


@pytest.mark.long
async def test_another_zone_is_refused_until_the_messages_are_redated(
    database: Database, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = (await accounts.add(database, "ayu")).id
    await check(database, TOKYO)
    await record(database, owner, EDGES, TOKYO)
    settings = {"DATABASE_URL": database_url, "USAGE_TIMEZONE": NEW_YORK.key}
    monkeypatch.setenv("USAGE_TIMEZONE", NEW_YORK.key)
    check_refused(commands.run(["main.py"], tmp_path, **settings), TOKYO.key, NEW_YORK.key, "--redate")
    check_refused(commands.run(["migrate_token_data.py", "--quiet"], tmp_path, **settings), "--redate")
    for flags in ([], ["--user", str(owner)], ["--from", "2024-01"], ["--verify"], ["--dry-run"]):
        check_refused(await call(database_url, *flags), TOKYO.key, NEW_YORK.key, "--redate")
    assert await stored_by_month(database, TOKYO) == tokens_by_month(EDGES, TOKYO), "nothing was changed"
    assert (await call(database_url, "--redate", "--quiet")).code == 0
    assert await stored_by_month(database, NEW_YORK) == tokens_by_month(EDGES, NEW_YORK)
    for flags in ([], ["--verify"]):
        assert (await call(database_url, *flags)).code == 0
    monkeypatch.setenv("USAGE_TIMEZONE", TOKYO.key)
    check_refused(await call(database_url), "--redate")


@pytest.mark.any_database
async def test_the_summary_says_how_many_messages_were_redated(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = (await accounts.add(database, "ayu")).id
    await check(database, TOKYO)
    await record(database, owner, EDGES, TOKYO)
    moved = sum(at.astimezone(TOKYO).date() != at.astimezone(NEW_YORK).date() for at in EDGES)
    assert 0 < moved < len(EDGES)
    monkeypatch.setenv("USAGE_TIMEZONE", NEW_YORK.key)
    shown = (await call(database_url, "--redate", "--quiet")).out
    lines = [line.rsplit(maxsplit=1) for line in shown.splitlines()]
    assert ["messages moved to another day", str(moved)] in [[name.strip(), value] for name, value in lines]
    assert "months unchanged after that" in shown
    shown = (await call(database_url, "--redate", "--quiet")).out
    assert "messages moved to another day" in shown
    assert "after that" not in shown, "there was nothing to move"
    monkeypatch.setenv("USAGE_TIMEZONE", TOKYO.key)
    assert (await call(database_url, "--redate", "--json", "--quiet")).summary["redated"] == moved
    assert (await call(database_url, "--json", "--quiet")).summary["redated"] == 0


async def call(url: str, *flags: str) -> commands.Outcome:
    """The migration command in this process, in a thread, since it runs a loop of its own."""
    return await asyncio.to_thread(migrate, url, *flags)


@pytest.mark.long
async def test_main_starts_with_the_zone_of_the_redated_messages(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    owner = (await accounts.add(database, "ayu")).id
    await check(database, TOKYO)
    await record(database, owner, EDGES, TOKYO)
    await redate(database, NEW_YORK)
    settings = {"DATABASE_URL": database_url, "USAGE_TIMEZONE": NEW_YORK.key, "SECRET_KEY": accounts.SECRET_KEY}
    with programs.serving(BASE_DIR / "main.py", tmp_path, commands.free_port(), settings):
        assert await stored_by_month(database, NEW_YORK) == tokens_by_month(EDGES, NEW_YORK)


@pytest.mark.any_database
async def test_a_database_without_usage_takes_any_zone(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = (await accounts.add(database, "ayu")).id
    said = Entry(user_id=owner, role="user", created_at=EDGES[0], content="no usage")
    await database.transaction(lambda session: token_usage.record(session, said, TOKYO))
    for zone in (TOKYO, NEW_YORK, ZoneInfo("UTC")):
        monkeypatch.setenv("USAGE_TIMEZONE", zone.key)
        ended = await call(database_url, "--quiet")
        assert (ended.code, ended.err) == (0, "")
        await check(database, zone)
    await record(database, owner, EDGES[:1], ZoneInfo("UTC"))
    with pytest.raises(ConfigurationError, match="--redate"):
        await check(database, TOKYO)


async def test_a_start_in_another_zone_names_the_former(
    database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = []
    for zone in (TOKYO, TOKYO, NEW_YORK, NEW_YORK):
        settings = Settings(database_url=database_url, secret_key=accounts.SECRET_KEY, usage_timezone=zone)
        await main._prepare(settings)
        said.append([record.getMessage() for record in caplog.records if record.name == main.logger.name])
        caplog.clear()
    former = f"USAGE_TIMEZONE is {NEW_YORK.key} now: stop each server that still runs with {TOKYO.key}"
    assert said == [[], [], [former], []]


async def test_redating_moves_usage_and_leaves_no_empty_months(database: Database) -> None:
    owners = [(await accounts.add(database, name)).id for name in ("ayu", "bela")]
    utc = ZoneInfo("UTC")
    for owner in owners:
        await record(database, owner, EDGES, utc)
    for zone in (TOKYO, NEW_YORK, *map(ZoneInfo, DAYS), utc):
        await redate(database, zone)
        for owner in owners:
            months = await invariants.check(database, zone)
            found = {month: totals.input_tokens for (user, month), totals in months.items() if user == owner}
            assert found == tokens_by_month(EDGES, zone)
        async with database.reads() as session:
            assert 0 not in list(await session.scalars(select(UserMonthlyTokenUsage.message_count)))
        assert await redate(database, zone) == 0


async def sums_by_stored_day(database: Database) -> tuple[Counter[Any], Counter[Any]]:
    """Tokens by the month of the day that the messages have now, and by the rollup."""
    ledger: Counter[Any] = Counter()
    rollup: Counter[Any] = Counter()
    month = UserMonthlyTokenUsage
    async with database.reads() as session:
        for day, tokens in await session.execute(select(Message.usage_date, Message.input_tokens)):
            assert day is not None
            ledger[day.year, day.month] += tokens or 0
        for year, number, tokens in await session.execute(select(month.year, month.month, month.input_tokens)):
            rollup[year, number] += tokens
    return ledger, rollup


@pytest.mark.long
async def test_redating_is_exact_at_every_commit_when_killed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_zone, "BATCH_ROWS", 9)
    owner = (await accounts.add(database, "ayu")).id
    await check(database, TOKYO)
    await record(database, owner, EDGES, TOKYO)
    before, after, killed = TOKYO, NEW_YORK, 0
    while True:
        try:
            with dying(database, killed):
                await redate(database, after)
        except Died:
            killed += 1
            ledger, rollup = await sums_by_stored_day(database)
            assert ledger == rollup
            await redate(database, after)
            assert await stored_by_month(database, after) == tokens_by_month(EDGES, after)
            before, after = after, before
        else:
            break
    assert killed > 10
    assert await stored_by_month(database, after) == tokens_by_month(EDGES, after)


@pytest.mark.parametrize("instant", ["0001-01-02T01:00:00+00:00", "9999-12-30T23:00:00+00:00"])
async def test_a_zone_without_a_day_for_a_message_is_refused_first(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, instant: str
) -> None:
    east, west = ZoneInfo("Asia/Tokyo"), ZoneInfo("America/New_York")
    here, there = (east, west) if instant < "1" else (west, east)
    owner = (await accounts.add(database, "ayu")).id
    await check(database, here)
    await record(database, owner, [datetime.fromisoformat(instant), datetime(2024, 1, 1, tzinfo=UTC)], here)
    monkeypatch.setenv("USAGE_TIMEZONE", there.key)
    check_refused(await call(database_url, "--redate", "--quiet"), there.key, "end of the calendar")
    await check(database, here)
    await invariants.check(database, here)


@pytest.mark.any_database
async def test_a_partly_redated_database_is_served_in_no_zone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise they would lie in months by two rules for ever."""
    monkeypatch.setattr(time_zone, "BATCH_ROWS", 9)
    owner = (await accounts.add(database, "ayu")).id
    await check(database, TOKYO)
    await record(database, owner, EDGES, TOKYO)
    redate_batch = time_zone.redate_batch

    async def die_in_the_second(session: AsyncSession, after_id: int, zone: ZoneInfo) -> object:
        if after_id > 0:
            raise Died
        return await redate_batch(session, after_id, zone)

    for zone in (NEW_YORK, TOKYO):
        monkeypatch.setattr(time_zone, "redate_batch", die_in_the_second)
        with pytest.raises(Died):
            await redate(database, NEW_YORK)
        monkeypatch.setattr(time_zone, "redate_batch", redate_batch)
        async with database.reads() as session:
            days = list(await session.scalars(select(Message.usage_date).order_by(Message.id)))
        for whole in (TOKYO, NEW_YORK):
            assert days != [at.astimezone(whole).date() for at in EDGES]
            with pytest.raises(ConfigurationError, match="--redate"):
                await check(database, whole)
        await redate(database, zone)
        await check(database, zone)
        assert await stored_by_month(database, zone) == tokens_by_month(EDGES, zone)
        await redate(database, TOKYO)
