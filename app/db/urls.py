"""Parse and check the forms of `DATABASE_URL`."""

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from app import BASE_DIR

DEFAULT = "sqlite:///app.db"
_POSTGRESQL = {"postgres", "postgresql"}


def check(text: str) -> str:
    """Return the text if `parse` accepts it; for the check of settings.

    Raises:
        ValueError: as `parse`.
    """
    parse(text)
    return text


def parse(text: str) -> URL:
    """Parse a database URL, with or without the name of a driver.

    Relative SQLite paths are relative to `main.py`. The driver name of the result is `sqlite` or `postgresql`.

    Raises:
        ValueError: the text is no URL of a supported database; the message contains no password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError("it is not a database URL: use sqlite:///path or postgresql://user@host/name") from None
    backend = url.drivername.partition("+")[0]
    if backend == "sqlite":
        return _sqlite(url)
    if backend in _POSTGRESQL:
        if not url.database:
            raise ValueError("it names no database: use postgresql://user@host/name")
        return url.set(drivername="postgresql")
    raise ValueError(f"{backend!r} is not supported: use sqlite:///path or postgresql://user@host/name")


def _sqlite(url: URL) -> URL:
    if url.host:
        raise ValueError("a SQLite URL has three slashes before a relative path and four before an absolute one")
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ValueError("SQLite needs the path of a file: use sqlite:///path")
    return url.set(drivername="sqlite", database=str(BASE_DIR / url.database), query={})


def files(text: str) -> list[Path]:
    """Return the files of a SQLite database; none for PostgreSQL."""
    url = parse(text)
    return [Path(f"{url.database}{suffix}") for suffix in ("", "-wal", "-shm")] if url.drivername == "sqlite" else []


def shown(url: URL) -> str:
    """Return the URL without its password, as an operator may see it."""
    return url.set(query={}).render_as_string(hide_password=True)
