"""The migration guide is true: its commands are run on an old database, in both languages' order."""

import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import BASE_DIR
from tests.support import commands, months_over_http, old_databases, programs
from tests.support.accounts import SECRET_KEY
from tests.support.old_databases import OldDatabase

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
GUIDES = ("migration.md", "migration.id.md")
USER = old_databases.USERS[0]
SERVER = ".venv/bin/python main.py"
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "*.pyc.*", "*.db*", ".env", "secret.key", ".mypy_cache", "tests")


def blocks(guide: str) -> list[tuple[str, str]]:
    return BLOCK.findall((BASE_DIR / "docs" / guide).read_text(encoding="utf-8"))


def test_both_languages_have_the_same_commands_and_sections() -> None:
    english, indonesian = (blocks(guide) for guide in GUIDES)
    assert english == indonesian
    levels = [
        re.findall(r"^#+", (BASE_DIR / "docs" / guide).read_text(encoding="utf-8"), re.MULTILINE) for guide in GUIDES
    ]
    assert levels[0] == levels[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, installed, with an old database."""
    directory = tmp_path / "project"
    shutil.copytree(BASE_DIR, directory, ignore=NOT_COPIED)
    (directory / ".venv").symlink_to(BASE_DIR / ".venv")
    return directory


@pytest.fixture
def kind() -> str:
    """The guide's own: SQLite."""
    return "sqlite"


@pytest.fixture
def old(project: Path) -> OldDatabase:
    """The old database in the copy."""
    return old_databases.build(f"sqlite:///{project / 'app.db'}", 3)


class Walk:
    """Runs the guide's blocks as a reader would."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.port = commands.free_port()
        self.environment = {"PATH": "/usr/bin:/bin", "PORT": str(self.port), "SECRET_KEY": SECRET_KEY}
        self.answers: list[str] = []

    def query(self, statement: str) -> None:
        with sqlite3.connect(self.project / "app.db") as connection:
            assert connection.execute(statement).fetchall()

    def run(self, command: str) -> None:
        command = command.replace("localhost:8000", f"127.0.0.1:{self.port}")
        command = command.replace('"ayu"', f'"{old_databases.username(USER)}"')
        shell = ["bash", "-euo", "pipefail", "-c", command]
        done = subprocess.run(
            shell, cwd=self.project, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        self.answers.append(done.stdout)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        with subprocess.Popen(SERVER.split(), cwd=self.project, env=self.environment) as server:
            try:
                programs.wait_until_ready(f"http://127.0.0.1:{self.port}", server)
                yield
            finally:
                server.terminate()


@pytest.mark.long
def test_the_commands_take_over_an_old_database(project: Path, old: OldDatabase) -> None:
    walk, shown = Walk(project), {}
    with contextlib.ExitStack() as stack:
        for language, text in blocks(GUIDES[0]):
            if language == "json":
                shown = json.loads(text)["token_stats"]
                found = json.loads(walk.answers[-1])["token_stats"]
            elif language == "sql":
                walk.query(text)
            elif text.strip() == SERVER:
                stack.enter_context(walk.serving())
            else:
                walk.run(text)
    assert found.keys() == shown.keys()
    assert all(month.keys() == shown["monthly_stats"][0].keys() for month in found["monthly_stats"])
    assert {(USER, month["month"]) for month in found["monthly_stats"]} <= old.months().keys()
    assert months_over_http.from_database(old.url) == months_over_http.expected(old)
    assert (project / "app.backup.db").exists()
