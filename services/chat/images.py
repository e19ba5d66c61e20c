"""Recognize, store, load and erase the images of messages.

An image is a row of `message_images`. Messages refer to images in `image_urls`, a JSON list of URLs. The name in a URL
is 128 random bits. Copies of a message refer to the same image, which is erased with the last message that shows the
image. The earlier backend stored its images as files with such URLs, in its directory `uploads`.
"""

import base64
import io
import json
import logging
import re
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from anyio import to_thread
from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.errors import InvalidRequest
from models import Message, MessageImage, User
from services.chat.tokenizer import Prompt

logger = logging.getLogger(__name__)

PREFIX = "/uploads/images/"

MAX_IMAGES = 8
"""The maximum number of images in one message, and in one request to a model."""
MAX_BYTES = 4 * 2**20
"""Bytes of one image."""
MAX_TOTAL_BYTES = 8 * 2**20
"""Bytes of all images of one message, and of one request to a model."""
MAX_PIXELS = 50_000_000
"""Pixels of one image, by its header."""

_FORMATS = ("GIF", "JPEG", "PNG", "WEBP")
_NAME = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FILE = re.compile(rf"({_NAME.pattern})\.[A-Za-z0-9]{{1,5}}")


class Image(NamedTuple):
    """A checked image, with its new name."""

    name: str
    content_type: str
    data: bytes

    @property
    def url(self) -> str:
        """Return the path that serves the image."""
        return f"{PREFIX}{self.name}.{self.content_type.removeprefix('image/').replace('jpeg', 'jpg')}"


async def check(files: Sequence[bytes]) -> Sequence[Image]:
    """Recognize images by their content.

    Raises:
        InvalidRequest: there are too many images, one is too large, or one is not an image.
    """
    if not files:
        return ()
    if len(files) > MAX_IMAGES:
        raise InvalidRequest({"images": [f"A message has at most {MAX_IMAGES} images."]})
    if any(len(data) > MAX_BYTES for data in files) or sum(map(len, files)) > MAX_TOTAL_BYTES:
        most = f"{MAX_BYTES // 2**20} MiB, and all of a message at most {MAX_TOTAL_BYTES // 2**20} MiB"
        raise InvalidRequest({"images": [f"An image has at most {most}."]})
    return await to_thread.run_sync(lambda: [_check(number, data) for number, data in enumerate(files, start=1)])


def _check(number: int, data: bytes) -> Image:
    content_type = recognize(data)
    if content_type is None:
        wanted = f"a PNG, JPEG, GIF or WebP image of at most {MAX_PIXELS} pixels"
        raise InvalidRequest({"images": [f"File {number} is not {wanted}."]})
    return Image(secrets.token_hex(16), content_type, data)


def recognize(data: bytes) -> str | None:
    """Return the media type of an image.

    Return None if the data is not an image or has too many pixels. The pixels are not decoded, so that an image takes
    no more memory than its bytes. An image without its end is therefore accepted.
    """
    import PIL.Image  # 2 MiB, which a process without images never needs

    try:
        with PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            kind, (width, height) = image.format or "", image.size
            image.verify()
    except Exception:  # Pillow raises many kinds for damaged files
        return None
    kind = "JPEG" if kind == "MPO" else kind  # a photo with a preview, which every reader takes for a plain JPEG
    return f"image/{kind.lower()}" if 0 < width * height <= MAX_PIXELS else None


async def store(session: AsyncSession, user_id: int, message_id: int, images: Sequence[Image]) -> None:
    """Store the images of a message."""
    common = {"user_id": user_id, "created_at": clock.now()}
    await session.execute(insert(MessageImage), [{**image._asdict(), **common} for image in images])
    urls = json.dumps([image.url for image in images])
    question = Message.id == message_id, Message.user_id == user_id
    await session.execute(update(Message).where(*question).values(image_urls=urls))


