"""Archiving and importing: everything comes back exactly, and no sum ever changes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from app.db.database import Database
from tests.support import archives, invariants, old_databases, raw_sql
from tests.support.archives import contents, run
from tests.support.commands import migrate
from tests.support.old_databases import OldDatabase

TABLES = ("messages", "feedback", "message_images", "usage_adjustments", "archived_keys", "archives")


@pytest.fixture(params=old_databases.GENERATIONS)
def old(request: pytest.FixtureRequest, empty_database_url: str) -> OldDatabase:
    """An old database, adopted."""
    built = old_databases.build(empty_database_url, request.param, rows=100)
    assert migrate(built.url, "--quiet", "--finish").code == 0
    return built


def test_an_adopted_database_comes_back_exactly(old: OldDatabase, tmp_path: Path) -> None:
    before, months = contents(old.url), old_databases.rollup(old.url)
    done = run(old.url, "--archive-before", "2026-01", "--to", str(tmp_path / "files"))
    assert done["messages"] > 50
    assert old_databases.rollup(old.url) == months
    assert migrate(old.url, "--verify", "--quiet").code == 0
    back = run(old.url, "--import-archive", str(tmp_path / "files"))
    assert back["messages"] == done["messages"]
    assert contents(old.url) == before
    assert migrate(old.url, "--verify", "--quiet").code == 0
