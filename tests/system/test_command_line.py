"""`python main.py`, as a real process called from another directory."""

import logging
import re
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import main
from app import BASE_DIR, __version__
from tests.conftest import UrlOf
from tests.support import commands, programs
from tests.support.accounts import PASSWORD, SECRET_KEY

KEY = {"SECRET_KEY": SECRET_KEY}


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product in a directory of its own, for tests that leave nothing in it."""
    return programs.install(tmp_path_factory.mktemp("installed") / "foundation-be")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The current directory of whoever calls."""
    path = tmp_path / "elsewhere"
    path.mkdir()
    return path


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def refused(project: Path, elsewhere: Path, settings: dict[str, str]) -> str:
    """Demands that the server does not start and says why in one line, and returns it."""
    ended = programs.run([project / "main.py"], elsewhere, settings)
    assert ended.code == 2, ended.err
    assert ended.out == ""
    [line] = ended.err.splitlines()
    assert "Traceback" not in line
    assert "hunter2" not in line
    assert list(elsewhere.iterdir()) == []
    return line


def test_bad_settings_are_told_all_at_once_in_one_line(project: Path, elsewhere: Path) -> None:
    bad = {"DATABASE_URL": "mysql://user:hunter2@host/name", "SECRET_KEY": "hunter2", "PORT": "http", "WORKERS": "0"}
    bad |= {"USAGE_TIMEZONE": "Mars/Olympus", "LOG_LEVEL": "loud", "LOG_FORMAT": "xml"}
    line = refused(project, elsewhere, bad)
    assert all(f"{name}: " in line for name in bad)
    assert "Mars/Olympus" in line


@pytest.mark.parametrize("path", ["absent/app.db", "file/app.db"])
@pytest.mark.long
def test_a_directory_that_is_not_there_is_told_in_one_line(project: Path, elsewhere: Path, path: str) -> None:
    (elsewhere.parent / "file").write_text("not a directory", encoding="ascii")
    line = refused(project, elsewhere, KEY | {"DATABASE_URL": f"sqlite:///{elsewhere.parent / path}"})
    assert str(elsewhere.parent / path) in line


@pytest.mark.long
def test_a_database_server_that_is_not_there_is_told_in_one_line(project: Path, elsewhere: Path) -> None:
    url = f"postgresql://user:hunter2@127.0.0.1:{commands.free_port()}/name"
    line = refused(project, elsewhere, KEY | {"DATABASE_URL": url})
    assert "postgresql://" in line


@pytest.mark.long
def test_a_port_that_is_taken_is_told_in_one_line(project: Path, elsewhere: Path, taken_port: int) -> None:
    settings = KEY | {"DATABASE_URL": f"sqlite:///{elsewhere.parent / 'app.db'}", "LOG_LEVEL": "WARNING"}
    line = refused(project, elsewhere, settings | {"PORT": str(taken_port)})
    assert f"127.0.0.1:{taken_port}" in line


@pytest.mark.long
def test_it_serves_from_anywhere_and_keeps_everything_beside_main(tmp_path: Path, elsewhere: Path) -> None:
    project = programs.install(tmp_path / "project")
    before = set(project.iterdir())
    account = {"username": "ayu", "email": "ayu@example.com", "password": PASSWORD}
    with programs.serving(project / "main.py", elsewhere, commands.free_port(), {}) as address:
        assert httpx.post(f"{address}/auth/register", json=account).status_code == 201
        token = httpx.post(f"{address}/auth/login", json=account).json()["access_token"]
    with programs.serving(project / "main.py", elsewhere, commands.free_port(), {"WORKERS": "2"}) as address:
        for _ in range(4):
            me = httpx.get(f"{address}/auth/me", headers={"Authorization": f"Bearer {token}"})
            assert "server" not in me.headers
            assert me.json()["username"] == "ayu", "the key and the data are still there, in each worker"
    made = {path.name for path in set(project.iterdir()) - before} - {"__pycache__"}
    assert made - {"app.db-wal", "app.db-shm"} == {"app.db", "secret.key"}
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("script", ["main.py", "migrate_token_data.py"])
@pytest.mark.long
def test_a_script_says_its_version(project: Path, elsewhere: Path, script: str) -> None:
    ended = programs.run([project / script, "--version"], elsewhere, {"PORT": "http"})
    assert (ended.code, ended.out, ended.err) == (0, f"{__version__}\n", "")
    assert not (project / "pyproject.toml").exists(), "as in the image"


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((BASE_DIR / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "app.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert f"## {__version__} " in (BASE_DIR / "CHANGELOG.md").read_text(encoding="utf-8")


def refused_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str) -> str:
    """Demands that `main` ends with one line, without the cost of a process of its own, and returns the line."""
    monkeypatch.chdir(Path.cwd())  # main goes to its own directory; this comes back
    for name, value in (KEY | {"DATABASE_URL": url}).items():
        monkeypatch.setenv(name, value)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        assert main.main() == 2
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    assert "hunter2" not in line
    return line


@pytest.mark.parametrize("path", ["/proc/app.db", "{}", "{}/a\nb/app.db", "{}/garbage"])
def test_a_path_that_cannot_be_a_database_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    (tmp_path / "garbage").write_text("not a database, but long enough to be taken for one " * 99, encoding="ascii")
    (tmp_path / "garbage").chmod(0o600)
    line = refused_here(monkeypatch, capsys, f"sqlite:///{path.format(tmp_path)}")
    assert path.format(tmp_path).partition("\n")[0] in line
    assert (tmp_path / "garbage").read_text(encoding="ascii").startswith("not a database")


def test_a_postgresql_that_refuses_is_told_in_one_line(
    postgresql: UrlOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [
        postgresql("no_such_database").replace("postgres:@", "postgres:hunter2@"),
        postgresql("postgres").replace("postgres:@", "nobody:hunter2@"),
        f"postgresql://user:hunter2@/name?host={tmp_path}",
        "postgresql://user:hunter2@127.0.0.1:1/name?sslmode=hunter3",
    ]
    for url in wrong:
        assert "hunter2" in url
        assert "postgresql://" in refused_here(monkeypatch, capsys, url)
