"""Databases of the earlier backend are taken as they are found: counted exactly, with nothing lost."""

from pathlib import Path

import httpx
import pytest

from tests.support import commands, months_over_http, old_databases, old_messages, raw_sql
from tests.support.accounts import Caller
from tests.support.old_copies import OldCopy
from tests.support.old_databases import LONG_PASSWORD, LONG_PASSWORD_USER, PASSWORD, OldDatabase


@pytest.fixture(params=old_databases.GENERATIONS, ids="generation {}".format)
def old(request: pytest.FixtureRequest, old_copy: OldCopy) -> OldDatabase:
    """An old database of each generation; in the second PostgreSQL's `created_at` is without time zone."""
    return old_copy(request.param, rows=400, time_zone=request.param != 2)


def check_summary(old: OldDatabase, outcome: commands.Outcome) -> None:
    """Demands that a run of everything said what the messages amount to, and why it skipped others."""
    assert outcome.code == 0, outcome.err
    months = old.months().values()
    found = {name: outcome.summary[name] for name in ("users", "months", "messages", "input_tokens", "output_tokens")}
    assert found == {
        "users": len({user for user, _ in old.months()}),
        "months": len(months),
        "messages": sum(month.messages for month in months),
        "input_tokens": sum(month.input_tokens for month in months),
        "output_tokens": sum(month.output_tokens for month in months),
    }
    cost = sum((month.cost for month in months), start=old_messages.dollars(0.0))
    assert outcome.summary["total_cost"] == (f"{cost:f}".rstrip("0").rstrip(".") if cost else "0")
    assert outcome.summary["total_tokens"] == found["input_tokens"] + found["output_tokens"]
    assert outcome.summary["skipped"] == old.skipped


def check_second_run(old: OldDatabase) -> None:
    """Demands that a run again finds everything as it must be, and that verifying does as well."""
    again = commands.migrate(old.url, "--json")
    check_summary(old, again)
    assert (again.summary["created"], again.summary["updated"]) == (0, 0)
    assert again.summary["unchanged"] == len(old.months())
    verified = commands.migrate(old.url, "--verify", "--json")
    check_summary(old, verified)
    assert (verified.summary["differences"], verified.summary["verified"]) == ([], True)


def test_the_script_alone_adopts_each_generation(old: OldDatabase, tmp_path: Path) -> None:
    outcome = commands.run(["migrate_token_data.py", "--json"], tmp_path, DATABASE_URL=old.url)
    check_summary(old, outcome)
    done = old_databases.Counts(*(outcome.summary[name] for name in ("created", "updated", "unchanged")))
    assert done == old.counts
    assert months_over_http.from_database(old.url) == months_over_http.expected(old)
    check_second_run(old)


@pytest.mark.long
def test_the_server_adopts_and_the_script_fills_each_generation(old: OldDatabase, tmp_path: Path) -> None:
    with commands.server(old.url, tmp_path) as address:
        outcome = commands.run(["migrate_token_data.py", "--json"], tmp_path, DATABASE_URL=old.url)
        check_summary(old, outcome)
        assert months_over_http.from_server(address) == months_over_http.expected(old)
    check_second_run(old)


def test_nothing_of_the_old_data_is_lost(old: OldDatabase) -> None:
    contents, violations = old.contents(), foreign_key_violations(old.url)
    assert commands.migrate(old.url).code == 0
    assert old.contents() == contents
    assert foreign_key_violations(old.url) <= violations


def foreign_key_violations(url: str) -> set[raw_sql.Row]:
    """Rows that refer to something that is not there, which SQLite did not prevent."""
    if not url.startswith("sqlite"):
        foreign = "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        intact = raw_sql.run(url, f"{foreign} WHERE contype = 'f' AND convalidated")
        assert {"feedback", "documents"} <= {row[0] for row in intact}
        return set()
    assert raw_sql.run(url, "PRAGMA integrity_check") == [("ok",)]
    # By what a row refers to: the number of the foreign key changes when a table gets another one.
    return {row[:3] for row in raw_sql.run(url, "PRAGMA foreign_key_check")}


