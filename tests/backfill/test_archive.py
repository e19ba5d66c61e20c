"""Archiving and importing: everything comes back exactly, and no sum ever changes."""

import stat
from pathlib import Path
from typing import Any

import pytest

from app.errors import TransactionConflict
from services.backfill import archiving
from tests.support import archives, old_databases, raw_sql
from tests.support.archives import Everyone, contents, run
from tests.support.commands import migrate
from tests.support.old_copies import OldCopy
from tests.support.old_databases import OldDatabase

pytestmark = pytest.mark.any_database


@pytest.fixture(params=old_databases.GENERATIONS)
def old(request: pytest.FixtureRequest, old_copy: OldCopy) -> OldDatabase:
    """An old database, adopted."""
    return old_copy(request.param, "--quiet", "--finish")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of few messages, and files of few batches."""
    archives.take_small_steps(monkeypatch.setattr)


@pytest.mark.long
def test_an_adopted_database_comes_back_exactly(old: OldDatabase, files: Path, small_batches: None) -> None:
    before, months = contents(old.url), old_databases.rollup(old.url)
    done = run(old.url, "--archive-before", "2026-01", "--to", str(files))
    assert done["messages"] > 50
    assert len(done["files"]) > 1
    assert old_databases.rollup(old.url) == months
    assert migrate(old.url, "--verify", "--quiet").code == 0
    back = run(old.url, "--import-archive", str(files))
    assert back["messages"] == done["messages"]
    assert contents(old.url) == before
    assert migrate(old.url, "--verify", "--quiet").code == 0


def test_messages_of_every_kind_come_back_exactly(everyone: Everyone, files: Path) -> None:
    before = contents(everyone.url)
    assert run(everyone.url, *everyone.archiving(files))["messages"] == len(everyone.old)
    after = contents(everyone.url)
    assert {int(row[0]) for row in after["messages"]} == everyone.all - everyone.old
    for table in ("user_daily_token_usage", "user_monthly_token_usage", "conversations", "users"):
        assert after[table] == before[table]
    assert len(after["archived_keys"]) == 2
    assert migrate(everyone.url, "--verify", "--quiet").code == 0
    back = run(everyone.url, "--import-archive", str(files))
    assert (back["messages"], back["content_erased"], back["new_ids"]) == (len(everyone.old), 0, 0)
    assert contents(everyone.url) == before


def test_only_old_messages_of_the_chosen_users_move(everyone: Everyone, files: Path) -> None:
    owner = everyone.users[0]
    mine = {row[0] for row in raw_sql.run(everyone.url, f"SELECT id FROM messages WHERE user_id = {owner}")}
    assert run(everyone.url, *everyone.archiving(files), "--user", str(owner))["messages"] > 0
    left = {row[0] for row in raw_sql.run(everyone.url, "SELECT id FROM messages")}
    assert left == everyone.all - (mine & everyone.old)


def test_a_line_holds_the_message_in_plain_forms(everyone: Everyone, files: Path, kind: str) -> None:
    run(everyone.url, *everyone.archiving(files))
    lines = archives.lines_of(archives.only_file(files))
    (counted,) = [line for line in lines if line["message"]["idempotency_key"] == "record:first"]
    assert (
        counted["message"].items()
        >= {
            "role": "assistant",
            "created_at": "2024-01-31T12:00:00Z" if kind == "postgresql" else "2024-01-31T12:00:00.000000Z",
            "cost": "0.4500000003",
            "usage_estimated": False,
            "usage_date": "2024-01-31",
            "content": None,
        }.items()
    )
    (liked,) = [line for line in lines if "feedback" in line]
    assert [row["description"] for row in liked["feedback"]] == ["naïve 😀"]
    shown = [line for line in lines if "images" in line]
    assert [image["name"] for line in shown for image in line["images"]] == ["a" * 32, "b" * 32]


def test_images_go_unless_a_message_still_shows_them(everyone: Everyone, files: Path) -> None:
    run(everyone.url, *everyone.archiving(files))
    names = raw_sql.run(everyone.url, "SELECT name FROM message_images ORDER BY name")
    assert names == [("b" * 32,), ("c" * 32,)]


def test_only_the_owner_can_read_the_files(everyone: Everyone, files: Path) -> None:
    directory = files / "new" / "er"
    run(everyone.url, *everyone.archiving(directory))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(archives.only_file(directory).stat().st_mode) == 0o600


def test_a_second_run_finds_nothing_to_do(everyone: Everyone, files: Path) -> None:
    run(everyone.url, *everyone.archiving(files))
    before = contents(everyone.url)
    again = run(everyone.url, *everyone.archiving(files))
    assert (again["messages"], again["files"]) == (0, [])
    assert contents(everyone.url) == before
    assert archives.only_file(files).suffix == ".jsonl"


def test_a_second_import_finds_nothing_to_do(everyone: Everyone, files: Path) -> None:
    run(everyone.url, *everyone.archiving(files))
    run(everyone.url, "--import-archive", str(files))
    before = contents(everyone.url)
    again = run(everyone.url, "--import-archive", str(archives.only_file(files)))
    assert (again["messages"], again["files_skipped"]) == (0, [archives.only_file(files).name])
    assert contents(everyone.url) == before


def test_months_can_be_archived_one_after_the_other(everyone: Everyone, files: Path) -> None:
    before = contents(everyone.url)
    for month in ("2024-02", "2024-03", "2024-04"):
        run(everyone.url, "--archive-before", month, "--to", str(files))
        assert migrate(everyone.url, "--verify", "--quiet").code == 0
    assert len(list(files.iterdir())) == 3
    for path in sorted(files.iterdir(), reverse=True):
        back = run(everyone.url, "--import-archive", str(path))
        assert migrate(everyone.url, "--verify", "--quiet").code == 0
    assert back["files_missing"] == []
    assert contents(everyone.url) == before


def test_archives_that_are_not_there_are_named(everyone: Everyone, files: Path) -> None:
    run(everyone.url, *everyone.archiving(files))
    (files / "empty").mkdir()
    back = run(everyone.url, "--import-archive", str(files / "empty"))
    assert back["files_missing"] == [archives.only_file(files).name]


def test_a_deleted_conversation_brings_back_figures(everyone: Everyone, files: Path) -> None:
    months = old_databases.rollup(everyone.url)
    run(everyone.url, *everyone.archiving(files))
    archives.delete_conversation(everyone.url, everyone.users[0], "talk")
    back = run(everyone.url, "--import-archive", str(files))
    assert back["content_erased"] > 0
    texts = "coalesce(content, image_urls, document_context)"
    assert raw_sql.run(everyone.url, f"SELECT {texts} FROM messages WHERE conversation_id = 'talk'") == [(None,)] * len(
        everyone.all_of("talk")
    )
    assert raw_sql.contents(everyone.url, "feedback") == []
    assert raw_sql.run(everyone.url, f"SELECT name FROM message_images WHERE name = '{'a' * 32}'") == []
    assert old_databases.rollup(everyone.url) == months
    assert migrate(everyone.url, "--verify", "--quiet").code == 0


def test_messages_of_a_deleted_user_stay_away(everyone: Everyone, files: Path) -> None:
    run(everyone.url, *everyone.archiving(files))
    gone, other = everyone.users
    archives.delete_user(everyone.url, gone)
    for table in ("usage_adjustments", "archived_keys"):
        assert raw_sql.run(everyone.url, f"SELECT * FROM {table} WHERE user_id = {gone}") == []
    back = run(everyone.url, "--import-archive", str(files))
    assert back["users_gone"] > 0
    assert back["messages"] + back["users_gone"] == len(everyone.old)
    assert {row[0] for row in raw_sql.run(everyone.url, "SELECT DISTINCT user_id FROM messages")} == {other}
    assert raw_sql.contents(everyone.url, "archives") == []
    assert migrate(everyone.url, "--verify", "--quiet").code == 0


@pytest.mark.parametrize("kind", ["sqlite"])
def test_an_id_that_is_in_use_is_replaced(everyone: Everyone, files: Path) -> None:
    months = old_databases.rollup(everyone.url)
    run(everyone.url, *everyone.archiving(files))
    taken = min(everyone.old)
    raw_sql.run(everyone.url, f"INSERT INTO messages (id, user_id, role) VALUES ({taken}, {everyone.users[1]}, 'user')")
    back = run(everyone.url, "--import-archive", str(files))
    assert back["new_ids"] == 1
    assert raw_sql.value(everyone.url, "SELECT count(*) FROM messages") == len(everyone.all) + 1
    assert old_databases.rollup(everyone.url) == months
    assert migrate(everyone.url, "--verify", "--quiet").code == 0


@pytest.mark.parametrize("kind", ["sqlite"])
def test_the_newest_message_stays_on_sqlite(everyone: Everyone, files: Path) -> None:
    raw_sql.run(everyone.url, f"DELETE FROM messages WHERE id > {max(everyone.old)}")
    run(everyone.url, *everyone.archiving(files))
    assert max(everyone.old) in {row[0] for row in raw_sql.run(everyone.url, "SELECT id FROM messages")}


def test_a_database_of_archived_messages_only_serves(everyone: Everyone, files: Path) -> None:
    run(everyone.url, "--archive-before", "2024-04", "--to", str(files))
    months, talks = archives.as_seen_by(everyone.url, everyone.users[1], "other")
    assert [month["month"] for month in months] == ["2024-03", "2024-02"]
    assert talks["total"] == 1
    assert talks["messages"] == []


def test_a_failing_disk_leaves_everything_as_it_was(
    everyone: Everyone, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> Any:
        raise OSError(28, "No space left on device")

    before = contents(everyone.url)
    files.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("services.backfill.archive_files._sync", lambda _directory: None)
        patch.setattr("os.fsync", fail)
        outcome = migrate(everyone.url, "--quiet", *everyone.archiving(files))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "No space left on device" in outcome.err
    assert contents(everyone.url) == before
    assert list(files.iterdir()) == []


def test_a_retried_transaction_writes_each_message_once(
    everyone: Everyone, files: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None
) -> None:
    record, failures = archiving._record, iter([True, False] * 100)

    async def conflict(*arguments: Any) -> None:
        await record(*arguments)
        if next(failures):
            raise TransactionConflict

    before = contents(everyone.url)
    monkeypatch.setattr(archiving, "_record", conflict)
    run(everyone.url, *everyone.archiving(files))
    assert sorted(archives.ids_in(files)) == sorted(everyone.old)
    run(everyone.url, "--import-archive", str(files))
    assert contents(everyone.url) == before
