"""`python -m benchmarks.adoption`: compare an adoption with plain SQL.

A fixed rule builds a large old database from real requests. Half of its messages carry usage. Its 1,000 users wrote the
messages within 24 months; one of the users wrote a tenth of them.
"""

import argparse
import asyncio
import contextlib
import csv
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg

from app import BASE_DIR
from app.db import migrations
from benchmarks import databases

REQUESTS = sorted((BASE_DIR / "tests" / "data").glob("*.csv"))
USERS, MESSAGES_A_CONVERSATION, SECONDS = 1_000, 20, 730 * 86_400

OLD_TABLES = """
    CREATE TABLE users (id INTEGER PRIMARY KEY, username VARCHAR NOT NULL UNIQUE, email VARCHAR NOT NULL UNIQUE,
        hashed_password VARCHAR NOT NULL, role VARCHAR, is_active BOOLEAN, created_at {instant});
    CREATE TABLE conversations (id VARCHAR PRIMARY KEY, user_id INTEGER REFERENCES users (id), title VARCHAR NOT NULL,
        model_type VARCHAR NOT NULL, created_at {instant}, updated_at {instant});
    CREATE TABLE messages (id {serial}, conversation_id VARCHAR NOT NULL REFERENCES conversations (id),
        role VARCHAR NOT NULL, content TEXT NOT NULL, created_at {instant}, input_tokens INTEGER, output_tokens INTEGER,
        total_tokens INTEGER, model_cost FLOAT);
    CREATE TABLE requests (number INTEGER PRIMARY KEY, input_tokens INTEGER, output_tokens INTEGER);
"""
FILLED = """
    INSERT INTO users SELECT i, 'user' || i, 'user' || i || '@example.com', '!', 'user', {true}, NULL
        FROM ({series:{users}}) AS n;
    INSERT INTO conversations SELECT 'conversation-' || i || '-of-an-old-database',
        CASE WHEN i % 10 = 0 THEN 1 ELSE (i - i / 10) % ({users} - 1) + 2 END, 'talk ' || i, 'Standard', NULL, NULL
        FROM ({series:{conversations}}) AS n;
    INSERT INTO messages (id, conversation_id, role, content, created_at, input_tokens, output_tokens, total_tokens,
        model_cost)
        SELECT i, 'conversation-' || ((i - 1) / {each} + 1) || '-of-an-old-database',
            CASE WHEN i % 2 = 0 THEN 'assistant' ELSE 'user' END, 'what was said in message ' || i, {at},
            CASE WHEN i % 2 = 0 THEN r.input_tokens END, CASE WHEN i % 2 = 0 THEN r.output_tokens END, NULL,
            CASE WHEN i % 2 = 0 THEN r.input_tokens * 0.0000025 + r.output_tokens * 0.00001 END
        FROM ({series:{messages}}) AS n JOIN requests AS r ON r.number = i % {requests};
"""
PLAIN_SQL = """
    UPDATE messages SET user_id = c.user_id,
        usage_date = CASE WHEN role = 'assistant' AND input_tokens IS NOT NULL THEN {day} END,
        cost = CASE WHEN role = 'assistant' AND input_tokens IS NOT NULL THEN {cost} END
        FROM conversations AS c WHERE c.id = conversation_id;
    INSERT INTO user_daily_token_usage (user_id, usage_date, model, input_tokens, output_tokens, total_cost,
        message_count, unpriced_count, estimated_count)
        SELECT user_id, usage_date, coalesce(model, ''), sum(input_tokens), sum(output_tokens), sum(cost), count(*),
            count(*) - count(cost), 0
        FROM messages WHERE usage_date IS NOT NULL GROUP BY user_id, usage_date, coalesce(model, '');
    INSERT INTO user_monthly_token_usage (user_id, year, month, input_tokens, output_tokens, total_tokens, total_cost,
        message_count)
        SELECT user_id, {year}, {month}, sum(input_tokens), sum(output_tokens), sum(input_tokens) + sum(output_tokens),
            sum(total_cost), sum(message_count)
        FROM user_daily_token_usage GROUP BY user_id, {year}, {month};
"""
GROUP_BY = """
    SELECT count(*), sum(n) FROM (
        SELECT user_id, usage_date, coalesce(model, ''), sum(input_tokens), sum(output_tokens), sum(cost),
            count(*) AS n
        FROM messages WHERE usage_date IS NOT NULL GROUP BY user_id, usage_date, coalesce(model, '')
    ) AS summed;
"""
WORDS = {
    "sqlite": {
        "instant": "DATETIME",
        "serial": "INTEGER PRIMARY KEY",
        "true": "1",
        "at": "datetime('2024-01-01', '+' || (i * 7919 % {seconds}) || ' seconds')",
        "day": "date(messages.created_at)",
        "cost": "CAST(round(model_cost * 10000000000) AS INTEGER)",
        "year": "CAST(substr(usage_date, 1, 4) AS INTEGER)",
        "month": "CAST(substr(usage_date, 6, 2) AS INTEGER)",
    },
    "postgresql": {
        "instant": "TIMESTAMPTZ",
        "serial": "SERIAL PRIMARY KEY",
        "true": "true",
        "at": "timestamptz '2024-01-01 00:00Z' + (i::bigint * 7919 % {seconds}) * interval '1 second'",
        "day": "(messages.created_at AT TIME ZONE 'UTC')::date",
        "cost": "round(model_cost::text::numeric, 10)",
        "year": "extract(year FROM usage_date)",
        "month": "extract(month FROM usage_date)",
    },
}


