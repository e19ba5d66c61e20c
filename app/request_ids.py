"""Identify requests: in the response, and in each log line."""

import re
import secrets
from contextvars import ContextVar

current: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the current request, copied into the tasks that it starts; None outside of requests."""

_SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def chosen(offered: bytes | None) -> str:
    """Return the caller's id if it is safe, otherwise a new one."""
    if offered is not None and _SANE.fullmatch(offered):
        return offered.decode("ascii")
    return secrets.token_hex(16)
