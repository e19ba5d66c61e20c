"""Months with more messages than the ledger: deleted by hand, or counted by an earlier backend and then deleted."""

import json
from decimal import Decimal
from zoneinfo import ZoneInfo

import httpx
import pytest

from tests.support import months_over_http, old_databases, raw_sql
from tests.support.accounts import Caller
from tests.support.commands import Outcome, migrate
from tests.support.old_copies import OldCopy
from tests.support.old_databases import GHOST_MONTHS, OldDatabase
from tests.support.old_messages import Month

ONE, OTHER = old_databases.USERS[:2]
KEPT = f"user_id = {ONE} AND usage_date IS NOT NULL"


@pytest.fixture
def adopted(old_copy: OldCopy) -> OldDatabase:
    """An adopted database, every month of which is right."""
    return old_copy(2, "--quiet")


@pytest.fixture
def old(old_copy: OldCopy) -> OldDatabase:
    """An old database whose rollup counts messages that were deleted."""
    return old_copy(3)


def days(url: str) -> list[raw_sql.Row]:
    return raw_sql.run(url, "SELECT * FROM user_daily_token_usage ORDER BY user_id, usage_date, model")


def named(outcome: Outcome) -> set[tuple[int, str]]:
    return {(item["user_id"], item["month"]) for item in outcome.summary["messages_missing"]}


@pytest.mark.any_database
def test_rows_deleted_by_hand_leave_their_months_as_they_are(adopted: OldDatabase) -> None:
    before, days_before = old_databases.rollup(adopted.url), days(adopted.url)
    raw_sql.run(adopted.url, "DELETE FROM feedback", f"DELETE FROM messages WHERE {KEPT}")
    gone = {key for key in before if key[0] == ONE}
    for flags in (["--dry-run"], ["--verify"], [], []):
        outcome = migrate(adopted.url, "--json", "--quiet", *flags)
        assert outcome.code == 1
        assert named(outcome) == gone
        assert all(f"user {ONE}, {month}: left as it is: messages_missing" in outcome.err for _, month in gone)
        assert (old_databases.rollup(adopted.url), days(adopted.url)) == (before, days_before)
    words = migrate(adopted.url, "--quiet", "--verify")
    assert words.out.startswith(f"Verification failed: {len(gone)} months differ")
    assert "messages_missing" in words.out


def test_a_message_deleted_by_hand_is_enough_and_spares_other_months(adopted: OldDatabase) -> None:
    before = old_databases.rollup(adopted.url)
    month = max(name for user, name in before if user == ONE)
    raw_sql.run(
        adopted.url,
        "DELETE FROM feedback",
        f"DELETE FROM messages WHERE id = (SELECT max(id) FROM messages WHERE {KEPT} AND usage_date >= '{month}-01')",
        f"UPDATE user_monthly_token_usage SET message_count = message_count + 1 WHERE user_id = {OTHER}",
    )
    outcome = migrate(adopted.url, "--json", "--quiet")
    assert (outcome.code, named(outcome)) == (1, {(ONE, month)})
    assert old_databases.rollup(adopted.url) == before, "the damaged months were repaired"


def test_accepting_that_messages_are_missing_follows_the_ledger(adopted: OldDatabase) -> None:
    raw_sql.run(adopted.url, "DELETE FROM feedback", f"DELETE FROM messages WHERE {KEPT}")
    outcome = migrate(adopted.url, "--json", "--quiet", "--accept-missing")
    assert (outcome.code, outcome.summary["messages_missing"]) == (0, [])
    assert outcome.summary["removed"] == len({key for key in adopted.months() if key[0] == ONE})
    assert not any(user == ONE for user, _ in old_databases.rollup(adopted.url))
    assert not any(row[0] == ONE for row in days(adopted.url))
    assert migrate(adopted.url, "--verify", "--quiet").code == 0


@pytest.mark.parametrize("damage", ["days", "month"])
def test_where_month_and_days_disagree_the_ledger_is_right(adopted: OldDatabase, damage: str) -> None:
    """The rollup was damaged, not the ledger."""
    before = old_databases.rollup(adopted.url)
    change = {
        "days": f"DELETE FROM user_daily_token_usage WHERE user_id = {ONE}",
        "month": f"UPDATE user_monthly_token_usage SET input_tokens = 0, total_tokens = output_tokens,"
        f" message_count = message_count + 7 WHERE user_id = {ONE}",
    }
    raw_sql.run(
        adopted.url,
        f"UPDATE user_monthly_token_usage SET message_count = message_count + 1 WHERE user_id = {ONE}",
        change[damage],
    )
    outcome = migrate(adopted.url, "--json", "--quiet")
    assert (outcome.code, outcome.summary["messages_missing"]) == (0, [])
    assert outcome.summary["lowered"] + outcome.summary["raised"] == len({key for key in before if key[0] == ONE})
    assert old_databases.rollup(adopted.url) == before


