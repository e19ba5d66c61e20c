"""Find the 32-bit ids of messages, and all that depends on them.

Only adopted PostgreSQL tables have such columns. The catalogue of the database is the only state of a widening.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import ConfigurationError

COLUMNS = (
    ("conversations", "edited_message_id"),
    ("messages", "id"),
    ("messages", "parent_message_id"),
    ("feedback", "message_id"),
)
"""The columns with ids of messages, in the order in which writers lock the tables."""

_INDEXES = ("ix_messages_id", "ix_messages_not_adopted", "ix_feedback_message_id")
# Indexes of the earlier backend that equal the index of the primary key, and are not rebuilt.
_REDUNDANT = ("ix_messages_id",)

_WANTED = """
    unnest(CAST(:tables AS text[]), CAST(:names AS text[])) WITH ORDINALITY AS wanted (table_name, name, position)
    JOIN pg_attribute AS a ON a.attrelid = to_regclass(wanted.table_name) AND a.attname = wanted.name
"""
_NARROW = text(f"""
    SELECT wanted.table_name, wanted.name, a.attnotnull AS is_required
    FROM {_WANTED} WHERE a.atttypid = 'integer'::regtype ORDER BY position
""")  # noqa: S608
_FIND_INDEXES = text(f"""
    SELECT quote_ident(c.relname) AS name, quote_ident(c.relname || '_wide') AS wide_name, wanted.table_name,
        wanted.name AS column_name, i.indisprimary AS is_primary, i.indisunique AS is_unique,
        pg_get_expr(i.indpred, i.indrelid) AS predicate
    FROM {_WANTED} JOIN pg_index AS i ON i.indrelid = a.attrelid AND i.indkey[0] = a.attnum AND i.indnatts = 1
    JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE a.atttypid = 'integer'::regtype AND c.relname <> ALL (CAST(:redundant AS text[]))
    ORDER BY position, c.relname
""")  # noqa: S608
_FIND_KEYS = text(f"""
    SELECT DISTINCT k.conrelid::regclass::text AS table_name, quote_ident(k.conname) AS name,
        pg_get_constraintdef(k.oid) AS definition
    FROM {_WANTED} JOIN pg_constraint AS k ON k.contype = 'f' AND (
        k.conrelid = a.attrelid AND a.attnum = ANY (k.conkey)
        OR k.confrelid = a.attrelid AND a.attnum = ANY (k.confkey))
    WHERE a.atttypid = 'integer'::regtype ORDER BY 1, 2
""")  # noqa: S608
_FIND_UNCHECKED_KEYS = text(f"""
    SELECT DISTINCT k.conrelid::regclass::text AS table_name, quote_ident(k.conname) AS name
    FROM {_WANTED} JOIN pg_constraint AS k ON k.contype = 'f' AND k.conrelid = a.attrelid AND a.attnum = ANY (k.conkey)
    WHERE NOT k.convalidated ORDER BY 1, 2
""")  # noqa: S608
# PostgreSQL 18 names NOT NULL.
_FIND_REQUIRED = text(f"""
    SELECT wanted.table_name, quote_ident(k.conname) AS name,
        wanted.table_name || '_' || wanted.name || '_wide_not_null' AS wide_name
    FROM {_WANTED} JOIN pg_constraint AS k ON k.contype = 'n' AND k.conrelid = a.attrelid AND k.conkey[1] = a.attnum
    WHERE a.atttypid = 'integer'::regtype ORDER BY position
