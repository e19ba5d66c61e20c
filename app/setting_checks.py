"""Check settings: return the value, or raise one line with the remedy."""

import ipaddress
import re
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import AnyHttpUrl, SecretStr, TypeAdapter, ValidationError

from app import BASE_DIR
from app.security import weak_keys

MIN_SECRET_KEY_BYTES = 32
DEFAULT_PRICES = "prices.toml"

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:(?P<port>[1-9][0-9]{0,4}))?")
_HTTP = re.compile(r"https?://(?P<authority>[^/?#\\]+)", re.IGNORECASE)
_URL = TypeAdapter(AnyHttpUrl)
_ENDPOINT = re.compile(r"/(chat/completions|completions|responses|embeddings|models|messages)/*$", re.IGNORECASE)
_USE_URL = "use http://host/v1 or https://host/v1"


def split(value: Any) -> Any:
    """Split a comma-separated text."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def model_names(value: Any) -> Any:
    """Split a comma-separated text of pairs `requested=name`."""
    if not isinstance(value, str):
        return value
    pairs = [tuple(side.strip() for side in part.split("=", 1)) for part in split(value)]
    for pair in pairs:
        if len(pair) < 2 or not all(pair):
            raise ValueError(f"{'='.join(pair)!r} is not a pair: use requested=name, such as Fast=gpt-4o-mini")
    return dict(pairs)


def split_origins(value: Any) -> Any:
    """Split a comma-separated text of origins, which may end in a slash."""
    return [origin.rstrip("/") for origin in split(value)] if isinstance(value, str) else value


def upper(value: Any) -> Any:
    """Return a text in upper case."""
    return value.upper() if isinstance(value, str) else value


def origins(values: list[str]) -> list[str]:
    """Refuse values that no browser sends as an `Origin`."""
    for value in values:
        if value != "*" and not _is_origin(value):
            raise ValueError(f"{value!r} is not an origin: use scheme://host or scheme://host:port, or *")
    return values


def _is_origin(value: str) -> bool:
    """Return whether browsers send this origin.

    Source: https://html.spec.whatwg.org/#ascii-serialisation-of-an-origin.
    """
    match = _ORIGIN.fullmatch(value)
    return match is not None and not (match["port"] and int(match["port"]) > 65_535)


def zone(value: Any) -> Any:
    """Load a time zone by its IANA name."""
    if not isinstance(value, str):
        return value
    try:
        if value in _OF_THE_MACHINE:
            raise ValueError
        return ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"unknown time zone {value!r}: use an IANA name such as Europe/Berlin") from None


# Files beside the zones, which mean another zone on another machine, or none.
_OF_THE_MACHINE = frozenset({"localtime", "posixrules", "Factory"})


def bearer_token(value: SecretStr) -> SecretStr:
    """Return a token that a header can hold, or an empty one."""
    if not _VISIBLE.fullmatch(value.get_secret_value()):
        raise ValueError("a token in a header has only visible ASCII characters")
    return value


_VISIBLE = re.compile("[!-~]*")


def key(value: SecretStr | None) -> SecretStr | None:
    """Refuse a signing key that is short or can be guessed."""
    if value is not None and (wrong := what_is_wrong_with(value.get_secret_value())):
        raise ValueError(wrong)
    return value


def what_is_wrong_with(secret_key: str) -> str | None:
    """Return a signing key's weakness and the remedy, or None."""
    if len(secret_key.encode()) < MIN_SECRET_KEY_BYTES:
        return f"it is shorter than {MIN_SECRET_KEY_BYTES} bytes; {weak_keys.HOW_TO_MAKE_ONE}"
    reason = weak_keys.weakness(secret_key)
    return reason and f"it can be guessed because {reason}; {weak_keys.HOW_TO_MAKE_ONE}"


def trusted_proxies(value: str) -> str:
    """Refuse host names, which uvicorn would silently never match."""
    proxies = split(value)
    if proxies == ["*"]:
        return "*"
    for proxy in proxies:
        try:
            ipaddress.ip_network(proxy) if "/" in proxy else ipaddress.ip_address(proxy)
        except ValueError:
            wrong = f"{proxy!r} is neither an address nor a network: use 10.0.0.1, 10.0.0.0/8, or * alone"
            raise ValueError(wrong) from None
    return ",".join(proxies)


def base_url(value: str) -> str:
    """Refuse an invalid URL, without showing it: it may contain a key."""
    if not value:
        return value
    if any(character.isspace() or not character.isprintable() for character in value):
        raise ValueError(f"it contains spaces or control characters: {_USE_URL}")
    begin = _HTTP.match(value)
    if begin is None:
        raise ValueError(f"it does not begin with http:// or https:// and a host: {_USE_URL}")
    if "@" in begin["authority"]:
        raise ValueError("it contains a user or a password: set LLM_API_KEY, and leave them out")
    if "?" in value or "#" in value:
        raise ValueError(f"it contains a query or a fragment: {_USE_URL}")
    if ending := _ENDPOINT.search(value):
        raise ValueError(f"it ends with /{ending[1].lower()}, which the server adds itself: leave this part out")
    _check_host(value)
    return value


def _check_host(url: str) -> None:
    try:
        parsed = _URL.validate_python(url)
    except ValidationError:
        raise ValueError(f"its host or port cannot be: {_USE_URL}") from None
    if not parsed.port or "\\" in url:
        raise ValueError(f"its host or port cannot be: {_USE_URL}")


def beside_main(value: Path) -> Path:
    """Make a path absolute."""
    return BASE_DIR / value


def prices_file(value: Path) -> Path:
    """Make a path absolute; refuse a missing file, except the default one."""
    path = BASE_DIR / value
    if path != BASE_DIR / DEFAULT_PRICES and not path.is_file():
        raise ValueError(f"there is no file {path}: name an existing one, or leave the setting empty")
    return path
