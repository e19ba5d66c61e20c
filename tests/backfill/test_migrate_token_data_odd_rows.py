"""`migrate_token_data.py` on rows that no earlier backend should have written."""

from decimal import Decimal

import pytest

from app.db.database import Database
from services.backfill import Scope, reconciliation
from services.usage import full_runs
from tests.support import old_databases, raw_sql
from tests.support.backfilling import execute, run
from tests.support.commands import migrate
from tests.support.old_copies import OldCopy
from tests.support.old_databases import USERS, OldDatabase, conversation_of

ENDS_OF_TIME = ("infinity", "-infinity", "0044-03-15 BC", "250000-01-01", "9999-12-31 10:00")
FIGURES = ("users", "months", "messages", "created", "updated", "unchanged", "skipped", "total_cost")


@pytest.fixture
def old(old_copy: OldCopy) -> OldDatabase:
    """An old database with a rollup, not adopted."""
    return old_copy(3)


def write(old: OldDatabase, *created_at: str) -> None:
    """Answers of one conversation."""
    columns = "conversation_id, role, content, created_at, input_tokens, output_tokens"
    for instant in created_at:
        values = f"'{conversation_of(old)}', 'assistant', 'odd', '{instant}', 1, 1"
        raw_sql.run(old.url, f"INSERT INTO messages ({columns}) VALUES ({values})")


BROKEN = {
    "negative tokens": "input_tokens = -input_tokens",
    "tokens that make the sum negative": "input_tokens = -1000000000",
    "a negative cost": "model_cost = -model_cost",
    "a cost that makes the sum negative": "model_cost = -1000",
    "no date": "created_at = NULL",
}
BROKEN_ON_SQLITE = {
    "a date that does not exist": "created_at = '2031-04-31 10:00:00'",
    "tokens that are too many": "output_tokens = 1000000000000",
    "tokens that cannot be summed": "output_tokens = 10000000000000000",
}
NOTHING = (0, 0, Decimal(0))
HIDDEN = {
    "negative tokens": (7, 0, Decimal(0)),
    "tokens that make the sum negative": (7, 0, Decimal(0)),
    "a negative cost": (0, 0, Decimal("0.5")),
    "a cost that makes the sum negative": (0, 0, Decimal("0.5")),
    "tokens that cannot be summed": (0, 5, Decimal(0)),
}
"""What a broken row hides of a deleted message in the old sum."""


@pytest.mark.parametrize("deleted", [0, 1])
@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("sqlite", name) for name in BROKEN | BROKEN_ON_SQLITE), *(("postgresql", name) for name in BROKEN)],
)
@pytest.mark.sampled(2)
def test_a_row_that_is_repaired_later_is_counted_once(old: OldDatabase, name: str, deleted: int) -> None:
    """Its month's old sum counts it, broken as it is, and perhaps a message that was deleted since."""
    write(old, *["2031-04-05 10:00:00"] * 3)
    ids = [row[0] for row in raw_sql.run(old.url, "SELECT id FROM messages WHERE content = 'odd' ORDER BY id")]
    priced = "UPDATE messages SET input_tokens = 7, output_tokens = 5, model_cost = 0.5 WHERE content = 'odd'"
    broken = f"UPDATE messages SET {(BROKEN | BROKEN_ON_SQLITE)[name]} WHERE id = {ids[0]}"
    old_sum = """
        INSERT INTO user_monthly_token_usage
            (user_id, year, month, input_tokens, output_tokens, total_tokens, total_cost, message_count)
        SELECT c.user_id, 2031, 4, sum(input_tokens), sum(output_tokens), 0, sum(model_cost), count(*)
        FROM messages m JOIN conversations c ON c.id = m.conversation_id
        WHERE m.content = 'odd' AND m.created_at IS NOT NULL GROUP BY c.user_id
    """
    raw_sql.run(old.url, priced, broken, old_sum, f"DELETE FROM messages WHERE id = {ids[1]} AND {deleted} = 1")
    migrate(old.url, "--quiet")
    repaired = "created_at = '2031-04-06 10:00:00', input_tokens = 7, output_tokens = 5, model_cost = 0.5"
    raw_sql.run(old.url, f"UPDATE messages SET {repaired} WHERE id = {ids[0]}")
    assert migrate(old.url, "--quiet").code == 0
    [month] = [month for (_, of), month in old_databases.rollup(old.url).items() if of == "2031-04"]
    hidden = HIDDEN.get(name, NOTHING) if deleted else NOTHING
    assert month == (21 - hidden[0], 15 - hidden[1], Decimal("1.5") - hidden[2], 3)
    assert migrate(old.url, "--verify", "--quiet").code == 0


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize(
    "written",
    [
        "2031-04-31 10:00:00",
        "2031-4-5 10:00:00",
        "2031/04/05",
        "2031-13-01 10:00:00",
        "2031-00-10",
        "2031-04-",
        "2031-",
    ],
)
@pytest.mark.sampled(3)
def test_an_unreadable_date_was_counted_where_it_sorts(old: OldDatabase, written: str) -> None:
    """SQLite compares texts; the month in which a query finds the row holds no message that was deleted."""
    write(old, written)
    odd = "SELECT c.user_id FROM messages m JOIN conversations c ON c.id = m.conversation_id WHERE m.content = 'odd'"
    user = raw_sql.value(old.url, odd)
    starts = [f"{year}-{month:02}" for year in (2030, 2031) for month in range(1, 13)]
    [counted] = [start for start in starts if f"{start}-01 00:00:00.000000" <= written][-1:]
    columns = "user_id, year, month, input_tokens, output_tokens, total_tokens, total_cost, message_count"
    year, month = counted.split("-")
    values = f"{user}, {year}, {int(month)}, 1, 1, 2, 0, 1"
    raw_sql.run(old.url, f"INSERT INTO user_monthly_token_usage ({columns}) VALUES ({values})")
    carried = migrate(old.url, "--json", "--quiet").summary["carried_over"]
    assert {(item["user_id"], item["month"]) for item in carried} == old.carried_over().keys()


