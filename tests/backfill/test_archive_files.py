"""Files of archives: damaged, unfinished, of another database; and commands that are refused."""

import asyncio
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from app import clock
from app.clock import Month
from app.db import migrations
from tests.support import archives, raw_sql
from tests.support.archives import Everyone, contents, run
from tests.support.commands import migrate
from tests.support.old_copies import OldCopy
from tests.support.old_databases import OldDatabase

pytestmark = pytest.mark.any_database

DAMAGES = ("changed", "shortened", "emptied")


@pytest.fixture
def old(old_copy: OldCopy) -> OldDatabase:
    """An old database, not adopted."""
    return old_copy(3, rows=20)


def check_refused(url: str, *flags: str, words: str) -> None:
    """Demands one line, exit code 2, and that nothing changed."""
    before = contents(url)
    outcome = migrate(url, *flags)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1), outcome.err
    assert words in outcome.err
    assert contents(url) == before


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "changed":
        content[len(content) // 2] ^= 1
    changed = {"shortened": content[:-1], "lengthened": content + b"\n", "emptied": b""}
    file.write_bytes(bytes(changed.get(how, content)))


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_refused(everyone: Everyone, files: Path, how: str) -> None:
    run(everyone.url, *everyone.archiving(files))
    damage(archives.only_file(files), how)
    check_refused(everyone.url, "--import-archive", str(files), words="the file is damaged")


def test_nothing_is_imported_beside_a_damaged_file(
    everyone: Everyone, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives.take_small_steps(monkeypatch.setattr, file_bytes=100)
    run(everyone.url, *everyone.archiving(files))
    assert len(list(files.iterdir())) > 1
    damage(max(files.iterdir()), "changed")
    check_refused(everyone.url, "--import-archive", str(files), words="the file is damaged")


def test_a_path_that_does_not_exist_is_refused(everyone: Everyone, files: Path) -> None:
    check_refused(everyone.url, "--import-archive", str(files), words="there is no")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("named", ["the file", "its directory"])
def test_a_named_pipe_is_no_archive(everyone: Everyone, files: Path, named: str) -> None:
    """Reading it would wait for a writer, who may never come."""
    run(everyone.url, *everyone.archiving(files))
    file = archives.only_file(files)
    file.unlink()
    os.mkfifo(file)
    if named == "the file":
        check_refused(everyone.url, "--import-archive", str(file), words="neither a directory nor a file")
    else:
        assert run(everyone.url, "--import-archive", str(files))["files_missing"] == [file.name]


def test_what_follows_the_recorded_part_is_ignored(everyone: Everyone, files: Path) -> None:
    """Left by a killed run, or newer than a database that was restored."""
    before = contents(everyone.url)
    run(everyone.url, *everyone.archiving(files))
    damage(archives.only_file(files), "lengthened")
    run(everyone.url, "--import-archive", str(files))
    assert contents(everyone.url) == before


@pytest.mark.parametrize("tail", [b"", b'{"message":'])
def test_a_recorded_part_gets_its_name(everyone: Everyone, files: Path, tail: bytes) -> None:
    run(everyone.url, *everyone.archiving(files))
    whole = archives.only_file(files)
    content, part = whole.read_bytes(), whole.with_suffix(".part")
    part.write_bytes(content + tail)
    whole.unlink()
    run(everyone.url, *everyone.archiving(files))
    assert archives.only_file(files) == whole
    assert whole.read_bytes() == content + tail


def test_a_part_of_another_database_is_left_alone(everyone: Everyone, files: Path) -> None:
    files.mkdir()
    other = files / "before-2024-03-00000000-abc.part"
    other.write_bytes(b"{}\n")
    run(everyone.url, *everyone.archiving(files))
    back = run(everyone.url, "--import-archive", str(files))
    assert back["files_skipped"] == [other.name]
    assert other.read_bytes() == b"{}\n"


def test_a_damaged_part_stops_imports_only(everyone: Everyone, files: Path) -> None:
    run(everyone.url, *everyone.archiving(files))
    file = archives.only_file(files)
    damage(file, "shortened")
    file.rename(file.with_suffix(".part"))
    run(everyone.url, *everyone.archiving(files))
    check_refused(everyone.url, "--import-archive", str(files), words="the file is damaged")


def test_no_run_deletes_the_file_of_another_one(everyone: Everyone, files: Path, tmp_path: Path) -> None:
    """Such as one of a database that was restored from an older backup."""
    run(everyone.url, *everyone.archiving(files))
    whole = archives.only_file(files)
    content = whole.read_bytes()
    part = whole.rename(whole.with_suffix(".part"))
    other = f"sqlite:///{tmp_path / 'other.db'}"
    asyncio.run(migrations.upgrade(other))
    archives.fill(other)
    run(other, "--archive-before", "2024-02", "--to", str(files))
    assert part.read_bytes() == content


def test_a_month_that_is_not_over_is_refused(everyone: Everyone, files: Path) -> None:
    now = clock.now()
    following = Month.of(Month(now.year, now.month).last_day + timedelta(days=1))
    for month in (following, "9999-12"):
        words = f"{now:%Y-%m} is not over: use {now:%Y-%m} or an earlier month"
        check_refused(everyone.url, "--archive-before", str(month), words=words)
    assert not files.exists()
    assert migrate(everyone.url, "--archive-before", f"{now:%Y-%m}", "--to", str(files)).code == 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--archive-before", "2024-13"],
        ["--archive-before", "2024-01", "--dry-run"],
        ["--archive-before", "2024-01", "--import-archive", "x"],
        ["--archive-before", "2024-01", "--from", "2023-01"],
        ["--archive-before", "2024-01", "--recount", "--finish", "--all", "--accept-missing"],
        ["--archive-before", "2024-01", "--batch-size", "3"],
        ["--import-archive", "x", "--to", "2024-01"],
        ["--import-archive", "x", "--user", "1"],
        ["--to", "somewhere"],
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags: Sequence[str], tmp_path: Path) -> None:
    outcome = migrate(f"sqlite:///{tmp_path}/none.db", *flags)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    outcome = migrate(f"sqlite:///{tmp_path}/none.db", "--archive-before", "2024-01", "--to", str(tmp_path / "files"))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


def test_messages_that_are_not_adopted_are_refused(old: OldDatabase, files: Path, kind: str) -> None:
    outcome = migrate(old.url, "--archive-before", "2024-01", "--to", str(files))
    first = "--finish" if kind == "postgresql" else "first run python migrate_token_data.py"
    assert outcome.code == 2
    assert first in outcome.err.splitlines()[-1]
    if kind == "postgresql":
        assert migrate(old.url, "--finish", "--quiet", "--user", "1").code == 0
        outcome = migrate(old.url, "--archive-before", "2024-01", "--to", str(files))
        assert "first run python migrate_token_data.py" in outcome.err


def test_tables_that_reference_messages_are_refused(everyone: Everyone, files: Path) -> None:
    raw_sql.run(everyone.url, "CREATE TABLE notes (message_id BIGINT REFERENCES messages (id))")
    check_refused(everyone.url, *everyone.archiving(files), words="other tables reference messages: notes")
    raw_sql.run(everyone.url, "DROP TABLE notes")


def test_archived_messages_keep_their_days(everyone: Everyone, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(everyone.url, *everyone.archiving(files))
    raw_sql.run(everyone.url, "DELETE FROM messages")
    monkeypatch.setenv("USAGE_TIMEZONE", "Asia/Jakarta")
    for flags in (["--redate"], ["--import-archive", str(files)], everyone.archiving(files)):
        check_refused(everyone.url, *flags, words="--redate")


def test_missing_adjustments_stop_an_import(everyone: Everyone, files: Path) -> None:
    run(everyone.url, *everyone.archiving(files))
    raw_sql.run(everyone.url, "DELETE FROM usage_adjustments WHERE model = ''")
    check_refused(everyone.url, "--import-archive", str(files), words="adjustments of archived messages are missing")


def test_a_directory_that_cannot_be_made_is_refused(everyone: Everyone, files: Path) -> None:
    files.write_text("a file")
    check_refused(everyone.url, *everyone.archiving(files), words=os.fspath(files))
