"""Say what a downgrade to the earlier backend loses, before it begins."""

from sqlalchemy import Connection, inspect, text

from app.errors import ConfigurationError

CONFIRMATION = "accept-loss"

_USERS = text("SELECT username FROM users WHERE hashed_password LIKE '$argon2%' ORDER BY id")


def refuse_unconfirmed(connection: Connection) -> None:
    """Refuse to downgrade a database with users; list the losses.

    Raises:
        ConfigurationError: the operator must confirm the losses.
    """
    if not inspect(connection).has_table("users") or connection.scalar(text("SELECT count(*) FROM users")) == 0:
        return
    names = list(connection.scalars(_USERS))
    raise ConfigurationError(
        "nothing is changed yet. The earlier backend cannot use, and this downgrade deletes: model, cached tokens,"
        " price and key of each message; daily sums; usage without messages of the current month; refresh"
        f" tokens, API keys and password resets. It shows no image that was sent since."
        f" {_archives(connection)}{_cannot_log_in(names)}"
        f" Make a backup, then repeat the command as: .venv/bin/alembic -x {CONFIRMATION} downgrade base"
    )


def _archives(connection: Connection) -> str:
    is_there = inspect(connection).has_table("archives")
    count = connection.scalar(text("SELECT count(*) FROM archives")) if is_there else 0
    if not count:
        return ""
    return f"The messages of {count} archives cannot be imported any more: use --import-archive before. "


def _cannot_log_in(names: list[str]) -> str:
    if not names:
        return "All users can log in there."
    return (
        f"{len(names)} users cannot log in there, because their password is hashed with argon2, until an admin sets a"
        f" new password there: {', '.join(names)}."
    )
