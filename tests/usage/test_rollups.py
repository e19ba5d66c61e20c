"""The rollups are the same whether messages are counted one at a time or at once: other statements do it."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import text

from app.db.database import Database
from services.usage import token_usage
from services.usage.token_usage import Entry, Usage
from tests.support import accounts

TABLES = ("user_daily_token_usage", "user_monthly_token_usage")
NEW_YEAR = datetime(2025, 1, 1, tzinfo=UTC)


def entries(user_id: int) -> list[Entry]:
    """Of two months and several models, in no order of time, some of unknown cost, some estimated."""
    return [
        Entry(
            user_id=user_id,
            role="assistant",
            created_at=NEW_YEAR + timedelta(hours=(-1) ** i * 7 * i),
            model=[None, "one", "two"][i % 3],
            usage=Usage(
                input_tokens=i,
                output_tokens=2 * i,
                cost=Decimal(i).scaleb(-10) if i % 4 else None,
                usage_estimated=i % 5 == 0,
            ),
        )
        for i in range(24)
    ]


async def test_one_at_a_time_counts_as_all_at_once(database: Database) -> None:
    ayu, bela = [(await accounts.add(database, name)).id for name in ("ayu", "bela")]
    for entry in entries(ayu):
        async with database.sessions.begin() as session:
            await token_usage.record(session, entry, UTC)
    async with database.sessions.begin() as session:
        await token_usage.record_all(session, entries(bela), UTC)
    for table in TABLES:
        one_at_a_time, at_once = [await _rows(database, table, owner) for owner in (ayu, bela)]
        assert one_at_a_time == at_once
        assert len(at_once) >= 2


async def _rows(database: Database, table: str, owner: int) -> list[dict[str, Any]]:
    async with database.reads() as session:
        found = (await session.execute(text(f"SELECT * FROM {table} WHERE user_id = :owner"), {"owner": owner})).all()
    apart = ("id", "user_id", "last_updated", "created_at")
    rows = ({name: value for name, value in row._mapping.items() if name not in apart} for row in found)
    return sorted(rows, key=str)
