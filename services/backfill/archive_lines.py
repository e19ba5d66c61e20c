"""Build the lines of archives: messages with feedback and images."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import ARRAY, BigInteger, ColumnElement, Row, Table, and_, any_, delete, func, literal, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.database import is_sqlite
from models import Feedback, Message, MessageImage
from services.backfill import archive_rows
from services.backfill.archive_rows import Columns

Tables = Mapping[str, Columns]
"""The columns of each table, by its name."""

MESSAGES, FEEDBACK, IMAGES = (cast(Table, model.__table__) for model in (Message, Feedback, MessageImage))


async def tables(session: AsyncSession) -> Tables:
    """Return the columns of the tables whose rows are archived."""
    return {table.name: await archive_rows.columns_of(session, table) for table in (MESSAGES, FEEDBACK, IMAGES)}


def among(session: AsyncSession, column: Any, ids: Sequence[int]) -> ColumnElement[bool]:
    """Match any of many ids, which are one parameter."""
    if is_sqlite(session):
        return column.in_(select(func.json_each(json.dumps(list(ids))).table_valued("value").c.value))  # type: ignore[no-any-return]
    return column == any_(literal(list(ids), ARRAY(BigInteger)))  # type: ignore[no-any-return]


async def of(session: AsyncSession, known: Tables, ids: Sequence[int], has_images: bool) -> Iterator[bytes]:
    """Return the line of each message, in the order of their ids."""
    columns = known[MESSAGES.name]
    chosen = columns.select(MESSAGES).where(among(session, MESSAGES.c.id, ids)).order_by(MESSAGES.c.id)
    rows = (await session.execute(chosen)).all()
    images = await _images(session, known[IMAGES.name], ids) if has_images else {}
    more = {"feedback": await _feedback(session, known[FEEDBACK.name], ids), "images": images}
    return (_line(columns, row, more) for row in rows)


def _line(columns: Columns, row: Row[*tuple[Any, ...]], more: Mapping[str, Mapping[int, Any]]) -> bytes:
    message = columns.encode(row._mapping)
    others = {name: found[message["id"]] for name, found in more.items() if message["id"] in found}
    return json.dumps({"message": message, **others}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


async def _feedback(session: AsyncSession, columns: Columns, ids: Sequence[int]) -> Mapping[int, Any]:
    of_messages = among(session, FEEDBACK.c.message_id, ids)
    rows = await session.execute(columns.select(FEEDBACK).where(of_messages).order_by(FEEDBACK.c.id))
    return _by_message((columns.encode(row._mapping) for row in rows), "message_id")


async def _images(session: AsyncSession, columns: Columns, ids: Sequence[int]) -> Mapping[int, Any]:
    own = among(session, Message.id, ids), is_shown(is_sqlite(session))
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
    shown = (
        select(MessageImage.name)
        .join(Message, true())
        .where(among(session, Message.id, ids), is_shown(is_sqlite(session)))
    )
    return (await session.scalars(shown.distinct())).all()


async def drop_unused(session: AsyncSession, names: Sequence[str]) -> None:
    """Delete those of the images that no message shows."""
    if names:
        used = select(Message.id).where(is_shown(is_sqlite(session))).correlate(MessageImage).exists()
        await session.execute(delete(MessageImage).where(MessageImage.name.in_(names), ~used))


def is_shown(sqlite: bool) -> ColumnElement[bool]:
    """Match images of the user whose names the message has."""
    at = (func.instr if sqlite else func.strpos)(Message.image_urls, MessageImage.name)
    return and_(MessageImage.user_id == Message.user_id, Message.image_urls.is_not(None), at > 0)
