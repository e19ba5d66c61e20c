"""Stopping `migrate_token_data.py`, and what it says of days and conversations that are not right."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from app import BASE_DIR, console
from app.console import Progress
from services.backfill import reconciliation
from tests.support import old_databases, raw_sql
from tests.support.commands import migrate
from tests.support.old_copies import OldCopy
from tests.support.old_databases import OldDatabase


@pytest.fixture
def old(old_copy: OldCopy) -> OldDatabase:
    """An old database, not adopted."""
    return old_copy(2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.sampled(1)
def test_a_stopped_run_ends_after_its_batch_and_the_next_finishes_it(
    old: OldDatabase, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    show = console.LineListener.__call__
    sent: list[signal.Signals] = []

    def shown(listener: console.LineListener, progress: Progress) -> None:
        show(listener, progress)
        if progress.phase == "counting" and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(console.LineListener, "__call__", shown)
        patch.setattr(reconciliation, "READERS", 1)  # of two, one could finish all other users during the first batch
        outcome = migrate(old.url, "--json", "--batch-size", "1")
    assert outcome.code == 1
    assert outcome.out == ""
    last = outcome.err.splitlines()[-1]
    assert last.startswith("migrate_token_data.py: stopped while counting, ")
    assert last.endswith(" messages done; committed work is kept, run it again to continue")
    summary = migrate(old.url, "--json").summary
    assert 0 < summary["unchanged"] < summary["months"]
    assert summary["unchanged"] + summary["created"] == summary["months"]
    assert migrate(old.url, "--verify").code == 0


IMPATIENT = """
import sys
import migrate_token_data
migrate_token_data.stopping.STOP_SECONDS = migrate_token_data.stopping.END_SECONDS = 0.3
migrate_token_data.migrations.logger.info = lambda _: print("begun", flush=True)
sys.exit(migrate_token_data.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.long
def test_a_run_that_waits_for_its_first_lock_is_stopped_too(tmp_path: Path, number: signal.Signals) -> None:
    """The schema is not up to date yet, and somebody writes."""
    old = old_databases.build(f"sqlite:///{tmp_path / 'old.db'}", 2, rows=100)
    command = [sys.executable, "-c", IMPATIENT, "--database-url", old.url]
    with contextlib.closing(sqlite3.connect(tmp_path / "old.db", isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        with subprocess.Popen(command, cwd=BASE_DIR, stdout=-1, stderr=-1, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert (
        err
        == "migrate_token_data.py: stopped while the script waited; committed work is kept, run it again to continue\n"
    )
    assert migrate(old.url, "--quiet").code == 0


DAMAGED = {
    "UPDATE user_daily_token_usage SET input_tokens = input_tokens + 1": "input_tokens",
    "UPDATE user_daily_token_usage SET unpriced_count = unpriced_count + 1": "unpriced_count",
    "UPDATE user_daily_token_usage SET model = 'another'": "message_count",
    "DELETE FROM user_daily_token_usage": "message_count",
    "INSERT INTO user_daily_token_usage SELECT id, '2019-07-01', '', 0, 0, 0, 0, 0, 0 FROM users": "message_count",
    "INSERT INTO user_daily_token_usage SELECT id, '2019-07-01', 'ghost', 1, 2, 3, 4, 0, 0 FROM users": "total_cost",
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.sampled(1)
def test_days_that_are_wrong_are_listed_and_repaired(old: OldDatabase, damage: str) -> None:
    migrate(old.url, "--quiet")
    raw_sql.run(old.url, damage)
    outcome = migrate(old.url, "--verify", "--json", "--quiet")
    assert outcome.code == 1
    assert DAMAGED[damage] in {item["field"].split()[-1] for item in outcome.summary["differences"]}
    mended = migrate(old.url, "--json", "--quiet").summary
    assert (mended["created"], mended["updated"]) == (0, 0), "the months were right"
    assert migrate(old.url, "--verify", "--quiet").code == 0
