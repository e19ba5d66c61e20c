"""Rows as JSON: whatever a row holds comes back as it was stored."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.backfill.archive_rows import Columns, Kind
from tests.support import raw_sql
from tests.support.archives import Everyone, contents, run
from tests.support.commands import migrate

KINDS: tuple[Kind, ...] = ("integer", "boolean", "instant", "money", "bytes", "other")
INSTANTS = st.datetimes().map(lambda at: at.isoformat(" ", "microseconds"))
STORED = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
    INSTANTS,
    INSTANTS.map(lambda text: text.replace(" ", "T") + "Z"),
    st.sampled_from([0, 1, "0", "1", "", "0.1", "dHJ1ZQ==", "2024-01-01 00:00:00", 1.0, True and 1]),
)


@given(st.fixed_dictionaries(dict.fromkeys(KINDS, STORED)))
def test_any_value_of_sqlite_comes_back(row: dict[str, Any]) -> None:
    columns = Columns("messages", {kind: kind for kind in KINDS}, dict.fromkeys(KINDS, ""), sqlite=True)
    back = columns.decode(json.loads(json.dumps(columns.encode(row))))
    assert back == row
    assert all(type(back[name]) is type(row[name]) for name in row)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_odd_rows_of_sqlite_come_back(everyone: Everyone, tmp_path: Path) -> None:
    raw_sql.run(
        everyone.url,
        "ALTER TABLE messages ADD COLUMN more",
        "UPDATE messages SET content = x'00ff', role = 7, more = 0.1 WHERE id = 1",
        "UPDATE messages SET content = 1.5, model = x'6d', more = x'00' WHERE id = 2",
        "UPDATE messages SET created_at = '2024-01-31T12:00:00+07:00', more = '' WHERE id = 3",
        "UPDATE messages SET is_active_branch = 'yes', usage_estimated = 1, parent_message_id = 'a' WHERE id = 5",
    )
    before = contents(everyone.url)
    assert run(everyone.url, *everyone.archiving(tmp_path / "files"))["messages"] == len(everyone.old)
    run(everyone.url, "--import-archive", str(tmp_path / "files"))
    assert contents(everyone.url) == before


@pytest.mark.parametrize("kind", ["postgresql"])
def test_odd_rows_of_postgresql_come_back(everyone: Everyone, tmp_path: Path) -> None:
    raw_sql.run(
        everyone.url,
        "ALTER TABLE messages ADD more jsonb, ADD real float8, ADD list text[], ADD twice int GENERATED ALWAYS AS"
        " (2) STORED",
        "UPDATE messages SET more = '{\"a\": [1.10, null]}', real = 0.1, list = ARRAY['a,b', NULL] WHERE id = 1",
        "UPDATE messages SET real = 'NaN', created_at = '2023-12-31 23:59:59.123456-07' WHERE id = 2",
        "UPDATE messages SET real = '-Infinity', created_at = '-infinity' WHERE id = 3",
        "UPDATE messages SET created_at = '-infinity' WHERE id = 5",
    )
    before = contents(everyone.url)
    assert run(everyone.url, *everyone.archiving(tmp_path / "files"))["messages"] == len(everyone.old) - 1
    run(everyone.url, "--import-archive", str(tmp_path / "files"))
    assert contents(everyone.url) == before
    raw_sql.run(everyone.url, *(f"ALTER TABLE messages DROP {name}" for name in ("more", "real", "list", "twice")))


def test_a_column_that_is_gone_is_refused(everyone: Everyone, tmp_path: Path) -> None:
    raw_sql.run(
        everyone.url, "ALTER TABLE messages ADD COLUMN more TEXT", "UPDATE messages SET more = 'x' WHERE id = 2"
    )
    run(everyone.url, *everyone.archiving(tmp_path / "files"))
    raw_sql.run(everyone.url, "ALTER TABLE messages DROP COLUMN more")
    before = contents(everyone.url)
    outcome = migrate(everyone.url, "--import-archive", str(tmp_path / "files"), "--quiet")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "has no column more" in outcome.err
    assert contents(everyone.url) == before
