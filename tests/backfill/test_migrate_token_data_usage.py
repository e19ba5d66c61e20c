"""`migrate_token_data.py` as an operator meets it: where it writes what, its exit codes, and its errors in one line."""

import json
import socket
from pathlib import Path

import pytest

from app import BASE_DIR
from tests.conftest import UrlOf
from tests.support import commands, old_databases, raw_sql
from tests.support.commands import Outcome, migrate
from tests.support.old_copies import OldCopy
from tests.support.old_databases import OldDatabase

pytestmark = pytest.mark.any_database

KEYS = {
    "users",
    "months",
    "messages",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "total_cost",
    "created",
    "updated",
    "raised",
    "lowered",
    "removed",
    "carried_over",
    "messages_missing",
    "unchanged",
    "redated",
    "skipped",
    "differences",
    "seconds",
    "dry_run",
    "verified",
}

LISTS = {"carried_over", "messages_missing"}
DIFFERENCE = {"user_id", "month", "field", "expected", "found"}


@pytest.fixture
def old(old_copy: OldCopy) -> OldDatabase:
    """An old database, not adopted."""
    return old_copy(2)


def test_json_is_one_object_of_the_agreed_keys_and_nothing_else(old: OldDatabase) -> None:
    for flags in (["--dry-run"], ["--verify"], [], ["--verify"]):
        outcome = migrate(old.url, "--json", *flags)
        assert outcome.out.count("\n") == 1
        summary = json.loads(outcome.out)
        assert summary.keys() == KEYS
        counts = KEYS - {"total_cost", "skipped", "differences", "seconds", "dry_run", "verified"} - LISTS
        assert all(type(summary[name]) is int for name in counts)
        assert isinstance(summary["total_cost"], str)
        assert isinstance(summary["seconds"], int | float)
        assert all(item.keys() == DIFFERENCE for item in summary["differences"])


def test_the_words_say_the_same_as_the_json(old: OldDatabase) -> None:
    summary = migrate(old.url, "--json", "--dry-run").summary
    outcome = migrate(old.url)
    lines = [line.strip() for line in outcome.out.splitlines()]
    for name in ("users", "months", "messages", "input_tokens", "output_tokens", "total_tokens"):
        assert f"{name.replace('_', ' ')} {summary[name]:,}" in [" ".join(line.split()) for line in lines]
    assert f"${summary['total_cost']}" in outcome.out
    for reason, rows in old.skipped.items():
        (line,) = [line for line in lines if reason.replace("_", " ") in line]
        assert line.endswith(f" {rows}")


def test_progress_goes_to_standard_error_and_quiet_silences_it(old: OldDatabase) -> None:
    assert migrate(old.url, "--dry-run").err != ""
    quiet = migrate(old.url, "--quiet")
    assert quiet.err == ""
    assert quiet.out != ""


def check_error(outcome: Outcome, *words: str) -> None:
    """Demands exit code 2, nothing on standard output, and one line on standard error that holds the words."""
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


@pytest.mark.parametrize(
    "flags",
    [
        ["--from", "2024-13"],
        ["--from", "2024-1"],
        ["--from", "0000-01"],
        ["--to", "yesterday"],
        ["--from", "2024-05", "--to", "2024-04"],
        ["--user", "ayu"],
        ["--user", "0"],
        ["--user", "-1"],
        ["--user", "9223372036854775808"],
        ["--user", "\u0663"],
        ["--batch-size", "0"],
        ["--batch-size", "1.5"],
        ["--batch-size"],
        ["--dry-run", "--verify"],
        ["--nonsense"],
        ["something"],
    ],
    ids=" ".join,
)
def test_bad_flags_are_refused_in_one_line(flags: list[str], tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    check_error(migrate(f"sqlite:///{path}", *flags), flags[0])
    assert not path.exists()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "mysql://root:sesame@localhost/app",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite://app.db",
        "postgresql://",
        "postgresql://ayu:sesame@localhost:http/app",
    ],
)
def test_bad_database_urls_are_refused_in_one_line(url: str) -> None:
    outcome = migrate(url)
    check_error(outcome, "DATABASE_URL")
    assert "sesame" not in outcome.err


