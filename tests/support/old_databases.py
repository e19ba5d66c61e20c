"""Databases of the earlier backend: made, filled by a fixed rule, and what is expected of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import Any

import pytest

from tests.support import old_messages, old_tables, raw_sql
from tests.support.old_messages import Month, Months, OldMessage

ROLLUP = "user_monthly_token_usage"
GENERATIONS = [pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long), 3]
"""As parameters of tests: the newest in each run, the others in long ones."""
USERS = old_messages.USERS
IDLE_USER = 34
GHOST_MONTHS = ((USERS[0], "2019-07"), (IDLE_USER, "2023-05"))

PASSWORD = "correct horse battery"
LONG_PASSWORD = "a long passphrase with ümläuts, " * 4
LONG_PASSWORD_USER = USERS[3]
_HASH = "$2b$12$abcdefghijklmnopqrstuuE3j5FFjC71WyDL2KIK7ShSoj8tPD3m6"
_LONG_HASH = "$2b$12$abcdefghijklmnopqrstuu4ui6HMkrsHCQmSAFutBd/eR7R7RRb.G"  # of the first 72 bytes

_MADE_AT = datetime(2022, 9, 30, 8, 15, tzinfo=UTC)
_INT32 = 2**31 - 1
_MODEL_TYPES = ("Fast", "Standard", "Fast Reasoning", "Reasoning")


@dataclass(frozen=True)
class Counts:
    """How many months a run makes, mends, and leaves."""

    created: int
    updated: int
    unchanged: int


@dataclass(frozen=True)
class OldDatabase:
    """An old database, and what a run must find in it."""

    url: str
    generation: int
    messages: Sequence[OldMessage]
    rollup: Months
    """The months of the old rollup, as far as they are of users who are there."""
    columns: dict[str, list[str]]

    def months(self, zone: tzinfo = UTC) -> Months:
        """What a run makes of it, by user and `YYYY-MM`: the messages, and what the rollup holds of deleted ones."""
        months = self.months_of_messages(zone)
        for key, more in self.carried_over().items():
            here = months.get(key, Month())
            months[key] = Month(
                here.input_tokens + more.input_tokens,
                here.output_tokens + more.output_tokens,
                here.cost + more.cost,
                here.messages + more.messages,
            )
        return months

    def months_of_messages(self, zone: tzinfo = UTC) -> Months:
        """What the messages alone amount to."""
        return {} if self.generation == 1 else old_messages.months(self.messages, zone)

    def carried_over(self) -> Months:
        """By how much old months, which are of UTC, exceed the messages that are left, where they count more."""
        months, uncountable = self.months_of_messages(), old_messages.uncountable(self.messages)
        carried: Months = {}
        for key, old in self.rollup.items():
            here = months.get(key, Month())
            lost = (old.messages or 0) - here.messages - uncountable[key]
            if lost > 0:
                carried[key] = Month(
                    max((old.input_tokens or 0) - here.input_tokens, 0),
                    max((old.output_tokens or 0) - here.output_tokens, 0),
                    max((old.cost or Decimal(0)) - here.cost, Decimal(0)),
                    lost,
                )
        return carried

    @property
    def counts(self) -> Counts:
        """How many months a run makes, changes, and leaves."""
        states: Counter[str] = Counter()
        months = self.months()
        for key in months.keys() | self.rollup.keys():
            old, new = self.rollup.get(key), months.get(key)
            states["missing" if old is None else "right" if old == new else "wrong"] += 1
        return Counts(states["missing"], states["wrong"], states["right"])

    @property
    def skipped(self) -> dict[str, int]:
        """How many rows cannot be counted, by reason."""
        return {} if self.generation == 1 else old_messages.skipped(self.messages)

    def contents(self) -> dict[str, list[raw_sql.Row]]:
        """Everything in the columns that the old tables had; not the rollup, which is only a sum."""
        return {table: raw_sql.contents(self.url, table, columns) for table, columns in self.columns.items()}


def build(url: str, generation: int, *, rows: int = 400, time_zone: bool = True) -> OldDatabase:
    """Makes and fills an old database in an empty one.

    Args:
        url: where; SQLite or PostgreSQL.
        generation: see `old_tables.statements`.
        rows: of how many real requests, each of which becomes a question and an answer.
        time_zone: whether PostgreSQL's `created_at` of messages is with time zone.
    """
    kind = "sqlite" if url.startswith("sqlite") else "postgresql"
    raw_sql.run(url, *old_tables.statements(generation, kind, time_zone=time_zone))
    messages, owners = old_messages.make(rows, kind, time_zone=time_zone)
    _fill_users(url, kind)
    _fill_conversations(url, kind, generation, owners)
    _fill_messages(url, generation, messages)
    _fill_foreign_tables(url, generation, messages, owners)
    rollup = _fill_rollup(url, kind, old_messages.months(messages)) if generation >= 3 else {}
    tables = [table for table in old_tables.metadata(generation).tables if table != ROLLUP]
    columns = {table: raw_sql.columns_of(url, table) for table in tables}
    return OldDatabase(url, generation, messages, rollup, columns)


def rollup(url: str) -> Months:
    """The rollup as it is stored now, at the newest schema."""
    figures = "input_tokens, output_tokens, total_cost, message_count, total_tokens"
    found: Months = {}
    for user, year, month, *row in raw_sql.run(url, f"SELECT user_id, year, month, {figures} FROM {ROLLUP}"):
        input_tokens, output_tokens, cost, count, total_tokens = row
        assert total_tokens == input_tokens + output_tokens
        assert isinstance(cost, int | Decimal)
        dollars = Decimal(cost).scaleb(-10) if url.startswith("sqlite") else Decimal(cost)
        found[user, f"{year:04d}-{month:02d}"] = Month(input_tokens, output_tokens, dollars, count)
    return found


def _stored(instant: datetime, kind: str) -> Any:
    return instant.replace(tzinfo=None).isoformat(" ", "microseconds") if kind == "sqlite" else instant


def _fill_users(url: str, kind: str) -> None:
    """Some have no role, some no `is_active`, one an address that would be refused today."""
    rows = [
        (
            user,
            username(user),
            "operator@localhost" if user == 2 else f"user{user}@example.com",
            _LONG_HASH if user == LONG_PASSWORD_USER else _HASH,
            {1: "admin", 2: None, 3: None}.get(user, "user"),
            None if user in (3, 5) else True,
            _stored(_MADE_AT, kind),
        )
        for user in (*USERS, IDLE_USER)
    ]
    columns = ("id", "username", "email", "hashed_password", "role", "is_active", "created_at")
    raw_sql.insert(url, "users", columns, rows)


def username(user_id: int) -> str:
    """The name of a user."""
    return f"user{user_id:02d}"


def _fill_conversations(url: str, kind: str, generation: int, owners: dict[str, int | None]) -> None:
    columns = ["id", "user_id", "title", "model_type", "created_at", "updated_at"]
    at = _stored(_MADE_AT, kind)
    rows = [
        (id_, owner, f"Conversation {index}", _MODEL_TYPES[index % 4], at, at)
        for index, (id_, owner) in enumerate(owners.items())
    ]
    if generation >= 2:
        columns += ["parent_conversation_id", "edited_message_id"]
        first = {owner: id_ for id_, owner in reversed(owners.items())}
        rows = [(*row, first[row[1]] if index % 5 == 4 else None, None) for index, row in enumerate(rows)]  # type: ignore[misc]
    raw_sql.insert(url, "conversations", columns, rows)


def _fill_messages(url: str, generation: int, messages: Sequence[OldMessage]) -> None:
    columns = ["id", "conversation_id", "role", "content", "created_at"]
    figures = ["parent_message_id", "input_tokens", "output_tokens", "total_tokens", "model_cost"]
    if generation >= 2:
        columns += figures
    rows = [
        (
            message.id,
            message.conversation_id,
            message.role,
            f"{message.role} says 'no. {message.id}' \u2013 \U0001f600",
            message.written,
            *(getattr(message, name) for name in figures if generation >= 2),
        )
        for message in messages
    ]
    raw_sql.insert(url, "messages", columns, rows)


def _fill_foreign_tables(
    url: str, generation: int, messages: Sequence[OldMessage], owners: dict[str, int | None]
) -> None:
    answers = [message for message in messages if message.role == "assistant" and message.owner is not None]
    feedback = [
        (index, message.id, message.owner, "dislike" if index % 2 else "like", f"it is {index}")
        for index, message in enumerate(answers[::7], start=1)
    ]
    raw_sql.insert(url, "feedback", ("id", "message_id", "user_id", "feedback_type", "description"), feedback)
    owned = [(id_, owner) for id_, owner in owners.items() if owner in USERS]
    documents = [(f"d{id_}", owner, "a.pdf", "a.pdf", "pdf", "uploads/a.pdf", 7) for id_, owner in owned]
    names = ("id", "user_id", "filename", "original_filename", "file_type", "file_path", "file_size")
    raw_sql.insert(url, "documents", names, documents)
    chunks = [(f"k{id_}", f"d{id_}", 0, "said in a document") for id_, _ in owned]
    raw_sql.insert(url, "document_chunks", ("id", "document_id", "chunk_index", "content"), chunks)
    collections = [(f"c{id_}", owner, "all", "[]") for id_, owner in owned]
    raw_sql.insert(url, "document_collections", ("id", "user_id", "name", "document_ids"), collections)
    contexts = [(index, id_, f"c{id_}") for index, (id_, _) in enumerate(owned, start=1)]
    raw_sql.insert(url, "conversation_contexts", ("id", "conversation_id", "collection_id"), contexts)
    preferences = [(index, owner, f"user {owner}", "nurse") for index, owner in enumerate(USERS, start=1)]
    raw_sql.insert(url, "user_preferences", ("id", "user_id", "nickname", "job"), preferences)
    if generation >= 3:
        raw_sql.insert(url, "model_metadata", ("id", "name"), [("openai/o3", "OpenAI: o3")])
        categories = [
            (index, owner, "REASONING", "Reasoning", "openai/o3") for index, owner in enumerate(USERS, start=1)
        ]
        columns = ("id", "user_id", "category_name", "display_name", "model_id")
        raw_sql.insert(url, "user_model_categories", columns, categories)
        own = "SELECT id FROM user_model_categories WHERE user_id = conversations.user_id"
        raw_sql.run(url, f"UPDATE conversations SET category_id = ({own}) WHERE model_type = 'Reasoning'")


def _fill_rollup(url: str, kind: str, months: Months) -> Months:
    """Right, stale, doubled, missing, null, a little too dear, negative, in turn; and months of no messages."""
    rows: list[tuple[int, str, Month]] = []
    for index, ((user, name), month) in enumerate(sorted(months.items())):
        old = _old_rollup(month, index % 7)
        if old is not None and not (kind == "postgresql" and old.messages is not None and sum(old[:2]) > _INT32):
            rows.append((user, name, old))
    rows += [(user, name, Month(11, 7, Decimal("0.25"), 2)) for user, name in GHOST_MONTHS]
    found = {(user, name): month._replace(cost=_as_upgraded(month.cost, kind)) for user, name, month in rows}
    if kind == "sqlite":  # of a user who is gone: it is removed, and is no month
        rows.append((old_messages.GONE_USER, "2024-01", Month(1, 1, Decimal("0.1"), 1)))
    figures = ("input_tokens", "output_tokens", "total_tokens", "total_cost", "message_count")
    raw_sql.insert(
        url,
        ROLLUP,
        ("id", "user_id", "year", "month", *figures),
        [
            (id_, user, int(name[:4]), int(name[5:]), *_rollup_figures(month))
            for id_, (user, name, month) in enumerate(rows, start=1)
        ],
    )
    return found


def _as_upgraded(cost: Decimal | None, kind: str) -> Decimal:
    """What the upgrade makes of the float that is stored: a float of many dollars is coarser than 1e-10."""
    stored = float(cost or 0)
    return Decimal(round(stored * 1e10)).scaleb(-10) if kind == "sqlite" else round(Decimal(repr(stored)), 10)


def _rollup_figures(month: Month) -> tuple[Any, ...]:
    if month.messages is None:
        return (None,) * 5
    return month.input_tokens, month.output_tokens, sum(month[:2]), float(month.cost), month.messages


def _old_rollup(month: Month, case: int) -> Month | None:
    none: Any = None
    choices = (
        month,
        month._replace(output_tokens=month.output_tokens // 2, messages=month.messages - 1),
        Month(2 * month.input_tokens, 2 * month.output_tokens, 2 * month.cost, 2 * month.messages),
        None,
        Month(none, none, none, none),
        month._replace(cost=month.cost + Decimal("1e-9")),
        month._replace(input_tokens=-1, messages=-month.messages),
    )
    return choices[case]


def conversation_of(old: OldDatabase) -> str:
    return str(raw_sql.value(old.url, f"SELECT min(id) FROM conversations WHERE user_id = {USERS[0]}"))
