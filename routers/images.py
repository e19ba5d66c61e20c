"""Serve the images of messages.

Their names cannot be guessed. No token is required, since an `<img>` of a page sends none.
"""

import asyncio
import logging
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Path, Response

from app.db.database import Session
from app.errors import NotFound
from routers.http.dependencies import StateDep
from routers.http.problems import documented
from routers.http.requests import ExactRoute, StorableText
from services.chat import images

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/uploads/images", tags=["conversations"], route_class=ExactRoute)

_HEADERS = {
    "Cache-Control": "private, max-age=31536000, immutable",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
_MAX_FILE_BYTES = 32 * 2**20

FileName = Annotated[
    StorableText, Path(min_length=1, max_length=255, examples=["0123456789abcdef0123456789abcdef.png"])
]


@router.head("/{file}", include_in_schema=False)
@router.get(
    "/{file}",
    operation_id="get_image",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}}, **documented(404, 422, 503)},
)
async def get_image(file: FileName, state: StateDep) -> Response:
    """Return an image of a message, as `image_urls` names it."""

    async def work(session: Session) -> tuple[str, bytes] | None:
        row = await images.find(session, file)
        return None if row is None else (row.content_type, row.data)

    found = await state.database.read(work)
    if found is None:
        found = await asyncio.to_thread(_read_old, images.old_file(state.settings.uploads_dir, file))
    if found is None:
        raise NotFound("There is no such image.")
    content_type, data = found
    return Response(data, media_type=content_type, headers=_HEADERS)


def _read_old(path: FilePath | None) -> tuple[str, bytes] | None:
    try:
        if path is None or not path.is_file() or path.stat().st_size > _MAX_FILE_BYTES:
            return None
        data = path.read_bytes()
    except OSError as error:
        logger.error("an image cannot be read: %s: %s", path, error.strerror)
        return None
    content_type = images.recognize(data)
    return None if content_type is None else (content_type, data)
