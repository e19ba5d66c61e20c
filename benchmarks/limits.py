"""`python -m benchmarks.limits`: measure the cost of counting in the bare databases.

No code of the product runs. Each transaction stores a message alone, with its month, or with both rollups. The clients
are pgbench, with 8 connections and prepared statements, and the bare `sqlite3`. The output is messages per second, and
the ratio to storing the message alone.
"""

import argparse
import asyncio
import contextlib
import re
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping

from app.db import migrations
from app.db.database import Database
from benchmarks import databases

CLIENTS = 8
USER = "{user}"
SUMS = {
    "input_tokens": "1200",
    "output_tokens": "340",
    "total_cost": "{cost}",
    "message_count": "1",
    "unpriced_count": "0",
    "estimated_count": "0",
}
BOTH = {"total_tokens": "1540"}
MESSAGE = f"""
    INSERT INTO messages (user_id, role, content, created_at, status, model, input_tokens, output_tokens,
        cached_input_tokens, cost, price_source, usage_estimated, usage_date)
    VALUES ({USER}, 'assistant', '{databases.CONTENT}', {{now}}, 'complete', 'gpt-4o-mini', 1200, 340, 0, {{cost}},
        'bench', {{false}}, {{today}}) RETURNING id
"""


def _adding(table: str, key: Mapping[str, str], sums: Mapping[str, str], once: Mapping[str, str]) -> str:
    row = {**key, **sums, **once}
    sets = [*(f"{name} = t.{name} + excluded.{name}" for name in sums), *(f"{name} = excluded.{name}" for name in once)]
    return f"""
        INSERT INTO {table} AS t ({", ".join(row)}) VALUES ({", ".join(row.values())})
        ON CONFLICT ({", ".join(key)}) DO UPDATE SET {", ".join(sets)}
    """


DAY = _adding("user_daily_token_usage", {"user_id": USER, "usage_date": "{today}", "model": "'gpt-4o-mini'"}, SUMS, {})
MONTH = _adding(
    "user_monthly_token_usage",
    {"user_id": USER, "year": "2026", "month": "1"},
    {**SUMS, **BOTH},
    {"last_updated": "{now}"},
)
WAYS = {"the message alone": [], "with its month": [MONTH], "with both rollups": [DAY, MONTH]}
"""The statements that update the rollups, by what a transaction stores."""

WORDS = {
    "SQLite": {"{user}": "?1", "{now}": "datetime()", "{today}": "date()", "{cost}": "6000000", "{false}": "0"},
    "PostgreSQL": {
        "{user}": ":user",
        "{now}": "now()",
        "{today}": "CURRENT_DATE",
        "{cost}": "0.0006",
        "{false}": "false",
    },
}


def main() -> None:
    """Print a line for each way on each database."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000, help="messages of each sample (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="samples of each way (%(default)s)")
    flags = parser.parse_args()
    with databases.urls() as urls:
        for kind, url in urls.items():
            users = asyncio.run(_filled(url))
            storing = _storing_in_sqlite if kind == "SQLite" else _storing_in_postgresql
            samples: dict[str, list[float]] = {what: [] for what in WAYS}
            for _ in range(flags.repeats):
                for what, added in WAYS.items():
                    statements = [_in_words_of(kind, statement) for statement in (MESSAGE, *added)]
                    samples[what].append(storing(url, statements, users.writers[0], flags.messages))
            for what, rates in samples.items():
                ratios = [rate / alone for rate, alone in zip(rates, samples["the message alone"], strict=True)]
                print(f"| {what} | {kind} | {statistics.median(rates):,.0f}/s | {statistics.median(ratios):.2f} × |")  # noqa: T201


async def _filled(url: str) -> databases.Users:
    await migrations.upgrade(url)
    database = Database.open(url)
    users = await databases.fill(database, 1, 1)
    await database.close()
    return users


def _in_words_of(kind: str, statement: str) -> str:
    for name, word in WORDS[kind].items():
        statement = statement.replace(name, word)
    return " ".join(statement.split())


def _storing_in_sqlite(url: str, statements: list[str], first_user: int, messages: int) -> float:
    path = url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        started = time.perf_counter()
        for number in range(messages):
            connection.execute("BEGIN IMMEDIATE")
            for statement in statements:
                connection.execute(statement, (first_user + number % CLIENTS,)).fetchall()
            connection.execute("COMMIT")
        return messages / (time.perf_counter() - started)


def _storing_in_postgresql(url: str, statements: list[str], first_user: int, messages: int) -> float:
    message, *added = statements
    trips = [message, _in_one(added)] if added else [message]
    lines = [f"\\set user {first_user} + :client_id", "BEGIN;", *(f"{statement};" for statement in trips), "COMMIT;"]
    pgbench = str(databases.program("pgbench"))
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write("\n".join(lines))
        file.flush()
        command = [pgbench, "--no-vacuum", "--protocol=prepared", f"--client={CLIENTS}"]
        command.append(f"--transactions={messages // CLIENTS}")
        ended = subprocess.run([*command, f"--file={file.name}", url], capture_output=True, text=True, check=True)
    tps = re.search(r"tps = ([\d.]+)", ended.stdout)
    assert tps, ended.stdout
    return float(tps[1])


def _in_one(statements: list[str]) -> str:
    *others, last = statements
    return f"WITH {', '.join(f'w{i} AS ({other})' for i, other in enumerate(others))} {last}" if others else last


if __name__ == "__main__":
    main()
