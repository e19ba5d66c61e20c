"""Read the settings from the environment and `.env`, and check them once."""

import contextlib
import os
import secrets
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app import BASE_DIR, setting_checks
from app.db import urls
from app.db.slots import LEAST_CONNECTIONS
from app.db.urls import Target
from app.errors import ConfigurationError

SECRET_KEY_FILE = BASE_DIR / "secret.key"

Count = Annotated[int, Field(ge=0, le=1_000_000)]
Minutes = Annotated[int, Field(ge=1, le=10_080)]


class Settings(BaseSettings):
    """Define every setting; its name in the environment is in upper case.

    `make settings` copies the descriptions to README.md and `.env.example`.
    """

    model_config = SettingsConfigDict(
        env_file=BASE_DIR / ".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    database_url: Annotated[str, AfterValidator(urls.check)] = Field(
        urls.DEFAULT,
        description="`sqlite:///path` (relative to `main.py`), `postgresql://user:password@host/name`, or over a socket"
        " `postgresql://user@/name?host=/dir`",
    )
    database_direct_url: Annotated[str, AfterValidator(urls.check_postgresql)] = Field(
        "",
        description="the same PostgreSQL database without a connection pooler, for migrations and the script; empty:"
        " `DATABASE_URL`",
    )
    database_read_url: Annotated[str, AfterValidator(urls.check_postgresql)] = Field(
        "",
        description="a streaming replica of the database, for breakdowns and reports of usage; empty: `DATABASE_URL`",
    )
    database_pool_size: Annotated[int, Field(ge=LEAST_CONNECTIONS, le=1000)] = Field(
        Target.pool_size, description="maximum number of connections of one process to PostgreSQL, from 5 to 1000"
    )
    database_prepared_statements: bool | None = Field(
        None,
        description="whether statements are prepared on PostgreSQL; empty: if there is no connection pooler, or one"
        " that tracks them",
    )
    secret_key: Annotated[SecretStr | None, AfterValidator(setting_checks.key)] = Field(
        None,
        description="key that signs tokens: at least 32 random bytes; empty: generated once and kept in `secret.key`",
    )
    previous_secret_keys: Annotated[
        list[Annotated[SecretStr, AfterValidator(setting_checks.key)]], NoDecode, BeforeValidator(setting_checks.split)
    ] = Field([], description="earlier keys whose tokens are still accepted, comma-separated")
    access_token_expire_minutes: Annotated[int, Field(ge=1, le=525_600)] = Field(
        30, description="lifetime of an access token"
    )
    refresh_token_expire_days: Annotated[int, Field(ge=1, le=3_650)] = Field(
        14, description='lifetime of a refresh token, which a login with `"scope": "offline_access"` returns'
    )
    max_failed_logins_per_account: Count = Field(
        10, description="failed logins for one account from one address, then 429; 0: no limit"
    )
    max_failed_logins_per_account_total: Count = Field(
        100, description="failed logins for one account from all addresses that are new to it, then 429; 0: no limit"
    )
    max_failed_logins_per_address: Count = Field(
        100, description="failed logins from one address, then 429; 0: no limit"
    )
    failed_login_window_minutes: Minutes = Field(15, description="window in which failed logins are counted")
    max_registrations_per_address: Count = Field(60, description="new accounts from one address, then 429; 0: no limit")
    registration_window_minutes: Minutes = Field(60, description="window in which new accounts are counted")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=1, le=65_535)] = Field(8000, description="port to listen on")
    workers: Annotated[int, Field(ge=1, le=256)] = Field(1, description="server processes")
    forwarded_allow_ips: Annotated[str, AfterValidator(setting_checks.trusted_proxies)] = Field(
        "127.0.0.1,::1",
        description="proxies whose `X-Forwarded-For` is trusted: addresses and networks, comma-separated; `*`: any",
    )
    shutdown_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        20, description="seconds for answers in progress after SIGTERM; then the server interrupts and counts them"
    )
    cors_origins: Annotated[
        list[str],
        NoDecode,
        BeforeValidator(setting_checks.split_origins),
        AfterValidator(setting_checks.origins),
    ] = Field(
        [], description="origins that may call from a browser, comma-separated, such as `https://app.example.com`"
    )
    max_connections: Annotated[int, Field(ge=10, le=1_000_000)] = Field(
        10_000, description="connections of one process, within the limit of open files; idle ones are closed first"
    )
    max_connections_per_address: Count = Field(
        512, description="connections of one process from one address, proxies excepted; 0: no limit"
    )
    max_body_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = Field(
        16 * 2**20, description="largest body of `POST /usage/records`, in bytes; other routes accept less"
    )
    docs_enabled: bool = Field(True, description="whether `/docs`, `/redoc` and `/openapi.json` are served")
    metrics_token: Annotated[SecretStr, AfterValidator(setting_checks.bearer_token)] = Field(
        SecretStr(""),
        description="token that `/metrics` requires as `Authorization: Bearer …`; empty: no token is required",
    )
    hsts_seconds: Annotated[int, Field(ge=0, le=10**9)] = Field(
        0, description="seconds for which browsers must use HTTPS (`Strict-Transport-Security`); 0: no such header"
    )
    usage_timezone: Annotated[ZoneInfo, BeforeValidator(setting_checks.zone)] = Field(
        ZoneInfo("UTC"), description="IANA name of the time zone that decides the day and month of a message"
    )
    llm_base_url: Annotated[str, AfterValidator(setting_checks.base_url)] = Field(
        "",
        description="OpenAI-compatible service, such as `https://api.openai.com/v1`; empty: the offline model",
    )
    llm_api_key: SecretStr = Field(SecretStr(""), description="key for that service")
    llm_model: str = Field("", description="model for requests that name none, such as `gpt-4o-mini`")
    model_names: Annotated[dict[str, str], NoDecode, BeforeValidator(setting_checks.model_names)] = Field(
        {},
        description="the service's names of models that a frontend asks for, comma-separated, such as"
        " `Fast=gpt-4o-mini,anthropic/claude-sonnet-4=gpt-4o`",
    )
    llm_context_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None,
        description="context of the model in tokens, its answer included; older exchanges are not sent. Empty: the"
        " context in the price list, or 128000",
    )
    stop_on_hangup: bool = Field(
        False, description="whether a hang-up stops the model; otherwise the server awaits and counts the rest"
    )
    prices_file: Annotated[Path, Field(validate_default=True), AfterValidator(setting_checks.prices_file)] = Field(
        Path(setting_checks.DEFAULT_PRICES),
        description="file with your own prices, relative to `main.py`; only the default file may be missing",
    )
    trust_provider_cost: bool = Field(
        True, description="whether a cost that the provider reports becomes the cost of the answer"
    )
    uploads_dir: Annotated[Path, Field(validate_default=True), AfterValidator(setting_checks.beside_main)] = Field(
        Path("uploads"),
        description="directory of the earlier backend's images, relative to `main.py`: they are served, and deleted"
        " with their messages",
    )
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(setting_checks.upper)
    ] = Field("INFO", description="`DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`")
    log_format: Literal["text", "json"] = Field("text", description="`text`, or `json` for one JSON object a line")

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read and check all settings.

        Raises:
            ConfigurationError: a setting is invalid; the message names each in one line.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            raise ConfigurationError("; ".join(_describe(item) for item in error.errors())) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{BASE_DIR / '.env'}: {error}") from None

    @model_validator(mode="after")
    def _check_other_urls(self) -> Self:
        if (self.database_direct_url or self.database_read_url) and urls.is_sqlite(self.database_url):
            raise ValueError("DATABASE_DIRECT_URL and DATABASE_READ_URL belong to PostgreSQL, DATABASE_URL to SQLite")
        return self

    def target(self) -> Target:
        """Return the database."""
        return Target(self.database_url, self.database_pool_size, self.database_prepared_statements)

    def direct_target(self) -> Target:
        """Return the database for migrations and the script."""
        return replace(self.target(), url=self.database_direct_url or self.database_url)

    def read_target(self) -> Target | None:
        """Return the replica; None if there is none."""
        if not self.database_read_url:
            return None
        return replace(self.target(), url=self.database_read_url, replica_of=self.database_url)

    def signing_key(self) -> str:
        """Return the key that signs tokens: `SECRET_KEY`, or the generated one.

        Raises:
            ConfigurationError: the file cannot be read or created, or contains a weak key.
        """
        if self.secret_key is not None:
            return self.secret_key.get_secret_value()
        return _kept_secret_key(SECRET_KEY_FILE)


def exposed_files() -> list[str]:
    """Return a line for each secret file that other users can access."""
    return exposed(BASE_DIR / ".env", SECRET_KEY_FILE)


def exposed(*paths: Path) -> list[str]:
    """Return a line for each path that other users can access."""
    if os.name != "posix":
        return []
    return [
        f"{path} can be read or changed by other users: chmod 600 {path}"
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
    if wrong := setting_checks.what_is_wrong_with(key):
        raise ConfigurationError(f"SECRET_KEY: {path} holds a key that cannot be used: {wrong}")
    return key


def _make_secret_key(path: Path) -> None:
    # The key is linked into place when it is complete: one of several processes wins, and none reads half a key.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)
