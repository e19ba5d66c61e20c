"""Find the error that a model's service reports within an answer.

`upstream_failures` reads the reason from it.
"""

import re
from collections.abc import Mapping
from typing import Any

_MAX_DEPTH = 5
_FAILED = frozenset({"error", "failed", "failure", "fail"})
_FINE = frozenset({"", "0", "200", "ok", "success"})
_WORDS = re.compile(r"err|exception|fault|^(message|msg|detail|reason)$", re.I)


def error_in(name: str, chunk: Mapping[str, Any]) -> Any:
    """Return the error in an object, in the service's own form.

    Return None if the object reports no error.
    """
    groq = chunk.get("x_groq")
    exceptions = [value for key, value in chunk.items() if key.endswith("Exception")]  # Amazon's
    errors = chunk.get("error"), chunk.get("errors"), groq.get("error") if isinstance(groq, dict) else None
    for error in (*errors, *exceptions):
        if error and not ("choices" in chunk and _is_blank(error)):
            return error
    if name.lower() == "error" or chunk.get("object") == "error" or chunk.get("type") == "error":
        return chunk
    status = chunk.get("base_resp")
    if isinstance(status, dict) and status.get("status_code"):
        return status
    speaks = any(isinstance(chunk.get(key), str) for key in ("message", "msg", "detail", "error_msg"))
    return chunk if speaks and not is_of_answer(chunk) and _has_failed(chunk) else None


def is_of_answer(chunk: Mapping[str, Any]) -> bool:
    """Return whether an object may be part of an answer."""
    return "choices" in chunk or chunk.get("type") in ("ping", "heartbeat")


def has_words(value: Mapping[str, Any], depth: int = 0) -> bool:
    """Return whether an object holds the words of an error."""
    return any(
        bool(inner and _WORDS.search(key))
        if isinstance(inner, str)
        else isinstance(inner, dict) and depth < _MAX_DEPTH and has_words(inner, depth + 1)
        for key, inner in value.items()
    )


def _is_blank(error: Any) -> bool:
    """Return whether an error object means that there is no error.

    Some gateways send such an object with every chunk.
    """
    if not isinstance(error, dict) or not error.keys() & {"code", "message", "type"}:
        return False
    return all(not value or str(value).lower() in _FINE for value in error.values())


def _has_failed(chunk: Mapping[str, Any]) -> bool:
    """Return whether an object without choices reports a failure, not progress."""
    if chunk.get("success") is False or isinstance(chunk.get("error_msg"), str):
        return True
    codes = [chunk.get(key) for key in ("code", "error_code", "status_code", "statusCode")]
    status = chunk.get("status")
    if isinstance(status, str) and (status.isdecimal() or status.lower() in _FAILED):
        codes.append(status)  # other words are of progress
    numbers = [code for code in (*codes, status) if type(code) is int and code != 0]
    words = [code.lower() for code in codes if isinstance(code, str)]
    if numbers or words:
        return any(not 200 <= number < 300 for number in numbers) or any(word not in _FINE for word in words)
    return isinstance(chunk.get("detail"), str)
