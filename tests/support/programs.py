"""The product as an operator has it: a directory of its own, and real processes started from elsewhere."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import BASE_DIR
from app.settings import Settings
from tests.support import preloaded

SOURCES = (
    "main.py",
    "account_commands.py",
    "backfill_flags.py",
    "migrate_token_data.py",
    ".env.example",
    "app",
    "models",
    "services",
    "routers",
    "alembic",
)
DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class Ended:
    """How a process ended and what it said."""

    code: int
    out: str
    err: str


def install(directory: Path) -> Path:
    """Copies the product's source files to a new directory, with their byte code, which takes seconds to compile."""
    directory.mkdir()
    unfinished = shutil.ignore_patterns("*.pyc.*")  # another process may be writing it
    for name in SOURCES:
        if (BASE_DIR / name).is_dir():
            shutil.copytree(BASE_DIR / name, directory / name, ignore=unfinished)
        else:
            shutil.copy(BASE_DIR / name, directory / name)
    return directory


def start(arguments: Sequence[str | Path], elsewhere: Path, settings: dict[str, str]) -> subprocess.Popen[str]:
    """Starts a script, or other Python, in another directory, with these settings and none of this machine's."""
    names = {name.upper() for name in Settings.model_fields}
    environment = {name: value for name, value in os.environ.items() if name.upper() not in names}
    program = preloaded.Popen if str(arguments[0]).endswith(".py") else subprocess.Popen
    return program(
        [sys.executable, *arguments],
        cwd=elsewhere,
        env=environment | {"PYTHONWARNINGS": "default::ResourceWarning"} | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Ended:
    """Waits for its end."""
    try:
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        process.kill()
    return Ended(process.returncode, out, err)


def run(arguments: Sequence[str | Path], elsewhere: Path, settings: dict[str, str]) -> Ended:
    """Runs Python in another directory to its end."""
    return finish(start(arguments, elsewhere, settings))


@contextlib.contextmanager
def started(
    main: Path, elsewhere: Path, port: int, settings: dict[str, str]
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`python main.py`, ready on this port: its address, and the process, which is killed at the end."""
    address = f"http://127.0.0.1:{port}"
    process = start([main], elsewhere, {"PORT": str(port), **settings})
    try:
        wait_until_ready(address, process)
        yield address, process
    finally:
        process.kill()


@contextlib.contextmanager
def serving(main: Path, elsewhere: Path, port: int, settings: dict[str, str]) -> Iterator[str]:
    """`python main.py`, ready on this port; gives its address. It must end well, and say nothing on standard output."""
    with started(main, elsewhere, port, settings) as (address, process):
        try:
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            ended = finish(process)
    assert ended.code == 0, ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err, ended.err


def wait_until_ready(address: str, process: subprocess.Popen[Any]) -> None:
    """Waits until a server answers `/ready`; fails if its process ends."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not _is_ready(address):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the server did not become ready"
        time.sleep(0.05)


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ready", timeout=DEADLINE_SECONDS) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