@pytest.mark.parametrize("flags", [[], ["--dry-run"], ["--verify", "--json"]], ids=["run", "dry run", "verify"])
def test_a_file_that_is_not_a_database_is_refused_in_one_line(flags: list[str], tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("These are notes, and no database at all.\n" * 50)
    check_error(migrate(f"sqlite:///{path}", *flags), str(path), "not a database")
    assert path.read_text().startswith("These are notes")


def test_a_directory_is_refused_in_one_line(tmp_path: Path) -> None:
    check_error(migrate(f"sqlite:///{tmp_path}"), str(tmp_path))
    check_error(migrate(f"sqlite:///{tmp_path}/missing/app.db"), "missing/app.db")


@pytest.mark.parametrize("flags", [[], ["--verify"], ["--dry-run"]])
def test_a_file_beside_which_sqlite_cannot_write_is_explained(flags: list[str], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/app.db"
    assert migrate(url, "--quiet").code == 0
    (tmp_path / "app.db-wal").mkdir()  # as in a read-only directory, which does not stop root
    outcome = migrate(url, "--quiet", *flags)
    assert (outcome.code, outcome.out) == (2, "")
    [line] = outcome.err.splitlines()
    assert "its directory must exist and be writable, even for reading" in line


@pytest.mark.parametrize("flag", ["--dry-run", "--verify"])
def test_there_is_nothing_to_compare_in_a_database_that_is_not_there(flag: str, tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    check_error(migrate(f"sqlite:///{path}", flag), str(path))
    assert not path.exists()


@pytest.mark.parametrize("flags", [[], ["--verify"]], ids=["run", "verify"])
def test_a_postgresql_that_cannot_be_reached_is_said_in_one_line(flags: list[str], tmp_path: Path) -> None:
    port = commands.free_port()
    outcome = migrate(f"postgresql://ayu:sesame@127.0.0.1:{port}/app", *flags)
    check_error(outcome, "127.0.0.1")
    assert "sesame" not in outcome.err
    check_error(migrate(f"postgresql://ayu@/app?host={tmp_path}", *flags))


def test_a_missing_postgresql_database_is_reported_in_one_line(postgresql: UrlOf) -> None:
    check_error(migrate(postgresql("no_such_database")), "no_such_database", "does not exist")


def test_a_bad_setting_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USAGE_TIMEZONE", "Europe/Atlantis")
    check_error(migrate(f"sqlite:///{tmp_path / 'app.db'}"), "USAGE_TIMEZONE", "Europe/Atlantis")


def test_a_month_beyond_the_largest_cost_is_named_and_left(old: OldDatabase) -> None:
    conversation = next(message.conversation_id for message in old.messages if message.owner == 1)
    columns = ("conversation_id", "role", "content", "created_at", "input_tokens", "output_tokens", "model_cost")
    instant = next(message.written for message in old.messages if message.owner == 1)
    raw_sql.insert(old.url, "messages", columns, [(conversation, "assistant", "", instant, 1, 1, 1e6)] * 901)
    for _ in range(2):
        outcome = migrate(old.url, "--quiet")
        assert outcome.code == 1
        assert outcome.err == f"user 1, {str(instant)[:7]}: left as it is: its sums would exceed what can be counted\n"
    assert migrate(old.url, "--json", "--quiet").summary["created"] == 0
    others = {key: month for key, month in old.months().items() if key != (1, str(instant)[:7])}
    assert old_databases.rollup(old.url) == others


@pytest.mark.long
def test_the_real_process_fails_in_one_line_and_reads_its_url_flag(tmp_path: Path) -> None:
    old = old_databases.build(f"sqlite:///{tmp_path / 'old.db'}", 2, rows=100)
    script = "migrate_token_data.py"
    notes = tmp_path / "notes.txt"
    notes.write_text("no database" * 100)
    check_error(commands.run([script, "--quiet"], tmp_path, DATABASE_URL=f"sqlite:///{notes}"), "not a database")
    check_error(commands.run([script, "--bogus"], tmp_path, DATABASE_URL=old.url), "--bogus")
    command = [script, "--quiet", "--json", "--database-url", old.url]
    done = commands.run(command, tmp_path, DATABASE_URL=f"sqlite:///{notes}")
    assert (done.code, done.err) == (0, "")
    assert done.summary["created"] == len(old.months())


def test_paths_are_taken_from_where_the_script_lies(tmp_path: Path) -> None:
    relative = f"no_such_directory_{socket.gethostname()}/app.db"
    outcome = commands.run(["migrate_token_data.py"], tmp_path, DATABASE_URL=f"sqlite:///{relative}")
    check_error(outcome, str(BASE_DIR / relative))


def test_a_view_on_the_old_months_is_to_be_dropped_for_the_upgrade(old_copy: OldCopy) -> None:
    old = old_copy(3)
    raw_sql.run(old.url, "CREATE VIEW report AS SELECT user_id, total_cost FROM user_monthly_token_usage")
    before = old.contents()
    outcome = migrate(old.url, "--quiet")
    assert outcome.code == 2
    assert outcome.err.rstrip().endswith("drop the view, and create it again afterwards")
    assert old.contents() == before
    raw_sql.run(old.url, "DROP VIEW report")
    assert migrate(old.url, "--quiet").code == 0
    raw_sql.run(old.url, "CREATE VIEW report AS SELECT user_id, total_cost FROM user_monthly_token_usage")
