"""`GET /auth/me`."""

import httpx

from tests import accounts


async def test_a_new_user_has_no_months(client: httpx.AsyncClient) -> None:
    caller = await accounts.register(client, "ayu")
    answer = await client.get("/auth/me", headers=caller.headers)
    assert answer.status_code == 200
    assert answer.json() == {
        "id": caller.id,
        "username": "ayu",
        "email": "ayu@example.com",
        "role": "user",
        "is_active": True,
        "token_stats": {"monthly_stats": [], "total_months": 0, "has_more": False},
    }
