"""A real PgBouncer before a PostgreSQL of the tests, with its default settings but for those named here."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from app.db.database import Database
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
"""


@contextlib.contextmanager
def running(url: str, mode: str, size: int = 20) -> Iterator[str]:
    """PgBouncer before the server of this URL; gives the URL of the same database through it.

    Args:
        url: of a database behind a Unix socket, as those of the tests are.
        mode: when a client gives its connection to the server back: `session`, `transaction` or `statement`.
        size: connections to the server for one database, at most.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("PgBouncer is not installed (apt-get install pgbouncer)")
    parts = urlsplit(url)
    host, port = parse_qs(parts.query)["host"][0], commands.free_port()
    user = Path(host).owner() if os.geteuid() == 0 else None  # PgBouncer does not run as root
    with tempfile.TemporaryDirectory() as name:
        settings, log = Path(name, "pgbouncer.ini"), Path(name, "log")
        settings.write_text(_SETTINGS.format(host=host, user=parts.username, port=port, mode=mode, size=size))
        Path(name).chmod(0o755)
        command = [program, "--quiet", str(settings)]
        with log.open("w") as errors, subprocess.Popen(command, stderr=errors, user=user, group=user) as process:
            try:
                _wait_for(process, port, log)
                yield f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}"
            finally:
                process.kill()


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, "PgBouncer does not listen"
        time.sleep(0.01)


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[Database]:
    """An open database."""
    database = Database.open(url, **settings)
    try:
        yield database
    finally:
        await database.close()
