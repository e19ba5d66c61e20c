"""What every error of the product looks like to a caller."""

from typing import Any

import httpx

MEMBERS = {"type", "title", "status", "detail", "message", "error"}
LEAKS = ("Traceback", "sqlalchemy", "asyncpg", "sqlite3", "INSERT INTO", "SELECT ", "UPDATE ", 'File "')


def check(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Demands a problem (RFC 9457) of this status that tells nothing it should not, and returns it."""
    assert answer.status_code == status, f"{answer.status_code}: {answer.text}"
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert set(body) == MEMBERS | ({"errors"} if status == 422 else set())
    assert (body["message"], body["error"]) == (body["detail"], body["title"]), "as the earlier backend named them"
    assert body["status"] == status
    assert all(isinstance(body[name], str) and body[name] for name in ("type", "title", "detail"))
    assert [leak for leak in LEAKS if leak in answer.text] == []
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    if status == 503:
        assert int(answer.headers["retry-after"]) >= 0
    if status == 422:
        errors = body["errors"]
        assert errors
        assert all(isinstance(texts, list) and texts and all(map(str.strip, texts)) for texts in errors.values())
    return body
