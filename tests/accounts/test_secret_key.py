"""`secret.key`: made at the first start, kept, readable by its owner alone."""

import os
import stat
from pathlib import Path

import pytest
from sqlalchemy import text

from app import settings
from app.db import migrations, urls
from app.db.database import Database
from app.errors import ConfigurationError
from app.settings import Settings
from tests.support import programs
from tests.support.accounts import SECRET_KEY

SHOW = """
import os, sys
os.umask(0)
sys.path.insert(0, sys.argv[1])
from app.settings import Settings
print(Settings.load().signing_key())
"""


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the key is kept."""
    path = tmp_path / "keys" / "secret.key"
    path.parent.mkdir()
    monkeypatch.setattr(settings, "SECRET_KEY_FILE", path)
    return path


def test_of_processes_that_start_at_once_all_get_the_same_key(tmp_path: Path) -> None:
    project = programs.install(tmp_path / "project")
    before = set(project.iterdir())
    processes = [programs.start(["-c", SHOW, project], tmp_path, {}) for _ in range(4)]
    ends = [programs.finish(process) for process in processes]
    assert [ended.code for ended in ends] == [0] * 4, ends[0].err
    [key] = {ended.out.strip() for ended in ends}
    assert len(key) >= 32
    path = project / "secret.key"
    assert path.read_text(encoding="ascii").strip() == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(project.iterdir()) - before == {path}, "nothing else is left behind"


def test_the_key_is_kept_and_another_place_has_another(key_file: Path, tmp_path: Path) -> None:
    first = Settings.load().signing_key()
    made = key_file.stat()
    assert stat.S_IMODE(made.st_mode) == 0o600
    assert Settings.load().signing_key() == first
    assert key_file.stat().st_mtime_ns == made.st_mtime_ns
    key_file.unlink()
    assert Settings.load().signing_key() != first
    assert os.listdir(key_file.parent) == ["secret.key"]


def test_a_key_in_the_environment_wins_and_makes_no_file(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", SECRET_KEY)
    assert Settings.load().signing_key() == SECRET_KEY
    assert not key_file.exists()


@pytest.mark.parametrize("content", [b"", b"\n", b"short\n", b" " * 40, b"\xff" * 40, "\u00e4".encode() * 40])
def test_a_file_without_a_good_key_is_refused_and_left_as_it_is(key_file: Path, content: bytes) -> None:
    key_file.write_bytes(content)
    with pytest.raises(ConfigurationError) as refusal:
        Settings.load().signing_key()
    assert str(refusal.value).startswith("SECRET_KEY: ")
    assert str(refusal.value).isprintable()
    assert key_file.read_bytes() == content


def test_an_impossible_key_file_is_reported_in_one_line(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key_file.mkdir()
    below_a_file = key_file.parent / "file" / "secret.key"
    below_a_file.parent.write_text("not a directory", encoding="ascii")
    for path in (key_file, below_a_file, key_file.parent / "absent" / "secret.key", Path("/proc/secret.key")):
        monkeypatch.setattr(settings, "SECRET_KEY_FILE", path)
        with pytest.raises(ConfigurationError) as refusal:
            Settings.load().signing_key()
        assert str(path) in str(refusal.value)
        assert str(refusal.value).isprintable()


def test_each_readable_secret_file_is_reported_in_one_line(
    key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "BASE_DIR", tmp_path)
    assert settings.exposed_files() == []
    Settings.load().signing_key()
    (tmp_path / ".env").write_text("PORT=1\n", encoding="utf-8")
    (tmp_path / ".env").chmod(0o600)
    assert settings.exposed_files() == []
    for mode in (0o640, 0o604, 0o620, 0o660):
        (tmp_path / ".env").chmod(mode)
        [line] = settings.exposed_files()
        assert f"chmod 600 {tmp_path / '.env'}" in line
        assert line.isprintable()
    key_file.chmod(0o644)
    assert len(settings.exposed_files()) == 2


def modes_of(directory: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.glob("app.db*")}


async def test_a_new_sqlite_database_is_its_owners_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        url = f"sqlite:///{tmp_path / 'app.db'}"
        await migrations.upgrade(url)
        database = Database.open(url)
        async with database.sessions.begin() as session:
            await session.execute(text("SELECT 1"))
            modes = modes_of(tmp_path)
        await database.close()
    finally:
        os.umask(mask)
    assert modes == {"app.db": 0o600, "app.db-wal": 0o600, "app.db-shm": 0o600}
    files = urls.files(url)
    assert settings.exposed(*files) == []
    for file in files:
        file.touch()
        file.chmod(0o640)
        assert any(f"chmod 600 {file}" in line for line in settings.exposed(*files))
    assert urls.files("postgresql://user@host/name") == []


@pytest.mark.long
def test_the_server_warns_of_them_when_it_starts(tmp_path: Path) -> None:
    project = programs.install(tmp_path / "project")
    (project / ".env").write_text(f"DATABASE_URL=sqlite:///{tmp_path}/no/such/place.db\n", encoding="utf-8")
    (project / ".env").chmod(0o644)
    ended = programs.run([project / "main.py"], tmp_path, {"SECRET_KEY": SECRET_KEY})
    assert ended.code == 2
    [warning] = [line for line in ended.err.splitlines() if "WARNING" in line]
    assert f"{project / '.env'} can be read or changed by other users" in warning
