"""Define every error that is reported to a caller or an operator.

FoundationError
├── ConfigurationError          the operator's settings are wrong: one line, exit code 2
├── TransactionConflict         the database retries the transaction
└── ProblemError                a response with a status, rendered as RFC 9457 problem+json
    ├── BlankMessage            400
    ├── NotAQuestion            400
    ├── InvalidRequest          422, with `errors` by field
    ├── Unauthenticated         401
    ├── Forbidden               403
    ├── NotFound                404
    ├── CallerTooSlow           408, within a stream
    ├── Conflict                409
    │   └── StillRunning        409, with `Retry-After`
    ├── Gone                    410
    ├── TooLarge                413
    ├── UnsupportedEncoding     415, with `Accept-Encoding`
    ├── TooManyRequests         429, with `Retry-After`
    ├── DatabaseUnavailable     503, with `Retry-After`
    ├── OutOfMemory             503, with `Retry-After`
    └── UpstreamError           502
        ├── UpstreamBusy        429, with `Retry-After`
        ├── UpstreamTooLong     502, the conversation exceeds what the model takes
        └── UpstreamTimeout     504
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_NO_THREAD = "can't start new thread"
"""The text of Python's error where a thread gets no memory for its stack."""


class FoundationError(Exception):
    """Root of the tree."""


class ConfigurationError(FoundationError):
    """Report an invalid setting, path or flag in one line."""


class TransactionConflict(FoundationError):
    """Ask for a retry, since a concurrent transaction changed the same rows."""


class ProblemError(FoundationError):
    """Become an HTTP response, with the text as `detail`.

    The text never contains a secret or SQL.
    """

    status = 500
    title = "Internal Server Error"
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class DatabaseUnavailable(ProblemError):
    """Report that the database is unreachable or did not respond in time."""

    status = 503
    title = "Service Unavailable"
    headers = MappingProxyType({"Retry-After": "1"})


class OutOfMemory(ProblemError):
    """The process could not allocate memory or start a thread."""

    status = 503
    title = "Service Unavailable"
    headers = MappingProxyType({"Retry-After": "1"})

    def __init__(self) -> None:
        super().__init__("The server is out of memory at the moment. Try again later.")


class BlankMessage(ProblemError):
    """A form's message without text; the earlier backend used this status."""

    status = 400
    title = "Bad Request"


class NotAQuestion(ProblemError):
    """Refuse to edit an answer; the earlier backend used this status."""

    status = 400
    title = "Bad Request"


class InvalidRequest(ProblemError):
    """Refuse a well-formed request, with the reason for each invalid field."""

    status = 422
    title = "Unprocessable Content"

    def __init__(self, errors: Mapping[str, list[str]], detail: str = "The request is not valid.") -> None:
        super().__init__(detail)
        self.errors = dict(errors)


class Unauthenticated(ProblemError):
    """Refuse a request whose token is missing or invalid."""

    status = 401
    title = "Unauthorized"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})


class Forbidden(ProblemError):
    """Refuse a known caller who lacks the permission."""

    status = 403
    title = "Forbidden"


class NotFound(ProblemError):
    """Report that an object is missing, or belongs to another user."""

    status = 404
    title = "Not Found"


class CallerTooSlow(ProblemError):
    """Report that the caller did not read the stream."""

    status = 408
    title = "Request Timeout"


class Conflict(ProblemError):
    """Refuse a request that contradicts stored data."""

    status = 409
    title = "Conflict"


class Gone(ProblemError):
    """Refuse a repeated request whose answer is archived."""

    status = 410
    title = "Gone"


class TooLarge(ProblemError):
    """Refuse a body above the limit."""

    status = 413
    title = "Content Too Large"
    headers = MappingProxyType({"Connection": "close"})  # the rest of the body is not read


class UnsupportedEncoding(ProblemError):
    """Refuse a compressed body."""

    status = 415
    title = "Unsupported Media Type"
    headers = MappingProxyType({"Accept-Encoding": "identity"})


class StillRunning(Conflict):
    """Report that the same request is still in progress."""

    headers = MappingProxyType({"Retry-After": "1"})


class TooManyRequests(ProblemError):
    """Refuse an attempt above the rate limit."""

    status = 429
    title = "Too Many Requests"

    def __init__(self, detail: str, retry_after_seconds: int) -> None:
        super().__init__(detail)
        self.headers = {"Retry-After": str(retry_after_seconds)}


class UpstreamError(ProblemError):
    """Report that the upstream refused, failed, or sent an unreadable answer.

    `accepted` states whether the upstream may have begun to work, and to bill. `partial` is the
    `services.chat.upstream.Reply` with the text and tokens received before the failure; None if there were none.
    """

    status = 502
    title = "Bad Gateway"

    def __init__(self, detail: str, *, accepted: bool = False, partial: Any = None) -> None:
        super().__init__(detail)
        self.accepted = accepted
        self.partial = partial


class UpstreamBusy(UpstreamError):
    """Report that the upstream is overloaded, and when to retry."""

    status = 429
    title = "Too Many Requests"

    def __init__(self, detail: str, retry_after_seconds: int) -> None:
        super().__init__(detail)
        self.headers = {"Retry-After": str(retry_after_seconds)}


class UpstreamTooLong(UpstreamError):
    """The model's service refused the conversation because of its length."""


class UpstreamTimeout(UpstreamError):
    """Report that the upstream did not respond in time."""

    status = 504
    title = "Gateway Timeout"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error or its cause is a lack of memory."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        if isinstance(one, MemoryError) or (isinstance(one, RuntimeError) and str(one) == _NO_THREAD):
            return True
        seen.add(id(one))
        pending += [one.__cause__, one.__context__]
    return False
