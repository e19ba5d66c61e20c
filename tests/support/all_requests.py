"""One of each request that reads or writes rows of a user."""

import io
from datetime import UTC, datetime
from typing import Any

import httpx
import PIL.Image

from tests.support.accounts import PASSWORD, Caller

NEW_PASSWORD = "another battery staple"


class Client:
    """A client that demands success and follows one login."""

    def __init__(self, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        self._client, self.headers = client, headers

    async def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        headers = self.headers | options.pop("headers", {})
        answer = await self._client.request(method, path, json=body, headers=headers, **options)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        is_json = answer.headers.get("content-type") == "application/json" and answer.content
        return answer.json() if is_json else answer.text

    async def log_in(self, username: str, password: str = PASSWORD) -> str:
        """Use a new login from now on; gives its refresh token."""
        form = {"username": username, "password": password, "scope": "offline_access"}
        self.headers = {}
        given = await self("POST", "/auth/login", form)
        self.headers = {"Authorization": f"Bearer {given['access_token']}"}
        return str(given.get("refresh_token", ""))


async def of_chat(send: Client) -> str:
    """Ask, ask again, edit and search; gives the conversation."""
    asked = await send("POST", "/chat", {"message": "What is a moon?"}, headers={"Idempotency-Key": "one"})
    assert "done" in asked
    first = await send("POST", "/chat", {"message": "A sun?", "stream": False})
    talk = str(first["conversation_id"])
    again = {"message": "And a planet?", "conversation_id": talk, "stream": False}
    answer = await send("POST", "/chat", again, headers={"Idempotency-Key": "two"})
    assert await send("POST", "/chat", again, headers={"Idempotency-Key": "two"}) == answer
    await send("GET", "/conversations", params={"page": 1, "limit": 10})
    for keyword in ("planet", "zzz", "pl"):
        await send("GET", "/conversations", params={"keyword": keyword})
    read = await send("GET", f"/conversations/{talk}", params={"limit": 2})
    question = read["messages"][0]["id"]
    branch = await send("PUT", f"/messages/{question}", {"content": "And a comet?"})
    branches = await send("GET", f"/conversations/{talk}/branches")
    assert branch
    assert branches
    return talk


async def of_images(send: Client) -> str:
    """Ask about an image, twice; gives the conversation."""
    data = io.BytesIO()
    PIL.Image.new("RGB", (2, 2)).save(data, "PNG")
    part = {"images": ("a.png", data.getvalue(), "image/png")}
    answer = await send("POST", "/chat", data={"message": "What is it?", "stream": "false"}, files=part)
    talk = str(answer["conversation_id"])
    await send("POST", "/chat", {"message": "Sure?", "conversation_id": talk, "stream": False})
    (shown, *_) = (await send("GET", f"/conversations/{talk}"))["messages"]
    await send("GET", str(shown["image_urls"][0]))
    return talk


async def of_feedback(send: Client, talk: str) -> None:
    """Give feedback, read it and take it back."""
    message = (await send("GET", f"/conversations/{talk}"))["messages"][-1]["id"]
    await send("POST", "/feedback", {"message_id": message, "feedback_type": "like"})
    given = await send("GET", f"/feedback/message/{message}")
    kept = given[0] if isinstance(given, list) else given
    await send("DELETE", f"/feedback/{kept['id']}")
    await send("POST", "/feedback", {"message_id": message, "feedback_type": "dislike"})


async def of_usage(send: Client) -> None:
    """Read the usage in each way."""
    today = datetime.now(UTC).date()
    stats = (await send("GET", "/auth/me"))["token_stats"]
    assert stats["total_months"] == 1
    await send("GET", "/auth/me", params={"include_token_stats": "false"})
    await send("GET", "/auth/me", params={"before": "2999-01", "from_year": 2024, "from_month": 1})
    await send("GET", f"/auth/token-stats/monthly/{today.year}/{today.month}/daily")
    await send("GET", f"/auth/token-stats/daily/{today}/conversations")
    for group in ("daily", "models"):
        await send("GET", f"/auth/token-stats/{group}", params={"from": f"{today}", "to": f"{today}"})


async def of_settings(send: Client) -> None:
    """Change preferences and categories."""
    for nickname in ("A", "B"):
        await send("PUT", "/preferences", {"nickname": nickname})
    await send("GET", "/preferences")
    await send("GET", "/user-model-categories")
    new = {"category_name": "MINE", "display_name": "Mine", "model_id": "openai/gpt-4o-mini"}
    added = await send("POST", "/user-model-categories", new)
    kept = added.get("data", added)
    await send("PUT", f"/user-model-categories/{kept['id']}", {"display_name": "Ours"})
    await send("DELETE", f"/user-model-categories/{kept['id']}")


async def of_service(send: Client, user_id: int, talk: str) -> None:
    """Report usage, twice."""
    record = {"user_id": user_id, "model": "gpt-4o-mini", "input_tokens": 5, "output_tokens": 7, "content": "x"}
    records = [{"id": "1", **record, "conversation_id": talk}, {"id": "2", **record}]
    for _ in range(2):
        await send("POST", "/usage/records", {"records": records})


async def drive(client: httpx.AsyncClient, username: str, service: Caller, admin: Caller) -> int:
    """Send all of them for a new user, whom an admin deletes at the end; gives the user's id."""
    send = Client(client, {})
    body = {"username": username, "email": f"{username}@example.com", "password": PASSWORD}
    user_id = int((await send("POST", "/auth/register", body))["id"])
    refresh_token = await send.log_in(username)
    talk, shown = await of_chat(send), await of_images(send)
    await of_feedback(send, talk)
    await of_service(Client(client, service.headers), user_id, talk)
    await of_usage(send)
    await of_settings(send)
    for each in (talk, shown):
        await send("DELETE", f"/conversations/{each}")
    if refresh_token:
        await send("POST", "/auth/refresh", {"refresh_token": refresh_token})
    await send("POST", "/auth/password", {"current_password": PASSWORD, "new_password": NEW_PASSWORD})
    await send.log_in(username, NEW_PASSWORD)
    await send("POST", "/auth/logout")
    as_admin = Client(client, admin.headers)
    for path in ("deactivate", "activate"):
        await as_admin("POST", f"/admin/users/{user_id}/{path}")
    await as_admin("POST", f"/admin/users/{user_id}/reset-password")
    await as_admin("DELETE", f"/admin/users/{user_id}")
    return user_id
