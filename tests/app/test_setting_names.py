"""What the server says at its start of names that it does not read, and of a model that is not configured."""

import json
from pathlib import Path

import httpx
import pytest

from app import setting_names
from app.settings import Settings
from tests.support import commands, programs
from tests.support.accounts import SECRET_KEY

SECRET = "hunter2-of-the-operator"
# What is in the environment of shells, containers, and services of continuous integration.
ORDINARY = (
    *(
        "HOME",
        "PATH",
        "USER",
        "SHELL",
        "LANG",
        "PWD",
        "HOSTNAME",
        "TERM",
        "EDITOR",
        "LOGNAME",
        "TZ",
        "DISPLAY",
        "SHLVL",
    ),
    *(
        "XDG_RUNTIME_DIR",
        "SSH_AUTH_SOCK",
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "PORTS",
        "GPORT",
        "XHOST",
        "HOSTS",
        "DEBUG",
        "CI",
    ),
    *("DB_HOST", "DB_PORT", "DB_USER", "DATABASE_HOST", "DATABASE_NAME", "TEST_DATABASE_URL", "REDIS_URL", "MODEL"),
    *("KUBERNETES_PORT", "KUBERNETES_SERVICE_HOST", "POSTGRES_PORT_5432_TCP", "FOUNDATION_BE_PORT", "ALGORITHM"),
    *("GITHUB_TOKEN", "GITHUB_WORKFLOW", "RUNNER_OS", "LOG_FILE", "LOG_DIR", "SECRET", "API_KEY", "SECRET_KEY_BASE"),
)


