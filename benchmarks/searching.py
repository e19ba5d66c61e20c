"""Measure searches for a keyword among many messages of one user."""

import asyncio
import random
from collections.abc import Iterator
from itertools import accumulate

from sqlalchemy import insert, text

from app import clock
from app.db import search_index
from app.db.database import Database
from benchmarks import databases
from benchmarks.figures import Figure, Target, by_turns
from benchmarks.reading import get, p50
from benchmarks.sizes import Sizes
from benchmarks.stages import Stage
from models import Conversation, Message
from services.chat import trigrams

MESSAGES_OF_CONVERSATION = 20
_ROWS_AT_ONCE = 5_000

# What to search for, and in which share of the messages it is. No message contains "quartz" or a percent sign.
_SEARCHES = {
    "a word of nearly every message": "the",
    "a word of one message in 10,000": "xylophone",
    "an absent word": "quartz",
    "an absent character": "%25",
}
_RARE_EVERY = 10_000
_TEXTS = 5_000


def figures(stage: Stage, sizes: Sizes) -> Iterator[Figure]:
    """Yield all rows of a stage."""
    user_id = stage.run(_fill(stage.database, sizes.searched))
    has_index = stage.is_sqlite or stage.run(search_index.is_complete(stage.database))  # or it lacks pg_trgm
    for what, keyword in _SEARCHES.items():
        search, health = (get(path, user_id) for path in (f"/conversations?limit=12&keyword={keyword}", "/health"))
        ours, floor = by_turns(sizes.repeats, p50(stage.ours, search, sizes), p50(stage.ours, health, sizes))
        yield Figure(
            what=f"search of {sizes.searched:,} messages for {what}, p50",
            database=stage.kind,
            unit="ms",
            ours=ours,
            floor_is="GET /health",
            floor=floor,
            target=Target("<=", 50, "ms") if has_index else None,
        )


async def _fill(database: Database, many: int) -> int:
    """Create the user and the messages, and index them."""
    user_id = await databases.add_user(database, "searcher")
    now = clock.now()
    talks = [
        {"id": f"searched-{number}", "user_id": user_id, "title": "talk", "model_type": "Standard", "updated_at": now}
        for number in range(-(-many // MESSAGES_OF_CONVERSATION))
    ]
    contents = _contents(many)
    messages = [
        {
            "conversation_id": talks[number // MESSAGES_OF_CONVERSATION]["id"],
            "user_id": user_id,
            "role": ("user", "assistant")[number % 2],
            "content": content,
            "created_at": now,
        }
        for number, content in enumerate(contents)
    ]
    for table, rows in ((Conversation, talks), (Message, messages)):
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            async with database.sessions.begin() as session:
                await session.execute(insert(table), rows[start : start + _ROWS_AT_ONCE])
    async with database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("ANALYZE"))
    await trigrams.keep(database, asyncio.Event())
    return user_id


def _contents(many: int) -> Iterator[str]:
    """Yield texts of 200 to 2,000 characters, with words of realistic frequency."""
    chance = random.Random(1)
    letters = "etaonirshldcumfpgwybvk"
    words = ["the", *("".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(20_000))]
    weights = list(accumulate(1 / (rank + 2) for rank in range(len(words))))  # Zipf's law
    lengths = [chance.randint(200, 2_000) for _ in range(min(many, _TEXTS))]
    texts = [" ".join(chance.choices(words, cum_weights=weights, k=length // 4))[:length] for length in lengths]
    for number in range(many):
        yield chance.choice(texts) + " xylophone" * (number % _RARE_EVERY == 0)
