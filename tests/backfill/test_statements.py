"""The statement of the deficits as each database gets it, so that a reader sees it and a change shows."""

import os
from pathlib import Path

import pytest
import sqlparse
from sqlalchemy import Dialect
from sqlalchemy.dialects import postgresql, sqlite

from services.backfill import deficits

SNAPSHOTS = Path(__file__).parent / "snapshots"
DIALECTS: dict[str, Dialect] = {"sqlite": sqlite.dialect(paramstyle="named"), "postgresql": postgresql.dialect()}  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", DIALECTS)
def test_the_statement_of_the_deficits_is_as_reviewed(name: str) -> None:
    """`UPDATE_SNAPSHOTS=1 make test ARGS=tests/backfill/test_statements.py` writes the files again."""
    rendered = str(deficits._statement(name == "sqlite").compile(dialect=DIALECTS[name]))
    readable = sqlparse.format(rendered, reindent=True, wrap_after=100, keyword_case="upper") + "\n"
    snapshot = SNAPSHOTS / f"deficits.{name}.sql"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        snapshot.write_text(readable, encoding="utf-8")
    assert snapshot.read_text(encoding="utf-8") == readable
