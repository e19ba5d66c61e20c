"""Every error that a caller or an operator can be told about.

FoundationError
├── ConfigurationError          the operator's settings are wrong: one line, exit code 2
└── ProblemError                an answer with a status, rendered as RFC 9457 problem+json
    ├── BlankMessage            400
    ├── InvalidRequest          422, with `errors` by field
    ├── Unauthenticated         401
    ├── Forbidden               403
    ├── NotFound                404
    ├── CallerTooSlow           408, within a stream
    ├── Conflict                409
    ├── TooLarge                413
    ├── UnsupportedEncoding     415, with `Accept-Encoding`
    ├── TooManyRequests         429, with `Retry-After`
    ├── DatabaseUnavailable     503
    └── UpstreamError           502
        ├── UpstreamBusy        429, with `Retry-After`
        └── UpstreamTimeout     504
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class FoundationError(Exception):
    """The root of the tree."""


class ConfigurationError(FoundationError):
    """A setting, a path or a flag that cannot work; its text is one line for the operator."""


class TransactionConflict(FoundationError):
    """Another transaction stored the same thing first; tried again, this one will see it."""


class ProblemError(FoundationError):
    """An error that becomes an HTTP answer; its text is the `detail` and never holds a secret or SQL."""

    status = 500
    title = "Internal Server Error"
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class DatabaseUnavailable(ProblemError):
    """The database cannot be reached, or did not answer in time."""

    status = 503
    title = "Service Unavailable"
    headers = MappingProxyType({"Retry-After": "1"})


class BlankMessage(ProblemError):
    """A form's message without text, which the earlier backend refused with this status."""

    status = 400
    title = "Bad Request"


class InvalidRequest(ProblemError):
    """The request is well-formed JSON and yet cannot be accepted; says which fields and why."""

    status = 422
    title = "Unprocessable Content"

    def __init__(self, errors: Mapping[str, list[str]], detail: str = "The request is not valid.") -> None:
        super().__init__(detail)
        self.errors = dict(errors)


class Unauthenticated(ProblemError):
    """No token, or one that is not valid (any more)."""

    status = 401
    title = "Unauthorized"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})


class Forbidden(ProblemError):
    """The caller is known and may not do this."""

    status = 403
    title = "Forbidden"


class NotFound(ProblemError):
    """It is not there, or not the caller's."""

    status = 404
    title = "Not Found"


class CallerTooSlow(ProblemError):
    """The caller did not read the stream."""

    status = 408
    title = "Request Timeout"


class Conflict(ProblemError):
    """It contradicts what is stored already."""

    status = 409
    title = "Conflict"


class TooLarge(ProblemError):
    """The body is larger than this server takes."""

    status = 413
    title = "Content Too Large"
    headers = MappingProxyType({"Connection": "close"})  # the rest of the body is not read


class UnsupportedEncoding(ProblemError):
    """The body is compressed."""

    status = 415
    title = "Unsupported Media Type"
    headers = MappingProxyType({"Accept-Encoding": "identity"})


class StillRunning(Conflict):
    """The same request is being answered at this moment."""

    headers = MappingProxyType({"Retry-After": "1"})


class TooManyRequests(ProblemError):
    """It was tried too often."""

    status = 429
    title = "Too Many Requests"

    def __init__(self, detail: str, retry_after_seconds: int) -> None:
        super().__init__(detail)
        self.headers = {"Retry-After": str(retry_after_seconds)}


class UpstreamError(ProblemError):
    """The model's service refused, failed, or sent an unreadable answer.

    `accepted` says whether it may have begun to work, and to bill. `partial` is the `services.chat.upstream.Reply`
    of what came before the failure, with the tokens that the service reported; None if nothing came.
    """

    status = 502
    title = "Bad Gateway"

    def __init__(self, detail: str, *, accepted: bool = False, partial: Any = None) -> None:
        super().__init__(detail)
        self.accepted = accepted
        self.partial = partial


class UpstreamBusy(UpstreamError):
    """The model's service has no room, and says when it will."""

    status = 429
    title = "Too Many Requests"

    def __init__(self, detail: str, retry_after_seconds: int) -> None:
        super().__init__(detail)
        self.headers = {"Retry-After": str(retry_after_seconds)}


class UpstreamTimeout(UpstreamError):
    """The model's service did not answer in time."""

    status = 504
    title = "Gateway Timeout"