""")  # noqa: S608
_SEQUENCE = text("SELECT pg_get_serial_sequence('messages', 'id')")
# A trigger on UPDATE, whose bit is 16, would run for each old row; a publication would send columns that a subscriber
# lacks.
_UNKNOWN = text(f"""
    WITH columns AS (SELECT wanted.*, a.* FROM {_WANTED}),
    narrow AS (SELECT * FROM columns WHERE atttypid = 'integer'::regtype)
    SELECT pg_describe_object(d.classid, d.objid, d.objsubid) FROM narrow AS n
    JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = n.attrelid AND d.refobjsubid = n.attnum
    LEFT JOIN pg_attrdef AS v ON d.classid = 'pg_attrdef'::regclass AND v.oid = d.objid
    LEFT JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
    LEFT JOIN pg_constraint AS k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
    WHERE NOT coalesce(v.adrelid = n.attrelid AND v.adnum = n.attnum AND n.name = 'id', false)
        AND NOT coalesce(c.relkind = 'S' AND d.deptype = 'a' OR c.relname = ANY (CAST(:indexes AS text[])), false)
        AND NOT coalesce(k.conname = 'ck_' || n.table_name || '_wide_ids', false)
        AND NOT coalesce(k.contype IN ('p', 'n') AND cardinality(k.conkey) = 1, false)
        AND NOT coalesce(k.contype = 'f' AND k.convalidated AND cardinality(k.conkey) = 1
            AND (k.conrelid, k.conkey[1]) IN (SELECT attrelid, attnum FROM columns), false)
    UNION SELECT 'trigger ' || t.tgname || ' on table ' || n.table_name FROM narrow AS n JOIN pg_trigger AS t
        ON t.tgrelid = n.attrelid AND t.tgtype & 16 <> 0 AND NOT t.tgisinternal AND t.tgname NOT LIKE 'foundation%'
    UNION SELECT 'publication ' || p.pubname FROM narrow AS n JOIN pg_publication_tables AS p
        ON to_regclass(quote_ident(p.schemaname) || '.' || quote_ident(p.tablename)) = n.attrelid
    UNION SELECT 'inheritance of table ' || n.table_name FROM narrow AS n JOIN pg_inherits AS i
        ON n.attrelid IN (i.inhrelid, i.inhparent)
    UNION SELECT 'privileges on column ' || n.table_name || '.' || n.name FROM narrow AS n WHERE n.attacl IS NOT NULL
    ORDER BY 1
""")  # noqa: S608


@dataclass(frozen=True)
class Table:
    """Name a table, and its 32-bit columns: whether each is required."""

    name: str
    columns: dict[str, bool]

    @property
    def trigger(self) -> str:
        """The name of the trigger, and of its function, that copies ids."""
        return f"foundation_wide_{self.name}"

    @property
    def check(self) -> str:
        """The name of the constraint that proves the copies."""
        return f"ck_{self.name}_wide_ids"

    @property
    def wide(self) -> list[str]:
        """The names of the 64-bit copies."""
        return [f"{name}_wide" for name in self.columns]


@dataclass(frozen=True)
class Plan:
    """List what to widen and rebuild; no `tables`, if all is wide."""

    tables: Sequence[Table]
    indexes: Sequence[Row[*tuple[str, ...]]]
    keys: Sequence[Row[*tuple[str, ...]]]
    """Foreign keys, each with its `table_name`, `name` and `definition`."""
    required: Sequence[Row[*tuple[str, ...]]]
    """The names of NOT NULL, where they have some."""
    sequence: str | None
    """The sequence that assigns `messages.id`."""

    @property
    def locked(self) -> list[str]:
        """The tables that the swap changes, in the order of their locks."""
        changed = {table.name for table in self.tables} | {key.table_name for key in self.keys}
        return [name for name in dict.fromkeys(name for name, _ in COLUMNS) if name in changed]


async def find(session: AsyncSession) -> Plan:
    """Read the plan from the catalogue.

    Raises:
        ConfigurationError: objects that the product does not know depend on a 32-bit column.
    """
    wanted = {"tables": [name for name, _ in COLUMNS], "names": [name for _, name in COLUMNS]}
    columns = (await session.execute(_NARROW, wanted)).all()
    sequence = await session.scalar(_SEQUENCE)
    _refuse(await session.scalars(_UNKNOWN, {**wanted, "indexes": list(_INDEXES)}))
    if columns and sequence is None:
        _refuse(["the default of messages.id, which is not its own sequence"])
    return Plan(
        _tables(columns),
        (await session.execute(_FIND_INDEXES, {**wanted, "redundant": list(_REDUNDANT)})).all(),
        (await session.execute(_FIND_KEYS, wanted)).all(),
        (await session.execute(_FIND_REQUIRED, wanted)).all(),
        sequence,
    )


async def unchecked_keys(session: AsyncSession) -> Sequence[Row[*tuple[str, ...]]]:
    """Return the foreign keys whose old rows PostgreSQL has not checked."""
    wanted = {"tables": [name for name, _ in COLUMNS], "names": [name for _, name in COLUMNS]}
    return (await session.execute(_FIND_UNCHECKED_KEYS, wanted)).all()


def _tables(columns: Iterable[Row[*tuple[str, ...]]]) -> list[Table]:
    found: dict[str, Table] = {}
    for column in columns:
        table = found.setdefault(column.table_name, Table(column.table_name, {}))
        table.columns[column.name] = column.is_required
    return list(found.values())


def _refuse(unknown: Iterable[str]) -> None:
    names = ", ".join(unknown)
    if names:
        raise ConfigurationError(
            f"ids of messages are not widened, because these objects depend on them: {names}; drop the objects,"
            " repeat the command, and create them again"
        )