@pytest.fixture(autouse=True)
def no_model_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes away what the machine of the tests may have in its environment."""
    for name in setting_names.OF_MODELS:
        monkeypatch.delenv(name, raising=False)


def misread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, env_file: str = "", **environment: str) -> list[str]:
    """The warnings about an `.env` of this content and these names in the process environment, no value among them."""
    path = tmp_path / ".env"
    path.write_text(env_file, encoding="utf-8")
    monkeypatch.setitem(Settings.model_config, "env_file", path)
    lines = setting_names.misread(Settings.load(), environment)
    assert SECRET not in "".join(lines)
    assert all(line.isprintable() for line in lines)
    return lines


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DATABSE_URL", "DATABASE_URL"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("databse_url", "DATABASE_URL"),
        ("SECRETKEY", "SECRET_KEY"),
        ("LLM_BASEURL", "LLM_BASE_URL"),
        ("PROT", "PORT"),
        ("CORS_ORIGIN", "CORS_ORIGINS"),
        ("ACCESS_TOKEN_EXPIRE_HOURS", "ACCESS_TOKEN_EXPIRE_MINUTES"),
        ("export WORKER", "WORKERS"),
    ],
)
def test_a_misspelt_name_in_env_is_named_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, meant: str
) -> None:
    [line] = misread(monkeypatch, tmp_path, f"{name}={SECRET}\nPORT=8001\n")
    assert name.removeprefix("export ").upper() in line
    assert f"is {meant} meant" in line


OLD = {
    "JWT_SECRET_KEY": "SECRET_KEY",
    "JWT_SECRET": "SECRET_KEY",
    "ALLOWED_ORIGINS": "CORS_ORIGINS",
    "BACKEND_CORS_ORIGINS": "CORS_ORIGINS",
    "DB_URL": "DATABASE_URL",
    "SQLALCHEMY_DATABASE_URL": "DATABASE_URL",
    "ALGORITHM": "HS256",
}


@pytest.mark.parametrize(("name", "instead"), OLD.items())
def test_an_old_name_is_named_with_what_replaces_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, instead: str
) -> None:
    [line] = misread(monkeypatch, tmp_path, f"{name}={SECRET}\n")
    assert name in line
    assert instead in line
    if name != "ALGORITHM":  # many programs have one
        [line] = misread(monkeypatch, tmp_path, **{name: SECRET})
        assert name in line
        assert instead in line


def test_an_old_name_beside_the_new_one_matters_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    both = f"JWT_SECRET_KEY={SECRET}\nSECRET_KEY={SECRET_KEY}\n"
    assert misread(monkeypatch, tmp_path, both) == []
    monkeypatch.setenv("SECRET_KEY", SECRET_KEY)
    assert misread(monkeypatch, tmp_path, JWT_SECRET_KEY=SECRET) == []


def test_ordinary_names_of_a_machine_are_never_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert misread(monkeypatch, tmp_path, **dict.fromkeys(ORDINARY, SECRET)) == []


def test_a_name_of_the_process_that_is_all_but_right_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    [line] = misread(monkeypatch, tmp_path, DATABSE_URL=SECRET, DATABASE_USER=SECRET)
    assert "DATABSE_URL" in line
    assert "DATABASE_URL" in line
    monkeypatch.setenv("DATABASE_URL", "sqlite:///app.db")
    assert misread(monkeypatch, tmp_path, DATABASE_URL2=SECRET) == [], "the right one is there too"


def test_other_names_in_env_are_named_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = f"SMTP_HOST={SECRET}\nREDIS_URL=x\nPOSTGRES_PASSWORD={SECRET}\nCOMPOSE_PROFILES=x\nPORT=1\nEMPTY\n"
    assert misread(monkeypatch, tmp_path, lines) == []
    line = setting_names.foreign()
    assert line is not None
    assert "REDIS_URL, SMTP_HOST" in line
    assert "POSTGRES" not in line
    assert SECRET not in line
    assert misread(monkeypatch, tmp_path, "PORT=1\n") == []
    assert setting_names.foreign() is None


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("OPENAI_API_KEY", "LLM_API_KEY"),
        ("OPENAI_BASE_URL", "LLM_BASE_URL"),
        ("OPENAI_API_BASE", "LLM_BASE_URL"),
        ("OPENAI_MODEL", "LLM_MODEL"),
        ("OPENROUTER_API_KEY", "LLM_API_KEY"),
        ("OPENROUTER_BASE_URL", "LLM_BASE_URL"),
        ("ANTHROPIC_API_KEY", "LLM_API_KEY"),
    ],
)
def test_where_no_model_is_set_the_keys_of_others_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, instead: str
) -> None:
    [first, second] = setting_names.no_model(Settings.load(), {name: SECRET})
    assert all(word in first for word in ("offline", "LLM_BASE_URL", "LLM_API_KEY", "LLM_MODEL"))
    assert name in second
    assert instead in second
    assert SECRET not in second
    assert misread(monkeypatch, tmp_path, f"{name}={SECRET}\n") == [], "said once, with the rest"
    assert setting_names.no_model(Settings.load(), {})[1:] == [second]
    monkeypatch.setenv("LLM_BASE_URL", "https://api.example.com/v1")
    keyless = setting_names.no_model(Settings.load(), {name: SECRET})
    assert keyless == ([second] if "KEY" in name else []), "the move from the old names is half done"
    monkeypatch.setenv("LLM_API_KEY", SECRET)
    assert setting_names.no_model(Settings.load(), {name: SECRET}) == []
    assert misread(monkeypatch, tmp_path, f"{name}={SECRET}\n") == []


@pytest.mark.long
def test_the_server_says_so_when_it_starts(tmp_path: Path) -> None:
    project = programs.install(tmp_path / "project")
    lines = [f"DATABASE_URL=sqlite:///{tmp_path / 'app.db'}", f"SECRET_KEY={SECRET_KEY}", f"LOG_LEVL={SECRET}"]
    lines += [f"ALGORITHM={SECRET}", f"SMTP_HOST={SECRET}", "POSTGRES_PASSWORD=x", "LOG_FORMAT=json"]
    lines += ["FORWARDED_ALLOW_IPS=192.0.2.0/24"]
    (project / ".env").write_text("\n".join(lines), encoding="utf-8")
    (project / ".env").chmod(0o600)
    settings = {"OPENAI_API_KEY": SECRET, "WORKERS": "2"}
    with programs.started(project / "main.py", tmp_path, commands.free_port(), settings) as (address, process):
        httpx.get(f"{address}/health", headers={"X-Forwarded-For": "203.0.113.7"}, trust_env=False)
        process.terminate()
        ended = programs.finish(process)
    assert (ended.code, ended.out) == (0, "")
    said = [json.loads(line) for line in ended.err.splitlines()]
    warned = [line["message"] for line in said if line["level"] == "WARNING"]
    said_once = ("LOG_LEVL", "ALGORITHM", "offline", "OPENAI_API_KEY")
    assert [sum(word in message for message in warned) for word in said_once] == [1] * len(warned), warned
    assert [line["level"] for line in said if "SMTP_HOST" in line["message"]] == ["INFO"]
    assert {line["client"] for line in said if line["logger"] == "access"} == {"127.0.0.1"}, "as .env has it"
    assert SECRET not in ended.err


@pytest.mark.parametrize("script", ["main.py", "migrate_token_data.py"])
@pytest.mark.long
def test_a_misspelt_database_is_named_by_commands_too(tmp_path: Path, script: str) -> None:
    project = programs.install(tmp_path / "project")
    (project / ".env").write_text(f"DATABSE_URL=sqlite:///{SECRET}\n", encoding="utf-8")
    ended = programs.run([project / script, *(["list-keys"] if script == "main.py" else [])], tmp_path, {})
    assert ended.code == 0, ended.err
    [line] = [line for line in ended.err.splitlines() if "DATABSE_URL" in line]
    assert "DATABASE_URL" in line
    assert SECRET not in ended.err
