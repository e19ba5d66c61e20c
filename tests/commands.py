"""The product's commands: as real processes, and the migration command within this one, which is faster."""

import contextlib
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import migrate_token_data
from app.settings import BASE_DIR, Settings
from tests.accounts import SECRET_KEY

DEADLINE_SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

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


def environment(**settings: str) -> dict[str, str]:
    """The environment of a process that sees these settings and none of this machine's."""
    mine = {name.upper() for name in Settings.model_fields}
    kept = {name: value for name, value in os.environ.items() if name not in mine}
    return kept | {"SECRET_KEY": SECRET_KEY, "LOG_LEVEL": "INFO", "USAGE_TIMEZONE": "UTC"} | settings


def start(command: Sequence[str], directory: Path, **settings: str) -> subprocess.Popen[str]:
    """Starts one of the scripts from some other directory."""
    script = BASE_DIR / command[0]
    return subprocess.Popen(
        [sys.executable, str(script), *command[1:]],
        cwd=directory,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Waits for its end."""
    try:
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return Outcome(process.returncode, out, err)


def run(command: Sequence[str], directory: Path, **settings: str) -> Outcome:
    """Runs one of the scripts, as a process, to its end."""
    return finish(start(command, directory, **settings))


@contextlib.contextmanager
def server(url: str, directory: Path, **settings: str) -> Iterator[str]:
    """`python main.py` on a port of its own, ready; gives its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    process = start(["main.py"], directory, DATABASE_URL=url, HOST="127.0.0.1", PORT=str(port), **settings)
    try:
        _wait_until_ready(process, address)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        outcome = finish(process)
    assert "Traceback" not in outcome.err, outcome.err


def _wait_until_ready(process: subprocess.Popen[str], address: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        assert process.poll() is None, finish(process).err
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/ready", trust_env=False).status_code == 200:
                return
        assert time.monotonic() < deadline, "the server did not become ready"
        time.sleep(0.05)


def free_port() -> int:
    """A port on which nobody listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
