"""Build the lines of an archive: a message with its feedback and images."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import ColumnElement, Row, Table, and_, delete, func, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.database import is_sqlite
from models import Feedback, Message, MessageImage
from services.backfill import archive_rows
from services.backfill.archive_rows import Columns

MESSAGES, FEEDBACK, IMAGES = (cast(Table, model.__table__) for model in (Message, Feedback, MessageImage))


async def of(session: AsyncSession, ids: Sequence[int]) -> Iterator[bytes]:
    """Return the line of each message, in the order of their ids."""
    columns = await archive_rows.columns_of(session, MESSAGES)
    rows = (await session.execute(columns.select(MESSAGES).where(MESSAGES.c.id.in_(ids)).order_by(MESSAGES.c.id))).all()
    more = {"feedback": await _feedback(session, ids), "images": await _encoded_images(session, ids)}
    return (_line(columns, row, more) for row in rows)


def _line(columns: Columns, row: Row[*tuple[Any, ...]], more: Mapping[str, Mapping[int, Any]]) -> bytes:
    message = columns.encode(row._mapping)
    others = {name: found[message["id"]] for name, found in more.items() if message["id"] in found}
    return json.dumps({"message": message, **others}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


async def _feedback(session: AsyncSession, ids: Sequence[int]) -> Mapping[int, Any]:
    columns = await archive_rows.columns_of(session, FEEDBACK)
    found = columns.select(FEEDBACK).where(FEEDBACK.c.message_id.in_(ids)).order_by(FEEDBACK.c.id)
    return _by_message((columns.encode(row._mapping) for row in await session.execute(found)), "message_id")


async def _encoded_images(session: AsyncSession, ids: Sequence[int]) -> Mapping[int, Any]:
    columns = await archive_rows.columns_of(session, IMAGES)
    own = Message.id.in_(ids), is_shown(is_sqlite(session))
    found = columns.select(IMAGES).add_columns(Message.id.label("of")).join(Message, true()).where(*own)
    rows = await session.execute(found.order_by(IMAGES.c.name))
    return _by_message(({**columns.encode(row._mapping), "of": row.of} for row in rows), "of")


def _by_message(rows: Iterator[dict[str, Any]], key: str) -> Mapping[int, list[dict[str, Any]]]:
    found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row[key] if key == "message_id" else row.pop(key)].append(row)
    return found


async def images_of(session: AsyncSession, ids: Sequence[int]) -> Sequence[str]:
    """Return the names of the images that messages show."""
    shown = select(MessageImage.name).join(Message, true()).where(Message.id.in_(ids), is_shown(is_sqlite(session)))
    return (await session.scalars(shown.distinct())).all()


async def drop_unused(session: AsyncSession, names: Sequence[str]) -> None:
    """Delete those of the images that no message shows."""
    if names:
        used = select(Message.id).where(is_shown(is_sqlite(session))).correlate(MessageImage).exists()
        await session.execute(delete(MessageImage).where(MessageImage.name.in_(names), ~used))


def is_shown(sqlite: bool) -> ColumnElement[bool]:
    """Match images of the user that the message shows: it has their names."""
    at = (func.instr if sqlite else func.strpos)(Message.image_urls, MessageImage.name)
    return and_(MessageImage.user_id == Message.user_id, Message.image_urls.is_not(None), at > 0)