@pytest.mark.parametrize("kind", ["postgresql"])
def test_instants_at_the_ends_of_time_are_skipped(old: OldDatabase) -> None:
    write(old, *ENDS_OF_TIME)
    for flags in (["--dry-run"], [], []):
        skipped = migrate(old.url, "--json", "--quiet", *flags).summary["skipped"]
        assert skipped["unreadable_created_at"] == len(ENDS_OF_TIME) + old.skipped.get("unreadable_created_at", 0)
    assert old_databases.rollup(old.url) == old.months()
    assert migrate(old.url, "--verify", "--quiet").code == 0


@pytest.mark.any_database
def test_months_of_impossible_years_go(old: OldDatabase, kind: str) -> None:
    raw_sql.run(old.url, "UPDATE user_monthly_token_usage SET year = 30000000 WHERE id = 3")
    third, fourth = list(old.rollup)[2:4]
    del old.rollup[third]
    if kind == "sqlite":
        raw_sql.run(old.url, "UPDATE user_monthly_token_usage SET year = 'zz' WHERE id = 4")
        del old.rollup[fourth]
    would, done = (migrate(old.url, "--json", "--quiet", *flags).summary for flags in (["--dry-run"], []))
    assert [would[name] for name in FIGURES] == [done[name] for name in FIGURES]
    assert old_databases.rollup(old.url) == old.months()
    assert migrate(old.url, "--verify", "--quiet").code == 0


LOST = {
    "input_tokens": ("-5", "-5 input"),
    "output_tokens": ("-6", "-6 output"),
    "message_count": ("-7", "-7 messages"),
    "total_cost": ("-8.5", "$-8.5"),
}
ENDLESS = {"sqlite": ("9e999", "$inf"), "postgresql": ("'NaN'", "$nan")}


@pytest.mark.parametrize(("column", "value"), [("input_tokens", "5.5"), ("total_cost", "'much'")])
@pytest.mark.parametrize("kind", ["sqlite"])
def test_sqlite_figures_of_another_type_are_named(old: OldDatabase, column: str, value: str) -> None:
    raw_sql.run(old.url, f"UPDATE user_monthly_token_usage SET {column} = {value} WHERE id = 1")
    rehearsed, done = (
        [line.partition("the usage")[2] for line in migrate(old.url, "--quiet", *flags).err.splitlines()]
        for flags in (["--dry-run"], [])
    )
    (line,) = (line for line in done if value.strip("'") in line)
    assert line.replace("and become 0", "and would become 0") in rehearsed


@pytest.mark.parametrize("name", [*LOST, "endless"])
@pytest.mark.sampled(1)
@pytest.mark.any_database
def test_figures_of_months_that_become_0_are_named(old: OldDatabase, kind: str, name: str) -> None:
    (user, month), *_ = old.rollup
    raw_sql.run(old.url, "DELETE FROM user_monthly_token_usage WHERE id > 1")
    value, shown = LOST.get(name, ENDLESS[kind])
    column = name if name in LOST else "total_cost"
    raw_sql.run(old.url, f"UPDATE user_monthly_token_usage SET {column} = {value}")
    place = f"the usage of user {user} in {month[:4]}-{int(month[5:])} has figures that cannot be counted and"
    for flags, what in ((["--verify"], "would become 0"), (["--dry-run"], "would become 0"), ([], "become 0")):
        (line,) = migrate(old.url, "--quiet", *flags).err.splitlines()
        assert f"{place} {what}: " in line
        assert shown in line
    assert migrate(old.url, "--quiet").err == ""


