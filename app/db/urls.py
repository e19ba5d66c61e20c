"""Parse and check the forms of `DATABASE_URL`."""

import re
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from app import BASE_DIR

DEFAULT = "sqlite:///app.db"
_POSTGRESQL = {"postgres", "postgresql"}
# The servers before the path, such as `h1:5432,h2:5432`, which SQLAlchemy accepts only in the query.
_SERVERS = re.compile(
    r"(?P<start>\w[\w+]*://(?:[^/?#]*@)?)(?P<servers>[^@/?#]*,[^@/?#]*)(?P<rest>(?:/[^?#]*)?)(?:\?|$)"
)


@dataclass(frozen=True)
class Target:
    """Say which database to open, and how.

    `pool_size` limits the connections of the process. `prepared_statements` is None where they are used if they work.
    Neither applies to SQLite. `replica_of` is the URL of the primary, whose database a replica must have.
    """

    url: str
    pool_size: int = 20
    prepared_statements: bool | None = None
    replica_of: str = ""


def check(text: str) -> str:
    """Return the text if `parse` accepts it; for the check of settings.

    Raises:
        ValueError: as `parse`.
    """
    parse(text)
    return text


def check_postgresql(text: str) -> str:
    """Return the text if it is empty or a URL of PostgreSQL.

    Raises:
        ValueError: it is neither.
    """
    if text and is_sqlite(text):
        raise ValueError("it is not the URL of a PostgreSQL database: use postgresql://user@host/name")
    return text


def parse(text: str) -> URL:
    """Parse a database URL, with or without the name of a driver.

    Relative SQLite paths are relative to `main.py`. The driver name of the result is `sqlite` or `postgresql`. Several
    servers of PostgreSQL are in `host` of its query.

    Raises:
        ValueError: the text is no URL of a supported database; the message contains no password.
    """
    try:
        url = make_url(_SERVERS.sub(r"\g<start>\g<rest>?host=\g<servers>&", text, count=1))
    except (ArgumentError, ValueError):
        raise ValueError("it is not a database URL: use sqlite:///path or postgresql://user@host/name") from None
    backend = url.drivername.partition("+")[0]
    if backend == "sqlite":
        return _sqlite(url)
    if backend in _POSTGRESQL:
        if not url.database:
            raise ValueError("it names no database: use postgresql://user@host/name")
        return _postgresql(url.set(drivername="postgresql"))
    raise ValueError(f"{backend!r} is not supported: use sqlite:///path or postgresql://user@host/name")


def servers(url: URL) -> list[str]:
    """Return a URL for each server of PostgreSQL, in order.

    asyncpg reads these URLs. Of several servers only one that accepts writes is used, unless `target_session_attrs`
    says otherwise.

    Raises:
        ValueError: there are several ports, but not one for each server.
    """
    hosts = _listed(url, "host")
    if len(hosts) < 2:
        return [url.render_as_string(hide_password=False)]
    ports = _listed(url, "port")
    if len(ports) == 1:
        ports *= len(hosts)
    if ports and len(ports) != len(hosts):
        raise ValueError("it has several ports, but not one for each host")
    wanted = url.query.get("target_session_attrs", "read-write")
    single = url.difference_update_query(["host", "port"]).update_query_dict({"target_session_attrs": wanted})
    return [
        single.update_query_dict({"host": host, **({"port": ports[i]} if ports else {})}).render_as_string(
            hide_password=False
        )
        for i, host in enumerate(hosts)
    ]


def _listed(url: URL, name: str) -> list[str]:
    values = url.query.get(name, ())
    return [part for value in ([values] if isinstance(values, str) else values) for part in value.split(",")]


def _postgresql(url: URL) -> URL:
    servers(url)
    ports = [*_listed(url, "port"), *(found[1] for host in _listed(url, "host") if (found := _PORT.search(host)))]
    if not all(port.isdecimal() and 0 < int(port) < 2**16 for port in ports):
        raise ValueError("it has a port that is not a number from 1 to 65535")
    seconds, attribute = (str(url.query.get(name, "1")) for name in ("connect_timeout", "target_session_attrs"))
    if not seconds.isdecimal():
        raise ValueError("connect_timeout is not a whole number of seconds")
    if attribute != "1" and attribute not in _ATTRIBUTES:
        raise ValueError(f"target_session_attrs is none of {', '.join(_ATTRIBUTES)}")
    return url


_PORT = re.compile(r"^(?!/).*[^:]:([^:\]]*)$")
_ATTRIBUTES = ("any", "primary", "standby", "read-write", "read-only", "prefer-standby")


def _sqlite(url: URL) -> URL:
    if url.host:
        raise ValueError("a SQLite URL has three slashes before a relative path and four before an absolute one")
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ValueError("SQLite needs the path of a file: use sqlite:///path")
    return url.set(drivername="sqlite", database=str(BASE_DIR / url.database), query={})


def is_sqlite(text: str) -> bool:
    """Return whether the URL names a SQLite database."""
    return parse(text).drivername == "sqlite"


def files(text: str) -> list[Path]:
    """Return the files of a SQLite database; none for PostgreSQL."""
    url = parse(text)
    return [Path(f"{url.database}{suffix}") for suffix in ("", "-wal", "-shm")] if is_sqlite(text) else []


def shown(url: URL) -> str:
    """Return the URL as an operator may see it, without its password."""
    text = url.set(query={}).render_as_string(hide_password=True)
    where = [f"{name}={','.join(values)}" for name in ("host", "port") if (values := _listed(url, name))]
    return f"{text}?{'&'.join(where)}" if where else text
