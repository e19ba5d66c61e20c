"""The PostgreSQL of Debian: it has the extensions that the tests' own server lacks."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db import migrations
from tests.support import raw_sql

_PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=Path()).parent

needed = pytest.mark.skipif(Path() == _PROGRAMS, reason="no PostgreSQL of Debian on this machine: package postgresql")
"""Marks a test that starts this server."""


@contextlib.contextmanager
def running() -> Iterator[str]:
    """A new server behind a Unix socket; gives the URL of a database, as a superuser."""
    with tempfile.TemporaryDirectory(prefix="foundation-be-debian-") as name:
        directory = Path(name)
        if (user := _user()) is not None:
            shutil.chown(directory, user, user)
        _run("initdb", directory, "--username=postgres", "--auth=trust", "--no-sync", "--locale=C.UTF-8")
        settings = f"-k {directory} -c listen_addresses= -c fsync=off"
        _run("pg_ctl", directory, "--wait", f"--options={settings}", f"--log={directory / 'log'}", "start")
        try:
            yield f"postgresql://postgres@/postgres?host={directory}"
        finally:
            _run("pg_ctl", directory, "--wait", "--mode=immediate", "stop")


def migrated(server: str, database: str, user: str = "postgres") -> str:
    """Create a database at the newest schema; return its URL."""
    raw_sql.run(server, f"CREATE DATABASE {database} OWNER {user}")
    url = server.replace("/postgres?", f"/{database}?").replace("postgres@", f"{user}@")
    asyncio.run(migrations.upgrade(url))
    return url


def _user() -> str | None:
    """Who runs the server, which refuses to run as root."""
    return "postgres" if os.geteuid() == 0 else None


def _run(program: str, directory: Path, *arguments: str) -> None:
    command = [str(_PROGRAMS / program), f"--pgdata={directory / 'data'}", *arguments]
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, timeout=60, user=_user(), group=_user(), cwd=directory
    )
