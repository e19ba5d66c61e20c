"""Images: sent with a question, seen by the model and the user's page, erased with the last message that shows them."""

import asyncio
import base64
import errno
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import PIL.Image
import pytest
from sqlalchemy import func, select, update

from app.db.database import Database
from models import Conversation, Message, MessageImage
from services.accounts import users
from services.chat import images, tokenizer
from tests.support import invariants, openai_server, problems
from tests.support.accounts import Caller
from tests.support.openai_server import Answer, OpenAIServer

pytestmark = pytest.mark.any_database

FORMATS = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "WEBP": "webp"}


def picture(kind: str = "PNG", size: tuple[int, int] = (3, 2), color: str = "red") -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(file, kind)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG with these dimensions in its header."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """The earlier backend's directory."""
    (tmp_path / "uploads" / "images").mkdir(parents=True)
    return tmp_path / "uploads"


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer, uploads: Path) -> dict[str, Any]:
    """The application asks the tests' model."""
    return openai_server.settings(database_url, model) | {"uploads_dir": uploads}


def files_in(uploads: Path) -> list[Path]:
    return list(uploads.rglob("*.*"))


async def ask(
    client: httpx.AsyncClient, caller: Caller, *files: bytes, name: str = "a.png", key: str = "", **fields: str
) -> httpx.Response:
    form = {"message": "What is it?", "stream": "false"} | fields
    parts: list[Any] = [("images", (name, data, "image/png")) for data in files]
    headers = caller.headers | ({"Idempotency-Key": key} if key else {})
    return await client.post("/chat", data=form, files=parts or {"x": (None, b"")}, headers=headers)