@pytest.mark.any_database
def test_a_second_row_of_a_month_is_named_and_removed(old: OldDatabase, kind: str) -> None:
    (user, month), *_ = old.rollup
    if kind == "postgresql":
        raw_sql.run(old.url, "ALTER TABLE user_monthly_token_usage DROP CONSTRAINT unique_user_month")
    else:
        raw_sql.run(
            old.url,
            "CREATE TABLE kept AS SELECT * FROM user_monthly_token_usage",
            "DROP TABLE user_monthly_token_usage",
            "ALTER TABLE kept RENAME TO user_monthly_token_usage",
        )
    raw_sql.run(old.url, "DELETE FROM user_monthly_token_usage WHERE id > 1")
    columns = "user_id, year, month, input_tokens, output_tokens, total_tokens, total_cost, message_count"
    raw_sql.run(
        old.url,
        f"INSERT INTO user_monthly_token_usage (id, {columns}) SELECT 2, {columns} FROM user_monthly_token_usage",
    )
    place = f"the usage of user {user} in {month[:4]}-{int(month[5:])}"
    for flags, what in ((["--dry-run"], "would be removed"), ([], "is removed")):
        (line,) = migrate(old.url, "--quiet", *flags).err.splitlines()
        assert f"{place} {what}, there is no such user or month, or a newer row of that month: " in line


@pytest.mark.any_database
def test_a_month_of_an_impossible_year_is_found_and_deleted(old: OldDatabase) -> None:
    migrate(old.url, "--quiet")
    raw_sql.run(old.url, "UPDATE user_monthly_token_usage SET year = 30000000 WHERE id = 3")
    assert migrate(old.url, "--verify", "--quiet").code == 1
    assert migrate(old.url, "--quiet").code == 0
    assert old_databases.rollup(old.url) == old.months()
    assert migrate(old.url, "--verify", "--quiet").code == 0


@pytest.mark.parametrize("kind", ["sqlite"])
def test_ids_of_64_bits_are_counted_too(old: OldDatabase) -> None:
    far = 3_000_000_000
    raw_sql.run(
        old.url,
        f"INSERT INTO users (id, username, email, hashed_password) VALUES ({far}, 'far', 'far', '!')",
        f"INSERT INTO conversations (id, user_id, title, model_type) VALUES ('far', {far}, 't', 'Fast')",
    )
    for message_id in (-far, 2 * far):
        columns = "id, conversation_id, role, content, created_at, input_tokens, output_tokens"
        values = f"{message_id}, 'far', 'assistant', '', '2024-02-15 10:00:00', 1, 2"
        raw_sql.run(old.url, f"INSERT INTO messages ({columns}) VALUES ({values})")
    assert migrate(old.url, "--quiet").code == 0
    figures = "SELECT input_tokens, output_tokens, message_count FROM user_monthly_token_usage WHERE user_id ="
    assert raw_sql.run(old.url, f"{figures} {far}") == [(2, 4, 2)]
    raw_sql.run(old.url, f"DELETE FROM user_monthly_token_usage WHERE user_id = {far}")
    assert migrate(old.url, "--verify", "--quiet").code == 1
    assert migrate(old.url, "--user", str(far), "--quiet").code == 0
    assert migrate(old.url, "--verify", "--quiet").code == 0


@pytest.mark.parametrize("kind", ["postgresql"])
def test_instants_are_read_however_the_database_is_set_to_write_them(old: OldDatabase) -> None:
    name = raw_sql.value(old.url, "SELECT current_database()")
    raw_sql.run(old.url, f"ALTER DATABASE {name} SET datestyle = 'SQL, DMY'")
    write(old, "2012-02-03 10:00:00+00")  # too old to be adopted in bulk
    would, done = (migrate(old.url, "--json", "--quiet", *flags).summary for flags in (["--dry-run"], []))
    for summary in (would, done):
        assert summary["messages"] == sum(month.messages for month in old.months().values()) + 1
        assert summary["skipped"] == old.skipped


@pytest.mark.any_database
def test_listed_values_that_look_like_markup_are_shown_as_they_are(old: OldDatabase) -> None:
    migrate(old.url, "--quiet")
    ghost = f"({USERS[0]}, '2024-01-01', '[red]x[/red][/b]', 1, 1, 1, 1, 0, 0)"
    raw_sql.run(old.url, f"INSERT INTO user_daily_token_usage VALUES {ghost}")
    outcome = migrate(old.url, "--verify", "--quiet")
    assert outcome.code == 1
    assert "model [red]x[/red][/b] message_count" in outcome.out


async def test_a_run_that_was_broken_off_when_all_was_adopted_is_still_due(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = "INSERT INTO users (id, username, email, hashed_password) VALUES (1, 'a', 'a', '!')"
    talk = "INSERT INTO conversations (id, user_id, title, model_type) VALUES ('talk', 1, 't', 'Fast')"
    message = "INSERT INTO messages (conversation_id, role, created_at, input_tokens) VALUES"
    await execute(database, owner, talk, f"{message} ('talk', 'assistant', '2024-02-03 04:05:06+00:00', 5)")

    async def broken_off(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(reconciliation, "_correct", broken_off)
    with pytest.raises(RuntimeError):
        await run(database)
    assert await database.read(full_runs.is_due)
    monkeypatch.undo()
    await run(database, scope=Scope([1]))
    assert await database.read(full_runs.is_due), "not all of it"
    await run(database)
    assert not await database.read(full_runs.is_due)
