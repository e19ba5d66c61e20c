"""`python main.py COMMAND`: admins, service accounts and their API keys."""

import contextlib
import io
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import main
from app import BASE_DIR
from tests.support import accounts, months_over_http, problems, raw_sql, records
from tests.support.accounts import PASSWORD, SECRET_KEY
from tests.support.programs import Ended

pytestmark = pytest.mark.any_database

Command = Callable[..., Ended]


@pytest.fixture
def command(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Carries out a command in this process, which is faster than one of its own."""
    monkeypatch.chdir(Path.cwd())  # main goes to its own directory; this comes back
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("LOG_LEVEL", "WARNING")

    def run(*arguments: str, password: str = "") -> Ended:
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        try:
            code = main.main(arguments)
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
        return Ended(code, *capsys.readouterr())

    return run


def done(ended: Ended) -> str:
    assert (ended.code, ended.err) == (0, "")
    return ended.out


def refused(ended: Ended) -> str:
    """Demands one line on standard error, and returns it."""
    assert (ended.code, ended.out) == (2, "")
    [line] = ended.err.splitlines()
    assert line.startswith("foundation-be: ")
    assert line.isprintable()
    return line


def over_http(url: str, work: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    return months_over_http.in_application(url, work)


async def token_of(client: httpx.AsyncClient, username: str, password: str) -> str:
    login = await client.post("/auth/login", json={"username": username, "password": password})
    assert login.status_code == 200, login.text
    token: str = login.json()["access_token"]
    return token


async def role_of(client: httpx.AsyncClient, username: str, password: str) -> str:
    headers = {"Authorization": f"Bearer {await token_of(client, username, password)}"}
    role: str = (await client.get("/auth/me", headers=headers)).json()["role"]
    return role


def test_an_admin_is_made_who_can_log_in(command: Command, database_url: str) -> None:
    said = done(command("create-admin", "root", "--email", "root@example.com", password=PASSWORD))
    assert "root" in said
    assert PASSWORD not in said
    assert over_http(database_url, lambda client: role_of(client, "root", PASSWORD)) == "admin"


def test_a_user_is_promoted_and_keeps_their_password(command: Command, database_url: str) -> None:
    over_http(database_url, lambda client: accounts.register(client, "ayu"))
    raw_sql.run(database_url, "UPDATE users SET is_active = false")
    for name, role in (("service", "service"), ("admin", "admin"), ("admin", "admin")):
        assert role in done(command(f"create-{name}", "ayu"))
        assert over_http(database_url, lambda client: role_of(client, "ayu", PASSWORD)) == role
    assert "admin already" in refused(command("create-service", "ayu"))
    assert over_http(database_url, lambda client: role_of(client, "ayu", PASSWORD)) == "admin"


def test_a_forgotten_password_is_set_and_ends_every_login(command: Command, database_url: str) -> None:
    new = "another horse, another battery"

    async def before(client: httpx.AsyncClient) -> tuple[dict[str, str], str]:
        ayu = await accounts.register(client, "ayu")
        admin = {"Authorization": f"Bearer {await token_of(client, 'root', PASSWORD)}"}
        reset = await client.post(f"/admin/users/{ayu.id}/reset-password", headers=admin)
        body = {"username": "ayu", "password": PASSWORD, "scope": "offline_access"}
        return (await client.post("/auth/login", json=body)).json(), reset.json()["token"]

    async def after(client: httpx.AsyncClient) -> None:
        headers = {"Authorization": f"Bearer {given['access_token']}"}
        problems.check(await client.get("/auth/me", headers=headers), 401)
        refreshed = await client.post("/auth/refresh", json={"refresh_token": given["refresh_token"]})
        problems.check(refreshed, 401)
        problems.check(await client.post("/auth/reset-password", json={"token": reset, "new_password": new}), 401)
        old = {"username": "ayu", "password": PASSWORD}
        problems.check(await client.post("/auth/login", json=old), 401)
        assert await role_of(client, "ayu", new) == "user"
        assert await role_of(client, "root", PASSWORD) == "admin", "no other login has ended"

    done(command("create-admin", "root", "--email", "root@example.com", password=PASSWORD))
    given, reset = over_http(database_url, before)
    said = done(command("set-password", "ayu", password=new))
    assert "ayu" in said
    assert new not in said
    over_http(database_url, after)


def test_a_password_that_cannot_be_set_changes_nothing(command: Command, database_url: str) -> None:
    over_http(database_url, lambda client: accounts.register(client, "ayu"))
    before = raw_sql.contents(database_url, "users")
    assert "there is no user nobody" in refused(command("set-password", "nobody", password=PASSWORD)).lower()
    for bad in ("short", "", "x" * 1025, "a\x00bcdefgh"):
        assert "password" in refused(command("set-password", "ayu", password=bad))
    assert "guessed" in refused(command("set-password", "ayu", password="password1"))
    assert "address" in refused(command("set-password", "ayu", password="Ayu@example.com"))
    for bad_usage in (["set-password"], ["set-password", "ayu", PASSWORD], ["set-password", "a\nb"]):
        refused(command(*bad_usage))
    assert raw_sql.contents(database_url, "users") == before


def test_a_name_of_an_old_database_is_meant_as_written(command: Command, database_url: str) -> None:
    over_http(database_url, lambda client: accounts.register(client, "ayu"))
    raw_sql.run(database_url, "UPDATE users SET username = '\uff21yu ', email = 'not an address', username_key = NULL")
    new = "another horse, another battery"
    done(command("set-password", "\uff21yu ", password=new))
    assert over_http(database_url, lambda client: role_of(client, "\uff21yu ", new)) == "user"


def test_a_service_account_reports_usage_with_its_key_alone(command: Command, database_url: str) -> None:
    done(command("create-service", "billing"))
    issued = command("issue-key", "billing", "--label", "of the first backend")
    assert issued.code == 0
    key = issued.out.strip()
    assert re.fullmatch(r"fbk_\d+_[\w-]{43}", key)
    assert "not shown again" in issued.err

    async def use(client: httpx.AsyncClient) -> None:
        ayu = await accounts.register(client, "ayu")
        headers = {"Authorization": f"Bearer {key}"}
        body = {"records": [records.record(ayu)]}
        answer = await client.post("/usage/records", json=body, headers=headers)
        assert answer.json() == {"recorded": 1, "duplicates": 0}
        for path in ("/auth/me", "/conversations"):
            problems.check(await client.get(path, headers=headers), 401)
        problems.check(await client.post("/auth/logout", headers=headers), 401)
        forged = [key[:-1], key + "x", key.upper(), "fbk_", "fbk_1", "fbk_1_", f"fbk_{2**31}_x", f"fbk_{10**30}_x"]
        for text in (*forged, key.replace("fbk_", "rt_"), key.replace("_1_", "_2_"), f"fbk_1_{'x' * 10_000}"):
            answer = await client.post("/usage/records", json=body, headers={"Authorization": f"Bearer {text}"})
            problems.check(answer, 401)

    over_http(database_url, use)
    stored = str(raw_sql.contents(database_url, "api_keys"))
    assert key not in stored
    assert key[:-37] in stored, "its beginning is, to tell it from others"


@pytest.mark.parametrize("ending", ["revoke-key", "demoted", "deactivated", "deleted"])
def test_a_key_ends_when_it_is_revoked_and_with_its_user(command: Command, database_url: str, ending: str) -> None:
    done(command("create-service", "billing"))
    keys = [command("issue-key", "billing").out.strip() for _ in range(2)]
    if ending == "revoke-key":
        done(command("revoke-key", "1"))
        refused(command("revoke-key", "1"))
    elif ending == "deleted":
        raw_sql.run(database_url, "DELETE FROM api_keys", "DELETE FROM users")
    else:
        change = {"demoted": "role = 'user'", "deactivated": "is_active = false"}[ending]
        raw_sql.run(database_url, f"UPDATE users SET {change}")

    async def use(client: httpx.AsyncClient) -> list[int]:
        ayu = await accounts.register(client, "ayu")
        body = {"records": [records.record(ayu)]}
        return [
            (await client.post("/usage/records", json=body, headers={"Authorization": f"Bearer {key}"})).status_code
            for key in keys
        ]

    expected = {"revoke-key": [401, 200], "demoted": [403, 403]}.get(ending, [401, 401])
    assert over_http(database_url, use) == expected


def test_keys_are_listed_without_what_is_secret(command: Command) -> None:
    assert done(command("list-keys")) == ""
    done(command("create-service", "billing"))
    keys = [command("issue-key", "billing", "--label", label).out.strip() for label in ("one", "two")]
    done(command("revoke-key", "2"))
    first, second = done(command("list-keys")).splitlines()
    assert first.split("\t")[:3] == ["1", "billing", f"{keys[0][:-37]}…"]
    assert first.endswith("\tgood\tone")
    assert re.search(r"\trevoked \d{4}-\d\d-\d\d\ttwo$", second)
    assert not any(key in first + second for key in keys)


def test_what_cannot_be_is_said_in_one_line_and_changes_nothing(command: Command, database_url: str) -> None:
    assert "--email" in refused(command("create-admin", "root"))
    root = ("create-admin", "root", "--email")
    assert "password" in refused(command(*root, "root@example.com", password="short"))
    assert "guessed" in refused(command(*root, "root@example.com", password="password1"))
    assert "email" in refused(command(*root, "nonsense", password=PASSWORD))
    assert "username" in refused(command("create-admin", " root", "--email", "a@example.com", password=PASSWORD))
    for bad in ("a\x00b", "a\nb", "a\udc80b", "x" * 65):
        refused(command("create-admin", bad, "--email", "a@example.com", password=PASSWORD))
    assert "nobody" in refused(command("issue-key", "nobody"))
    for bad in ("0", "7", "x", "-1", "1" * 30, "\u0661", ""):
        refused(command("revoke-key", bad))
    for bad_usage in (["create-admin"], ["frobnicate"], ["issue-key"], ["--port", "1"], ["list-keys", "x"], [""]):
        refused(command(*bad_usage))
    assert raw_sql.value(database_url, "SELECT count(*) FROM users") == 0
    done(command(*root, "root@example.com", password=PASSWORD))
    raw_sql.run(database_url, "UPDATE users SET role = 'user'")
    assert "role" in refused(command("issue-key", "root"))
    assert "taken" in refused(command("create-service", "ROOT"))


def test_help_is_given(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path.cwd())
    with pytest.raises(SystemExit) as end:
        main.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    names = ("create-admin", "create-service", "set-password", "issue-key", "list-keys", "revoke-key")
    assert all(name in said for name in names)


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.long
def test_a_terminal_asks_twice_for_a_password_and_hides_it(database_url: str, tmp_path: Path) -> None:
    for command in (["create-admin", "root", "--email", "root@example.com"], ["set-password", "root"]):
        for again, code in (("something else", 2), (PASSWORD, 0)):
            ended, shown = on_terminal(database_url, tmp_path, command, [f"{PASSWORD}\n", f"{again}\n"])
            assert ended == code
            assert PASSWORD not in shown
    assert raw_sql.value(database_url, "SELECT count(*) FROM users WHERE role = 'admin'") == 1


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.long
def test_no_password_at_all_is_said_in_one_line(database_url: str, tmp_path: Path) -> None:
    ended, shown = on_terminal(database_url, tmp_path, ["create-admin", "x", "--email", "x@example.com"], ["\x04"])
    assert ended == 2
    assert "foundation-be: no password was given" in shown
    assert "Traceback" not in shown
    settings = os.environ | {"DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY, "LOG_LEVEL": "WARNING"}
    for redirection in ("<&-", "</dev/null"):
        line = f"exec {sys.executable} {BASE_DIR / 'main.py'} create-admin x --email x@example.com {redirection}"
        closed = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=settings, capture_output=True, text=True)
        assert (closed.returncode, closed.stderr) == (2, "foundation-be: no password was given\n")


def on_terminal(url: str, directory: Path, arguments: list[str], lines: list[str]) -> tuple[int, str]:
    """Types lines at a command, each when it asks; answers with the exit code and what was to be seen."""
    ours, theirs = pty.openpty()
    command = [sys.executable, str(BASE_DIR / "main.py"), *arguments]
    settings = os.environ | {"DATABASE_URL": url, "SECRET_KEY": SECRET_KEY, "LOG_LEVEL": "WARNING"}
    streams: Any = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command, cwd=directory, env=settings, start_new_session=True, **streams) as process:
        os.close(theirs)
        shown = b""
        for line in lines:
            while not shown.endswith(b": "):
                shown += os.read(ours, 1024)
            os.write(ours, line.encode())
            shown += b"\n"
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(ours, 1024):
                shown += data
    os.close(ours)
    return process.returncode, shown.decode()