def carried(outcome: Outcome) -> dict[tuple[int, str], Month]:
    return {
        (item["user_id"], item["month"]): Month(
            item["input_tokens"], item["output_tokens"], Decimal(item["total_cost"]), item["message_count"]
        )
        for item in outcome.summary["carried_over"]
    }


def test_usage_of_deleted_conversations_is_carried_over(old: OldDatabase) -> None:
    expected = old.carried_over()
    assert expected.keys() >= set(GHOST_MONTHS)
    would = migrate(old.url, "--json", "--quiet", "--dry-run")
    done = migrate(old.url, "--json", "--quiet")
    assert carried(would) == carried(done) == expected
    assert done.summary["lowered"] == would.summary["lowered"]
    assert old_databases.rollup(old.url) == old.months()
    sums = "SELECT user_id, usage_date, input_tokens, output_tokens, message_count, reason FROM usage_adjustments"
    found = {(row[0], str(row[1])[:7]): row[2:] for row in raw_sql.run(old.url, sums)}
    assert found == {
        key: (month.input_tokens, month.output_tokens, month.messages, "carried_over")
        for key, month in expected.items()
    }
    again = migrate(old.url, "--json", "--quiet")
    assert (again.code, again.summary["carried_over"], again.summary["unchanged"]) == (0, [], len(old.months()))
    assert migrate(old.url, "--verify", "--quiet").code == 0