@pytest.mark.long
def test_every_real_request_is_counted(empty_database_url: str) -> None:
    old = old_databases.build(empty_database_url, 3, rows=old_messages.ALL)
    check_summary(old, commands.migrate(old.url, "--json"))
    assert old_databases.rollup(old.url) == old.months()
    assert months_over_http.from_database(old.url) == months_over_http.expected(old)


@pytest.fixture
def adopted(empty_database_url: str) -> OldDatabase:
    """An old database of the newest generation, adopted and filled."""
    old = old_databases.build(empty_database_url, 3, rows=100)
    assert commands.migrate(old.url).code == 0
    return old


def hash_of(url: str, user: int) -> str:
    """The stored hash of a password."""
    return str(raw_sql.value(url, f"SELECT hashed_password FROM users WHERE id = {user}"))


def log_in(url: str, user: int, *passwords: str) -> list[int]:
    """Tries to log in, with one password after the other; gives the statuses."""

    async def work(client: httpx.AsyncClient) -> list[int]:
        bodies = [{"username": old_databases.username(user), "password": password} for password in passwords]
        return [(await client.post("/auth/login", json=body)).status_code for body in bodies]

    return months_over_http.in_application(url, work)


@pytest.mark.any_database
def test_an_old_user_logs_in_and_then_has_a_new_hash(adopted: OldDatabase) -> None:
    assert hash_of(adopted.url, 1).startswith("$2b$12$")
    assert commands.migrate(adopted.url, "--finish").code == 0
    assert log_in(adopted.url, 1, f"{PASSWORD}!", PASSWORD) == [401, 200]
    assert hash_of(adopted.url, 1).startswith("$argon2id$")
    assert log_in(adopted.url, 1, PASSWORD, f"{PASSWORD}!") == [200, 401]


@pytest.mark.long
def test_an_old_password_over_72_bytes_counts_whole_after_a_login(adopted: OldDatabase) -> None:
    assert len(LONG_PASSWORD.encode()) > 72
    other_end = LONG_PASSWORD[:-1] + "?"
    assert commands.migrate(adopted.url, "--finish").code == 0
    assert log_in(adopted.url, LONG_PASSWORD_USER, LONG_PASSWORD[:60], LONG_PASSWORD) == [401, 200]
    assert hash_of(adopted.url, LONG_PASSWORD_USER).startswith("$argon2id$")
    assert log_in(adopted.url, LONG_PASSWORD_USER, other_end, LONG_PASSWORD) == [401, 200]


@pytest.mark.any_database
def test_old_users_without_role_or_state_are_active_users(adopted: OldDatabase) -> None:
    async def work(client: httpx.AsyncClient) -> list[tuple[str, bool]]:
        callers = [Caller(user, old_databases.username(user)) for user in (1, 2, 3)]
        answers = [(await client.get("/auth/me", headers=caller.headers)).json() for caller in callers]
        return [(me["role"], me["is_active"]) for me in answers]

    assert months_over_http.in_application(adopted.url, work) == [("admin", True), ("user", True), ("user", True)]


@pytest.mark.any_database
def test_an_adopted_database_goes_on_working(adopted: OldDatabase) -> None:
    """Chats go on in old conversations; their content can be deleted, and the usage stays counted."""
    conversation = next(message.conversation_id for message in adopted.messages if message.owner == 1)
    before = adopted.months()

    async def work(client: httpx.AsyncClient) -> None:
        headers = Caller(1, old_databases.username(1)).headers
        body = {"message": "And now?", "conversation_id": conversation, "stream": False}
        answer = await client.post("/chat", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        answer = await client.get(f"/conversations/{conversation}", headers=headers)
        assert answer.status_code == 200, answer.text
        answer = await client.delete(f"/conversations/{conversation}", headers=headers)
        assert answer.status_code == 204, answer.text

    months_over_http.in_application(adopted.url, work)
    # On PostgreSQL the content is empty, not null, while the earlier backend may still read it.
    content = f"SELECT count(*) FROM messages WHERE conversation_id = '{conversation}' AND coalesce(content, '') <> ''"
    assert raw_sql.value(adopted.url, content) == 0
    rollup = old_databases.rollup(adopted.url)
    assert {key: month for key, month in rollup.items() if key in before} == before
    assert sum(month.messages for month in rollup.values()) == sum(month.messages for month in before.values()) + 1
    assert commands.migrate(adopted.url, "--verify").code == 0