async def find(session: AsyncSession, file: str) -> Row[str, bytes] | None:
    """Return the media type and bytes of an image, or None.

    `file` is the last part of the image's URL.
    """
    name = _name_of(file)
    columns = select(MessageImage.content_type, MessageImage.data)
    return None if name is None else (await session.execute(columns.where(MessageImage.name == name))).one_or_none()


async def load(session: AsyncSession, prompts: Sequence[Prompt], user_id: int | None) -> list[Prompt]:
    """Return the prompts with data URLs in place of image URLs.

    The latest images are kept, as many as one request may have.

    Args:
        session: the caller's transaction.
        prompts: the prompts, with the stored URLs as their images.
        user_id: the user whose images are sent; None in an old row without a user, which has none.
    """
    names = [name for prompt in prompts for url in prompt.get("images", ()) if (name := _name_of(url))]
    found = await _data_urls(session, names[-MAX_IMAGES:], user_id) if names else {}
    return [_loaded(prompt, found) for prompt in prompts]


def _loaded(prompt: Prompt, found: Mapping[str | None, str]) -> Prompt:
    images = [found[name] for url in prompt.get("images", ()) if (name := _name_of(url)) in found]
    plain: Prompt = {"role": prompt["role"], "content": prompt["content"]}
    return {**plain, "images": images} if images else plain


async def _data_urls(session: AsyncSession, names: Sequence[str], user_id: int | None) -> Mapping[str | None, str]:
    columns = select(MessageImage.name, MessageImage.content_type, MessageImage.data)
    rows = await session.execute(columns.where(MessageImage.name.in_(names), MessageImage.user_id == user_id))
    stored = {row.name: row for row in rows}
    found: dict[str | None, str] = {}
    size = 0
    for name in reversed(names):
        if row := stored.get(name):
            size += len(row.data)
            if size > MAX_TOTAL_BYTES:
                break
            found[name] = f"data:{row.content_type};base64,{base64.b64encode(row.data).decode()}"
    return found


def urls_in(stored: str | None) -> list[str]:
    """Return the URLs in `image_urls`, or an empty list for other content."""
    try:
        urls = json.loads(stored or "[]")
    except (ValueError, RecursionError):
        return []
    return [url for url in urls if isinstance(url, str)] if isinstance(urls, list) else []


async def urls_of(session: AsyncSession, *of: Any) -> Collection[str]:
    """Return the URLs of all images of some messages."""
    stored = await session.scalars(select(Message.image_urls).where(Message.image_urls.is_not(None), *of))
    return {url for text in stored for url in urls_in(text)}


async def urls_of_user(session: AsyncSession, user_id: int) -> Collection[str]:
    """Return the URLs of all images in a user's messages."""
    return await urls_of(session, Message.user_id == user_id)


async def erase(session: AsyncSession, user_id: int, urls: Collection[str]) -> Collection[str]:
    """Delete the given images that no message of the user shows.

    Returns:
        The URLs that no message shows. The caller can delete their files, if any, after the commit.
    """
    if not urls:
        return urls
    # Without the lock, two concurrent deletions would each leave an image to the other.
    await session.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))
    unused = set(urls) - set(await urls_of(session, Message.user_id == user_id))
    names = [name for url in unused if (name := _name_of(url))]
    await session.execute(delete(MessageImage).where(MessageImage.name.in_(names), MessageImage.user_id == user_id))
    return unused


def delete_files(directory: Path, urls: Iterable[str]) -> None:
    """Delete the files of images that the earlier backend stored.

    A file that cannot be deleted is named in the log: its message is gone already.
    """
    for url in urls:
        if path := old_file(directory, url):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.error("an erased image is still there; delete it by hand: %s: %s", path, error.strerror)


def old_file(directory: Path, url: str) -> Path | None:
    """Return the file of an image that the earlier backend stored.

    Return None if the URL is not one of such an image.
    """
    file = url.removeprefix(PREFIX)
    return directory / "images" / file if _FILE.fullmatch(file) else None


def _name_of(url: str) -> str | None:
    match = _FILE.fullmatch(url.removeprefix(PREFIX))
    return match[1] if match else None
