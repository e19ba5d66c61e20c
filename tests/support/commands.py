"""The product's commands: as real processes, and the migration command within this one, which is faster."""

import contextlib
import io
import json
import logging
import secrets
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import migrate_token_data
from app import BASE_DIR
from tests.support import programs
from tests.support.accounts import SECRET_KEY

_SETTINGS = {"SECRET_KEY": SECRET_KEY, "HOST": "127.0.0.1", "USAGE_TIMEZONE": "UTC", "LOG_LEVEL": "INFO"}


class Outcome(programs.Ended):
    """How a command ended, and what it said."""

    @property
    def summary(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        assert self.code in (0, 1), self.err
        summary = json.loads(self.out)
        assert isinstance(summary, dict)
        return summary


def migrate(url: str, *flags: str) -> Outcome:
    """Runs the migration command in this process; it reads the rest of its settings from this one's environment."""
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = migrate_token_data.main(["--database-url", url, *flags])
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return Outcome(code, out.getvalue(), err.getvalue())


def start(command: Sequence[str], directory: Path, **settings: str) -> subprocess.Popen[str]:
    """Starts one of the scripts, as a process, from some other directory."""
    return programs.start([BASE_DIR / command[0], *command[1:]], directory, _SETTINGS | settings)


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Waits for its end."""
    ended = programs.finish(process)
    return Outcome(ended.code, ended.out, ended.err)


def run(command: Sequence[str], directory: Path, **settings: str) -> Outcome:
    """Runs one of the scripts, as a process, to its end."""
    return finish(start(command, directory, **settings))


def server(url: str, directory: Path, **settings: str) -> contextlib.AbstractContextManager[str]:
    """`python main.py` on a port of its own, ready; gives its address."""
    settings = _SETTINGS | {"DATABASE_URL": url} | settings
    return programs.serving(BASE_DIR / "main.py", directory, free_port(), settings)


def free_port() -> int:
    """A free port below the range that Linux uses for outgoing connections.

    Tests open thousands of connections, one of which could take the port before the server listens.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
