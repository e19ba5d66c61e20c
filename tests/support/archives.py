"""Archives for tests: the commands, and everything that they may change."""

from typing import Any

from tests.support import raw_sql
from tests.support.commands import migrate

TABLES = (
    *("messages", "feedback", "message_images", "usage_adjustments", "archived_keys", "archives"),
    *("user_daily_token_usage", "user_monthly_token_usage", "conversations", "users"),
)


def run(url: str, *flags: str) -> dict[str, Any]:
    """Runs the script to its end; the summary."""
    outcome = migrate(url, "--json", "--quiet", *flags)
    assert outcome.code == 0, outcome.err
    return outcome.summary


def contents(url: str) -> dict[str, list[raw_sql.Row]]:
    """All rows, each value exactly as it is stored."""
    return {table: raw_sql.contents(url, table) for table in TABLES}
