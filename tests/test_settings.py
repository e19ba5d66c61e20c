"""Settings: their names and defaults, where they are read, and what is said of bad ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from app.errors import ConfigurationError
from app.settings import BASE_DIR, Settings
from tests import programs

DEFAULTS = {
    "DATABASE_URL": "sqlite:///app.db",
    "SECRET_KEY": "",
    "PREVIOUS_SECRET_KEYS": "",
    "ACCESS_TOKEN_EXPIRE_MINUTES": "30",
    "REFRESH_TOKEN_EXPIRE_DAYS": "14",
    "MAX_FAILED_LOGINS_PER_ACCOUNT": "10",
    "MAX_FAILED_LOGINS_PER_ACCOUNT_TOTAL": "100",
    "MAX_FAILED_LOGINS_PER_ADDRESS": "100",
    "FAILED_LOGIN_WINDOW_MINUTES": "15",
    "MAX_REGISTRATIONS_PER_ADDRESS": "60",
    "REGISTRATION_WINDOW_MINUTES": "60",
    "HOST": "127.0.0.1",
    "PORT": "8000",
    "WORKERS": "1",
    "SHUTDOWN_SECONDS": "20",
    "CORS_ORIGINS": "",
    "MAX_BODY_BYTES": "16777216",
    "MAX_CONNECTIONS": "10000",
    "MAX_CONNECTIONS_PER_ADDRESS": "512",
    "DOCS_ENABLED": "true",
    "METRICS_TOKEN": "",
    "HSTS_SECONDS": "0",
    "USAGE_TIMEZONE": "UTC",
    "LLM_BASE_URL": "",
    "LLM_API_KEY": "",
    "LLM_MODEL": "",
    "LOG_LEVEL": "INFO",
    "LOG_FORMAT": "text",
}
EXAMPLE = BASE_DIR / ".env.example"
SHOW = """
import json, sys
sys.path.insert(0, sys.argv[1])
from app.settings import Settings
print(json.dumps(Settings.load().model_dump(mode="json"), default=str))
"""


def test_the_example_lists_every_setting_with_its_default() -> None:
    assert dotenv_values(EXAMPLE) == DEFAULTS
    assert {name.upper() for name in Settings.model_fields} == set(DEFAULTS)


def test_the_example_says_what_holds_without_it() -> None:
    assert Settings(_env_file=EXAMPLE) == Settings()


def test_the_defaults_are_the_ones_of_the_contract() -> None:
    shown = {name.upper(): value for name, value in Settings().model_dump().items()}
    assert shown.pop("SECRET_KEY") is None, "there is no built-in constant"
    assert shown.pop("LLM_API_KEY").get_secret_value() == ""
    assert shown.pop("METRICS_TOKEN").get_secret_value() == ""
    assert shown.pop("DOCS_ENABLED") is True
    lists = ("PREVIOUS_SECRET_KEYS", "CORS_ORIGINS")
    assert [shown.pop(name) for name in lists] == [[], []]
    typed = {"SECRET_KEY", "LLM_API_KEY", "METRICS_TOKEN", "DOCS_ENABLED", *lists}
    assert {name: str(value) for name, value in shown.items()} == {
        name: value for name, value in DEFAULTS.items() if name not in typed
    }


def test_env_beside_main_is_read_and_the_process_wins(tmp_path: Path) -> None:
    project = programs.install(tmp_path / "project")
    lines = ["# a comment", "PORT=8001", "export HOST='0.0.0.0'", 'LLM_MODEL="gpt-4o"', "workers=3", "UNKNOWN=1"]
    lines += ["CORS_ORIGINS=https://a.example.com, http://b", "LOG_LEVEL=", "USAGE_TIMEZONE=Asia/Tokyo # of our users"]
    (project / ".env").write_text("\n".join(lines), encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".env").write_text("PORT=9999\nLOG_FORMAT=json\n", encoding="utf-8")
    ended = programs.run(["-c", SHOW, project], elsewhere, {"PORT": "8002", "LLM_MODEL": "", "USAGE_TIMEZONE": "UTC"})
    assert ended.code == 0, ended.err
    shown: dict[str, Any] = json.loads(ended.out)
    assert shown["port"] == 8002
    assert shown["host"] == "0.0.0.0"
    assert shown["workers"] == 3
    assert shown["llm_model"] == "gpt-4o", "an empty value in the process is none"
    assert shown["usage_timezone"] == "UTC"
    assert shown["log_level"] == "INFO"
    assert shown["log_format"] == "text", "another .env is not read"
    assert shown["cors_origins"] == ["https://a.example.com", "http://b"]


def test_an_env_file_that_cannot_be_read_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"PORT=\xff\xfe")
    with pytest.raises(ConfigurationError) as refusal:
        Settings.load(_env_file=path)
    assert ".env" in str(refusal.value)
    assert str(refusal.value).isprintable()


BAD = {
    "DATABASE_URL": [
        "nonsense",
        "mysql://u@h/n",
        "sqlite://",
        "sqlite:///:memory:",
        "postgresql://host",
        "sqlite://h/p",
    ],
    "SECRET_KEY": ["hunter2", "x" * 31, "\u00e4" * 15],
    "REFRESH_TOKEN_EXPIRE_DAYS": ["0", "-1", "soon", "1.5", "3651"],
    "ACCESS_TOKEN_EXPIRE_MINUTES": ["0", "-1", "soon", "1.5", "1e9", "99999999999999999999"],
    "MAX_FAILED_LOGINS_PER_ACCOUNT": ["-1", "many", "1.5"],
    "FAILED_LOGIN_WINDOW_MINUTES": ["0", "-1", "soon"],
    "PORT": ["0", "-1", "65536", "http", "80.5", "0x50", "99999999999999999999"],
    "WORKERS": ["0", "-1", "many", "257", "1.5"],
    "SHUTDOWN_SECONDS": ["-1", "soon", "1.5", "3601"],
    "CORS_ORIGINS": [
        *("app.example.com", "https://", "https:/a.example.com", "https://a.example.com/path", "https://a?b"),
        *("https://u@a.example.com", "https://*.example.com", "https://a:0", "https://a:65536", "https://a:x"),
        *("https://a, nonsense", "https://a b", "HTTPS://A.example.com", "https://\u00e4.example.com", "null"),
    ],
    "MAX_BODY_BYTES": ["0", "1023", "-1", "16 MiB", "1.5", str(2**31)],
    "DOCS_ENABLED": ["maybe", "2"],
    "HSTS_SECONDS": ["-1", "a year", "1.5", "99999999999"],
    "USAGE_TIMEZONE": [
        "Mars/Olympus",
        "utc+1",
        "../etc/passwd",
        "/etc/localtime",
        "Europe/",
        "a\x01b",
        "\u00e4",
        "x" * 999,
    ],
    "LOG_LEVEL": ["loud", "1", "TRACE"],
    "LOG_FORMAT": ["xml", "JSON5"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refusal:
        Settings.load()
    message = str(refusal.value)
    assert message.startswith(f"{name}: ")
    assert message.isprintable()
    if name == "SECRET_KEY":
        assert value not in message


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, values in BAD.items():
        monkeypatch.setenv(name, values[0])
    with pytest.raises(ConfigurationError) as refusal:
        Settings.load()
    assert all(f"{name}: " in str(refusal.value) for name in BAD)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("keys", ["hunter2", f"{'k' * 32},hunter2", f"{'k' * 32};hunter2"[:31]])
def test_a_short_earlier_key_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    monkeypatch.setenv("PREVIOUS_SECRET_KEYS", keys)
    with pytest.raises(ConfigurationError) as refusal:
        Settings.load()
    assert str(refusal.value).startswith("PREVIOUS_SECRET_KEYS")
    assert "hunter2" not in str(refusal.value)
    assert "kkk" not in str(refusal.value)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "hunter2 " * 5)
    monkeypatch.setenv("LLM_API_KEY", "sk-hunter2")
    monkeypatch.setenv("PREVIOUS_SECRET_KEYS", f"{'hunter2 ' * 5},{'hunter2-' * 5}")
    monkeypatch.setenv("METRICS_TOKEN", "hunter2")
    settings = Settings.load()
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert settings.signing_key() == "hunter2 " * 5


@pytest.mark.parametrize("level", ["debug", "Info", "WARNING", "critical"])
def test_levels_may_be_written_in_any_case(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setenv("LOG_LEVEL", level)
    assert Settings.load().log_level == level.upper()