def test_a_rehearsal_rounds_the_old_sums_as_the_run_does(old: OldDatabase) -> None:
    """Floats of which the exact value, the shortest text and the product with 1e10 round to different digits."""
    months = sorted(old.rollup)
    for index, cost in enumerate((987662.496212208, 493831.248106104, 876543.21987654321, 0.30000000005, 1.5e-10)):
        user, month = months[index]
        year, number = month.split("-")
        raw_sql.run(
            old.url,
            f"UPDATE user_monthly_token_usage SET total_cost = {cost!r}, message_count = message_count + 100"
            f" WHERE user_id = {user} AND year = {year} AND month = {int(number)}",
        )
    would = migrate(old.url, "--json", "--quiet", "--dry-run").summary
    done = migrate(old.url, "--json", "--quiet").summary
    assert (would["carried_over"], would["total_cost"]) == (done["carried_over"], done["total_cost"])


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
@pytest.mark.sampled(1)
@pytest.mark.any_database
def test_months_counted_by_utc_lose_nothing_to_a_time_zone(
    old: OldDatabase, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What belongs to another month in the zone was not deleted, and must not be carried over as well."""
    monkeypatch.setenv("USAGE_TIMEZONE", zone)
    assert old.months_of_messages(ZoneInfo(zone)) != old.months_of_messages()
    expected = old.carried_over()
    would = migrate(old.url, "--json", "--quiet", "--dry-run")
    done = migrate(old.url, "--json", "--quiet")
    assert carried(would) == carried(done) == expected
    assert old_databases.rollup(old.url) == old.months(ZoneInfo(zone))
    assert migrate(old.url, "--verify", "--quiet").code == 0


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
@pytest.mark.sampled(1)
def test_months_are_carried_over_once_whatever_ran_before(
    old: OldDatabase, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs over a part, or that were broken off, correct some months of a range which the next run reads again."""
    monkeypatch.setenv("USAGE_TIMEZONE", zone)
    parts = [month for user, month in sorted(old.months()) if user == ONE]
    for month in parts:
        assert migrate(old.url, "--quiet", "--user", str(ONE), "--to", month).code == 0
    assert migrate(old.url, "--quiet").code == 0
    assert old_databases.rollup(old.url) == old.months(ZoneInfo(zone))
    assert migrate(old.url, "--verify", "--quiet").code == 0


@pytest.mark.any_database
def test_what_is_carried_over_is_shown_to_its_user(old: OldDatabase) -> None:
    migrate(old.url, "--quiet")
    user, name = GHOST_MONTHS[0]

    async def work(client: httpx.AsyncClient) -> None:
        headers = Caller(user, old_databases.username(user)).headers
        year, month = name.split("-")
        shown = await client.get(f"/auth/token-stats/monthly/{year}/{int(month)}/daily", headers=headers)
        [day] = shown.json()["daily_stats"]
        assert (day["date"], day["input_tokens"], day["message_count"]) == (f"{name}-01", 11, 2)
        talks = await client.get(f"/auth/token-stats/daily/{name}-01/conversations", headers=headers)
        [talk] = talks.json()["conversation_stats"]
        assert (talk["conversation_id"], talk["last_message_at"], talk["output_tokens"]) == (None, None, 7)

    months_over_http.in_application(old.url, work)


def test_recounting_carries_nothing_over(old: OldDatabase) -> None:
    outcome = migrate(old.url, "--json", "--quiet", "--recount")
    assert (outcome.code, outcome.summary["carried_over"]) == (0, [])
    assert outcome.summary["removed"] == len(GHOST_MONTHS)
    assert old_databases.rollup(old.url) == old.months_of_messages()
    assert migrate(old.url, "--verify", "--quiet").code == 0


@pytest.mark.any_database
def test_the_first_month_of_the_calendar_is_carried_over_too(old: OldDatabase) -> None:
    figures = "user_id, year, month, input_tokens, output_tokens, total_tokens, total_cost, message_count"
    raw_sql.run(old.url, f"INSERT INTO user_monthly_token_usage ({figures}) VALUES ({ONE}, 1, 1, 5, 5, 10, 0.5, 2)")
    assert migrate(old.url, "--quiet").code == 0
    assert old_databases.rollup(old.url)[ONE, "0001-01"] == Month(5, 5, Decimal("0.5"), 2)
    assert migrate(old.url, "--verify", "--quiet").code == 0


@pytest.mark.any_database
def test_carrying_over_ends_with_the_first_full_run(old: OldDatabase) -> None:
    migrate(old.url, "--quiet", "--user", str(ONE))
    migrate(old.url, "--quiet")
    raw_sql.run(old.url, f"UPDATE user_monthly_token_usage SET message_count = message_count + 1 WHERE user_id = {ONE}")
    assert migrate(old.url, "--json", "--quiet").summary["carried_over"] == []
    assert old_databases.rollup(old.url) == old.months()


@pytest.mark.any_database
def test_verifying_fails_while_usage_is_not_carried_over(empty_database_url: str) -> None:
    """Nothing differs but that."""
    old = old_databases.build(empty_database_url, 3, rows=20)
    figures = "user_id, year, month, input_tokens, output_tokens, total_tokens, total_cost, message_count"
    raw_sql.run(
        old.url,
        "DELETE FROM feedback",
        "DELETE FROM messages",
        "DELETE FROM user_monthly_token_usage",
        f"INSERT INTO user_monthly_token_usage ({figures}) VALUES ({ONE}, 2023, 5, 3, 4, 7, 0.5, 2)",
    )
    outcome = migrate(old.url, "--verify", "--json", "--quiet")
    assert (outcome.code, outcome.summary["verified"], len(outcome.summary["carried_over"])) == (1, False, 1)
    assert migrate(old.url, "--quiet").code == 0
    assert old_databases.rollup(old.url) == {(ONE, "2023-05"): Month(3, 4, Decimal("0.5"), 2)}
    assert migrate(old.url, "--verify", "--quiet").code == 0


@pytest.mark.parametrize("kind", ["sqlite"])
def test_months_of_users_who_are_gone_are_named(old: OldDatabase) -> None:
    """PostgreSQL has no such users; the others it may have."""
    figures = "user_id, year, month, input_tokens, output_tokens, total_tokens, total_cost, message_count"
    raw_sql.run(
        old.url,
        f"INSERT INTO user_monthly_token_usage ({figures}) VALUES (NULL, 2024, 3, 1000, 500, 1500, 50.0, 90)",
        f"INSERT INTO user_monthly_token_usage ({figures}) VALUES (1, 2024, 13, 7000, 500, 7500, 50.0, 90)",
    )
    for flags in (["--dry-run"], []):
        outcome = migrate(old.url, "--json", *flags)
        assert "the usage of user 999 in 2024-1 " in outcome.err
        assert "the usage of user None in 2024-3 " in outcome.err
        assert "the usage of user 1 in 2024-13 " in outcome.err
        json.loads(outcome.out)


def test_an_unknown_user_is_an_error(adopted: OldDatabase) -> None:
    for flags in ([], ["--verify"], ["--dry-run"]):
        outcome = migrate(adopted.url, "--user", str(ONE), "--user", "777", "--quiet", *flags)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err == "migrate_token_data.py: --user: there is no user 777\n"


def test_the_text_shows_100_differences_unless_all_are_wanted(adopted: OldDatabase) -> None:
    raw_sql.run(adopted.url, "DELETE FROM user_monthly_token_usage")
    shown = migrate(adopted.url, "--verify", "--quiet").out
    assert shown.startswith("Verification failed: ")
    assert shown.count(" should be ") == 100
    assert "more (--all or --json lists every difference)" in shown
    every = migrate(adopted.url, "--verify", "--quiet", "--json").summary["differences"]
    assert migrate(adopted.url, "--verify", "--quiet", "--all").out.count(" should be ") == len(every) > 100


def test_a_dry_run_shows_first_what_would_be_taken_away(adopted: OldDatabase) -> None:
    raw_sql.run(
        adopted.url,
        f"UPDATE user_monthly_token_usage SET message_count = 0 WHERE user_id = {ONE}",
        f"UPDATE user_monthly_token_usage SET message_count = message_count + 1 WHERE user_id = {OTHER}",
    )
    lines = [line for line in migrate(adopted.url, "--dry-run", "--quiet").out.splitlines() if " should be " in line]
    assert [line.startswith(f"user {OTHER},") for line in lines] == sorted(
        (line.startswith(f"user {OTHER},") for line in lines), reverse=True
    )
    assert lines[0].startswith(f"user {OTHER},")
