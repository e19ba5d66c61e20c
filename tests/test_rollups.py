"""The rollups are the same whether messages are counted one at a time or at once: other statements do it."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import text

from app.database import Database
from services import token_usage
from services.token_usage import Entry, Usage
from tests import accounts

TABLES = ("conversation_daily_token_usage", "user_daily_token_usage", "user_monthly_token_usage")
NEW_YEAR = datetime(2025, 1, 1, tzinfo=UTC)


def entries(user_id: int, conversations: list[str]) -> list[Entry]:
    """Of two months, in conversations and outside, in no order of time, some of unknown cost."""
    return [
        Entry(
            user_id=user_id,
            role="assistant",
            created_at=NEW_YEAR + timedelta(hours=(-1) ** i * 7 * i),
            conversation_id=[None, *conversations][i % 3],
            usage=Usage(input_tokens=i, output_tokens=2 * i, cost=Decimal(i).scaleb(-10) if i % 4 else None),
        )
        for i in range(24)
    ]


async def test_one_at_a_time_counts_as_all_at_once(database: Database) -> None:
    ayu, bela = [(await accounts.add(database, name)).id for name in ("ayu", "bela")]
    talks = {owner: [await _conversation(database, owner, i) for i in range(2)] for owner in (ayu, bela)}
    for entry in entries(ayu, talks[ayu]):
        async with database.sessions.begin() as session:
            await token_usage.record(session, entry, UTC)
    async with database.sessions.begin() as session:
        await token_usage.record_all(session, entries(bela, talks[bela]), UTC)
    for table in TABLES:
        one_at_a_time, at_once = [await _rows(database, table, owner) for owner in (ayu, bela)]
        assert one_at_a_time == at_once
        assert len(at_once) >= 2


async def _conversation(database: Database, owner: int, number: int) -> str:
    name = f"{owner}-{number}"
    async with database.sessions.begin() as session:
        insert = "INSERT INTO conversations (id, user_id, title, model_type) VALUES (:id, :owner, 'talk', 'Standard')"
        await session.execute(text(insert), {"id": name, "owner": owner})
    return name


async def _rows(database: Database, table: str, owner: int) -> list[dict[str, Any]]:
    async with database.reads() as session:
        found = (await session.execute(text(f"SELECT * FROM {table} WHERE user_id = :owner"), {"owner": owner})).all()
    rows = [{**row._mapping, "conversation_id": row._mapping.get("conversation_id", "")[-1:]} for row in found]
    apart = ("id", "user_id", "last_updated", "created_at")
    return sorted(
        ({name: value for name, value in row.items() if name not in apart} for row in rows), key=lambda row: str(row)
    )
