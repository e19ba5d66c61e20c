"""`migrate_token_data.py` on figures that no sum or no type can hold: named and left, and all others are done."""

import sqlite3

import asyncpg
import pytest

from tests.support import old_databases, raw_sql
from tests.support.commands import migrate
from tests.support.old_copies import OldCopy
from tests.support.old_databases import USERS, OldDatabase, conversation_of

ONE, OTHER = USERS[:2]
MENDED = {
    "sqlite": {
        "the highest figure": "UPDATE user_daily_token_usage SET input_tokens = 9007199254740992",
        "a month of text": "UPDATE user_monthly_token_usage SET input_tokens = 'abc', total_tokens = output_tokens"
        f" WHERE user_id = {ONE}",
    },
    "postgresql": {
        "the highest figure": "UPDATE user_daily_token_usage SET input_tokens = 9007199254740992",
    },
}
REFUSED = {
    "sqlite": {
        "too high a figure": "UPDATE user_daily_token_usage SET input_tokens = 9007199254740993",
        "a day that is none": "UPDATE user_daily_token_usage SET usage_date = '2024-02-30'",
    },
    "postgresql": {
        "too high a figure": "UPDATE user_daily_token_usage SET input_tokens = 9007199254740993",
        "a day of no cost": "UPDATE user_daily_token_usage SET total_cost = 'NaN'",
        "a day far from now": "UPDATE user_daily_token_usage SET usage_date = '20000-01-01'",
    },
}
HOPELESS = {
    "sqlite": {
        "a sum of more than 64 bits": f"UPDATE messages SET input_tokens = 9223372036854775807 WHERE user_id = {ONE}"
        " AND usage_date IS NOT NULL",
    },
    "postgresql": {
        "a message on no day": f"UPDATE messages SET usage_date = 'infinity' WHERE user_id = {ONE}"
        " AND usage_date IS NOT NULL",
    },
}
LEFT = tuple(
    f": left as it is: {reason}" for reason in ("it cannot be summed: ", "its sums would exceed", "messages_missing: ")
)
TOO_MUCH = {"sqlite": 950, "postgresql": 10_100}
"""So many messages of $1,000,000 are more than a sum can hold."""


@pytest.fixture
def old(old_copy: OldCopy) -> OldDatabase:
    """An old database, not adopted."""
    return old_copy(2)


def check_others_are_done(old: OldDatabase) -> None:
    """Of the one user months are named and left, also when compared; of all others every month is right."""
    for flags in ([], ["--verify"], []):
        outcome = migrate(old.url, "--quiet", *flags)
        assert outcome.code == 1
        assert outcome.err
        for line in outcome.err.splitlines():
            assert line.startswith(f"user {ONE}, ")
            assert any(reason in line for reason in LEFT), line
        assert "Verified" not in outcome.out
    raw_sql.run(old.url, f"DELETE FROM user_monthly_token_usage WHERE user_id = {ONE}")
    assert old_databases.rollup(old.url) == {key: month for key, month in old.months().items() if key[0] != ONE}


@pytest.mark.parametrize(("kind", "damage"), [(kind, name) for kind, names in MENDED.items() for name in names])
@pytest.mark.sampled(1)
def test_figures_that_cannot_even_be_read_are_named_and_mended(old: OldDatabase, kind: str, damage: str) -> None:
    migrate(old.url, "--quiet")
    raw_sql.run(old.url, MENDED[kind][damage])
    ended = [migrate(old.url, "--quiet", *flags) for flags in (["--verify"], [], ["--verify"])]
    assert [outcome.code for outcome in ended] == [1, 0, 0]
    assert "Traceback" not in "".join(outcome.err for outcome in ended)


@pytest.mark.parametrize(("kind", "damage"), [(kind, name) for kind, names in REFUSED.items() for name in names])
@pytest.mark.sampled(2)
def test_the_database_refuses_days_that_no_sum_can_hold(old: OldDatabase, kind: str, damage: str) -> None:
    migrate(old.url, "--quiet")
    with pytest.raises((sqlite3.IntegrityError, asyncpg.CheckViolationError)):
        raw_sql.run(old.url, REFUSED[kind][damage])


@pytest.mark.parametrize(("kind", "damage"), [(kind, name) for kind, names in HOPELESS.items() for name in names])
def test_months_that_cannot_be_summed_are_left_and_others_are_done(old: OldDatabase, kind: str, damage: str) -> None:
    assert migrate(old.url, "--quiet").code == 0
    raw_sql.run(old.url, HOPELESS[kind][damage], f"DELETE FROM user_monthly_token_usage WHERE user_id = {OTHER}")
    check_others_are_done(old)


@pytest.mark.long
def test_a_month_of_too_high_a_cost_is_left_and_others_are_done(old: OldDatabase, kind: str) -> None:
    columns = ("conversation_id", "role", "content", "created_at", "input_tokens", "output_tokens", "model_cost")
    instant = next(message.written for message in old.messages if message.owner == ONE)
    costly = (conversation_of(old), "assistant", "", instant, 1, 1, 1e6)
    raw_sql.insert(old.url, "messages", columns, [costly] * TOO_MUCH[kind])
    check_others_are_done(old)
