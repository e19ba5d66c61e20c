"""`migrate_token_data.py`: what it finds, mends and says, and that it writes nothing where it must not."""

from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tests.support import old_databases, raw_sql
from tests.support.commands import migrate
from tests.support.old_copies import OldCopy
from tests.support.old_databases import IDLE_USER, ROLLUP, OldDatabase
from tests.support.old_messages import Month, Months

FIGURES = ("input_tokens", "output_tokens", "total_tokens", "total_cost", "message_count")
DONE = ("users", "months", "messages", *FIGURES[:4], "created", "updated", "unchanged", "skipped")


@pytest.fixture(params=old_databases.GENERATIONS, ids="generation {}".format)
def old(request: pytest.FixtureRequest, old_copy: OldCopy) -> OldDatabase:
    """An old database of each generation, not adopted."""
    return old_copy(request.param, time_zone=request.param != 3)


@pytest.fixture
def uncounted(old_copy: OldCopy) -> OldDatabase:
    """An old database that has no rollup yet, not adopted."""
    return old_copy(2)


@pytest.fixture
def adopted(old_copy: OldCopy) -> OldDatabase:
    """The same, adopted and filled."""
    return old_copy(2, "--quiet")


def difference(key: tuple[int, str], field: str, expected: object, found: object) -> dict[str, object]:
    """One of `differences`."""
    return {"user_id": key[0], "month": key[1], "field": field, "expected": expected, "found": found}


def figures(month: Month) -> dict[str, object]:
    """A month as the summary shows it: money as a decimal text."""
    tokens = (month.input_tokens, month.output_tokens, month.input_tokens + month.output_tokens)
    return dict(zip(FIGURES, (*tokens, f"{month.cost.normalize():f}", month.messages), strict=True))


def where(key: tuple[int, str]) -> str:
    """The condition that finds a month in the rollup."""
    return f"user_id = {key[0]} AND year = {int(key[1][:4])} AND month = {int(key[1][5:])}"


def damage(url: str) -> list[dict[str, object]]:
    """Changes a month, makes another too dear by the least amount, removes one, invents one; gives the differences."""
    months = old_databases.rollup(url)
    changed, dear, missing, *_ = sorted(months)
    ghost = (IDLE_USER, "2019-07")
    unit = "1" if url.startswith("sqlite") else "0.0000000001"
    raw_sql.run(
        url,
        f"UPDATE {ROLLUP} SET input_tokens = input_tokens + 5, total_tokens = total_tokens + 5 WHERE {where(changed)}",
        f"UPDATE {ROLLUP} SET total_cost = total_cost + {unit} WHERE {where(dear)}",
        f"DELETE FROM {ROLLUP} WHERE {where(missing)}",
        f"INSERT INTO {ROLLUP} (user_id, year, month, {', '.join(FIGURES)})"
        f" VALUES ({ghost[0]}, 2019, 7, 1, 2, 3, 4 * {unit}, 5)",
    )
    right, cost = figures(months[changed]), months[dear].cost
    invented = Month(1, 2, Decimal("0.0000000004"), 5)
    return [
        difference(changed, "input_tokens", right["input_tokens"], months[changed].input_tokens + 5),
        difference(changed, "total_tokens", right["total_tokens"], sum(months[changed][:2]) + 5),
        difference(dear, "total_cost", f"{cost.normalize():f}", f"{(cost + Decimal('1e-10')).normalize():f}"),
        *(difference(missing, field, value, None) for field, value in figures(months[missing]).items()),
        *(difference(ghost, field, None, value) for field, value in figures(invented).items()),
    ]


def test_verifying_lists_every_damage_and_the_next_run_mends_it(adopted: OldDatabase) -> None:
    differences = damage(adopted.url)
    before = raw_sql.snapshot(adopted.url)
    seen = migrate(adopted.url, "--verify", "--json")
    assert seen.code == 1
    assert seen.summary["differences"] == differences
    assert seen.summary["verified"] is False
    assert raw_sql.snapshot(adopted.url) == before
    mended = migrate(adopted.url, "--json").summary
    assert (mended["created"], mended["updated"], mended["unchanged"]) == (1, 3, len(adopted.months()) - 3)
    assert old_databases.rollup(adopted.url) == adopted.months()
    assert migrate(adopted.url, "--verify").code == 0


def test_verifying_says_in_words_what_is_wrong(adopted: OldDatabase) -> None:
    differences = damage(adopted.url)
    seen = migrate(adopted.url, "--verify")
    assert seen.code == 1
    for item in differences:
        (line,) = [
            line
            for line in seen.out.splitlines()
            if line.startswith(f"user {item['user_id']}, {item['month']}: {item['field']} ")
        ]
        assert all(("none" if item[side] is None else str(item[side])) in line for side in ("expected", "found"))