async def urls(client: httpx.AsyncClient, caller: Caller, answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    path = f"/conversations/{answer.json()['conversation_id']}"
    shown = (await client.get(path, headers=caller.headers)).json()
    return shown["messages"][-2]["image_urls"]


async def stored(database: Database) -> int:
    async with database.reads() as session:
        return await session.scalar(select(func.count()).select_from(MessageImage)) or 0


def sent(model: OpenAIServer, message: int = -1) -> list[bytes]:
    content = model.requests[-1].body["messages"][message]["content"]
    parts = content[1:] if isinstance(content, list) else []
    assert all(part["type"] == "image_url" for part in parts)
    return [base64.b64decode(part["image_url"]["url"].partition(";base64,")[2]) for part in parts]


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("form", FORMATS)
async def test_each_form_is_shown_as_it_was_sent(
    client: httpx.AsyncClient, ayu: Caller, model: OpenAIServer, form: str
) -> None:
    data = picture(form)
    (url,) = await urls(client, ayu, await ask(client, ayu, data, name="../../etc/passwd.exe"))
    assert url.startswith("/uploads/images/")
    assert url.endswith(f".{FORMATS[form]}")
    assert sent(model) == [data]
    shown = await client.get(url)
    assert (shown.content, shown.headers["content-type"]) == (data, f"image/{form.lower()}")
    assert shown.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in shown.headers["content-security-policy"]


async def test_later_turns_send_images_again(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    first, second = picture(color="red"), picture(color="blue")
    answer = await ask(client, ayu, first, second)
    assert sent(model) == [first, second]
    talk = answer.json()["conversation_id"]
    await ask(client, ayu, conversation_id=talk)
    assert (sent(model, 0), sent(model)) == ([first, second], [])
    await invariants.check(database)


async def test_an_edited_question_sends_its_images(client: httpx.AsyncClient, ayu: Caller, model: OpenAIServer) -> None:
    answer = await ask(client, ayu, picture())
    path = f"/conversations/{answer.json()['conversation_id']}"
    shown = (await client.get(path, headers=ayu.headers)).json()
    question = shown["messages"][0]["id"]
    edit = await client.put(f"/messages/{question}", json={"content": "And now?"}, headers=ayu.headers)
    assert edit.status_code == 200, edit.text
    assert sent(model) == [picture()]


async def test_only_the_latest_images_are_sent(client: httpx.AsyncClient, ayu: Caller, model: OpenAIServer) -> None:
    pictures = [picture(size=(number, 1)) for number in range(1, images.MAX_IMAGES + 3)]
    talk = (await ask(client, ayu, *pictures[: images.MAX_IMAGES])).json()["conversation_id"]
    await ask(client, ayu, *pictures[images.MAX_IMAGES :], conversation_id=talk)
    assert sent(model, 0) + sent(model) == pictures[-images.MAX_IMAGES :]


async def test_no_more_bytes_are_sent_than_one_message_has(
    client: httpx.AsyncClient, ayu: Caller, model: OpenAIServer
) -> None:
    pictures = [picture(color=color) + b"\0" * 3_000_000 for color in ("red", "green", "blue")]
    talk = (await ask(client, ayu, *pictures[:2])).json()["conversation_id"]
    await ask(client, ayu, pictures[2], conversation_id=talk)
    assert sent(model, 0) + sent(model) == pictures[1:]


async def test_an_estimate_counts_images(client: httpx.AsyncClient, ayu: Caller, model: OpenAIServer) -> None:
    model.answer = Answer(usage=None)
    without = (await ask(client, ayu)).json()["message"]["input_tokens"]
    counted = (await ask(client, ayu, picture(), picture())).json()["message"]["input_tokens"]
    assert counted == without + 2 * tokenizer.IMAGE_TOKENS


async def test_a_photo_with_a_preview_is_a_jpeg(client: httpx.AsyncClient, ayu: Caller, model: OpenAIServer) -> None:
    """As phones and cameras take them: Pillow calls such a file MPO, which no model accepts."""
    file = io.BytesIO()
    photo = PIL.Image.new("RGB", (3, 2), "red")
    photo.save(file, "MPO", save_all=True, append_images=[photo.copy()])
    (url,) = await urls(client, ayu, await ask(client, ayu, file.getvalue()))
    assert url.endswith(".jpg")
    assert (await client.get(url)).headers["content-type"] == "image/jpeg"
    content = model.requests[-1].body["messages"][-1]["content"]
    assert content[1]["image_url"]["url"].startswith("data:image/jpeg;base64,")


WHOLE = picture("PNG", (50, 50))
REFUSED = {
    "html": b"<html><script>alert(1)</script></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "cut short": WHOLE[:60],
    "damaged": WHOLE[:-20] + b"x" * 20,
    "a bomb": png_of(100_000, 100_000),
    "too many pixels": png_of(10_000, 5_001),
    "no pixels": png_of(0, 1),
    "another form": b"BM" + b"\0" * 100,
    "too large": picture() + b"\0" * images.MAX_BYTES,
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_is_no_image_is_refused_and_leaves_nothing(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, what: str, uploads: Path
) -> None:
    refused = problems.check(await ask(client, ayu, picture(), REFUSED[what]), 422)
    assert refused["errors"].keys() == {"images"}
    assert (await stored(database), model.requests) == (0, [])
    async with database.reads() as session:
        assert await session.scalar(select(func.count()).select_from(Message)) == 0
    assert files_in(uploads) == []


@pytest.mark.parametrize(
    ("count", "field", "status"), [(images.MAX_IMAGES + 1, "images", 422), (100, "images", 422), (1, "file", 422)]
)
async def test_too_many_files_and_other_files_are_refused(
    client: httpx.AsyncClient, database: Database, ayu: Caller, count: int, field: str, status: int
) -> None:
    files = [(field, ("a.png", picture(), "image/png"))] * count
    answer = await client.post("/chat", data={"message": "Hi"}, files=files, headers=ayu.headers)
    problems.check(answer, status)
    assert await stored(database) == 0


async def test_a_body_that_is_too_large_is_refused(client: httpx.AsyncClient, ayu: Caller) -> None:
    problems.check(await ask(client, ayu, *[picture() + b"\0" * 4_000_000] * 4), 413)
    answer = await client.post("/chat", content=b" " * 3_000_000, headers=ayu.headers)
    problems.check(answer, 413)


async def test_a_blank_message_with_an_image_is_refused(client: httpx.AsyncClient, ayu: Caller) -> None:
    problems.check(await ask(client, ayu, picture(), message=" "), 400)


async def test_an_empty_field_of_files_is_no_file(client: httpx.AsyncClient, ayu: Caller) -> None:
    files = {"images": ("", b"", "application/octet-stream")}
    form = {"message": "Hi", "stream": "false"}
    answer = await client.post("/chat", data=form, files=files, headers=ayu.headers)
    assert answer.status_code == 200, answer.text


async def test_a_repeated_request_is_one_image(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    first = await ask(client, ayu, picture(), key="one")
    assert (await ask(client, ayu, picture(), key="one")).json() == first.json()
    assert await stored(database) == 1
    problems.check(await ask(client, ayu, picture(color="blue"), key="one"), 422)
    problems.check(await ask(client, ayu, key="one"), 422)


@pytest.mark.parametrize("file", ["0" * 32 + ".png", "..%2f..%2fapp.db", "a", "%00.png", "x" * 300, "0" * 32])
async def test_other_names_are_not_found(client: httpx.AsyncClient, file: str) -> None:
    answer = await client.get(f"/uploads/images/{file}")
    problems.check(answer, answer.status_code)
    assert answer.status_code in (404, 422)


async def test_an_image_is_erased_with_the_last_message_that_shows_it(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    talks = [(await ask(client, ayu, picture(color=color))).json()["conversation_id"] for color in ("red", "blue")]
    async with database.sessions.begin() as session:  # as a branch does
        of = Message.conversation_id == talks[0], Message.image_urls.is_not(None)
        shown = await session.scalar(select(Message.image_urls).where(*of))
        of = Message.conversation_id == talks[1], Message.image_urls.is_not(None)
        await session.execute(update(Message).where(*of).values(image_urls=shown))
    (url,) = json.loads(shown or "")
    await client.delete(f"/conversations/{talks[0]}", headers=ayu.headers)
    assert (await client.get(url)).status_code == 200
    await client.delete(f"/conversations/{talks[1]}", headers=ayu.headers)
    problems.check(await client.get(url), 404)


async def test_deletions_at_once_leave_no_image(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    talks = [(await ask(client, ayu, picture())).json()["conversation_id"] for _ in range(4)]
    async with database.sessions.begin() as session:
        shown = await session.scalar(select(Message.image_urls).where(Message.image_urls.is_not(None)).limit(1))
        await session.execute(update(Message).where(Message.role == "user").values(image_urls=shown))
    await asyncio.gather(*(client.delete(f"/conversations/{talk}", headers=ayu.headers) for talk in talks))
    async with database.reads() as session:
        gone = select(func.count()).where(Conversation.deleted_at.is_not(None))
        assert await session.scalar(gone) == len(talks)
    assert await stored(database) == len(talks) - 1, "the others had lost their names before"


async def test_a_deleted_user_leaves_no_image(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    await ask(client, ayu, picture())
    async with database.sessions.begin() as session:
        await users.delete(session, ayu.id)
    assert await stored(database) == 0


OLD = "01234567-89ab-cdef-0123-456789abcdef.png"


@pytest.fixture
async def old_talk(client: httpx.AsyncClient, database: Database, ayu: Caller, uploads: Path) -> str:
    """A conversation with an image that the earlier backend stored, and one whose URL leads elsewhere."""
    (uploads / "images" / OLD).write_bytes(picture())
    (uploads.parent / "kept.png").write_bytes(picture())
    talk: str = (await ask(client, ayu)).json()["conversation_id"]
    old = json.dumps([f"/uploads/images/{OLD}", "/uploads/images/../../kept.png", "https://example.com/a.png"])
    async with database.sessions.begin() as session:
        await session.execute(update(Message).where(Message.role == "user").values(image_urls=old))
    return talk


async def test_old_images_are_served_and_erased(
    client: httpx.AsyncClient, ayu: Caller, old_talk: str, uploads: Path
) -> None:
    shown = await client.get(f"/uploads/images/{OLD}")
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")
    headers = (await client.head(f"/uploads/images/{OLD}")).headers
    assert headers["content-length"] == shown.headers["content-length"] == str(len(shown.content))
    await client.delete(f"/conversations/{old_talk}", headers=ayu.headers)
    problems.check(await client.get(f"/uploads/images/{OLD}"), 404)
    assert files_in(uploads) == []
    assert (uploads.parent / "kept.png").exists()


async def test_an_old_image_that_cannot_be_deleted_is_named(
    client: httpx.AsyncClient, ayu: Caller, old_talk: str, uploads: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A directory under its name stands for a file of another user, which root can delete."""
    file = uploads / "images" / OLD
    file.unlink()
    file.mkdir()
    assert (await client.delete(f"/conversations/{old_talk}", headers=ayu.headers)).status_code == 204
    assert f"delete it by hand: {file}: " in caplog.text


async def test_an_old_image_that_cannot_be_read_is_named(
    client: httpx.AsyncClient, uploads: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (uploads / "images" / OLD).write_bytes(picture())
    refused = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(Path, "read_bytes", mock.Mock(side_effect=refused))
    problems.check(await client.get(f"/uploads/images/{OLD}"), 404)
    assert f"{OLD}: Permission denied" in caplog.text


async def test_an_old_file_that_is_no_image_is_not_served(client: httpx.AsyncClient, uploads: Path) -> None:
    (uploads / "images" / OLD).write_bytes(b"<html></html>")
    problems.check(await client.get(f"/uploads/images/{OLD}"), 404)


async def test_a_service_that_refuses_images_counts_nothing(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    model.answer = Answer(status=400, error="image input is not supported")
    refused = await ask(client, ayu, picture())
    problems.check(refused, refused.status_code)
    me = (await client.get("/auth/me", headers=ayu.headers)).json()
    assert me["token_stats"]["monthly_stats"] == []
    await invariants.check(database)
