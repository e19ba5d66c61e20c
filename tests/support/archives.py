"""Archives for tests: messages of every kind, the commands, and everything that they may change."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from app.db.database import Database
from services.accounts import users
from services.backfill import archive_files, archive_import, archiving
from services.chat import conversations
from tests.support import months_over_http, raw_sql
from tests.support.accounts import Caller
from tests.support.commands import migrate

TABLES = (
    *("messages", "feedback", "message_images", "usage_adjustments", "archived_keys", "archives"),
    *("user_daily_token_usage", "user_monthly_token_usage", "conversations", "users"),
)
_COLUMNS = (
    *("id", "user_id", "conversation_id", "role", "content", "created_at", "status", "model"),
    *("input_tokens", "output_tokens", "cached_input_tokens", "cost", "usage_estimated", "usage_date"),
    *("idempotency_key", "request_hash", "image_urls"),
)
NOON = "12:00:00.000000"
_IMAGES = {name: f"/uploads/images/{name * 32}.png" for name in "abc"}


@dataclass(frozen=True)
class Everyone:
    """Two users, and the ids of their messages; those before 2024-03 are old."""

    url: str
    users: tuple[int, int]
    all: Set[int]
    old: Set[int]
    talks: Mapping[str, Collection[int]]

    def archiving(self, directory: Path) -> tuple[str, ...]:
        """The flags that archive the old messages."""
        return "--archive-before", "2024-03", "--to", str(directory)

    def all_of(self, talk: str) -> Collection[int]:
        """The messages of a conversation."""
        return self.talks[talk]


def fill(url: str) -> Everyone:
    """Fills an empty database at the newest schema, and counts the messages."""
    ayu, bela = 101, 102
    names = ("id", "username", "email", "hashed_password", "role", "is_active")
    raw_sql.insert(
        url, "users", names, [(id_, f"user{id_}", f"{id_}@example.com", "!", "user", True) for id_ in (ayu, bela)]
    )
    talks = [("talk", ayu, "T", "Fast"), ("branch", ayu, "B", "Fast"), ("other", bela, "O", "Fast")]
    raw_sql.insert(url, "conversations", ("id", "user_id", "title", "model_type"), talks)
    rows = _messages(url, ayu, bela)
    raw_sql.insert(url, "messages", _COLUMNS, rows)
    at = _instant(url, "2024-01-05 00:00:00.000000")
    images = [(name * 32, ayu, "image/png", bytes(range(256)), at) for name in _IMAGES]
    raw_sql.insert(url, "message_images", ("name", "user_id", "content_type", "data", "created_at"), images)
    feedback = [(7, rows[1][0], ayu, "like", "naïve 😀", at)]
    raw_sql.insert(
        url, "feedback", ("id", "message_id", "user_id", "feedback_type", "description", "created_at"), feedback
    )
    assert migrate(url, "--quiet").code == 0
    of = {talk[0]: [row[0] for row in rows if row[2] == talk[0]] for talk in talks}
    old = {row[0] for row in rows if row[0] < 1_000}
    return Everyone(url, (ayu, bela), {row[0] for row in rows}, old, of)


def _messages(url: str, ayu: int, bela: int) -> list[tuple[Any, ...]]:
    """Old ones have ids below 1,000, others above; the first and last instants of months are among them."""
    rows: list[tuple[Any, ...]] = []

    def add(
        id_: int, user: int, talk: str | None, role: str, day: str, time: str = "12:00:00.000000", **more: Any
    ) -> None:
        at = _instant(url, f"{day} {time}")
        values: dict[str, Any] = {"id": id_, "user_id": user, "conversation_id": talk, "role": role}
        values["created_at"] = at
        values |= {"status": "complete", "content": f"{role} says {id_} \u2028\u0001\\ \"' 😀"}
        if role == "assistant":
            values |= {"model": "m", "input_tokens": id_, "output_tokens": 5, "cached_input_tokens": 1}
            values |= {"cost": _cost(url, 4_500_000_003), "usage_estimated": False, "usage_date": _day(url, day)}
        values |= more
        rows.append(tuple(values.get(name) for name in _COLUMNS))

    nothing: dict[str, Any] = dict.fromkeys(("input_tokens", "output_tokens", "usage_date"))
    ab, bc = (json.dumps([_IMAGES[name] for name in names]) for names in ("ab", "bc"))
    add(1, ayu, "talk", "user", "2024-01-01", "00:00:00.000000", image_urls=ab)
    add(2, ayu, "talk", "assistant", "2024-01-01", "00:00:00.000001", idempotency_key="chat:k", request_hash="h")
    add(3, ayu, None, "assistant", "2024-01-31", idempotency_key="record:first", content=None)
    add(4, ayu, "talk", "assistant", "2024-02-29", "23:59:59.999999", cost=None, model=None, output_tokens=None)
    add(5, ayu, "talk", "user", "2024-02-29", "23:59:59.999999")
    add(6, bela, "other", "assistant", "2024-02-10", usage_estimated=True, cost=_cost(url, 0))
    add(7, bela, "other", "assistant", "2024-02-10", status="failed", **nothing)
    add(8, bela, "other", "system", "2023-12-31")
    add(1_001, ayu, "talk", "user", "2024-02-01", status="pending")
    add(1_002, ayu, "talk", "assistant", "2024-03-01", "00:00:00.000000")
    add(1_003, ayu, "branch", "user", "2024-03-01", "00:00:00.000000", image_urls=bc)
    add(1_004, ayu, "branch", "user", "2024-01-01", created_at=None)
    add(1_005, bela, None, "assistant", "2024-03-05", model="x")
    return rows


def _instant(url: str, text: str) -> Any:
    return text if url.startswith("sqlite") else datetime.fromisoformat(text).replace(tzinfo=UTC)


def _day(url: str, text: str) -> Any:
    return text if url.startswith("sqlite") else date.fromisoformat(text)


def _cost(url: str, units: int) -> Any:
    return units if url.startswith("sqlite") else Decimal(units).scaleb(-10)


def take_small_steps(set_: Callable[[Any, str, Any], None], rows: int = 3, file_bytes: int = 5_000) -> None:
    """Batches of few messages, and files of few batches."""
    for module in (archiving, archive_import):
        set_(module, "ROWS", rows)
        set_(module, "LEAST_ROWS", rows - 1)
        set_(module, "MOST_ROWS", rows + 1)
    set_(archiving, "FILE_BYTES", file_bytes)
    set_(archive_files, "_CHUNK_BYTES", 999)


def run(url: str, *flags: str) -> dict[str, Any]:
    """Runs the script to its end; the summary."""
    outcome = migrate(url, "--json", "--quiet", *flags)
    assert outcome.code == 0, outcome.err
    return outcome.summary


def contents(url: str) -> dict[str, list[raw_sql.Row]]:
    """All rows, each value exactly as it is stored."""
    return {table: raw_sql.contents(url, table) for table in TABLES}


def only_file(directory: Path) -> Path:
    """The only file of a directory."""
    (file,) = (path for path in directory.iterdir() if path.is_file())
    return file


def ids_in(directory: Path) -> list[int]:
    """The ids of the messages in all files, in their order."""
    files = sorted(directory.glob("*.jsonl"))
    return [line["message"]["id"] for file in files for line in lines_of(file)]


def lines_of(file: Path) -> list[dict[str, Any]]:
    """The lines of an archive."""
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def delete_conversation(url: str, user_id: int, conversation_id: str) -> None:
    """As the server does."""
    _in_transaction(url, lambda session: conversations.delete(session, user_id, conversation_id))


def delete_user(url: str, user_id: int) -> None:
    """As the server does."""
    _in_transaction(url, lambda session: users.delete(session, user_id))


def _in_transaction(url: str, work: Callable[[Any], Awaitable[object]]) -> None:
    async def run() -> None:
        opened = Database.open(url)
        try:
            await opened.transaction(work)
        finally:
            await opened.close()

    asyncio.run(run())


def as_seen_by(url: str, user_id: int, talk: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The months of `/auth/me`, and the conversations with the messages of one."""

    async def ask(client: httpx.AsyncClient) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        headers = Caller(user_id, "").headers
        me = (await client.get("/auth/me", headers=headers)).json()
        talks = (await client.get("/conversations", headers=headers)).json()
        first = (await client.get(f"/conversations/{talk}", headers=headers)).json()
        return me["token_stats"]["monthly_stats"], {**talks, "messages": first["messages"]}

    return months_over_http.in_application(url, ask)