def test_a_dry_run_of_a_damaged_database_writes_nothing(adopted: OldDatabase) -> None:
    damage(adopted.url)
    before = raw_sql.snapshot(adopted.url)
    dry = migrate(adopted.url, "--dry-run", "--json")
    assert (dry.code, dry.summary["created"], dry.summary["updated"]) == (0, 1, 3)
    assert raw_sql.snapshot(adopted.url) == before


def test_the_next_run_counts_what_an_old_process_wrote_meanwhile(adopted: OldDatabase) -> None:
    conversation = next(message.conversation_id for message in adopted.messages if message.owner == 1)
    raw_sql.run(
        adopted.url,
        "INSERT INTO messages (conversation_id, role, content, created_at, input_tokens, output_tokens, model_cost)"
        f" VALUES ('{conversation}', 'assistant', '', '2025-03-31 23:59:59.999999+00:00', 30, 12, 0.00048828125)",
    )
    seen = migrate(adopted.url, "--verify", "--json")
    new = Month(30, 12, Decimal("0.0004882812"), 1)
    expected = [difference((1, "2025-03"), field, value, None) for field, value in figures(new).items()]
    assert (seen.code, seen.summary["differences"]) == (1, expected)
    assert migrate(adopted.url, "--json").summary["created"] == 1
    assert old_databases.rollup(adopted.url) == adopted.months() | {(1, "2025-03"): new}


def test_an_old_database_is_only_compared_and_then_done_as_was_said(old: OldDatabase) -> None:
    before = raw_sql.snapshot(old.url)
    said = migrate(old.url, "--dry-run", "--json")
    seen = migrate(old.url, "--verify", "--json")
    assert raw_sql.snapshot(old.url) == before
    differs = old.generation > 1
    assert (said.code, said.summary["dry_run"], said.summary["verified"]) == (0, True, False)
    assert (seen.code, seen.summary["dry_run"], seen.summary["verified"]) == (int(differs), False, not differs)
    done = migrate(old.url, "--json")
    for summary in (said.summary, seen.summary):
        assert {name: summary[name] for name in DONE} == {name: done.summary[name] for name in DONE}
    assert old_databases.rollup(old.url) == old.months()


def test_odd_months_and_numbers_of_an_old_rollup_do_not_stop_a_run(old_copy: OldCopy, kind: str) -> None:
    """The old table took any number for a month, and none; on SQLite any text for a number."""
    old = old_copy(3)
    rows: list[raw_sql.Row] = [
        (user, year, month, 3, 4, 7, 0.5, 1)
        for user, year, month in ((None, 2024, 1), (1, None, 1), (1, 2024, None), (1, 2024, 13), (1, 2024, 0))
    ]
    rows.append((IDLE_USER, 2018, 1, 3, 4, 7, float("inf"), 1))
    if kind == "sqlite":
        rows.append((IDLE_USER, 2018, 2, "many", 4, 7, "n/a", 1))
    raw_sql.insert(old.url, ROLLUP, ("user_id", "year", "month", *FIGURES), rows)
    if kind == "sqlite":
        old.rollup[IDLE_USER, "2018-02"] = Month(0, 4, Decimal(0), 1)
    old.rollup[IDLE_USER, "2018-01"] = Month(3, 4, Decimal(0), 1)
    said = migrate(old.url, "--dry-run", "--json").summary
    done = migrate(old.url, "--json").summary
    assert {name: said[name] for name in DONE} == {name: done[name] for name in DONE}
    assert old_databases.rollup(old.url) == old.months()


