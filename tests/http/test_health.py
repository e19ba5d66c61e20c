"""`GET /admin/health`: what is in progress, and what went wrong since the start."""

from typing import Any

import httpx
import pytest

from app import metrics
from app.db.database import Database
from tests.support import accounts, openai_server
from tests.support.openai_server import Answer, OpenAIServer


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The settings of the application under test."""
    return openai_server.settings(database_url, model)


async def test_health_counts_what_happened(client: httpx.AsyncClient, database: Database, model: OpenAIServer) -> None:
    admin = await accounts.add(database, "boss", "admin")

    async def read() -> dict[str, Any]:
        answer = await client.get("/admin/health", headers=admin.headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        assert (found["messages_pending"], found["backfill_is_due"]) == (0, False)
        return dict(found["since_start"])

    before = await read()
    answers = iter([Answer(status=503), Answer(), Answer(status=400), Answer(usage=None)])
    model.answer = lambda _: next(answers)
    for status in (200, 502, 200):
        question = {"message": "Hi", "stream": False}
        answer = await client.post("/chat", headers=admin.headers, json=question)
        assert answer.status_code == status, answer.text
    metrics.settlement_failed()
    changed = {name: count - before[name] for name, count in (await read()).items() if count != before[name]}
    assert changed == {
        "messages": 2,
        "estimated": 1,
        "complete": 2,
        "failed": 1,
        "model_retries": 1,
        "settlement_failures": 1,
    }
