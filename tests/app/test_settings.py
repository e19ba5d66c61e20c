"""Settings: their names and defaults, where they are read, and what is said of bad ones."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from app import BASE_DIR, setting_docs
from app.errors import ConfigurationError
from app.settings import Settings
from tests.support import programs
from tests.support.accounts import SECRET_KEY

DEFAULTS = {
    "DATABASE_URL": "sqlite:///app.db",
    "DATABASE_DIRECT_URL": "",
    "DATABASE_READ_URL": "",
    "DATABASE_POOL_SIZE": "20",
    "DATABASE_PREPARED_STATEMENTS": "",
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
    "FORWARDED_ALLOW_IPS": "127.0.0.1,::1",
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
    "MODEL_NAMES": "",
    "LLM_CONTEXT_TOKENS": "",
    "STOP_ON_HANGUP": "false",
    "PRICES_FILE": "prices.toml",
    "UPLOADS_DIR": "uploads",
    "TRUST_PROVIDER_COST": "true",
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


def test_readme_and_example_are_those_of_the_settings() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    assert EXAMPLE.read_text(encoding="utf-8") == setting_docs.example(), "make settings"
    readme = (BASE_DIR / "README.md").read_text(encoding="utf-8")
    assert readme == setting_docs.readme(readme), "make settings"
    assert setting_docs.readme(readme.replace("| `PORT` | `8000` |", "| `PORT` | `9` |")) == readme
    with pytest.raises(ValueError, match="0 tables"):
        setting_docs.readme("# no table\n")


def test_the_example_says_what_holds_without_it() -> None:
    assert Settings(_env_file=EXAMPLE) == Settings()


def test_the_defaults_are_the_ones_of_the_contract() -> None:
    shown = {name.upper(): value for name, value in Settings().model_dump().items()}
    assert shown.pop("SECRET_KEY") is None, "there is no built-in constant"
    assert shown.pop("LLM_API_KEY").get_secret_value() == ""
    assert shown.pop("METRICS_TOKEN").get_secret_value() == ""
    assert [shown.pop(name) for name in ("DOCS_ENABLED", "TRUST_PROVIDER_COST")] == [True, True]
    assert (shown.pop("LLM_CONTEXT_TOKENS"), shown.pop("STOP_ON_HANGUP")) == (None, False)
    assert shown.pop("DATABASE_PREPARED_STATEMENTS") is None
    assert shown.pop("PRICES_FILE") == BASE_DIR / "prices.toml"
    assert shown.pop("UPLOADS_DIR") == BASE_DIR / "uploads"
    assert shown.pop("MODEL_NAMES") == {}
    lists = ("PREVIOUS_SECRET_KEYS", "CORS_ORIGINS")
    assert [shown.pop(name) for name in lists] == [[], []]
    typed = {"SECRET_KEY", "LLM_API_KEY", "METRICS_TOKEN", "DOCS_ENABLED", "TRUST_PROVIDER_COST", "PRICES_FILE", *lists}
    typed |= {"DATABASE_PREPARED_STATEMENTS", "LLM_CONTEXT_TOKENS", "STOP_ON_HANGUP", "MODEL_NAMES", "UPLOADS_DIR"}
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
    "SECRET_KEY": ["hunter2", "x" * 31, "\u00e4" * 15, "k" * 32, "your-secret-key-change-this-in-production"],
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
    "METRICS_TOKEN": ["t\u00f6ken", "two words", "tab\t"],
    "HSTS_SECONDS": ["-1", "a year", "1.5", "99999999999"],
    "USAGE_TIMEZONE": [
        "Mars/Olympus",
        "utc+1",
        "../etc/passwd",
        *("/etc/localtime", "localtime", "posixrules", "Factory"),
        "Europe/",
        "a\x01b",
        "\u00e4",
        "x" * 999,
    ],
    "FORWARDED_ALLOW_IPS": [
        *("proxy", "10.0.0.1/8", "10.0.0.0/33", "*,10.0.0.1", "10.0.0.1 10.0.0.2", "10.0.0", "/run/proxy.sock"),
        *("10.0.0.1:8000", "[::1]", "https://10.0.0.1"),
    ],
    "LLM_BASE_URL": [
        *("api.hunter2.com/v1", "localhost:11434/v1", "//hunter2/v1", "http:/hunter2/v1", "http://", "https:///v1"),
        *("ftp://hunter2/v1", "https//hunter2/v1", "http://hunter2 /v1", " https://hunter2/v1", "https://hunter2/v1 "),
        *("https://hunter2/v1\t", "https://key:hunter2@host/v1", "https://hunter2@host/v1", "https://@hunter2/v1"),
        *("https://hunter2:0/v1", "https://hunter2:65536/v1", "https://hunter2:port/v1", "https://hunter2\\v1"),
        *("https://[hunter2]/v1", "https://hunter2/v1?api-version=1", "https://hunter2/v1#top", "https://h/v1?hunter2"),
        *("https://hunter2/v1/chat/completions", "https://hunter2/v1/chat/completions/", "https://hunter2/V1/Models"),
        *("https://hunter2/v1/completions", "https://hunter2/v1/responses", '"https://hunter2/v1"', "hunter2\u00a0"),
    ],
    "PRICES_FILE": ["absent.toml", "/absent/prices.toml", "app", "/", "."],
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
    assert "hunter2" not in message


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, values in BAD.items():
        monkeypatch.setenv(name, values[0])
    with pytest.raises(ConfigurationError) as refusal:
        Settings.load()
    assert all(f"{name}: " in str(refusal.value) for name in BAD)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"DATABASE_DIRECT_URL": "sqlite:///app.db"},
            "DATABASE_DIRECT_URL: it is not the URL of a PostgreSQL database",
        ),
        ({"DATABASE_READ_URL": "postgresql://user@host/name"}, "belong to PostgreSQL, DATABASE_URL to SQLite"),
        ({"DATABASE_POOL_SIZE": "4"}, "DATABASE_POOL_SIZE: "),
        ({"DATABASE_PREPARED_STATEMENTS": "perhaps"}, "DATABASE_PREPARED_STATEMENTS: "),
    ],
)
def test_settings_of_no_use_to_the_database_are_refused(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], said: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        Settings.load()


@pytest.mark.parametrize(
    "keys", ["hunter2", f"{SECRET_KEY},hunter2", f"{SECRET_KEY};hunter2"[:31], f"{SECRET_KEY},{'hunter2' * 5}"]
)
def test_a_bad_earlier_key_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    monkeypatch.setenv("PREVIOUS_SECRET_KEYS", keys)
    with pytest.raises(ConfigurationError) as refusal:
        Settings.load()
    assert str(refusal.value).startswith("PREVIOUS_SECRET_KEYS")
    assert "hunter2" not in str(refusal.value)
    assert SECRET_KEY[:20] not in str(refusal.value)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", f"hunter2 {SECRET_KEY}")
    monkeypatch.setenv("LLM_API_KEY", "sk-hunter2")
    monkeypatch.setenv("PREVIOUS_SECRET_KEYS", f"hunter2 {SECRET_KEY},hunter2-{SECRET_KEY}")
    monkeypatch.setenv("METRICS_TOKEN", "hunter2")
    settings = Settings.load()
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert settings.signing_key() == f"hunter2 {SECRET_KEY}"


GOOD = {
    "LLM_BASE_URL": [
        *("https://api.openai.com/v1", "http://localhost:11434/v1/", "https://openrouter.ai/api/v1", "HTTP://host"),
        *(
            "http://[::1]:8000/v1",
            "https://h\u00e4st.example/v1",
            "https://user-1.example/openai/deployments/m",
            "http://h:80",
        ),
        *("https://generativelanguage.googleapis.com/v1beta/openai/", "http://10.0.0.1:65535/models/v1"),
    ],
    "FORWARDED_ALLOW_IPS": ["*", "10.0.0.1", "10.0.0.0/8, ::1", "2001:db8::/32,192.0.2.7", " * "],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_a_good_value_is_accepted(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(Settings.load(), name.lower()).replace(" ", "") == value.replace(" ", "")


def test_prices_may_lie_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("", encoding="ascii")
    for value, path in (
        (str(tmp_path / "mine.toml"), tmp_path / "mine.toml"),
        ("deploy/prices.toml", BASE_DIR / "deploy" / "prices.toml"),
        ("prices.toml", BASE_DIR / "prices.toml"),
        (str(BASE_DIR / "prices.toml"), BASE_DIR / "prices.toml"),
        ("", BASE_DIR / "prices.toml"),
    ):
        monkeypatch.setenv("PRICES_FILE", value)
        assert Settings.load().prices_file == path


@pytest.mark.parametrize("level", ["debug", "Info", "WARNING", "critical"])
def test_levels_may_be_written_in_any_case(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setenv("LOG_LEVEL", level)
    assert Settings.load().log_level == level.upper()


def test_names_of_models_are_pairs() -> None:
    settings = Settings.load(model_names=" Fast = quick,a/b=c=d ,")
    assert settings.model_names == {"Fast": "quick", "a/b": "c=d"}
    for wrong in ("Fast", "Fast=", "=quick", "Fast=quick,x"):
        with pytest.raises(ConfigurationError, match=r"MODEL_NAMES: .* is not a pair: use requested=name"):
            Settings.load(model_names=wrong)
