"""The id of the request at hand, which its answer and every line logged for it carry."""

import re
import secrets
from contextvars import ContextVar

current: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Copied into the tasks that a request starts; None outside of any."""

_SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def chosen(offered: bytes | None) -> str:
    """The caller's own id, where it can stand in a header and in a log; otherwise a new one."""
    if offered is not None and _SANE.fullmatch(offered):
        return offered.decode("ascii")
    return secrets.token_hex(16)