class Bare:
    """Access a database through its bare driver."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.kind = url.partition(":")[0]

    def run(self, script: str, **sizes: int) -> float:
        """Run a script, one transaction per statement; return the seconds."""
        statements = [statement for statement in self._filled_in(script, sizes).split(";") if statement.strip()]
        started = time.perf_counter()
        if self.kind == "sqlite":
            with contextlib.closing(
                sqlite3.connect(self.url.removeprefix("sqlite:///"), isolation_level=None)
            ) as open_:
                open_.execute("PRAGMA foreign_keys = ON")
                for statement in statements:
                    open_.execute(statement).fetchall()
        else:
            asyncio.run(self._postgresql(statements))
        return time.perf_counter() - started

    def warm(self) -> None:
        """Read the file into the system's cache.

        Then no measurement waits for the disk.
        """
        if self.kind == "sqlite":
            with Path(self.url.removeprefix("sqlite:///")).open("rb") as file:
                while file.read(1 << 20):
                    pass

    async def _postgresql(self, statements: list[str]) -> None:
        connection = await asyncpg.connect(self.url, server_settings={"timezone": "UTC"})
        for statement in statements:
            await connection.execute(statement, timeout=3600)
        await connection.close()

    def _filled_in(self, script: str, sizes: dict[str, int]) -> str:
        for name, size in sizes.items():
            script = script.replace(f"{{series:{{{name}}}}}", self._series(size))
        for name, word in WORDS[self.kind].items():
            script = script.replace(f"{{{name}}}", word)
        for name, size in {**sizes, "users": USERS, "each": MESSAGES_A_CONVERSATION, "seconds": SECONDS}.items():
            script = script.replace(f"{{{name}}}", str(size))
        return script

    def _series(self, size: int) -> str:
        if self.kind == "postgresql":
            return f"SELECT generate_series(1, {size}) AS i"
        return f"WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {size}) SELECT i FROM s"


def own(url: str) -> str:
    """Create a separate database on PostgreSQL; return its URL."""
    if url.startswith("sqlite"):
        return url
    Bare(url).run("CREATE DATABASE old")
    return url.replace("/postgres?", "/old?")


def make(url: str, messages: int) -> None:
    """Create the old database."""
    rows = [row for path in REQUESTS for row in csv.DictReader(path.open())]
    values = ", ".join(f"({i}, {row['ContextTokens']}, {row['GeneratedTokens']})" for i, row in enumerate(rows))
    bare = Bare(url)
    bare.run(OLD_TABLES)
    bare.run(f"INSERT INTO requests VALUES {values}")
    conversations = -(-messages // MESSAGES_A_CONVERSATION)
    bare.run(FILLED, users=USERS, conversations=conversations, messages=messages, requests=len(rows))
    bare.run("DROP TABLE requests; ANALYZE")
    if bare.kind == "postgresql":
        bare.run("SELECT setval(pg_get_serial_sequence('messages', 'id'), max(id)) FROM messages")
        bare.run("VACUUM ANALYZE; CHECKPOINT")


def script(url: str, *flags: str) -> dict[str, Any]:
    """Run `migrate_token_data.py`.

    Returns:
        Its summary, with `wall` in seconds and the peak `memory` in MiB.
    """
    command = [sys.executable, "migrate_token_data.py", "--json", "--quiet", "--database-url", url, *flags]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        pid = os.posix_spawn(
            sys.executable, command, dict(os.environ), file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), 1)]
        )
        _, status, usage = os.wait4(pid, 0)
        output.seek(0)
        summary: dict[str, Any] = json.loads(output.read() or b"{}")
    if status:
        raise SystemExit(f"migrate_token_data.py ended with {os.waitstatus_to_exitcode(status)}")
    return {**summary, "wall": time.perf_counter() - started, "memory": usage.ru_maxrss / 1024}


@contextlib.contextmanager
def copy_of(url: str) -> Iterator[str]:
    """Yield the URL of a temporary copy of a database."""
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///")
        shutil.copy(path, f"{path}-copy")
        yield f"{url}-copy"
        for file in Path(path).parent.glob("*-copy*"):
            file.unlink()
    else:
        admin = Bare(url.replace("/old?", "/postgres?"))
        admin.run("CREATE DATABASE copied TEMPLATE old STRATEGY file_copy")
        yield url.replace("/old?", "/copied?")
        admin.run("DROP DATABASE copied WITH (FORCE)")


def measure(url: str, messages: int) -> list[tuple[str, float, float, str]]:
    """Return rows of name, our seconds, the floor's seconds, and a remark."""
    make(url, messages)
    started = time.perf_counter()
    asyncio.run(migrations.upgrade(url))
    upgraded = time.perf_counter() - started
    with copy_of(url) as copy:
        plain = Bare(copy).run(PLAIN_SQL)
    Bare(url).warm()
    first = script(url)
    Bare(url).warm()
    if Bare(url).kind == "postgresql":
        Bare(url).run("VACUUM ANALYZE")
    floors, again, verified = [], [], []
    for _ in range(3):
        floors.append(Bare(url).run(GROUP_BY))
        again.append(script(url))
        verified.append(script(url, "--verify"))
    if again[0]["created"] or again[0]["updated"] or verified[0]["differences"]:
        raise SystemExit("the second run changed months or found differences")
    floor = sorted(floors)[1]
    return [
        ("the schema alone / plain SQL", upgraded, plain, ""),
        ("first adoption / plain SQL", first["wall"], plain, f"{first['memory']:.0f} MiB"),
        *(
            (f"{name} / GROUP BY", sorted(run["wall"] for run in runs)[1], floor, f"{runs[0]['memory']:.0f} MiB")
            for name, runs in (("second run", again), ("--verify", verified))
        ),
    ]


def main() -> None:
    """Print a line for each figure as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adoption", description=__doc__)
    parser.add_argument(
        "--messages",
        type=int,
        default=1_000_000,
        help="messages of the old database (%(default)s; 10000000 in the table)",
    )
    parser.add_argument("--only", choices=["SQLite", "PostgreSQL"], help="measure only this kind of database")
    flags = parser.parse_args()
    with databases.urls() as urls:
        for kind, url in urls.items():
            if flags.only not in (None, kind):
                continue
            for what, ours, floor, memory in measure(own(url), flags.messages):
                print(  # noqa: T201
                    f"| {what}, {flags.messages:,} messages | {kind} | {ours:.1f} s | {floor:.1f} s |"
                    f" {ours / floor:.2f} × | {memory} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
