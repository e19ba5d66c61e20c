"""Settings: read from the process and from `.env` beside `main.py`, checked once, never changed."""

import contextlib
import os
import re
import secrets
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app import database_urls
from app.errors import ConfigurationError

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY_FILE = BASE_DIR / "secret.key"
MIN_SECRET_KEY_BYTES = 32
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:(?P<port>[1-9][0-9]{0,4}))?")


def _split_origins(value: Any) -> Any:
    if isinstance(value, str):
        return [origin.strip().rstrip("/") for origin in value.split(",") if origin.strip()]
    return value


def _split_keys(value: Any) -> Any:
    return [key.strip() for key in value.split(",") if key.strip()] if isinstance(value, str) else value


def _check_origins(values: list[str]) -> list[str]:
    for value in values:
        if value != "*" and not _is_origin(value):
            raise ValueError(f"{value!r} is not an origin: use scheme://host or scheme://host:port, or *")
    return values


def _is_origin(value: str) -> bool:
    """Whether a browser would send it so: https://html.spec.whatwg.org/#ascii-serialisation-of-an-origin."""
    match = _ORIGIN.fullmatch(value)
    return match is not None and not (match["port"] and int(match["port"]) > 65_535)


def _load_zone(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"unknown time zone {value!r}: use an IANA name such as Europe/Berlin") from None


def _check_length(value: SecretStr | None) -> SecretStr | None:
    if value is not None and len(value.get_secret_value().encode()) < MIN_SECRET_KEY_BYTES:
        raise ValueError(f"it is shorter than {MIN_SECRET_KEY_BYTES} bytes")
    return value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


Count = Annotated[int, Field(ge=0, le=1_000_000)]
Minutes = Annotated[int, Field(ge=1, le=10_080)]


class Settings(BaseSettings):
    """Every setting of the product; names in the environment are the same in upper case."""

    model_config = SettingsConfigDict(
        env_file=BASE_DIR / ".env", env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore", frozen=True
    )

    database_url: Annotated[str, AfterValidator(database_urls.check)] = database_urls.DEFAULT
    secret_key: Annotated[SecretStr | None, AfterValidator(_check_length)] = None
    previous_secret_keys: Annotated[
        list[Annotated[SecretStr, AfterValidator(_check_length)]], NoDecode, BeforeValidator(_split_keys)
    ] = []
    access_token_expire_minutes: Annotated[int, Field(ge=1, le=525_600)] = 30
    refresh_token_expire_days: Annotated[int, Field(ge=1, le=3_650)] = 14
    max_failed_logins_per_account: Count = 10
    max_failed_logins_per_account_total: Count = 100
    max_failed_logins_per_address: Count = 100
    failed_login_window_minutes: Minutes = 15
    max_registrations_per_address: Count = 60
    registration_window_minutes: Minutes = 60
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65_535)] = 8000
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    shutdown_seconds: Annotated[int, Field(ge=0, le=3600)] = 20
    cors_origins: Annotated[list[str], NoDecode, BeforeValidator(_split_origins), AfterValidator(_check_origins)] = []
    max_connections: Annotated[int, Field(ge=10, le=1_000_000)] = Field(
        10_000, description="connections of one process, as far as the limit of open files allows; idle ones give way"
    )
    max_connections_per_address: Count = Field(
        512, description="connections of one process from one address, proxies excepted; 0: no limit"
    )
    max_body_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 16 * 2**20
    docs_enabled: bool = True
    metrics_token: SecretStr = SecretStr("")
    hsts_seconds: Annotated[int, Field(ge=0, le=10**9)] = 0
    usage_timezone: Annotated[ZoneInfo, BeforeValidator(_load_zone)] = ZoneInfo("UTC")
    llm_base_url: str = ""
    llm_api_key: SecretStr = SecretStr("")
    llm_model: str = ""
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)] = "INFO"
    log_format: Literal["text", "json"] = "text"

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Reads and checks all settings.

        Raises:
            ConfigurationError: one line that names each wrong setting and what is wrong with it.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            raise ConfigurationError("; ".join(_describe(item) for item in error.errors())) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{BASE_DIR / '.env'}: {error}") from None

    def signing_key(self) -> str:
        """The key that signs tokens: `SECRET_KEY`, or the one that the first start made and kept beside `main.py`.

        Raises:
            ConfigurationError: the file cannot be read or made, or holds too short a key.
        """
        if self.secret_key is not None:
            return self.secret_key.get_secret_value()
        return _kept_secret_key(SECRET_KEY_FILE)


def exposed_files() -> list[str]:
    """Return a line for each file with secrets that users other than its owner can read or change."""
    return exposed(BASE_DIR / ".env", SECRET_KEY_FILE)


def exposed(*paths: Path) -> list[str]:
    """Return a line for each of these files that users other than its owner can read or change."""
    if os.name != "posix":
        return []
    return [
        f"{path} can be read or changed by others: chmod 600 {path}"
        for path in paths
        if path.exists() and path.stat().st_mode & 0o077
    ]


def _describe(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"]).upper() or "settings"
    return f"{name}: {item['msg'].removeprefix('Value error, ')}"


def _kept_secret_key(path: Path) -> str:
    try:
        if not path.exists():
            _make_secret_key(path)
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigurationError(f"SECRET_KEY: not set, and {path} cannot be used: {reason}") from None
    if len(key) < MIN_SECRET_KEY_BYTES:
        raise ConfigurationError(f"SECRET_KEY: {path} holds a key shorter than {MIN_SECRET_KEY_BYTES} bytes")
    return key


def _make_secret_key(path: Path) -> None:
    # Written aside and linked into place: of several processes starting at once one wins, and none reads half a key.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)
