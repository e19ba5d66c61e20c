"""Say what a downgrade loses, before it begins."""

from sqlalchemy import Connection, inspect, text

from app.errors import ConfigurationError

CONFIRMATION = "accept-loss"

_USERS = text("SELECT username FROM users WHERE hashed_password LIKE '$argon2%' ORDER BY id")


def refuse_unconfirmed(connection: Connection, destination: str) -> None:
    """Refuse to downgrade a database with users; list the losses.

    `destination` is the wanted revision, or `base` for the earlier backend.

    Raises:
        ConfigurationError: the operator must confirm the losses.
    """
    if not inspect(connection).has_table("users") or connection.scalar(text("SELECT count(*) FROM users")) == 0:
        return
    raise ConfigurationError(
        f"nothing is changed yet. {_of_base(connection) if destination == 'base' else _OF_REVISIONS}"
        f" {_archives(connection)}Make a backup, then repeat the command as:"
        f" .venv/bin/alembic -x {CONFIRMATION} downgrade {destination}"
    )


_OF_REVISIONS = (
    "This downgrade deletes what only later revisions store, such as usage without messages, archives and API keys."
)


def _of_base(connection: Connection) -> str:
    return (
        "The earlier backend cannot use, and this downgrade deletes: model, cached tokens, price and key of each"
        " message; daily sums; usage without messages of the current month; refresh tokens, API keys and password"
        f" resets. It shows no image that was sent since. {_cannot_log_in(list(connection.scalars(_USERS)))}"
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
