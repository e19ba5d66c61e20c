"""Tell local model servers, which have no list price, from vendors."""

import functools
import ipaddress
import socket
from urllib.parse import urlsplit

_SUFFIXES = (
    *(".local", ".localhost", ".localdomain", ".lan", ".home", ".home.arpa", ".internal", ".intranet", ".svc"),
    *(".corp", ".test", ".ts.net"),  # the last are Tailscale's
)
_SERVERS = ("ollama", "vllm", "llamacpp", "llama-cpp", "llama-server", "lmstudio", "lm-studio", "localai", "sglang")
_VENDORS = (".ollama.com",)
_OLLAMA_PORT = 11434


@functools.lru_cache(1024)
def is_local(api_url: str | None) -> bool:
    """Return whether an address is loopback, private or local to a container.

    Sources: https://datatracker.ietf.org/doc/html/rfc6762 and rfc6761 (`.local`, `.localhost`, `.test`), rfc8375
    (`.home.arpa`).
    """
    try:
        parts = urlsplit(api_url or "")
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return False
    if not host or parts.scheme not in ("http", "https") or f".{host}".endswith(_VENDORS):
        return False
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_global
    except ValueError:
        pass
    is_named = "." not in host or host.endswith(_SUFFIXES) or _is_short_ipv4(host)
    return is_named or port == _OLLAMA_PORT or any(server in host.partition(".")[0] for server in _SERVERS)


def _is_short_ipv4(host: str) -> bool:
    """Return whether a host is a short loopback address, such as `127.1`."""
    try:
        return ipaddress.ip_address(socket.inet_aton(host)).is_loopback
    except OSError:
        return False
