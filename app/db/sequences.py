"""Advance PostgreSQL's id sequences past ids that were copied in."""

import logging
from functools import partial
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import failures
from app.db.database import Database

logger = logging.getLogger(__name__)

TABLES = (
    "users",
    "messages",
    "user_monthly_token_usage",
    "api_keys",
    "user_preferences",
    "feedback",
    "user_model_categories",
)
"""The tables whose `id` the database assigns."""

_FIND = text("""
    SELECT t.oid::regclass::text AS table_name, s.oid::regclass::text AS name, q.seqmax AS highest,
        CASE WHEN has_sequence_privilege(s.oid, 'SELECT, USAGE') THEN
            coalesce(pg_sequence_last_value(s.oid) + q.seqincrement, q.seqstart) END AS next_id
    FROM unnest(CAST(:tables AS text[])) WITH ORDINALITY AS wanted (name, position)
    JOIN pg_class AS t ON t.oid = to_regclass(wanted.name)
    JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attname = 'id'
    LEFT JOIN pg_attrdef AS v ON v.adrelid = t.oid AND v.adnum = a.attnum
    JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND (
        d.classid = 'pg_attrdef'::regclass AND d.objid = v.oid
        OR d.classid = 'pg_class'::regclass AND d.refobjid = t.oid AND d.refobjsubid = a.attnum AND d.deptype = 'i')
    JOIN pg_class AS s ON s.relkind = 'S' AND s.oid = CASE WHEN d.deptype = 'i' THEN d.objid ELSE d.refobjid END
    JOIN pg_sequence AS q ON q.seqrelid = s.oid AND q.seqincrement > 0
    ORDER BY wanted.position
""")
"""Finds the sequence of a `serial` column, an identity column, or a plain default."""

_ADVANCE = """
    SELECT setval('{name}', highest.id) FROM (SELECT max(id) AS id FROM {table_name}) AS highest, {name} AS present
    WHERE present.last_value < highest.id OR present.last_value = highest.id AND NOT present.is_called
"""
_NOT_PERMITTED = "42501"
# The part of the ids of messages after which the log warns.
_FEW_LEFT = 0.75


class Behind(NamedTuple):
    """Name a sequence that would assign ids which its table already contains."""

    table_name: str
    name: str


async def behind(database: Database) -> list[Behind]:
    """Return the sequences whose next id is not above all present ids.

    Reads the end of each primary key, and writes nothing. Omits sequences that this role cannot read. If another
    session holds a lock for over 1 s, returns none and logs a warning.
    """
    try:
        async with database.reads() as session:
            return await _behind(session)
    except DBAPIError as error:
        if not failures.is_conflict(error):
            raise
        logger.warning("sequences are not checked: a table is locked by another session; the next start checks them")
        return []


async def _behind(session: AsyncSession) -> list[Behind]:
    found = []
    await session.execute(text("SET LOCAL lock_timeout = '1s'"))
    for row in (await session.execute(_FIND, {"tables": list(TABLES)})).all():
        highest = await session.scalar(text(f"SELECT max(id) FROM {row.table_name}"))  # noqa: S608
        if row.table_name == "messages":
            _warn_of_end(max(highest or 0, row.next_id or 0), row.highest)
        if highest is None or row.next_id is None or row.next_id > highest:
            continue
        if highest >= row.highest:
            logger.warning(
                "%s: id %d is the last that %s can assign: left unchanged", row.table_name, highest, row.name
            )
        else:
            found.append(Behind(row.table_name, row.name))
    return found


def _warn_of_end(used: int, highest: int) -> None:
    if used > highest * _FEW_LEFT:
        logger.warning(
            "messages: %d of %d ids are used: run python migrate_token_data.py --widen-ids, also while servers run",
            used,
            highest,
        )


async def advance(database: Database) -> None:
    """Advance each sequence past the ids of its table; never lower one.

    If the role lacks the privilege, or another session locks the table for over 3 s, logs a warning instead.
    """
    for sequence in await behind(database):
        try:
            next_id = await database.transaction(partial(_advance, sequence=sequence), repeatable=True)
        except DBAPIError as error:
            _warn(sequence, error)
            continue
        if next_id is not None:
            logger.warning("%s: the sequence %s was behind its ids: it continues after %d", *sequence, next_id)


async def _advance(session: AsyncSession, sequence: Behind) -> int | None:
    await session.execute(text("SET LOCAL lock_timeout = '3s'"))
    # An INSERT locks the table before it draws an id. So no id is drawn between reading and setting.
    await session.execute(text(f"LOCK TABLE {sequence.table_name} IN SHARE ROW EXCLUSIVE MODE"))
    last_id: int | None = await session.scalar(text(_ADVANCE.format(**sequence._asdict())))
    return last_id


def _warn(sequence: Behind, error: DBAPIError) -> None:
    denied = getattr(error.orig, "sqlstate", None) == _NOT_PERMITTED
    if not denied and not failures.is_conflict(error):
        raise error
    logger.warning(
        "%s: the sequence %s is behind its ids, and %s: as its owner run SELECT setval('%s', (SELECT max(id) FROM %s))",
        *sequence,
        "this role may not set it" if denied else "the table is locked by another session",
        sequence.name,
        sequence.table_name,
    )