def test_a_total_that_is_not_the_sum_is_seen_and_mended(old_copy: OldCopy) -> None:
    old = old_copy(3)
    key, month = next(
        (key, month)
        for index, (key, month) in enumerate(sorted(old.months_of_messages().items()))
        if index % 7 == 0 and month.input_tokens < 2**30  # one that the old rollup has right
    )
    total = month.input_tokens + month.output_tokens
    raw_sql.run(old.url, f"UPDATE {ROLLUP} SET total_tokens = {total + 1} WHERE {where(key)}")
    seen = migrate(old.url, "--verify", "--json").summary["differences"]
    of_month = [item for item in seen if (item["user_id"], item["month"]) == key]
    assert of_month == [difference(key, "total_tokens", total, total + 1)]
    assert migrate(old.url).code == 0
    assert old_databases.rollup(old.url) == old.months()


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", "Europe/Berlin"])
@pytest.mark.sampled(1)
@pytest.mark.any_database
def test_a_message_belongs_to_its_month_in_the_usage_time_zone(
    old_copy: OldCopy, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USAGE_TIMEZONE", zone)
    old = old_copy(2, time_zone=zone != "Asia/Tokyo")
    assert old.months(ZoneInfo(zone)) != old.months()
    said = migrate(old.url, "--verify", "--json").summary
    assert migrate(old.url).code == 0
    assert old_databases.rollup(old.url) == old.months(ZoneInfo(zone))
    assert said["months"] == len(old.months(ZoneInfo(zone)))
    assert migrate(old.url, "--verify").code == 0


def within(months: Months, flags: tuple[str, ...]) -> Months:
    """Those of the months that flags name; `--from` and `--to` come first of their kind."""
    limits = dict(zip(flags[::2], flags[1::2], strict=True))
    users = [int(value) for flag, value in zip(flags[::2], flags[1::2], strict=True) if flag == "--user"]
    first, last = limits.get("--from", "0001-01"), limits.get("--to", "9999-12")
    return {key: month for key, month in months.items() if (key[0] in users or not users) and first <= key[1] <= last}


LIMITS = [
    ("--user", "1"),
    ("--user", "3", "--user", "8"),
    ("--user", str(IDLE_USER)),
    ("--from", "2024-01"),
    ("--to", "2023-12"),
    ("--from", "2024-01", "--to", "2024-02"),  # with messages at both very ends
    ("--from", "2024-03", "--to", "2024-03"),
    ("--user", "1", "--from", "2023-11", "--to", "2024-02"),
]


def check_limited(old: OldDatabase, flags: tuple[str, ...], *more: str) -> None:
    """Demands that the summary under these limits is that of the months within them."""
    wanted = within(old.months(), flags)
    assert wanted or flags[1] == str(IDLE_USER)
    summary = migrate(old.url, "--json", *flags, *more).summary
    assert (summary["months"], summary["created"], summary["updated"]) == (len(wanted), len(wanted), 0)
    assert summary["users"] == len({user for user, _ in wanted})
    assert summary["messages"] == sum(month.messages for month in wanted.values())


@pytest.mark.sampled(1)
@pytest.mark.any_database
def test_limits_hold_for_what_is_said(uncounted: OldDatabase) -> None:
    for flags in LIMITS:
        check_limited(uncounted, flags, "--dry-run")


@pytest.mark.parametrize("flags", [LIMITS[1], LIMITS[5], LIMITS[7]], ids=" ".join)
@pytest.mark.sampled(2)
@pytest.mark.any_database
def test_limits_hold_for_what_is_done(uncounted: OldDatabase, flags: tuple[str, ...]) -> None:
    wanted = within(uncounted.months(), flags)
    check_limited(uncounted, flags)
    assert old_databases.rollup(uncounted.url) == wanted
    assert migrate(uncounted.url, "--verify", *flags).code == 0
    rest = migrate(uncounted.url, "--json").summary
    assert (rest["created"], rest["unchanged"]) == (len(uncounted.months()) - len(wanted), len(wanted))
    assert old_databases.rollup(uncounted.url) == uncounted.months()


@pytest.mark.any_database
def test_limits_leave_damage_outside_of_them_alone(adopted: OldDatabase) -> None:
    raw_sql.run(adopted.url, f"UPDATE {ROLLUP} SET message_count = message_count + 1")
    limits = ("--user", "1", "--user", "8", "--from", "2024-01", "--to", "2024-02")
    wanted = within(adopted.months(), limits)
    assert {user for user, _ in wanted} == {1, 8}
    seen = migrate(adopted.url, "--verify", "--json", *limits).summary["differences"]
    assert [(item["user_id"], item["month"]) for item in seen] == sorted(wanted)
    assert migrate(adopted.url, "--json", *limits).summary["updated"] == len(wanted)
    found = old_databases.rollup(adopted.url)
    assert {key for key, month in found.items() if adopted.months()[key] == month} == wanted.keys()


@pytest.mark.any_database
def test_small_batches_come_to_the_same(uncounted: OldDatabase) -> None:
    said = migrate(uncounted.url, "--dry-run", "--json", "--batch-size", "3").summary
    done = migrate(uncounted.url, "--json", "--batch-size", "1").summary
    assert {name: said[name] for name in DONE} == {name: done[name] for name in DONE}
    assert old_databases.rollup(uncounted.url) == uncounted.months()


@pytest.mark.any_database
def test_an_empty_database_has_no_token_data(empty_database_url: str, kind: str) -> None:
    if kind == "sqlite":
        Path(raw_sql.path_of(empty_database_url)).touch()
    for flags in (["--dry-run"], ["--verify"], [], ["--verify"]):
        outcome = migrate(empty_database_url, "--json", *flags)
        assert outcome.code == 0
        assert all(not outcome.summary[name] for name in DONE if name != "total_cost")
        assert outcome.summary["total_cost"] == "0"
        assert "No token data found" in migrate(empty_database_url, *flags).out
