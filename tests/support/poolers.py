"""A pooler before a PostgreSQL of the tests.

PgBouncer has its default settings but for those named here.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import parse_qs, urlsplit

import pytest

from app import BASE_DIR
from app.db.database import Database
from app.db.urls import Target
from tests.support import commands

DEADLINE_SECONDS = 10.0
_SETTINGS = """
[databases]
* = host={host} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
{more}
"""
TRACKS_SINCE = (1, 21)


@contextlib.contextmanager
def running(url: str, mode: str, size: int = 20) -> Iterator[str]:
    """A pooler before the server of this URL; gives the URL of the same database through it.

    Args:
        url: of a database behind a Unix socket, as those of the tests are.
        mode: when a client gives its connection to the server back: `session`, `transaction` or `statement`; `tracked`
            is `transaction` with prepared statements, by a pooler of the tests where PgBouncer is too old.
        size: connections to the server for one database, at most.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    parts = urlsplit(url)
    port = commands.free_port()
    is_missing = program is None or (mode == "tracked" and _version(program) < TRACKS_SINCE)
    if is_missing and mode in ("transaction", "tracked"):
        started = _own_pooler(parse_qs(parts.query)["host"][0], port, size, tracks=mode == "tracked")
    elif program is None:
        pytest.skip("PgBouncer is not installed (apt-get install pgbouncer)")
    else:
        started = _pgbouncer(program, url, port, mode, size)
    with started:
        yield f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}"


def _version(program: str) -> tuple[int, ...]:
    said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    return tuple(int(part) for part in said.split()[1].split("."))


@contextlib.contextmanager
def _own_pooler(socket_directory: str, port: int, size: int, *, tracks: bool) -> Iterator[None]:
    path = f"{socket_directory}/.s.PGSQL.5432"
    command = [sys.executable, "-m", "tests.support.transaction_pooler", str(port), path, str(size)]
    with tempfile.TemporaryFile("w+") as errors:
        command += ["--tracks"] * tracks
        with subprocess.Popen(command, stderr=errors, cwd=BASE_DIR) as process:
            try:
                _wait_for(process, port, errors)
                yield
            finally:
                process.kill()


@contextlib.contextmanager
def _pgbouncer(program: str, url: str, port: int, mode: str, size: int) -> Iterator[None]:
    parts = urlsplit(url)
    host = parse_qs(parts.query)["host"][0]
    user = Path(host).owner() if os.geteuid() == 0 else None  # PgBouncer does not run as root
    with tempfile.TemporaryDirectory() as name:
        settings, log = Path(name, "pgbouncer.ini"), Path(name, "log")
        tracked = 200 if mode == "tracked" else 0
        more = f"max_prepared_statements = {tracked}" if _version(program) >= TRACKS_SINCE else ""
        mode = "transaction" if mode == "tracked" else mode
        values = {"host": host, "user": parts.username, "port": port, "mode": mode, "size": size, "more": more}
        settings.write_text(_SETTINGS.format(**values))
        Path(name).chmod(0o755)
        command = [program, "--quiet", str(settings)]
        with log.open("w+") as errors, subprocess.Popen(command, stderr=errors, user=user, group=user) as process:
            try:
                _wait_for(process, port, errors)
                yield
            finally:
                process.kill()


def _wait_for(process: subprocess.Popen[bytes], port: int, errors: TextIO) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, (errors.seek(0), errors.read())
        assert time.monotonic() < deadline, "PgBouncer does not listen"
        time.sleep(0.01)


@asynccontextmanager
async def opened(url: Target | str, **settings: Any) -> AsyncIterator[Database]:
    """An open database."""
    database = Database.open(url, **settings)
    try:
        yield database
    finally:
        await database.close()
