"""Conversations of the earlier backend's newest version: branches, images, documents and charts are shown as before."""

import io
import json
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pytest

from tests.support import months_over_http, old_databases, raw_sql
from tests.support.accounts import Caller
from tests.support.commands import migrate
from tests.support.old_databases import USERS

pytestmark = pytest.mark.any_database

USER = Caller(USERS[0], old_databases.username(USERS[0]))
OTHER = Caller(USERS[1], old_databases.username(USERS[1]))
IMAGE = "01234567-89ab-cdef-0123-456789abcdef.png"
CONTEXT = {
    "collection_id": None,
    "documents": [{"document_id": "d", "title": "a.pdf", "url": None, "file_extension": "pdf"}],
    "context_chunks_count": 2,
    "chart_data": [{"chart_type": "bar", "chart_data": {"x": [1]}, "description": "one", "config": {}}],
}
AT = ["2024-03-01 10:00:00", "2024-03-01 10:00:05", "2024-03-01 10:00:10"]


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The earlier backend's directory, with an image."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (2, 2)).save(file, "PNG")
    (tmp_path / "uploads" / "images").mkdir(parents=True)
    (tmp_path / "uploads" / "images" / IMAGE).write_bytes(file.getvalue())
    monkeypatch.setenv("UPLOADS_DIR", str(tmp_path / "uploads"))
    return tmp_path / "uploads"


@pytest.fixture
def adopted(empty_database_url: str) -> old_databases.OldDatabase:
    """An old database with a conversation, and a branch of it that was edited at the first question."""
    old = old_databases.build(empty_database_url, 3, rows=40)
    at = "2024-03-01 10:00:00"
    for name, parent, edited in (("talk", "NULL", "NULL"), ("branch", "'talk'", "9000001")):
        values = f"'{name}', {USER.id}, 'A {name}', 'Reasoning', '{at}', '{at}', {parent}, {edited}"
        columns = "id, user_id, title, model_type, created_at, updated_at, parent_conversation_id, edited_message_id"
        raw_sql.run(old.url, f"INSERT INTO conversations ({columns}) VALUES ({values})")
    urls, context = json.dumps([f"/uploads/images/{IMAGE}"]), json.dumps(CONTEXT)
    rows = [
        (9000001, "talk", "user", "What is it?", urls, None, AT[0]),
        (9000002, "talk", "assistant", "A chart.", None, context, AT[1]),
        (9000003, "branch", "user", "What is that?", urls, None, AT[2]),
    ]
    for id_, talk, role, content, images, documents, instant in rows:
        texts = ", ".join("NULL" if text is None else f"'{text}'" for text in (talk, role, content, images, documents))
        names = "id, conversation_id, role, content, image_urls, document_context, created_at"
        raw_sql.run(old.url, f"INSERT INTO messages ({names}) VALUES ({id_}, {texts}, '{instant}')")
    assert migrate(old.url).code == 0
    return old


def test_branches_images_and_charts_are_shown(adopted: old_databases.OldDatabase, uploads: Path) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def get(path: str, status: int = 200, caller: Caller = USER) -> Any:
            answer = await client.get(path, headers=caller.headers)
            assert answer.status_code == status, answer.text
            return answer.json() if status == 200 else None

        talk = await get("/conversations/talk")
        asked, answered = talk["messages"]
        assert (talk["model_type"], talk["is_branch"], asked["has_branches"]) == ("Reasoning", False, True)
        assert asked["image_urls"] == [f"/uploads/images/{IMAGE}"]
        assert (await client.get(asked["image_urls"][0])).content == (uploads / "images" / IMAGE).read_bytes()
        assert (answered["document_context"], answered["chart_data"]) == (CONTEXT, CONTEXT["chart_data"])
        branch = await get("/conversations/branch")
        assert (branch["parent_conversation_id"], branch["edited_message_id"]) == ("talk", asked["id"])
        for each in ("talk", "branch"):
            listed = (await get(f"/conversations/{each}/branches"))["branches"]
            assert [(item["branch_id"], item["is_active"]) for item in listed] == [
                ("talk", each == "talk"),
                ("branch", each == "branch"),
            ]
            await get(f"/conversations/{each}", 404, OTHER)
            await get(f"/conversations/{each}/branches", 404, OTHER)

    months_over_http.in_application(adopted.url, work)


def test_the_usage_pages_equal_an_independent_sum(adopted: old_databases.OldDatabase) -> None:
    assert months_over_http.from_database(adopted.url) == months_over_http.expected(adopted)
